"""The model: T5 in Flax NNX, generation from it, and its weights on disk."""
