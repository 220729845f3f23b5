from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from speculators.config.schema import AdamWConfig, MuonConfig, OptimizerConfig
from speculators.errors import CheckpointError, ConfigError
from speculators.training.optimizers import (
    build_optimizers,
    load_optimizer_states,
    optimizer_states,
    set_learning_rate,
)
from speculators.training.ranks import Ranks
from speculators.training.spread import Replicated
from training.toy import toy_drafter

ALONE = Replicated(toy_drafter(), Ranks())

SHAPES = {
    "fc.weight": (4, 8),
    "layers.0.mlp.weight": (6, 4),
    "layers.0.norm.weight": (4,),
    "layers.0.bias": (4,),
    "embed_tokens.weight": (10, 4),
    "lm_head.weight": (10, 4),
}


def parameters(seed: int = 0) -> dict[str, nn.Parameter]:
    source = torch.Generator().manual_seed(seed)
    return {n: nn.Parameter(torch.randn(s, generator=source)) for n, s in SHAPES.items()}


def names(optimizer: Optimizer) -> list[list[str]]:
    return [group["param_names"] for group in optimizer.param_groups]


def move(optimizers: list[Optimizer], weights: dict[str, nn.Parameter], steps: int) -> None:
    source = torch.Generator().manual_seed(steps)
    for _ in range(steps):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=source)
        for optimizer in optimizers:
            optimizer.step()


def test_adamw_decays_matrices_only() -> None:
    (optimizer,) = build_optimizers(parameters(), AdamWConfig(lr=0.5, weight_decay=0.1, beta2=0.9))
    assert isinstance(optimizer, AdamW)
    assert names(optimizer) == [
        ["fc.weight", "layers.0.mlp.weight", "embed_tokens.weight", "lm_head.weight"],
        ["layers.0.norm.weight", "layers.0.bias"],
    ]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.9)}
    assert all(group["fused"] for group in optimizer.param_groups)


def test_muon_takes_the_matrices_of_the_body() -> None:
    muon, adamw = build_optimizers(parameters(), MuonConfig(lr=0.02, adamw_lr=0.001))
    assert isinstance(muon, Muon)
    assert names(muon) == [["fc.weight", "layers.0.mlp.weight"]]
    assert isinstance(adamw, AdamW)
    assert names(adamw) == [
        ["embed_tokens.weight", "lm_head.weight"],
        ["layers.0.norm.weight", "layers.0.bias"],
    ]
    assert set_learning_rate([muon, adamw], 0.5) == 0.01
    assert [group["lr"] for group in adamw.param_groups] == [0.0005, 0.0005]


def test_a_step_of_muon_is_as_large_as_one_of_adamw() -> None:
    """Same root mean square, 0.2 * lr up to the error of five Newton-Schulz steps."""
    weights = {"a.weight": nn.Parameter(torch.zeros(64, 32))}
    optimizers = build_optimizers(weights, MuonConfig(lr=1.0, adamw_lr=1.0, weight_decay=0.0))
    assert len(optimizers) == 1
    weights["a.weight"].grad = torch.randn(64, 32, generator=torch.Generator().manual_seed(0))
    optimizers[0].step()
    assert float(weights["a.weight"].detach().square().mean().sqrt()) == pytest.approx(0.2, rel=0.2)


@pytest.mark.parametrize("config", [AdamWConfig(lr=0.1), MuonConfig(lr=0.1, adamw_lr=0.01)])
def test_restored_moments_go_on_bit_for_bit(config: OptimizerConfig) -> None:
    whole = parameters()
    optimizers = build_optimizers(whole, config)
    move(optimizers, whole, 3)
    states = copy.deepcopy(optimizer_states(optimizers))
    resumed = {name: nn.Parameter(p.detach().clone()) for name, p in whole.items()}
    again = build_optimizers(resumed, config)
    load_optimizer_states(again, states, ALONE)
    move(optimizers, whole, 2)
    move(again, resumed, 2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_hyper_parameters_are_those_of_the_present_configuration() -> None:
    old, new = parameters(), parameters()
    before = build_optimizers(old, AdamWConfig(lr=0.1, weight_decay=0.3))
    move(before, old, 1)
    after = build_optimizers(new, AdamWConfig(lr=0.7, weight_decay=0.2))
    load_optimizer_states(after, optimizer_states(before), ALONE)
    group = after[0].param_groups[0]
    assert (group["peak_lr"], group["lr"], group["weight_decay"]) == (0.7, 0.7, 0.2)


def test_states_of_other_parameters_are_refused() -> None:
    fewer = {name: p for name, p in parameters().items() if name != "layers.0.bias"}
    states = optimizer_states(build_optimizers(fewer, AdamWConfig(lr=0.1)))
    with pytest.raises(CheckpointError) as error:
        load_optimizer_states(build_optimizers(parameters(), AdamWConfig(lr=0.1)), states, ALONE)
    assert str(error.value) == (
        "optimizer_state_dict.pt: made for other parameters: "
        "saved 1 optimizers over 5 tensors, now 1 optimizers over 6 tensors"
    )


def test_nothing_to_train_and_unknown_optimizers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"^speculator: has no trainable parameter$"):
        build_optimizers({}, AdamWConfig(lr=0.1))
    unknown: Any = OptimizerConfig(name="lion", lr=0.1)
    with pytest.raises(ConfigError, match=r"^optimizer.name=lion: allowed: adamw, muon$"):
        build_optimizers(parameters(), unknown)
