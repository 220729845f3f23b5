"""Reads what is known of a verifier from its configuration and tokenizer files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PretrainedConfig
from transformers.utils import logging as transformers_logging

from speculators.config.schema.verifier import VerifierConfig
from speculators.errors import ConfigError
from speculators.verifier import hub
from speculators.verifier.hub import Location
from speculators.verifier.identity import tokenizer_hash
from speculators.verifier.spec import NormKind, VerifierSpec

# Families (model_type of the text model, before any _text or _moe) that store the gain of their
# norms as a distance from 1. `VerifierModel.load` proves the choice on the real weights.
_PLUS_ONE = (
    *("gemma", "gemma2", "gemma3", "vaultgemma", "recurrent_gemma"),
    *("qwen3_next", "qwen3_5", "qwen4_exp"),
    *("minimax_m3_vl", "muse_glimmer", "muse_spark", "step3p5", "step3p7"),
)
# Factors on the logits that a plain final head does not have.
_LOGIT_FACTORS = ("logits_scaling", "logit_scale", "lm_head_multiplier")


def read_spec(config: VerifierConfig) -> VerifierSpec:
    """Read a verifier's sizes and ids; downloads no weights.

    Args:
        config: names the verifier: `tiny`, a local folder, or a hub id with a revision. Code of
            the repository runs only with `trust_remote_code`.

    Raises:
        ConfigError: nothing there, not readable, or a family whose final norm or head this
            project cannot reproduce.
    """
    patterns = hub.CONFIG_FILES + (hub.CODE_FILES if config.trust_remote_code else ())
    location = hub.locate(config.name_or_path, config.revision, patterns)
    full = _read_config(location, config.trust_remote_code)
    text = full.get_text_config(decoder=True)
    if hasattr(text, "allow_global_per_layer_attribute_access"):
        # Sizes that differ by layer (Gemma 4): the common value is what a drafter is sized by.
        text.allow_global_per_layer_attribute_access = True
    with _without_remarks():
        return _spec(config, location, full, text)


def _spec(
    config: VerifierConfig, location: Location, full: PretrainedConfig, text: PretrainedConfig
) -> VerifierSpec:
    _check_family(location, text)
    tokenizer = _read_tokenizer(location, config.trust_remote_code)
    generation = _read_generation_config(location)
    vocabulary = {} if tokenizer is None else tokenizer.get_vocab()
    num_heads = int(text.num_attention_heads)
    vocab_size = int(text.vocab_size)
    return VerifierSpec(
        name_or_path=location.name,
        folder=str(location.folder),
        revision=location.revision,
        architecture=(full.architectures or [type(full).__name__])[0],
        model_type=text.model_type,
        num_layers=int(text.num_hidden_layers),
        hidden_size=int(text.hidden_size),
        intermediate_size=_intermediate_size(location, text),
        vocab_size=vocab_size,
        num_tokens=min(len(tokenizer), vocab_size) if tokenizer is not None else vocab_size,
        num_attention_heads=num_heads,
        num_key_value_heads=int(getattr(text, "num_key_value_heads", None) or num_heads),
        head_dim=int(getattr(text, "head_dim", None) or text.hidden_size // num_heads),
        hidden_act=_first(text, ("hidden_act", "hidden_activation")) or "silu",
        rms_norm_eps=float(text.rms_norm_eps),
        rope_parameters=_rope_parameters(text),
        max_position_embeddings=int(text.max_position_embeddings),
        dtype=_dtype_name(text, full),
        tie_word_embeddings=any(
            bool(getattr(c, "tie_word_embeddings", False)) for c in (full, text)
        ),
        bos_token_id=_single_id("bos_token_id", (text, full, generation, tokenizer)),
        pad_token_id=_single_id("pad_token_id", (text, full, generation, tokenizer)),
        eos_token_ids=_eos_ids((text, full, generation), tokenizer),
        norm_kind=_norm_kind(text.model_type),
        logit_softcap=getattr(text, "final_logit_softcapping", None),
        tokenizer_hash=tokenizer_hash(location.folder, vocabulary),
        **_experts(text),
    )


def _read_config(location: Location, trust_remote_code: bool) -> PretrainedConfig:
    if not (location.folder / "config.json").is_file():
        raise ConfigError(
            f"verifier.name_or_path={location.name}: no config.json in {location.folder}; give the "
            "folder of a transformers model"
        )
    try:
        return AutoConfig.from_pretrained(
            location.folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        # transformers raises whatever a malformed value leads to.
        raise ConfigError(
            f"verifier.name_or_path={location.name}: config.json cannot be read: "
            f"{_one_line(error)}; models with code of their own need "
            "verifier.trust_remote_code=true"
        ) from error


def _read_tokenizer(location: Location, trust_remote_code: bool) -> Any | None:
    """Load the tokenizer, or None where the folder has none."""
    folder = location.folder
    names = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        return None
    try:
        return AutoTokenizer.from_pretrained(
            folder, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except Exception as error:
        raise ConfigError(
            f"verifier.name_or_path={location.name}: the tokenizer in {folder} cannot be read: "
            f"{_one_line(error)}"
        ) from error


def _read_generation_config(location: Location) -> GenerationConfig | None:
    if not (location.folder / "generation_config.json").is_file():
        return None
    try:
        return GenerationConfig.from_pretrained(location.folder, local_files_only=True)
    except Exception as error:
        raise ConfigError(
            f"verifier.name_or_path={location.name}: generation_config.json cannot be read: "
            f"{_one_line(error)}"
        ) from error


def _check_family(location: Location, text: PretrainedConfig) -> None:
    """Refuse families whose teacher logits are not lm_head(RMSNorm(state))."""
    at = f"verifier.name_or_path={location.name}"
    missing = [
        name
        for name in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size")
        if not isinstance(getattr(text, name, None), int)
    ]
    if missing or getattr(text, "is_encoder_decoder", False):
        what = f"its configuration has no {missing[0]}" if missing else "it is an encoder-decoder"
        raise ConfigError(f"{at}: {text.model_type} is no causal language model: {what}")
    if not isinstance(getattr(text, "rms_norm_eps", None), float):
        raise ConfigError(
            f"{at}: {text.model_type} has no RMS norm (no rms_norm_eps in its configuration); "
            "verifiers whose final norm is a LayerNorm are not supported"
        )
    for name in _LOGIT_FACTORS:
        factor = getattr(text, name, None)
        if factor not in (None, 1):
            raise ConfigError(
                f"{at}: {text.model_type} scales its logits ({name}={factor}); such verifiers are "
                "not supported"
            )


def _norm_kind(model_type: str) -> NormKind:
    family = model_type.removesuffix("_text").removesuffix("_moe")
    return NormKind.rms_plus_one if family in _PLUS_ONE else NormKind.rms


def _intermediate_size(location: Location, text: PretrainedConfig) -> int:
    size = _first(text, ("intermediate_size", "moe_intermediate_size"))
    if isinstance(size, list | tuple):
        size = max(size)
    if not isinstance(size, int):
        raise ConfigError(
            f"verifier.name_or_path={location.name}: its configuration has no intermediate_size"
        )
    return size


def _experts(text: PretrainedConfig) -> dict[str, Any]:
    """Return what a mixture of experts has; nothing for a dense model.

    Families that keep a dense MLP beside the experts in every layer are counted without it.
    """
    count = _first(text, ("num_experts", "num_local_experts"))
    per_token = _first(text, ("num_experts_per_tok", "top_k_experts"))
    if not count or not per_token:
        return {}
    width = _first(text, ("moe_intermediate_size", "intermediate_size"))
    return {
        "num_experts": int(count),
        "experts_per_token": int(per_token),
        "expert_intermediate_size": int(width),
    }


def _rope_parameters(text: PretrainedConfig) -> dict[str, Any]:
    """Return one flat set; of several by layer type, that of full attention."""
    parameters = dict(getattr(text, "rope_parameters", None) or {})
    nested = {key: value for key, value in parameters.items() if isinstance(value, dict)}
    if nested and "rope_theta" not in parameters:
        parameters = dict(nested.get("full_attention") or next(iter(nested.values())))
    parameters.setdefault("rope_type", "default")
    return parameters


def _dtype_name(*configs: PretrainedConfig) -> str:
    for config in configs:
        dtype = getattr(config, "dtype", None)
        if dtype is not None:
            return str(dtype).removeprefix("torch.")
    return "float32"


def _single_id(name: str, places: Iterable[Any]) -> int | None:
    found = (getattr(place, name, None) for place in places)
    return next((value for value in found if isinstance(value, int)), None)


def _eos_ids(configs: Iterable[Any], tokenizer: Any | None) -> tuple[int, ...]:
    found: list[int] = []
    for config in configs:
        value = getattr(config, "eos_token_id", None)
        found += value if isinstance(value, list) else [] if value is None else [value]
    if not found and tokenizer is not None and tokenizer.eos_token_id is not None:
        found = [tokenizer.eos_token_id]
    return tuple(dict.fromkeys(found))


def _first(text: PretrainedConfig, names: Iterable[str]) -> Any:
    return next((v for name in names if (v := getattr(text, name, None)) is not None), None)


@contextmanager
def _without_remarks() -> Iterator[None]:
    """Keep what transformers remarks on configurations out of our own output."""
    level = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)


def _one_line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
