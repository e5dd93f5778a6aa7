"""Flan-T5 (Chung et al. 2022) fine-tuned with CoIN, in its five sizes, on GPUs and TPU pods.

    python -m coin_jax.train --config configs/flan_t5.py:base --data.files 'my_pairs/*.jsonl'
    python -m coin_jax.train --config configs/flan_t5.py:xxl,v5e-16 --data.files ..

The second names a machine, too: batch, mesh and remat policy are then those that docs/plan.md finds
best for it. Without one they are for a single host, and for what is written below.

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

# Machine -> (devices, {size: (rows a device, remat policy)}). docs/plan.md says why, and why the
# parameters are cut over all devices and nothing is split over `tensor`.
MACHINES = {
    "v4-8": (
        4,
        {
            "small": (16, "none"),
            "base": (16, "none"),
            "large": (8, "none"),
            "xl": (16, "wide"),
            "xxl": (8, "wide"),
        },
    ),
    "v5e-16": (
        16,
        {
            "small": (16, "none"),
            "base": (16, "none"),
            "large": (4, "none"),
            "xl": (24, "wide"),
            "xxl": (8, "wide"),
        },
    ),
    "v5e-256": (
        256,
        {
            "small": (4, "none"),
            "base": (4, "none"),
            "large": (4, "none"),
            "xl": (4, "wide"),
            "xxl": (4, "wide"),
        },
    ),
    "v5p-128": (
        64,
        {
            "small": (16, "none"),
            "base": (16, "none"),
            "large": (8, "none"),
            "xl": (16, "wide"),
            "xxl": (8, "minimal"),
        },
    ),
    "v6e-16": (
        16,
        {
            "small": (16, "none"),
            "base": (16, "none"),
            "large": (8, "none"),
            "xl": (32, "wide"),
            "xxl": (16, "wide"),
        },
    ),
    "h100-8": (
        8,
        {
            "small": (16, "none"),
            "base": (16, "none"),
            "large": (16, "none"),
            "xl": (8, "none"),
            "xxl": (8, "minimal"),
        },
    ),
}


def get_config(arg: str = "base") -> Config:
    arg, _, machine = arg.partition(",")
    if arg not in SIZES:
        raise ValueError(f"there is no size {arg!r}; sizes: {', '.join(SIZES)}")
    if machine and machine not in MACHINES:
        raise ValueError(f"there is no machine {machine!r}; machines: {', '.join(MACHINES)}")
    d_model, d_ff, layers, heads = SIZES[arg]
    name = f"google/flan-t5-{arg}"
    big = arg in ("xl", "xxl")
    mesh = MeshConfig(data=1, fsdp=-1) if big or machine else MeshConfig()
    rows, remat = 64, "full" if big else "minimal"
    if machine:
        devices, choices = MACHINES[machine]
        rows, remat = choices[arg][0] * devices, choices[arg][1]
    return Config(
        name=f"flan_t5_{arg}" + (f"_{machine}" if machine else ""),
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
            remat=remat,
        ),
        tokenizer=TokenizerConfig(kind="huggingface", path=name),
        data=DataConfig(source="pairs", files=("data/pairs/*.jsonl",)),
        batch=BatchConfig(rows=rows, encoder_length=512, decoder_length=96, segments_per_row=16),
        objective=ObjectiveConfig(method="coin", pooling="decoder_first", head_chunk=1024),
        # As Flan-T5 itself was tuned: Adafactor at a constant rate, 5e-4 (Chung et al. 2022, C).
        optimizer=OptimizerConfig(name="adafactor", learning_rate=5e-4, schedule="constant"),
        mesh=mesh,
        evaluation=EvaluationConfig(every=500, instances_per_task=64),
        checkpoint=CheckpointConfig(every=500, keep_last=2, keep_best=True),
        training=TrainingConfig(steps=5000, log_every=10),
    )
