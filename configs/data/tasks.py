"""A contrastive set of task files in the wordings of templates, and of finished prompts.

    python -m coin_jax.paraphrase --config configs/data/tasks.py:FOLDER --output data/tasks

FOLDER is as for configs/tasks.py: tasks/TASK.train.jsonl, templates/flan.json. A file
FOLDER/t0_prompts.jsonl.gz of finished prompts, {"template", "row", "prompt", "target"}, is read as
well where it is there.
"""

import importlib.util
import pathlib

from coin_jax.config import ConfigError
from coin_jax.curation.config import SetConfig, SourceConfig


def get_config(arg: str = "") -> SetConfig:
    if not arg:
        raise ConfigError("name the folder of task files: configs/data/tasks.py:FOLDER")
    folder = pathlib.Path(arg)
    training = _training_config()
    sources = [
        SourceConfig(
            kind="tasks",
            files=(str(folder / "tasks" / "*.train.jsonl"),),
            template_files=(
                str(folder / "templates" / "flan.json"),
                str(pathlib.Path(__file__).parents[1] / "templates" / "subjectivity.json"),
            ),
            tasks=training.TASKS,
        )
    ]
    prompts = folder / "t0_prompts.jsonl.gz"
    if prompts.is_file():
        sources.append(SourceConfig(kind="prompts", name="t0", files=(str(prompts),)))
    return SetConfig(sources=tuple(sources))


def _training_config():
    """configs/tasks.py, which says what the tasks' labels and fields mean."""
    path = pathlib.Path(__file__).parents[1] / "tasks.py"
    specification = importlib.util.spec_from_file_location("_training_tasks", path)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module
