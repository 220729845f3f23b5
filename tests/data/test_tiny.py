"""The generated conversations: deterministic, varied, and with questions kept out of training."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from speculators.data.tiny import is_held_out, tiny_conversations, tiny_prompts
from speculators.data.tiny.arithmetic import add_steps, multiply_steps, subtract_steps
from speculators.data.tiny.exchange import HELD_OUT_SHARE, draw
from speculators.data.tiny.generate import TASKS


@pytest.fixture(scope="module")
def conversations():
    return tiny_conversations(2500)


@pytest.fixture(scope="module")
def prompts():
    return tiny_prompts(600)


def test_same_seed_same_conversations(conversations):
    assert tiny_conversations(300) == conversations[:300]
    assert tiny_conversations(300, seed=5) != conversations[:300]
    assert tiny_prompts(50) == tiny_prompts(80)[:50]


def test_another_process_draws_the_same(conversations):
    code = "from speculators.data.tiny import *; print(tiny_conversations(40)[39].turns)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == str(conversations[39].turns)


def test_conversations_are_well_formed(conversations):
    ids = [conversation.conversation_id for conversation in conversations]
    assert len(set(ids)) == len(ids)
    for conversation in conversations:
        roles = [turn.role for turn in conversation.turns]
        chat = roles[1:] if roles[0] == "system" else roles
        assert chat == ["user", "assistant"] * (len(chat) // 2)
        assert all(turn.content.strip() == turn.content != "" for turn in conversation.turns)


def test_conversations_are_varied(conversations):
    single = sum(len(c.turns) <= 3 and c.turns[0].role != "system" for c in conversations)
    with_system = sum(c.turns[0].role == "system" for c in conversations)
    questions = {c.turns[-2].content for c in conversations}
    answers = {c.turns[-1].content for c in conversations}
    assert 0.3 < single / len(conversations) < 0.7
    assert 0.1 < with_system / len(conversations) < 0.3
    assert len(questions) > 0.7 * len(conversations)
    assert len(answers) > 0.8 * len(conversations)


def test_answers_have_the_length_of_short_chat(conversations):
    words = [
        len(t.content.split()) for c in conversations for t in c.turns if t.role == "assistant"
    ]
    assert 15 < sum(words) / len(words) < 60
    assert max(words) < 150


def test_no_first_question_is_on_both_sides(conversations, prompts):
    seen = {turn.content for c in conversations for turn in c.turns if turn.role == "user"}
    for prompt in prompts:
        users = [turn.content for turn in prompt.turns if turn.role == "user"]
        assert users[0] not in seen


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_equal_questions_have_equal_keys_and_sides_are_disjoint(task):
    rng = random.Random(7)
    key_of: dict[str, tuple[str | int, ...]] = {}
    for _ in range(400):
        exchange = task(rng)
        assert key_of.setdefault(exchange.question, exchange.key) == exchange.key
    trained = {draw(task, rng, held_out=False).key for _ in range(100)}
    kept_out = {draw(task, rng, held_out=True).key for _ in range(20)}
    assert not trained & kept_out
    assert len(kept_out) >= 2


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.__name__)
def test_reference_answers_pass_their_own_check(task):
    rng = random.Random(3)
    for _ in range(200):
        exchange = task(rng)
        for part in exchange.check:
            assert part.lower() in exchange.answer.lower()
        if exchange.follow_up is not None:
            for part in exchange.follow_up.check:
                assert part.lower() in exchange.follow_up.answer.lower()


def test_held_out_share_is_as_promised():
    share = sum(is_held_out(("key", i)) for i in range(20_000)) / 20_000
    assert share == pytest.approx(HELD_OUT_SHARE, abs=0.01)


def test_prompts_hold_no_answers_and_judge_them(prompts):
    for prompt in prompts:
        assert {turn.role for turn in prompt.turns} <= {"system", "user"}
        users = [turn for turn in prompt.turns if turn.role == "user"]
        assert len(users) == len(prompt.answers) == len(prompt.checks)
        assert all(prompt.is_right(i, answer) for i, answer in enumerate(prompt.answers))
    judged = [p for p in prompts if p.checks[0]]
    assert len(judged) > 0.8 * len(prompts)
    assert not any(p.is_right(0, "I do not know.") for p in judged)


def test_worked_steps_are_right():
    assert (
        add_steps(27, 15)
        == "Ones: 7 + 5 = 12, write 2 and carry 1. Tens: 2 + 1 + 1 = 4. So 27 + 15 = 42."
    )
    assert subtract_steps(42, 15) == (
        "Ones: 2 is less than 5, so borrow 10: 12 - 5 = 7. Tens: 4 - 1 - 1 = 2. So 42 - 15 = 27."
    )
    assert multiply_steps(3, 4) == "Count in steps of 4, 3 times: 4, 8, 12. So 3 x 4 = 12."
    for a in range(2, 99):
        for b in range(2, a):
            assert subtract_steps(a, b).endswith(f"{a} - {b} = {a - b}.")
            assert add_steps(a, b).endswith(f"{a} + {b} = {a + b}.")
