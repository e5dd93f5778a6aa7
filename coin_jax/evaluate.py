"""Measures how models hold when the instruction changes.

    python -m coin_jax.evaluate --checkpoint runs/coin runs/baseline --suite suites/glue.json

Gives the table, `results.json`, `predictions.parquet` with every prediction, and `report.html`, a
page for people. Runs that differ by their seed alone are given a common name and compared as one:

    --checkpoint coin=runs/coin-0 coin=runs/coin-1 baseline=runs/baseline-0 baseline=runs/baseline-1

The first name is compared with each other one. Predictions are kept: a command that was interrupted
goes on, and one that is repeated asks only what is new.

Several processes (see coin_jax/parallel/distributed.py) answer each batch of questions together;
process 0 alone reads, asks and writes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import pyarrow
import tyro
from pyarrow import parquet
from rich.console import Console

from coin_jax import leader
from coin_jax.config import ConfigError
from coin_jax.config_files import from_json
from coin_jax.data.builtin import builtin_training_wordings
from coin_jax.data.set_format import read_manifest
from coin_jax.data.sources import DataError
from coin_jax.data.templates import read_templates
from coin_jax.lexicons import Choice, choose_lexicon
from coin_jax.parallel import distributed
from coin_jax.predictor import Predictor, fingerprint
from coin_jax.progress import Count, progress_bar
from coin_jax.robustness.evaluation import Contestant, Scoring, Settings, ask, expand, run_attacks
from coin_jax.robustness.page import write_page
from coin_jax.robustness.report import print_report
from coin_jax.robustness.representation import compare_states
from coin_jax.robustness.results import Run, build, prediction_rows
from coin_jax.robustness.store import PredictionStore
from coin_jax.robustness.suite import load_suite, overlaps


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Measure how models hold when the instruction changes."""

    checkpoint: tuple[str, ...]
    """[NAME=]CHECKPOINT: a run's folder, one of its checkpoints, or a T5 as a Hugging Face folder
    or name. [NAME=]torch:FOLDER_OR_NAME asks any Hugging Face model through PyTorch."""
    suite: str
    """The suite's file, see docs/suites.md."""
    output: str = ""
    """Folder for the results; evaluations/SUITE unless given."""
    data: str = ""
    """Folder of task files, TASK.dev.jsonl, for suites that name none."""
    scoring: tuple[Scoring, ...] = ("likelihood", "generation")
    """By the likeliest answer, by what is generated, or both."""
    length_normalized: bool = False
    """Compare answers by mean instead of summed log-likelihood of their tokens."""
    max_new_tokens: int = 16
    """Tokens of a generated answer at most."""
    sample: int | None = None
    """Instances of each task; the suite's unless given."""
    seed: int | None = None
    """Of the sample, the perturbations and the attacks; the suite's unless given."""
    attacks: bool = True
    """Carry out the attacks that the suite declares."""
    lexicon: Choice = "auto"
    """Where word-level changes come from: WordNet, or the first checkpoint's embedding or
    infilling. auto is WordNet, and infilling for bertattack."""
    paraphraser: str = ""
    """A T5 that was trained to paraphrase, for perturbations by the method `semantic`."""
    batch_size: int = 64
    """Prompts at a time."""
    resamples: int = 10_000
    """Of the bootstrap."""


@dataclasses.dataclass(frozen=True)
class Named:
    """A checkpoint to be evaluated."""

    run: str
    group: str
    checkpoint: str


def named_checkpoints(given: Sequence[str]) -> list[Named]:
    """[NAME=]CHECKPOINT; runs of one name are numbered. ConfigError for one that stands twice."""
    pairs = []
    for text in given:
        group, separator, checkpoint = text.partition("=")
        if not separator:
            group, checkpoint = pathlib.PurePath(text.removeprefix("torch:")).name, text
        if not group or not checkpoint:
            raise ConfigError(f"--checkpoint {text!r}: expected [NAME=]CHECKPOINT")
        pairs.append((group, checkpoint))
    if not pairs:
        raise ConfigError("--checkpoint: name one run at least")
    for checkpoint in {checkpoint for _, checkpoint in pairs}:
        if sum(checkpoint == other for _, other in pairs) > 1:
            raise ConfigError(f"--checkpoint: {checkpoint} stands twice")
    groups = [group for group, _ in pairs]
    return [
        Named(
            f"{group}-{groups[:number].count(group)}" if groups.count(group) > 1 else group, *pair
        )
        for number, pair in enumerate(pairs)
        for group in pair[:1]
    ]


def load_contestant(named: Named, batch_size: int) -> Contestant:
    """Raises ValueError or OSError where there is no such model, ImportError without torch."""
    if named.checkpoint.startswith("torch:"):
        from coin_jax.huggingface_scorer import HuggingFaceScorer

        name = named.checkpoint.removeprefix("torch:")
        scorer = HuggingFaceScorer.from_pretrained(name, batch_size=batch_size)
        import torch

        tensors = scorer.model.state_dict().items()
        identity = fingerprint(
            repr((scorer.model.config.to_dict(), scorer.max_input_length)),
            # As bytes, since numpy has no bfloat16.
            ((name, tensor.cpu().flatten().view(torch.uint8)) for name, tensor in tensors),
            scorer.tokenizer.save_pretrained,
        )
        return Contestant(named.run, scorer, identity)
    predictor = leader.load(named.checkpoint, batch_size=batch_size)
    return Contestant(named.run, predictor, predictor.identity)


def evaluate(arguments: Arguments, console: Console) -> dict[str, Any]:
    """Asks, measures, writes and shows. Returns the results."""
    checkpoints = named_checkpoints(arguments.checkpoint)
    suite = load_suite(
        arguments.suite,
        sample=arguments.sample,
        seed=arguments.seed,
        data_folder=arguments.data or None,
    )
    if not arguments.attacks:
        suite = dataclasses.replace(suite, attacks=())
    folder = pathlib.Path(arguments.output or pathlib.Path("evaluations") / suite.name)
    store = PredictionStore(folder / "predictions")
    settings = Settings(
        arguments.scoring, arguments.length_normalized, max_new_tokens=arguments.max_new_tokens
    )
    first = functools.cache(lambda: load_contestant(checkpoints[0], arguments.batch_size).scorer)
    reworder = functools.cache(lambda: leader.load(arguments.paraphraser))
    lexicon = functools.cache(
        lambda method: choose_lexicon(
            method, arguments.lexicon, first, reworder if arguments.paraphraser else None
        )
    )
    with console.status("making the perturbed prompts"):
        suite = expand(suite, lexicon)
    for line in (*suite.read, *suite.notes):
        console.print(line, highlight=False)

    runs, gaps, maps, attacks, rows = [], [], [], [], []
    for named in checkpoints:
        contestant = load_contestant(named, arguments.batch_size)
        notes = overlaps(suite, training_wordings(named.checkpoint))
        for note in notes:
            console.print(f"[bold red]{named.run}: {note}", highlight=False)
        run_suite = dataclasses.replace(suite, notes=(*suite.notes, *notes))
        if suite.attacks:
            prompts = sum(
                len(suite.wordings_of(task.name, request.of))
                for task, request in itertools.product(suite.tasks, suite.attacks)
            )
            with progress_bar(console, f"{named.run}: attacks") as progress:
                count = Count(progress, prompts)
                run_suite, found = run_attacks(
                    contestant, run_suite, settings, store, lexicon, count.add
                )
            attacks += [{"run": named.run} | record for record in found]
        questions = sum(len(suite.task(w.task).instances) for w in run_suite.wordings)
        with progress_bar(console, f"{named.run}: questions") as progress:
            count = Count(progress, questions * len(settings.scorings))
            answers = ask(contestant, run_suite, settings, store, count.add)
        tokens = None
        if isinstance(contestant.scorer, Predictor):
            predictor = contestant.scorer
            tokens = {t.name: predictor.answer_lengths(t.answers) for t in suite.tasks}
            found, points = compare_states(predictor, suite)
            gaps += [{"run": named.run} | gap for gap in found]
            maps.append({"run": named.run, "points": points})
        run = Run(named.run, named.checkpoint, named.group, run_suite, answers, tokens)
        runs.append(run)
        rows += prediction_rows(run, settings.scorings)
    with console.status("comparing"):
        results = build(runs, settings.scorings, resamples=arguments.resamples) | {
            "gaps": gaps,
            "map": maps,
            "attacks": attacks,
        }
        parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "predictions.parquet")
        (folder / "results.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
        write_page(results, folder / "report.html")
    print_report(results, console)
    for name in ("results.json", "predictions.parquet", "report.html"):
        console.print(f"{folder / name}", highlight=False)
    return results


def training_wordings(checkpoint: str) -> list[str]:
    """The templates that a run of ours was trained on, as far as they can still be read."""
    file = pathlib.Path(checkpoint).expanduser() / "config.json"
    if not file.is_file():
        file = file.parents[2] / "config.json"
    try:
        data = from_json(file.read_text(encoding="utf-8")).data
    except (OSError, ConfigError):
        return []
    if data.source == "builtin":
        return builtin_training_wordings()
    try:
        if data.source == "set":
            tasks = read_manifest(pathlib.Path(data.files[0])).tasks
            return [w.template for task in tasks for w in task.wordings if not w.held_out]
        templates = read_templates(data.template_files)
    except DataError:
        return []
    return [template.input for entries in templates.values() for template in entries]


def main(arguments: Sequence[str] | None = None) -> int:
    console = Console()
    errors = Console(stderr=True, highlight=False, markup=False)
    known = (ConfigError, ValueError, OSError, ImportError)
    try:
        parsed = tyro.cli(
            Arguments, prog="python -m coin_jax.evaluate", description=__doc__, args=arguments
        )
        distributed.initialize()
        with distributed.together(lambda error: str(error) if isinstance(error, known) else None):
            if distributed.is_main():
                evaluate(parsed, console)
                leader.dismiss()
            else:
                leader.follow()
            distributed.finish()
        return 0
    except known as error:
        errors.print(str(error), style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted. What was asked is kept; the same command goes on.")
        return 130


if __name__ == "__main__":
    sys.exit(main())
