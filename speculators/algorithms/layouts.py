"""The seam for checkpoint layouts of other writers, and what flat ones have in common.

A layout lives in `speculators/algorithms/<name>/layouts.py`, next to the algorithm whose drafters
it holds. Conversion finds it there, and knows nothing else about it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from speculators.algorithms.serving import layer_config
from speculators.config.schema import DraftLayersConfig
from speculators.errors import CheckpointError
from speculators.modules.rotary import plain_theta, rope_problem, serving_rope
from speculators.verifier.spec import VerifierSpec

ConfigT = TypeVar("ConfigT", bound=DraftLayersConfig)

BOOKKEEPING = frozenset(
    {
        *("architectures", "auto_map", "torch_dtype", "dtype", "transformers_version"),
        *("bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings", "use_cache"),
        *("initializer_range", "attention_dropout", "pretraining_tp", "max_window_layers"),
        *("_name_or_path", "_attn_implementation"),
    }
)
"""Keys that change no draft of a finished drafter."""


@dataclass(frozen=True)
class Wishes:
    """What a layout may not store, said on the command line.

    Attributes:
        target_layer_ids: extraction ids, ascending; None leaves it to the layout.
        num_draft_tokens: tokens of one proposal; None leaves it to the layout.
    """

    target_layer_ids: Sequence[int] | None = None
    num_draft_tokens: int | None = None


class Layout(ABC, Generic[ConfigT]):
    """Another writer's form of one algorithm's checkpoints.

    Attributes:
        name: value of `convert.to`.
        summary: a few words for messages.
        speculators_model_type: the algorithm.
        renames: beginnings of tensor names there -> here; all other names are the same.
        stores_head: whether a full-vocabulary file holds the verifier's head too.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    speculators_model_type: ClassVar[str]
    renames: ClassVar[Mapping[str, str]] = {}
    stores_head: ClassVar[bool] = False

    @abstractmethod
    def recognises(self, config: Mapping[str, Any], names: Collection[str]) -> bool:
        """Say whether a folder with this `config.json` and these tensors is of this layout."""

    @abstractmethod
    def read(
        self,
        config: Mapping[str, Any],
        names: Collection[str],
        spec: VerifierSpec,
        wishes: Wishes,
    ) -> tuple[ConfigT, VerifierSpec]:
        """Return the drafter's settings, and the verifier with the drafter's own rotary and norms.

        Args:
            config: `config.json` of the folder.
            names: its tensors, in this project's names.
            spec: the verifier it drafts for.
            wishes: what the layout does not store.

        Raises:
            CheckpointError: a key is missing, unknown, or has a value this code cannot run.
        """

    @abstractmethod
    def write(self, config: ConfigT, spec: VerifierSpec) -> dict[str, Any]:
        """Return `config.json` of this layout.

        Args:
            config: resolved settings.
            spec: as `read` returns it.

        Raises:
            CheckpointError: something the layout cannot express.
        """


class FlatReader:
    """A `config.json` read key by key, so that nothing in it goes unnoticed.

    Args:
        config: the mapping.
        prefix: dotted path before its keys, for messages.
    """

    def __init__(self, config: Mapping[str, Any], prefix: str = "") -> None:
        self._left, self._prefix = dict(config), prefix

    def take(self, key: str, default: Any = None) -> Any:
        """Return and tick off a value; absent and null are the same."""
        value = self._left.pop(key, None)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """Return and tick off a value.

        Raises:
            CheckpointError: it is missing or null.
        """
        if (value := self.take(key)) is None:
            raise CheckpointError(f"config.json: {self._prefix}{key} is missing")
        return value

    def only(self, key: str, allowed: Any, why: str) -> None:
        """Tick off a key that has one value here; absent is right too.

        Raises:
            CheckpointError: another value.
        """
        if (value := self.take(key, allowed)) != allowed:
            raise CheckpointError(f"config.json: {self._prefix}{key}={value}: {why}")

    def finish(self, ignored: Collection[str] = BOOKKEEPING) -> None:
        """Hold that every key was read or is of no consequence.

        Raises:
            CheckpointError: names the others.
        """
        unknown = [f"{self._prefix}{key}" for key in sorted(self._left.keys() - set(ignored))]
        if unknown:
            raise CheckpointError(
                f"config.json: unknown keys {', '.join(unknown)}: what they change is not known "
                "here; remove them if they change no draft"
            )


def read_flat(
    flat: FlatReader, spec: VerifierSpec, *, rope_theta: float | None
) -> tuple[dict[str, Any], VerifierSpec]:
    """Read the transformer keys of a flat `config.json`.

    Args:
        flat: the reader; its keys are ticked off.
        spec: the verifier.
        rope_theta: what an absent theta means; None refuses its absence.

    Returns:
        Settings by field of `DraftLayersConfig`, and the verifier with the rotary embedding,
        norm epsilon and length of the drafter.

    Raises:
        CheckpointError: a key is missing, or fits neither the verifier nor this code.
    """
    for key, expected in (("hidden_size", spec.hidden_size), ("vocab_size", spec.vocab_size)):
        if (value := flat.need(key)) != expected:
            raise CheckpointError(
                f"config.json: {key} is {value}, but {spec.name_or_path} has {expected}; choose "
                "the verifier it was trained with"
            )
    flat.only("hidden_act", "silu", "must be silu")
    for key in ("attention_bias", "mlp_bias", "bias"):
        flat.only(key, False, "draft layers have no biases here")
    heads = flat.need("num_attention_heads")
    settings = {
        "num_layers": flat.need("num_hidden_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": flat.take("num_key_value_heads", heads),
        "head_dim": flat.take("head_dim", spec.hidden_size // heads),
        "intermediate_size": flat.need("intermediate_size"),
    }
    rope = _rope(flat, rope_theta)
    settings["rope_theta"] = plain_theta(rope)
    own = {
        "rope_parameters": rope,
        "rms_norm_eps": flat.need("rms_norm_eps"),
        "max_position_embeddings": flat.need("max_position_embeddings"),
    }
    return settings, spec.with_drafter(**own)


def write_flat(config: DraftLayersConfig, spec: VerifierSpec) -> dict[str, Any]:
    """Return the transformer keys of a flat `config.json`, rotary as transformers 4 named it."""
    flat = layer_config(config, spec, "")
    rope = flat.pop("rope_parameters")
    theta = rope.pop("rope_theta")
    del flat["model_type"]
    return {
        **flat,
        "rope_theta": theta,
        "rope_scaling": None if rope["rope_type"] == "default" else rope,
    }


def _rope(flat: FlatReader, default_theta: float | None) -> dict[str, Any]:
    """Read either form: `rope_parameters`, or `rope_theta` with `rope_scaling`."""
    rope = dict(flat.take("rope_parameters", {})) or dict(flat.take("rope_scaling", {}))
    flat.take("rope_scaling")
    theta = flat.take("rope_theta", rope.get("rope_theta", default_theta))
    if theta is None:
        raise CheckpointError("config.json: rope_theta is missing")
    kind = rope.pop("type", "default")
    rope = {"rope_type": kind, **rope, "rope_theta": theta}
    if problem := rope_problem(rope):
        raise CheckpointError(f"config.json: rope_scaling: {problem}")
    return serving_rope(rope)
