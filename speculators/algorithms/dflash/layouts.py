"""The layout of DFlash's authors (checkpoint specification, section 6).

One flat `config.json` with a `dflash_config`; the drafter's body alone in the weights, for the
whole vocabulary; layers counted by their output, so ids are one less than extraction ids.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.layouts import FlatReader, Layout, Wishes, read_flat, write_flat
from speculators.algorithms.serving import FULL, SLIDING, read_sliding, sliding_config
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec

_KEY = "dflash_config"


class AuthorsLayout(Layout[DFlashConfig]):
    """Read and written as the authors' published checkpoints are."""

    name: ClassVar[str] = "z_lab"
    summary: ClassVar[str] = "DFlash in its authors' layout (dflash_config, body only)"
    speculators_model_type: ClassVar[str] = "dflash"

    def recognises(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        """Their configuration has a part of its own."""
        return _KEY in config

    def read(
        self,
        config: Mapping[str, Any],
        names: Collection[str],
        spec: VerifierSpec,
        wishes: Wishes,
    ) -> tuple[DFlashConfig, VerifierSpec]:
        """Return the settings, see `Layout.read`."""
        flat = FlatReader(config)
        own = FlatReader(flat.need(_KEY), f"{_KEY}.")
        flat.only("model_type", "qwen3", "must be qwen3")
        settings, spec = read_flat(flat, spec, rope_theta=None)
        layers = flat.take("num_target_layers", spec.num_layers)
        if layers != spec.num_layers:
            raise CheckpointError(
                f"config.json: num_target_layers is {layers}, but {spec.name_or_path} has "
                f"{spec.num_layers}; choose the verifier it was trained with"
            )
        settings |= {
            "target_layer_ids": _extraction_ids(own.need("target_layer_ids"), spec, wishes),
            "mask_token_id": own.need("mask_token_id"),
            "block_size": _block_size(flat, own, wishes),
            "draft_vocab_size": spec.vocab_size,
            **_causality(flat, own, settings["num_layers"]),
        }
        own.finish(())
        flat.finish()
        return DFlashConfig(**settings), spec

    def write(self, config: DFlashConfig, spec: VerifierSpec) -> dict[str, Any]:
        """Return `config.json`, see `Layout.write`."""
        if config.draft_vocab_size != spec.vocab_size:
            raise CheckpointError(
                f"config.json: draft_vocab_size={config.draft_vocab_size}: this layout drafts all "
                f"{spec.vocab_size} tokens of the verifier; train with "
                "speculator.draft_vocab_size=null"
            )
        ids = list(config.target_layer_ids or ())
        if ids[0] == 0 or ids[-1] == spec.num_layers:
            raise CheckpointError(
                f"config.json: aux_hidden_state_layer_ids={ids}: this layout names outputs of "
                f"layers after the last norm, so it has no equal for ids 0 and {spec.num_layers}"
            )
        sliding = config.num_sliding_layers or 0
        own: dict[str, Any] = {
            "mask_token_id": config.mask_token_id,
            "target_layer_ids": [i - 1 for i in ids],
        }
        # Unsaid, sliding layers are causal there and full layers are not.
        if sliding and not config.sliding_causal:
            own["causal"] = False
        return {
            "architectures": ["DFlashDraftModel"],
            "model_type": "qwen3",
            **write_flat(config, spec),
            **sliding_config(config.num_layers, sliding, config.sliding_window),
            "block_size": config.block_size,
            _KEY: own,
            "num_target_layers": spec.num_layers,
        }


def _extraction_ids(ids: list[int], spec: VerifierSpec, wishes: Wishes) -> list[int]:
    if wishes.target_layer_ids is not None:
        raise CheckpointError(
            f"config.json: {_KEY}.target_layer_ids={ids}: the layers are named here; leave "
            "convert.target_layer_ids null"
        )
    if spec.num_layers - 1 in ids:
        raise CheckpointError(
            f"config.json: {_KEY}.target_layer_ids={ids}: for the last layer "
            f"({spec.num_layers - 1}) the authors' code reads the state after the final norm, "
            "which is not captured; such a drafter cannot be served"
        )
    return [i + 1 for i in ids]


def _block_size(flat: FlatReader, own: FlatReader, wishes: Wishes) -> int:
    """Read the size of a block from either place; both must agree."""
    given = {size for size in (flat.take("block_size"), own.take("block_size")) if size}
    if len(given) > 1:
        raise CheckpointError(
            f"config.json: block_size and {_KEY}.block_size differ: {sorted(given)}"
        )
    if not given:
        raise CheckpointError("config.json: block_size is missing")
    (size,) = given
    if wishes.num_draft_tokens not in (None, size - 1):
        raise CheckpointError(
            f"config.json: block_size={size}: a block drafts {size - 1} tokens; leave "
            "convert.num_draft_tokens null"
        )
    return size


def _causality(flat: FlatReader, own: FlatReader, num_layers: int) -> dict[str, Any]:
    """Read windows and causality (DFlash specification, section 5.1)."""
    types = flat.take("layer_types")
    layer = {
        "num_hidden_layers": num_layers,
        "layer_types": types,
        "sliding_window": flat.take("sliding_window"),
    }
    slides = flat.take("use_sliding_window", False)
    if slides and types is None:
        raise CheckpointError(f"config.json: layer_types is missing: {FULL} or {SLIDING} per layer")
    if types and SLIDING in types and layer["sliding_window"] is None:
        raise CheckpointError("config.json: sliding_window is missing")
    sliding, window = read_sliding(layer)
    causal = own.take("causal")
    if causal is None:
        if 0 < sliding < num_layers:
            raise CheckpointError(
                "config.json: full and sliding layers without dflash_config.causal: there the "
                "sliding ones alone are causal, which the serving layout cannot say"
            )
        causal = sliding > 0
    if causal and sliding < num_layers:
        raise CheckpointError(
            "config.json: dflash_config.causal=true: causal full layers cannot be run here"
        )
    return {
        "num_sliding_layers": sliding,
        "sliding_window": window,
        "sliding_causal": bool(causal),
    }
