"""A plan as people read it, and as `plan.json` holds it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from speculators.console import marked
from speculators.plan.estimate import LARGEST, USABLE, Estimate
from speculators.plan.measure import Measured
from speculators.plan.subject import Subject

_GIB = 2**30


def memory_table(subject: Subject, plan: Estimate) -> Table:
    """Return memory by part of one process."""
    device = subject.device
    table = Table(title=f"memory of one process on {device.name}", title_justify="left")
    table.add_column("part")
    small = plan.total_bytes < _GIB
    table.add_column("MiB" if small else "GiB", justify="right")

    def shown(value: float) -> str:
        return f"{value / 2**20:,.1f}" if small else _gib(value)

    for part, value in plan.memory.items():
        table.add_row(part, shown(value))
    usable = USABLE * device.memory_bytes
    table.add_section()
    table.add_row("peak", shown(plan.total_bytes), style="bold")
    table.add_row(f"there is ({USABLE:.0%} of {shown(device.memory_bytes)})", shown(usable))
    return table


def lines(
    subject: Subject, plan: Estimate, limits: dict[str, int | None], measured: Measured | None
) -> Iterator[str | Text]:
    """Yield everything else, one statement a line."""
    config, work = subject.config, subject.workload()
    fits = plan.total_bytes <= USABLE * subject.device.memory_bytes
    yield Text("it fits", "green") if fits else Text("it does not fit", "red")
    for key, value in limits.items():
        if value is None:
            continue
        enough = key.endswith("max_anchors") and value >= work.num_supervised
        text = f"{value:,}" if value else "none fits"
        text += " or more" if value == LARGEST else ""
        more = f" (a row has {work.num_supervised:,} supervised tokens)" if enough else ""
        yield f"largest {key} that fits, the rest as it is: {text}{more}"
    disk = ", ".join(f"{decimal(round(size))} in {name}" for name, size in plan.disk.items())
    yield f"hidden states of all samples on disk: {disk}"
    rows = config.training.accumulation_steps * subject.world_size
    yield f"{plan.num_steps:,} optimizer steps of {rows} row(s) of {work.sequence_length:,} tokens"
    flops = plan.cost.flops + plan.verifier_flops
    yield f"{plan.num_parameters:,} trainable parameters; {flops / 1e12:.3g} TFLOP a row"
    if plan.hours is None or subject.device.peak_flops is None:
        yield f"time: the peak of {subject.device.name} is not known; try plan.measure=true"
    else:
        peak = subject.device.peak_flops / 1e12
        yield (
            f"about {_duration(plan.hours)}, assuming {config.plan.mfu:.0%} (plan.mfu) of "
            f"{peak:.3g} TFLOP/s ({subject.device.source}); validation, waiting and evaluation "
            "are not counted"
        )
    if measured is not None:
        yield from _corrections(subject, plan, measured)
    for text in subject.assumptions:
        yield marked("assumed:", "yellow", f" {text}")


def to_dict(
    subject: Subject, plan: Estimate, limits: dict[str, int | None], measured: Measured | None
) -> dict[str, Any]:
    """Return the content of `plan.json`."""
    return {
        "device": subject.device.name,
        "device_memory_bytes": subject.device.memory_bytes,
        "memory_bytes": {part: round(value) for part, value in plan.memory.items()},
        "total_memory_bytes": round(plan.total_bytes),
        "largest": {key: value for key, value in limits.items() if value is not None},
        "disk_bytes": {name: round(value) for name, value in plan.disk.items()},
        "optimizer_steps": plan.num_steps,
        "trainable_parameters": plan.num_parameters,
        "flops_per_row": plan.cost.flops,
        "verifier_flops_per_row": plan.verifier_flops,
        "hours": plan.hours,
        "measured": None if measured is None else dict(vars(measured)),
        "assumptions": subject.assumptions,
    }


def _corrections(subject: Subject, plan: Estimate, measured: Measured) -> Iterator[Text]:
    factor = measured.step_bytes / max(1.0, measured.estimated_bytes)
    corrected = plan.total_bytes + (factor - 1) * plan.step_bytes
    memory = (
        f" ({measured.num_steps} steps): a step adds "
        f"{decimal(round(measured.step_bytes))}, {factor:.2f} of the estimate for such rows; "
        f"corrected peak {_gib(corrected)} GiB"
    )
    yield marked("measured here", "bold", memory)
    peak, rate = subject.device.peak_flops, measured.flops_per_second
    share = "" if peak is None else f", {rate / peak:.0%} of the peak"
    hours = plan.num_steps * measured.step_seconds / 3600  # of rows nearly as they will be
    time = (
        f": {measured.step_seconds:.3g} s a step, {rate / 1e12:.3g} TFLOP/s"
        f"{share}; the whole run {_duration(hours)}, without the verifier's part"
    )
    yield marked("measured here", "bold", time)


def _gib(value: float) -> str:
    return f"{value / _GIB:,.3f}" if value < _GIB else f"{value / _GIB:,.2f}"


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours >= 1 / 60 else f"{3600 * hours:.0f} seconds"
