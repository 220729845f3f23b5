"""What tutorials tell people to type: it composes, and it runs, word for word, in a fresh folder.

Where a tutorial starts vLLM, `speculators.testing.stand_in` answers in its place; `make test-vllm`
runs the first tutorial against the real server.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from documents import DOCS, blocks
from speculators.cli.commands import COMMANDS
from speculators.config.checking import check
from speculators.config.composition import Request

ROOT = DOCS.parent
TUTORIALS = sorted(
    path.relative_to(DOCS).as_posix()
    for path in DOCS.glob("tutorials/*.md")
    if path.name != "README.md"
)
PROGRAMS = {"speculators", "python", "vllm", "curl", "head", "cat", "ls", "cp", "mkdir"}
START_SECONDS = 240
STAND_IN = f'#!/bin/sh\nexec {sys.executable} -m speculators.testing.stand_in "$@"\n'


def command_lines(document: str) -> list[list[str]]:
    """Every command of a tutorial, as words; text that is written into a file is left out."""
    found = []
    for block in blocks(document):
        text = re.sub(r"<<'(\w+)'\n.*?\n\1$", "", block.text, flags=re.DOTALL | re.MULTILINE)
        text = text.replace("\\\n", " ")
        found += [shlex.split(line, comments=True) for line in text.splitlines() if line.strip()]
    return found


@pytest.mark.parametrize("document", TUTORIALS)
def test_every_command_composes(
    document: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = command_lines(document)
    assert {words[0] for words in found} <= PROGRAMS
    ours = [words[1:] for words in found if words[0] == "speculators"]
    ours += [["train", *words[2:]] for words in found if words[:2] == ["python", "train.py"]]
    assert ours
    for name, *words in ours:
        end = words.index("--") if "--" in words else len(words)
        if "--config-dir" in words[:end]:
            continue  # a folder of the checkout: composed by its own test
        overrides = tuple(w for w in words[:end] if not w.startswith("-"))
        request = Request(name, overrides, multirun="--multirun" in words)
        needs = () if "--cfg" in words else COMMANDS[name].needs
        check(request, needs=needs, values="--cfg" not in words)


@pytest.mark.parametrize("document", TUTORIALS)
def test_outputs_are_filled_in(document: str) -> None:
    text = (DOCS / document).read_text(encoding="utf-8")
    assert "@" not in text
    assert "```text" in text


@pytest.mark.slow
@pytest.mark.parametrize("document", TUTORIALS)
def test_every_command_runs(document: str, tmp_path: Path) -> None:
    with contextlib.ExitStack() as servers:
        for number, block in enumerate(blocks(document)):
            print(f"$ {block.text}", flush=True)
            if block.serves:
                servers.close()
                servers.enter_context(_serving(block.text, tmp_path, number))
                continue
            done = subprocess.run(
                block.text,
                shell=True,
                cwd=tmp_path,
                env=_environment(tmp_path),
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            print(done.stdout, flush=True)
            assert done.returncode == 0, done.stdout[-3000:]


@pytest.fixture(autouse=True)
def _checkout(request: pytest.FixtureRequest) -> None:
    """Give the folder what a reader in a fresh checkout has beside `outputs`."""
    if "slow" not in request.keywords:
        return
    folder = request.getfixturevalue("tmp_path")
    shutil.copy(ROOT / "train.py", folder)
    for name in ("sweeps",):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name)


def _environment(folder: Path) -> dict[str, str]:
    """The PATH of a reader: this environment's commands, and something called vllm."""
    programs = folder / "bin"
    programs.mkdir(exist_ok=True)
    stand_in = programs / "vllm"
    if not stand_in.exists():
        stand_in.write_text(STAND_IN)
        stand_in.chmod(0o755)
    own = str(Path(sys.executable).parent)
    path = os.pathsep.join([str(programs), own, os.environ["PATH"]])
    return {**os.environ, "PATH": path, "COLUMNS": "90", "PYTHONPATH": str(ROOT)}


@contextlib.contextmanager
def _serving(command: str, folder: Path, number: int) -> Iterator[None]:
    """Run a server until the tutorial starts the next one, or ends."""
    log = folder / f"server_{number}.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            shlex.split(command.replace("\\\n", " ")),
            cwd=folder,
            env=_environment(folder),
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        _wait_for_health(process, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _wait_for_health(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            urllib.request.urlopen("http://127.0.0.1:8000/health", timeout=5).close()
            return
        time.sleep(0.3)
    raise AssertionError(f"not ready after {START_SECONDS} s: {log.read_text()[-3000:]}")
