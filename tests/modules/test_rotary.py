from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from speculators.modules.rotary import (
    inverse_frequencies,
    rope_problem,
    rotate,
    rotation,
    serving_rope,
)

LLAMA3: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
LINEAR: dict[str, Any] = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


@pytest.mark.parametrize("parameters", [LLAMA3, LINEAR], ids=["llama3", "linear"])
def test_frequencies_equal_those_of_transformers(parameters: dict[str, Any]) -> None:
    config = LlamaConfig(
        hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=dict(parameters)
    )
    kind = parameters["rope_type"]
    reference, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    assert factor == 1.0
    torch.testing.assert_close(inverse_frequencies(128, parameters), reference)


def test_default_frequencies() -> None:
    got = inverse_frequencies(4, {"rope_theta": 100.0})
    torch.testing.assert_close(got, torch.tensor([1.0, 0.1]))


def test_half_rotation_layout() -> None:
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    by = rotation(torch.tensor([2]), torch.tensor([0.5, 0.25]))
    c, s = torch.tensor([1.0, 0.5]).cos(), torch.tensor([1.0, 0.5]).sin()
    wanted = torch.cat([x[0, 0, :2] * c - x[0, 0, 2:] * s, x[0, 0, 2:] * c + x[0, 0, :2] * s])
    torch.testing.assert_close(rotate(x, by)[0, 0], wanted)


def test_scores_depend_on_distance_alone() -> None:
    q, k = torch.randn(2, 1, 3, 16, dtype=torch.float64)
    frequencies = inverse_frequencies(16, {"rope_theta": 10000.0}).double()

    def score(a: int, b: int) -> torch.Tensor:
        turned = [rotate(x, rotation(torch.tensor([p]), frequencies)) for x, p in ((q, a), (k, b))]
        return (turned[0] * turned[1]).sum(-1)

    torch.testing.assert_close(score(7, 3), score(104, 100), atol=1e-4, rtol=1e-4)


def test_gradient() -> None:
    by = rotation(torch.arange(3), torch.tensor([1.0, 0.3]))
    x = torch.randn(3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: rotate(y, by), (x,))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        (LLAMA3, None),
        ({"rope_theta": 1e6}, None),
        (
            {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4},
            "rope_type 'yarn' is not among those a drafter computes: default, linear, llama3",
        ),
        ({"rope_type": "linear", "rope_theta": 1e4}, "rope_type 'linear' needs factor"),
        ({"rope_type": "default"}, "rope_type 'default' needs rope_theta"),
        (
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
            "partial rotary embedding is not among what a drafter computes",
        ),
        (
            {"rope_theta": 1e4, "mrope_section": [8, 4, 4]},
            "multimodal rotary embedding is not among what a drafter computes",
        ),
    ],
)
def test_what_can_be_computed(parameters: dict[str, Any], problem: str | None) -> None:
    assert rope_problem(parameters) == problem


def test_serving_writes_only_what_counts() -> None:
    assert serving_rope({"rope_theta": 5.0, "something": 1}) == {
        "rope_theta": 5.0,
        "rope_type": "default",
    }
    assert serving_rope(LLAMA3) == LLAMA3
