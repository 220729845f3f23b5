"""The data's path before hidden states: conversation -> sample -> packed batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from speculators.modules.transfer import send


@dataclass(frozen=True)
class Turn:
    """One message of a conversation.

    Attributes:
        role: system, user, assistant or tool.
        content: its text; empty only with tool calls.
        extra: template fields beside role and content (tool_calls, reasoning_content, name).
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Conversation:
    """Turns in order, and where they came from.

    Attributes:
        turns: at least one assistant turn.
        conversation_id: id of the source, else a hash of the content; splitting goes by it.
        source: preset or file, shown in reports.
        tools: tool definitions for the chat template.
    """

    turns: tuple[Turn, ...]
    conversation_id: str
    source: str
    tools: Sequence[Mapping[str, Any]] | None = None


@dataclass(frozen=True)
class Sample:
    """One training row before packing.

    Attributes:
        input_ids: tokens as the verifier sees them.
        loss_mask: True on tokens the verifier itself would have generated, end of turn included.
        sample_id: content address, `sample_id_of(input_ids)`.
        conversation_id: samples of one conversation never stand on both sides of the split.
    """

    input_ids: Int[Tensor, "token"]
    loss_mask: Bool[Tensor, "token"]
    sample_id: str
    conversation_id: str

    def __len__(self) -> int:
        return self.input_ids.shape[0]


def sample_id_of(
    input_ids: Int[Tensor, "token"] | Int[np.ndarray, "token"] | Sequence[int],
) -> str:
    """Return the content address of a token sequence.

    First 32 hex digits of sha256 over the tokens as little-endian int64 (hidden-states
    specification, section 6).
    """
    ids = input_ids.numpy() if isinstance(input_ids, Tensor) else np.asarray(input_ids)
    return hashlib.sha256(ids.astype("<i8").tobytes()).hexdigest()[:32]


@dataclass(frozen=True)
class HostRow:
    """The integers of a packed row, on the host."""

    input_ids: Int[Tensor, "sequence"]
    loss_mask: Bool[Tensor, "sequence"]
    document_ids: Int[Tensor, "sequence"]
    position_ids: Int[Tensor, "sequence"]

    @classmethod
    def of(cls, batch: PackedBatch) -> HostRow:
        """Return those of a row, copied from the device if they have never been on the host."""
        integers = batch.input_ids, batch.loss_mask, batch.document_ids, batch.position_ids
        if batch.host is not None:
            return batch.host
        if batch.input_ids.device.type == "cpu":
            return cls(*integers)
        ids, mask, *rest = torch.stack([t.to(torch.int64) for t in integers]).cpu()
        return cls(ids, mask.bool(), *rest)


@dataclass(frozen=True)
class PackedBatch:
    """Several samples in one row of fixed length, with their hidden states.

    Every tensor lives on one device; `aux` and `last` are zero at padding.

    Attributes:
        input_ids: tokens, 0 at padding.
        loss_mask: False at padding.
        document_ids: 0, 1, ... by sample, -1 at padding.
        position_ids: restarts at 0 in every sample.
        aux: states of the target layers, ascending by layer, as the drafter reads them.
        last: stream after the last layer, before the final norm (the teacher's input).
        sample_ids: content addresses of the samples, in order.
        host: the integers as they were on the host, for a row that has left it; who plans with
            them need not wait for the device.
    """

    input_ids: Int[Tensor, "sequence"]
    loss_mask: Bool[Tensor, "sequence"]
    document_ids: Int[Tensor, "sequence"]
    position_ids: Int[Tensor, "sequence"]
    aux: Float[Tensor, "sequence aux_layer hidden"]
    last: Float[Tensor, "sequence hidden"]
    sample_ids: tuple[str, ...] = ()
    host: HostRow | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors of the row, in the order of the attributes."""
        integers = self.input_ids, self.loss_mask, self.document_ids, self.position_ids
        return (*integers, self.aux, self.last)

    def to(self, device: torch.device | str) -> PackedBatch:
        """Return the row with every tensor on `device`, without waiting (see `send`)."""
        leaves = self.input_ids.device.type == "cpu" != torch.device(device).type
        return PackedBatch(
            *(send(tensor, device) for tensor in self.tensors),
            sample_ids=self.sample_ids,
            host=HostRow.of(self) if leaves else self.host,
        )
