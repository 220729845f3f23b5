"""DSpark against its definition: the plain DFlash pass, a Markov bias, a confidence."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from algorithms.dflash.plain import plain_dflash
from algorithms.plain_losses import slot_losses
from algorithms.rows import STEP, make_batch, make_spec
from speculators.algorithms.dflash.config import Normalization
from speculators.algorithms.dspark.config import DSparkConfig
from speculators.algorithms.dspark.model import DSparkDrafter
from speculators.algorithms.slots import HostRow
from speculators.config.schema import LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import CheckpointError
from speculators.verifier.head import VerifierHead

SIZE = 4


def make(**changes: Any) -> tuple[DSparkDrafter, VerifierHead]:
    """Return a drafter in fp64 with weights of visible size over 30 tokens, and the teacher."""
    spec, g = make_spec(), torch.Generator().manual_seed(3)
    embed, head = (torch.randn(96, 32, generator=g).double() for _ in range(2))
    values: dict[str, Any] = {"num_layers": 2, "target_layer_ids": [1, 4, 6], "markov_rank": 6}
    values |= {"loss": LossWeights(kl=1.0), "draft_vocab_size": 30, "mask_token_id": 95}
    values |= {"block_size": SIZE, "loss_decay_gamma": 2.0, "max_anchors": 64}
    drafter = DSparkDrafter.build(
        DSparkDrafter.resolve(DSparkConfig(**values | changes), spec, [95]), spec,
        DraftVocabulary(torch.arange(5, 95, 3), 96), embed_tokens=embed, lm_head=head * 0.2,
        generator=g,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in drafter.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter.add_(noise * (0.15 if parameter.ndim == 2 else 0.1))
    return drafter, VerifierHead(spec, torch.rand(32, generator=g) + 0.5, head * 0.2)


def by_definition(
    drafter: DSparkDrafter, teacher: VerifierHead, batch: PackedBatch
) -> tuple[Tensor, list[float]]:
    """Return the total and the weight of each slot, one slot after the other."""
    config, weights = drafter.config, dict(drafter.named_parameters())
    anchors = drafter.start_candidates(batch).nonzero().flatten()
    rows = (batch.input_ids, batch.document_ids, batch.position_ids)
    hidden = plain_dflash(drafter)._hidden(batch.aux.flatten(1), *rows, anchors)
    first, second = (weights[f"markov_head.markov_w{i}.weight"] for i in (1, 2))
    table, (name,) = drafter.vocabulary.draft_ids(), config.loss.active()
    total, counted = torch.zeros((), dtype=torch.float64), []
    for j, anchor in enumerate(anchors.tolist()):
        for k in range(1, SIZE):
            at = anchor + k
            if at >= len(batch.input_ids) or not batch.loss_mask[at]:
                continue
            if batch.document_ids[at] != batch.document_ids[anchor]:
                continue
            state, before = hidden[j * SIZE + k], first[batch.input_ids[at - 1]]
            z = drafter.lm_head.weight @ state + second @ before
            y = teacher.logits(batch.last[at - 1][None], drafter.vocabulary.ids)[0].double()
            losses = slot_losses(z, y, int(table[batch.input_ids[at]]))
            weight = torch.exp(torch.tensor(-(k - 1) / 2.0)).item()
            total = total + weight * losses[name]
            counted.append(weight)
            if config.confidence_weight:
                logit = weights["confidence_head.proj.weight"][0] @ torch.cat([state, before])
                logit = logit + weights["confidence_head.proj.bias"][0]
                accepted = (1 - losses["tv"]).detach()
                of_confidence = F.binary_cross_entropy_with_logits(logit, accepted)
                total = total + weight * config.confidence_weight * of_confidence
    return total, counted


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"confidence_weight": 0.0},
        {"confidence_weight": 0.3, "loss": LossWeights(tv=1.0)},
        {"normalization": Normalization.slots},
    ],
    ids=str,
)
def test_loss_and_gradients_equal_the_definition(changes: dict[str, Any]) -> None:
    drafter, teacher = make(**changes)
    batch = make_batch((14, 9), dtype=torch.float64)
    found = drafter.compute_loss(batch, teacher, STEP)
    total, weights = by_definition(drafter, teacher, batch)
    torch.testing.assert_close(found.loss_sum, total, atol=1e-6, rtol=1e-6)
    by_slots = drafter.config.normalization is Normalization.slots
    assert float(found.divisor) == pytest.approx(len(weights) if by_slots else sum(weights))
    parameters = list(drafter.trainable_parameters().values())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss_sum, parameters), torch.autograd.grad(total, parameters),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip
    assert ("loss_confidence" in found.counts) is (drafter.config.confidence_weight > 0)


def test_each_token_is_drafted_after_the_one_before() -> None:
    drafter, _ = make()
    batch = make_batch((20,), padding=0, dtype=torch.float64)
    layout = drafter._layout(HostRow.of(batch), torch.tensor([9]), 0)
    states = batch.aux[: layout.sequence_length]
    hidden = drafter._hidden(states, batch.input_ids, layout, torch.arange(1, SIZE))
    first, second = drafter.markov_head.markov_w1.weight, drafter.markov_head.markov_w2.weight
    token, wanted = int(batch.input_ids[9]), []
    for state in hidden:
        scores = drafter.lm_head.weight @ state + second @ first[token]
        token = int(drafter.vocabulary.ids[scores.argmax()])
        wanted.append(token)
    assert drafter.draft(batch, torch.tensor([9]))[0].tolist() == wanted


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"markov_head_type": "gated"}, "config.json: markov_head_type=gated: must be vanilla"),
        (
            {"confidence_head_with_markov": False},
            "config.json: confidence_head_with_markov=false: confidence is read off state and "
            "token here",
        ),
        ({"markov_rank": None}, "config.json: markov_rank is missing"),
    ],
)
def test_what_cannot_be_run(change: dict[str, Any], message: str) -> None:
    drafter, _ = make()
    with pytest.raises(CheckpointError) as caught:
        DSparkDrafter.config_from_serving(drafter.serving_config() | change)
    assert str(caught.value) == message
