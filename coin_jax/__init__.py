"""Contrastive Instruction Tuning of T5 in JAX."""
