"""P-EAGLE against its definition: Eagle-3's dense oracle, later slots read a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.eagle3.plain import PlainEagle3
from algorithms.plain_losses import slot_losses
from algorithms.rows import STEP, make_batch, make_spec
from speculators.algorithms.eagle3.fused_config import LayerType
from speculators.algorithms.peagle.config import PEagleConfig
from speculators.algorithms.peagle.model import PEagleDrafter
from speculators.config.schema import AttentionBackend, LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import CheckpointError
from speculators.verifier.head import VerifierHead

SWITCHES: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "layer_type": LayerType.llama},
    {"num_layers": 2, "sliding_window": 3},
    {"norm_before_residual": False, "norm_before_fc": True},
    {"train_lm_head": True, "num_draft_tokens": 6},
    {"loss": LossWeights(ce=1.0), "num_draft_tokens": 1},
]
MASK = 95


@dataclass(frozen=True)
class PlainPEagle(PlainEagle3):
    """Every later slot reads the mask's embedding and one learned state."""

    def read(
        self, batch: PackedBatch, t: int, state: Tensor, found: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        if t == 0:
            return super().read(batch, t, state, found)
        learned = self.weights["mask_hidden"].view(1, -1, state.shape[1])
        return self.embed[MASK].expand_as(state), self.fuse(learned).expand_as(state)


def make(
    attention: AttentionBackend = AttentionBackend.auto, **changes: Any
) -> tuple[PEagleDrafter, VerifierHead]:
    """Return a drafter in fp64 with weights of visible size over 30 tokens, and the teacher."""
    spec, g = make_spec(), torch.Generator().manual_seed(3)
    vocabulary = DraftVocabulary(torch.arange(5, 95, 3), 96)
    embed, head = (torch.randn(96, 32, generator=g).double() for _ in range(2))
    values: dict[str, Any] = {"num_layers": 1, "target_layer_ids": [1, 4, 6], "slot_decay": 0.7}
    values |= {"loss": LossWeights(kl=1.0), "draft_vocab_size": 30, "mask_token_id": MASK}
    drafter = PEagleDrafter.build(
        PEagleDrafter.resolve(PEagleConfig(**values | changes), spec, [MASK]), spec, vocabulary,
        embed_tokens=embed, lm_head=head * 0.2, generator=g, attention=attention,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in drafter.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter.add_(noise * (0.15 if parameter.ndim == 2 else 0.1))
    return drafter, VerifierHead(spec, torch.rand(32, generator=g) + 0.5, head * 0.2)


def by_definition(
    drafter: PEagleDrafter, teacher: VerifierHead, batch: PackedBatch
) -> tuple[Tensor, float]:
    """Return the weighted sum of losses and of weights, slot by slot."""
    config, table = drafter.config, drafter.vocabulary.draft_ids()
    plain = PlainPEagle(
        dict(drafter.named_parameters()), drafter.embed_tokens, drafter.lm_head.weight,
        num_layers=config.num_layers, head_dim=8, steps=config.num_draft_tokens,
        window=config.sliding_window, norm_before_residual=config.norm_before_residual,
    )  # fmt: skip
    outputs = plain.outputs(batch)
    mask, documents = batch.loss_mask.tolist(), batch.document_ids.tolist()
    total, weights = torch.zeros((), dtype=torch.float64), 0.0
    (name,) = config.loss.active()
    for i in range(len(mask) - 2):
        if not (mask[i + 1] and mask[i + 2] and documents[i] == documents[i + 2] >= 0):
            continue
        for k, hidden in enumerate(outputs):
            at = i + 2 + k
            if at >= len(mask) or not mask[at] or documents[at] != documents[i]:
                continue
            label = int(table[batch.input_ids[at]])
            if name == "ce" and label < 0:
                continue
            z = hidden[i] @ drafter.lm_head.weight.T
            y = teacher.logits(batch.last[at - 1][None], drafter.vocabulary.ids)[0].double()
            total = total + config.slot_decay**k * slot_losses(z, y, label)[name]
            weights += config.slot_decay**k
    return total, weights


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_loss_and_gradients_equal_the_definition(switches: dict[str, Any]) -> None:
    drafter, teacher = make(**switches)
    batch = make_batch((14, 9), dtype=torch.float64)
    found = drafter.compute_loss(batch, teacher, STEP)
    total, weights = by_definition(drafter, teacher, batch)
    torch.testing.assert_close(found.loss_sum, total, atol=1e-6, rtol=1e-6)
    assert float(found.divisor) == pytest.approx(weights)
    parameters = list(drafter.trainable_parameters().values())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss_sum, parameters),
        torch.autograd.grad(total, parameters, allow_unused=True, materialize_grads=True),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_flex_equals_the_definition(
    switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(flag, True)
    drafter, teacher = make(AttentionBackend.flex, **switches)
    batch = make_batch((14, 9), dtype=torch.float64)
    with torch.no_grad():
        found = drafter.compute_loss(batch, teacher, STEP)
        total, _ = by_definition(drafter, teacher, batch)
    torch.testing.assert_close(found.loss_sum, total, atol=1e-6, rtol=1e-6)


def test_settings_the_engine_ignores_are_refused() -> None:
    drafter, _ = make()
    for key in ("fc_norm", "norm_output"):
        with pytest.raises(CheckpointError) as caught:
            PEagleDrafter.config_from_serving(drafter.serving_config() | {key: True})
        assert str(caught.value) == (
            f"config.json: {key}=true: the serving engine ignores it in a peagle drafter"
        )
