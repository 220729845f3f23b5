"""Where the time and the memory of a training step go, watched from outside the loop.

The first step warms up, the next ones are timed, one is traced and one is watched for memory: what
is timed bears none of the cost of the other two. After that nobody watches any more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from speculators.algorithms.base import Drafter
from speculators.algorithms.cost import Workload
from speculators.conversion.durable import replace_text
from speculators.data.types import PackedBatch
from speculators.modules.parts import observed
from speculators.training.devices import describe_device
from speculators.training.live_bytes import LiveBytes
from speculators.training.memory import DevicePeak
from speculators.training.profile_report import Profile, profile_table, summary

PROFILE_FILE, TRACE_FILE = "profile.json", "trace.json"


@contextmanager
def watched_steps(
    num_steps: int | None,
    drafter: Drafter[Any],
    device: torch.device,
    folder: Path,
    console: Console,
    *,
    bfloat16: bool,
) -> Iterator[None]:
    """Watch the training steps made inside the block, then print and write what was seen.

    Args:
        num_steps: timed steps; None watches nothing.
        drafter: what is trained.
        device: where.
        folder: the run directory.
        console: for the table.
        bfloat16: arithmetic of forward and backward.
    """
    if num_steps is None:
        yield
        return
    peak = describe_device(device).peak_flops
    watch = _Watch(num_steps, drafter, device, folder / TRACE_FILE)
    with observed(watch.part), watch.hooks():
        yield
    found = watch.found(peak, bfloat16=bfloat16)
    if found is None:
        console.print("profile: too few steps were made; nothing to report", soft_wrap=True)
        return
    replace_text(folder / PROFILE_FILE, json.dumps(found.to_dict(), indent=2) + "\n")
    console.print(profile_table(found))
    for line in summary(found):
        console.print(line, soft_wrap=True)
    console.print(f"profile: {folder / PROFILE_FILE}, {folder / TRACE_FILE}", soft_wrap=True)


class _Watch:
    """Keeps seconds and peaks by path of parts, `step`, `step/forward`, `step/forward/mask`."""

    def __init__(
        self, num_steps: int, drafter: Drafter[Any], device: torch.device, trace: Path
    ) -> None:
        self._num_steps, self._drafter, self._device, self._trace = (
            num_steps,
            drafter,
            device,
            trace,
        )
        self._path: list[str] = []
        self._step = -1
        self._memory: LiveBytes | DevicePeak | None = None
        self._seconds: dict[str, float] = {}
        self._bytes: dict[str, int] = {}
        self._rows: list[PackedBatch] = []

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Watch one part; parts outside of a step, and steps later than wanted, just run."""
        if name == "step":
            self._step += 1
        elif not self._path:
            yield
            return
        if self._step > self._num_steps + 2:
            yield
            return
        self._path.append(name)
        try:
            with ExitStack() as stack:
                if name == "step":
                    stack.enter_context(self._watching())
                stack.enter_context(self._measuring("/".join(self._path)))
                stack.enter_context(record_function(name))
                yield
        finally:
            self._path.pop()

    @contextmanager
    def hooks(self) -> Iterator[None]:
        """Watch the drafter's children and look at its rows, as long as the block lasts."""
        open_parts: list[Any] = []

        def enter(label: str) -> Any:
            def hook(*_: Any) -> None:
                open_parts.append(self.part(label))
                open_parts[-1].__enter__()

            return hook

        def leave(*_: Any) -> None:
            open_parts.pop().__exit__(None, None, None)

        handles = []
        for label, module in _children(self._drafter):
            handles.append(module.register_forward_pre_hook(enter(label)))
            handles.append(module.register_forward_hook(leave, always_call=True))
        # Shards bring a method of their own instance.
        own, compute = vars(self._drafter).get("compute_loss"), self._drafter.compute_loss

        def look(batch: PackedBatch, *args: Any) -> Any:
            if self._timing:
                self._rows.append(batch)
            return compute(batch, *args)

        self._drafter.compute_loss = look  # type: ignore[method-assign]
        try:
            yield
        finally:
            del self._drafter.compute_loss
            if own is not None:
                self._drafter.compute_loss = own
            for handle in handles:
                handle.remove()

    def found(self, peak_flops: float | None, *, bfloat16: bool) -> Profile | None:
        """Return what was seen; None when no step was timed."""
        if not self._rows:
            return None
        fused = self._device.type == "cuda"
        works = [Workload.of(row, bfloat16=bfloat16, fused_attention=fused) for row in self._rows]
        flops = sum(self._drafter.step_cost(work).flops for work in works)
        steps = min(self._step, self._num_steps)
        seconds = {path: value / steps for path, value in self._seconds.items()}
        return Profile(seconds, self._bytes, flops / steps, peak_flops, steps, str(self._device))

    @property
    def _timing(self) -> bool:
        return 1 <= self._step <= self._num_steps

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Trace the step after the timed ones, and book tensors in the one after that."""
        if self._step <= self._num_steps:
            yield
        elif self._step == self._num_steps + 1:
            kinds = [ProfilerActivity.CPU]
            if self._device.type == "cuda":
                kinds.append(ProfilerActivity.CUDA)
            with profile(activities=kinds) as tracing:
                yield
            tracing.export_chrome_trace(str(self._trace))
        elif self._device.type == "cuda":
            self._memory = DevicePeak(self._device)
            yield
        else:
            with LiveBytes() as self._memory:
                yield

    @contextmanager
    def _measuring(self, path: str) -> Iterator[None]:
        memory = self._memory if self._step == self._num_steps + 2 else None
        before = memory.begin() if memory is not None else 0
        self._wait()
        start = time.perf_counter()
        yield
        self._wait()
        if self._timing:
            seconds = time.perf_counter() - start
            self._seconds[path] = self._seconds.get(path, 0.0) + seconds
        if memory is not None:
            self._bytes[path] = max(self._bytes.get(path, 0), memory.end(before))

    def _wait(self) -> None:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)


def _children(drafter: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the drafter's parts; the members of a list share its name."""
    for name, child in drafter.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((name, member) for member in child)
        else:
            yield name, child
