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
    """

    input_ids: Int[Tensor, "sequence"]
    loss_mask: Bool[Tensor, "sequence"]
    document_ids: Int[Tensor, "sequence"]
    position_ids: Int[Tensor, "sequence"]
    aux: Float[Tensor, "sequence aux_layer hidden"]
    last: Float[Tensor, "sequence hidden"]
    sample_ids: tuple[str, ...] = ()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> PackedBatch:
        """Return the batch with every tensor on `device`."""
        return PackedBatch(
            *(
                getattr(self, name).to(device, non_blocking=non_blocking)
                for name in (
                    "input_ids",
                    "loss_mask",
                    "document_ids",
                    "position_ids",
                    "aux",
                    "last",
                )
            ),
            sample_ids=self.sample_ids,
        )
