from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch

from data.scripted import Scripted
from speculators.config.schema import Truncation
from speculators.config.schema.data import BadRows, RegenerateConfig
from speculators.data.dialogue import Question
from speculators.data.prepared import PreparedData, SampleSet, prompt_of
from speculators.data.split import split_point
from speculators.data.storage import written_aside
from speculators.data.template import VerifierTokenizer
from speculators.data.types import sample_id_of
from speculators.errors import ConfigError, DataError

MakeTokenizer = Callable[..., VerifierTokenizer]
WriteRows = Callable[..., Path]
Messages = Callable[..., dict[str, Any]]
Prepare = Callable[..., PreparedData]

VOCAB = 400


def everything(data: PreparedData) -> list[tuple[SampleSet, int]]:
    return [(side, i) for side in (data.train, data.validation) for i in range(len(side))]


def open_table(data: PreparedData) -> datasets.Dataset:
    table = datasets.load_from_disk(str(data.folder))
    assert isinstance(table, datasets.Dataset)
    return table


def rows_of(data: PreparedData) -> list[Any]:
    return open_table(data).to_list()


def test_folder_holds_a_data_set_of_the_specified_columns(
    run: Prepare, write_rows: WriteRows, rows: list[Any], make_tokenizer: MakeTokenizer
) -> None:
    data = run(write_rows(rows))
    assert sorted(os.listdir(data.folder)) == [
        "data-00000-of-00001.arrow",
        "dataset_info.json",
        "prepare.json",
        "report.html",
        "report.json",
        "state.json",
        "token_freq.pt",
        "token_used.npy",
    ]
    assert data.folder.name == f"rows-{data.fingerprint[:16]}"
    table = open_table(data)
    assert {name: str(f) for name, f in table.features.items()} == {
        "input_ids": "List(Value('int64'))",
        "loss_mask": "List(Value('int64'))",
        "seq_len": "Value('int64')",
        "sample_id": "Value('string')",
        "conversation_id": "Value('string')",
        "source": "Value('string')",
        "split": "Value('string')",
        "truncated": "Value('bool')",
        "num_supervised": "Value('int64')",
    }
    tokenizer = make_tokenizer("chatml")
    for row in rows_of(data):
        assert row["sample_id"] == sample_id_of(row["input_ids"])
        assert row["seq_len"] == len(row["input_ids"]) == len(row["loss_mask"])
        assert row["num_supervised"] == sum(row["loss_mask"])
        spoken = [t for t, m in zip(row["input_ids"], row["loss_mask"], strict=True) if m]
        number = row["conversation_id"].removeprefix("c")
        assert tokenizer.decode(spoken) == f"Answer {number}.<|im_end|>"
        expected = "val" if split_point(0, row["conversation_id"]) < 0.25 else "train"
        assert row["split"] == expected


def test_samples_counts_and_used_tokens(run: Prepare, write_rows: WriteRows, rows: Any) -> None:
    data = run(write_rows(rows))
    counts, used = torch.zeros(VOCAB, dtype=torch.int64), torch.zeros(VOCAB, dtype=torch.bool)
    for side, index in everything(data):
        sample = side[index]
        used[sample.input_ids] = True
        if side is data.train:
            counts += torch.bincount(sample.input_ids[sample.loss_mask], minlength=VOCAB)
        assert len(sample) == side.lengths[index]
        assert int(sample.loss_mask.sum()) == side.num_supervised[index]
        assert sample.sample_id == side.sample_ids()[index]
        assert prompt_of(sample).equal(sample.input_ids[: int(sample.loss_mask.nonzero()[0])])
    assert torch.equal(data.token_counts, counts)
    assert torch.equal(data.used, used)
    frequencies = torch.load(data.folder / "token_freq.pt", weights_only=True)
    assert frequencies == {i: int(c) for i, c in enumerate(counts) if c}
    assert len(data.train) + len(data.validation) == 40
    assert data.train.sources() == ["rows.jsonl"] * len(data.train)
    chosen = data.train.select([2, 0])
    assert chosen.sample_ids() == [data.train[2].sample_id, data.train[0].sample_id]
    assert data.train[-1].sample_id == data.train[len(data.train) - 1].sample_id
    with pytest.raises(IndexError, match="sample 99 of"):
        data.train[99]


def test_same_inputs_are_reused_and_others_go_elsewhere(
    run: Prepare, write_rows: WriteRows, rows: list[Any]
) -> None:
    path = write_rows(rows)
    first = run(path)
    before = (first.folder / "prepare.json").stat().st_mtime_ns
    again = run(path, num_workers=0)
    assert (again.reused, first.reused) == (True, False)
    assert again.folder == first.folder
    assert (again.folder / "prepare.json").stat().st_mtime_ns == before
    assert again.report == first.report
    folders = {
        first.folder,
        run(path, seed=1).folder,
        run(path, sequence_length=63).folder,
        run(path, validation_fraction=0.3).folder,
        run(path, template="qwen3").folder,
        run(path, max_samples=10).folder,
        run(write_rows(rows[:-1])).folder,
    }
    assert len(folders) == 7


def test_damaged_folder_is_named(run: Prepare, write_rows: WriteRows, rows: list[Any]) -> None:
    path = write_rows(rows)
    folder = run(path).folder
    (folder / "token_freq.pt").unlink()
    with pytest.raises(DataError) as caught:
        run(path)
    assert str(caught.value).startswith(f"{folder}: prepared data is incomplete or damaged")
    assert str(caught.value).endswith("delete the folder to prepare it anew")


def test_foreign_folder_is_left_alone(run: Prepare, write_rows: WriteRows, rows: list[Any]) -> None:
    path = write_rows(rows)
    folder = run(path).folder
    (folder / "prepare.json").unlink()
    with pytest.raises(DataError, match=r"in the way, and no prepared data \(no prepare\.json\)"):
        run(path)
    assert (folder / "token_freq.pt").exists()


def test_workers_change_nothing(run: Prepare, write_rows: WriteRows, messages: Messages) -> None:
    path = write_rows([messages("q", f"answer {i}", id=f"c{i}") for i in range(600)])
    alone = rows_of(run(path))
    shutil.rmtree(path.parent / "cache")
    elsewhere = run(path, num_workers=1)
    assert not elsewhere.reused
    assert rows_of(elsewhere) == alone


def test_truncation_is_counted(run: Prepare, write_rows: WriteRows, messages: Messages) -> None:
    long = [messages("q", "word " * 60, id=f"l{i}") for i in range(3)]
    deep = [messages("word " * 80, "a", id="deep")]
    short = [messages("q", f"a{i}", id=f"s{i}") for i in range(9)]
    path = write_rows(long + deep + short)
    cut = run(path)
    assert cut.report.num_truncated == 3
    whole = [len_of(run, path, f"l{i}") for i in range(3)]
    lost = sum(length - 64 for length in whole)
    assert cut.report.num_lost_tokens == lost + len_of(run, path, "deep")
    assert cut.report.dropped == {"fewer than 2 supervised tokens after truncation": 1}
    assert cut.report.examples == [
        f"{path}:4: fewer than 2 supervised tokens after truncation: 0",
    ]
    assert max(side[i].input_ids.shape[0] for side, i in everything(cut)) == 64
    dropped = run(path, truncation=Truncation.drop)
    assert dropped.report.dropped == {"longer than the sequence": 4}
    assert dropped.report.num_truncated == 0
    assert dropped.report.num_samples == 9


def len_of(run: Prepare, path: Path, conversation_id: str) -> int:
    data = run(path, sequence_length=4096)
    samples = [side[i] for side, i in everything(data)]
    return next(len(s) for s in samples if s.conversation_id == conversation_id)


def test_report(run: Prepare, write_rows: WriteRows, messages: Messages, rows: list[Any]) -> None:
    odd = [messages("q"), {"messages": []}, messages("Question 0", "Answer 0.", id="copy")]
    report = run(write_rows(rows + odd)).report
    assert (report.num_rows, report.num_conversations, report.num_samples) == (43, 41, 41)
    assert report.num_train + report.num_validation == 41
    assert report.dropped == {"no assistant turn": 1, "empty conversation": 1}
    assert report.num_duplicates == 1
    assert report.roles["user"][1] == 0
    assert report.roles["assistant"][0] == report.roles["assistant"][1]
    assert report.num_supervised == sum(supervised for _, supervised in report.roles.values())
    assert report.num_tokens == sum(tokens for tokens, _ in report.roles.values())
    assert sum(report.length_counts) == 41
    assert report.sources["rows.jsonl"].samples == 41
    assert report.method == "prefix rendering"
    assert 0 < report.supervised_share < 1


def test_copies_validate_together(run: Prepare, write_rows: WriteRows, messages: Messages) -> None:
    same = [messages("q", "the same", id=f"c{i}") for i in range(30)]
    other = [messages("q", f"other {i}", id=f"o{i}") for i in range(30)]
    data = run(write_rows(same + other))
    train, validation = set(data.train.sample_ids()), set(data.validation.sample_ids())
    assert not train & validation


def test_several_rows_of_a_conversation_validate_together(
    run: Prepare, write_rows: WriteRows, messages: Messages
) -> None:
    rows = [messages("q", f"one {i}", "r", f"two {i}", id=f"c{i}") for i in range(20)]
    data = run(write_rows(rows), template="qwen3")
    assert data.report.num_samples == 40
    assert data.report.num_split == 20
    train = {data.train[i].conversation_id for i in range(len(data.train))}
    validation = {data.validation[i].conversation_id for i in range(len(data.validation))}
    assert len(train) + len(validation) == 20
    assert not train & validation


def test_own_validation_file(run: Prepare, write_rows: WriteRows, rows: list[Any]) -> None:
    path = write_rows(rows[:30])
    other = write_rows(rows[25:35], "held_out.jsonl")
    data = run(path, validation_path=str(other))
    assert data.validation.sources().count("held_out.jsonl") == 10
    assert not set(data.train.sample_ids()) & set(data.validation.sample_ids())
    assert len(data.train) == 25
    assert data.report.dropped == {"also in data.validation_path: not trained on": 5}
    with pytest.raises(DataError, match="every training row is in it as well"):
        run(path, validation_path=str(path))


def test_tokenised_rows_are_used_unchanged(run: Prepare, write_rows: WriteRows) -> None:
    rows = [{"input_ids": [5, 6, 300 + i], "loss_mask": [0, 1, 1]} for i in range(20)]
    longer = [{"input_ids": [*row["input_ids"], 7], "loss_mask": [0, 0, 0, 1]} for row in rows]
    data = run(write_rows(rows + longer), template=None, min_supervised_tokens=1)
    samples = [side[i] for side, i in everything(data)]
    assert sorted(s.input_ids.tolist() for s in samples) == sorted(
        row["input_ids"] for row in rows + longer
    )
    # A row that opens another belongs to its conversation.
    ids = {tuple(s.input_ids.tolist()[:3]): set[str]() for s in samples}
    for sample in samples:
        ids[tuple(sample.input_ids.tolist()[:3])].add(sample.conversation_id)
    assert all(len(names) == 1 for names in ids.values())


def test_mask_of_ones_throughout_is_an_error(run: Prepare, write_rows: WriteRows) -> None:
    rows = [{"input_ids": [5, i], "loss_mask": [1, 1]} for i in range(20)]
    with pytest.raises(DataError) as caught:
        run(write_rows(rows))
    assert str(caught.value).startswith("20 of 20 samples are supervised from the first to the")


def test_nothing_left_names_the_first_reasons(
    run: Prepare, write_rows: WriteRows, messages: Messages
) -> None:
    path = write_rows([messages("word " * 80, "a") for _ in range(2)])
    with pytest.raises(DataError) as caught:
        run(path)
    assert str(caught.value).splitlines() == [
        f"{path}: no row is left to use; the first reasons:",
        f"  {path}:1: fewer than 2 supervised tokens after truncation: 0",
        f"  {path}:2: fewer than 2 supervised tokens after truncation: 0",
    ]


def test_answers_longer_than_the_sequence_are_split(
    run: Prepare, write_rows: WriteRows, messages: Messages
) -> None:
    rows = [messages("q", f"word{i} " * 300, id=f"l{i}") for i in range(6)]
    data = run(write_rows(rows), truncation=Truncation.split)
    assert data.report.num_samples > 20
    assert data.report.num_fully_supervised == 0


def test_unstable_turns_everywhere_say_what_can_be_done(
    run: Prepare, write_rows: WriteRows, rows: list[Any]
) -> None:
    with pytest.raises(DataError, match=r"^verifier\.template: 40 assistant turns begin with"):
        run(write_rows(rows), template="thinking_prompt")


def test_unstable_turns_stop_or_are_dropped(
    run: Prepare, write_rows: WriteRows, messages: Messages
) -> None:
    thought = [messages("q", f"<think>\nhm\n</think>\n\na{i}", id=f"t{i}") for i in range(30)]
    path = write_rows([*thought, messages("q", "bare")])
    with pytest.raises(DataError) as caught:
        run(path, template="thinking_prompt")
    assert "1 assistant turns begin with something else" in str(caught.value)
    assert f"{path}:31: unstable turn 2: the generation prompt's '<think>" in str(caught.value)
    data = run(path, template="thinking_prompt", bad_rows=BadRows.drop)
    assert data.report.dropped == {"unstable turn": 1}
    assert data.report.num_samples == 30


def test_refused_conversations_are_counted_by_the_template_s_reason(
    run: Prepare, write_rows: WriteRows, messages: Messages, rows: list[Any]
) -> None:
    two = {"messages": [{"role": "user", "content": "a"}, *messages("b", "c")["messages"]]}
    report = run(write_rows([*rows, two]), template="strict").report
    assert report.dropped == {"chat template: roles must alternate": 1}


def test_regenerated_answers(
    run: Prepare, write_rows: WriteRows, rows: list[Any], make_tokenizer: MakeTokenizer
) -> None:
    tokenizer = make_tokenizer("chatml")
    own = tokenizer.tail_ids("Mine.<|im_end|>").tolist()
    path, settings = write_rows(rows), {"regenerate": RegenerateConfig(enabled=True)}
    with pytest.raises(ConfigError, match=r"data\.regenerate\.enabled=true: needs a verifier"):
        run(path, **settings)

    answerer = Scripted(lambda question: own)
    data = run(path, **settings, answerer=answerer, verifier="a")
    for side, index in everything(data):
        sample = side[index]
        assert sample.input_ids[sample.loss_mask].tolist() == own
    report = data.report
    assert report.method == "the verifier's own tokens"
    assert report.finish_reasons == {"stop": 40}
    assert report.num_answer_tokens == 40 * len(own)
    lines = [json.loads(line) for line in Path(report.answers).read_text().splitlines()]
    assert len(lines) == 40
    assert run(path, **settings, answerer=answerer, verifier="a").reused
    assert len(answerer.asked) == 40
    assert not run(path, **settings, answerer=answerer, verifier="b").reused
    assert run(path, answerer=answerer).report.method == "prefix rendering"
    # The ledger is a file of pre-tokenised rows: its tokens and masks are trained on as they are.
    again = run(report.answers)
    mine = {s["sample_id"]: s["loss_mask"] for s in rows_of(data)}
    assert {s["sample_id"]: s["loss_mask"] for s in rows_of(again)} == mine


def test_a_second_start_asks_only_for_what_is_missing(
    run: Prepare, write_rows: WriteRows, rows: list[Any], make_tokenizer: MakeTokenizer
) -> None:
    own = make_tokenizer("chatml").tail_ids("Mine.<|im_end|>").tolist()
    path, settings = write_rows(rows), {"regenerate": RegenerateConfig(enabled=True)}

    def until_it_breaks(question: Question) -> list[int]:
        if len(broken.asked) > 25:
            raise RuntimeError("killed")
        return own

    broken, whole = Scripted(until_it_breaks), Scripted(lambda question: own)
    with pytest.raises(RuntimeError, match="killed"):
        run(path, **settings, answerer=broken)
    report = run(path, **settings, answerer=whole).report
    assert report.num_remembered_answers == 25
    assert len(whole.asked) == 15
    assert sum(report.finish_reasons.values()) == report.num_conversations == 40
    # More rows, another policy: what is known stays known.
    more = write_rows([*rows, {**rows[0], "id": "new"}], name="more.jsonl")
    asked = len(whole.asked)
    run(more, **settings, answerer=whole, min_supervised_tokens=3)
    assert len(whole.asked) == asked + 1


def test_generated_conversations(run: Prepare) -> None:
    data = run("tiny", max_samples=30, sequence_length=512)
    assert data.report.num_conversations == 30


def test_failure_leaves_nothing_behind(
    run: Prepare, write_rows: WriteRows, rows: list[Any], tmp_path: Path
) -> None:
    def fail(question: Question) -> list[int]:
        raise RuntimeError("out of memory")

    settings = RegenerateConfig(enabled=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(write_rows(rows), regenerate=settings, answerer=Scripted(fail))
    assert list((tmp_path / "cache" / "prepared").iterdir()) == []


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_kill_leaves_no_folder_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    target = tmp_path / "prepared" / "rows-x"
    child = os.fork()
    if child == 0:
        with written_aside(target) as partial:
            (partial / "half").write_text("x")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert not target.exists()
    (leftover,) = target.parent.iterdir()
    assert (leftover / "half").exists()
    with written_aside(target) as partial:
        (partial / "prepare.json").write_text("{}")
    assert [entry.name for entry in target.parent.iterdir()] == ["rows-x"]


def test_two_processes_with_the_same_inputs_agree(tmp_path: Path) -> None:
    target = tmp_path / "prepared" / "rows-x"
    with written_aside(target) as partial:
        (partial / "prepare.json").write_text("mine")
        target.mkdir()
        (target / "prepare.json").write_text("the other's")
    assert (target / "prepare.json").read_text() == "the other's"
    assert [entry.name for entry in target.parent.iterdir()] == ["rows-x"]


def test_manifest_says_what_went_in(run: Prepare, write_rows: WriteRows, rows: list[Any]) -> None:
    path = write_rows(rows)
    data = run(path, template="qwen3")
    manifest = json.loads((data.folder / "prepare.json").read_text())
    assert manifest["fingerprint"] == data.fingerprint
    assert manifest["path"] == str(path)
    assert manifest["inputs"]["sequence_length"] == 64
    assert manifest["inputs"]["settings"]["truncation"] == "keep"
    assert set(manifest["versions"]) == {"datasets", "tokenizers", "torch", "transformers"}
    assert manifest["report"]["num_rows"] == 40


def test_reading_is_cheap(run: Prepare, write_rows: WriteRows, messages: Messages) -> None:
    rows = [messages("q", f"answer {i}", id=f"c{i}") for i in range(600)]
    data = run(write_rows(rows))
    start = time.perf_counter()
    total = sum(len(data.train[i]) for i in range(len(data.train)))
    assert (time.perf_counter() - start) / len(data.train) < 0.005
    assert total == int(np.sum(data.train.lengths))
