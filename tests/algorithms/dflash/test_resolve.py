from __future__ import annotations

from typing import Any

import pytest
import torch

from algorithms.dflash.rows import make_config, make_spec
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.config.schema.speculator import LossWeights
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import ConfigError
from speculators.modules.rotary import inverse_frequencies

BARE: dict[str, Any] = {"target_layer_ids": None, "mask_token_id": None}


def errors(unused: list[int] | None = None, **changes: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        DFlashDrafter.resolve(make_config(**changes), make_spec(), unused or [95])
    return list(caught.value.problems)


def test_nulls_are_filled_from_the_verifier() -> None:
    spec = make_spec(num_layers=36, pad_token_id=94)
    config = DFlashConfig(num_layers=2, block_size=10, loss=LossWeights(ce=1.0))
    found = DFlashDrafter.resolve(config, spec, [94, 2, 91, 95])
    assert found.target_layer_ids == [2, 10, 18, 26, 34]
    assert found.mask_token_id == 91  # 94 is padding, 2 ends a turn
    assert found.draft_vocab_size == 96
    assert found.loss_decay_gamma == 5.0
    assert found.num_sliding_layers == 0
    assert (found.num_attention_heads, found.num_key_value_heads) == (4, 2)
    assert (found.head_dim, found.intermediate_size) == (8, 64)
    assert DFlashDrafter.resolve(found, spec, []) == found


def test_given_values_stay() -> None:
    config = make_config(
        head_dim=16, intermediate_size=48, num_attention_heads=6, num_key_value_heads=3,
        loss_decay_gamma=2.5, draft_vocab_size=40, sliding_window=7,
    )  # fmt: skip
    found = DFlashDrafter.resolve(config, make_spec(), [])
    assert found.num_sliding_layers == 3
    assert (found.head_dim, found.intermediate_size, found.loss_decay_gamma) == (16, 48, 2.5)
    assert (found.draft_vocab_size, found.mask_token_id) == (40, 95)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"draft_vocab_size": 9999},
            "speculator.draft_vocab_size=9999: larger than the verifier's 96 embedding rows",
        ),
        (
            {"target_layer_ids": [1, 8]},
            "speculator.target_layer_ids=[1, 8]: 8 is no layer of this verifier: ids lie between "
            "0 and 7 (8, the last state, is read for the teacher and never listed)",
        ),
        (
            {"target_layer_ids": [4, 4]},
            "speculator.target_layer_ids=[4, 4]: an id stands twice: ids must be distinct",
        ),
        (
            {"mask_token_id": 96},
            "speculator.mask_token_id=96: outside the verifier's vocabulary: ids lie between 0 "
            "and 95",
        ),
        (
            {"mask_token_id": 0},
            "speculator.mask_token_id=0: is the verifier's padding token: choose an embedding row "
            "that no text uses, or null to have one found",
        ),
        (
            {"mask_token_id": 3},
            "speculator.mask_token_id=3: is the verifier's end-of-turn token: choose an embedding "
            "row that no text uses, or null to have one found",
        ),
        (
            {"mask_token_id": 1},
            "speculator.mask_token_id=1: is the verifier's beginning-of-text token: choose an "
            "embedding row that no text uses, or null to have one found",
        ),
        (
            {"mask_token_id": 50},
            "speculator.mask_token_id=50: occurs in the data: choose an embedding row that no text "
            "uses, or null to have one found",
        ),
        (
            {"block_size": 1},
            "speculator.block_size=1: a block holds the anchor and at least one drafted token, so "
            "it must be 2 or more",
        ),
        (
            {"num_attention_heads": 3},
            "speculator.num_key_value_heads=2: must divide the 3 query heads (num_attention_heads)",
        ),
        ({"head_dim": 7}, "speculator.head_dim=7: must be even: rotary embedding turns pairs"),
        ({"head_dim": 0}, "speculator.head_dim=0: must be 1 or more"),
    ],
)
def test_what_cannot_go_with_the_verifier(changes: dict[str, Any], message: str) -> None:
    assert errors(**changes) == [message]


def test_no_row_left_for_the_mask() -> None:
    assert errors([0, 1, 2], mask_token_id=None) == [
        "speculator.mask_token_id=null: no unused embedding row was found: give the id of a token "
        "no text holds"
    ]


def test_all_problems_at_once() -> None:
    found = errors(draft_vocab_size=100, mask_token_id=2, target_layer_ids=[9])
    assert [line.split("=")[0] for line in found] == [
        "speculator.target_layer_ids",
        "speculator.draft_vocab_size",
        "speculator.mask_token_id",
    ]


def test_rotary_kinds_nobody_computes_alike_are_refused() -> None:
    spec = make_spec(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0})
    with pytest.raises(ConfigError, match=r"^verifier.name_or_path=/verifier: rope_type 'yarn' "):
        DFlashDrafter.resolve(make_config(), spec, [])


def test_a_drafter_can_turn_plainly_whatever_its_verifier_does() -> None:
    """What is trained is what is written: the checkpoint says so, and is read back so."""
    spec = make_spec(rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0})
    config = DFlashDrafter.resolve(make_config(rope_theta=5e4), spec, [])
    table = torch.zeros(spec.vocab_size, spec.hidden_size)
    drafter = DFlashDrafter.build(
        config,
        spec,
        DraftVocabulary.full(spec.vocab_size),
        embed_tokens=table,
        lm_head=table,
        generator=torch.Generator().manual_seed(0),
    )
    plain = {"rope_type": "default", "rope_theta": 5e4}
    torch.testing.assert_close(drafter.rope_frequencies, inverse_frequencies(8, plain))
    serving = drafter.serving_config()
    assert serving["transformer_layer_config"]["rope_parameters"] == plain
    assert DFlashDrafter.config_from_serving(serving).rope_theta == 5e4
    assert DFlashDrafter.resolve(make_config(), make_spec(), []).rope_theta == 1e4
