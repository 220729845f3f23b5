"""What a source of hidden states delivers, and the protocol every source follows."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class HiddenStates:
    """States of one sample, in the verifier's precision.

    Attributes:
        aux: streams entering the target layers, ascending by layer id.
        last: stream after the last layer, before the final norm.
    """

    aux: Float[Tensor, "token aux_layer hidden"]
    last: Float[Tensor, "token hidden"]


@runtime_checkable
class Tokens(Protocol):
    """What a source needs to know of a sample."""

    @property
    def input_ids(self) -> Int[Tensor, "token"]:
        """Tokens as the verifier sees them."""
        ...

    @property
    def loss_mask(self) -> Bool[Tensor, "token"]:
        """True on tokens the verifier itself would have generated."""
        ...

    @property
    def sample_id(self) -> str:
        """Content address of the tokens."""
        ...


@runtime_checkable
class HiddenStateSource(Protocol):
    """Where hidden states come from: a verifier in this process, a server, or a store.

    A source is streamed: it is given the groups of samples in the order in which they will be
    needed and may work ahead; it answers in that same order whatever the order of arrival.
    """

    def start(self, sample_ids: Collection[str]) -> None:
        """Make sure now, not in the middle of a run, that states can be had.

        Args:
            sample_ids: everything that will be asked for.

        Raises:
            HiddenStateError: they cannot, and policy forbids leaving samples out.
        """
        ...

    def stream(self, groups: Iterable[Sequence[Tokens]]) -> Iterator[list[HiddenStates | None]]:
        """Yield the states of each group; None for a sample that policy leaves out.

        Raises:
            HiddenStateError: states cannot be had and policy forbids going on.
        """
        ...

    def gauges(self) -> Mapping[str, float]:
        """Return how the source stands now, for people.

        Those a source has of: `queue_ready` and `queue_samples` (samples here, and asked for),
        `in_flight` (requests at servers), `received_tokens` and `received_bytes` (from servers,
        since the start), `stored`, `remembered`, `generated` and `left_out` samples, `retries`,
        `unkept` samples, `memory_bytes`, `store_bytes`.
        """
        ...

    def advice(self) -> str:
        """Return one sentence for a consumer that waits: why, and what to change.

        May ask servers how they are; not to be called in every step.
        """
        ...

    def close(self) -> None:
        """Release models, connections and temporary files."""
        ...
