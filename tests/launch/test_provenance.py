"""What a run leaves behind about its beginning."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from speculators import __version__
from speculators.config.composition import compose
from speculators.config.loading import load_run_config
from speculators.launch.provenance import git_state, write_provenance


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    done = subprocess.run(
        ["git", *who, "-C", str(folder), *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_configuration_command_and_versions_are_written(tmp_path: Path) -> None:
    config = compose("train", ["speculator.block_size=4"])
    folder = tmp_path / "new" / "run"
    write_provenance(folder, config, ("speculators", "train", "speculator.block_size=4"))
    assert load_run_config(folder / "resolved.yaml") == config
    record = json.loads((folder / "provenance.json").read_text())
    assert record["argv"] == ["speculators", "train", "speculator.block_size=4"]
    assert record["speculators"] == __version__
    assert record["packages"]["torch"]
    assert record["cpu_count"] >= 1
    assert sorted(path.name for path in folder.iterdir()) == ["provenance.json", "resolved.yaml"]


def test_the_state_of_the_code(tmp_path: Path) -> None:
    assert git_state(tmp_path) is None
    git(tmp_path, "init")
    assert git_state(tmp_path) is None  # no commit yet
    (tmp_path / "file").write_text("a")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert git_state(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "file").write_text("b")
    assert git_state(tmp_path) == {"commit": commit, "dirty": True}
    (tmp_path / "inside").mkdir()
    assert git_state(tmp_path / "inside") is None
