"""What every drafter is trained on: chosen slots through the chunked head, against data or teacher.

Works on a `SlotPlan`, whatever produced the states: blocks drafted in one pass, or chains drafted
one token at a time.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from speculators.algorithms.slots import SlotPlan
from speculators.config.schema import CeLabels, DraftLayersConfig
from speculators.data.types import PackedBatch
from speculators.modules.chunked_head import ChunkedLoss, Teacher, chunked_head_loss
from speculators.modules.divergences import needs_verifier
from speculators.modules.partition import top_tokens
from speculators.modules.transfer import send
from speculators.verifier.head import VerifierHead


def skips_unreachable(config: DraftLayersConfig) -> bool:
    """Whether a slot whose token cannot be drafted has nothing to train it."""
    return not (config.ce_labels is CeLabels.verifier or needs_verifier(config.loss.active()))


def slot_losses(
    hidden: Float[Tensor, "slot width"],
    head: Float[Tensor, "draft_vocab width"],
    plan: SlotPlan,
    batch: PackedBatch,
    teacher: VerifierHead,
    config: DraftLayersConfig,
    *,
    rows: Float[Tensor, "draft_vocab hidden"],
    weights: Mapping[str, float] | None = None,
) -> ChunkedLoss:
    """Compare the slots of a plan with what the configuration names.

    Args:
        hidden: input of the draft head at the slots of `plan`, in its order.
        head: the draft head; trained if it requires gradients.
        plan: the slots.
        batch: the packed row.
        teacher: the verifier's norm and head.
        config: terms and labels.
        rows: the verifier's head over the draft vocabulary, frozen.
        weights: factor of each term; None: as configured.
    """
    weights = config.loss.active() if weights is None else weights
    targets = send(plan.labels, hidden.device)
    opinion, labels = None, targets
    against_verifier = "ce" in weights and config.ce_labels is CeLabels.verifier
    if needs_verifier(weights) or against_verifier:
        with torch.no_grad():
            states = teacher.normed(batch.last[send(plan.bases, batch.last.device)])
        opinion = Teacher(states, rows, plan.index, teacher.spec.logit_softcap)
    if against_verifier and opinion is not None:
        states = opinion.states.to(opinion.head.dtype)
        labels = top_tokens(states, opinion.head)[send(plan.index, hidden.device)]
    return chunked_head_loss(hidden, head, weights, labels=labels, targets=targets, teacher=opinion)


def labelled(
    plan: SlotPlan, config: DraftLayersConfig, device: torch.device
) -> Bool[Tensor, "slot"]:
    """Mark the slots of a plan that have a label for `ce`."""
    found = send(plan.labels >= 0, device)
    return torch.ones_like(found) if config.ce_labels is CeLabels.verifier else found


def on_grid(
    values: Float[Tensor, "slot"] | Bool[Tensor, "slot"],
    flat: Int[Tensor, "slot"],
    grid: Tensor,
) -> Tensor:
    """Put the values of slots at their places in a grid of the shape of `grid`, 0 elsewhere."""
    return values.new_zeros(grid.numel()).index_put_((flat,), values).view(grid.shape)
