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
        batch=BatchConfig(rows=16, encoder_length=96, decoder_length=12, segments_per_row=4),
        # The first decoder state knows the question and not yet the answer: pulling it together
        # over wordings is work, while the last state differs by the answer it has just been fed.
        # With lambda at the paper's 1000, which is meant for a pretrained model, the contrastive
        # term weighs as much as the generation loss from the first step and holds this one back.
        objective=ObjectiveConfig(method="coin", pooling="decoder_first", contrastive_weight=10.0),
        # T5's own optimizer: its steps are relative to the parameters, whose scales differ widely
        # at the start. AdamW at 3e-3 needs several times as many steps.
        optimizer=OptimizerConfig(name="adafactor", learning_rate=0.03, warmup_steps=50),
        evaluation=EvaluationConfig(every=250, instances_per_task=40),
        training=TrainingConfig(steps=1000, log_every=20),
    )
