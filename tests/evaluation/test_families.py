"""Every family of verifiers: states, one trained drafter, and decoding that changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch

from miniatures import DECODING, save_miniature
from speculators.algorithms.base import Drafter, StepContext
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.registry import drafter_class
from speculators.config.schema import (
    CeLabels,
    DraftLayersConfig,
    EvaluationConfig,
    LossWeights,
    VerifierConfig,
)
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt
from speculators.modules.rotary import rope_problem
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import make_head, read_tables

LAYERS = [1, 3]
PROMPT, ANSWER, STEPS = 5, 24, 20
ALGORITHMS: dict[str, DraftLayersConfig] = {
    "dflash": DFlashConfig(num_layers=1, block_size=5, max_anchors=64, mask_token_id=95),
    "eagle3": Eagle3Config(num_layers=1),
}


class Ids:
    """Prompts are tokenised already."""

    end_of_turn_ids = frozenset[int]()

    def prompt_ids(self, turns: object) -> list[int]:
        raise AssertionError

    def decode(self, ids: object) -> str:
        return str(ids)

    def token_text(self, token_id: int) -> str:
        return str(token_id)


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], VerifierModel]:
    @cache
    def load(family: str) -> VerifierModel:
        folder = save_miniature(tmp_path_factory.mktemp(family), family)
        return VerifierModel.load(read_spec(VerifierConfig(name=family, name_or_path=str(folder))))

    return load


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(3, 90, (PROMPT,), generator=generator).tolist() for _ in range(3)]


def answers_of(verifier: VerifierModel) -> PackedBatch:
    """The verifier's own answers with their states, packed."""
    answers = verifier.generate(prompts(), max_new_tokens=ANSWER, stop_ids=[])
    documents = [torch.tensor(p + a) for p, a in zip(prompts(), answers, strict=True)]
    states = verifier.capture(documents, LAYERS)
    positions = torch.cat([torch.arange(len(document)) for document in documents])
    lengths = torch.tensor([len(document) for document in documents])
    return PackedBatch(
        torch.cat(documents),
        positions >= PROMPT,
        torch.arange(len(documents)).repeat_interleave(lengths),
        positions,
        torch.cat([state.aux for state in states]),
        torch.cat([state.last for state in states]),
    )


def build(algorithm: str, verifier: VerifierModel) -> Drafter[Any]:
    spec, tables = verifier.spec, read_tables(verifier.spec)
    # What the verifier's file in conf/ says where drafters do not compute its rotary embedding.
    theta = 1e4 if rope_problem(spec.rope_parameters) else None
    loss = LossWeights(kl=1.0, ce=0.5)
    asked = replace(
        ALGORITHMS[algorithm],
        target_layer_ids=LAYERS,
        loss=loss,
        ce_labels=CeLabels.verifier,
        rope_theta=theta,
    )
    kind = drafter_class(algorithm)
    return kind.build(
        kind.resolve(asked, spec, [95]),
        spec,
        DraftVocabulary.full(spec.vocab_size),
        embed_tokens=tables.embed_tokens,
        lm_head=tables.lm_head,
        generator=torch.Generator().manual_seed(0),
    )


@pytest.mark.parametrize("family", DECODING)
def test_the_teacher_says_what_the_verifier_says(
    load: Callable[[str], VerifierModel], family: str
) -> None:
    """Soft-capping, kind of norm and shared head are in it: its choices are the answers."""
    verifier, row = load(family), answers_of(load(family))
    logits = make_head(verifier.spec, read_tables(verifier.spec)).logits(row.last)
    tokens = row.input_ids[: PROMPT + ANSWER]
    whole = verifier.forward(tokens, verifier.new_cache()).logits
    torch.testing.assert_close(logits[: len(tokens)], whole, rtol=1e-4, atol=1e-4)
    chosen = logits.argmax(-1)[:-1]
    answered = row.loss_mask[1:] & (row.document_ids[1:] == row.document_ids[:-1])
    assert torch.equal(chosen[answered], row.input_ids[1:][answered])
    cap = verifier.spec.logit_softcap
    assert (cap is not None) == (family in ("gemma2", "gemma4", "gemma4_text"))
    assert cap is None or float(logits.abs().max()) < cap


@pytest.mark.parametrize(
    ("algorithm", "family"),
    [*(("dflash", family) for family in DECODING), ("eagle3", "gemma4"), ("eagle3", "gpt_oss")],
)
def test_a_drafter_learns_its_answers_and_decoding_stays_the_verifiers(
    load: Callable[[str], VerifierModel], family: str, algorithm: str
) -> None:
    verifier, row = load(family), answers_of(load(family))
    head = make_head(verifier.spec, read_tables(verifier.spec))
    drafter = build(algorithm, verifier)
    optimizer = torch.optim.AdamW(drafter.trainable_parameters().values(), lr=1e-2)
    losses = []
    for step in range(STEPS):
        output = drafter.compute_loss(row, head, StepContext(0, step))
        losses.append(float(output.loss_sum.detach() / output.divisor))
        (output.loss_sum / output.divisor).backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.6 * losses[0]

    asked = [Prompt(("",), str(n), input_ids=tuple(ids)) for n, ids in enumerate(prompts())]
    config = EvaluationConfig(max_new_tokens=ANSWER)
    result = evaluate(verifier, drafter, Ids(), asked, config, seed=0, progress=False)
    assert result.lossless_prompts == len(asked)
    assert result.acceptance.length > 1.3  # untrained drafters: 1.0
