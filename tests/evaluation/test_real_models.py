"""A real verifier and a real drafter, caches and all: walk, decoding and plain decoding agree."""

from __future__ import annotations

import pytest
import torch

from speculators.algorithms.base import StepContext
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.config.schema import EvaluationConfig, LossWeights, VerifierConfig
from speculators.data.types import PackedBatch
from speculators.data.vocabulary import DraftVocabulary
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.cycle_times import cycle_times
from speculators.evaluation.decode import decode
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.walk import acceptance_walk
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import make_head

LAYERS = [1, 3]
LENGTH = 24


@pytest.fixture(scope="module")
def verifier() -> VerifierModel:
    spec = read_spec(VerifierConfig(name="tiny", name_or_path="tiny"))
    return VerifierModel.load(spec, dtype="float32")


@pytest.fixture(scope="module")
def prompts(verifier: VerifierModel) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    size = verifier.spec.num_tokens
    return [torch.randint(0, size, (6,), generator=generator).tolist() for _ in range(3)]


@pytest.fixture(scope="module")
def row(verifier: VerifierModel, prompts: list[list[int]]) -> PackedBatch:
    """The verifier's own answers, packed."""
    answers = verifier.generate(prompts, max_new_tokens=LENGTH, stop_ids=[])
    documents = [torch.tensor(p + a) for p, a in zip(prompts, answers, strict=True)]
    states = verifier.capture(documents, LAYERS)
    lengths = [len(document) for document in documents]
    positions = torch.cat([torch.arange(length) for length in lengths])
    return PackedBatch(
        torch.cat(documents),
        positions >= len(prompts[0]),
        torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)),
        positions,
        torch.cat([state.aux for state in states]),
        torch.cat([state.last for state in states]),
    )


@pytest.fixture(scope="module")
def drafter(verifier: VerifierModel, row: PackedBatch) -> DFlashDrafter:
    """A drafter that has half learnt one row by heart."""
    asked = DFlashConfig(
        num_layers=1,
        block_size=5,
        target_layer_ids=LAYERS,
        max_anchors=64,
        loss=LossWeights(ce=1.0),
    )
    spec, tables = verifier.spec, verifier.tables
    drafter = DFlashDrafter.build(
        DFlashDrafter.resolve(asked, spec, [spec.vocab_size - 1]),
        spec,
        DraftVocabulary.full(spec.vocab_size),
        embed_tokens=tables.embed_tokens,
        lm_head=tables.lm_head,
        generator=torch.Generator().manual_seed(0),
    )
    head = make_head(spec, tables)
    optimizer = torch.optim.AdamW(drafter.trainable_parameters().values(), lr=1e-2)
    for step in range(40):
        output = drafter.compute_loss(row, head, StepContext(0, step))
        (output.loss_sum / output.divisor).backward()
        torch.nn.utils.clip_grad_norm_(drafter.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return drafter


def test_walk_equals_decoding(
    verifier: VerifierModel, prompts: list[list[int]], row: PackedBatch, drafter: DFlashDrafter
) -> None:
    head = make_head(verifier.spec, verifier.tables)
    found = acceptance_walk(drafter, head, [row], end_of_turn_ids=[])
    runs, judged = [], []
    for prompt in prompts:
        decoded = decode(verifier, prompt, drafter=drafter, layer_ids=LAYERS, max_new_tokens=LENGTH)
        rooms = [len(prompt) + LENGTH - 1 - record.anchor_index for record in decoded.drafts]
        kept = [
            (r.num_accepted, room) for r, room in zip(decoded.drafts, rooms, strict=True) if room
        ]
        runs.append([min(run, room) for run, room in kept])
        judged.append([min(4, room) for _, room in kept])
    expected = Acceptance.from_runs(runs, 4, judged)
    assert found.acceptance.to_dict() == expected.to_dict()
    assert found.on_policy_share == 1.0
    assert 1.5 < expected.length < 5


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_answers_do_not_change(
    verifier: VerifierModel,
    prompts: list[list[int]],
    drafter: DFlashDrafter,
    temperature: float,
) -> None:
    class Ids:
        """Prompts are tokenised already."""

        end_of_turn_ids = frozenset[int]()

        def prompt_ids(self, turns: object) -> list[int]:
            raise AssertionError

        def decode(self, ids: object) -> str:
            return str(ids)

        def token_text(self, token_id: int) -> str:
            return str(token_id)

    asked = [Prompt(("",), str(n), input_ids=tuple(ids)) for n, ids in enumerate(prompts)]
    config = EvaluationConfig(max_new_tokens=LENGTH, temperature=temperature)
    result = evaluate(verifier, drafter, Ids(), asked, config, seed=0)
    assert result.acceptance.num_draft_tokens == 4
    if temperature == 0:
        assert result.lossless_prompts == len(prompts)
        assert result.verifier_calls_saved > 0.3


def test_every_token_is_computed_once(
    verifier: VerifierModel,
    prompts: list[list[int]],
    drafter: DFlashDrafter,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The verifier sees prompt and blocks, the drafter each confirmed position and its blocks."""
    verified: list[int] = []
    encoded: list[int] = []
    forward, encode = verifier.forward, drafter.encode

    def counted_forward(ids: torch.Tensor, *rest: object, **more: object) -> object:
        verified.append(len(ids))
        return forward(ids, *rest, **more)  # type: ignore[arg-type]

    def counted_encode(states: torch.Tensor, positions: torch.Tensor) -> object:
        encoded.extend(positions.tolist())
        return encode(states, positions)

    monkeypatch.setattr(verifier, "forward", counted_forward)
    monkeypatch.setattr(drafter, "encode", counted_encode)
    decoded = decode(
        *(verifier, prompts[0]), drafter=drafter, layer_ids=LAYERS, max_new_tokens=LENGTH
    )
    cycles = len(decoded.drafts)
    assert verified == [len(prompts[0]), *[drafter.num_draft_tokens + 1] * cycles]
    assert encoded == list(range(decoded.drafts[-1].anchor_index))


@pytest.mark.parametrize("batch_size", [1, 2])
def test_times_of_every_number_of_drafted_tokens(
    verifier: VerifierModel, drafter: DFlashDrafter, batch_size: int
) -> None:
    times = cycle_times(verifier, drafter, context=40, batch_size=batch_size)
    assert times.batch_size == batch_size
    assert len(times.draft) == len(times.verify) == drafter.num_draft_tokens == 4
    assert min(times.plain, *times.draft, *times.verify) > 0


def test_fewer_drafted_tokens_change_no_answer(
    verifier: VerifierModel, prompts: list[list[int]], drafter: DFlashDrafter
) -> None:
    options = {"layer_ids": LAYERS, "max_new_tokens": LENGTH}
    plain = decode(verifier, prompts[0], drafter=None, **options)  # type: ignore[arg-type]
    drafter.set_num_draft_tokens(2)
    try:
        fewer = decode(verifier, prompts[0], drafter=drafter, **options)  # type: ignore[arg-type]
    finally:
        drafter.set_num_draft_tokens(4)
    assert fewer.tokens == plain.tokens
    assert {len(record.drafted) for record in fewer.drafts} == {2}
