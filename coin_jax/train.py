"""Trains a T5: `python -m coin_jax.train --config configs/quickstart.py`.

Reads top to bottom: data, model, loop, results. Everything that can be refused is refused before
anything is compiled.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import pathlib
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
from rich.console import Console

from coin_jax.config import Config, ConfigError, validate
from coin_jax.config_files import load, to_json
from coin_jax.data.collection import make_pair_source
from coin_jax.data.mixture import Mixture, make_mixture
from coin_jax.data.packing import PackingError
from coin_jax.data.pairs import (
    EvaluationItem,
    TokenizedInstances,
    TokenizedPairs,
    training_texts,
)
from coin_jax.data.pipeline import BatchPipeline
from coin_jax.data.sources import DataError, expand_files, read_text
from coin_jax.data.span_corruption import SpanCorruption, read_tokens
from coin_jax.data.tokenizer import Tokenizer, make_tokenizer
from coin_jax.lexicons import choose_lexicon
from coin_jax.model import huggingface
from coin_jax.model.attention import check_fused
from coin_jax.model.t5 import T5
from coin_jax.objective import make_method
from coin_jax.parallel import distributed
from coin_jax.parallel.mesh import make_mesh
from coin_jax.parallel.share import Agreement, Share
from coin_jax.predictor import Predictor
from coin_jax.robustness.evaluation import Contestant, Settings, ask, expand
from coin_jax.robustness.results import Run, summary
from coin_jax.robustness.scoring import WordingAccuracy, wording_accuracy
from coin_jax.robustness.suite import Suite, load_suite
from coin_jax.training.checkpoint import CheckpointError, Checkpoints, remedy
from coin_jax.training.endings import RunStoppedError
from coin_jax.training.logging import MetricLog, check_writers
from coin_jax.training.loop import train
from coin_jax.training.manifest import write_whole
from coin_jax.training.optimizer import make_optimizer
from coin_jax.training.results import plot_curves, print_results, save_results
from coin_jax.training.state import abstract_state, create_state, state_shardings
from coin_jax.training.step import make_train_step
from coin_jax.training.throughput import Throughput, peak_flops


def run(config: Config, console: Console) -> int:
    """Trains what `config` says, from wherever its run directory has got to. Returns exit status:
    0 when the last step is done, 128 + signal when a signal stopped it before."""
    began = time.perf_counter()
    method = make_method(config.objective)
    mesh = make_mesh(config.mesh)
    check_writers(config)
    directory = config.run_directory
    directory.mkdir(parents=True, exist_ok=True)
    share = Share.of(mesh)
    distributed.check_shared(directory)
    distributed.check_same("config", to_json(dataclasses.replace(config, output="")))

    with (
        Checkpoints(
            directory,
            config.checkpoint,
            functools.partial(console.print, highlight=False, markup=False),
        ) as checkpoints,
        console.status("reading data") as status,
        distributed.together(describe),
    ):
        saved = checkpoints.saved_config()
        config = choose_shards(config, saved, share, console)
        with distributed.main_first("data"):
            suite = build_suite(config, console)
            tokenizer, source, mixture, items = build_data(config, saved, console, status.update)
            status.update("making the model")
            config, pretrained = build_architecture(config, saved, tokenizer)
        distributed.check_same("data, tokenizer or suite", what_was_read(tokenizer, source, suite))
        check_fused(config.model)
        model = T5(config.model)
        optimizer = make_optimizer(config.optimizer, config.training.steps, model.logical_axes())
        train_step = make_train_step(model, method, optimizer, config, mesh)
        if saved is None:
            state = create_state(model, optimizer, config, mesh, pretrained)
            position = unlogged = None
            console.print(f"Starting in {directory}", highlight=False)
        else:
            restored = checkpoints.restore(described_state(model, optimizer, config, mesh), config)
            state, position = restored.state, restored.data_position
            unlogged = restored.unlogged
            console.print(f"Going on from step {int(state.step)} in {directory}", highlight=False)
            for line in restored.changed:
                console.print(f"  changed since: {line}", highlight=False)
        if distributed.is_main():
            write_whole(directory / "config.json", to_json(config))
        describe_run(config, state, mesh, len(source), len(items), console)

        evaluation = Evaluation(model, tokenizer, config, items, suite, mesh)
        peak, peak_source = peak_flops(config.model.compute_dtype)
        status.update("starting the data pipeline")
        with (
            open_pipeline(source, mixture, config, position, share) as batches,
            metric_log(directory, config, int(state.step)) as log,
        ):
            status.stop()  # the progress bar takes its place
            ending = train(
                config,
                state,
                train_step,
                batches,
                share.place,
                evaluation if items or suite else None,
                checkpoints,
                log,
                Throughput(peak),
                console,
                unlogged,
                Agreement(mesh),
            )
            statistics = share.total(batches.statistics())

    last = int(ending.state.step)
    if ending.signal is not None:
        console.print(
            f"Stopped at step {last} and saved; the same command goes on."
            if last
            else "Stopped before the first step; there is nothing to save."
        )
        return 128 + ending.signal
    if not distributed.is_main():
        return 0
    paths = {"checkpoint": directory / "checkpoints" / str(last)}
    paths |= save_results(directory, evaluation.latest)
    paths["metrics"] = log.path
    paths["curves"] = plot_curves(log.path, directory / "curves.png")
    notes = {"utilization": f"against {peak / 1e9:,.0f} GFLOP/s a device ({peak_source})"}
    if statistics["batches"]:
        notes |= {
            "padding": f"{statistics['encoder_padding']:.1%} of input positions, "
            f"{statistics['decoder_padding']:.1%} of target positions",
            "shortened inputs": f"{statistics['cut']} of {statistics['sequences']}",
        }
    print_results(console, evaluation.latest, log.path, paths, notes, time.perf_counter() - began)
    return 0


def choose_shards(config: Config, saved: Config | None, share: Share, console: Console) -> Config:
    """One shard means as many as the run began with, or else as the processes need.

    Raises ConfigError where the processes cannot share them out evenly.
    """
    shards = config.batch.shards
    if shards == 1:
        shards = share.count if saved is None else saved.batch.shards
    if shards % share.count:
        raise ConfigError(
            f"batch.shards = {shards} must be a multiple of {share.count}, the parts that "
            f"{jax.process_count()} processes read. A run keeps the shards that it began with: "
            "their number is the order of its data"
        )
    if shards == config.batch.shards:
        return config
    console.print(f"batch.shards = {shards}: independent streams of data", highlight=False)
    batch = dataclasses.replace(config.batch, shards=shards)
    return validate(dataclasses.replace(config, batch=batch))


def build_data(
    config: Config, saved: Config | None, console: Console, say: Callable[[str], None]
) -> tuple[Tokenizer, Any, Mixture | None, Sequence[EvaluationItem]]:
    """(tokenizer, what the pipeline packs, in which mixture, held-out questions).

    Raises: DataError.

    saved: the config of the checkpoint that the run goes on from, or None.
    """
    data, seed = config.data, config.seed
    if data.source == "text":
        files = expand_files(data.files, "data.files")
        readable = (text for text in read_text(files) if isinstance(text, str))
        tokenizer = build_tokenizer(config, saved, readable, say)
        say("tokenising the text")
        tokens, skipped = read_tokens(
            files,
            tokenizer,
            bad_rows=data.bad_rows,
            cache_folder=config.run_directory / "tokens",
        )
        note = f"{len(tokens):,} tokens in {len(files)} files; {len(skipped)} lines skipped"
        console.print(note, highlight=False)
        return tokenizer, SpanCorruption(tokens, tokenizer, config.batch, data, seed), None, []
    if config.batch.mode != "pairs":  # a row that would be a hard negative is trained on as well
        data = dataclasses.replace(data, odd_rows_are_hard_negatives=False)
    pairs = make_pair_source(data, seed)
    for note in pairs.notes:
        console.print(note, highlight=False)
    tokenizer = build_tokenizer(config, saved, training_texts(pairs, seed), say)
    say("tokenising the data")
    tokenized = TokenizedPairs if config.batch.mode == "pairs" else TokenizedInstances
    source = tokenized(pairs, tokenizer, config.batch, data.bad_rows)
    mixture = make_mixture(source.source.tasks, data, seed)
    if mixture is not None:
        console.print(mixture.note, highlight=False)
    items = source.source.evaluation_items(config.evaluation.instances_per_task)
    return tokenizer, source, mixture, items


def build_suite(config: Config, console: Console) -> Suite | None:
    """The robustness suite to be watched, its perturbed prompts made. Raises DataError."""
    settings = config.evaluation
    if not settings.suite:
        return None
    suite = load_suite(
        settings.suite, sample=settings.suite_sample, data_folder=settings.suite_data or None
    )
    suite = expand(dataclasses.replace(suite, attacks=()), choose_lexicon)
    for line in (*suite.read, *suite.notes):
        console.print(line, highlight=False)
    return suite


def what_was_read(tokenizer: Tokenizer, source: Any, suite: Suite | None) -> str:
    """What several processes that read the same agree in, as far as it decides what they compute:
    the suite's questions, how much data there is, what a tokenizer makes of some text."""
    sample = "The quick brown fox: 0123456789, über den Zaun; \n\t<extra_id_0>"
    parts: list[Any] = [tokenizer.vocabulary_size, list(tokenizer.encode(sample)), len(source)]
    if suite is not None:
        parts += [(w.task, w.condition, w.index, w.text) for w in suite.wordings]
        parts += [(t.name, t.answers, [i.key for i in t.instances]) for t in suite.tasks]
    return repr(parts)


def build_tokenizer(
    config: Config, saved: Config | None, texts: Iterable[str], say: Callable[[str], None]
) -> Tokenizer:
    """The one that the run's checkpoint was trained with, else the config's, which is then saved
    in the run directory."""
    folder = config.run_directory / "tokenizer"
    settings = config.tokenizer
    is_made = saved is not None or not distributed.is_main()
    if is_made and folder.is_dir():
        return make_tokenizer(dataclasses.replace(settings, path=str(folder)))
    if settings.kind == "sentencepiece" and not settings.path:
        say("learning a vocabulary")
    tokenizer = make_tokenizer(settings, texts)
    tokenizer.save(folder)
    return tokenizer


def build_architecture(
    config: Config, saved: Config | None, tokenizer: Tokenizer
) -> tuple[Config, Any]:
    """(config with the architecture that is really used, pretrained parameters or None)."""
    pretrained = None
    if config.model.init_from and saved is not None:
        # The pretrained weights have done their part, and may be gone.
        chosen = ("init_from", "dropout_rate", "compute_dtype", "remat", "scan_unroll")
        kept = {name: getattr(config.model, name) for name in chosen}
        config = validate(
            dataclasses.replace(config, model=dataclasses.replace(saved.model, **kept))
        )
    elif config.model.init_from:
        model, pretrained = huggingface.load(config.model.init_from, config.model)
        config = validate(dataclasses.replace(config, model=model))
    if tokenizer.vocabulary_size > config.model.vocabulary_size:
        raise ConfigError(
            f"model.vocabulary_size = {config.model.vocabulary_size}: the tokenizer has "
            f"{tokenizer.vocabulary_size} ids; the embedding needs at least as many rows"
        )
    return config, pretrained


def described_state(model: T5, optimizer: Any, config: Config, mesh: jax.sharding.Mesh) -> Any:
    """Shapes, dtypes and shardings of the state, for a checkpoint to be restored into."""
    return jax.tree.map(
        lambda array, sharding: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=sharding),
        abstract_state(model, optimizer, config),
        state_shardings(model, optimizer, config, mesh),
    )


def open_pipeline(
    source: Any,
    mixture: Mixture | None,
    config: Config,
    position: dict[str, int] | None,
    share: Share,
) -> BatchPipeline:
    """This process's batches from `position` on, or from the start. Raises ConfigError."""
    try:
        return BatchPipeline(
            source,
            config.batch,
            config.seed,
            mixture=mixture,
            host_index=share.index,
            host_count=share.count,
            decoder_start_token_id=config.model.decoder_start_token_id,
            start_state=position,
            gather=share.gather,
        )
    except ValueError as error:  # another order of data than the checkpoint's, or uneven shards
        raise ConfigError(str(error)) from error


def metric_log(directory: pathlib.Path, config: Config, start_step: int):
    """The run's metrics, written by process 0; a context manager."""
    if distributed.is_main():
        return MetricLog(directory, config, start_step)
    return contextlib.nullcontext(NoLog())


class NoLog:
    """In the processes that write no metrics."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        pass

    def flush(self) -> None:
        pass


class Evaluation:
    """Accuracy on seen and unseen wordings, and on a suite; keeps the latest result for the final
    table."""

    def __init__(self, model: T5, tokenizer: Tokenizer, config: Config, items, suite, mesh):
        self._items, self._suite, self._settings = items, suite, config.evaluation
        self._make = lambda params: Predictor(
            model,
            params,
            tokenizer,
            batch_size=config.evaluation.batch_size,
            max_input_length=config.batch.encoder_length,
            mesh=mesh if mesh.size > 1 else None,
        )
        self.latest: WordingAccuracy | None = None

    def __call__(self, params: Any) -> Mapping[str, float]:
        predictor, normalized = self._make(params), self._settings.length_normalized
        metrics: dict[str, float] = {}
        if self._items:
            self.latest = wording_accuracy(predictor, self._items, normalized)
            metrics |= self.latest.metrics()
        if self._suite:
            settings = Settings(("likelihood",), normalized)
            answers = ask(Contestant("training", predictor, ""), self._suite, settings)
            metrics |= summary(Run("training", "", "", self._suite, answers), "likelihood")
        return metrics


ERRORS = (
    ConfigError,
    DataError,
    PackingError,
    CheckpointError,
    huggingface.CheckpointError,
    RunStoppedError,
    OSError,  # a folder that cannot be written, a full disk, a file that is gone
)


def describe(error: BaseException) -> str | None:
    """What people read of an error that ends a run; None: it is a fault of the program."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted."
    if isinstance(error, OSError):
        return f"{error}. {remedy(str(error))}."
    return str(error) if isinstance(error, ERRORS) else None


def describe_run(config: Config, state, mesh, sets: int, questions: int, console: Console) -> None:
    count = sum(array.size for array in jax.tree.leaves(state.params))
    axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    kind = jax.devices()[0].platform.upper()
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    kind_of_set = "sets" if config.batch.mode == "pairs" else "instances"
    if config.data.source == "text":
        kind_of_set = "windows"
    facts = [
        f"{count / 1e6:.1f} M parameters on {mesh.size} {kind} device"
        + "s" * (mesh.size > 1)
        + processes,
        f"{sets:,} {kind_of_set} an epoch",
        f"{questions:,} questions held out",
    ]
    facts[0] += f" ({axes})" if axes else ""
    console.print("; ".join(facts if questions else facts[:2]), highlight=False)


def main(arguments: Sequence[str] | None = None) -> int:
    console = Console(markup=False)  # names of tasks may hold brackets
    errors = Console(stderr=True, highlight=False, markup=False)
    try:
        config = load(sys.argv[1:] if arguments is None else arguments)
        distributed.initialize()
        if not distributed.is_main():
            console = Console(quiet=True)
        with distributed.together(describe):
            status = run(config, console)
            distributed.finish()
            return status
    except ERRORS as error:
        errors.print(describe(error), style="red", soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        errors.print("Interrupted. What was saved before is whole; the same command goes on.")
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
