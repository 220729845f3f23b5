"""The layout of Eagle-3's authors, and of SpecForge (checkpoint specification, section 6).

One flat `config.json`; the first layer is called `midlayer`; the drafter has a head of its own, and
the layers it reads are not stored: they follow from the verifier's depth.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.fused_config import LayerType
from speculators.algorithms.eagle3.target_layers import eagle3_layer_ids
from speculators.algorithms.layouts import FlatReader, Layout, Wishes, read_flat, write_flat
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec

_ROPE_THETA = 10000.0  # of a Llama configuration that is silent about it


class AuthorsLayout(Layout[Eagle3Config]):
    """Read and written as the authors' published checkpoints are."""

    name: ClassVar[str] = "eagle"
    summary: ClassVar[str] = "Eagle-3 in the EAGLE / SpecForge layout (midlayer.*)"
    speculators_model_type: ClassVar[str] = "eagle3"
    renames: ClassVar[Mapping[str, str]] = {"midlayer.": "layers.0."}
    stores_head: ClassVar[bool] = True

    def recognises(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        """No other layout has a `midlayer`."""
        return any(name.startswith("midlayer.") for name in names)

    def read(
        self,
        config: Mapping[str, Any],
        names: Collection[str],
        spec: VerifierSpec,
        wishes: Wishes,
    ) -> tuple[Eagle3Config, VerifierSpec]:
        """Return the settings, see `Layout.read`."""
        flat = FlatReader(config)
        flat.only("model_type", "llama", "must be llama")
        settings, spec = read_flat(flat, spec, rope_theta=_ROPE_THETA)
        for key in ("sliding_window", "use_sliding_window", "layer_types"):
            if flat.take(key):
                raise CheckpointError(f"config.json: {key}: llama layers do not slide here")
        ids = wishes.target_layer_ids or eagle3_layer_ids(spec.num_layers)
        stated = FlatReader(flat.take("eagle_config", {}), "eagle_config.")
        # Engines count these ids differently, so only the user can say what they mean.
        if stated.take("eagle_aux_hidden_state_layer_ids") and wishes.target_layer_ids is None:
            raise CheckpointError(
                "config.json: eagle_config.eagle_aux_hidden_state_layer_ids: readers count them "
                "from 0 or from 1; say what was trained as extraction ids (id i is the stream "
                "entering layer i), convert.target_layer_ids=[...]"
            )
        stated.only("use_aux_hidden_state", True, "must be true")
        stated.finish(())
        settings |= {
            "draft_vocab_size": flat.take("draft_vocab_size", spec.vocab_size),
            "target_layer_ids": list(ids),
            "layer_type": LayerType.llama,
            "norm_before_residual": False,
            "train_lm_head": "lm_head.weight" in names,
        }
        flat.only("target_hidden_size", spec.hidden_size, "must be the verifier's hidden size")
        flat.finish()
        if wishes.num_draft_tokens is not None:
            settings["num_draft_tokens"] = wishes.num_draft_tokens
        return Eagle3Config(**settings), spec

    def write(self, config: Eagle3Config, spec: VerifierSpec) -> dict[str, Any]:
        """Return `config.json`, see `Layout.write`."""
        expressible = {
            "num_layers": 1,
            "layer_type": LayerType.llama,
            "target_layer_ids": list(eagle3_layer_ids(spec.num_layers)),
            "norm_before_residual": False,
            "norm_before_fc": False,
            "fc_norm": False,
            "norm_output": False,
            "sliding_window": None,
        }
        for name, value in expressible.items():
            if (own := getattr(config, name)) != value:
                own, value = (getattr(v, "value", v) for v in (own, value))
                raise CheckpointError(
                    f"config.json: the drafter has {name}={own}: this layout cannot say so, its "
                    f"readers take {value}"
                )
        return {
            "architectures": ["LlamaForCausalLMEagle3"],
            "model_type": "llama",
            **write_flat(config, spec),
            "draft_vocab_size": config.draft_vocab_size,
            "mlp_bias": False,
            "pretraining_tp": 1,
        }
