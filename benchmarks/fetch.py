"""How fast hidden states are fetched: against the server's capacity, and against simple clients.

    python benchmarks/fetch.py [--seconds 5] [--json FILE]

Three questions, each answered by a ratio of two measurements of one run:

1. A fake vLLM in a process of its own answers 50 ms after a request and works on 64 at a time:
   1,280 samples a second at most. What share of that does the online source get?
2. How many times faster is it than 12 workers that each send a request, wait, and read the file?
3. What does taking a file of 256 MiB cost, all checks included, against reading its bytes?
"""

from __future__ import annotations

import argparse
import asyncio
import fcntl
import http.client
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speculators.config.schema import FetchConfig, HiddenStatesConfig, HiddenStatesMode
from speculators.data.types import sample_id_of
from speculators.hidden_states.online.checks import StatesCheck
from speculators.hidden_states.online.files import wait_for_file
from speculators.hidden_states.online.handshake import Expected
from speculators.hidden_states.online.source import OnlineSource
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.toy_verifier import ToyVerifier

LATENCY_SECONDS = 0.05
CAPACITY = 64
NUM_WORKERS = 12
NUM_TOKENS = 64
LAYER_IDS = (1, 3, 4)
_STATES = torch.randn(NUM_TOKENS, len(LAYER_IDS), 32, generator=torch.Generator().manual_seed(0))


@dataclass(frozen=True)
class Row:
    """A sample."""

    input_ids: Tensor
    sample_id: str


def rows() -> Iterator[Row]:
    """Yield samples without end."""
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(97, (512, NUM_TOKENS), generator=random)
    return itertools.cycle([Row(tokens, sample_id_of(tokens)) for tokens in prompts])


def cheap_states(token_ids: Sequence[int], layer_ids: Sequence[int]) -> tuple[Tensor, int]:
    """Answer at no cost: what is measured is the way, not the arithmetic."""
    return _STATES[: len(token_ids)], 0


def serve(folder: Path) -> None:
    """Run the server until its input ends; print its port."""
    with FakeVLLM(
        folder, LAYER_IDS, cheap_states, latency_seconds=LATENCY_SECONDS, capacity=CAPACITY
    ) as server:
        print(server.port, flush=True)
        sys.stdin.read()


def fetch(folder: Path, port: int, seconds: float) -> float:
    """Return samples per second of the online source."""
    toy = ToyVerifier()
    settings = HiddenStatesConfig(
        name="online",
        mode=HiddenStatesMode.online,
        endpoints=[f"http://127.0.0.1:{port}/v1"],
        fetch=FetchConfig(
            requests_per_endpoint=2 * CAPACITY,
            prefetch_samples=4 * CAPACITY,
            transfer_path=str(folder),
            teacher_check_every=0,
            handshake=False,
        ),
    )

    def expected(ids: tuple[int, ...]) -> Expected:
        return Expected(toy.spec, ids, 256, toy.embed_tokens, toy.head)

    source = OnlineSource(settings, LAYER_IDS, toy.spec.hidden_size, expected)
    try:
        source.start()
        return _rate(source.stream([row] for row in rows()), seconds)
    finally:
        source.close()


def _rate(stream: Iterator[object], seconds: float) -> float:
    """Return items per second, after a second to get going."""
    for warm_up in (1.0, seconds):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < warm_up:
            next(stream)
            count += 1
        rate = count / (time.perf_counter() - began)
    return rate


def fetch_blocking(port: int, seconds: float) -> float:
    """Return samples per second of workers that each wait for their own answer."""
    samples, lock = rows(), threading.Lock()
    counts = [0] * NUM_WORKERS
    deadline = time.perf_counter() + seconds

    def work(which: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port)
        while time.perf_counter() < deadline:
            with lock:
                prompt = next(samples).input_ids.tolist()
            body = {"model": "toy", "prompt": prompt, "max_tokens": 1, "return_token_ids": True}
            connection.request(
                "POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"}
            )
            answer = json.loads(connection.getresponse().read())
            path = answer["kv_transfer_params"]["hidden_states_path"]
            with open(f"{path}.lock") as held:
                fcntl.flock(held, fcntl.LOCK_SH)
                load_file(path)
            os.remove(path)
            os.remove(f"{path}.lock")
            counts[which] += 1

    began = time.perf_counter()
    with ThreadPoolExecutor(NUM_WORKERS) as workers:
        list(workers.map(work, range(NUM_WORKERS)))
    return sum(counts) / (time.perf_counter() - began)


def read_large(folder: Path) -> dict[str, float]:
    """Return seconds to read 256 MiB plainly, and to take and check the same file."""
    shape = (8192, 4, 4096)
    states = torch.randn(shape, generator=torch.Generator().manual_seed(0)).bfloat16()
    tokens = torch.arange(shape[0])
    path = folder / "cmpl-large.safetensors"
    check = StatesCheck((2, 18, 33, 36), shape[-1])

    def plain() -> bytes:
        return path.read_bytes()

    def take() -> Tensor:
        held = asyncio.run(wait_for_file(str(path), 1.0))
        return check(held.load(), tokens)

    save_file({"hidden_states": states, "token_ids": tokens}, path)
    try:
        return {
            "plain_read_seconds": _median(plain),
            "checked_read_seconds": _median(take),
        }
    finally:
        path.unlink()


def _median(action: Callable[[], object], repeats: int = 9) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        result = action()
        times.append(time.perf_counter() - began)
        del result
    return statistics.median(times[1:])


def measure(seconds: float) -> dict[str, float]:
    """Return every measurement and the three ratios."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fetch-", dir=parent))
    command = [sys.executable, __file__, "--serve", str(folder)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        found = {
            "capacity_per_second": CAPACITY / LATENCY_SECONDS,
            "fetched_per_second": fetch(folder, port, seconds),
            "blocking_per_second": fetch_blocking(port, seconds),
            **read_large(folder),
        }
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)
    return found | {
        "share_of_capacity": found["fetched_per_second"] / found["capacity_per_second"],
        "times_blocking": found["fetched_per_second"] / found["blocking_per_second"],
        "times_plain_read": found["checked_read_seconds"] / found["plain_read_seconds"],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    found = measure(arguments.seconds)
    for name, value in found.items():
        print(f"{name:<24} {value:10.3f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
