"""Memory by part, what fits, disk, steps and hours: sums over sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from speculators.algorithms.base import Drafter
from speculators.algorithms.cost import StepCost
from speculators.config.schema import Config, HiddenStatesMode, OnMissing
from speculators.errors import ConfigError
from speculators.hidden_states.float8 import FLOAT8
from speculators.plan.subject import Subject
from speculators.training.optimizers import state_bytes
from speculators.verifier.sizes import num_weights

USABLE = 0.92
"""Share of a device's memory that is counted on: the driver and fragmentation take the rest."""
LARGEST = 2**20
"""Beyond this no size is tried."""

_GRADIENTS, _LOW_PRECISION = "gradients", "weights in bf16"
_ACTIVATIONS, _WORKING = "activations", "working memory (head, chunks)"
_ROW_PARTS = (_ACTIVATIONS, _WORKING)


@dataclass(frozen=True)
class Estimate:
    """What a run needs.

    Attributes:
        memory: bytes by part, of one process.
        cost: arithmetic and memory of one row.
        verifier_flops: of an embedded verifier over one row.
        disk: bytes of all hidden states, by number format.
        num_steps: optimizer steps.
        step_seconds: of one of them; None without a known peak.
        num_parameters: that move.
        accumulates: gradients of earlier rows are there while a row is computed.
    """

    memory: dict[str, float]
    cost: StepCost
    verifier_flops: float
    disk: dict[str, float]
    num_steps: int
    step_seconds: float | None
    num_parameters: int
    accumulates: bool

    @property
    def step_bytes(self) -> float:
        """Peak of what a step makes and lets go of."""
        return step_bytes(self.memory, self.accumulates)

    @property
    def total_bytes(self) -> float:
        """Peak of all parts."""
        return total_bytes(self.memory, self.accumulates)

    @property
    def hours(self) -> float | None:
        """Of the whole run, without validation and waiting."""
        return None if self.step_seconds is None else self.num_steps * self.step_seconds / 3600


def estimate(subject: Subject) -> Estimate:
    """Count everything; nothing is loaded or run."""
    config, drafter, work = subject.config, subject.drafter(), subject.workload()
    cost = drafter.step_cost(work)
    verifier = 0.0
    if _runs(config):
        verifier = 2.0 * num_weights(subject.spec, active=True) * work.sequence_length
    peak, seconds = subject.device.peak_flops, None
    if peak is not None:
        rows = config.training.accumulation_steps
        seconds = rows * (cost.flops + verifier) / (peak * config.plan.mfu)
    return Estimate(
        memory_by_part(subject, drafter, cost),
        cost,
        verifier,
        _disk(subject, len(drafter.config.target_layer_ids or ())),
        subject.num_steps(),
        seconds,
        sum(p.numel() for p in drafter.trainable_parameters().values()),
        config.training.accumulation_steps > 1,
    )


def memory_by_part(subject: Subject, drafter: Drafter[Any], cost: StepCost) -> dict[str, float]:
    """Return bytes of one process by part, activations of one row by part of the drafter."""
    config, work = subject.config, subject.workload()
    parameters = drafter.trainable_parameters()
    moving = sum(p.numel() for p in parameters.values())
    sharded = config.launcher.name == "fsdp"
    shards = subject.world_size if sharded else 1
    memory: dict[str, float] = {
        "drafter weights (fp32)": 4 * moving / shards,
        _GRADIENTS: 4 * moving / shards,
        f"optimizer state ({config.optimizer.name})": state_bytes(parameters, config.optimizer)
        / shards,
    }
    if config.launcher.cpu_offload:
        memory = dict.fromkeys(memory, 0.0)  # on the host
    elif config.training.ema_decay is not None:
        memory["average of the weights"] = 4 * moving / shards
    if sharded:
        memory["gathered weights and gradients"] = 2 * work.item * moving
        memory["whole drafter, main process"] = 4 * moving
    elif work.bfloat16:
        memory[_LOW_PRECISION] = 2 * moving
    memory |= _verifier(subject, len(drafter.vocabulary))
    num_states = len(drafter.config.target_layer_ids or ())
    row = work.sequence_length * (num_states + 1) * subject.spec.hidden_size
    memory["hidden states of a row"] = row * subject.state_type.itemsize
    memory |= {f"{_ACTIVATIONS}: {part}": value for part, value in cost.kept_bytes.items() if value}
    memory[_WORKING] = cost.working_bytes
    return memory


def step_bytes(memory: Mapping[str, float], accumulates: bool) -> float:
    """Return the peak of a step: gradients appear while activations go, unless rows accumulate."""
    row = sum(value for part, value in memory.items() if part.startswith(_ROW_PARTS))
    gradients = memory[_GRADIENTS]
    peak = row + gradients if accumulates else max(row, gradients)
    return peak + memory.get(_LOW_PRECISION, 0.0)


def total_bytes(memory: Mapping[str, float], accumulates: bool) -> float:
    """Return the peak of all parts together."""
    in_step = (_GRADIENTS, _LOW_PRECISION, *_ROW_PARTS)
    held = sum(value for part, value in memory.items() if not part.startswith(in_step))
    return held + step_bytes(memory, accumulates)


def largest(subject: Subject, key: str) -> int | None:
    """Return the largest value of a size with which the run fits, others as configured.

    Args:
        subject: what is planned.
        key: `speculator.max_anchors` or `training.sequence_length`.

    Returns:
        None when the speculator has no such setting, 0 when nothing fits.
    """
    group, _, name = key.partition(".")
    if not hasattr(getattr(subject.config, group), name):
        return None
    low, high = 0, LARGEST
    while low < high:
        middle = (low + high + 1) // 2
        if _fits(_with(subject, group, name, middle)):
            low = middle
        else:
            high = middle - 1
    return low


def _with(subject: Subject, group: str, name: str, value: int) -> Subject:
    changed = replace(getattr(subject.config, group), **{name: value})
    return replace(subject, config=replace(subject.config, **{group: changed}))


def _fits(subject: Subject) -> bool:
    try:
        drafter = subject.drafter()
    except ConfigError:
        return False
    memory = memory_by_part(subject, drafter, drafter.step_cost(subject.workload()))
    accumulates = subject.config.training.accumulation_steps > 1
    return total_bytes(memory, accumulates) <= USABLE * subject.device.memory_bytes


def _runs(config: Config) -> bool:
    """Whether the verifier runs in the training process."""
    states = config.hidden_states
    return states.mode is HiddenStatesMode.embedded and states.on_missing is OnMissing.generate


def _verifier(subject: Subject, draft_vocabulary: int) -> dict[str, float]:
    spec, config = subject.spec, subject.config
    row = spec.hidden_size * subject.table_type.itemsize
    whole = draft_vocabulary == spec.vocab_size
    # On a CPU tables are shared; elsewhere drafter and teacher bring a copy each.
    accelerated = subject.device.type != "cpu"
    heads = 1 if accelerated or not spec.tie_word_embeddings else 0
    draft = draft_vocabulary if accelerated or not whole else 0
    memory: dict[str, float] = {
        "verifier embedding": spec.vocab_size * row,
        "verifier head (teacher)": heads * spec.vocab_size * row,
        "draft head": draft * row,
    }
    if _runs(config):
        memory["embedded verifier"] = num_weights(spec) * subject.state_type.itemsize
    return {part: value for part, value in memory.items() if value}


def _disk(subject: Subject, num_states: int) -> dict[str, float]:
    data, hidden = subject.data, subject.spec.hidden_size
    states = (data.num_tokens + data.num_validation_tokens) * (num_states + 1)
    by_type = {name: states * hidden * getattr(torch, name).itemsize for name in _DTYPES}
    return by_type | {FLOAT8: float(states * (hidden + 4))}  # a scale for each state


_DTYPES = ("float32", "bfloat16")
