from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from speculators.config.schema import DataConfig
from speculators.config.schema.data import BadRows, UnknownRole
from speculators.data.hub import HubSource
from speculators.data.parsing import RowParser
from speculators.data.readers import (
    FileSource,
    Part,
    Source,
    TinySource,
    open_parts,
    open_validation,
)
from speculators.data.report import DataReport
from speculators.data.rows import Record, RowProblem, TokenRow
from speculators.data.selection import Selection, Selector
from speculators.data.types import Conversation
from speculators.errors import DataError

WriteRows = Callable[..., Path]
Messages = Callable[..., dict[str, Any]]


def source(path: Path, **settings: Any) -> FileSource:
    return FileSource(str(path), parser(DataConfig(path=str(path), **settings)))


def parser(config: DataConfig) -> RowParser:
    return RowParser(config, 100, config.unknown_role)


def opened(**settings: Any) -> Source:
    config = DataConfig(**settings)
    (part,) = open_parts(config, vocab_size=100, seed=3)
    return part.source


def select(
    reader: Source, report: DataReport, limit: int | None = None, seed: int = 0, **settings: Any
) -> Selection:
    selector = Selector(DataConfig(**settings), report, seed=seed, prompts=None)
    return selector.select([Part(reader, limit)])


def test_layouts_may_be_mixed(write_rows: WriteRows, messages: Messages) -> None:
    path = write_rows(
        [messages("q", "a"), {"prompt": "q", "response": "a"}, {"input_ids": [1], "loss_mask": [1]}]
    )
    rows = list(source(path).rows())
    assert all(isinstance(row, Record) for row in rows)
    assert [row.origin.line for row in rows] == [1, 2, 3]
    assert rows[0].item.source == "rows.jsonl"  # type: ignore[union-attr]


def test_bad_rows_stop_with_the_first_lines_and_the_total(
    write_rows: WriteRows, messages: Messages
) -> None:
    path = write_rows([messages("q", "a"), '{"a": ', *[{"messages": None}] * 6, messages("q", "b")])
    with pytest.raises(DataError) as caught:
        select(source(path), DataReport())
    assert str(caught.value).splitlines() == [
        "7 of 9 rows cannot be used (data.bad_rows=drop leaves them out):",
        f"  {path}:2: malformed JSON: Expecting value at column 7",
        *[f"  {path}:{n}: not a list of turns: messages is null" for n in (3, 4, 5, 6)],
        "  and 2 more",
    ]


def test_bad_rows_are_dropped_and_counted(write_rows: WriteRows, messages: Messages) -> None:
    path = write_rows([messages("q", "a"), "{", {"messages": None}, {"messages": []}])
    report = DataReport()
    reader = source(path)
    chosen = select(reader, report, bad_rows=BadRows.drop)
    assert len(list(chosen.records())) == 1
    assert report.dropped == {
        "malformed JSON": 1,
        "not a list of turns": 1,
        "empty conversation": 1,
    }
    assert report.examples[-1] == f"{path}:4: empty conversation"
    assert report.num_rows == 4


def test_unknown_roles_have_their_own_policy(write_rows: WriteRows, messages: Messages) -> None:
    odd = {"messages": [{"role": "narrator", "content": "x"}]}
    path = write_rows([messages("q", "a"), odd])
    with pytest.raises(DataError, match=r"rows\.jsonl:2: unknown role: 'narrator' in turn 1"):
        select(source(path), DataReport())
    report = DataReport()
    reader = source(path, unknown_role=UnknownRole.drop)
    select(reader, report)
    assert report.dropped == {"unknown role": 1}


def test_file_with_nothing_to_learn_is_an_error(write_rows: WriteRows, messages: Messages) -> None:
    path = write_rows([messages("q"), {"messages": []}], "poor.jsonl")
    with pytest.raises(DataError) as caught:
        list(source(path).rows())
    assert str(caught.value).splitlines() == [
        f"{path}: no row with something to learn; the first:",
        f"  {path}:1: no assistant turn",
        f"  {path}:2: empty conversation",
    ]
    with pytest.raises(DataError, match="no conversation in it, the file is empty"):
        list(source(write_rows([], "empty.jsonl")).rows())


def test_draw_depends_on_the_rows_and_not_on_their_order(
    write_rows: WriteRows, messages: Messages
) -> None:
    rows = [messages(f"q{i}", f"a{i}", id=f"c{i}") for i in range(50)]

    def drawn(order: list[Any], seed: int) -> set[str | None]:
        reader = source(write_rows(order))
        chosen = select(reader, DataReport(), 10, seed)
        records = list(chosen.records())
        assert len(records) == chosen.num_records == 10
        return {record.item.conversation_id for record in records}

    first = drawn(rows, 0)
    assert drawn(rows[::-1], 0) == first
    assert drawn(rows, 1) != first


def test_folder_of_files_is_read_in_order(
    tmp_path: Path, write_rows: WriteRows, messages: Messages
) -> None:
    write_rows([messages("q", "b")], "d/b.jsonl")
    write_rows([messages("q", "a")], "d/a.jsonl")
    (tmp_path / "d" / "c.jsonl.gz").write_bytes(
        gzip.compress(json.dumps(messages("q", "c")).encode())
    )
    reader = source(tmp_path / "d")
    answers = [
        row.item.turns[-1].content
        for row in reader.rows()
        if isinstance(row, Record) and isinstance(row.item, Conversation)
    ]
    assert answers == ["a", "b", "c"]


@pytest.fixture
def _hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")


@pytest.mark.usefixtures("_hub_cache")
def test_hub_data_set(tmp_path: Path, write_rows: WriteRows, messages: Messages) -> None:
    write_rows([messages("q", "a"), messages("q")], "hub/train.jsonl")
    reader = opened(hub_id=str(tmp_path / "hub"))
    assert isinstance(reader, HubSource)
    rows = list(reader.rows())
    assert isinstance(rows[0], Record)
    assert isinstance(rows[1], RowProblem)
    assert str(rows[1]) == f"{tmp_path / 'hub'}:train:2: no assistant turn"
    assert reader.fingerprint() == opened(hub_id=str(tmp_path / "hub")).fingerprint()


@pytest.mark.usefixtures("_hub_cache")
def test_hub_data_set_that_cannot_be_had(tmp_path: Path) -> None:
    reader = opened(hub_id=str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"^data.hub_id=.*nothing:train: cannot be loaded: .+"):
        list(reader.rows())


def test_data_set_saved_by_other_tools(tmp_path: Path) -> None:
    columns = {"input_ids": [[1, 2], [3]], "loss_mask": [[0, 1], [1]], "seq_len": [2, 1]}
    table = datasets.Dataset.from_dict(columns)
    table.save_to_disk(str(tmp_path / "one"))
    reader = opened(path=str(tmp_path / "one"))
    records = [row for row in reader.rows() if isinstance(row, Record)]
    items = [record.item for record in records]
    assert [i.input_ids.tolist() for i in items if isinstance(i, TokenRow)] == [[1, 2], [3]]
    assert reader.fingerprint() == opened(path=str(tmp_path / "one")).fingerprint()
    datasets.DatasetDict({"train": table}).save_to_disk(str(tmp_path / "several"))
    with pytest.raises(DataError, match="holds several splits: name one, such as its train"):
        opened(path=str(tmp_path / "several"))


@pytest.mark.usefixtures("_hub_cache")
@pytest.mark.parametrize("kind", ["parquet", "saved", "hub", "stream"])
def test_tables_add_nothing_to_calls(kind: str, tmp_path: Path) -> None:
    """Columns of one type fill every call with the arguments of all others, as nulls."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    def row(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": name, "arguments": arguments}}
        kinds = {key: {"type": "string"} for key in arguments}
        parameters = {"type": "object", "properties": kinds}
        turns = [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
        ]
        tool = {"type": "function", "function": {"name": name, "parameters": parameters}}
        return {"messages": turns, "tools": [tool]}

    rows = [row("weather", {"city": "Oslo"}), row("add", {"a": 1, "b": 2})]
    table, file = pa.Table.from_pylist(rows), tmp_path / "set" / "train.parquet"
    file.parent.mkdir()
    parquet.write_table(table, file)
    if kind == "saved":
        datasets.Dataset(table).save_to_disk(str(tmp_path / "saved"))
    settings = {
        "parquet": {"path": str(file)},
        "saved": {"path": str(tmp_path / "saved")},
        "hub": {"hub_id": str(file.parent)},
        "stream": {"hub_id": str(file.parent), "streaming": True},
    }[kind]
    records = [record for record in opened(**settings).rows() if isinstance(record, Record)]
    read = [record.item for record in records if isinstance(record.item, Conversation)]
    assert [item.turns[1].extra["tool_calls"] for item in read] == [
        row["messages"][1]["tool_calls"] for row in rows
    ]
    assert [item.tools for item in read] == [row["tools"] for row in rows]


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="datasets without a JSON type")
@pytest.mark.usefixtures("_hub_cache")
@pytest.mark.parametrize("kind", ["saved", "hub", "stream", "parquet"])
def test_fields_beside_json_are_filled_and_json_is_not(kind: str, tmp_path: Path) -> None:
    """Null is a value inside JSON, and a filling in the fields of one type around it."""
    text = datasets.Value("string")
    call = {"name": text, "arguments": datasets.Json()}
    turn = {"role": text, "content": text, "tool_calls": datasets.List({"function": call})}
    function = {"name": text, "strict": datasets.Value("bool"), "parameters": datasets.Json()}
    features = datasets.Features(
        {"messages": datasets.List(turn), "tools": datasets.List({"function": function})}
    )
    definitions = [
        {"name": "weather", "strict": True, "parameters": {"default": None}},
        {"name": "add", "parameters": {"a": {"type": "integer"}}},
    ]
    arguments = [{"city": None}, {"a": 1, "b": "2"}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": a}}]},
            ],
            "tools": [{"function": definition}],
        }
        for definition, a in zip(definitions, arguments, strict=True)
    ]
    table = datasets.Dataset.from_list(rows, features=features)
    (tmp_path / "set").mkdir()
    table.to_parquet(str(tmp_path / "set" / "train.parquet"))
    table.save_to_disk(str(tmp_path / "saved"))
    settings = {
        "saved": {"path": str(tmp_path / "saved")},
        "parquet": {"path": str(tmp_path / "set" / "train.parquet")},
        "hub": {"hub_id": str(tmp_path / "set")},
        "stream": {"hub_id": str(tmp_path / "set"), "streaming": True},
    }[kind]
    records = [record for record in opened(**settings).rows() if isinstance(record, Record)]
    read = [record.item for record in records if isinstance(record.item, Conversation)]
    assert [tool["function"] for item in read for tool in item.tools or ()] == definitions
    called = [item.turns[1].extra["tool_calls"][0]["function"]["arguments"] for item in read]
    assert called == arguments


@pytest.mark.skipif(not hasattr(datasets, "Json"), reason="datasets without a JSON type")
def test_turns_that_a_table_keeps_as_json(tmp_path: Path, messages: Messages) -> None:
    """What `datasets` makes of JSON Lines whose turns have different fields."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    file = tmp_path / "rows.parquet"
    features = datasets.Features({"messages": datasets.List(datasets.Json())})
    row = {"messages": messages("q", "a")["messages"]}
    table = datasets.Dataset.from_list([row] * 3, features=features)
    table.to_parquet(str(file))
    items = [found.item for found in opened(path=str(file)).rows() if isinstance(found, Record)]
    read = [item.turns[1].content for item in items if isinstance(item, Conversation)]
    assert read == ["a"] * 3
    kept = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array(["{"], pa.json_()))
    parquet.write_table(pa.table({"messages": kept}), file)
    (problem,) = opened(path=str(file)).rows()
    assert isinstance(problem, RowProblem)
    assert str(problem).startswith(f"{file}:1: malformed JSON: ")


def test_generated_conversations() -> None:
    reader = opened(path="tiny", max_samples=5)
    assert isinstance(reader, TinySource)
    records = list(reader.rows())
    assert len(records) == 5
    assert reader.fingerprint() == TinySource(5, 3).fingerprint()
    assert reader.fingerprint() != TinySource(5, 4).fingerprint()


def test_validation_file(write_rows: WriteRows, messages: Messages) -> None:
    path = write_rows([messages("q", "a")])
    assert open_validation(DataConfig(path="x"), vocab_size=9) is None
    config = DataConfig(path="x", validation_path=str(path))
    reader = open_validation(config, vocab_size=9)
    assert reader is not None
    assert len(list(reader.rows())) == 1
    config.validation_path = "missing.jsonl"
    with pytest.raises(DataError, match=r"^data.validation_path=missing.jsonl: no such file"):
        open_validation(config, vocab_size=9)
