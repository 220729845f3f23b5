"""What eight-bit hidden states cost: in the states, in the teacher, in a trained drafter.

    python benchmarks/float8.py [--steps 200] [--verifier tiny] [--json FILE] [OVERRIDE ...]

Trains the same drafter twice, on states stored as they are and in eight bits, everything else
equal, and compares: the states of both stores, the teacher's most likely token from each, and the
held-out loss and acceptance length at the end.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from speculators.config.composition import compose
from speculators.config.schema import Config
from speculators.hidden_states.identity import ANY_DTYPE
from speculators.hidden_states.store import HiddenStateStore
from speculators.launch import train
from speculators.launch.data_stage import prepare_data
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier
from speculators.verifier.identity import store_identity


def configure(folder: Path, name: str, verifier: str, steps: int, more: Sequence[str]) -> Config:
    """Return the configuration of one of the two runs."""
    return compose(
        "train",
        [
            f"verifier={verifier}",
            f"training.max_steps={steps}",
            "evaluation.enabled=false",
            f"cache_dir={folder / 'cache'}",
            f"output_dir={folder / name}",
            "hidden_states=embedded",
            "hidden_states.on_generate=cache",
            f"hidden_states.store_path={folder / f'store_{name}'}",
            f"hidden_states.store_dtype={name}",
            *more,
        ],
    )


def trained(config: Config) -> dict[str, float]:
    """Train and return the last validation."""
    train.run(config)
    lines = (Path(config.output_dir) / "metrics.jsonl").read_text().splitlines()
    last = [line for line in map(json.loads, lines) if line["kind"] == "validation"][-1]
    return {key: float(last[key]) for key in ("loss", "acceptance_length")}


def open_store(config: Config, verifier: Verifier) -> HiddenStateStore:
    """Open what a run has stored."""
    layer_ids = target_layer_ids(config, verifier.spec)
    wanted = store_identity(verifier.spec, layer_ids, dtype=ANY_DTYPE, engine="")
    return HiddenStateStore.open(config.hidden_states.store_path or "", wanted, create=False)


def compare_states(exact: Config, small: Config) -> dict[str, float]:
    """Return relative errors by layer, teacher agreement, and bytes."""
    verifier = Verifier(exact)
    samples = prepare_data(exact, verifier).validation
    stores = [open_store(config, verifier) for config in (exact, small)]
    head = verifier.head()
    errors, same, agreed, sizes = [], [], 0, [0, 0]
    for i in range(len(samples)):
        a, b = (store.get(samples[i]) for store in stores)
        if a is None or b is None:
            continue
        one, other = (torch.cat([s.aux, s.last[:, None]], 1).float() for s in (a, b))
        errors.append((other - one).norm(dim=-1) / one.norm(dim=-1))
        says = [head.argmax(states.last.to(verifier.device)) for states in (a, b)]
        same.append((says[0] == says[1]).float())
        agreed += len(says[0])
        for j, store in enumerate(stores):
            sizes[j] += store.path_of(samples[i].sample_id).stat().st_size
    layers = torch.cat(errors).mean(0).tolist()
    found = {
        f"relative_error_layer_{n}": e for n, e in zip(stores[0].layer_ids, layers, strict=True)
    }
    agreement = float(torch.cat(same).mean())
    return {
        **found,
        "tokens": agreed,
        "teacher_same_token": agreement,
        "bytes_ratio": sizes[1] / sizes[0],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train twice, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--verifier", default="tiny")
    parser.add_argument("--json", type=Path)
    arguments, more = parser.parse_known_args(argv)
    with tempfile.TemporaryDirectory(prefix="float8-") as name:
        exact, small = (
            configure(Path(name), dtype, arguments.verifier, arguments.steps, more)
            for dtype in ("same", "float8_e4m3fn")
        )
        found: dict[str, Any] = {}
        for config, label in ((exact, "exact"), (small, "float8")):
            found |= {f"{label}_{key}": value for key, value in trained(config).items()}
        found |= compare_states(exact, small)
    for key, value in found.items():
        print(f"{key:<28} {value:12.5f}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
