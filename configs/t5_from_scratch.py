"""A T5 1.1 from random weights, for studies where no pretrained model may have seen the wordings.

    python -m coin_jax.train --config configs/t5_from_scratch.py:small --data.source tasks \
        --data.files 'data/tasks/*.train.jsonl' --data.template-files data/templates.json

Without files it trains on the built-in tasks. The vocabulary is learned from the training text.
"""

from coin_jax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainingConfig,
)

# d_model, d_ff, layers, heads, pieces of the vocabulary
SIZES = {
    "tiny": (128, 256, 2, 4, 2000),
    "mini": (256, 512, 4, 4, 8000),
    "small": (512, 1024, 8, 6, 16000),
}


def get_config(arg: str = "mini") -> Config:
    if arg not in SIZES:
        raise ValueError(f"there is no size {arg!r}; sizes: {', '.join(SIZES)}")
    d_model, d_ff, layers, heads, pieces = SIZES[arg]
    return Config(
        name=f"t5_from_scratch_{arg}",
        model=ModelConfig(
            vocabulary_size=-(-(pieces + 100) // 128) * 128,  # with sentinels, in whole tiles
            d_model=d_model,
            d_kv=64,
            d_ff=d_ff,
            num_heads=heads,
            num_layers=layers,
            num_decoder_layers=layers,
            feed_forward="gated-gelu",
        ),
        tokenizer=TokenizerConfig(kind="sentencepiece", vocabulary_size=pieces),
        data=DataConfig(source="builtin", builtin_rows=80000),
        batch=BatchConfig(rows=16, encoder_length=256, decoder_length=48, segments_per_row=8),
        objective=ObjectiveConfig(method="coin", pooling="decoder_first", contrastive_weight=10.0),
        optimizer=OptimizerConfig(name="adafactor", learning_rate=1e-2, warmup_steps=500),
        evaluation=EvaluationConfig(every=1000),
        checkpoint=CheckpointConfig(every=1000, keep_best=True),
        training=TrainingConfig(steps=10000),
    )
