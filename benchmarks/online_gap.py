"""What it costs a training step that its hidden states come from a server.

    python benchmarks/online_gap.py [--rounds 2] [--steps 15] [--hidden-size 1024] [OVERRIDE ...]

The same trainer makes the same steps twice: on rows that lie ready in memory, and on rows from the
online source at a fast server: a fake one in a process and on a core of its own, which answers at
no cost; so the tokens are real and the states are noise of the right shape. The trainer's process,
its fetching included, has the other cores: on a machine with two cores whatever is fetched is
taken from training. The verifier is the tiny one with the width asked for and random tables.

Printed: seconds of a step by the clock, the gap between both ways, and the share of the time in
which the trainer waited; processor seconds of a step, and those of the threads that fetch. On a
machine with other work the clock says little; the share of the processor that fetching takes holds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor

import speculators.verifier.tiny
from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.data.loader import RowLoader
from speculators.data.prepared import PreparedData
from speculators.data.types import PackedBatch
from speculators.hidden_states.types import HiddenStateSource
from speculators.launch.data_stage import prepare_data
from speculators.launch.drafter_stage import build_drafter
from speculators.launch.states_stage import open_source
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier
from speculators.testing.fake_vllm import FakeVLLM
from speculators.training.rows import RowSource
from speculators.training.trainer import Trainer

WARM_UP_STEPS = 8
"""Steps not counted: meanwhile the source fills its window, which happens once in a run."""


def make_verifier(folder: Path, hidden_size: int) -> None:
    """Write a verifier like the tiny one, of another width; no more of it than trainers read."""
    folder.mkdir(parents=True)
    tiny = Path(speculators.verifier.tiny.__file__).parent
    for path in tiny.glob("*.json"):
        shutil.copy(path, folder)
    config = json.loads((tiny / "config.json").read_text())
    config |= {"hidden_size": hidden_size, "intermediate_size": 3 * hidden_size}
    (folder / "config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(0)
    tables = {
        "model.embed_tokens.weight": torch.randn(
            config["vocab_size"], hidden_size, generator=random
        ),
        "model.norm.weight": torch.ones(hidden_size),
    }
    if not config["tie_word_embeddings"]:
        tables["lm_head.weight"] = tables["model.embed_tokens.weight"].clone()
    save_file(tables, folder / "model.safetensors", metadata={"format": "pt"})


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

    def awaited(self) -> list[str]:
        """Nothing."""
        return []


@dataclass
class Timed:
    """Rows of another source; notes when each one is asked for, which is where a step begins."""

    source: RowSource
    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    samples: list[int] = field(default_factory=list)

    @property
    def fingerprint(self) -> str:
        """Hash of the rows."""
        return self.source.fingerprint

    def rows_in_epoch(self, epoch: int) -> int:
        """Return the number of rows."""
        return self.source.rows_in_epoch(epoch)

    def iterate(self, epoch: int, first_row: int, **ranks: int) -> Iterator[PackedBatch]:
        """Yield the rows."""
        rows = self.source.iterate(epoch, first_row, **ranks)
        while True:
            self.clock.append(time.perf_counter())
            self.processor.append(time.process_time())
            self.others.append(self.processor[-1] - time.thread_time())
            row = next(rows, None)
            if row is None:
                return
            self.samples.append(len(row.sample_ids))
            yield row

    def gauges(self) -> Mapping[str, float]:
        """Return those of the source."""
        return self.source.gauges()

    def advice(self) -> str:
        """Return that of the source."""
        return self.source.advice()

    def awaited(self) -> Sequence[str]:
        """Return what the source waits for."""
        return self.source.awaited()

    def means(self) -> dict[str, float]:
        """Return what a step takes, the first ones left out."""
        count = len(self.clock) - 1 - WARM_UP_STEPS
        series = {"seconds": self.clock, "processor": self.processor, "others": self.others}
        found = {n: (times[-1] - times[WARM_UP_STEPS]) / count for n, times in series.items()}
        return {**found, "samples": statistics.mean(self.samples[WARM_UP_STEPS:])}


class Measurement:
    """One verifier, one data set, one server; trainers as they are needed."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.verifier = Verifier(config)
        self.data: PreparedData = prepare_data(config, self.verifier)
        self.layer_ids = target_layer_ids(config, self.verifier.spec)

    def open_loader(self, port: int) -> tuple[RowLoader, HiddenStateSource]:
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

    def train(self, rows: RowSource, folder: Path) -> dict[str, float]:
        """Return what a step takes."""
        torch.manual_seed(self.config.seed)
        timed = Timed(rows)
        Trainer(
            self.config,
            build_drafter(self.config, self.verifier, self.data).drafter,
            self.verifier.head(),
            timed,
            run_dir=folder,
            validate=None,
            device=self.verifier.device,
            console=Console(quiet=True),
        ).fit()
        lines = map(json.loads, (folder / "timing.jsonl").read_text().splitlines())
        steps = [line for line in lines if line["kind"] == "step"][WARM_UP_STEPS:]
        waited = sum(step["wait_seconds"] for step in steps)
        share = waited / sum(step["seconds"] for step in steps)
        shutil.rmtree(folder)
        return {**timed.means(), "waits": share}


def measure(config: Config, folder: Path, rounds: int, core: int) -> dict[str, float]:
    """Return the best of the rounds; in each both ways are measured side by side."""
    measurement = Measurement(config)
    spec = measurement.verifier.spec
    ids = [*measurement.layer_ids, spec.num_layers]
    words = [str(folder / "transfer"), json.dumps(ids), str(spec.hidden_size), str(core)]
    server = subprocess.Popen(
        [sys.executable, __file__, "--serve", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdin is not None
    assert server.stdout is not None
    ready, online = [], []
    try:
        port = int(server.stdout.readline())
        for number in range(rounds):
            loader, source = measurement.open_loader(port)
            rows = Ready(loader, (config.training.max_steps or 1) + 1)
            ready.append(measurement.train(rows, folder / f"ready_{number}"))
            online.append(measurement.train(loader, folder / f"online_{number}"))
            source.close()
    finally:
        server.stdin.close()
        server.wait(10)
        server.stdout.close()
    # The best of each: whatever else the machine does only adds.
    ready, online = (
        {name: min(one[name] for one in found) for name in found[0]} for found in (ready, online)
    )
    return {
        "ready_seconds": ready["seconds"],
        "online_seconds": online["seconds"],
        "gap": online["seconds"] / ready["seconds"] - 1,
        "ready_processor_seconds": ready["processor"],
        "online_processor_seconds": online["processor"],
        "fetching_processor_seconds": online["others"],
        "fetching_share": online["others"] / ready["processor"],
        "online_waiting_share": online["waits"],
        "samples_per_step": online["samples"],
        "milliseconds_per_sample": 1000 * online["others"] / online["samples"],
        "megabytes_per_row": 4e-6
        * config.training.sequence_length
        * len(ids)
        * measurement.verifier.spec.hidden_size,
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write JSON when asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--hidden-size", type=int, default=1024)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    arguments, more = parser.parse_known_args(argv)
    torch.set_num_threads(1)
    if arguments.serve is not None:
        path, ids, hidden_size, core = arguments.serve
        os.sched_setaffinity(0, {int(core)})
        serve(Path(path), json.loads(ids), int(hidden_size))
        return
    *cores, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores or {last})
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = Path(tempfile.mkdtemp(prefix="online-gap-", dir=parent))
    try:
        make_verifier(folder / "verifier", arguments.hidden_size)
        words = [
            f"verifier.name_or_path={folder / 'verifier'}",
            "data.regenerate.enabled=false",
            "hidden_states=online",
            "hidden_states.fetch.handshake=false",
            "hidden_states.fetch.teacher_check_every=0",
            f"hidden_states.fetch.transfer_path={folder / 'transfer'}",
            "speculator.init=random",
            "speculator.num_layers=2",
            "speculator.max_anchors=128",
            "training.sequence_length=1024",
            f"training.max_steps={WARM_UP_STEPS + arguments.steps}",
            "training.log_every_steps=1",
            f"cache_dir={folder / 'cache'}",
            f"output_dir={folder / 'run'}",
        ]
        found = measure(compose("train", [*words, *more]), folder, arguments.rounds, last)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    for name, value in found.items():
        print(f"{name:<28} {value:10.4f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
