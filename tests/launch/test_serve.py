"""The server command: what it runs, how it waits, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.errors import LaunchError
from speculators.hidden_states.online.transfer import choose_folder, default_folders, make_private
from speculators.launch import serve
from speculators.launch.online_stage import expectation
from speculators.launch.serve import server_arguments
from speculators.launch.server import ServerProcess, find_program
from speculators.launch.verifier_stage import Verifier, longest_sample
from speculators.testing.toy_verifier import toy_spec

ROOT = Path(__file__).parents[2]

# Stands in for vLLM: starts slowly, has a child of its own, and can refuse to end.
PROGRAM = """\
import json, os, signal, subprocess, sys, time
from http.server import BaseHTTPRequestHandler, HTTPServer
args = sys.argv[1:]
print("arguments", json.dumps(args), flush=True)
if "--crash" in args:
    sys.exit(7)
if "--stubborn" in args:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print("child", child.pid, flush=True)
time.sleep(0.3)
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *_):
        pass
HTTPServer(("127.0.0.1", int(args[args.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def program(tmp_path: Path) -> list[str]:
    path = tmp_path / "vllm.py"
    path.write_text(PROGRAM)
    return [sys.executable, str(path)]


@pytest.fixture
def port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def configured(*overrides: str) -> Config:
    return compose("serve", ["verifier=tiny", "training.sequence_length=512", *overrides])


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_the_arguments_ask_for_the_drafters_layers_and_the_last_one(tmp_path: Path) -> None:
    arguments = server_arguments(configured(), toy_spec(name="org/model"), (1, 3, 4), tmp_path)
    assert arguments[:2] == ["serve", "org/model"]
    assert json.loads(option(arguments, "--speculative_config")) == {
        "method": "extract_hidden_states",
        "num_speculative_tokens": 1,
        "draft_model_config": {"hf_config": {"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}},
    }
    assert json.loads(option(arguments, "--kv_transfer_config")) == {
        "kv_connector": "ExampleHiddenStatesConnector",
        "kv_role": "kv_producer",
        "kv_connector_extra_config": {"shared_storage_path": str(tmp_path)},
    }
    assert option(arguments, "--max-model-len") == "513"
    assert option(arguments, "--dtype") == "float32"


def test_the_length_is_at_most_the_verifiers(tmp_path: Path) -> None:
    config = configured("training.sequence_length=4096")
    arguments = server_arguments(config, toy_spec(), (4,), tmp_path)
    assert option(arguments, "--max-model-len") == "4096"


def test_no_sample_is_longer_than_the_longest_server_can_take(tmp_path: Path) -> None:
    config = compose("serve", ["verifier=tiny", "training.sequence_length=8192"])
    verifier = Verifier(config)
    arguments = server_arguments(config, verifier.spec, (1, 7), tmp_path)
    taken = int(option(arguments, "--max-model-len") or 0)
    assert taken == verifier.spec.max_position_embeddings
    assert longest_sample(config, verifier) == taken - 1
    assert expectation(config, verifier)((1, 7)).max_tokens == taken - 1


def test_arguments_of_the_user_win_where_they_may(tmp_path: Path) -> None:
    extra = ["--max_model_len=99", "--tensor-parallel-size", "2"]
    arguments = server_arguments(configured(), toy_spec(), (4,), tmp_path, extra)
    assert "--max-model-len" not in arguments
    assert arguments[-3:] == extra


@pytest.mark.parametrize("name", ["--speculative-config", "--kv_transfer_config={}"])
def test_arguments_about_extraction_cannot_be_given(name: str, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="set by this command"):
        server_arguments(configured(), toy_spec(), (4,), tmp_path, [name])


def test_dry_run_prints_the_command_and_starts_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["speculators", "serve", "dry_run=true", "--", "--enforce-eager"]
    serve.run(configured("dry_run=true", "speculator.target_layer_ids=[2,4]"), argv)
    line = capsys.readouterr().out.strip()
    assert line.startswith("vllm serve /")
    assert '"eagle_aux_hidden_state_layer_ids":[2,4,7]' in line
    assert line.endswith("--enforce-eager")


def test_a_missing_program_is_named_with_the_remedy() -> None:
    with pytest.raises(LaunchError, match=r"serve\.command=no-such-vllm: no such program"):
        find_program("no-such-vllm")


def test_a_server_is_waited_for_and_ends_with_its_children(
    program: list[str], port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{port}"
    command = [*program, "--port", str(port)]
    with ServerProcess(command, url, stop_timeout_seconds=5) as server:
        assert server.wait_until_ready(20, print) >= 0.3
        taken = ServerProcess(command, url, stop_timeout_seconds=5)
        with pytest.raises(LaunchError, match=r"answers at .* already"):
            taken.start()
    assert not answers(url)
    assert not alive(child_of(capfd.readouterr().out))


def test_a_server_that_will_not_end_is_killed(
    program: list[str], port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{port}"
    command = [*program, "--port", str(port), "--stubborn"]
    with ServerProcess(command, url, stop_timeout_seconds=0.2) as server:
        server.wait_until_ready(20, print)
    assert not answers(url)
    assert not alive(child_of(capfd.readouterr().out))


def test_a_server_that_ends_by_itself_is_reported(program: list[str], port: int) -> None:
    command = [*program, "--port", str(port), "--crash"]
    server = ServerProcess(command, f"http://127.0.0.1:{port}", stop_timeout_seconds=1)
    with server, pytest.raises(LaunchError, match="ended by itself with status 7"):
        server.wait_until_ready(20, print)


def test_a_server_that_is_too_slow_is_stopped(program: list[str], port: int) -> None:
    said: list[str] = []
    server = ServerProcess(
        [*program, "--port", str(port)], f"http://127.0.0.1:{port}", stop_timeout_seconds=5
    )
    with server, pytest.raises(LaunchError, match=r"serve\.startup_timeout_seconds"):
        server.wait_until_ready(0.01, said.append)


@pytest.mark.parametrize(
    "passed_on", [pytest.param((), marks=pytest.mark.slow), ("--", "--enforce-eager")]
)
def test_the_command_serves_until_a_signal(
    program: list[str], port: int, tmp_path: Path, passed_on: tuple[str, ...]
) -> None:
    folder = tmp_path / "states"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "speculators", "serve", "verifier=tiny"),
            f"serve.command={program[0]} {program[1]}",
            f"serve.port={port}",
            f"hidden_states.fetch.transfer_path={folder}",
            f"output_dir={tmp_path / 'run'}",
            *passed_on,
        ],
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "400"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("stop with"):
            break
    process.send_signal(signal.SIGTERM)
    lines += process.stdout.readlines()
    assert process.wait(20) == 0
    process.stdout.close()
    text = "".join(lines)
    assert ("--enforce-eager" in text) == bool(passed_on)
    assert f"writes layers [1, 3, 5, 7] to {folder}" in text
    assert f"hidden_states.endpoints=[http://127.0.0.1:{port}/v1]" in text
    assert lines[-1] == "vLLM has stopped\n"
    assert oct(folder.stat().st_mode & 0o777) == "0o700"
    assert not alive(child_of(text))


def test_the_folder_is_on_the_ram_disk_when_it_is_large_enough(tmp_path: Path) -> None:
    ram, disk = default_folders()
    assert choose_folder(None, 2**62) == disk
    assert choose_folder(str(tmp_path), 2**62) == tmp_path
    if Path("/dev/shm").is_dir():
        assert choose_folder(None, 1) == ram
    make_private(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode & 0o77 == 0


def child_of(text: str) -> int:
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("child "))


def alive(process_id: int) -> bool:
    for _ in range(20):
        try:
            status = Path(f"/proc/{process_id}/stat").read_text().split()[2]
        except FileNotFoundError:
            return False
        if status == "Z":
            return False
        time.sleep(0.05)
    return True


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=1).close()
    except OSError:
        return False
    return True
