"""T5's span corruption over plain text, so that a small model can be made from nothing.

    python -m coin_jax.train --config configs/pretrain.py:FOLDER      FOLDER/*.txt, *.txt.gz
    python -m coin_jax.convert --from runs/pretrain --to pretrained
    python -m coin_jax.train --config configs/quickstart.py --model.init-from pretrained \
        --tokenizer.path pretrained

Raffel et al. 2020, section 3.1.4: 15% of the tokens are masked, in spans of 3 on average.
"""

from coin_jax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainingConfig,
)


def get_config(arg: str = "text") -> Config:
    return Config(
        name="pretrain",
        model=ModelConfig(
            vocabulary_size=8192,
            d_model=256,
            d_kv=32,
            d_ff=512,
            num_heads=8,
            num_layers=4,
            num_decoder_layers=4,
            feed_forward="gated-gelu",
            dropout_rate=0.0,  # as T5 1.1 was pretrained
        ),
        tokenizer=TokenizerConfig(kind="sentencepiece", vocabulary_size=8000),
        data=DataConfig(source="text", files=(f"{arg}/*.txt*",)),
        batch=BatchConfig(rows=16, encoder_length=256, decoder_length=64, segments_per_row=1),
        objective=ObjectiveConfig(method="cross_entropy", z_loss=1e-4),
        optimizer=OptimizerConfig(
            name="adafactor",
            learning_rate=1e-2,
            schedule="inverse_square_root",
            warmup_steps=500,
        ),
        checkpoint=CheckpointConfig(every=500),
        training=TrainingConfig(steps=5000, log_every=20),
    )
