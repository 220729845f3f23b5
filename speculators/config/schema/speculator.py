"""`speculator`: what every drafting algorithm has in common. Algorithms subclass it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from enum import Enum

from omegaconf import MISSING

from speculators.config.schema.problem import Problem, at_least, positive


class CeLabels(Enum):
    """What the cross-entropy term calls right."""

    data = "data"
    verifier = "verifier"


class Init(Enum):
    """What untrained draft layers hold."""

    random = "random"
    verifier = "verifier"


@dataclass
class LossWeights:
    """Weight of each loss term; 0 leaves it out. The sum is trained, each term is logged.

    With draft distribution q and verifier distribution p, both over the draft vocabulary
    (DFlash specification, section 8).
    """

    ce: float = 0.0
    """Cross-entropy: -log q(label)."""
    kl: float = 0.0
    """Forward KL(p, q)."""
    reverse_kl: float = 0.0
    """Reverse KL(q, p)."""
    js: float = 0.0
    """Jensen-Shannon."""
    tv: float = 0.0
    """Total variation 1 - sum min(p, q): one minus the acceptance probability."""
    lk_alpha: float = 0.0
    """-log sum min(p, q) (arXiv:2602.23881)."""
    lk_hybrid: float = 0.0
    """kl and tv mixed by exp(-3 sum min(p, q)) (arXiv:2602.23881)."""

    def active(self) -> dict[str, float]:
        """Return the terms whose weight is not zero, by name."""
        return {f.name: v for f in fields(self) if (v := float(getattr(self, f.name))) != 0.0}

    def problems(self) -> Iterator[Problem]:
        """At least one term, none negative."""
        for name, weight in self.active().items():
            if weight < 0:
                yield Problem(name, weight, "a loss weight must be 0 or more")
        if not self.active():
            yield Problem("ce", self.ce, "all loss weights are 0: set at least one above 0")


@dataclass
class SpeculatorConfig:
    """Common part of every speculator."""

    name: str = MISSING
    """The algorithm: a folder of `speculators/algorithms`."""
    num_layers: int = MISSING
    """Draft layers."""
    target_layer_ids: list[int] | None = None
    """Verifier layers the drafter reads, ascending; id i is the stream entering layer i
    (0: embeddings). null: the algorithm's rule for the verifier's depth; printed and stored."""
    draft_vocab_size: int | None = None
    """Tokens the drafter can propose; null or the verifier's size keeps them all."""
    init: Init = Init.random
    """random: N(0, 0.02); verifier: copies of verifier layers, first to last."""
    from_pretrained: str | None = None
    """Warm start from this checkpoint folder; its vocabulary map is kept. One made for another
    verifier is transplanted: tokens are matched by their text, layers by their depth."""
    pretrained_verifier: str | None = None
    """Folder or hub id of the verifier that checkpoint was made for; null: as it says itself."""
    forecast_steps: int = 0
    """Steps of a short run from the configured start and from a random one, before training, to
    tell what the start is worth; 0: none."""

    def problems(self) -> Iterator[Problem]:
        """Check what needs no verifier; the rest is checked when its sizes are known."""
        yield from at_least(self, "num_layers", 1)
        yield from at_least(self, "draft_vocab_size", 1)
        yield from at_least(self, "forecast_steps", 0)
        if self.from_pretrained is None and self.pretrained_verifier is not None:
            yield Problem(
                "pretrained_verifier", self.pretrained_verifier, "give from_pretrained too"
            )
        if self.forecast_steps and self.from_pretrained is None and self.init is Init.random:
            yield Problem(
                "forecast_steps",
                self.forecast_steps,
                "compares a start with a random one: give from_pretrained, or init=verifier",
            )
        ids = self.target_layer_ids
        if ids is not None:
            if not ids:
                yield Problem("target_layer_ids", ids, "give at least one layer id")
            elif len(set(ids)) != len(ids):
                yield Problem("target_layer_ids", ids, "an id stands twice: ids must be distinct")
            elif sorted(ids) != list(ids):
                yield Problem(
                    "target_layer_ids",
                    ids,
                    f"ids must ascend, as the server stores them: {sorted(ids)}",
                )
            elif ids[0] < 0:
                yield Problem("target_layer_ids", ids, "ids start at 0 (the embeddings)")


@dataclass
class DraftLayersConfig(SpeculatorConfig):
    """Drafters made of decoder layers over the verifier's states, trained through a head."""

    loss: LossWeights = field(default_factory=LossWeights)
    """Terms and weights."""
    ce_labels: CeLabels = CeLabels.data
    """ce against the token in the data, or against the verifier's most likely draftable token."""
    input_noise: float = 0.0
    """Half-width of uniform noise on the drafter's input states while training."""
    activation_checkpointing: bool = False
    """Compute layers, or steps of a chain, again in the backward pass: memory for time."""
    sliding_window: int | None = None
    """Window of sliding layers, in tokens; null: no layer slides."""
    num_attention_heads: int | None = None
    """null: the verifier's."""
    num_key_value_heads: int | None = None
    """null: the verifier's."""
    head_dim: int | None = None
    """null: the verifier's."""
    intermediate_size: int | None = None
    """MLP width; null: the verifier's."""
    rope_theta: float | None = None
    """Base of a plain rotary embedding of the drafter's own; null: the verifier's embedding, of
    whatever kind drafters compute."""

    def problems(self) -> Iterator[Problem]:
        """Check the ranges."""
        yield from super().problems()
        yield from at_least(self, "input_noise", 0)
        yield from at_least(self, "sliding_window", 1)
        yield from positive(self, "rope_theta")
