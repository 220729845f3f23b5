r"""How far a server's hidden states are from those of the verifier in this process.

    speculators serve verifier=tiny speculator=dflash verifier.dtype=float32 -- --enforce-eager
    python benchmarks/served_states.py hidden_states.endpoints=[http://localhost:8000/v1] \
        verifier=tiny speculator=dflash verifier.dtype=float32 [--samples 50] [--json FILE]

The same rows go both ways. Printed for every layer: the relative difference |a - b| / |b| over
all values of a sample, its mean over samples and its largest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from speculators.config.composition import compose
from speculators.data.types import Sample
from speculators.hidden_states.types import HiddenStates, HiddenStateSource
from speculators.launch.data_stage import prepare_data
from speculators.launch.states_stage import open_source
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier


def stacked(states: HiddenStates | None) -> Tensor:
    """Return the layers of one sample in fp32, the last one last."""
    assert states is not None, "the server could not deliver a sample"
    return torch.cat([states.aux, states.last[:, None]], dim=1).float().cpu()


def collect(source: HiddenStateSource, samples: Sequence[Sample]) -> list[Tensor]:
    """Return the states of every sample."""
    try:
        source.start([sample.sample_id for sample in samples])
        return [stacked(states[0]) for states in source.stream([s] for s in samples)]
    finally:
        source.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Fetch, compute, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--json", type=Path)
    arguments, overrides = parser.parse_known_args(argv)
    served = compose("train", ["hidden_states=online", *overrides])
    own = [word for word in overrides if not word.startswith("hidden_states.endpoints")]
    verifier = Verifier(compose("train", ["hidden_states=embedded", *own]))
    layer_ids = target_layer_ids(served, verifier.spec)
    data = prepare_data(served, verifier).train
    samples = [data[i] for i in range(min(arguments.samples, len(data)))]
    theirs = collect(open_source(served, verifier, layer_ids), samples)
    embedded = compose("train", ["hidden_states=embedded", *own])
    ours = collect(open_source(embedded, verifier, layer_ids), samples)
    gaps = torch.stack(
        [(a - b).norm(dim=(0, 2)) / b.norm(dim=(0, 2)) for a, b in zip(theirs, ours, strict=True)]
    )
    found = {"samples": float(len(samples)), "tokens": float(sum(map(len, ours)))}
    for column, layer_id in enumerate((*layer_ids, verifier.spec.num_layers)):
        found[f"layer_{layer_id}_mean"] = float(gaps[:, column].mean())
        found[f"layer_{layer_id}_largest"] = float(gaps[:, column].max())
    for name, value in found.items():
        print(f"{name:<28} {value:12.3g}")
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
