"""What is examined, and all it is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from speculators.algorithms.base import Drafter
from speculators.conversion.folders import Content
from speculators.data.template import VerifierTokenizer
from speculators.doctor.drafting import ProbeDrafts
from speculators.doctor.engine import EngineAnswers
from speculators.doctor.probe import Probe
from speculators.doctor.recording import Recording
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.streams import OwnStreams


@dataclass(frozen=True)
class Subject:
    """One drafter with everything it is compared with; what is None cannot be compared.

    Attributes:
        spec: the verifier.
        tokenizer: its tokenizer, under the template that is served.
        head: the teacher's norm and head.
        revision: of the verifier's weights.
        probes: prompts with captured states, on the drafter's device.
        drafter: the one that drafts here: in training the live one, else the one read from disk.
        live: the drafter in training.
        content: the checkpoint's files.
        problem: why no drafter could be made from them.
        recorded: what training wrote down.
        own: what the verifier says of its streams itself.
        engine: what a server answered, and what was decoded here.
    """

    spec: VerifierSpec
    tokenizer: VerifierTokenizer
    head: VerifierHead
    revision: str
    probes: Sequence[Probe] = ()
    drafter: Drafter[Any] | None = None
    live: Drafter[Any] | None = None
    content: Content | None = None
    problem: str | None = None
    recorded: Recording | None = None
    own: Callable[[Int[Tensor, "token"]], OwnStreams] | None = None
    engine: EngineAnswers | None = None

    @cached_property
    def own_streams(self) -> list[OwnStreams]:
        """What the verifier says of each probe, computed once."""
        if self.own is None:
            return []
        return [self.own(probe.input_ids) for probe in self.probes]

    @cached_property
    def drafts(self) -> list[ProbeDrafts]:
        """What is drafted along each probe; nothing without a drafter."""
        if self.drafter is None:
            return []
        return [ProbeDrafts(self.drafter, probe) for probe in self.probes]

    @property
    def unrecorded(self) -> str:
        """Why there is nothing recorded to compare with."""
        if self.live is not None:
            return "recorded now, for later comparisons"
        return "training recorded nothing (parity.json)"

    @property
    def layer_ids(self) -> tuple[int, ...]:
        """Layers the drafter reads."""
        return () if self.drafter is None else tuple(self.drafter.config.target_layer_ids or ())

    @property
    def is_exact(self) -> bool:
        """Whether arithmetic here is fp32: then equal means equal."""
        if self.drafter is None:
            return True
        parameter = next(iter(self.drafter.parameters()))
        coarse = torch.is_autocast_enabled(parameter.device.type)
        return parameter.dtype in (torch.float32, torch.float64) and not coarse
