"""`speculator.init=verifier`: the first layer reads [embedding; state] as the verifier does."""

from __future__ import annotations

import torch

from algorithms.rows import make_spec
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.model import Eagle3Drafter
from speculators.config.schema import LossWeights
from speculators.data.vocabulary import DraftVocabulary


def test_the_last_layers_are_copied_into_the_half_that_reads_the_state() -> None:
    spec, g = make_spec(), torch.Generator().manual_seed(0)
    config = Eagle3Config(
        num_layers=2, target_layer_ids=[1, 4, 6], norm_before_residual=False,
        loss=LossWeights(kl=1.0),
    )  # fmt: skip
    drafter = Eagle3Drafter.build(
        Eagle3Drafter.resolve(config, spec, []), spec, DraftVocabulary.full(96),
        embed_tokens=torch.randn(96, 32), lm_head=torch.randn(96, 32), generator=g,
    )  # fmt: skip
    assert drafter.copied_layers() == [6, 7]
    second = {n: p.shape for n, p in drafter.layers[1].named_parameters()}
    layers = [{n: torch.randn(shape, generator=g) for n, shape in second.items()} for _ in "ab"]
    before = {n: p.detach().clone() for n, p in drafter.named_parameters()}
    drafter.start_from_verifier(layers, torch.full((32,), 2.0))
    after = dict(drafter.named_parameters())
    for name, value in layers[1].items():
        assert torch.equal(after[f"layers.1.{name}"], value)
    for part in "qkv":
        name = f"layers.0.self_attn.{part}_proj.weight"
        source = layers[0][name.removeprefix("layers.0.")]
        assert torch.equal(after[name][:, 32:], source)
        assert torch.equal(after[name][:, :32], before[name][:, :32])
    norm = layers[0]["input_layernorm.weight"]
    assert torch.equal(after["layers.0.hidden_norm.weight"], norm)
    assert bool((after["layers.0.input_layernorm.weight"] == 1).all())
    assert bool((after["norm.weight"] == 2).all())
    change = after["fc.weight"] - before["fc.weight"]
    torch.testing.assert_close(change[:, 64:], torch.eye(32))
    assert not change[:, :64].any()
