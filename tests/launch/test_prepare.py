"""The prepare command on the tiny verifier: what it prints, writes, and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from speculators.config.composition import compose
from speculators.data.vocabulary_files import load_vocabulary
from speculators.errors import ConfigError, DataError
from speculators.launch import prepare


def run(folder: Path, *overrides: str) -> dict:
    places = [f"output_dir={folder / 'run'}", f"cache_dir={folder / 'cache'}"]
    chosen = [*places, "data.regenerate.enabled=false", *overrides]
    return prepare.run(compose("prepare", chosen))


def rows(path: Path, *texts: str) -> Path:
    path.write_text("".join(text + "\n" for text in texts))
    return path


GOOD = [
    json.dumps({"id": i, "prompt": f"what is {i} plus 1?", "response": f"it is {i + 1}."})
    for i in range(9)
]


def test_validation_names_rows_and_fails_where_a_preparation_would(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path / "rows.jsonl", *GOOD, '{"prompt": ', '{"messages": []}')
    with pytest.raises(DataError) as caught:
        run(tmp_path, "data=jsonl", f"data.path={path}", "validate_only=true")
    assert str(caught.value) == (
        "1 problem stops the preparation (data.bad_rows=drop leaves such rows out)"
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        f"{path}:10: malformed JSON: Expecting value at column 12 -> stops the preparation",
        f"{path}:11: empty conversation -> left out",
        "11 rows read, 2 problems named, 9 samples usable; nothing was written",
    ]
    drops = run(
        tmp_path, "data=jsonl", f"data.path={path}", "validate_only=true", "data.bad_rows=drop"
    )
    assert drops == {"malformed JSON": 1, "empty conversation": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_draft_vocabulary_is_measured_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = rows(tmp_path / "rows.jsonl", *GOOD)
    run(tmp_path, "data=jsonl", f"data.path={path}", "speculator.draft_vocab_size=64", "show=1")
    printed = capsys.readouterr().out
    assert "64 of " in printed
    assert "report.html" in printed
    (folder,) = (tmp_path / "cache" / "prepared").iterdir()
    assert len(load_vocabulary(folder, 64)) == 64
    description = json.loads((folder / "draft_vocab-64.json").read_text())
    assert description["coverage"]["coverage"] == 1.0


def test_impossible_draft_vocabulary_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    path = rows(tmp_path / "rows.jsonl", *GOOD)
    with pytest.raises(ConfigError, match=r"^speculator\.draft_vocab_size=9999: must lie between"):
        run(tmp_path, "data=jsonl", f"data.path={path}", "speculator.draft_vocab_size=9999")
    assert list(tmp_path.iterdir()) == [path]


def test_source_and_path_contradict_each_other() -> None:
    with pytest.raises(ConfigError) as caught:
        compose("prepare", ["data=sharegpt", "data.path=x.jsonl"])
    assert str(caught.value) == (
        "data.path=x.jsonl: given together with data.hub_id: keep one of them"
    )
    with pytest.raises(ConfigError, match=r"^data\.sources=\{\}: no source: add some"):
        compose("prepare", ["data=mixture"])
    with pytest.raises(ConfigError, match=r"^data\.remove=\[: not a regular expression"):
        compose("prepare", ["data=jsonl", "data.path=x", "data.remove='['"])
    with pytest.raises(ConfigError, match=r"^data\.path=3: must be a path or a list of paths"):
        compose("prepare", ["data=jsonl", "data.path=3"])
    with pytest.raises(ConfigError, match=r"^data\.sources\.a\.weight=0.0: must be greater than 0"):
        compose(
            "prepare",
            [
                "data=mixture",
                "+data@data.sources.a=jsonl",
                "data.sources.a.path=x",
                "data.sources.a.weight=0",
            ],
        )
