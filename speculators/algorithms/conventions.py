"""What a drafter computes with, in words that training, files and engines have in common.

A convention that differs between the three costs all acceptance without a word: the loss falls, the
file loads, the engine accepts nothing. So each side says what it does, and the sides are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from speculators.algorithms.serving import FULL, SLIDING, read_num_draft_tokens
from speculators.attention.layout import MaskRule
from speculators.modules.rotary import inverse_frequencies, rope_problem


@dataclass(frozen=True)
class Conventions:
    """How states become drafted tokens, beside the weights.

    Attributes:
        layer_ids: verifier layers read, as extraction ids, in the order the fusion expects.
        num_draft_tokens: tokens of one proposal.
        rules: what slots see, for each draft layer.
        rope: angle per position of each pair of dimensions.
        rms_norm_eps: of the draft layers' norms.
        mask_token_id: embedding row of slots to be filled; None where there are none.
        switches: further settings of the algorithm, by their names in `config.json`.
    """

    layer_ids: tuple[int, ...]
    num_draft_tokens: int
    rules: tuple[MaskRule, ...]
    rope: tuple[float, ...]
    rms_norm_eps: float
    mask_token_id: int | None = None
    switches: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "layer_ids": list(self.layer_ids),
            "num_draft_tokens": self.num_draft_tokens,
            "rules": [{"window": rule.window, "causal": rule.causal} for rule in self.rules],
            "rope": list(self.rope),
            "rms_norm_eps": self.rms_norm_eps,
            "mask_token_id": self.mask_token_id,
            "switches": dict(self.switches),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Conventions:
        """Rebuild from `to_dict`."""
        return cls(
            layer_ids=tuple(values["layer_ids"]),
            num_draft_tokens=values["num_draft_tokens"],
            rules=tuple(MaskRule(**rule) for rule in values["rules"]),
            rope=tuple(values["rope"]),
            rms_norm_eps=values["rms_norm_eps"],
            mask_token_id=values["mask_token_id"],
            switches=dict(values["switches"]),
        )


def served_conventions(
    serving: Mapping[str, Any],
    layer_ids: Sequence[int],
    rules: Sequence[MaskRule],
    *,
    default_theta: float,
    mask_token_id: int | None = None,
    switches: Mapping[str, Any] | None = None,
) -> Conventions:
    """Return what the serving engine makes of a `config.json`; its defaults fill what is absent.

    Args:
        serving: the file.
        layer_ids: as the engine reads them for this algorithm.
        rules: as `served_rules` returns them.
        default_theta: of the rotary embedding where the file names none.
        mask_token_id: as the file has it.
        switches: further settings as the engine takes them.

    Raises:
        CheckpointError: the file does not say how many tokens are drafted.
    """
    layer = serving.get("transformer_layer_config") or {}
    parameters = {"rope_theta": default_theta, **(layer.get("rope_parameters") or {})}
    rope: tuple[float, ...] = ()
    if rope_problem(parameters) is None and layer.get("head_dim"):
        rope = tuple(inverse_frequencies(layer["head_dim"], parameters).tolist())
    return Conventions(
        tuple(layer_ids),
        read_num_draft_tokens(serving),
        tuple(rules),
        rope,
        float(layer.get("rms_norm_eps", 1e-6)),
        mask_token_id,
        dict(switches or {}),
    )


def served_windows(layer: Mapping[str, Any]) -> list[int | None]:
    """Return the window of each draft layer, None where it sees everything.

    Args:
        layer: `transformer_layer_config`.
    """
    types = layer.get("layer_types") or [FULL] * int(layer.get("num_hidden_layers", 1))
    return [layer.get("sliding_window") if kind == SLIDING else None for kind in types]
