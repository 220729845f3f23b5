"""What makes two runs the same run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import DictConfig

from speculators.config.composition import Request, compose_untyped
from speculators.config.identity import changes, fingerprint, result_settings, run_name


def composed(*overrides: str) -> DictConfig:
    config = compose_untyped(Request("train", overrides)).config
    assert config is not None
    return config


def identity(*overrides: str) -> str:
    return fingerprint(result_settings(composed(*overrides)))


def test_where_and_how_a_run_happens_does_not_matter() -> None:
    first = identity()
    for override in (
        "output_dir=elsewhere",
        "cache_dir=elsewhere",
        "num_threads=4",
        "device=cuda:1",
        "tracker=wandb",
        "sweep.objective=speedup",
        "show=3",
        "data.num_workers=2",
        "hidden_states.store_path=elsewhere",
        "launcher.stall_seconds=5",
    ):
        assert identity(override) == first, override


def test_what_a_result_depends_on_does() -> None:
    different = [
        (),
        ("seed=1",),
        ("data.seed=1",),
        ("optimizer.lr=0.5",),
        ("speculator=eagle3",),
        ("speculator.loss={ce:0,kl:1}",),
        ("debug=fast",),
        ("launcher=ddp",),
        ("evaluation.num_prompts=3",),
    ]
    assert len({identity(*overrides) for overrides in different}) == len(different)


def test_the_way_to_a_value_does_not_matter() -> None:
    assert identity("training.max_steps=200") == identity("debug=short")
    assert identity("optimizer.lr=0.003") == identity("optimizer.lr=3e-3")


def test_values_that_are_missing_or_broken_leave_an_identity() -> None:
    assert identity("verifier=hf") != identity("verifier=hf", "verifier.name_or_path=x")
    assert identity("speculator.block_size=${nowhere}")


@pytest.mark.parametrize(
    ("overrides", "readable"),
    [
        (["speculator.block_size=4", "seed=0"], "block_size-4_seed-0"),
        (["speculator.target_layer_ids=[1, 3]"], "target_layer_ids-1-3"),
        (["speculator.loss={ce:0,kl:1}"], "loss-ce-0-kl-1"),
        (["+data@data.sources.chat=ultrachat"], "chat-ultrachat"),
        (["data.path=/a/very/long/path/indeed/that/goes/on/and/on/rows.jsonl"],
         "path-th-indeed-that-goes-on-and-on-rows.jsonl"),
        (["cache_dir=x", "sweep.objective=speedup"], "run"),
        (["optimizer.lr=1e-3", "optimizer.lr=2e-3"], "lr-2e-3"),
    ],
)  # fmt: skip
def test_names_are_readable_and_fit_a_path(overrides: Sequence[str], readable: str) -> None:
    name = run_name(overrides, {"seed": 0})
    assert name == f"{readable}_{fingerprint({'seed': 0})[:8]}"
    assert Path(name).name == name


def test_names_stay_short_and_apart() -> None:
    many = [f"speculator.key{i}={'x' * 30}" for i in range(20)]
    first, second = run_name(many, {"seed": 0}), run_name(many, {"seed": 1})
    assert first != second
    assert len(first) < 140


def test_changes_are_what_a_result_depends_on() -> None:
    given = ["optimizer.lr=1", "+a.b=2", "cache_dir=x", "optimizer.lr=3"]
    assert changes(given) == {"optimizer.lr": "3", "a.b": "2"}
