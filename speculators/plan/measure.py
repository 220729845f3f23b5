"""A few real steps on rows of random numbers: what they need here, beside what was estimated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from speculators.algorithms.base import StepContext
from speculators.algorithms.cost import Workload
from speculators.algorithms.registry import drafter_class
from speculators.data.types import PackedBatch
from speculators.errors import LaunchError
from speculators.plan.estimate import USABLE, Estimate, memory_by_part, step_bytes
from speculators.plan.subject import Subject
from speculators.training.live_bytes import LiveBytes
from speculators.training.optimizers import build_optimizers
from speculators.training.ranks import Ranks
from speculators.training.spread import Replicated
from speculators.training.step import Stepper
from speculators.verifier.head import VerifierHead


@dataclass(frozen=True)
class Measured:
    """What steps on this machine took.

    Attributes:
        step_seconds: median of the measured steps, all rows of a step together.
        step_bytes: peak of what a step makes on top of weights, tables and optimizer state.
        estimated_bytes: the same, estimated for the rows that were measured.
        flops_per_second: of the algorithm's own count.
        num_steps: how many steps were measured.
    """

    step_seconds: float
    step_bytes: float
    estimated_bytes: float
    flops_per_second: float
    num_steps: int


def measure(subject: Subject, plan: Estimate, device: torch.device) -> Measured:
    """Train on random rows of the planned shape; verifier tables are random too.

    Raises:
        LaunchError: there is not memory enough here.
    """
    if plan.total_bytes > USABLE * subject.device.memory_bytes:
        raise LaunchError(
            f"plan.measure=true: about {plan.total_bytes / 2**30:.1f} GiB are needed and {device} "
            f"has {subject.device.memory_bytes / 2**30:.1f}; make the run smaller (the sizes that "
            "fit are printed without plan.measure)"
        )
    stepper = _stepper(subject, device)
    settings, rows = subject.config.training, list(_rows(subject, device))
    count, seconds = settings.accumulation_steps, []

    def step(number: int) -> float:
        _wait(device)
        start = time.perf_counter()
        stepper.run(rows * count, count, number, 1.0)
        _wait(device)
        return time.perf_counter() - start

    step(0)
    seconds = [step(1 + n) for n in range(subject.config.plan.measure_steps)]
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step(len(seconds) + 1)
        peak = torch.cuda.max_memory_allocated(device) - before
    else:
        with LiveBytes() as live:
            step(len(seconds) + 1)
        peak = live.peak
    typical = statistics.median(seconds)
    planned, drafter = subject.workload(), subject.drafter()
    # Whole documents make another shape than the mean ones of the plan.
    shape = Workload.of(rows[0], bfloat16=planned.bfloat16, fused_attention=planned.fused_attention)
    cost = drafter.step_cost(shape)
    return Measured(
        typical,
        peak,
        step_bytes(memory_by_part(subject, drafter, cost), count > 1),
        count * cost.flops / typical,
        len(seconds),
    )


def _stepper(subject: Subject, device: torch.device) -> Stepper:
    config, spec = subject.config, subject.spec
    planned = subject.drafter()
    # Drawn once and shared, as on a CPU; what is measured is what a step adds.
    generator = StepContext(config.seed, 0).generator("plan")
    table = torch.empty(spec.vocab_size, spec.hidden_size, dtype=subject.table_type)
    table.normal_(0.0, 0.02, generator=generator)
    table = table.to(device)
    drafter = drafter_class(config.speculator.name).build(
        planned.config, spec, planned.vocabulary, embed_tokens=table, lm_head=table,
        generator=generator, attention=config.attention,
    )  # fmt: skip
    drafter.to(device).train()
    training, ranks = config.training, Ranks()
    return Stepper(
        drafter,
        VerifierHead(spec, torch.ones(spec.hidden_size, device=device), table).to(device),
        build_optimizers(drafter.trainable_parameters(), config.optimizer),
        device,
        training.precision,
        training.clip_norm,
        config.seed,
        ranks,
        Replicated(drafter, ranks),
    )


def _rows(subject: Subject, device: torch.device) -> Iterator[PackedBatch]:
    """Yield one row: equal documents of about the mean length, their prompts not supervised."""
    work, spec = subject.workload(), subject.spec
    generator = StepContext(subject.config.seed, 0).generator("rows")
    length = work.sequence_length
    document = -(-length // max(1, round(length / max(2.0, work.document_tokens))))
    index, states = torch.arange(length), len(subject.drafter().config.target_layer_ids or ())
    prompt = min(document - 1, round(document * (1 - subject.data.supervised_fraction)))

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(length, *shape, spec.hidden_size, generator=generator)

    yield PackedBatch(
        input_ids=torch.randint(spec.vocab_size, (length,), generator=generator),
        loss_mask=index % document >= prompt,
        document_ids=index // document,
        position_ids=index % document,
        aux=drawn(states).to(subject.state_type),
        last=drawn().to(subject.state_type),
    ).to(device)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
