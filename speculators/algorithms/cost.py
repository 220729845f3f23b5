"""What a training pass over a packed row costs: arithmetic, and memory for the backward pass.

Counted from the sizes alone. Products count 2 * rows * inner * columns; softmax, norms and
elementwise work are left out, as usual for model FLOPs utilisation. What autograd keeps is listed
operation by operation, as the modules here save it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from speculators.config.schema import DraftLayersConfig
from speculators.data.types import PackedBatch
from speculators.modules.decoder import LayerSizes

_WIDE = 4
"""Bytes of a number in norms and in structured attention, whatever the arithmetic."""
_KEPT_SCORES = 256 * 2**20
"""Structured attention keeps the scores of a layer up to this size, else forms them again."""
_LOGIT_COPIES = 9
"""Tensors of a chunk's size that terms over whole rows of logits hold at one time (measured)."""
BYTES_PER_LOGIT = {2: (8.1, 14.1), 4: (8.1, 12.1)}
"""Working memory of a tile, not fused: `ce` alone and with `kl`, by the bytes of a number."""


@dataclass(frozen=True)
class Workload:
    """One packed row, and how it is computed.

    Attributes:
        sequence_length: tokens of the row.
        num_supervised: of them, tokens of the loss mask.
        document_tokens: mean length of the documents in the row.
        bfloat16: forward and backward run in bf16, otherwise fp32.
        fused_attention: FlexAttention kernels; otherwise the structured backend.
        accelerator: not a CPU: numbers of blocks are fixed, chunks are larger.
    """

    sequence_length: int
    num_supervised: int
    document_tokens: float
    bfloat16: bool = False
    fused_attention: bool = False
    accelerator: bool = False

    @classmethod
    def of(cls, row: PackedBatch, *, bfloat16: bool, fused_attention: bool) -> Workload:
        """Return the shape of a real row; its integers are read, which waits for the device."""
        documents = max(1, int(row.document_ids.max()) + 1)
        tokens = int((row.document_ids >= 0).sum())
        return cls(
            len(row.input_ids),
            int(row.loss_mask.sum()),
            tokens / documents,
            bfloat16,
            fused_attention,
            accelerator=row.input_ids.device.type != "cpu",
        )

    @property
    def item(self) -> int:
        """Bytes of a number in the residual stream."""
        return 2 if self.bfloat16 else 4

    @property
    def response_tokens(self) -> float:
        """Mean number of supervised tokens of a document."""
        share = self.num_supervised / max(1, self.sequence_length)
        return max(1.0, share * self.document_tokens)

    @property
    def visible_tokens(self) -> float:
        """Mean context of a supervised token: its document up to it."""
        return max(0.0, self.document_tokens - self.response_tokens / 2)

    def supervised_slots(self, blocks: int, slots: int) -> int:
        """Return how many of `blocks * slots` drafted slots lie inside their document."""
        inside = max(0.0, 1 - (slots + 1) / 2 / self.response_tokens)
        return round(blocks * slots * inside)

    def bases(self, slots: float) -> float:
        """Return how many distinct supervised tokens `slots` drafted at random places predict."""
        supervised = max(1, self.num_supervised)
        return supervised * (1 - math.exp(-slots / supervised))


@dataclass(frozen=True)
class StepCost:
    """Forward and backward over one row, without the optimizer.

    Attributes:
        forward_flops: by part.
        backward_flops: by part.
        kept_bytes: by part, alive between forward and backward.
        working_bytes: most that is alive for a moment on top of it.
    """

    forward_flops: dict[str, float] = field(default_factory=dict)
    backward_flops: dict[str, float] = field(default_factory=dict)
    kept_bytes: dict[str, float] = field(default_factory=dict)
    working_bytes: float = 0.0

    @property
    def flops(self) -> float:
        """Forward and backward together."""
        return sum(self.forward_flops.values()) + sum(self.backward_flops.values())

    @property
    def kept(self) -> float:
        """Bytes kept, of all parts."""
        return sum(self.kept_bytes.values())

    def __add__(self, other: StepCost) -> StepCost:
        """Add part by part; what lives for a moment does not add up."""
        return StepCost(
            _added(self.forward_flops, other.forward_flops),
            _added(self.backward_flops, other.backward_flops),
            _added(self.kept_bytes, other.kept_bytes),
            max(self.working_bytes, other.working_bytes),
        )


@dataclass(frozen=True)
class LayerRows:
    """How many rows each part of a decoder layer sees.

    Attributes:
        slots: rows that ask.
        context: tokens that are only asked.
        visible: mean context tokens of a slot.
        own: slots of its own block each slot sees.
        projected: rows that are projected to queries, keys and values; None: all slots.
        finished: rows of the output projection and the MLP; None: all slots.
        own_keys: whether slots get keys of their own; otherwise they lie in the context already.
    """

    slots: float
    context: float
    visible: float
    own: float
    projected: float | None = None
    finished: float | None = None
    own_keys: bool = True


def layer_cost(
    sizes: LayerSizes,
    rows: LayerRows,
    work: Workload,
    *,
    input_size: int | None = None,
    head_norms: bool = True,
) -> StepCost:
    """Return the cost of one decoder layer.

    Args:
        sizes: widths.
        rows: what goes through it.
        work: number formats and backend.
        input_size: width of what is projected; None: the hidden size.
        head_norms: queries and keys are normed.
    """
    hidden, width = sizes.hidden_size, input_size or sizes.hidden_size
    q = sizes.num_attention_heads * sizes.head_dim
    kv = sizes.num_key_value_heads * sizes.head_dim
    slots, item = rows.slots, work.item
    projected = slots if rows.projected is None else rows.projected
    finished = slots if rows.finished is None else rows.finished
    keyed = (projected if rows.own_keys else 0) + rows.context
    flops = {
        "projections": 2 * width * (projected * q + 2 * keyed * kv) + 2 * finished * q * hidden,
        "attention": 4 * slots * q * (rows.visible + rows.own),
        "mlp": 6 * finished * hidden * sizes.intermediate_size,
    }
    norm = _WIDE + item
    extra = (width - hidden) * (_WIDE + item)  # [embedding; state] and the norm of its other half
    head_norm = (projected * q + keyed * kv) * _WIDE if head_norms else 0.0
    kept = {
        "projections": projected * (hidden * norm + extra) + head_norm + finished * q * item,
        "attention": _attention_bytes(sizes, rows, work),
        "mlp": finished * (hidden * (norm + item) + 4 * sizes.intermediate_size * item),
    }
    working = 3 * slots * max(sizes.intermediate_size, 2 * q) * item
    return StepCost(flops, {name: 2 * v for name, v in flops.items()}, kept, working)


def computed_again(
    cost: StepCost, inputs: float, *, outside: StepCost | None = None, gone: float = 0.0
) -> StepCost:
    """Return the cost of a part that keeps its inputs and runs again in the backward pass.

    Args:
        cost: of the part, as if everything were kept.
        inputs: bytes of what it keeps.
        outside: what of `cost` is computed before the part, once, and kept.
        gone: bytes kept by what comes after the part, which its backward pass finds freed.
    """
    outside = outside or StepCost()
    before = outside.forward_flops
    again = {name: v - before.get(name, 0.0) for name, v in cost.forward_flops.items()}
    return StepCost(
        cost.forward_flops,
        _added(cost.backward_flops, again),
        _added(outside.kept_bytes, {"layer inputs": inputs}),
        cost.kept - outside.kept + cost.working_bytes - gone,
    )


def dense_cost(
    part: str, rows: float, inner: int, columns: int, *, kept_bytes: float, input_gradient: bool
) -> StepCost:
    """Return the cost of one product with a trained matrix.

    Args:
        part: where it is booked.
        rows: how many.
        inner: width in.
        columns: width out.
        kept_bytes: what it keeps for the backward pass.
        input_gradient: whether its input has a gradient.
    """
    flops = 2.0 * rows * inner * columns
    return StepCost({part: flops}, {part: flops * (2 if input_gradient else 1)}, {part: kept_bytes})


def head_cost(
    slots: float,
    width: int,
    vocabulary: int,
    terms: Mapping[str, float],
    work: Workload,
    *,
    trained: bool = False,
    teacher_width: int | None = None,
) -> StepCost:
    """Return the cost of the draft head and its losses (`speculators.modules.chunked_head`).

    The gradient towards the states is formed in the forward pass.

    Args:
        slots: rows that go through the head.
        width: of the head's input.
        vocabulary: rows of the head.
        terms: active terms of the loss.
        work: the row.
        trained: whether the head moves.
        teacher_width: of the verifier's head; None: the same.
    """
    once = 2.0 * width * vocabulary
    compares = any(name != "ce" for name in terms)
    tiled = set(terms) <= {"ce", "kl"} and not trained
    # Tiled: the mean row of the head; for kl also the verifier's, and the states.
    kept = slots * width * ((2 * _WIDE if compares else _WIDE) if tiled else work.item)
    # In rows of the draft head's width.
    bases = work.bases(slots) * (teacher_width or width) / width if compares else 0.0
    forward, backward = slots * (2 if tiled or not trained else 1) + bases, 0.0
    if tiled:
        forward += bases
        if work.accelerator:
            logits = min(512 * 2**20 / work.item, min(slots, 8192) * vocabulary)
            working = logits * BYTES_PER_LOGIT[work.item][compares]
        else:
            tile = min(4 * 2**20, 4.0 * min(slots, 512) * vocabulary)
            working = (2.5 if compares else 1.4) * tile
        working += 4 * _WIDE * slots * width if compares else 0.0
    else:
        most = 512 * 2**20 if work.accelerator else 8 * 2**20
        working = _LOGIT_COPIES * min(most, 4.0 * slots * vocabulary)
    if trained:
        backward = 3 * slots + bases
        kept += width * vocabulary * work.item
        working += width * vocabulary * _WIDE  # its gradient
    return StepCost({"head": forward * once}, {"head": backward * once}, {"head": kept}, working)


def common_cost(
    config: DraftLayersConfig, sizes: LayerSizes, num_draft_tokens: int, work: Workload
) -> StepCost:
    """Return a first estimate for any stack of decoder layers that drafts from supervised tokens.

    Every supervised token (at most `max_anchors`, where there is such a setting) starts a block,
    and whole layers see the row and all slots. An algorithm that does less says so itself.
    """
    states = len(config.target_layer_ids or ())
    starts = min(work.num_supervised, getattr(config, "max_anchors", work.num_supervised))
    slots = starts * num_draft_tokens
    length, item = work.sequence_length, work.item
    cost = dense_cost(
        "context", length, states * sizes.hidden_size, sizes.hidden_size,
        kept_bytes=length * sizes.hidden_size * (_WIDE + item), input_gradient=False,
    )  # fmt: skip
    rows = LayerRows(length + slots, 0, work.visible_tokens, num_draft_tokens)
    for _ in range(config.num_layers):
        cost += layer_cost(sizes, rows, work)
    return cost


def _attention_bytes(sizes: LayerSizes, rows: LayerRows, work: Workload) -> float:
    heads, dim = sizes.num_attention_heads, sizes.head_dim
    q, kv = heads * dim, sizes.num_key_value_heads * dim
    own = rows.slots * (1 if rows.own_keys else rows.own)
    if work.fused_attention:
        kept = rows.slots * 2 * q + 2 * (own + rows.context) * kv
        return kept * work.item + rows.slots * heads * _WIDE
    kept = rows.slots * (2 * q + heads * (rows.own + 2)) + 2 * (own + rows.context) * kv
    scores = heads * rows.slots * rows.visible
    return (kept + (scores if scores * _WIDE <= _KEPT_SCORES else 0)) * _WIDE


def _added(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, float]:
    return {**a, **{name: a.get(name, 0.0) + value for name, value in b.items()}}
