"""What a training forward tells about itself: sums and counts that add up over rows and ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from speculators.algorithms.slots import SlotPlan

Metrics = tuple[dict[str, Tensor], dict[str, Tensor]]


@torch.no_grad()
def training_metrics(
    plan: SlotPlan,
    supervised: Bool[Tensor, "anchor block"],
    right: Bool[Tensor, "anchor block"],
    terms: Mapping[str, Float[Tensor, "slot"]],
    labelled: Bool[Tensor, "slot"],
) -> Metrics:
    """Return numerators and denominators by name, on the device of `right`.

    All of these are over the blocks of this forward pass, whose anchors lie elsewhere than those
    decoding visits, and against the tokens of the data: they tell whether training works, not what
    a served drafter accepts.

    * `loss_<term>`: each term, over the slots that have it
    * `accuracy`, `accuracy_<k>`: supervised slots whose drafted token is the token in the data; one
      that cannot be drafted is a miss
    * `prefix_<k>`: blocks with all slots supervised that are right from slot 1 to k
    * `block_acceptance_length`: 1 + length of the right prefix, over the same blocks
    * `coverage`: supervised tokens that some slot predicts
    * `slots_per_row`: supervised slots

    Args:
        plan: the slots.
        supervised: as in the plan, on the device.
        right: slots whose drafted token is the token in the data.
        terms: each term at the slots of the plan.
        labelled: slots that have a label; the others have no `ce`.
    """
    like = right
    supervised_slots = supervised[:, 1:].sum(0)
    right_slots = (right & supervised)[:, 1:].sum(0)
    complete = supervised[:, 1:].all(-1)
    prefix = (right[:, 1:].cumprod(-1) * complete[:, None]).sum(0)
    num_complete = complete.sum()

    sums = {"accuracy": right_slots.sum(), "block_acceptance_length": num_complete + prefix.sum()}
    counts = {"accuracy": supervised_slots.sum(), "block_acceptance_length": num_complete}
    for k, parts in enumerate(zip(right_slots, supervised_slots, prefix, strict=True), start=1):
        sums[f"accuracy_{k}"], counts[f"accuracy_{k}"], sums[f"prefix_{k}"] = parts
        counts[f"prefix_{k}"] = num_complete
    for name, term in terms.items():
        sums[f"loss_{name}"] = term.sum()
        counts[f"loss_{name}"] = _number(len(term), like) if name != "ce" else labelled.sum()
    sums["coverage"] = _number(plan.num_targets, like)
    counts["coverage"] = _number(plan.num_supervised, like)
    sums["slots_per_row"], counts["slots_per_row"] = supervised_slots.sum(), _number(1, like)
    return sums, counts


def _number(value: int, like: Tensor) -> Tensor:
    return torch.full((), value, device=like.device)
