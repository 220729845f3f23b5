"""The walk against decoding: same positions, same runs, on the verifier's own output."""

from __future__ import annotations

import pytest
import torch

from evaluation.fakes import (
    FakeDrafter,
    FakeVerifier,
    noisy,
    packed,
    packed_masked,
    tiny_spec,
)
from speculators.evaluation.acceptance import Acceptance
from speculators.evaluation.decode import Decoded, decode
from speculators.evaluation.walk import WalkResult, acceptance_walk

SIZE = 4


def prompts(count: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(1, 23, (2 + index % 3,), generator=generator).tolist()
        for index in range(count)
    ]


def decoded(drafter: FakeDrafter, prompt: list[int], stop: list[int], length: int) -> Decoded:
    return decode(
        drafter.verifier,
        prompt,
        drafter=drafter,
        layer_ids=(0, 1),
        max_new_tokens=length,
        stop_ids=stop,
    )


def walk(drafter: FakeDrafter, rows: list[tuple], stop: list[int], pad: int = 7) -> WalkResult:
    half = len(rows) // 2 or 1
    batches = [packed(drafter.verifier, part, pad) for part in (rows[:half], rows[half:]) if part]
    return acceptance_walk(drafter, drafter.verifier.head, batches, end_of_turn_ids=stop)


@pytest.fixture(scope="module")
def drafter() -> FakeDrafter:
    verifier = FakeVerifier(seed=1)
    return FakeDrafter(verifier, noisy(verifier, SIZE, 0.3), SIZE)


def test_walk_equals_decoding_draft_by_draft_on_answers_cut_by_length(drafter: FakeDrafter) -> None:
    answers = [decoded(drafter, prompt, [], 30) for prompt in prompts(6)]
    for prompt, answer in zip(prompts(6), answers, strict=True):
        found = walk(drafter, [(prompt, answer.tokens)], [])
        end = len(prompt) + len(answer.tokens)
        expected, judged = [], []
        for record in answer.drafts:
            room = end - 1 - record.anchor_index
            if room > 0:
                expected.append(min(record.num_accepted, room))
                judged.append(min(SIZE, room))
        oracle = Acceptance.from_runs([expected], SIZE, [judged])
        assert found.acceptance.to_dict() == oracle.to_dict()
        assert found.on_policy_share == 1.0


def test_walk_estimates_the_decoded_length_within_five_percent(drafter: FakeDrafter) -> None:
    answers = [decoded(drafter, prompt, [], 24) for prompt in prompts(30)]
    found = walk(
        drafter,
        [(p, a.tokens) for p, a in zip(prompts(30), answers, strict=True)],
        [],
    )
    truth = Acceptance.from_runs([answer.accepted for answer in answers], SIZE)
    assert found.acceptance.length == pytest.approx(truth.length, rel=0.05)
    assert found.acceptance.num_prompts == 30


def test_walk_on_answers_that_end_themselves(drafter: FakeDrafter) -> None:
    """Same drafts; only what the verifier would say behind its end of turn is unknown."""
    stop = [0, 5, 11]
    answers = [decoded(drafter, prompt, stop, 60) for prompt in prompts(12, seed=4)]
    rows = [(p, a.tokens) for p, a in zip(prompts(12, seed=4), answers, strict=True) if a.stopped]
    kept = [a for a in answers if a.stopped]
    assert len(rows) > 6
    found = walk(drafter, rows, stop)
    runs = [
        [
            min(record.num_accepted, len(prompt) + len(answer.tokens) - 1 - record.anchor_index)
            for record in answer.drafts
        ]
        for (prompt, _), answer in zip(rows, kept, strict=True)
    ]
    assert found.acceptance.to_dict() == Acceptance.from_runs(runs, SIZE).to_dict()


def test_every_span_of_several_turns_is_walked_alone(drafter: FakeDrafter) -> None:
    verifier = drafter.verifier
    prompt = [3, 4]
    first = verifier.greedy(prompt, 9)
    middle = [*prompt, *first, 6, 7]
    second = verifier.greedy(middle, 8)
    mask = [False] * 2 + [True] * 9 + [False] * 2 + [True] * 8
    both = packed_masked(verifier, [([*middle, *second], mask)])
    apart = [packed(verifier, [(prompt, first)]), packed(verifier, [(middle, second)])]
    one = acceptance_walk(drafter, verifier.head, [both], end_of_turn_ids=[])
    two = acceptance_walk(drafter, verifier.head, apart, end_of_turn_ids=[])
    assert one.acceptance.per_position == two.acceptance.per_position
    assert one.acceptance.num_drafts == two.acceptance.num_drafts
    assert (one.acceptance.num_prompts, two.acceptance.num_prompts) == (1, 2)


def test_result_does_not_depend_on_packing_or_chunks(drafter: FakeDrafter) -> None:
    verifier = drafter.verifier
    rows = [(p, verifier.greedy(p, 15)) for p in prompts(4)]
    together = [packed(verifier, rows, pad=5)]
    apart = [packed(verifier, [row]) for row in rows]
    results = [
        acceptance_walk(
            drafter, verifier.head, batches, end_of_turn_ids=[], chunk_starts=chunk
        ).to_dict()
        for batches, chunk in ((together, 256), (together, 3), (apart, 256))
    ]
    assert results[0] == results[1] == results[2]


def test_perfect_and_useless_drafters() -> None:
    verifier = FakeVerifier(seed=1)
    rows = [(p, verifier.greedy(p, 20)) for p in prompts(3)]
    for error_rate, length in ((0.0, SIZE + 1.0), (1.0, 1.0)):
        drafter = FakeDrafter(verifier, noisy(verifier, SIZE, error_rate), SIZE)
        found = walk(drafter, rows, [])
        assert found.acceptance.length == found.uniform_acceptance_length == length


def test_share_of_foreign_tokens_shows() -> None:
    verifier = FakeVerifier(seed=1)
    answer = verifier.greedy([3, 4], 12)
    answer[5] = (answer[5] + 1) % 23
    drafter = FakeDrafter(verifier, noisy(verifier, SIZE, 0.0), SIZE)
    found = walk(drafter, [([3, 4], answer)], [])
    states = verifier.states([3, 4, *answer])
    chosen = verifier.head.argmax(states).tolist()
    right = sum(chosen[i + 1] == token for i, token in enumerate(answer))
    assert right < 12
    assert found.on_policy_share == right / 12


def test_rows_without_a_start_count_nothing(drafter: FakeDrafter) -> None:
    verifier = drafter.verifier
    batch = packed_masked(verifier, [([3, 4, 5], [False] * 3), ([3, 4], [False, True])], pad=3)
    found = acceptance_walk(drafter, verifier.head, [batch], end_of_turn_ids=[])
    assert found.acceptance.length == 1.0
    assert found.acceptance.num_drafts == found.num_starts == 0
    nothing = acceptance_walk(drafter, verifier.head, [], end_of_turn_ids=[])
    assert nothing.on_policy_share == 0.0


def test_autocast_around_the_walk_does_not_touch_the_teacher(drafter: FakeDrafter) -> None:
    verifier = drafter.verifier
    batch = packed(verifier, [(p, verifier.greedy(p, 30)) for p in prompts(8)])
    with torch.autocast("cpu", torch.bfloat16):
        found = acceptance_walk(drafter, verifier.head, [batch], end_of_turn_ids=[])
    assert found.on_policy_share == 1.0


def test_walk_leaves_the_drafter_in_training_mode(drafter: FakeDrafter) -> None:
    drafter.train()
    walk(drafter, [([3, 4], [5, 6, 7])], [])
    assert drafter.training
    assert tiny_spec().vocab_size == 23
