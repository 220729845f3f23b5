"""Properties of the drafter (DFlash specification, section 16) and its losses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from algorithms.dflash.plain import plain_dflash
from algorithms.dflash.rows import STEP, make_batch, make_config, make_drafter, make_spec
from speculators.algorithms.base import StepContext
from speculators.algorithms.dflash.config import (
    AnchorStrategy,
    Normalization,
    PositionWeights,
)
from speculators.algorithms.dflash.loss import slot_weights
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.algorithms.noise import noisy
from speculators.algorithms.slots import HostRow
from speculators.config.schema import AttentionBackend, CeLabels, LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import ConfigError
from speculators.training.progress import SHOWN

RULES: list[dict[str, Any]] = [
    {},
    {"sliding_window": 6},
    {"sliding_window": 3, "sliding_causal": True},
    {"sliding_window": 4, "num_sliding_layers": 1},
]
REDUCED = DraftVocabulary(torch.arange(5, 95, 3), 96)


def every_hidden(drafter: DFlashDrafter, batch: PackedBatch, anchors: list[int]) -> Tensor:
    """Return the head's input at slots 1.. of a block after each anchor."""
    size = drafter.config.block_size
    layout = drafter._layout(HostRow.of(batch), torch.tensor(anchors), 0)
    keep = torch.arange(len(anchors) * size).view(-1, size)[:, 1:].flatten()
    states = batch.aux[: layout.sequence_length]
    hidden = drafter._hidden(states, batch.input_ids, layout, keep)
    return hidden.view(len(anchors), size - 1, -1)


def test_equals_the_plain_step() -> None:
    """Loss and every gradient against the benchmarks' plain version, which shares no code."""
    drafter, teacher = make_drafter(dtype=torch.float64, scale=0.2)
    batch = make_batch(dtype=torch.float64)
    found = drafter.compute_loss(batch, teacher, STEP)
    anchors = drafter._choose_anchors(batch, HostRow.of(batch), STEP)
    weights = slot_weights(PositionWeights.exp, 5, drafter.config.loss_decay_gamma or 0)
    rows = (batch.input_ids, batch.loss_mask, batch.document_ids, batch.position_ids)
    loss = plain_dflash(drafter).loss(batch.aux.flatten(1), *rows, anchors, weights, 7)
    torch.testing.assert_close(found.loss_sum, loss, atol=1e-6, rtol=1e-6)
    parameters = list(drafter.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss_sum, parameters), torch.autograd.grad(loss, parameters),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_blocks_do_not_see_their_future(rules: dict[str, Any]) -> None:
    """Perturbing token or state p changes no block with anchor <= p, but slot 0's token at p."""
    drafter, _ = make_drafter(make_config(**rules))
    batch = make_batch((24, 16))
    anchors = [6, 12, 15, 27, 33]
    before = every_hidden(drafter, batch, anchors)
    for p in (11, 12, 30):
        aux = batch.aux.clone()
        aux[p] += 1.0
        after = every_hidden(drafter, replace(batch, aux=aux), anchors)
        changed = (after != before).flatten(1).any(1).tolist()
        document = batch.document_ids[p]
        near = rules.get("sliding_window", 10**9) * drafter.config.num_layers
        for anchor, moved in zip(anchors, changed, strict=True):
            may = anchor > p and batch.document_ids[anchor] == document
            assert not moved or may
            if may and rules.get("num_sliding_layers") is None and anchor - p < near // 3:
                assert moved
        ids = batch.input_ids.clone()
        ids[p] = 50
        after = every_hidden(drafter, replace(batch, input_ids=ids), anchors)
        changed = (after != before).flatten(1).any(1).tolist()
        assert changed == [anchor == p for anchor in anchors]


@pytest.mark.parametrize("rules", RULES, ids=str)
def test_packed_equals_alone(rules: dict[str, Any]) -> None:
    """A document's blocks are the same wherever it is packed; order of blocks does not matter."""
    drafter, _ = make_drafter(make_config(**rules))
    batch = make_batch((20, 13, 9))
    anchors = [24, 26, 31]
    packed = every_hidden(drafter, batch, [5, 11, *anchors, 38])[2:5]
    inside = slice(20, 33)
    alone = PackedBatch(
        *(
            getattr(batch, name)[inside]
            for name in ("input_ids", "loss_mask", "document_ids", "position_ids", "aux", "last")
        )
    )
    single = every_hidden(drafter, alone, [a - 20 for a in anchors])
    torch.testing.assert_close(packed, single, atol=2e-5, rtol=2e-5)
    for index, anchor in enumerate(anchors):
        one = every_hidden(drafter, batch, [anchor])
        torch.testing.assert_close(one[0], single[index], atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("rules", RULES[:3], ids=str)
def test_flex_equals_sdpa(rules: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    module = "torch.nn.attention.flex_attention"
    monkeypatch.setattr(f"{module}._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
    batch = make_batch()
    hidden = []
    for backend in (AttentionBackend.flex, AttentionBackend.sdpa):
        drafter, _ = make_drafter(make_config(**rules), attention=backend)
        with torch.no_grad():
            hidden.append(every_hidden(drafter, batch, [5, 12, 30, 40]))
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-4, rtol=1e-4)


def test_flex_on_a_cpu_cannot_train() -> None:
    drafter, teacher = make_drafter(attention=AttentionBackend.flex)
    with pytest.raises(ConfigError, match="FlexAttention has no backward pass on a CPU"):
        drafter.compute_loss(make_batch(), teacher, STEP)


def test_draft_is_what_training_would_call_right() -> None:
    drafter, _ = make_drafter(vocabulary=REDUCED, config=make_config(draft_vocab_size=30))
    batch = make_batch()
    starts = drafter.start_candidates(batch).nonzero().flatten()
    drafted = drafter.draft(batch, starts)
    logits = every_hidden(drafter, batch, starts.tolist()) @ drafter.lm_head.weight.T
    assert torch.equal(drafted, REDUCED.ids[logits.argmax(-1)])
    assert drafter.draft(batch, starts[:0]).shape == (0, 4)


def test_same_step_same_loss_and_other_step_other_anchors() -> None:
    drafter, teacher = make_drafter(make_config(input_noise=0.05))
    batch = make_batch()
    losses = [drafter.compute_loss(batch, teacher, StepContext(1, s)).loss_sum for s in (4, 4, 5)]
    assert torch.equal(losses[0], losses[1])
    assert not torch.equal(losses[0], losses[2])


def test_validation_depends_on_nothing_random() -> None:
    drafter, teacher = make_drafter(make_config(input_noise=0.05))
    drafter.eval()
    batch = make_batch()
    losses = [drafter.compute_loss(batch, teacher, StepContext(s, s)).loss_sum for s in (1, 2)]
    assert torch.equal(*losses)


def test_noise_is_uniform_and_only_on_what_the_drafter_reads() -> None:
    states = torch.zeros(40, 3, 32)
    noise = noisy(states, 0.05, STEP)
    assert noise.abs().max() <= 0.05
    assert noise.max() > 0.045
    assert noise.std().item() == pytest.approx(0.1 / 12**0.5, rel=0.05)
    assert not states.any()


def test_row_without_candidates_still_has_gradients() -> None:
    drafter, teacher = make_drafter()
    batch = make_batch()
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    out = drafter.compute_loss(batch, teacher, STEP)
    out.loss_sum.backward()
    assert (out.loss_sum.item(), out.divisor.item()) == (0.0, 0.0)
    assert all(p.grad is not None and not p.grad.any() for p in drafter.parameters())
    assert out.counts["accuracy"] == 0


@pytest.mark.parametrize("labels", CeLabels)
@pytest.mark.parametrize("vocabulary", [None, REDUCED], ids=["full", "reduced"])
@pytest.mark.parametrize(
    "loss", [{"ce": 1.0}, {"kl": 1.0}, {"ce": 0.4, "tv": 1.0}, {"ce": 1.0, "kl": 0.5}], ids=str
)
def test_loss_against_the_definition(
    loss: dict[str, float], vocabulary: DraftVocabulary | None, labels: CeLabels
) -> None:
    config = make_config(
        loss=LossWeights(**loss), ce_labels=labels, normalization=Normalization.slots,
        draft_vocab_size=len(vocabulary) if vocabulary else None, max_anchors=9,
    )  # fmt: skip
    drafter, teacher = make_drafter(
        config, vocabulary=vocabulary, dtype=torch.float64, scale=0.2, logit_softcap=3.0
    )
    drafter.eval()
    batch = make_batch(dtype=torch.float64)
    out = drafter.compute_loss(batch, teacher, STEP)
    total, count, right = _by_definition(drafter, teacher, batch, loss, labels)
    torch.testing.assert_close(out.loss_sum, total, atol=1e-6, rtol=1e-6)
    assert out.divisor == count
    assert (out.sums["accuracy"], out.counts["accuracy"]) == right


def _by_definition(
    drafter: DFlashDrafter, teacher: Any, batch: PackedBatch, loss: dict[str, float], kind: CeLabels
) -> tuple[Tensor, int, tuple[int, int]]:
    """Slot by slot: DFlash specification, sections 6 to 9."""
    anchors = drafter._choose_anchors(batch, HostRow.of(batch), STEP).tolist()
    hidden = every_hidden(drafter, batch, anchors)
    rows, table = drafter.vocabulary.ids, drafter.vocabulary.draft_ids()
    gamma = drafter.config.loss_decay_gamma
    assert gamma is not None
    total, count, right, supervised = torch.zeros((), dtype=torch.float64), 0, 0, 0
    for block, a in zip(hidden, anchors, strict=True):
        for k in range(1, drafter.config.block_size):
            p = a + k
            if p >= len(batch.input_ids) or batch.document_ids[p] != batch.document_ids[a]:
                continue
            if not batch.loss_mask[p]:
                continue
            supervised += 1
            z = block[k - 1] @ teacher.lm_head[rows].T
            y = teacher.logits(batch.last[p - 1][None], rows)[0].double()
            label = int(table[batch.input_ids[p]])
            right += int(label >= 0 and int(z.argmax()) == label)
            if kind is CeLabels.verifier:
                label = int(y.argmax())
            elif label < 0 and set(loss) == {"ce"}:
                continue
            log_q, log_p = z.log_softmax(-1), y.log_softmax(-1)
            overlap = torch.minimum(log_q.exp(), log_p.exp()).sum()
            terms = {
                "ce": -log_q[label] if label >= 0 else torch.zeros(()),
                "kl": (log_p.exp() * (log_p - log_q)).sum(),
                "tv": 1 - overlap,
            }
            weight = float(torch.exp(torch.tensor(-(k - 1) / gamma)))
            total = total + weight * sum(w * terms[name] for name, w in loss.items())
            count += 1
    return total, count, (right, supervised)


def test_dpace_weights_follow_the_losses() -> None:
    drafter, teacher = make_drafter(
        make_config(position_weights=PositionWeights.dpace, dpace_alpha=1.0), scale=0.2
    )
    out = drafter.compute_loss(make_batch((30,), padding=0, prompt=2), teacher, STEP)
    # With alpha 1 every slot survives: a slot weighs the number of slots from it to the end.
    uniform, _ = make_drafter(make_config(position_weights=PositionWeights.uniform), scale=0.2)
    plain = uniform.compute_loss(make_batch((30,), padding=0, prompt=2), teacher, STEP)
    slots = [out.counts[f"accuracy_{k}"].item() for k in range(1, 5)]
    assert out.divisor.item() == sum(k * n for k, n in enumerate(slots, start=1))
    assert plain.divisor.item() == sum(slots)


def test_metrics_add_up() -> None:
    drafter, teacher = make_drafter(scale=0.2)
    batch = make_batch()
    out = drafter.compute_loss(batch, teacher, STEP)
    assert out.sums.keys() == out.counts.keys()
    assert all(out.sums[k] <= out.counts[k] for k in out.sums if k.startswith(("acc", "prefix")))
    assert out.sums["coverage"] <= out.counts["coverage"] == batch.loss_mask.sum()
    length = out.sums["block_acceptance_length"] / out.counts["block_acceptance_length"]
    prefixes = sum(out.sums[f"prefix_{k}"] / out.counts[f"prefix_{k}"] for k in range(1, 5))
    assert float(length) == pytest.approx(1 + float(prefixes))
    assert {name for kind, name in SHOWN if kind == "train"} <= {"loss", *out.sums}


def test_accuracy_is_that_of_drafting() -> None:
    """Make the drafted tokens of one block the data: its slots, and only they, become right."""
    drafter, teacher = make_drafter(make_config(max_anchors=1), scale=0.2)
    drafter.eval()
    batch = make_batch((20,), padding=0)
    (anchor,) = drafter._choose_anchors(batch, HostRow.of(batch), STEP).tolist()
    drafted = drafter.draft(batch, torch.tensor([anchor]))[0]
    for right in (4, 2):
        ids = batch.input_ids.clone()
        ids[anchor + 1 : anchor + 1 + right] = drafted[:right]
        out = drafter.compute_loss(replace(batch, input_ids=ids), teacher, STEP)
        assert (out.sums["accuracy"], out.counts["accuracy"]) == (right, 4)
        assert out.sums["block_acceptance_length"] == 1 + right
        assert [int(out.sums[f"prefix_{k}"]) for k in range(1, 5)] == [1] * right + [0] * (
            4 - right
        )


def test_walk_anchors_train() -> None:
    drafter, teacher = make_drafter(make_config(anchor_strategy=AnchorStrategy.walk))
    out = drafter.compute_loss(make_batch(), teacher, STEP)
    out.loss_sum.backward()
    assert out.counts["accuracy"] > 0
    nothing = replace(make_batch(), loss_mask=torch.zeros(48, dtype=torch.bool))
    assert drafter.compute_loss(nothing, teacher, STEP).divisor == 0


def test_bf16_states_with_fp32_weights_and_autocast() -> None:
    drafter, teacher = make_drafter(scale=0.2)
    exact = drafter.compute_loss(make_batch(), teacher, STEP).loss_sum
    batch = make_batch(dtype=torch.bfloat16)
    torch.testing.assert_close(
        drafter.compute_loss(batch, teacher, STEP).loss_sum, exact, rtol=0.02, atol=0
    )
    with torch.autocast("cpu", torch.bfloat16):
        rough = drafter.compute_loss(batch, teacher, STEP).loss_sum
    rough.backward()
    torch.testing.assert_close(rough, exact, rtol=0.03, atol=0)
    assert all(p.grad is not None and p.grad.dtype is torch.float32 for p in drafter.parameters())


@pytest.mark.parametrize("vocabulary", [None, REDUCED], ids=["full", "reduced"])
def test_saved_tensors(vocabulary: DraftVocabulary | None) -> None:
    """Names and shapes of the DFlash specification, section 3."""
    size = len(vocabulary) if vocabulary else None
    drafter, _ = make_drafter(make_config(draft_vocab_size=size), vocabulary=vocabulary)
    wanted: dict[str, tuple[int, ...]] = {
        "fc.weight": (32, 96), "hidden_norm.weight": (32,), "norm.weight": (32,),
    }  # fmt: skip
    for i in range(3):
        wanted |= {
            f"layers.{i}.input_layernorm.weight": (32,),
            f"layers.{i}.post_attention_layernorm.weight": (32,),
            f"layers.{i}.self_attn.q_proj.weight": (32, 32),
            f"layers.{i}.self_attn.k_proj.weight": (16, 32),
            f"layers.{i}.self_attn.v_proj.weight": (16, 32),
            f"layers.{i}.self_attn.o_proj.weight": (32, 32),
            f"layers.{i}.self_attn.q_norm.weight": (8,),
            f"layers.{i}.self_attn.k_norm.weight": (8,),
            f"layers.{i}.mlp.gate_proj.weight": (64, 32),
            f"layers.{i}.mlp.up_proj.weight": (64, 32),
            f"layers.{i}.mlp.down_proj.weight": (32, 64),
        }
    assert set(drafter.trainable_parameters()) == set(wanted)
    if vocabulary is not None:
        wanted |= {"lm_head.weight": (30, 32), "d2t": (30,), "t2d": (96,)}
    found = drafter.saved_tensors()
    assert {name: tuple(t.shape) for name, t in found.items()} == wanted
    if vocabulary is not None:
        assert (found["d2t"].dtype, found["t2d"].dtype) == (torch.int64, torch.bool)
        assert torch.equal(torch.arange(30) + found["d2t"], vocabulary.ids)
    assert drafter.state_dict().keys() == drafter.trainable_parameters().keys()


def test_initial_weights_follow_the_generator() -> None:
    spec, config = make_spec(), make_config()
    embed, head = torch.randn(96, 32), torch.randn(96, 32)

    def build(seed: int) -> DFlashDrafter:
        resolved = DFlashDrafter.resolve(config, spec, [])
        g = torch.Generator().manual_seed(seed)
        return DFlashDrafter.build(
            resolved, spec, DraftVocabulary.full(96), embed_tokens=embed, lm_head=head, generator=g
        )

    first, again, other = (build(seed).saved_tensors() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc.weight"], other["fc.weight"])
    assert first["fc.weight"].std().item() == pytest.approx(0.02, rel=0.1)
    assert bool((first["norm.weight"] == 1).all())
