"""The tutorial, word for word, in a fresh folder, against the real server."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from documents import blocks
from vllm.conftest import ENVIRONMENT, assert_same_drafts, running

PORT = 8000


@pytest.fixture
def paths(vllm: str) -> str:
    """The PATH of a reader: this environment's commands, and vLLM's."""
    own, served = Path(sys.executable).parent, Path(vllm).parent
    return os.pathsep.join([str(own), os.environ["PATH"], str(served)])


def test_every_command_does_what_it_says(
    paths: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", paths)
    monkeypatch.setenv("COLUMNS", "90")
    with contextlib.ExitStack() as servers:
        for number, block in enumerate(blocks("tutorials/online_vllm.md")):
            print(f"$ {block.text}", flush=True)
            if block.serves:
                servers.close()
                log = tmp_path / f"server_{number}.log"
                servers.enter_context(running(shlex.split(block.text), PORT, log))
                continue
            done = subprocess.run(
                block.text,
                shell=True,
                env=os.environ | ENVIRONMENT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            print(done.stdout, flush=True)
            assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "outputs/served/evaluation.json").read_text())
    assert found["lossless_prompts"] == found["num_prompts"] == 20
    assert_same_drafts(found)
    losses = [
        [json.loads(line).get("loss") for line in path.read_text().splitlines()]
        for path in (tmp_path / f"outputs/{name}/metrics.jsonl" for name in ("online", "offline"))
    ]
    assert losses[0][-1] == pytest.approx(losses[1][-1], rel=1e-3)
