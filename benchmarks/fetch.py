"""How fast hidden states are fetched: against the server's capacity, and against simple clients.

    python benchmarks/fetch.py [--seconds 3] [--rounds 5] [--json FILE]

Three questions, each answered by a ratio of two measurements of one run:

1. A fake vLLM in a process of its own answers 50 ms after a request and works on 64 at a time:
   nominally 1,280 samples a second, measured by a client that only asks. What share of that does
   the online source get, files, checks and clean-up included?
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
    loss_mask: Tensor
    sample_id: str


def rows() -> Iterator[Row]:
    """Yield samples without end."""
    random = torch.Generator().manual_seed(0)
    prompts = torch.randint(97, (512, NUM_TOKENS), generator=random)
    mask = torch.ones(NUM_TOKENS, dtype=torch.bool)
    return itertools.cycle([Row(tokens, mask, sample_id_of(tokens)) for tokens in prompts])


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
        source.start(["any"])
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


def saturate(port: int, seconds: float) -> float:
    """Return answers per second when nothing is done but asking: what the server can give.

    Prompts are sent over bare connections, twice as many as the server works on at a time.
    """
    prompt = next(rows()).input_ids.tolist()
    words = {"model": "toy", "prompt": prompt, "max_tokens": 1, "return_token_ids": True}
    body = json.dumps(words).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + body
    count = 0

    async def ask(deadline: float) -> None:
        nonlocal count
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < deadline:
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            length = int(answer.split(b"Content-Length: ")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            count += 1
        writer.close()

    async def everybody() -> float:
        nonlocal count
        began = time.perf_counter()
        asking = asyncio.gather(*(ask(began + 1 + seconds) for _ in range(2 * CAPACITY)))
        await asyncio.sleep(1)
        before, began = count, time.perf_counter()
        await asyncio.sleep(seconds)
        rate = (count - before) / (time.perf_counter() - began)
        await asking
        return rate

    return asyncio.run(everybody())


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


def read_large(folder: Path) -> tuple[float, float]:
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
        return _median(plain), _median(take)
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


def measure(seconds: float, rounds: int) -> dict[str, float]:
    """Return every measurement, the best and the median of the rounds, and the ratios of the best.

    Whatever else the machine does only adds time, and to the heavier side more than to the other.
    """
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="fetch-", dir=parent))
    command = [sys.executable, __file__, "--serve", str(folder)]
    server = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert server.stdin is not None
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        found = [_round(folder, port, seconds) for _ in range(rounds)]
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
        shutil.rmtree(folder, ignore_errors=True)
    best = {
        name: (min if name.endswith("_seconds") else max)(one[name] for one in found)
        for name in found[0]
    }
    medians = {f"median_{name}": statistics.median(one[name] for one in found) for name in best}
    fetched, blocking = best["fetched_per_second"], best["blocking_per_second"]
    return {
        **best,
        **medians,
        "share_of_nominal_capacity": fetched / best["nominal_capacity_per_second"],
        "share_of_capacity": fetched / best["capacity_per_second"],
        "times_blocking": fetched / blocking,
        "times_plain_read": best["checked_read_seconds"] / best["plain_read_seconds"],
    }


def _round(folder: Path, port: int, seconds: float) -> dict[str, float]:
    nominal, capacity = CAPACITY / LATENCY_SECONDS, saturate(port, seconds)
    fetched, blocking = fetch(folder, port, seconds), fetch_blocking(port, seconds)
    plain, checked = read_large(folder)
    return {
        "nominal_capacity_per_second": nominal,
        "capacity_per_second": capacity,
        "fetched_per_second": fetched,
        "blocking_per_second": blocking,
        "plain_read_seconds": plain,
        "checked_read_seconds": checked,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.serve is not None:
        serve(arguments.serve)
        return
    found = measure(arguments.seconds, arguments.rounds)
    for name, value in found.items():
        print(f"{name:<36} {value:10.3f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
