"""What it costs a training step that its hidden states come from a server.

    python benchmarks/online_gap.py [--rounds 3] [--steps 40] [--verifier tiny] [OVERRIDE ...]

The same trainer makes the same steps twice: on rows that lie ready in memory, and on rows from the
online source at a fast server (a fake one in a process of its own, which answers at no cost; so
the tokens are real and the states are noise of the right shape). Printed: seconds of a step, the
gap between both, and the share of the time in which the trainer waited.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.data.loader import RowLoader
from speculators.data.prepared import PreparedData
from speculators.data.types import PackedBatch
from speculators.launch.data_stage import prepare_data
from speculators.launch.drafter_stage import build_drafter
from speculators.launch.states_stage import open_source
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.training.rows import RowSource
from speculators.training.trainer import Trainer

WARM_UP_STEPS = 3


def serve(folder: Path, layer_ids: Sequence[int], hidden_size: int) -> None:
    """Answer with the same noise every time until the input ends; print the port."""
    noise = torch.randn(
        4096, len(layer_ids), hidden_size, generator=torch.Generator().manual_seed(0)
    )

    def states(token_ids: Sequence[int], _: Sequence[int]) -> tuple[Tensor, int]:
        return noise[: len(token_ids)], 0

    with FakeVLLM(folder, layer_ids, states) as server:
        print(server.port, flush=True)
        sys.stdin.read()


class Ready:
    """The first rows of a loader's first epoch, all in memory."""

    def __init__(self, loader: RowLoader, num_rows: int) -> None:
        self._rows = list(itertools.islice(loader.iterate(0), num_rows))
        self.fingerprint = loader.fingerprint

    def rows_in_epoch(self, epoch: int) -> int:
        """Return the number of rows, which every epoch repeats."""
        return len(self._rows)

    def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
        """Yield them."""
        yield from self._rows[first_row:]

    def gauges(self) -> Mapping[str, float]:
        """Nothing is behind them."""
        return {}

    def advice(self) -> str:
        """Never needed."""
        return ""


class Measurement:
    """One verifier, one data set, one server; trainers as they are needed."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.verifier = Verifier(config)
        self.data: PreparedData = prepare_data(config, self.verifier)
        self.layer_ids = target_layer_ids(config, self.verifier.spec)

    def open_loader(self, port: int) -> tuple[RowLoader, object]:
        """Return rows from the server, and what is to be closed."""
        self.config.hidden_states.endpoints = [f"http://127.0.0.1:{port}/v1"]
        source = open_source(self.config, self.verifier, self.layer_ids)
        source.start(list(self.data.train.sample_ids()))
        loader = RowLoader(
            self.data.train,
            source,
            sequence_length=self.config.training.sequence_length,
            num_aux_layers=len(self.layer_ids),
            hidden_size=self.verifier.spec.hidden_size,
            seed=self.config.seed,
        )
        return loader, source

    def train(self, rows: RowSource, folder: Path) -> tuple[float, float]:
        """Return seconds of a step and the share of the time spent waiting."""
        torch.manual_seed(self.config.seed)
        Trainer(
            self.config,
            build_drafter(self.config, self.verifier, self.data),
            self.verifier.head(),
            rows,
            run_dir=folder,
            validate=None,
            device=self.verifier.device,
            console=Console(quiet=True),
        ).fit()
        lines = map(json.loads, (folder / "timing.jsonl").read_text().splitlines())
        steps = [line for line in lines if line["kind"] == "step"][WARM_UP_STEPS:]
        seconds = [line["seconds"] for line in steps]
        return statistics.mean(seconds), sum(s["wait_seconds"] for s in steps) / sum(seconds)


def measure(config: Config, folder: Path, rounds: int) -> dict[str, float]:
    """Return the best of the rounds; in each both ways are measured side by side."""
    measurement = Measurement(config)
    ids = [*measurement.layer_ids, measurement.verifier.spec.num_layers]
    words = [str(folder / "transfer"), json.dumps(ids), str(measurement.verifier.spec.hidden_size)]
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    found = []
    try:
        port = int(server.stdout.readline())
        for number in range(rounds):
            loader, source = measurement.open_loader(port)
            rows = Ready(loader, config.training.max_steps or 1)
            ready, _ = measurement.train(rows, folder / f"ready_{number}")
            online, waits = measurement.train(loader, folder / f"online_{number}")
            source.close()  # pyright: ignore[reportAttributeAccessIssue]
            found.append((ready, online, waits))
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
    # The best of each: whatever else the machine does only adds.
    ready, online, waits = (min(values) for values in zip(*found, strict=True))
    return {
        "ready_seconds": ready,
        "online_seconds": online,
        "gap": online / ready - 1,
        "online_waiting_share": waits,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--verifier", default="tiny")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    arguments, more = parser.parse_known_args(argv)
    torch.set_num_threads(1)
    if arguments.serve is not None:
        path, ids, hidden_size = arguments.serve
        serve(Path(path), json.loads(ids), int(hidden_size))
        return
    folder = Path(tempfile.mkdtemp(prefix="online-gap-"))
    try:
        words = [
            f"verifier={arguments.verifier}",
            "hidden_states=online",
            "hidden_states.fetch.handshake=false",
            "hidden_states.fetch.teacher_check_every=0",
            f"hidden_states.fetch.transfer_path={folder / 'transfer'}",
            f"training.max_steps={arguments.steps}",
            "training.log_every_steps=1",
            f"cache_dir={folder / 'cache'}",
            f"output_dir={folder / 'run'}",
        ]
        found = measure(compose("train", [*words, *more]), folder, arguments.rounds)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, value in found.items():
        print(f"{name:<28} {value:10.4f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
