"""What a drafter computes with is what the serving engine makes of its `config.json`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from algorithms.test_every_algorithm import build, every
from speculators.algorithms.conventions import Conventions
from speculators.algorithms.registry import drafter_class
from speculators.attention.layout import MaskRule


@every
@pytest.mark.parametrize("changes", [{}, {"num_layers": 2}, {"sliding_window": 6}], ids=str)
def test_engine_reads_what_was_trained(name: str, changes: dict[str, Any]) -> None:
    if "sliding_window" in changes:
        changes = changes | {"sliding_causal": True}
    drafter = build(name, **changes)
    trained = drafter.conventions()
    if trained is None:  # a package of its own may keep it to itself
        return
    serving = json.loads(json.dumps(drafter.serving_config()))
    assert drafter_class(name).served_conventions(serving) == trained
    assert Conventions.from_dict(json.loads(json.dumps(trained.to_dict()))) == trained
    assert len(trained.rules) == changes.get("num_layers", 1)


def test_a_silent_key_makes_every_layer_of_a_block_causal() -> None:
    """vLLM specification, section 4: measured to cost acceptance on a real server."""
    drafter = build("dflash", num_layers=2)
    serving = drafter.serving_config()
    kind = drafter_class("dflash")
    assert kind.served_conventions(serving).rules == (MaskRule(),) * 2  # type: ignore[union-attr]
    serving["sliding_window_non_causal"] = False
    served = kind.served_conventions(serving)
    assert served is not None
    assert served.rules == (MaskRule(causal=True),) * 2
    del serving["sliding_window_non_causal"]
    assert kind.served_conventions(serving).rules == (MaskRule(),) * 2  # type: ignore[union-attr]


@pytest.mark.parametrize(("name", "normed"), [("eagle3", True), ("peagle", False)])
def test_engine_defaults_fill_what_is_absent(name: str, normed: bool) -> None:
    drafter = build(name)
    serving = drafter.serving_config()
    del serving["norm_before_residual"]
    del serving["transformer_layer_config"]["rope_parameters"]
    served, trained = drafter_class(name).served_conventions(serving), drafter.conventions()
    assert served is not None
    assert trained is not None
    assert served.switches["norm_before_residual"] is normed
    assert served.rope != trained.rope  # 1,000,000 for qwen3 layers, the drafter has 10,000
