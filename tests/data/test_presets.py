"""The hub presets, on folders of the same layout as the published data sets."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from omegaconf import OmegaConf

from speculators.config.composition import compose
from speculators.config.folder import config_folder, group_choices
from speculators.config.schema import DataConfig
from speculators.data.readers import open_parts
from speculators.data.report import DataReport
from speculators.data.rows import Record
from speculators.data.selection import Selector
from speculators.data.types import Conversation
from speculators.errors import DataError


@dataclass(frozen=True)
class StandIn:
    """A small data set with the files, configurations and columns of a published one.

    Attributes:
        file: its path in the repository; the suffix says how it is written.
        config: name of the configuration.
        split: name of the split.
        rows: content.
        turns: role and text of the first row's turns.
        source: slice of the first row, behind the data set's name.
        tools: whether the first row carries tool definitions to the template.
    """

    file: str
    config: str
    split: str
    rows: list[dict[str, Any]]
    turns: list[tuple[str, str]]
    source: str = ""
    tools: bool = False


def shared(*values: str, speakers: tuple[str, str] = ("human", "gpt")) -> list[dict[str, str]]:
    return [{"from": speakers[i % 2], "value": value} for i, value in enumerate(values)]


TWO = [("user", "q"), ("assistant", "a")]
CHAT = [{"content": "q", "role": "user"}, {"content": "a", "role": "assistant"}]
TOOL = '[{"type": "function", "function": {"name": "f", "parameters": {}}}]'
CALL = '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>'

STAND_INS = {
    "sharegpt": StandIn(
        "ShareGPT_V4.3_unfiltered_cleaned_split.json",
        "default",
        "train",
        [{"id": "x_0", "conversations": shared("q", "a")}, {"id": "x_1", "conversations": []}],
        TWO,
    ),
    "ultrachat": StandIn(
        "data/train_sft-00000-of-00001.parquet",
        "default",
        "train_sft",
        [{"prompt": "q", "prompt_id": "h", "messages": CHAT}],
        TWO,
    ),
    "gsm8k": StandIn(
        "main/train-00000-of-00001.parquet",
        "main",
        "train",
        [{"question": "2+3?", "answer": "It is <<2+3=5>>5.\n#### 5"}],
        [("user", "2+3?"), ("assistant", "It is 5.\n#### 5")],
    ),
    "magpie": StandIn(
        "data/train-00000-of-00001.parquet",
        "default",
        "train",
        [
            {
                "uuid": "u",
                "instruction": "q",
                "response": "a",
                "conversations": shared("q", "a"),
                "gen_input_configs": {"temperature": 1.0},
                "task_category": "Math",
            }
        ],
        TWO,
    ),
    "nemotron": StandIn(
        "SFT/chat/chat.jsonl",
        "SFT",
        "chat",
        [
            {
                "input": [{"role": "user", "content": "q"}],
                "output": "<think>\nhm\n</think>\n\na",
                "category": "chat",
                "license": "cc-by-4.0",
                "reasoning": "on",
                "used_in_training": "Yes",
                "version": "v1",
                "system_prompt": "detailed thinking on",
            }
        ],
        [
            ("system", "detailed thinking on"),
            ("user", "q"),
            ("assistant", "<think>\nhm\n</think>\n\na"),
        ],
        source="/on",
    ),
    "open_perfectblend": StandIn(
        "data/train-00000-of-00001.parquet",
        "default",
        "train",
        [{"conversations": shared("q", "a"), "source": "ultrachat_200k"}],
        TWO,
        source="/ultrachat_200k",
    ),
    "hermes_fc": StandIn(
        "func-calling.json",
        "func_calling",
        "train",
        [
            {
                "id": "i",
                "conversations": [
                    {"from": "system", "value": f"Tools: <tools>{TOOL}</tools>"},
                    {"from": "human", "value": "q"},
                    {"from": "gpt", "value": CALL},
                    {"from": "tool", "value": "<tool_response>\n1\n</tool_response>"},
                    {"from": "gpt", "value": "a"},
                ],
                "tools": TOOL,
                "category": "IoT",
                "subcategory": "Security",
                "task": "t",
            }
        ],
        [
            ("system", f"Tools: <tools>{TOOL}</tools>"),
            ("user", "q"),
            ("assistant", CALL),
            ("tool", "<tool_response>\n1\n</tool_response>"),
            ("assistant", "a"),
        ],
        source="/IoT",
    ),
}


def build(folder: Path, stand_in: StandIn) -> Path:
    file = folder / stand_in.file
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(stand_in.rows), file)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in stand_in.rows))
    else:
        file.write_text(json.dumps(stand_in.rows))
    (folder / "README.md").write_text(
        f"---\nconfigs:\n- config_name: {stand_in.config}\n  data_files:\n"
        f"  - split: {stand_in.split}\n    path: {stand_in.file}\n---\n"
    )
    return folder


@pytest.fixture(autouse=True)
def _hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config

    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "hub_cache")


@pytest.fixture
def preset(tmp_path: Path) -> Callable[..., DataConfig]:
    """Compose a preset and point it at its stand-in."""

    def make(name: str, *overrides: str) -> DataConfig:
        config = compose("prepare", [f"data={name}", *overrides]).data
        config.hub_id = str(build(tmp_path / name, STAND_INS[name]))
        return config

    return make


def test_every_hub_preset_has_a_stand_in() -> None:
    choices = group_choices()["data"]
    own = {"tiny", "jsonl", "hf", "mixture"}
    files = {name: OmegaConf.load(config_folder() / "data" / f"{name}.yaml") for name in choices}
    mixtures = {name for name, file in files.items() if OmegaConf.select(file, "sources")}
    assert set(choices) - own - mixtures == set(STAND_INS)


@pytest.mark.parametrize("name", STAND_INS)
@pytest.mark.parametrize("streaming", ["false", "true"])
def test_preset_reads_the_published_layout(
    name: str, streaming: str, preset: Callable[..., DataConfig]
) -> None:
    config, stand_in = preset(name, f"data.streaming={streaming}"), STAND_INS[name]
    assert config.subset in (None, stand_in.config)
    assert (config.split, config.revision) == (stand_in.split, "main")
    assert config.licence
    (part,) = open_parts(config, vocab_size=10, seed=0)
    rows = list(part.source.rows())
    assert len(rows) == len(stand_in.rows)
    assert isinstance(rows[0], Record), rows[0]
    item = rows[0].item
    assert isinstance(item, Conversation)
    assert [(turn.role, turn.content) for turn in item.turns] == stand_in.turns
    assert item.source == f"{part.source.name}{stand_in.source}"
    assert item.tools is None
    assert part.source.fingerprint() == part.source.fingerprint()


def test_any_hub_data_set_by_its_id(tmp_path: Path) -> None:
    folder = build(tmp_path / "set", STAND_INS["nemotron"])
    overrides = [f"data.name={folder}", "data.subset=SFT", "data.split=chat"]
    config = compose("prepare", ["data=hf", *overrides]).data
    (part,) = open_parts(config, vocab_size=10, seed=0)
    assert part.source.name == f"{folder}:SFT:chat"
    assert len(list(part.source.rows())) == 1


def test_stream_stops_at_its_limit(tmp_path: Path) -> None:
    rows = [{"prompt": f"q{i}", "response": f"a{i}"} for i in range(50)]
    folder = build(tmp_path / "set", StandIn("data.jsonl", "default", "train", rows, []))
    config = DataConfig(name="s", hub_id=str(folder), streaming=True, max_samples=7)
    (part,) = open_parts(config, vocab_size=10, seed=0)
    report = DataReport()
    chosen = Selector(config, report, seed=0, prompts=None).select([part])
    assert report.num_rows == 7
    contents = [r.item.turns[0].content for r in chosen.records()]  # type: ignore[union-attr]
    assert contents == [f"q{i}" for i in range(7)]


def test_stream_whose_files_are_gone(tmp_path: Path) -> None:
    config = DataConfig(name="s", hub_id=str(tmp_path / "none"), streaming=True)
    (part,) = open_parts(config, vocab_size=10, seed=0)
    with pytest.raises(DataError, match=r"^data\.hub_id=.*none:train: cannot be loaded: "):
        list(part.source.rows())


def test_mixture_of_presets_on_the_command_line() -> None:
    config = compose(
        "prepare",
        [
            "data=mixture",
            "+data@data.sources.chat=ultrachat",
            "data.sources.chat.weight=3",
            "+data@data.sources.mine=jsonl",
            "data.sources.mine.path=[a.jsonl,b.jsonl]",
        ],
    ).data
    chat, mine = config.sources["chat"], config.sources["mine"]
    assert (chat.hub_id, chat.weight) == ("HuggingFaceH4/ultrachat_200k", 3.0)
    assert (mine.path, mine.weight) == (["a.jsonl", "b.jsonl"], None)
