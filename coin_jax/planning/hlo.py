"""What a compiled program does, read from its text (HLO): cycles, products, collectives, loops.

The text is a list of computations, each a list of instructions `%name = shape opcode(operands),
attributes`. Instructions call other computations; a `while` runs its body as often as its condition
says. Everything here is counted as often as it runs.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import re
from typing import NamedTuple

BYTES = {
    "pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2,
    "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8,
}  # fmt: skip
COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)

FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "call", "iota",
    "conditional", "copy-start", "copy-done", "slice-start", "slice-done", "async-start",
    "async-done", "async-update", "collective-permute-start", "collective-permute-done",
    "all-gather-start", "all-gather-done", "all-reduce-start", "all-reduce-done",
    "partition-id", "after-all", "optimization-barrier",
)  # fmt: skip
"""Do nothing, or in the background."""

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_SHAPE = re.compile(r"\b([a-z]+[0-9]*)\[([0-9,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations)=\{?%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    shape: str
    opcode: str
    operands: str
    attributes: str

    def arrays(self) -> list[tuple[str, tuple[int, ...]]]:
        return shapes(self.shape)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective, and how often a step runs it."""

    kind: str
    bytes: int
    """Of the whole array on one device: what an all-gather gives, what a reduce-scatter takes."""
    group: int
    """Devices that take part."""
    times: float
    is_async: bool
    """Whether the program computes something else meanwhile."""
    source: str
    """The operation of the model that it belongs to."""

    @property
    def wire_bytes(self) -> float:
        """What a device receives in a step, by ring algorithms."""
        share = (self.group - 1) / self.group
        factor = {"all-reduce": 2 * share, "collective-permute": 1}.get(self.kind, share)
        return self.bytes * factor * self.times


class Kernel(NamedTuple):
    """One call of a kernel of the project; the compiler writes no cycles beside it."""

    name: str
    scores: float
    """Elements of attention's softmax."""
    programs: float
    """Of its grid."""


class Work(NamedTuple):
    """What one instruction does, and how often in a step."""

    times: float
    flops: float
    moved: float
    """Bytes that it reads from and writes to main memory."""
    source: str
    kernel: Kernel | None = None


class Event(NamedTuple):
    """What happens in a scheduled computation: `compute` for a number of cycles, `start` to send a
    number of bytes, or wait until that is `done`."""

    kind: str
    amount: float
    name: str = ""
    """Of the sending."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """One step of one device."""

    cycles: float
    """The compiler's estimate; 0 where it gives none."""
    work: tuple[Work, ...]
    flops: float
    """Of the matrix products, recomputed ones too."""
    collectives: tuple[Collective, ...]
    kept: int
    """Bytes that loops over layers keep for their backward passes."""
    slowest: tuple[tuple[str, float], ...]
    """Operations of the model that take the most cycles, and their shares."""
    schedules: tuple[tuple[float, tuple[Event, ...]], ...]
    """Of the computations that permute in the background, and how often each runs."""


def shapes(text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of every array named in `text`."""
    return [
        (dtype, tuple(int(size) for size in sizes.split(",") if size))
        for dtype, sizes in _SHAPE.findall(text)
        if dtype in BYTES
    ]


def array_bytes(dtype: str, dimensions: tuple[int, ...]) -> int:
    return BYTES[dtype] * math.prod(dimensions)


def parse(text: str) -> tuple[dict[str, dict[str, Instruction]], str]:
    """({computation: {name: instruction}}, the name of the entry)."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        if header := _HEADER.match(line):
            current = computations[header[2]] = {}
            entry = header[2] if header[1] else entry
        elif line.startswith("}"):
            current = None
        elif (
            current is not None
            and (found := _INSTRUCTION.match(line))
            and (instruction := _instruction(found[1], found[2]))
        ):
            current[found[1]] = instruction
    return computations, entry


def _instruction(name: str, rest: str) -> Instruction | None:
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    opcode, _, _ = rest.partition("(")
    if not re.fullmatch(r"[a-z][\w\-]*", opcode):
        return None
    end = _closing(rest, len(opcode))
    return Instruction(name, shape, opcode, rest[len(opcode) + 1 : end], rest[end + 1 :])


def _closing(text: str, start: int) -> int:
    """Where the bracket that opens at `start` is closed."""
    depth = 0
    for found in re.compile(r"[()]").finditer(text, start):
        depth += 1 if found[0] == "(" else -1
        if depth == 0:
            return found.start()
    return len(text)


def summarize(
    text: str, devices: int, layers: int = 0, parameters: frozenset[int] = frozenset()
) -> Summary:
    """Reads the text of a compiled program.

    layers: how many a stack has; parameters: numbers of elements of the stacked parameters, which
    are not counted as kept. A loop that runs as often as its data say (the vocabulary head's) is
    counted once.
    """
    computations, entry = parse(text)
    cycles: collections.Counter[str] = collections.Counter()
    collectives: dict[tuple, Collective] = {}
    work: list[Work] = []
    schedules: list[tuple[float, tuple[Event, ...]]] = []
    products, kept = 0.0, 0

    def visit(name: str, times: float, is_fused: bool, is_async: bool) -> None:
        nonlocal products, kept
        computation = computations.get(name, {})
        if not is_fused and (events := schedule(computation)):
            schedules.append((times, events))
        for instruction in computation.values():
            before = products
            source = _source(instruction)
            if not is_fused:
                cycles[source] += _cycles(instruction) * times
            if instruction.opcode in ("dot", "convolution"):
                products += times * product_flops(instruction, computation)
            if found := _collective(instruction, computation, times, is_async, devices, name):
                # The pieces of one that is spread over several computations share its channel;
                # all permutations may have the same.
                channel = re.search(r"channel_id=(\d+)", instruction.attributes)
                is_shared = channel and found.kind != "collective-permute"
                key = (channel[1] if is_shared else instruction.name, found.bytes, found.kind)
                collectives.setdefault(key, found)
            if instruction.opcode == "while":
                condition = re.search(r"condition=%?([\w.\-]+)", instruction.attributes)[1]
                body = re.search(r"body=%?([\w.\-]+)", instruction.attributes)[1]
                count = trip_count(instruction, computations.get(condition, {}), computations)
                visit(body, times * count, is_fused, is_async)
                if "transpose(" in source:
                    kept += kept_by_loop(instruction, layers, parameters)
                continue
            inside = is_fused or instruction.opcode == "fusion"
            apart = is_async or "async" in instruction.name or instruction.opcode == "async-start"
            for called in _CALLED.findall(instruction.attributes):
                visit(called, times, inside, apart)
            for several, one in _BRANCHES.findall(instruction.attributes):
                for branch in re.findall(r"[\w.\-]+", several or one):
                    visit(branch, times, inside, apart)
            kernel, flops = _kernel(instruction)
            products += times * flops
            if not is_fused and instruction.opcode not in FREE:
                moved = traffic(instruction, computation, computations)
                work.append(Work(times, (products - before) / times, moved, source, kernel))

    visit(entry, 1.0, False, False)
    total = sum(cycles.values())
    slowest = tuple((source, count / total) for source, count in cycles.most_common(12) if total)
    ordered = sorted(collectives.values(), key=lambda one: -one.wire_bytes)
    return Summary(
        float(total), tuple(work), products, tuple(ordered), kept, slowest, tuple(schedules)
    )


def schedule(computation: dict[str, Instruction]) -> tuple[Event, ...]:
    """In the order of a scheduled program; empty if it permutes nothing in the background."""
    events: list[Event] = []
    for instruction in computation.values():
        if instruction.opcode == "collective-permute-start":
            events.append(Event("start", array_bytes(*instruction.arrays()[0]), instruction.name))
        elif instruction.opcode == "collective-permute-done":
            started = re.search(r"%([\w.\-]+)", instruction.operands)
            events.append(Event("done", 0, started[1] if started else ""))
        else:
            events.append(Event("compute", _cycles(instruction)))
    return tuple(events) if any(event.kind == "start" for event in events) else ()


def _cycles(instruction: Instruction) -> int:
    """The compiler's estimate, or 0; it writes the largest number where it has none."""
    found = re.search(r'"estimated_cycles":"(\d{1,12})"', instruction.attributes)
    return int(found[1]) if found else 0


def _kernel(instruction: Instruction) -> tuple[Kernel | None, float]:
    """A call of model/fused_attention.py and its FLOPs, as its cost estimate tells them."""
    name = re.match(r"attention(_backward)?(?=[.\d]*$)", instruction.name)
    if instruction.opcode != "custom-call" or not name:
        return None, 0.0
    estimate = re.search(r'"cost_estimate":\{([^}]*)\}', instruction.attributes)
    told = dict(re.findall(r'"(\w+)":"(\d+)"', estimate[1])) if estimate else {}
    rows, _, width = instruction.arrays()[0][1]
    kernel = Kernel(name[0], float(told["transcendentals"]), rows * math.ceil(width / 128))
    return kernel, float(told["flops"])


def traffic(instruction: Instruction, computation: dict, computations: dict) -> float:
    """Bytes in main memory that an instruction reads and writes.

    Arrays whose layout names another memory space, `S(1)`, are on the chip. A fusion that slices an
    operand reads the slice, and one that updates a slice in place writes that slice.
    """
    names = re.findall(r"%([\w.\-]+)", instruction.operands)
    taken = [main_memory(computation[name].shape) if name in computation else 0 for name in names]
    given = main_memory(instruction.shape)
    if instruction.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * given
    if instruction.opcode == "dynamic-update-slice":
        return 2.0 * taken[1]
    called = _CALLED.search(instruction.attributes)
    if instruction.opcode != "fusion" or not called:
        return float(given + sum(taken))
    inside = computations.get(called[1], {})
    users: dict[str, list[Instruction]] = collections.defaultdict(list)
    for one in inside.values():
        for name in re.findall(r"%([\w.\-]+)", one.operands):
            users[name].append(one)
    for one in inside.values():
        if one.opcode == "parameter" and int(one.operands) < len(taken):
            used, place = users[one.name], int(one.operands)
            if used and all(user.opcode in ("dynamic-slice", "slice", "gather") for user in used):
                taken[place] = min(taken[place], sum(whole(user.shape) for user in used))
            elif any(user.opcode == "dynamic-update-slice" for user in used):
                taken[place] = 0
    for one in inside.values():
        if one.opcode == "dynamic-update-slice":
            update = re.findall(r"%([\w.\-]+)", one.operands)[1]
            given -= whole(one.shape) - whole(inside[update].shape) if update in inside else 0
    return float(max(given, 0) + sum(taken))


def main_memory(shape: str) -> int:
    """Bytes of the arrays of `shape` that no layout puts elsewhere."""
    return sum(
        array_bytes(*array)
        for found in re.finditer(r"[a-z]+[0-9]*\[[0-9,]*\](\{[^}]*\})?", shape)
        if "S(" not in (found[1] or "")
        for array in shapes(found[0])
    )


def whole(shape: str) -> int:
    return sum(array_bytes(*array) for array in shapes(shape))


def trip_count(loop: Instruction, condition: dict, computations: dict) -> int:
    """How often a loop runs: from the compiler's note, else from `counter < constant` and what the
    body adds to the counter; 1 where it depends on data."""
    if found := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(found[1])
    inside = dict(condition)
    for instruction in condition.values():
        for called in _CALLED.findall(instruction.attributes):
            inside |= computations.get(called, {})
    limits = [value for one in inside.values() if (value := _constant(one)) is not None]
    if len(limits) != 1:
        return 1
    places = [
        int(found[1])
        for one in condition.values()
        if one.opcode == "get-tuple-element"
        and (found := re.search(r"index=(\d+)", one.attributes))
    ]
    body = computations.get(re.search(r"body=%?([\w.\-]+)", loop.attributes)[1], {})
    step = _added(list(body.values())[-1], places[0], body) if body and len(places) == 1 else 1
    return -(-limits[0] // step)


def _constant(instruction: Instruction) -> int | None:
    is_scalar = re.match(r"[su]32\[\]", instruction.shape)
    if instruction.opcode == "constant" and is_scalar and instruction.operands.isdecimal():
        return int(instruction.operands)
    return None


def _added(root: Instruction, place: int, body: dict[str, Instruction]) -> int:
    """What a loop's body adds to the element of its carry at `place`; 1 where that is not plain."""
    elements = re.findall(r"%([\w.\-]+)", root.operands)
    found = body.get(elements[place]) if place < len(elements) else None
    while found is not None and found.opcode in ("copy", "bitcast"):
        found = body.get(found.operands.lstrip("%"))
    if found is None or found.opcode != "add":
        return 1
    terms = (body.get(name) for name in re.findall(r"%([\w.\-]+)", found.operands))
    steps = [value for term in terms if term is not None and (value := _constant(term))]
    return steps[0] if steps else 1


def kept_by_loop(loop: Instruction, layers: int, parameters: frozenset[int]) -> int:
    """Bytes of the arrays that a loop of the backward pass is given and that have a layer axis,
    except those of a parameter's size: weights, and gradients being summed."""
    return sum(
        array_bytes(dtype, dimensions)
        for dtype, dimensions in loop.arrays()
        if len(dimensions) > 2
        and dimensions[0] == layers
        and math.prod(dimensions) not in parameters
    )


def product_flops(instruction: Instruction, computation: dict[str, Instruction]) -> float:
    """2 x multiply-adds of a dot or convolution, positions that only meet padding left out."""
    output = math.prod(instruction.arrays()[0][1])
    left, right = _operand_dimensions(instruction, computation)
    if instruction.opcode == "dot":
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
        indices = contracted[1].split(",") if contracted and contracted[1] else []
        return 2.0 * output * math.prod(left[int(index)] for index in indices)
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    if not labels or len(right) != len(labels[2]):
        return 0.0
    output_dimensions = instruction.arrays()[0][1]
    flops = 2.0 * right[labels[2].index("i")]
    for letter, size in zip(labels[3], output_dimensions, strict=True):
        if letter in "bf":
            flops *= size
    window = {
        name: values.split("x")
        for name, values in re.findall(r"(\w+)=([\dx_\-]+)", _window(instruction.attributes))
    }
    for place, letter in enumerate(sorted(set(labels[1]) - set("bf"))):
        at = lambda name, default, place=place: (  # noqa: E731
            window[name][place] if name in window else default
        )
        low = int(at("pad", "0_0").split("_")[0])
        stride, spread = int(at("stride", "1")), int(at("lhs_dilate", "1"))
        step = int(at("rhs_dilate", "1"))
        source = left[labels[1].index(letter)]
        kernel = right[labels[2].index(letter)]
        result = output_dimensions[labels[3].index(letter)]
        flops *= sum(
            0 <= (position := o * stride - low + k * step) <= (source - 1) * spread
            and position % spread == 0
            for o in range(result)
            for k in range(kernel)
        )
    return flops


def _window(attributes: str) -> str:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    return found[1] if found else ""


def _operand_dimensions(instruction: Instruction, computation) -> list[tuple[int, ...]]:
    """Of the first two operands: written beside them, or where they are made."""
    found = []
    for operand in re.findall(r"%([\w.\-]+)", instruction.operands)[:2]:
        made = computation.get(operand)
        arrays = made.arrays() if made else []
        found.append(arrays[0][1] if arrays else ())
    return found if len(found) == 2 else [(), ()]


def _source(instruction: Instruction) -> str:
    found = re.search(r'op_name="([^"]*)"', instruction.attributes)
    return found[1] if found else instruction.opcode


def group_size(attributes: str, devices: int) -> int:
    """Devices of a replica group, in each of the ways in which groups are written."""
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]<=", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] \{([^}]*)\}", attributes):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        size = 1
        for name, part in re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", found[2]):
            size *= int(part) if part else sizes[name]
        return size
    return devices


def _collective(
    instruction: Instruction,
    computation: dict[str, Instruction],
    times: float,
    is_async: bool,
    devices: int,
    inside: str,
) -> Collective | None:
    kind = instruction.opcode.removesuffix("-start")
    is_start = kind != instruction.opcode
    if kind not in COLLECTIVES:
        return None
    taken = [
        array
        for operand in re.findall(r"%([\w.\-]+)", instruction.operands)
        for array in (computation[operand].arrays() if operand in computation else [])
    ]
    given = instruction.arrays()
    size = max(sum(array_bytes(*array) for array in arrays) for arrays in (given, taken))
    if is_start and kind != "all-reduce":
        # A start holds what goes in beside what comes out, and maybe flags.
        size = max((array_bytes(*array) for array in given), default=0)
    if "all-reduce-scatter" in inside:
        kind = "reduce-scatter"
    return Collective(
        kind,
        size,
        group_size(instruction.attributes, devices),
        times,
        is_async or is_start,
        _source(instruction),
    )
