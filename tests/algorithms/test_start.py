"""`speculator.init=verifier`: what is copied, and what is refused."""

from __future__ import annotations

import pytest
import torch

from algorithms.rows import make_spec
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.network import DFlashNetwork
from speculators.algorithms.dflash.start import copy_layers
from speculators.errors import ConfigError


def network() -> DFlashNetwork:
    torch.manual_seed(0)
    spec = make_spec(hidden_size=16, intermediate_size=24)
    made = DFlashNetwork(DFlashConfig(num_layers=2, target_layer_ids=[1, 3, 5]), spec)
    made.initialize(torch.Generator().manual_seed(0))
    return made


def layer(made: DFlashNetwork, seed: int) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    target = made.layers[0]
    return {n: torch.randn(p.shape, generator=draw) for n, p in target.named_parameters()}


def test_layers_norm_and_deepest_stream_are_copied() -> None:
    made = network()
    layers = [layer(made, 1), layer(made, 2)]
    norm = torch.rand(16)
    before = made.fc.weight.detach().clone()
    copy_layers(made, layers, norm)
    for target, source in zip(made.layers, layers, strict=True):
        for name, parameter in target.named_parameters():
            assert torch.equal(parameter, source[name])
    assert torch.equal(made.norm.weight, norm)
    mean = (layers[0]["input_layernorm.weight"] + layers[1]["input_layernorm.weight"]) / 2
    torch.testing.assert_close(made.hidden_norm.weight, mean)
    change = made.fc.weight - before
    assert torch.equal(change[:, :32], torch.zeros(16, 32))
    torch.testing.assert_close(change[:, 32:], torch.eye(16))


def test_a_verifier_without_query_norms_gets_a_gain_for_its_head_size() -> None:
    made = network()
    layers = [
        {n: t for n, t in layer(made, seed).items() if "q_norm" not in n and "k_norm" not in n}
        for seed in (1, 2)
    ]
    copy_layers(made, layers, torch.ones(16))
    gain = dict(made.named_parameters())["layers.0.self_attn.q_norm.weight"]
    assert torch.equal(gain, torch.full((8,), 2.0))


def test_the_norm_before_the_mlp_has_another_name_where_outputs_are_normed_too() -> None:
    made = network()
    sources = [layer(made, 1), layer(made, 2)]
    for source in sources:
        source["pre_feedforward_layernorm.weight"] = torch.rand(16)
    copy_layers(made, sources, torch.ones(16))
    copied = dict(made.named_parameters())["layers.1.post_attention_layernorm.weight"]
    assert torch.equal(copied, sources[1]["pre_feedforward_layernorm.weight"])


def test_other_shapes_are_refused() -> None:
    made = network()
    wrong = layer(made, 1)
    wrong["mlp.up_proj.weight"] = torch.zeros(20, 16)
    with pytest.raises(ConfigError) as caught:
        copy_layers(made, [layer(made, 2), wrong], torch.ones(16))
    assert str(caught.value) == (
        "speculator.init=verifier: layers.1.mlp.up_proj.weight needs [24, 16], "
        "the verifier's layer has [20, 16]; use speculator.init=random"
    )
