"""Drafters served by a real vLLM: the verifier's own answers, and the acceptance measured here.

Needs the command of a vLLM 0.32 server in SPECULATORS_VLLM; a CPU build will do. About two minutes
a drafter.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.conversion.layout import read_model
from speculators.evaluation.evaluate import evaluate
from speculators.evaluation.prompts import Prompt
from speculators.launch import train
from speculators.launch.prompts_stage import held_out_prompts
from speculators.launch.verifier_stage import Verifier, prepare_data

pytestmark = pytest.mark.vllm
STEPS, PROMPTS, NEW_TOKENS = 120, 24, 96
READY_SECONDS = 240


REDUCED = "speculator.draft_vocab_size=512"
CHOICES: list[list[str]] = [
    ["speculator=dflash"],
    ["speculator=dflash", REDUCED],
    ["speculator=eagle3"],
    ["speculator=eagle3", REDUCED],
    ["speculator=peagle"],
    ["speculator=peagle", REDUCED],
    [
        "speculator=eagle3", "speculator.num_layers=2", "speculator.layer_type=llama",
        "speculator.norm_before_residual=false", "speculator.norm_output=true",
        "speculator.norm_before_fc=true", "speculator.target_layer_ids=[1,3,4,5]",
    ],
    [
        "speculator=eagle3", "speculator.sliding_window=16", "speculator.fc_norm=true",
        "speculator.num_draft_tokens=5",
    ],
]  # fmt: skip


@pytest.mark.parametrize("choices", CHOICES, ids=" ".join)
def test_served_as_measured(choices: list[str], tmp_path: Path) -> None:
    config = compose("train", [
        *choices, f"output_dir={tmp_path}/run",
        f"cache_dir={tmp_path}/cache", f"training.max_steps={STEPS}", "evaluation.enabled=false",
    ])  # fmt: skip
    checkpoint = Path(train.run(config)["checkpoint"])
    verifier = Verifier(config)
    prompts = held_out_prompts(
        prepare_data(config, verifier).validation, verifier.tokenizer, PROMPTS
    )
    plain = verifier.model().generate(
        [list(prompt.input_ids or ()) for prompt in prompts], max_new_tokens=NEW_TOKENS,
        temperature=0.0, seed=0, batch_size=8, stop_ids=sorted(verifier.tokenizer.end_of_turn_ids),
    )  # fmt: skip
    with server(checkpoint, tmp_path) as address:
        answers = [complete(address, prompt) for prompt in prompts]
        served = acceptance_length(address)
    assert answers == plain
    assert served == pytest.approx(measured(checkpoint, config, verifier, prompts), rel=0.01)


def measured(checkpoint: Path, config: Config, verifier: Verifier, prompts: list[Prompt]) -> float:
    """Return the acceptance length of decoding in this process."""
    drafter = read_model(checkpoint, spec=verifier.spec, tables=verifier.tables())
    settings = config.evaluation
    settings.max_new_tokens, settings.num_prompts, settings.compare = NEW_TOKENS, PROMPTS, False
    return evaluate(
        verifier.model(), drafter, verifier.tokenizer, prompts, settings, seed=0, progress=False
    ).acceptance.length


@contextmanager
def server(checkpoint: Path, folder: Path) -> Iterator[str]:
    """Serve a checkpoint as it lies there, in fp32, and stop at the end."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [os.environ["SPECULATORS_VLLM"], "serve", str(checkpoint.resolve())]
    command += ["--host", "127.0.0.1", "--port", str(port), "--enforce-eager", "--dtype", "float32"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    log = folder / "vllm.log"
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out) as process,
    ):
        try:
            wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def wait(url: str, process: subprocess.Popen[Any], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1)
    raise AssertionError(f"vLLM did not start:\n{log.read_text()[-2000:]}")


def complete(address: str, prompt: Prompt) -> list[int]:
    """Return the greedy answer's tokens."""
    body = {
        "model": json.loads(read(f"{address}/v1/models"))["data"][0]["id"],
        "prompt": list(prompt.input_ids or ()),
        "max_tokens": NEW_TOKENS,
        "temperature": 0,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{address}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)["choices"][0]["token_ids"]


def acceptance_length(address: str) -> float:
    """Return 1 + accepted / drafts from the server's counters."""
    found = {}
    for line in read(f"{address}/metrics").splitlines():
        for name in ("num_drafts", "num_accepted_tokens"):
            if line.startswith(f"vllm:spec_decode_{name}_total"):
                found[name] = float(line.rsplit(" ", 1)[1])
    return 1 + found["num_accepted_tokens"] / found["num_drafts"]


def read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return response.read().decode()
