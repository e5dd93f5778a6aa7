"""A small T5 from scratch on thirteen classification tasks in FLAN's wordings.

    python -m coin_jax.train --config configs/tasks.py:FOLDER

FOLDER/tasks holds TASK.train.jsonl and, for the tasks that have held-out rows, TASK.dev.jsonl, with
rows {"task", "inputs", "label"}; FOLDER/templates/flan.json holds the templates.
"""

import pathlib

from coin_jax.config import (
    BatchConfig,
    CheckpointConfig,
    Config,
    ConfigError,
    DataConfig,
    EvaluationConfig,
    ModelConfig,
    ObjectiveConfig,
    OptimizerConfig,
    TaskConfig,
    TokenizerConfig,
    TrainingConfig,
)

YES_NO = {"entailment": "yes", "not_entailment": "no"}
SAME = {"not_equivalent": "no", "equivalent": "yes"}
INFERENCE = {
    "entailment": "yes",
    "neutral": "it is not possible to tell",
    "contradiction": "no",
}
SENTIMENT = {"negative": "negative", "positive": "positive"}

TASKS = (
    TaskConfig("sst2", answers=SENTIMENT),
    # Three more of opinions, which have no templates of their own.
    TaskConfig("cr", templates="sst2", answers=SENTIMENT),
    TaskConfig("mr", templates="sst2", answers=SENTIMENT),
    TaskConfig("mpqa", templates="sst2", answers=SENTIMENT),
    TaskConfig("subj", answers={"subjective": "subjective", "objective": "objective"}),
    TaskConfig("cola", answers={"unacceptable": "unacceptable", "acceptable": "acceptable"}),
    TaskConfig("mrpc", templates="glue_mrpc", answers=SAME),
    TaskConfig("qqp", templates="glue_qqp", answers=SAME),
    TaskConfig("mnli", answers=INFERENCE),
    TaskConfig("snli", answers=INFERENCE),
    TaskConfig("qnli", answers=YES_NO),
    TaskConfig("rte", fields={"sentence1": "premise", "sentence2": "hypothesis"}, answers=YES_NO),
    TaskConfig(
        "trec",
        fields={"question": "text"},
        answers={
            "description": "description",
            "entity": "entity",
            "abbreviation": "abbreviation",
            "human": "human",
            "number": "numeric",
            "location": "location",
        },
    ),
)


def get_config(arg: str = "") -> Config:
    if not arg:
        raise ConfigError("name the folder of task files and templates: configs/tasks.py:FOLDER")
    folder = pathlib.Path(arg)
    own_templates = pathlib.Path(__file__).parent / "templates" / "subjectivity.json"
    return Config(
        name="tasks",
        model=ModelConfig(
            vocabulary_size=4224,
            d_model=128,
            d_kv=32,
            d_ff=256,
            num_heads=4,
            num_layers=2,
            num_decoder_layers=2,
            dropout_rate=0.0,  # less than an epoch is seen: with 0.1 it learns far slower
        ),
        tokenizer=TokenizerConfig(kind="sentencepiece", vocabulary_size=4000),
        batch=BatchConfig(rows=16, encoder_length=128, decoder_length=16, segments_per_row=4),
        objective=ObjectiveConfig(method="coin", pooling="decoder_first", contrastive_weight=1.0),
        optimizer=OptimizerConfig(name="adafactor", learning_rate=0.005, warmup_steps=100),
        evaluation=EvaluationConfig(every=1500, instances_per_task=100),
        checkpoint=CheckpointConfig(every=500),  # a killed run loses two minutes
        training=TrainingConfig(steps=3000, log_every=20),
        data=DataConfig(
            source="tasks",
            bad_rows="skip",  # three of the published rows are empty
            files=(str(folder / "tasks" / "*.train.jsonl"),),
            evaluation_files=(str(folder / "tasks" / "*.dev.jsonl"),),
            template_files=(str(folder / "templates" / "flan.json"), str(own_templates)),
            tasks=TASKS,
        ),
    )
