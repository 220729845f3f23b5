"""Drafters beside each other on one verifier: acceptance, and the time of what each of them does.

    python benchmarks/compare.py [--speculators dflash dspark eagle3 peagle] [--folder DIR]
        [--rounds 12] [--threads 1] [--json FILE] [OVERRIDE ...]
    python benchmarks/compare.py --runs RUN_A RUN_B ...

Trains each speculator with the configuration of `train.py speculator=NAME OVERRIDE ...` (the tiny
verifier where nothing else is said; runs that lie in --folder already are not trained again), or
takes finished runs. Then decodes the prompts of each run, with and without its drafter in turns:
acceptance, seconds per proposal and per verification, speed-up. A training step (forward and
backward on one packed row) is measured with the runs taking turns; the fastest of all rounds
counts. Prints a Markdown table.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from speculators.algorithms.base import Drafter, StepContext
from speculators.config.composition import compose
from speculators.config.loading import load_run_config
from speculators.conversion.layout import read_model
from speculators.data.loader import RowLoader
from speculators.data.types import PackedBatch
from speculators.evaluation.evaluate import evaluate
from speculators.launch import train
from speculators.launch.data_stage import prepare_data
from speculators.launch.prompts_stage import find_prompts
from speculators.launch.states_stage import open_source
from speculators.launch.verifier_stage import Verifier

SPECULATORS = ("dflash", "dspark", "eagle3", "peagle")


class Run:
    """A finished run: its best drafter, a packed row with states, the teacher, the prompts.

    Args:
        folder: of the run.
    """

    def __init__(self, folder: Path) -> None:
        best = folder / "checkpoints" / "checkpoint_best"
        self.folder, self.config = folder, load_run_config(best / "run.yaml")
        self.verifier = Verifier(self.config)
        self.data = prepare_data(self.config, self.verifier)
        self.drafter = read_model(best, spec=self.verifier.spec, tables=self.verifier.tables())
        self.teacher = self.verifier.head()
        self.row = self._first_row()

    def _first_row(self) -> PackedBatch:
        layer_ids = list(self.drafter.config.target_layer_ids or ())
        source = open_source(self.config, self.verifier, layer_ids)
        loader = RowLoader(
            self.data.train, source, sequence_length=self.config.training.sequence_length,
            num_aux_layers=len(layer_ids), hidden_size=self.verifier.spec.hidden_size, seed=0,
            shuffle=True,
        )  # fmt: skip
        try:
            return next(iter(loader.iterate(epoch=0)))
        finally:
            source.close()

    def step_seconds(self) -> float:
        """Time a forward and backward pass."""
        begin = time.perf_counter()
        self.drafter.train()
        self.drafter.compute_loss(self.row, self.teacher, StepContext(0, 0)).loss_sum.backward()
        return time.perf_counter() - begin

    def decode(self) -> dict[str, Any]:
        """Decode the run's prompts, with and without the drafter in turns."""
        drafter: Drafter[Any] = self.drafter.eval()
        settings, tokenizer = self.config.evaluation, self.verifier.tokenizer
        longest = self.verifier.spec.max_position_embeddings - drafter.num_draft_tokens - 1
        prompts = find_prompts(settings, tokenizer, lambda: self.data, longest).prompts
        model, seed = self.verifier.model(), self.config.seed
        found = evaluate(model, drafter, tokenizer, prompts, settings, seed=seed, progress=False)
        drafts, plain = found.acceptance.num_drafts, found.plain
        said = found.to_dict()
        return {
            **{key: said[key] for key in ("acceptance_length", "acceptance_length_ci95")},
            **{key: said[key] for key in ("acceptance_per_position", "lossless_prompts")},
            **{key: said[key] for key in ("num_prompts", "speedup", "speedup_ci95")},
            "proposal_ms": 1e3 * found.speculative.draft_seconds / drafts,
            "verify_ms": 1e3 * found.speculative.verify_seconds / drafts,
            "plain_token_ms": None if plain is None else 1e3 * plain.seconds / plain.tokens,
        }


def measure(folders: Sequence[Path], rounds: int) -> list[dict[str, Any]]:
    """Return one row per run."""
    runs = [Run(folder) for folder in folders]
    steps = [float("inf")] * len(runs)
    for _ in range(rounds):
        for index, run in enumerate(runs):
            steps[index] = min(steps[index], *(run.step_seconds() for _ in range(3)))
    rows = []
    for run, step in zip(runs, steps, strict=True):
        config, weights = run.drafter.config, run.drafter.trainable_parameters().values()
        about = {
            "speculator": config.name,
            "run": str(run.folder),
            "num_layers": config.num_layers,
            "num_draft_tokens": run.drafter.num_draft_tokens,
            "trained_weights": sum(p.numel() for p in weights),
            "step_ms": 1e3 * step,
        }
        rows.append(about | run.decode())
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return two Markdown tables: the numbers, and acceptance by position."""
    columns: list[tuple[str, Callable[[dict[str, Any]], str]]] = [
        ("", lambda r: f"{r['speculator']}, layers: {r['num_layers']}"),
        ("drafted", lambda r: str(r["num_draft_tokens"])),
        ("trained weights", lambda r: f"{r['trained_weights']:,}"),
        ("tau (95 %)", lambda r: "{:.2f} ({:.2f} to {:.2f})".format(
            r["acceptance_length"], *r["acceptance_length_ci95"])),
        ("step ms", lambda r: f"{r['step_ms']:.1f}"),
        ("proposal ms", lambda r: f"{r['proposal_ms']:.2f}"),
        ("verification ms", lambda r: f"{r['verify_ms']:.2f}"),
        ("plain token ms", lambda r: f"{r['plain_token_ms']:.2f}"),
        ("speed-up (95 %)", lambda r: "{:.2f} ({:.2f} to {:.2f})".format(
            r["speedup"], *r["speedup_ci95"])),
        ("lossless", lambda r: f"{r['lossless_prompts']} of {r['num_prompts']}"),
    ]  # fmt: skip
    lines = ["| " + " | ".join(name for name, _ in columns) + " |", "|---" * len(columns) + "|"]
    lines += ["| " + " | ".join(shown(row) for _, shown in columns) + " |" for row in rows]
    most = max(row["num_draft_tokens"] for row in rows)
    lines += ["", "| | " + " | ".join(str(k + 1) for k in range(most)) + " |"]
    lines += ["|---" * (most + 1) + "|"]
    for row in rows:
        shares = [f"{share:.3f}"[1:] for share in row["acceptance_per_position"]]
        shares += [""] * (most - len(shares))
        lines.append(f"| {row['speculator']} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Train what is missing, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--speculators", nargs="+", default=SPECULATORS)
    parser.add_argument("--folder", type=Path, default=Path("outputs/compare"))
    parser.add_argument("--runs", type=Path, nargs="+")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path)
    arguments, overrides = parser.parse_known_args(argv)
    torch.set_num_threads(arguments.threads)
    folders = arguments.runs or [arguments.folder / name for name in arguments.speculators]
    for folder in folders if arguments.runs is None else ():
        train.run(
            compose(
                "train",
                [f"speculator={folder.name}", f"output_dir={folder}", "evaluation.enabled=false",
                 *overrides],
            )
        )  # fmt: skip
    torch.set_num_threads(arguments.threads)
    found = {
        "date": date.today().isoformat(),
        "torch": torch.__version__,
        "threads": arguments.threads,
        "cores": os.cpu_count(),
        "rows": measure(folders, arguments.rounds),
    }
    print(table(found["rows"]))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
