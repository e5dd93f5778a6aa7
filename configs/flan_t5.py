"""Flan-T5 (Chung et al. 2022) fine-tuned with CoIN, in its five sizes, on GPUs and TPU pods.

    python -m coin_jax.train --config configs/flan_t5.py:base --data.files 'my_pairs/*.jsonl'

`my_pairs` holds ready pairs (original_instruction, paraphrased_instruction, targets, task). For
rows and templates instead: --data.source tasks --data.files .. --data.template-files ..
"""

from coin_jax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TokenizerConfig,
    TrainingConfig,
)

# d_model, d_ff, layers, heads: config.json of google/flan-t5-*; heads are of size 64 in all.
SIZES = {
    "small": (512, 1024, 8, 6),
    "base": (768, 2048, 12, 12),
    "large": (1024, 2816, 24, 16),
    "xl": (2048, 5120, 24, 32),
    "xxl": (4096, 10240, 24, 64),
}


def get_config(arg: str = "base") -> Config:
    if arg not in SIZES:
        raise ValueError(f"there is no size {arg!r}; sizes: {', '.join(SIZES)}")
    d_model, d_ff, layers, heads = SIZES[arg]
    name = f"google/flan-t5-{arg}"
    big = arg in ("xl", "xxl")
    return Config(
        name=f"flan_t5_{arg}",
        model=ModelConfig(
            init_from=name,
            vocabulary_size=32128,
            d_model=d_model,
            d_kv=64,
            d_ff=d_ff,
            num_heads=heads,
            num_layers=layers,
            num_decoder_layers=layers,
            feed_forward="gated-gelu",
            compute_dtype="bfloat16",
            remat="full" if big else "minimal",
        ),
        tokenizer=TokenizerConfig(kind="huggingface", path=name),
        data=DataConfig(source="pairs", files=("data/pairs/*.jsonl",)),
        batch=BatchConfig(rows=64, encoder_length=512, decoder_length=96, segments_per_row=16),
        objective=ObjectiveConfig(method="coin", pooling="decoder_first", head_chunk=1024),
        # As Flan-T5 itself was tuned: Adafactor at a constant rate, 5e-4 (Chung et al. 2022, C).
        optimizer=OptimizerConfig(name="adafactor", learning_rate=5e-4, schedule="constant"),
        mesh=MeshConfig(data=1, fsdp=-1) if big else MeshConfig(),
        evaluation=EvaluationConfig(every=500, instances_per_task=64),
        checkpoint=CheckpointConfig(every=500, keep_last=2, keep_best=True),
        training=TrainingConfig(steps=5000, log_every=10),
    )
