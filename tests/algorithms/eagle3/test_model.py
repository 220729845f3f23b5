"""Eagle-3 against its specification written down again, with dense masks and full logits."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from algorithms.eagle3.plain import PlainEagle3
from algorithms.plain_losses import slot_losses
from algorithms.rows import STEP, make_batch, make_spec
from attention.test_sdpa import LargestTensor
from speculators.algorithms.eagle3.config import Eagle3Config, TttTokens
from speculators.algorithms.eagle3.fused_config import LayerType
from speculators.algorithms.eagle3.model import Eagle3Drafter
from speculators.config.schema import AttentionBackend, CeLabels, LossWeights
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.modules import chunked_head, partition
from speculators.verifier.head import VerifierHead

REDUCED = DraftVocabulary(torch.arange(5, 95, 3), 96)
SWITCHES: list[dict[str, Any]] = [
    {},
    {"num_layers": 2, "layer_type": LayerType.llama},
    {"sliding_window": 5, "num_layers": 2},
    {"sliding_window": 2},
    {"norm_before_residual": False, "norm_output": True, "norm_before_fc": True},
    {"fc_norm": True, "ttt_steps": 5, "layer_type": LayerType.llama},
    {"activation_checkpointing": True, "num_layers": 2},
    {"ttt_tokens": TttTokens.own, "num_layers": 2},
    {"ttt_tokens": TttTokens.own, "activation_checkpointing": True, "norm_output": True},
]
LOSSES = ["kl", "reverse_kl", "js", "tv", "lk_alpha", "lk_hybrid"]


def make(
    vocabulary: DraftVocabulary | None = None,
    attention: AttentionBackend = AttentionBackend.auto,
    **changes: Any,
) -> tuple[Eagle3Drafter, VerifierHead]:
    """Return a drafter in fp64 with weights of visible size, and the teacher."""
    spec, g = make_spec(), torch.Generator().manual_seed(3)
    embed, head = (torch.randn(96, 32, generator=g) for _ in range(2))
    vocabulary = vocabulary or DraftVocabulary.full(96)
    values: dict[str, Any] = {"num_layers": 1, "target_layer_ids": [1, 4, 6]}
    values |= {"loss": LossWeights(kl=1.0), "draft_vocab_size": len(vocabulary)}
    config = Eagle3Drafter.resolve(Eagle3Config(**values | changes), spec, [])
    drafter = Eagle3Drafter.build(
        config, spec, vocabulary, embed_tokens=embed.double(), lm_head=head.double() * 0.2,
        generator=g, attention=attention,
    ).double()  # fmt: skip
    with torch.no_grad():
        for parameter in drafter.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter.add_(noise * (0.15 if parameter.ndim == 2 else 0.1))
    return drafter, VerifierHead(spec, torch.rand(32, generator=g) + 0.5, head.double() * 0.2)


def plain(drafter: Eagle3Drafter) -> PlainEagle3:
    config = drafter.config
    return PlainEagle3(
        dict(drafter.named_parameters()), drafter.embed_tokens, drafter.lm_head.weight,
        num_layers=config.num_layers, head_dim=8, steps=config.ttt_steps,
        window=config.sliding_window, norm_before_residual=config.norm_before_residual,
        norm_output=config.norm_output,
        own_tokens=drafter.token_ids if config.ttt_tokens is TttTokens.own else None,
    )  # fmt: skip


def by_definition(
    drafter: Eagle3Drafter, teacher: VerifierHead, batch: PackedBatch, outputs: list[Tensor]
) -> tuple[Tensor, int]:
    """Return the summed loss and the number of chains, row by row (sections 4 and 6)."""
    config, rows = drafter.config, drafter.vocabulary.ids
    table = drafter.vocabulary.draft_ids()
    documents, mask = batch.document_ids.tolist(), batch.loss_mask.tolist()
    total, chains = torch.zeros((), dtype=torch.float64), 0
    for i in range(len(documents)):
        for t, out in enumerate(outputs):
            needed = range(i + 1, i + 3 + t)
            if needed[-1] >= len(documents) or documents[i] < 0:
                continue
            if not all(documents[j] == documents[i] and mask[j] for j in needed):
                continue
            z = out[i] @ drafter.lm_head.weight.T
            y = teacher.logits(batch.last[i + 1 + t][None], rows)[0].double()
            label = int(table[batch.input_ids[i + 2 + t]])
            if config.ce_labels is CeLabels.verifier:
                label = int(y.argmax())
            values = slot_losses(z, y, label)
            weight = config.ttt_decay**t
            only_ce = set(config.loss.active()) == {"ce"}
            if only_ce and label < 0:
                continue
            chains += t == 0
            total = total + weight * sum(w * values[n] for n, w in config.loss.active().items())
    return total, chains


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_loss_and_gradients_equal_the_specification(switches: dict[str, Any]) -> None:
    drafter, teacher = make(ttt_decay=0.8, **switches)
    batch = make_batch((14, 9), dtype=torch.float64)
    found = drafter.compute_loss(batch, teacher, STEP)
    total, chains = by_definition(drafter, teacher, batch, plain(drafter).outputs(batch))
    torch.testing.assert_close(found.loss_sum, total, atol=1e-6, rtol=1e-6)
    assert found.divisor == chains == found.counts["accuracy_1"]
    parameters = list(drafter.parameters())
    torch.testing.assert_close(
        torch.autograd.grad(found.loss_sum, parameters),
        torch.autograd.grad(total, parameters),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("labels", CeLabels)
@pytest.mark.parametrize("loss", [{"ce": 1.0}, *({"ce": 0.4, n: 1.0} for n in LOSSES)], ids=str)
@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_every_loss_over_a_reduced_vocabulary(
    loss: dict[str, float], labels: CeLabels, *, trained: bool
) -> None:
    """The trained head's weights get their gradients too; later steps read the drafter's tokens."""
    drafter, teacher = make(
        REDUCED,
        loss=LossWeights(**loss),
        ce_labels=labels,
        train_lm_head=trained,
        ttt_tokens=TttTokens.own,
    )
    batch = make_batch((14, 9), dtype=torch.float64)
    found = drafter.compute_loss(batch, teacher, STEP)
    total, chains = by_definition(drafter, teacher, batch, plain(drafter).outputs(batch))
    torch.testing.assert_close(found.loss_sum, total, atol=1e-6, rtol=1e-6)
    assert found.divisor == chains
    parameters = drafter.trainable_parameters()
    assert ("lm_head.weight" in parameters) is trained
    torch.testing.assert_close(
        torch.autograd.grad(found.loss_sum, list(parameters.values())),
        torch.autograd.grad(total, list(parameters.values())),
        atol=1e-5, rtol=1e-5,
    )  # fmt: skip


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_flex_equals_the_specification(
    switches: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(flag, True)
    drafter, teacher = make(attention=AttentionBackend.flex, ttt_decay=0.8, **switches)
    batch = make_batch((14, 9), dtype=torch.float64)
    with torch.no_grad():
        found = drafter.compute_loss(batch, teacher, STEP)
        total, _ = by_definition(drafter, teacher, batch, plain(drafter).outputs(batch))
    torch.testing.assert_close(found.loss_sum, total, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_a_session_drafts_what_batched_drafting_does(switches: dict[str, Any]) -> None:
    drafter, _ = make(REDUCED, **switches)
    batch = make_batch((30,), padding=0, dtype=torch.float64)
    session, at = drafter.new_session(), 0
    for step in (6, 1, 3, 1, 4):
        end = at + step
        proposal = session.propose(batch.aux[at:end], batch.input_ids[at + 1 : end + 1])
        at = end
        assert torch.equal(proposal.tokens, drafter.draft(batch, torch.tensor([end]))[0])


def test_worked_example_of_supervision() -> None:
    """Specification, section 4: six tokens, the last four written by the verifier."""
    drafter, teacher = make()
    batch = make_batch((6,), padding=0, prompt=2, dtype=torch.float64)
    assert drafter.start_candidates(batch).nonzero().flatten().tolist() == [2, 3, 4]
    out = drafter.compute_loss(batch, teacher, STEP)
    assert [int(out.counts[f"accuracy_{k}"]) for k in (1, 2, 3)] == [3, 2, 1]
    assert (out.divisor, out.counts["prefix_1"]) == (3, 1)


def test_supervision_ends_where_a_user_speaks_again() -> None:
    drafter, teacher = make()
    batch = make_batch((20,), padding=0, prompt=4, dtype=torch.float64)
    mask = batch.loss_mask.clone()
    mask[11:14] = False
    out = drafter.compute_loss(replace(batch, loss_mask=mask), teacher, STEP)
    # Spans 4..10 and 14..19 of 7 and 6 tokens: 6 + 5 starts, one less at every step.
    assert [int(out.counts[f"accuracy_{k}"]) for k in (1, 2, 3)] == [11, 9, 7]


def test_own_tokens_are_what_drafting_feeds_back() -> None:
    """Where the drafter is right, both ways of training are one; elsewhere they differ."""
    drafter, teacher = make(ttt_tokens=TttTokens.own)
    batch = make_batch((30,), padding=0, dtype=torch.float64)
    start = 12
    for _ in range(3):  # let the data be what the drafter says after this start
        ids = batch.input_ids.clone()
        ids[start + 1 : start + 4] = drafter.draft(batch, torch.tensor([start]))[0]
        batch = replace(batch, input_ids=ids)
    mask = torch.zeros_like(batch.loss_mask)
    mask[start : start + 4] = True
    batch = replace(batch, loss_mask=mask)
    own = drafter.compute_loss(batch, teacher, STEP)
    drafter.config = replace(drafter.config, ttt_tokens=TttTokens.data)
    forced = drafter.compute_loss(batch, teacher, STEP)
    assert own.sums["prefix_3"] == own.counts["prefix_3"] == 1
    first = [o.sums["accuracy_1"] for o in (own, forced)]
    assert first[0] == first[1]
    other = make_batch((30,), padding=0, seed=5, dtype=torch.float64)
    data = drafter.compute_loss(other, teacher, STEP).loss_sum
    drafter.config = replace(drafter.config, ttt_tokens=TttTokens.own)
    assert not torch.equal(drafter.compute_loss(other, teacher, STEP).loss_sum, data)


def test_step_accuracies_under_the_names_of_the_field() -> None:
    drafter, teacher = make()
    out = drafter.compute_loss(make_batch(dtype=torch.float64), teacher, STEP)
    for t in range(3):
        prefix = (out.sums[f"prefix_{t + 1}"], out.counts[f"prefix_{t + 1}"])
        assert (out.sums[f"full_acc_{t}"], out.counts[f"full_acc_{t}"]) == prefix
        before = out.sums[f"prefix_{t}"] if t else out.counts["prefix_1"]
        assert (out.sums[f"cond_acc_{t}"], out.counts[f"cond_acc_{t}"]) == (prefix[0], before)


def test_more_tokens_can_be_drafted_than_steps_were_trained() -> None:
    drafter, _ = make(num_draft_tokens=7)
    batch = make_batch((20,), padding=0, dtype=torch.float64)
    short, _ = make(num_draft_tokens=3)
    starts = torch.tensor([4, 9])
    drafted = drafter.draft(batch, starts)
    assert drafted.shape == (2, 7)
    assert torch.equal(drafted[:, :3], short.draft(batch, starts))


def held_bytes(drafter: Eagle3Drafter, batch: PackedBatch, teacher: VerifierHead) -> int:
    """Return the bytes a forward pass allocates and does not free while its result is held."""
    drafter.compute_loss(batch, teacher, STEP)  # what is kept for ever is allocated by now
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        out = drafter.compute_loss(batch, teacher, STEP)
    assert out.loss_sum.requires_grad
    return sum(event.self_cpu_memory_usage for event in profiler.key_averages())


def test_memory_grows_linearly_in_steps_and_checkpointing_saves_most_of_it() -> None:
    batch = make_batch((120,), padding=0, dtype=torch.float64)
    grown: dict[bool, list[int]] = {}
    for recompute in (False, True):
        kept = []
        for steps in (2, 4, 6, 8):
            drafter, teacher = make(ttt_steps=steps, activation_checkpointing=recompute)
            kept.append(held_bytes(drafter, batch, teacher))
        grown[recompute] = [b - a for a, b in pairwise(kept)]
    assert max(grown[True]) < 1.15 * min(grown[True])
    assert max(grown[True]) < 0.4 * min(grown[False])


@pytest.mark.parametrize("trained", [False, True], ids=["frozen head", "trained head"])
def test_full_logits_never_exist(monkeypatch: pytest.MonkeyPatch, *, trained: bool) -> None:
    """No tensor of a forward and backward pass is as large as one row of logits per token."""
    monkeypatch.setitem(chunked_head._CHUNK_BYTES, "cpu", 32 * 96 * 4)
    monkeypatch.setitem(partition._TILE_ROWS, "cpu", 32)
    drafter, teacher = make(train_lm_head=trained)
    batch = make_batch((400,), padding=0, dtype=torch.float64)
    with LargestTensor() as mode:
        drafter.compute_loss(batch, teacher, STEP).loss_sum.backward()
    slots = 3 * 395
    assert mode.elements < slots * 96
