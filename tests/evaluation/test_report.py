"""The report of made-up runs, whole and in pieces."""

from __future__ import annotations

import json
import math
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from evaluation.fakes import FakeDrafter, FakeTokenizer, FakeVerifier, noisy
from speculators.config.schema import EvaluationConfig
from speculators.errors import DataError
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt
from speculators.evaluation.report import write_report
from speculators.evaluation.report.figures import charts
from speculators.evaluation.report.page import render
from speculators.evaluation.report.run_files import RunFiles
from speculators.evaluation.written import evaluation_markdown

CONFIG = """\
verifier: {name: tiny, name_or_path: tiny}
speculator: {name: dflash, num_layers: 2, block_size: 8, target_layer_ids: [1, 3]}
training: {epochs: 1, max_steps: 400, sequence_length: 1024}
optimizer: {name: adamw, lr: 0.003}
"""


def metrics() -> str:
    lines = []
    for step in range(1, 401):
        fade = math.exp(-step / 120)
        line = {
            "step": step,
            "epoch": 0,
            "kind": "train",
            "loss": 1.5 + 4 * fade,
            "loss_ce": 1.4 + 4 * fade,
            "loss_kl": 0.5 + 2 * fade,
            "learning_rate": 3e-3 * (1 - step / 401),
            "gradient_norm": 0.3 + 9 * fade,
            "coverage": 0.87,
            "block_acceptance_length": 2.6 - 1.4 * fade,
            "skipped_steps": 0,
            "note": None,
        }
        lines.append(json.dumps(line))
        if step % 80 == 0:
            walk = {
                "step": step,
                "kind": "validation",
                "loss": 1.7 + 4 * fade,
                "acceptance_length": 2.2 - 1.2 * fade,
                "uniform_acceptance_length": 2.5 - 1.3 * fade,
                "on_policy_share": 1.0,
                "acceptance_per_position": [0.62, 0.3, 0.14, 0.07, 0.03, 0.02, 0.01],
            }
            lines.append(json.dumps(walk))
    return "\n".join(lines) + '\n{"step": 401, "kin'


@cache
def evaluation() -> dict:
    verifier = FakeVerifier(seed=1)
    drafter = FakeDrafter(verifier, noisy(verifier, 7, 0.2), 7)
    prompts = [
        Prompt(("t3 t4 <b>", "t5"), "1", "writing"),
        Prompt(("t7",), "2", "math"),
        Prompt(("t6 t2",), "3", "math"),
    ]
    tokenizer = FakeTokenizer()
    tokenizer.prompt_ids = lambda turns: [len(turns[-1].content)]  # type: ignore[method-assign]
    config = EvaluationConfig(max_new_tokens=40)
    return evaluate(verifier, drafter, tokenizer, prompts, config, seed=0).to_dict()


def fill(folder: Path, without: str = "") -> Path:
    numbers = evaluation()
    result = {
        name: numbers[name]
        for name in (
            "acceptance_length",
            "acceptance_rate",
            "acceptance_per_position",
            "lossless_prompts",
            "num_prompts",
            "verifier_calls_saved",
            "speedup",
        )
    }
    result |= {
        "train_seconds": 93.4,
        "train_tokens_per_second": 41234.5,
        "peak_memory_bytes": 812_000_000,
        "checkpoint": "checkpoints/checkpoint_best",
    }
    data = {
        "num_rows": 1800,
        "num_tokens": 251000,
        "num_supervised": 190000,
        "dropped": {},
        "roles": {"user": [61000, 0], "assistant": [190000, 190000]},
        "sources": {"tiny": {"samples": 1800, "tokens": 251000, "supervised": 190000}},
        "length_edges": [16, 32, 64, 128],
        "length_counts": [20, 410, 1100, 270],
    }
    timing = [
        json.dumps({"step": step, "kind": "step", "tokens_per_second": 41000 + step})
        for step in range(10, 401, 10)
    ]
    timing.append(json.dumps({"step": 400, "kind": "validation", "seconds": 2.0}))
    contents = {
        "resolved.yaml": CONFIG,
        "provenance.json": json.dumps({"git": {"commit": "abc", "dirty": False}, "argv": ["x"]}),
        "metrics.jsonl": metrics(),
        "timing.jsonl": "\n".join(timing),
        "result.json": json.dumps(result),
        "evaluation.json": json.dumps(numbers),
        "data_report.json": json.dumps(data),
    }
    for name, text in contents.items():
        if name != without:
            (folder / name).write_text(text, encoding="utf-8")
    return folder


class _Page(HTMLParser):
    """Collects ids and what a browser would fetch; fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in {"meta", "link", "input", "br"}:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            if name in {"src", "href", "xlink:href", "data", "srcset"}:
                self.links.append(value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in {"meta", "link", "input", "br"}:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


SECTIONS = {
    "run": "",
    "charts": "",
    "categories": "evaluation.json",
    "examples": "evaluation.json",
    "data": "data_report.json",
    "config": "resolved.yaml",
    "provenance": "provenance.json",
    "definitions": "",
}


def test_whole_report(tmp_path: Path) -> None:
    page = write_report(fill(tmp_path))
    assert page == tmp_path / "report.html"
    text = page.read_text(encoding="utf-8")
    parsed = _Page(text)
    assert set(SECTIONS) <= set(parsed.ids)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert all(link.startswith(("#", "data:")) for link in parsed.links)
    assert not re.search(r"https?://", text)
    assert {link[1:] for link in parsed.links if link.startswith("#")} <= set(parsed.ids)
    assert "dflash for tiny" in text
    assert "All 3 answers are token for token" in text
    assert "&lt;b&gt;" in text
    assert "walk on validation rows" in text
    assert text.count("<svg") == 9
    assert "var(--series-1)" in text
    assert "#2f6fde" not in text.partition("</style>")[2]
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names == {
        "per_position",
        "acceptance_length",
        "loss",
        "loss_terms",
        "coverage",
        "learning_rate",
        "gradient_norm",
        "speed",
        "lengths",
    }


def test_same_run_same_page(tmp_path: Path) -> None:
    fill(tmp_path)
    files = RunFiles.read(tmp_path)
    bars, lines, *_ = charts(files)  # drawing is what takes the time: one of each kind
    again, once_more, *_ = charts(files)
    assert render(files, [bars, lines]) == render(files, [again, once_more])


@pytest.mark.parametrize(
    "missing",
    ["resolved.yaml", "provenance.json", "metrics.jsonl", "evaluation.json", "data_report.json"],
)
def test_sections_without_their_file_are_left_out(tmp_path: Path, missing: str) -> None:
    files = RunFiles.read(fill(tmp_path, without=missing))
    parsed = _Page(render(files, charts(files)[:1]))
    gone = {section for section, file in SECTIONS.items() if file == missing}
    assert set(SECTIONS) - set(parsed.ids) == gone


def test_empty_run_still_has_a_page(tmp_path: Path) -> None:
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert tmp_path.name in text
    assert set(_Page(text).ids) == {"definitions"}


def test_verdict_does_not_hide_failure(tmp_path: Path) -> None:
    fill(tmp_path)
    numbers = json.loads((tmp_path / "evaluation.json").read_text())
    mismatch = {"prompt_id": "2", "turn": 0, "index": 5, "expected": 3, "got": 4, "logit_gap": 1.5}
    numbers |= {"lossless_prompts": 2, "speedup": 0.71, "mismatches": [mismatch]}
    numbers["distinct_4gram_share"] = 0.2
    (tmp_path / "evaluation.json").write_text(json.dumps(numbers))
    text = render(RunFiles.read(tmp_path), [])
    assert "Only 2 of 3 answers" in text
    assert "Decoding is slower here (0.71 times plain speed)" in text
    assert "The answers repeat themselves" in text
    assert "differences" in _Page(text).ids


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("result.json", "{", "result.json:1: not JSON"),
        ("result.json", "[]", "result.json: must hold a JSON object"),
        ("metrics.jsonl", '{"step": 1}\nx\n', "metrics.jsonl:2: not JSON"),
        ("resolved.yaml", "a: [", "resolved.yaml: not YAML"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        write_report(tmp_path)
    with pytest.raises(DataError, match="is not a run directory"):
        write_report(tmp_path / "none")


def test_tables_and_charts_of_speed(tmp_path: Path) -> None:
    def side(rate: float, **more: float) -> dict:
        spread = {"mean": 9.0, "p50": 8.5, "p95": 12.0}
        return {
            "first_token_ms": spread,
            "inter_token_ms": spread,
            "tokens_per_second": rate,
            **more,
        }

    levels = [
        {"concurrency": c, "speculative": side(90.0 * c, acceptance_length=2.5),
         "plain": side(60.0 * c), "speedup": 1.5, "inter_token_speedup": 1.4}
        for c in (1, 4)
    ]  # fmt: skip
    batch = {"batch_size": 1, "recommended": 2, "speedups": [1.2, 1.4, 1.3]}
    more = {
        "served": {"levels": levels, "definition": "latency means this"},
        "best_k": {"batches": [batch], "definition": "the model"},
    }
    (tmp_path / "evaluation.json").write_text(json.dumps({**evaluation(), **more}))
    text = write_report(tmp_path).read_text(encoding="utf-8")
    parsed = _Page(text)
    assert {"served", "best_k", "prompt_lengths", "context_lengths"} & set(parsed.ids) >= {
        "served",
        "best_k",
    }
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "latency means this" in text
    assert "the model." in text
    names = {path.stem for path in (tmp_path / "plots").glob("*.png")}
    assert names >= {"best_k", "throughput", "latency"}
    page = evaluation_markdown({**evaluation(), **more})
    assert "| 4 | drafting | 2.500 | 9.0 | 9.0 | 360 | 1.50 | 1.40 |" in page
    assert "| 4 | plain |  | 9.0 | 9.0 | 240 |  |  |" in page
    assert "| 1 | 2 | 1.20 | 1.40 | 1.30 |" in page
    assert evaluation()["definition"] in page
