"""What holds for every registered algorithm, found by scanning: a new one is tested unasked."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from algorithms.rows import STEP, make_batch, make_spec
from algorithms.tiny import tiny
from speculators.algorithms.base import Drafter, StepContext
from speculators.algorithms.registry import drafter_class
from speculators.config.composition import compose
from speculators.config.discovery import algorithms
from speculators.config.schema import AttentionBackend, FloatType, LossWeights
from speculators.conversion.layout import read_model, write_model
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.training.live_bytes import LiveBytes
from speculators.verifier.head import VerifierHead
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.weights import VerifierTables

NAMES = list(algorithms())
SMALL: dict[str, Any] = {
    "num_layers": 1,
    "target_layer_ids": [1, 4, 6],
    "loss": LossWeights(kl=1.0),
    "block_size": 5,
    "num_draft_tokens": 4,
    "ttt_steps": 4,
    "max_anchors": 64,
    "markov_rank": 8,
}
VOCABULARIES = [DraftVocabulary.full(96), DraftVocabulary(torch.arange(5, 95, 3), 96)]

ATTENTION = [f"self_attn.{part}_proj" for part in "qkvo"]
LAYER = [
    "input_layernorm", "post_attention_layernorm", *ATTENTION, "self_attn.q_norm",
    "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
]  # fmt: skip
TWO_LAYERS = {"fc.weight", "norm.weight"} | {
    f"layers.{i}.{n}.weight" for i in (0, 1) for n in LAYER
}
EAGLE3 = TWO_LAYERS | {"layers.0.hidden_norm.weight"}
DFLASH = TWO_LAYERS | {"hidden_norm.weight"}
TENSORS = {
    "dflash": DFLASH,
    "dspark": DFLASH
    | {"markov_head.markov_w1.weight", "markov_head.markov_w2.weight"}
    | {"confidence_head.proj.weight", "confidence_head.proj.bias"},
    "eagle3": EAGLE3,
    "peagle": EAGLE3 | {"mask_hidden"},
}
"""What vLLM 0.32 reads for drafters of two layers of Qwen3's kind, beside head and maps."""

every = pytest.mark.parametrize("name", NAMES)
deep = pytest.mark.parametrize("num_layers", [1, 2], ids=["one layer", "two layers"])
vocabularies = pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=["full", "reduced"])


def settings(name: str, **changes: Any) -> Any:
    """Return small settings: those of `SMALL` and `changes` the algorithm has."""
    schema = algorithms()[name].schema
    known = {field.name for field in fields(schema)}
    return schema(**{k: v for k, v in (SMALL | changes).items() if k in known})


def small_tables(spec: VerifierSpec) -> VerifierTables:
    g = torch.Generator().manual_seed(3)
    embed = torch.randn(spec.vocab_size, spec.hidden_size, generator=g)
    head = torch.randn(spec.vocab_size, spec.hidden_size, generator=g) * 0.3
    return VerifierTables(embed, head, torch.ones(spec.hidden_size))


def build(
    name: str,
    vocabulary: DraftVocabulary = VOCABULARIES[0],
    *,
    attention: AttentionBackend = AttentionBackend.auto,
    **changes: Any,
) -> Drafter[Any]:
    """Return a small drafter whose weights are of visible size."""
    spec, kind = make_spec(), drafter_class(name)
    tables, g = small_tables(spec), torch.Generator().manual_seed(5)
    asked = settings(name, draft_vocab_size=len(vocabulary), **changes)
    drafter = kind.build(
        kind.resolve(asked, spec, [95]), spec, vocabulary, embed_tokens=tables.embed_tokens,
        lm_head=tables.lm_head, generator=g, attention=attention,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in drafter.parameters():
            noise = torch.randn(parameter.shape, generator=g)
            parameter.add_(noise * (0.2 if parameter.ndim == 2 else 0.1))
    return drafter


def teacher() -> VerifierHead:
    spec = make_spec()
    return VerifierHead(spec, torch.ones(spec.hidden_size), small_tables(spec).lm_head)


def starts_of(drafter: Drafter[Any], batch: PackedBatch) -> torch.Tensor:
    return drafter.start_candidates(batch).nonzero().flatten()


def cut(batch: PackedBatch, keep: list[slice]) -> PackedBatch:
    """Return the parts of a row one after the other."""
    names = ("input_ids", "loss_mask", "document_ids", "position_ids", "aux", "last")
    parts = {name: torch.cat([getattr(batch, name)[part] for part in keep]) for name in names}
    return replace(batch, **parts)


@every
def test_configuration_composes_and_builds_on_the_tiny_verifier(name: str) -> None:
    config = compose("train", [f"speculator={name}"])
    spec, tables = tiny()[:2]
    kind = drafter_class(name)
    drafter = kind.build(
        kind.resolve(config.speculator, spec, [1270]), spec, DraftVocabulary.full(spec.vocab_size),
        embed_tokens=tables.embed_tokens, lm_head=tables.lm_head,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert drafter.speculators_model_type == config.speculator.name == name
    assert drafter.num_draft_tokens >= 1
    assert sum(p.numel() for p in drafter.trainable_parameters().values()) > 100_000


@every
@deep
def test_a_step_lowers_the_loss(name: str, num_layers: int) -> None:
    drafter, batch = build(name, num_layers=num_layers), make_batch()
    losses = []
    for _ in range(2):
        out = drafter.compute_loss(batch, teacher(), STEP)
        drafter.zero_grad()
        (out.loss_sum / out.divisor).backward()
        losses.append(float(out.loss_sum.detach() / out.divisor))
        parameters = drafter.trainable_parameters().values()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in parameters)
        with torch.no_grad():
            for parameter in parameters:
                parameter.sub_(parameter.grad, alpha=2e-3)  # pyright: ignore
    assert losses[1] < losses[0]


@every
def test_initial_loss_is_finite_at_any_depth(name: str) -> None:
    """Public trainers were reported to give NaN at the first step with several layers."""
    for num_layers in (1, 3):
        spec, kind = make_spec(), drafter_class(name)
        tables = small_tables(spec)
        drafter = kind.build(
            kind.resolve(settings(name, num_layers=num_layers), spec, [95]), spec, VOCABULARIES[0],
            embed_tokens=tables.embed_tokens, lm_head=tables.lm_head,
            generator=torch.Generator().manual_seed(0),
        )  # fmt: skip
        out = drafter.compute_loss(make_batch(), teacher(), STEP)
        assert bool(out.loss_sum.isfinite())


@every
def test_what_is_computed_again_gives_the_same_gradients(name: str) -> None:
    """And less of it is kept in between."""
    found = []
    for again in (False, True):
        drafter = build(name, num_layers=2, activation_checkpointing=again).train()
        with LiveBytes() as live:
            output = drafter.compute_loss(make_batch((40, 30)), teacher(), StepContext(0, 1))
            kept = live.now
        output.loss_sum.backward()
        found.append((kept, output.loss_sum.detach(), [p.grad for p in drafter.parameters()]))
    (kept, loss, gradients), (less, same, ours) = found
    assert less < 0.8 * kept
    assert torch.equal(same, loss)
    for a, b in zip(ours, gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


@every
def test_bfloat16_arithmetic_is_close(name: str) -> None:
    """What runs on an accelerator: fp32 weights under autocast."""
    drafter, batch = build(name, num_layers=2).eval(), make_batch()
    exact = drafter.compute_loss(batch, teacher(), STEP)
    with torch.autocast("cpu", torch.bfloat16):
        coarse = drafter.compute_loss(batch, teacher(), STEP)
    coarse.loss_sum.backward()
    assert all(p.grad is not None for p in drafter.trainable_parameters().values())
    torch.testing.assert_close(coarse.loss_sum, exact.loss_sum, rtol=0.05, atol=0.0)


@every
def test_row_without_starts_still_has_gradients(name: str) -> None:
    """Every rank takes the same path, with zero weight."""
    drafter, batch = build(name), make_batch()
    batch = replace(batch, loss_mask=torch.zeros_like(batch.loss_mask))
    out = drafter.compute_loss(batch, teacher(), STEP)
    out.loss_sum.backward()
    assert (float(out.loss_sum.detach()), float(out.divisor)) == (0.0, 0.0)
    assert all(p.grad is not None and not p.grad.any() for p in drafter.parameters())


@every
@vocabularies
@deep
def test_session_proposes_what_batched_drafting_drafts(
    name: str, vocabulary: DraftVocabulary, num_layers: int
) -> None:
    drafter = build(name, vocabulary, num_layers=num_layers)
    batch = make_batch((40,), padding=0)
    session, at = drafter.new_session(), 0
    for step in (7, 1, 2, 5, 1, 1, 3, 8):
        end = at + step
        proposal = session.propose(batch.aux[at:end], batch.input_ids[at + 1 : end + 1])
        at = end
        wanted = drafter.draft(batch, torch.tensor([end]))[0]
        assert torch.equal(proposal.tokens, wanted)
        assert bool(vocabulary.t2d[proposal.tokens].all())
    assert drafter.draft(batch, torch.tensor([], dtype=torch.int64)).shape == (
        0,
        drafter.num_draft_tokens,
    )


@every
def test_sampling_says_what_it_drew_from(name: str) -> None:
    drafter, batch = build(name, VOCABULARIES[1]), make_batch((40,), padding=0)
    g = torch.Generator().manual_seed(0)
    drawn = drafter.new_session().propose(
        batch.aux[:6], batch.input_ids[1:7], temperature=0.9, generator=g
    )
    q = drawn.probabilities
    assert q is not None
    torch.testing.assert_close(q.sum(-1), torch.ones(drafter.num_draft_tokens))
    assert not q[:, ~VOCABULARIES[1].t2d].any()
    assert bool((q.gather(1, drawn.tokens[:, None]) > 0).all())


@every
@deep
def test_nothing_before_a_token_depends_on_it(name: str, num_layers: int) -> None:
    drafter, batch = build(name, num_layers=num_layers), make_batch((24, 16))
    starts = starts_of(drafter, batch)
    before = drafter.draft(batch, starts)
    moved = torch.zeros(len(starts), dtype=torch.bool)
    for p in range(5, 40, 3):
        ids, aux = batch.input_ids.clone(), batch.aux.clone()
        ids[p], aux[p] = 50, aux[p] + 3.0
        after = drafter.draft(replace(batch, input_ids=ids), starts)
        changed = (after != before).any(1)
        assert not changed[starts < p].any()
        moved |= changed
        after = drafter.draft(replace(batch, aux=aux), starts)
        changed = (after != before).any(1)
        assert not changed[starts <= p].any()  # the newest token's own state does not exist yet
        assert not changed[batch.document_ids[starts] != batch.document_ids[p]].any()
        moved |= changed
    assert moved.any()


@every
@deep
def test_padding_and_order_of_documents_do_not_matter(name: str, num_layers: int) -> None:
    drafter = build(name, num_layers=num_layers).eval()
    batch = make_batch((20, 13, 9), padding=6)
    parts = [slice(0, 20), slice(20, 33), slice(33, 42)]
    whole = drafter.compute_loss(batch, teacher(), STEP)
    other = drafter.compute_loss(
        cut(batch, [parts[2], parts[0], parts[1], slice(42, 48), slice(42, 48)]), teacher(), STEP
    )
    alone = [drafter.compute_loss(cut(batch, [part]), teacher(), STEP) for part in parts]
    for found in (
        (other.loss_sum, other.divisor),
        (sum(o.loss_sum for o in alone), sum(o.divisor for o in alone)),
    ):
        torch.testing.assert_close(found, (whole.loss_sum, whole.divisor), atol=2e-3, rtol=2e-5)
    drafted = drafter.draft(batch, starts_of(drafter, batch))
    single = [
        drafter.draft(cut(batch, [part]), starts_of(drafter, cut(batch, [part]))) for part in parts
    ]
    assert torch.equal(drafted, torch.cat(single))


@every
def test_flex_equals_sdpa(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flag = "torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG"
    monkeypatch.setattr(flag, True)
    batch, outputs = make_batch(), []
    for backend in (AttentionBackend.flex, AttentionBackend.sdpa):
        drafter = build(name, num_layers=2, attention=backend).eval()
        with torch.no_grad():
            outputs.append(drafter.compute_loss(batch, teacher(), STEP).loss_sum)
    torch.testing.assert_close(*outputs, atol=1e-3, rtol=1e-5)


@every
@vocabularies
def test_saved_and_read_back_it_is_equal(
    name: str, vocabulary: DraftVocabulary, tmp_path: Path
) -> None:
    drafter, spec = build(name, vocabulary, num_layers=2), make_spec()
    write_model(tmp_path, drafter, FloatType.float32)
    again = read_model(tmp_path, spec=spec, tables=small_tables(spec))
    assert again.config == drafter.config
    tensors = again.saved_tensors()
    assert tensors.keys() == drafter.saved_tensors().keys()
    assert all(torch.equal(tensors[k], v) for k, v in drafter.saved_tensors().items())
    batch = make_batch()
    starts = starts_of(drafter, batch)
    assert torch.equal(again.draft(batch, starts), drafter.draft(batch, starts))


@every
@vocabularies
def test_checkpoint_keeps_to_the_contract(name: str, vocabulary: DraftVocabulary) -> None:
    """Checkpoint specification, sections 3 and 5: what every server of drafters relies on."""
    drafter = build(name, vocabulary, num_layers=2)
    config = json.loads(json.dumps(drafter.serving_config()))
    assert config["speculators_model_type"] == name
    assert config["draft_vocab_size"] == len(vocabulary)
    speculators = config["speculators_config"]
    (method,) = speculators["proposal_methods"]
    assert method["speculative_tokens"] == drafter.num_draft_tokens
    assert speculators["verifier"]["name_or_path"] == "/verifier"
    layer = config["transformer_layer_config"]
    assert (layer["num_hidden_layers"], layer["hidden_size"], layer["vocab_size"]) == (2, 32, 96)
    assert layer["rope_parameters"] == {"rope_theta": 10000.0, "rope_type": "default"}
    assert "is_causal" not in json.dumps(config)
    ids = {key: config[key] for key in config if key.endswith("aux_hidden_state_layer_ids")}
    assert list(ids.values()) == [[1, 4, 6]]
    names = drafter.saved_tensors().keys() - {"lm_head.weight", "d2t", "t2d"}
    assert names == TENSORS.get(name, names)
    forbidden = ("model.", "verifier_", "embed_tokens", "rotary")
    assert not [tensor for tensor in names if tensor.startswith(forbidden)]
    maps = drafter.saved_tensors().keys() & {"lm_head.weight", "d2t", "t2d"}
    assert len(maps) == (0 if vocabulary.is_full else 3)
