"""The seam every drafting algorithm fills. Trainer, decoder and exporter know only this.

An algorithm is a folder `speculators/algorithms/<name>/` with `config.py` (one subclass of
`SpeculatorConfig`) and `model.py` (one subclass of `Drafter`), plus `conf/speculator/<name>.yaml`.
It reads no environment, no file and no network. The modules beside this one are parts algorithms
share; none of them is needed. `docs/adding_an_algorithm.md` has a complete example.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar, Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from speculators.algorithms.conventions import Conventions
from speculators.algorithms.cost import StepCost, Workload, common_cost
from speculators.config.schema import AttentionBackend, DraftLayersConfig, SpeculatorConfig
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import ConfigError
from speculators.modules.decoder import LayerSizes
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec

ConfigT = TypeVar("ConfigT", bound=SpeculatorConfig)


class TokenRows(Enum):
    """Which tokens the rows of a weight stand for."""

    vocab = "vocab"
    draft = "draft"


@dataclass(frozen=True)
class StepContext:
    """Where in a run a forward pass stands; everything random in it is a function of this."""

    seed: int
    step: int
    row: int = 0
    rank: int = 0

    def generator(self, purpose: str) -> torch.Generator:
        """Return a CPU generator that belongs to (seed, purpose, step, row, rank) alone."""
        key = f"{self.seed}/{purpose}/{self.step}/{self.row}/{self.rank}".encode()
        number = int.from_bytes(hashlib.sha256(key).digest()[:8], "little") >> 1
        return torch.Generator().manual_seed(number)


@dataclass(frozen=True)
class Output:
    """Result of one training forward. Ranks and rows add up exactly; nothing is a mean.

    Attributes:
        loss_sum: weighted sum of losses, differentiable, not divided.
        divisor: what the total is divided by (sum of weights, or number of slots), detached.
        sums: numerators of metrics by name, 0-dim, detached, on the device.
        counts: denominators, same keys.
    """

    loss_sum: Float[Tensor, ""]
    divisor: Float[Tensor, ""]
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Proposal:
    """Tokens drafted in one go.

    Attributes:
        tokens: verifier token ids for the K positions after the newest token.
        probabilities: what they were drawn from, over the whole verifier vocabulary; only when
            asked for (ratio sampling).
    """

    tokens: Int[Tensor, "draft"]
    probabilities: Float[Tensor, "draft vocab"] | None = None


class DraftSession(ABC):
    """Drafting along one sequence, with the drafter's caches."""

    @abstractmethod
    def propose(
        self,
        states: Float[Tensor, "new aux_layer hidden"],
        tokens: Int[Tensor, "new"],
        *,
        temperature: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> Proposal:
        """Take what the verifier has confirmed since the last call, then draft.

        Args:
            states: the verifier's states at the next `new` positions p, p+1, ...; p is the number
                of states given so far.
            tokens: the confirmed tokens one position later, p+1, p+2, ...; the last one is the
                newest token, whose own state does not exist yet.
            temperature: 0 drafts the most likely token; above 0 draws from softmax(z / T) and
                fills `probabilities`.
            generator: source of randomness at temperature > 0.
        """


class Drafter(nn.Module, ABC, Generic[ConfigT]):
    """A drafter in training and at inference.

    Attributes:
        speculators_model_type: name of the algorithm in `config.json`.
        free_serving_keys: keys of `config.json` that a warm start may change: they give no weight
            its meaning.
        config: typed settings; `target_layer_ids` and the like are resolved, never None.
        spec: sizes of the verifier.
        vocabulary: tokens the drafter can propose.
    """

    speculators_model_type: ClassVar[str]
    free_serving_keys: ClassVar[frozenset[str]] = frozenset()
    config: ConfigT
    spec: VerifierSpec
    vocabulary: DraftVocabulary

    @classmethod
    @abstractmethod
    def resolve(cls, config: ConfigT, spec: VerifierSpec, unused_token_ids: list[int]) -> ConfigT:
        """Return `config` with every null replaced by what it means for this verifier.

        Args:
            config: settings as configured.
            spec: the verifier.
            unused_token_ids: embedding rows that occur nowhere in the data, best choice first.

        Raises:
            ConfigError: a setting that cannot go with this verifier; every problem at once.
        """

    @classmethod
    @abstractmethod
    def build(
        cls,
        config: ConfigT,
        spec: VerifierSpec,
        vocabulary: DraftVocabulary,
        *,
        embed_tokens: Float[Tensor, "vocab hidden"],
        lm_head: Float[Tensor, "vocab hidden"],
        generator: torch.Generator,
        attention: AttentionBackend = AttentionBackend.auto,
    ) -> Drafter[ConfigT]:
        """Build an untrained drafter; `config` is resolved, the tables are the verifier's."""

    def copied_layers(self) -> list[int]:
        """Return the verifier's layers that `start_from_verifier` copies; none by default."""
        return []

    def start_from_verifier(
        self, layers: Sequence[Mapping[str, Tensor]], norm_weight: Float[Tensor, "hidden"]
    ) -> None:
        """Overwrite untrained weights with the verifier's (`speculator.init=verifier`).

        Args:
            layers: tensors of each of `copied_layers`, by their names inside the layer; norms as
                factors.
            norm_weight: factor of the final norm.

        Raises:
            ConfigError: the algorithm has no such start, or a shape does not fit.
        """
        raise ConfigError(
            f"speculator.init=verifier: {self.config.name} cannot start from verifier layers; use "
            "speculator.init=random"
        )

    @property
    @abstractmethod
    def num_draft_tokens(self) -> int:
        """Tokens drafted per proposal, K."""

    @property
    def draft_passes(self) -> int:
        """Passes through the draft layers for one proposal: K where each token waits for the last.

        One where the whole proposal comes out of one pass.
        """
        return 1

    def weights_read(self) -> int:
        """Return the weights one proposal reads, pass by pass, the rows of the head among them."""
        own = self.trainable_parameters()
        head = 0 if "lm_head.weight" in own else len(self.vocabulary) * self.spec.hidden_size
        return self.draft_passes * (head + sum(p.numel() for p in own.values()))

    def set_num_draft_tokens(self, count: int) -> None:
        """Draft another number of tokens from now on, as a server does that is told to.

        Raises:
            ConfigError: the algorithm drafts as many as it was trained for.
        """
        if count != self.num_draft_tokens:
            raise ConfigError(
                f"evaluation.num_draft_tokens={count}: {self.config.name} drafts "
                f"{self.num_draft_tokens} tokens and no other number"
            )

    @abstractmethod
    def compute_loss(self, batch: PackedBatch, teacher: VerifierHead, step: StepContext) -> Output:
        """Forward pass of training on one packed row.

        Among its metrics are `accuracy_<k>`, the share of supervised slots k whose drafted token is
        the token in the data (k = 1, 2, ... after the newest one), so that the pass can be compared
        with drafting. In eval mode nothing in it is random.

        Every trainable weight gets a gradient, zero where the row teaches nothing: processes that
        share weights wait for each other's gradients of every one.
        """

    @abstractmethod
    def start_candidates(self, batch: PackedBatch) -> Bool[Tensor, "sequence"]:
        """Mark the positions whose token can be the newest one when drafting starts."""

    @abstractmethod
    def draft(self, batch: PackedBatch, starts: Int[Tensor, "start"]) -> Int[Tensor, "start draft"]:
        """Draft greedily after each of `starts` (ascending), all at once, without gradients.

        Equal to what a `DraftSession` proposes when the token at `starts[i]` is the newest one.
        Returns verifier token ids; entries past the end of the document mean nothing.
        """

    @abstractmethod
    def new_session(self) -> DraftSession:
        """Start drafting along one sequence."""

    @abstractmethod
    def serving_config(self) -> dict[str, Any]:
        """Return `config.json` of the checkpoint (checkpoint specification, section 3)."""

    @classmethod
    @abstractmethod
    def config_from_serving(cls, config: dict[str, Any]) -> ConfigT:
        """Rebuild the resolved settings from `config.json`.

        Raises:
            CheckpointError: a key is missing or has a value this code cannot run.
        """

    @abstractmethod
    def saved_tensors(self) -> dict[str, Tensor]:
        """Return exactly the tensors of `model.safetensors`, by name (specification, section 5)."""

    def conventions(self) -> Conventions | None:
        """Return what this drafter computes with, read off its modules; None: it does not say."""
        return None

    @classmethod
    def served_conventions(cls, config: dict[str, Any]) -> Conventions | None:
        """Return what the serving engine makes of a `config.json`; None: it does not say.

        Raises:
            CheckpointError: a key the engine needs is missing.
        """
        return None

    def token_rows(self) -> dict[str, TokenRows]:
        """Name the trained weights with a row per token, of the verifier's or the draft vocabulary.

        A start from a drafter of another verifier takes their rows over token by token.
        """
        return {}

    def step_cost(self, work: Workload) -> StepCost:
        """Return arithmetic and memory of forward and backward over one packed row.

        Read from sizes alone: the weights may lie on the meta device. An algorithm that knows
        better than this first estimate overrides it.
        """
        rows = work.sequence_length
        if isinstance(self.config, DraftLayersConfig):
            sizes = LayerSizes.of(self.config, self.spec)
            return common_cost(self.config, sizes, self.num_draft_tokens, work)
        flops = 2.0 * rows * sum(p.numel() for p in self.parameters())
        kept = 4.0 * rows * sum(p.shape[0] for p in self.parameters())
        return StepCost({"weights": flops}, {"weights": 2 * flops}, {"weights": kept})

    def trainable_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters an optimizer moves, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}
