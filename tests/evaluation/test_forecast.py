"""Expected speed-up: acceptance against the weights that are read, counted on the real modules."""

from __future__ import annotations

import pytest

from algorithms.test_every_algorithm import build
from speculators.config.composition import compose
from speculators.evaluation.forecast import forecast_speedup
from speculators.launch.verifier_stage import Verifier


@pytest.mark.parametrize(("name", "passes"), [("dflash", 1), ("eagle3", 3), ("peagle", 1)])
def test_it_is_tokens_over_weights_read(name: str, passes: int) -> None:
    verifier = Verifier(compose("train", ["verifier=tiny"]))
    spec, model = verifier.spec, verifier.model()
    read = sum(p.numel() for p in model._model.parameters())
    read -= 0 if spec.tie_word_embeddings else model.tables.embed_tokens.numel()

    drafter = build(name, num_draft_tokens=3)
    own = sum(p.numel() for p in drafter.trainable_parameters().values())
    head = len(drafter.vocabulary) * drafter.spec.hidden_size
    cost = passes * (own + head) / read
    # Gains of norms are not counted.
    assert forecast_speedup(2.5, drafter, spec) == pytest.approx(2.5 / (1 + cost), rel=1e-4)
    assert forecast_speedup(2.5, drafter, spec) < 2.5
