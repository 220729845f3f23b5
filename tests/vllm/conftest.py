"""A real vLLM: `make test-vllm` builds one, VLLM=COMMAND names another."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from vllm.build import add_host_plugin

START_SECONDS = 300

# A GiB is plenty for the tiny verifier; nothing is reported to anybody.
ENVIRONMENT = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.vllm)


@pytest.fixture(scope="session", autouse=True)
def host_plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Whoever built that vLLM: on a CPU it needs the plugin; elsewhere the plugin does nothing."""
    folder = tmp_path_factory.mktemp("plugin")
    add_host_plugin(folder)
    before = os.environ.get("PYTHONPATH")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{folder}:{before}" if before else str(folder))
        yield


@pytest.fixture(scope="session")
def vllm() -> str:
    """The command."""
    found = shutil.which(os.path.expanduser(os.environ.get("VLLM", "vllm")))
    if found is None:
        pytest.fail("no vLLM: run `make test-vllm`, or give VLLM=COMMAND")
    return str(Path(found).absolute())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("vllm")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def running(command: Sequence[str], port: int, log: Path) -> Iterator[str]:
    """Run a server, wait until it answers, and end it as Ctrl-C or `kill` would."""
    url = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdout=output,
            stderr=output,
            env=os.environ | ENVIRONMENT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _answers(url):
            if process.poll() is not None or time.monotonic() > deadline:
                tail = "".join(log.read_text().splitlines(keepends=True)[-30:])
                pytest.fail(f"{' '.join(command)}: no server at {url}:\n{tail}")
            time.sleep(0.3)
        yield f"{url}/v1"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its engine and workers too
            process.wait()


@contextmanager
def serving(vllm: str, log: Path, *what: str | Path) -> Iterator[str]:
    """Run `vllm serve`, in the numbers of this process."""
    port = free_port()
    command = [vllm, "serve", *map(str, what), "--host", "127.0.0.1", "--port", str(port)]
    with running([*command, "--dtype", "float32", "--enforce-eager"], port, log) as url:
        yield url


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def speculators(*arguments: str) -> list[str]:
    """Return a command line of this project."""
    return [sys.executable, "-m", "speculators", *arguments]


def assert_same_drafts(found: dict[str, Any]) -> None:
    """Hold a served evaluation against its own comparison: draft by draft, not only on average.

    Two tokens that a drafter finds equally likely may swap places by rounding: one prompt may.
    """
    own = found["in_process"]
    assert own["equal_prompts"] >= found["num_prompts"] - 1
    assert found["acceptance_length"] == pytest.approx(own["acceptance_length"], rel=0.01)
