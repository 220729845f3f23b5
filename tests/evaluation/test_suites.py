"""The published prompt sets: every preset on a row as published, files, and a hub folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from speculators.config.composition import Request, compose, compose_untyped
from speculators.config.folder import group_choices
from speculators.config.schema import SuiteConfig
from speculators.data.rows import Origin, RawRow
from speculators.errors import DataError
from speculators.evaluation.prompts import Prompt, parse_rows
from speculators.evaluation.suites import read_suite, read_suites

BOX = "\nPlease reason step by step, and put your final answer within \\boxed{}."
FENCE = "```"
NOT_SUITES = {"default"}

# A row as published, and (turns, id, category) that must come of it.
PUBLISHED: dict[str, list[tuple[dict[str, Any], tuple[tuple[str, ...], str, str | None]]]] = {
    "mt_bench": [
        (
            {"prompt": ["Write.", "Rewrite."], "prompt_id": 77, "category": "writing",
             "reference": []},
            (("Write.", "Rewrite."), "77", "writing"),
        ),
        (
            {"question_id": 81, "category": "writing", "turns": ["Write.", "Rewrite."]},
            (("Write.", "Rewrite."), "81", "writing"),
        ),
    ],
    "humaneval": [
        (
            {"task_id": "HumanEval/0", "prompt": 'def f():\n    """{x} {{ y }}"""\n',
             "canonical_solution": "", "test": "", "entry_point": "f"},
            (
                ("Write a solution to the following problem and make sure that it passes the "
                 f'tests:\n{FENCE}python\ndef f():\n    """{{x}} {{{{ y }}}}"""\n\n{FENCE}',),
                "HumanEval/0",
                None,
            ),
        )
    ],
    "gsm8k": [({"question": "2 + 3?", "answer": "#### 5"}, (("2 + 3?" + BOX,), "7", None))],
    "math500": [
        (
            {"problem": "$1$?", "solution": "s", "answer": "1", "subject": "Algebra", "level": 2,
             "unique_id": "test/algebra/1.json"},
            (("$1$?" + BOX,), "test/algebra/1.json", "Algebra"),
        )
    ],
    "mbpp": [
        (
            {"source_file": "x", "task_id": 11, "prompt": "Write a function.", "code": "",
             "test_imports": [], "test_list": []},
            (("Write a function.",), "11", None),
        )
    ],
    "aime24": [
        (
            {"id": 60, "problem": "Find m+n.", "solution": "", "answer": "204", "url": "",
             "year": "2024"},
            (("Find m+n." + BOX,), "60", None),
        )
    ],
    "aime25": [
        (
            {"problem_idx": 1, "problem": "Find b.", "answer": 70, "problem_type": ["Algebra"]},
            (("Find b." + BOX,), "1", None),
        )
    ],
    "alpaca": [
        (
            {"instruction": "Name it.", "input": "", "output": "", "text": ""},
            (("Name it.",), "7", None),
        ),
        (
            {"instruction": "Name it.", "input": "a, b", "output": "", "text": ""},
            (("Name it.\n\nInput:\na, b",), "7", None),
        ),
    ],
    "livecodebench": [
        (
            {"question_content": "Sum.", "question_id": "1873_A", "difficulty": "easy",
             "starter_code": "class S:\n    pass"},
            (
                ("You are an expert Python programmer. You will be given a question (problem "
                 "specification) and will generate a correct Python program that matches the "
                 "specification and passes all tests. You will NOT return anything except for the "
                 "program\n\n### Question:\nSum.\n\n### Format: Use the following code structure:\n"
                 f"{FENCE}python\nclass S:\n    pass\n{FENCE}\n\n"
                 "### Answer: (use the provided format with backticks)",),
                "1873_A",
                "easy",
            ),
        ),
        (
            {"question_content": "Sum.", "question_id": "1873_A", "difficulty": "easy",
             "starter_code": ""},
            (
                ("You are an expert Python programmer. You will be given a question (problem "
                 "specification) and will generate a correct Python program that matches the "
                 "specification and passes all tests. You will NOT return anything except for the "
                 "program\n\n### Question:\nSum.\n\n### Format: Write your code in the following "
                 f"format:\n{FENCE}python\n# YOUR CODE HERE\n{FENCE}\n\n"
                 "### Answer: (use the provided format with backticks)",),
                "1873_A",
                "easy",
            ),
        ),
    ],
    "swe_bench": [
        (
            {"instance_id": "a__b-1", "problem_statement": "It breaks.", "repo": "a/b"},
            (
                ("Problem Statement:\nIt breaks.\nPlease fix the issue described above.",),
                "7",
                None,
            ),
        )
    ],
    "spec_bench": [
        (
            {"question_id": 81, "category": "writing", "turns": ["a", "b"]},
            (("a", "b"), "81", "mt_bench"),
        ),
        (
            {"question_id": 161, "category": "translation", "turns": ["Translate."]},
            (("Translate.",), "161", "translation"),
        ),
    ],
}  # fmt: skip


def suites_of(choice: str) -> dict[str, SuiteConfig]:
    return compose("evaluate", ["checkpoint=x", f"evaluation={choice}"]).evaluation.suites


@pytest.mark.parametrize("choice", sorted(set(group_choices()["evaluation"]) - NOT_SUITES))
def test_every_preset_on_rows_as_published(choice: str) -> None:
    suites = suites_of(choice)
    assert suites
    for name, suite in suites.items():
        assert suite.hub_id
        for row, (turns, prompt_id, category) in PUBLISHED[name]:
            (prompt,) = parse_rows([RawRow(row, Origin("f", 7))], suite, name)
            assert prompt == Prompt(turns, prompt_id, category, "f:7", suite=name)


def test_spec_bench_rows_without_category_have_that_of_their_file() -> None:
    suite = suites_of("spec_bench")["spec_bench"]
    for file, category in [("hub/rag.jsonl", "rag"), ("hub/question.jsonl", "mt_bench"),
                           ("hub/math_reasoning.jsonl", "math_reasoning")]:  # fmt: skip
        rows = [RawRow({"prompt": "x"}, Origin(file, 1))]
        assert next(parse_rows(rows, suite)).category == category


def test_several_suites_in_one_run_and_the_papers_seven() -> None:
    assert list(suites_of("[mt_bench,gsm8k]")) == ["mt_bench", "gsm8k"]
    assert list(suites_of("dflash_paper")) == [
        "gsm8k", "math500", "aime25", "humaneval", "mbpp", "livecodebench", "mt_bench",
    ]  # fmt: skip
    config = compose("evaluate", ["checkpoint=x", "evaluation=[mt_bench,gsm8k]"]).evaluation
    assert (config.num_prompts, config.max_new_tokens) == (None, 2048)
    assert compose("train", ["evaluation=gsm8k"]).evaluation.suites["gsm8k"].subset == "main"


def test_a_suite_of_ones_own_is_a_yaml_file(tmp_path: Path) -> None:
    (tmp_path / "evaluation").mkdir()
    file = tmp_path / "evaluation" / "mine.yaml"
    file.write_text("suites:\n  mine: {path: p.jsonl, category: '{{ topic }}'}\n")
    request = Request("evaluate", ("checkpoint=x", "evaluation=[gsm8k,mine]"), str(tmp_path))
    config = compose_untyped(request).typed()
    assert config is not None
    assert list(config.evaluation.suites) == ["gsm8k", "mine"]
    assert config.evaluation.suites["mine"].category == "{{ topic }}"
    file.write_text("suites:\n  mine: {split: test}\n")
    composition = compose_untyped(request)
    assert composition.typed() is None
    assert composition.problems == [
        "evaluation.suites.mine.path=null: no prompts: give a path or a hub_id"
    ]


def test_a_local_file_in_the_published_layout(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}"}) + "\n" for i in range(10)))
    config = replace(suites_of("gsm8k")["gsm8k"], path=str(path))
    suite = read_suite("gsm8k", config, 4)
    assert [prompt.prompt_id for prompt in suite.prompts] == ["2", "4", "7", "9"]
    assert suite.prompts[0].turns == ("q1" + BOX,)
    assert suite.to_dict()["num_published"] == 10
    assert (suite.source, suite.licence) == (str(path), "mit")
    revision = suite.revision
    path.write_text(path.read_text() + json.dumps({"question": "one more"}) + "\n")
    assert read_suite("gsm8k", config).revision != revision
    assert len(read_suite("gsm8k", config).prompts) == 11


def test_hub_data_sets_by_split_and_by_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    home = tmp_path / "hub"
    (home / "data").mkdir(parents=True)
    table = pa.Table.from_pylist([{"problem_idx": i, "problem": f"p{i}"} for i in (1, 2)])
    parquet.write_table(table, home / "data" / "train-00000-of-00001.parquet")
    (home / "qa.jsonl").write_text('{"question_id": 1, "turns": ["a"]}\n')
    (home / "rag.jsonl").write_text('{"prompt": "b", "docs": ["x"]}\n')
    aime = replace(suites_of("aime25")["aime25"], hub_id=str(home), revision=None)
    spec = replace(
        suites_of("spec_bench")["spec_bench"], hub_id=str(home), files=["qa.jsonl", "rag.jsonl"]
    )
    first, second = read_suites({"aime25": aime, "spec_bench": spec}, None)
    assert [prompt.prompt_id for prompt in first.prompts] == ["1", "2"]
    assert [(p.turns, p.category) for p in second.prompts] == [(("a",), "qa"), (("b",), "rag")]
    with pytest.raises(DataError, match=r"^evaluation\.suites\.gone\.hub_id=\S+: cannot be loaded"):
        read_suite("gone", SuiteConfig(hub_id=str(tmp_path / "nowhere")))


def test_what_cannot_be_filled_in_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "q"}\n{"text": "q"}\n')
    config = SuiteConfig(path=str(path), prompt="{{ question }}!")
    with pytest.raises(
        DataError, match=r"rows\.jsonl:2: the template of the suite's prompt .*'question'.*has text"
    ):
        read_suite("mine", config)
    path.write_text("\n")
    with pytest.raises(DataError, match=r"evaluation\.suites\.mine: holds no prompt"):
        read_suite("mine", config)
