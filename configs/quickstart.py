"""The quickstart: a small T5 learns the built-in tasks with CoIN, in minutes on two CPU cores."""

from coin_jax.config import (
    BatchConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainingConfig,
)


def get_config(arg: str = "") -> Config:
    """`arg` names the run; `--objective.contrastive-weight 0` makes it the baseline."""
    return Config(
        name=arg or "quickstart",
        model=ModelConfig(
            vocabulary_size=1152,
            d_model=96,
            d_kv=16,
            d_ff=256,
            num_heads=6,
            num_layers=2,
            num_decoder_layers=2,
            dropout_rate=0.0,
        ),
        tokenizer=TokenizerConfig(kind="sentencepiece", vocabulary_size=1000),
        data=DataConfig(source="builtin"),
        batch=BatchConfig(rows=8, encoder_length=192, decoder_length=24, segments_per_row=6),
        objective=ObjectiveConfig(method="coin", pooling="decoder_last"),
        optimizer=OptimizerConfig(learning_rate=3e-3, schedule="cosine", warmup_steps=100),
        evaluation=EvaluationConfig(every=500, instances_per_task=48),
        training=TrainingConfig(steps=2000, log_every=20),
    )
