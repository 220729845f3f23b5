"""The checkpoint a run starts from: made for its own verifier, or for another one."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speculators.algorithms.registry import drafter_class
from speculators.algorithms.serving import need, read_drafter_spec
from speculators.config.schema import Config, SpeculatorConfig
from speculators.config.schema.verifier import VerifierConfig
from speculators.conversion.integrity import TOKENIZER_KEY
from speculators.conversion.layout import read_serving_config
from speculators.errors import ConfigError
from speculators.verifier.layers import at_same_depth
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.spec_reader import read_spec

KEY = "speculator.from_pretrained"


@dataclass(frozen=True)
class WarmStart:
    """A checkpoint to start from.

    Attributes:
        folder: the checkpoint.
        serving: its `config.json`.
        settings: the drafter's, as the checkpoint has them.
        origin: the verifier it was made for, where tokens or layers have to be matched; None:
            every weight keeps its meaning.
        notice: a line a user should read, or empty.
    """

    folder: Path
    serving: dict[str, Any]
    settings: SpeculatorConfig
    origin: VerifierSpec | None = None
    notice: str = ""

    def drafter_spec(self, spec: VerifierSpec) -> VerifierSpec:
        """Return the verifier as the drafter sees it.

        Weights of another verifier mean what they meant under the rotary embedding and the epsilon
        they were trained with.
        """
        if self.origin is None:
            return spec
        longest = spec.max_position_embeddings
        own = read_drafter_spec(self.serving, spec)
        return dataclasses.replace(own, max_position_embeddings=longest)

    def answer(self, asked: SpeculatorConfig, spec: VerifierSpec) -> SpeculatorConfig:
        """Let the checkpoint answer what the configuration leaves open.

        For another verifier, layers are read at the same relative depth, and the mask token and
        a whole vocabulary are the verifier's own.

        Raises:
            ConfigError: a number of layers that the weights have no place for.
        """
        saved = {f.name: getattr(self.settings, f.name) for f in dataclasses.fields(self.settings)}
        if self.origin is not None:
            saved |= self._matched(asked, self.origin, spec)
        del saved["from_pretrained"], saved["pretrained_verifier"]
        open_fields = [name for name in saved if getattr(asked, name) is None]
        return dataclasses.replace(asked, **{name: saved[name] for name in open_fields})

    def _matched(
        self, asked: SpeculatorConfig, origin: VerifierSpec, spec: VerifierSpec
    ) -> dict[str, Any]:
        """Return the settings that name layers and tokens, in terms of `spec`."""
        there = self.settings.target_layer_ids or []
        ids = asked.target_layer_ids
        if ids is None:
            ids = list(at_same_depth(there, origin.num_layers, spec.num_layers))
        if len(ids) != len(there):
            raise ConfigError(
                f"speculator.target_layer_ids={ids}: the drafter in {self.folder} reads "
                f"{len(there)} layers, and its weights have no place for another number"
            )
        size = self.settings.draft_vocab_size or origin.vocab_size
        whole = size >= min(origin.vocab_size, spec.vocab_size)
        matched = {"target_layer_ids": ids, "draft_vocab_size": None if whole else size}
        return matched | ({"mask_token_id": None} if hasattr(asked, "mask_token_id") else {})


def find_warm_start(config: Config, spec: VerifierSpec) -> WarmStart | None:
    """Return the checkpoint `speculator.from_pretrained` names, None where it names none.

    Args:
        config: the configuration.
        spec: the verifier of this run.

    Raises:
        ConfigError: a drafter of another algorithm, or made for a verifier of another width or for
            one that cannot be read.
        CheckpointError: the checkpoint is damaged.
    """
    asked = config.speculator
    if asked.from_pretrained is None:
        return None
    folder = Path(asked.from_pretrained)
    serving = read_serving_config(folder)
    kind = serving["speculators_model_type"]
    if kind != asked.name:
        raise ConfigError(f"{KEY}={folder}: holds a {kind} drafter; use speculator={kind}")
    settings = drafter_class(kind).config_from_serving(serving)
    origin, notice = _origin(config, folder, serving, spec)
    return WarmStart(folder, serving, settings, origin, notice)


def _origin(
    config: Config, folder: Path, serving: dict[str, Any], spec: VerifierSpec
) -> tuple[VerifierSpec | None, str]:
    """Return the verifier a checkpoint was made for, where it has to be matched, and a notice."""
    layer = need(serving, "transformer_layer_config")
    if layer.get("hidden_size") != spec.hidden_size:
        raise ConfigError(
            f"{KEY}={folder}: made for a verifier with hidden_size {layer.get('hidden_size')}, but "
            f"{spec.name_or_path} has {spec.hidden_size}: its weights read states of that width "
            f"alone; start anew ({KEY}=null)"
        )
    named = need(need(serving, "speculators_config"), "speculators_config.verifier")
    name = config.speculator.pretrained_verifier or need(named, "verifier.name_or_path")
    if name == spec.name_or_path:
        return None, ""
    trust = config.verifier.trust_remote_code
    try:
        origin = read_spec(VerifierConfig(name_or_path=name, trust_remote_code=trust))
    except ConfigError as error:
        told = serving.get(TOKENIZER_KEY) or spec.tokenizer_hash
        if told == spec.tokenizer_hash and layer.get("vocab_size") == spec.vocab_size:
            return None, (
                f"{folder} was made for {name}, which cannot be read here; vocabulary and width "
                "are this verifier's, so it is taken for the same model"
            )
        raise ConfigError(
            f"{KEY}={folder}: made for {name}, which cannot be read here to match its tokens and "
            "layers; give its folder: speculator.pretrained_verifier=DIR"
        ) from error
    same = ("tokenizer_hash", "vocab_size", "num_layers")
    if all(getattr(origin, part) == getattr(spec, part) for part in same):
        return None, ""
    return origin, ""
