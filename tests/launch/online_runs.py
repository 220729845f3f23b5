"""Short runs on states from a fake server that runs the tiny verifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from speculators.config.composition import compose
from speculators.launch import train
from speculators.testing.fake_vllm import FakeVLLM

STEPS = 6


def overrides(shared: Path, name: str, *more: str) -> list[str]:
    """Return the words of a short run."""
    return [
        "verifier=tiny",
        "speculator.target_layer_ids=[1,3,5]",
        "speculator.num_layers=1",
        "speculator.max_anchors=8",
        "data.max_samples=40",
        "training.sequence_length=256",
        f"training.max_steps={STEPS}",
        "training.validate_every_steps=3",
        "training.log_every_steps=1",
        "evaluation.enabled=false",
        "doctor.at_start=false",  # it asks for further samples, and takes half of so short a run
        "doctor.at_checkpoints=false",
        f"cache_dir={shared / 'cache'}",
        f"output_dir={shared / name}",
        f"hidden_states.fetch.transfer_path={shared / 'transfer'}",
        "hidden_states.fetch.backoff_seconds=0.005",
        "hidden_states.fetch.file_timeout_seconds=20",
        "hidden_states.fetch.prefetch_samples=4",
        *more,
    ]


def run(shared: Path, name: str, *more: str) -> list[dict[str, Any]]:
    """Train for a few steps and return what was measured."""
    train.run(compose("train", overrides(shared, name, *more)))
    return measured(shared / name)


def measured(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["kind"] in ("train", "validation")]


def online(server: FakeVLLM) -> list[str]:
    return ["hidden_states=online", f"hidden_states.endpoints=[{server.url}]"]


PROBES = 5
"""Requests of the handshake with one server, which forgives nothing."""
