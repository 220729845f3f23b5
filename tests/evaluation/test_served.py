"""A server's own counters, on the same prompts, against decoding in this process."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.fakes import FakeDrafter, FakeTokenizer, FakeVerifier, noisy
from speculators.config.schema import EvaluationConfig
from speculators.console import open_console
from speculators.errors import DataError, LaunchError
from speculators.evaluation.decode import decode
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.load import Speed, parts
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.served import ServedCheckpoint, evaluate_served
from speculators.evaluation.served_answers import ServedAnswers
from speculators.evaluation.summary import summary_table
from speculators.hidden_states.online.completions import Ask
from speculators.hidden_states.online.streaming import Streamed
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.toy_verifier import ToyVerifier

SIZE = 4
CHECKPOINT = ServedCheckpoint(frozenset({"fake", "checkpoint_best"}), SIZE, 512)
CONFIG = EvaluationConfig(max_new_tokens=30)
PROMPTS = [
    Prompt(("t3 t4", "t5"), "1", "writing", "f:1"),
    Prompt(("t7 t8 t9",), "2", "math", "f:2"),
    Prompt(("t6",), "3", "math", "f:3"),
]


class Engine:
    """Decodes as a server does: the same verifier, the same drafter."""

    def __init__(self, seed: int = 1) -> None:
        self.verifier = FakeVerifier(seed=seed)
        self.drafter = FakeDrafter(self.verifier, noisy(self.verifier, SIZE, 0.3), SIZE)

    def __call__(
        self, prompt: Sequence[int], longest: int, stops: Sequence[int]
    ) -> tuple[Sequence[int], list[int]]:
        decoded = decode(
            *(self.verifier, prompt),
            drafter=self.drafter,
            layer_ids=(0, 1),
            max_new_tokens=longest,
            stop_ids=stops,
        )
        return decoded.tokens, decoded.accepted


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def serve(tmp_path: Path, engine: Engine) -> Iterator[Callable[..., FakeVLLM]]:
    started: list[FakeVLLM] = []

    def start(**options: Any) -> FakeVLLM:
        given = {"drafting": engine, "num_draft_tokens": SIZE, "model": "/models/fake"} | options
        server = FakeVLLM(tmp_path, (), ToyVerifier(), **given).start()
        started.append(server)
        return server

    yield start
    for server in started:
        server.stop()


def ask(server: FakeVLLM, **options: Any) -> ServedAnswers:
    given = {"checkpoint": CHECKPOINT, "prompts": PROMPTS, "config": CONFIG} | options
    return evaluate_served(server.url, tokenizer=FakeTokenizer(), seed=3, **given)


def test_counters_and_decoding_agree(serve: Callable[..., FakeVLLM], engine: Engine) -> None:
    server = serve(file_delay_seconds=0.03)
    server.counters.count([4, 4])  # somebody was here before
    here = evaluate(
        engine.verifier,
        engine.drafter,
        FakeTokenizer(),
        PROMPTS,
        replace(CONFIG, compare=False),
        seed=3,
    )
    served = ask(server).result(here, engine.verifier)
    assert served.answers == here.answers
    assert served.acceptance.to_dict(seed=3) == here.acceptance.to_dict(seed=3)
    assert served.acceptance.num_drafts > 3
    assert served.by_category.keys() == here.by_category.keys()
    assert (served.lossless_prompts, served.mismatches) == (3, ())
    assert served.speculative.verifier_calls == here.speculative.verifier_calls
    assert served.settings["engine"] == f"vllm 0.32.0 at {server.url}"
    screen = open_console(file=io.StringIO(), width=100)
    screen.print(summary_table(served))
    assert "lossless on 3 of 3 prompts" in screen.file.getvalue()  # type: ignore[attr-defined]


def test_another_answer_is_reported(serve: Callable[..., FakeVLLM], engine: Engine) -> None:
    here = evaluate(
        *(engine.verifier, engine.drafter, FakeTokenizer(), PROMPTS[1:], CONFIG), seed=3
    )

    def wrong(prompt: Any, longest: int, stops: Any) -> tuple[list[int], list[int]]:
        tokens, accepted = engine(prompt, longest, stops)
        return [*tokens[:2], 22 if tokens[2] != 22 else 21, *tokens[3:]], accepted

    served = ask(serve(drafting=wrong), prompts=PROMPTS[1:]).result(here, engine.verifier)
    assert served.lossless_prompts == 0
    assert [m.index for m in served.mismatches] == [2, 2]
    assert all(m.logit_gap and m.logit_gap > 0 for m in served.mismatches)


def test_no_server(serve: Callable[..., FakeVLLM]) -> None:
    server = serve()
    server.stop()
    with pytest.raises(LaunchError, match=r"evaluation.endpoint=http\S+: Connect.*vllm serve"):
        ask(server)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/models/other"}, "serves /models/other, not checkpoint_best or fake"),
        ({"num_draft_tokens": 7}, "drafts 7 tokens at a time, the checkpoint 4"),
        ({"max_model_len": 20}, r"takes 20 tokens \(--max-model-len\), f:1 needs 37"),
    ],
)
def test_a_wrong_server(
    options: dict[str, Any], message: str, serve: Callable[..., FakeVLLM]
) -> None:
    with pytest.raises(LaunchError, match=message) as caught:
        ask(serve(**options))
    assert "\n" not in str(caught.value)


def test_an_alias_is_recognised_by_its_root(serve: Callable[..., FakeVLLM]) -> None:
    ask(serve(model="alias", root="/elsewhere/checkpoint_best/"), prompts=PROMPTS[2:])


def test_a_server_without_drafting(
    serve: Callable[..., FakeVLLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    monkeypatch.setattr(server.counters, "text", lambda: "vllm:generation_tokens_total 4.0\n")
    with pytest.raises(LaunchError, match="the server does not draft"):
        ask(server)


def test_other_requests_are_noticed(serve: Callable[..., FakeVLLM], engine: Engine) -> None:
    def shared(prompt: Any, longest: int, stops: Any) -> tuple[Sequence[int], list[int]]:
        tokens, accepted = engine(prompt, longest, stops)
        return tokens, [*accepted, 4, 4]

    with pytest.raises(LaunchError, match="other requests are being served at the same time"):
        ask(serve(drafting=shared))


def test_counters_that_do_not_move(
    serve: Callable[..., FakeVLLM], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("speculators.evaluation.served_counters._SECONDS", 0.1)

    def silent(prompt: Any, longest: int, stops: Any) -> tuple[Sequence[int], list[int]]:
        return engine(prompt, longest, stops)[0], []

    with pytest.raises(LaunchError, match="moved the counters by 0 only"):
        ask(serve(drafting=silent))


def test_prompts_that_cannot_be_asked(serve: Callable[..., FakeVLLM]) -> None:
    server = serve()
    with pytest.raises(DataError, match="no prompt"):
        ask(server, prompts=[])
    with pytest.raises(DataError, match=r"f:1: 3 tokens leave no room .* context of 6"):
        ask(server, checkpoint=replace(CHECKPOINT, context=6))


class Plain:
    """Decodes as a server without drafting does."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __call__(
        self, prompt: Sequence[int], longest: int, stops: Sequence[int]
    ) -> tuple[Sequence[int], list[int]]:
        return self.engine(prompt, longest, stops)[0], []


def test_the_same_turns_at_every_concurrency_of_both_servers(
    serve: Callable[..., FakeVLLM], engine: Engine
) -> None:
    server = serve()
    baseline = serve(drafting=Plain(engine), num_draft_tokens=0)
    config = replace(CONFIG, concurrency=[2, 4], baseline_endpoint=baseline.url)
    served = ask(server, config=config)
    result, speeds = served.result(), served.speeds()
    assert [level["concurrency"] for level in speeds["levels"]] == [1, 2, 4]
    for level in speeds["levels"]:
        assert level["speculative"]["num_answers"] == level["plain"]["num_answers"] == 4
        assert level["speculative"]["num_tokens"] == result.speculative.tokens
        assert level["speculative"]["acceptance_length"] == pytest.approx(result.acceptance.length)
        assert "acceptance_length" not in level["plain"]
        assert level["speculative"]["first_token_ms"]["p95"] > 0
        assert level["speedup"] > 0
    assert result.lossless_prompts == 3
    assert result.plain is not None
    assert result.plain.verifier_calls == result.plain.tokens == result.speculative.tokens
    assert result.to_dict()["speedup_ci95"] is not None
    asked = [call.token_ids for call in baseline.calls]
    assert sorted(asked) == sorted([call.token_ids for call in server.calls])
    assert "first token" in speeds["definition"]


def test_servers_take_turns_so_that_a_slower_machine_slows_both(
    serve: Callable[..., FakeVLLM], engine: Engine
) -> None:
    """Neither server is asked everything before the other has been asked anything."""
    order: list[str] = []

    def noted(name: str, answers: Any) -> Any:
        def answer(*asked: Any) -> Any:
            order.append(name)
            return answers(*asked)

        return answer

    server = serve(drafting=noted("drafting", engine))
    baseline = serve(drafting=noted("plain", Plain(engine)), num_draft_tokens=0)
    config = replace(CONFIG, concurrency=[1, 2], baseline_endpoint=baseline.url)
    ask(server, config=config, prompts=PROMPTS * 4)
    count = len(order) // 2
    one_at_a_time, two_at_a_time = order[:count], order[count:]
    for asked in (one_at_a_time, two_at_a_time):
        assert asked.count("drafting") == asked.count("plain") == count // 2
    runs = [name for name, _ in itertools.groupby(one_at_a_time)]
    assert runs == ["drafting", "plain"] * (len(PROMPTS) * 4)
    runs = [name for name, _ in itertools.groupby(two_at_a_time)]
    assert runs == ["drafting", "plain", "drafting", "plain", "drafting"]  # there, back, there, ...


@pytest.mark.parametrize(
    ("number", "concurrency", "sizes"),
    [(80, 1, [20] * 4), (80, 16, [40, 40]), (80, 64, [80]), (5, 2, [5]), (13, 3, [6, 7])],
)
def test_parts_keep_servers_busy(number: int, concurrency: int, sizes: list[int]) -> None:
    questions = [Ask([i], 1) for i in range(number)]
    found = parts(questions, concurrency)
    assert [len(part) for part in found] == sizes
    assert [one for part in found for one in part] == questions


def test_differences_from_the_baseline_are_named(
    serve: Callable[..., FakeVLLM], engine: Engine
) -> None:
    def wrong(prompt: Any, longest: int, stops: Any) -> tuple[list[int], list[int]]:
        tokens = [*engine(prompt, longest, stops)[0]]
        return [*tokens[:2], 22 if tokens[2] != 22 else 21, *tokens[3:]], []

    baseline = serve(drafting=wrong, num_draft_tokens=0)
    config = replace(CONFIG, baseline_endpoint=baseline.url)
    result = ask(serve(), config=config, prompts=PROMPTS[1:]).result()
    assert result.lossless_prompts == 0
    assert [(m.index, m.logit_gap) for m in result.mismatches] == [(2, None), (2, None)]


def test_a_baseline_that_drafts_and_too_few_turns_are_refused(
    serve: Callable[..., FakeVLLM],
) -> None:
    server = serve()
    with pytest.raises(LaunchError, match=r"^evaluation\.baseline_endpoint=http\S+: drafts too"):
        ask(server, config=replace(CONFIG, baseline_endpoint=serve().url))
    with pytest.raises(LaunchError, match="concurrency=9: there are 4 turns to ask only"):
        ask(server, config=replace(CONFIG, concurrency=[1, 9]))


def test_a_baseline_of_another_model_and_one_that_fails_are_named(
    serve: Callable[..., FakeVLLM], engine: Engine
) -> None:
    def broken(prompt: Any, longest: int, stops: Any) -> tuple[list[int], list[int]]:
        return [], []

    other = serve(drafting=Plain(engine), num_draft_tokens=0, model="/models/other")
    gone = serve(drafting=Plain(engine), num_draft_tokens=0)
    gone.stop()
    silent = serve(drafting=broken, num_draft_tokens=0)
    problems = {
        other: r"serves /models/other, not .*start the server with `vllm serve VERIFIER`",
        gone: "Connect",
        silent: "answer without choices",
    }
    server = serve()
    for baseline, problem in problems.items():
        line = rf"^evaluation\.baseline_endpoint=http\S+: {problem}"
        with pytest.raises(LaunchError, match=line):
            ask(server, config=replace(CONFIG, baseline_endpoint=baseline.url))


def test_sampled_answers_are_not_compared(serve: Callable[..., FakeVLLM], engine: Engine) -> None:
    baseline = serve(drafting=Plain(engine), num_draft_tokens=0)
    config = replace(CONFIG, temperature=0.8, baseline_endpoint=baseline.url)
    result = ask(serve(), config=config).result()
    assert result.lossless_prompts is None
    assert (result.settings["temperature"], result.settings["sampling"]) == (0.8, "server")


def test_a_latency_is_that_of_the_tokens() -> None:
    answers = (
        Streamed([1, 2, 3, 4], [(0.5, 1), (0.8, 2), (1.1, 1)], "length"),
        Streamed([1], [(0.1, 1)], "stop"),
    )
    numbers = Speed(answers, 2.0).to_dict()
    assert numbers["inter_token_ms"]["mean"] == pytest.approx(200.0)
    assert numbers["first_token_ms"]["mean"] == pytest.approx(300.0)
    assert numbers["tokens_per_second"] == 2.5
