"""Plans as tables for the terminal, and for docs/plan.md."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.console import Console
from rich.table import Table

from coin_jax.planning.chips import GIB, Topology
from coin_jax.planning.program import Plan


def describe(plan: Plan, topology: Topology, console: Console) -> None:
    """Everything that is known of one plan."""
    table = Table(title=f"{title(plan)}: memory of a device, GiB", title_justify="left")
    for name in ("kind", "GiB", "share"):
        table.add_column(name, justify="left" if name == "kind" else "right")
    kinds = ("parameters", "optimizer", "activations", "temporaries")
    for kind in kinds:
        amount = getattr(plan, kind)
        table.add_row(kind, gib(amount), share(amount, plan.memory))
    table.add_row("all", gib(plan.memory), share(plan.memory, plan.memory), style="bold")
    if math.isfinite(plan.limit):
        table.add_row("there is", gib(plan.limit), "")
    console.print(table)
    console.print(verdict(plan), style="green" if plan.fits else "red")
    if plan.problem:
        console.print(plan.problem, style="red", highlight=False)

    facts = {
        "model FLOPs a step": f"{plan.model_flops:.3g}",
        "model FLOPs a token": f"{plan.model_flops / plan.tokens:.3g}",
    }
    if plan.program_flops:
        executed = plan.program_flops * topology.size
        facts |= {
            "the program's FLOPs a step": f"{executed:.3g} "
            f"({executed / plan.model_flops:.2f} times the model's: recomputed, masked ones)",
            "the program's FLOPs a token": f"{executed / plan.tokens:.3g}",
        }
    if plan.seconds:
        if plan.compute_seconds:
            facts["computing"] = f"{plan.compute_seconds:.4f} s by the compiler's cycles"
        facts |= {
            "at least": f"{plan.roofline_seconds:.4f} s by products and memory traffic (roofline)",
            "collectives": f"{plan.collective_seconds:.4f} s by their bytes at "
            f"{topology.link_bandwidth / 1e9:.0f} GB/s a device, of which "
            f"{plan.exposed_seconds:.4f} s overlap with nothing",
            "a step": f"{plan.seconds:.4f} s, {plan.tokens / plan.seconds:,.0f} tokens/s",
            "utilization": f"{plan.utilization:.1%} of {plan.peak_flops / 1e12:,.0f} TFLOP/s",
        }
    else:
        facts["time"] = "not known: this compiler estimates none"
    width = max(map(len, facts))
    for name, fact in facts.items():
        console.print(f"{name:{width}}  {fact}", highlight=False, soft_wrap=True)
    if plan.collectives:
        console.print(collectives_table(plan))


def collectives_table(plan: Plan, most: int = 12) -> Table:
    table = Table(title="Collectives of a device in one step", title_justify="left")
    for name in ("kind", "times", "MB", "MB received", "overlaps", "belongs to"):
        number = name in ("times", "MB", "MB received")
        table.add_column(name, justify="right" if number else "left", no_wrap=number)
    for one in plan.collectives[:most]:
        table.add_row(
            one.kind,
            f"{one.times:.0f}",
            f"{one.bytes / 1e6:,.1f}",
            f"{one.wire_bytes / 1e6:,.1f}",
            "yes" if one.is_async else "no",
            short(one.source),
        )
    rest = plan.collectives[most:]
    if rest:
        amounts = [sum(one.bytes for one in rest), sum(one.wire_bytes for one in rest)]
        numbers = [f"{amount / 1e6:,.1f}" for amount in amounts]
        table.add_row(f"{len(rest)} more", f"{sum(o.times for o in rest):.0f}", *numbers, "", "")
    return table


def choices_table(plans: Iterable[Plan], marked: Plan | None, heading: str) -> Table:
    """Meshes and remat policies side by side; the marked one is the choice."""
    table = Table(title=heading, title_justify="left")
    for name in CHOICE_COLUMNS:
        table.add_column(name, justify="right")
    for plan in plans:
        row = choice_row(plan)
        row[0] = "->" if plan is marked else ""
        style = "bold green" if plan is marked else "" if plan.fits else "dim"
        table.add_row(*row, style=style)
    return table


CHOICE_COLUMNS = (
    "", "data x fsdp x tensor", "remat", "rows", "GiB", "fits", "step at least",
    "utilization at most", "estimated", "by",
)  # fmt: skip


def choice_row(plan: Plan) -> list[str]:
    return [
        "",
        " x ".join(map(str, plan.mesh)),
        plan.remat,
        str(plan.rows),
        gib(plan.memory),
        "yes" if plan.fits else "no",
        f"{plan.bound:.3f} s" if plan.bound else "",
        f"{plan.utilization_bound:.1%}" if plan.bound else "",
        f"{plan.utilization:.1%}" if plan.compute_seconds else "",
        plan.method,
    ]


def markdown_row(name: str, plan: Plan) -> str:
    """name, topology, mesh, remat, rows, GiB, step at least, utilization at most, by."""
    cells = [name, plan.topology, *choice_row(plan)[1:]]
    return "| " + " | ".join(cells) + " |"


def title(plan: Plan) -> str:
    mesh = " x ".join(map(str, plan.mesh))
    return f"{plan.topology}, mesh {mesh}, {plan.rows} rows, remat {plan.remat}"


def verdict(plan: Plan) -> str:
    if not math.isfinite(plan.limit):
        return "How much memory there is, is not known for this device."
    if plan.fits:
        return f"It fits; {gib(plan.limit - plan.memory)} GiB are left."
    return f"It does not fit: {gib(plan.memory - plan.limit)} GiB too much."


def gib(amount: float) -> str:
    return f"{amount / GIB:,.2f}"


def share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole and math.isfinite(whole) else ""


def short(source: str) -> str:
    """`jit(train_step)/transpose(jvp())/while/body/dot` -> `backward/loop/dot`."""
    is_backward = "transpose(" in source
    kept = [
        part
        for part in source.split("/")[1:]
        if part not in ("body", "closed_call", "checkpoint", "rematted_computation")
        and "jvp(" not in part
    ]
    kept = ["loop" if part == "while" else part for part in kept]
    side = "backward" if is_backward else "forward" if "jvp(" in source else "update"
    return "/".join([side, *kept])
