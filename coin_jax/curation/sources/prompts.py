"""Finished prompts of several templates over shared rows: {"template", "row", "prompt", "target"}.

So can the training prompts of T0 (Sanh et al. 2022) be had. `prompt_groups` says how the data sets
and tasks are found, which the rows do not name.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from coin_jax.curation.config import SourceConfig
from coin_jax.curation.source import Instance
from coin_jax.curation.sources.files import resolve_files
from coin_jax.curation.sources.prompt_groups import (
    Dataset,
    TemplateRows,
    find_datasets,
    find_tasks,
    normalised,
    read_rows,
)
from coin_jax.curation.sources.records import Records
from coin_jax.curation.sources.selection import drawn, full_name, is_closed
from coin_jax.data.set_format import InstructionTask, Wording
from coin_jax.data.sources import DataError, attempt, checked_text

FORMS = 32
"""Targets of a closed set that are looked at to see how an answer is written."""


class PromptCollection:
    """Instances of prompt files: a row's prompts, each a field of its own and a finished wording.

    The prompts of a task's row whose targets agree are an instance; of several such groups in a
    row, the largest, and of equal ones that of the first template. All other prompts are left out
    and counted. A task is named DATASET/TEMPLATE after its first template, its wordings after
    theirs. Of config.tasks only the names count.

    Raises: DataError where no two templates share a task, or for a task that is not there.
    """

    def __init__(self, config: SourceConfig, seed: int):
        field = "files of the source of kind 'prompts'"
        self._records = Records(resolve_files(config.files, field))
        templates, self._unreadable = read_rows(self._records)
        datasets = find_datasets(templates, self._prompt)
        wanted = {task.name for task in config.tasks}
        self.tasks: dict[str, InstructionTask] = {}
        self._groups: list[_Groups] = []
        self._forms: list[dict[str, str]] = []
        found, alone, counts = set(), [], collections.Counter()
        for dataset in datasets:
            for task in (
                [templates[one] for one in each] for each in find_tasks(templates, dataset)
            ):
                name = _task_name(dataset, task[0])
                if len(task) == 1:
                    alone.append(task[0].name)
                elif not wanted or name in wanted:
                    found.add(name)
                    self._add(full_name(config, name), task, config, seed, counts)
        if wanted - found or not found:
            missing = wanted - found
            what = f"no task {min(missing)!r}" if missing else "no two templates ask the same"
            first = [template.name for template in templates[:3]]
            raise DataError(
                f"{field}: {what}; there are {len(templates)} templates: {', '.join(first)}, ..."
            )
        self._names = (*self.tasks, "")
        self._ends = np.cumsum([*map(len, self._groups), len(self._unreadable)])
        used = sum(len(template.keys) for template in templates)
        counts["repeated"] = len(self._records) - len(self._unreadable) - used
        self.notes = tuple(self._notes(len(templates), datasets, alone, counts))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def task_of(self, index: int) -> str:
        return self._names[self._part_of(index)]

    def instance(self, index: int) -> Instance | DataError:
        part = self._part_of(index)
        place = int(index - self._ends[part])  # from the end of its part: negative
        if part == len(self._groups):
            return self._fault(int(self._unreadable[place]))
        name, groups = self._names[part], self._groups[part]
        fields = self.tasks[name].fields
        inputs, targets, places = {}, [], []
        for record, member in groups.prompts(len(groups) + place):
            where, row = self._records.record(record)
            try:
                inputs[fields[member]] = checked_text(where, "prompt", row.get("prompt"))
            except DataError as error:
                return error
            targets.append(row["target"].strip())
            places.append(where)
        usual = collections.Counter(targets).most_common(1)[0][0]
        target = self._forms[part].get(normalised(usual), usual)
        return Instance(name, inputs, target, f"{places[0]} (and {len(places) - 1} more prompts)")

    def _part_of(self, index: int) -> int:
        return int(np.searchsorted(self._ends, index, "right"))

    def _prompt(self, place: int) -> str:
        """The text of a record, to compare words; an unusable one has none."""
        _, record = self._records.record(int(place))
        prompt = None if isinstance(record, DataError) else record.get("prompt")
        return prompt if isinstance(prompt, str) else ""

    def _fault(self, place: int) -> DataError:
        def check(where: str, record: Mapping[str, Any]) -> DataError:
            for name in ("template", "target"):
                checked_text(where, name, record.get(name))
            return DataError(
                f"{where}: `row` must be a number or text, and is {record.get('row')!r}"
            )

        return attempt(check, *self._records.record(place))

    def _add(
        self,
        name: str,
        task: Sequence[TemplateRows],
        config: SourceConfig,
        seed: int,
        counts: collections.Counter,
    ) -> None:
        groups = _group(task, counts)
        forms = self._closed_set(groups)
        self._groups.append(groups.only(drawn(len(groups), config.rows_per_task, seed, name)))
        self._forms.append(forms)
        fields = tuple(f"prompt_{number}" for number in range(1, len(task) + 1))
        wordings = (
            Wording(template.name, f"{{{field}}}")
            for template, field in zip(task, fields, strict=True)
        )
        self.tasks[name] = InstructionTask(
            name, fields, tuple(wordings), tuple(sorted(forms.values())), config.licence
        )

    def _closed_set(self, groups: _Groups) -> dict[str, str]:
        """Answers as they are mostly written, by their normalised form; none for free answers."""
        answers, numbers = np.unique(groups.targets, return_inverse=True)
        if not is_closed(len(answers), len(groups)):
            return {}
        forms = {}
        for number in range(len(answers)):
            rows = np.flatnonzero(numbers == number)[:FORMS]
            places = groups.records[groups.starts[rows]]
            targets = [self._records.record(int(place))[1]["target"].strip() for place in places]
            form = collections.Counter(targets).most_common(1)[0][0]
            forms[normalised(form)] = form
        return forms

    def _notes(
        self,
        templates: int,
        datasets: Sequence[Dataset],
        alone: Sequence[str],
        counts: collections.Counter,
    ) -> Iterator[str]:
        sizes = np.concatenate([groups.sizes for groups in self._groups]).astype(np.int64)
        yield (
            f"{templates} templates of {len(datasets)} data sets; {len(self.tasks)} tasks with "
            f"{len(sizes)} instances, {(sizes * (sizes - 1) // 2).sum()} pairs of prompts"
        )
        if counts["disagreeing rows"]:
            yield (
                f"{counts['disagreeing rows']} rows whose targets disagree between templates: "
                f"{counts['disagreeing prompts']} prompts of them left out"
            )
        if counts["single prompts"]:
            yield f"{counts['single prompts']} prompts left out that have their row for themselves"
        if counts["repeated"]:
            yield f"{counts['repeated']} prompts left out whose template has their row already"
        if alone:
            yield (
                f"{len(alone)} templates left out that no other shares a task with: "
                + ", ".join(alone)
            )
        if len(self._unreadable):
            first = self._fault(int(self._unreadable[0]))
            yield f"{len(self._unreadable)} unreadable rows, the first: {first}"


@dataclasses.dataclass(frozen=True)
class _Groups:
    """The prompts of a task's instances, in the order of the files."""

    records: np.ndarray
    """[prompts] where they stand."""
    members: np.ndarray
    """[prompts] numbers of their templates in the task."""
    starts: np.ndarray
    """[instances] where the prompts of an instance begin."""
    sizes: np.ndarray
    """[instances] how many it has."""
    targets: np.ndarray
    """[instances] uint64, hashes of the normalised targets."""

    def __len__(self) -> int:
        return len(self.starts)

    def prompts(self, instance: int) -> Iterator[tuple[int, int]]:
        """(record, number of its template) of each prompt of an instance."""
        start = int(self.starts[instance])
        stop = start + int(self.sizes[instance])
        return zip(
            self.records[start:stop].tolist(), self.members[start:stop].tolist(), strict=True
        )

    def only(self, instances: np.ndarray) -> _Groups:
        per_instance = (self.starts, self.sizes, self.targets)
        return _Groups(self.records, self.members, *(part[instances] for part in per_instance))


def _group(task: Sequence[TemplateRows], counts: collections.Counter) -> _Groups:
    """The instances of the templates of a task; `counts` counts what none has room for."""
    keys = np.concatenate([template.keys for template in task])
    targets = np.concatenate([template.targets for template in task])
    records = np.concatenate([template.records for template in task])
    members = np.repeat(
        np.arange(len(task), dtype=np.min_scalar_type(len(task))),
        [len(template.keys) for template in task],
    )
    order = np.lexsort((members, targets, keys))
    keys, targets, records, members = (part[order] for part in (keys, targets, records, members))
    # A run: the prompts of a row that have the same target.
    is_new = np.ones(len(keys), bool)
    is_new[1:] = (keys[1:] != keys[:-1]) | (targets[1:] != targets[:-1])
    starts = np.flatnonzero(is_new)
    sizes = np.diff(starts, append=len(keys))
    best_first = np.lexsort((members[starts], -sizes, keys[starts]))
    _, best, runs = np.unique(keys[starts][best_first], return_index=True, return_counts=True)
    best = best_first[best]
    is_used = sizes[best] >= 2
    prompts = np.add.reduceat(sizes[best_first], np.cumsum(runs) - runs)
    left_out = prompts - np.where(is_used, sizes[best], 0)
    counts["disagreeing rows"] += int((runs > 1).sum())
    counts["disagreeing prompts"] += int(left_out[runs > 1].sum())
    counts["single prompts"] += int(left_out[runs == 1].sum())
    used = best[is_used]
    used = used[np.argsort(records[starts[used]])]
    return _Groups(records, members, starts[used], sizes[used], targets[starts[used]])


def _task_name(dataset: Dataset, first: TemplateRows) -> str:
    return f"{dataset.name}/{first.name.removeprefix(dataset.name).lstrip('_') or first.name}"
