"""Loads a verifier's weights with `transformers`, completely or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from torch import nn
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from speculators.errors import ConfigError
from speculators.verifier import hub
from speculators.verifier.spec import VerifierSpec

# SDPA is the default of transformers where a family has it. These soft-cap attention scores,
# which SDPA cannot.
_CAPPED_SCORES = ("gemma2",)


def load_transformers(spec: VerifierSpec, dtype: str, trust_remote_code: bool) -> nn.Module:
    """Load the causal language model on the CPU, from the Hub where it is not here yet.

    Args:
        spec: the verifier.
        dtype: auto (as stored), float32 or bfloat16.
        trust_remote_code: run model code that comes with the repository.

    Raises:
        ConfigError: it cannot be loaded, or tensors are missing from its files.
    """
    folder = Path(spec.folder)
    if spec.revision is not None:
        patterns = hub.CONFIG_FILES + hub.WEIGHT_FILES
        patterns += hub.CODE_FILES if trust_remote_code else ()
        folder = hub.locate(spec.name_or_path, spec.revision, patterns).folder
    return load_folder(folder, spec, dtype=dtype, trust_remote_code=trust_remote_code)


def load_folder(folder: Path, spec: VerifierSpec, **options: Any) -> nn.Module:
    """Load the causal language model in a folder on the CPU.

    Args:
        folder: holds configuration and weights.
        spec: the verifier these are of.
        options: of `from_pretrained`.

    Raises:
        ConfigError: it cannot be loaded, or tensors are missing from its files.
    """
    at = f"verifier.name_or_path={spec.name_or_path}"
    if spec.model_type in _CAPPED_SCORES:
        options["attn_implementation"] = "eager"
    try:
        with quiet():
            loaded = AutoModelForCausalLM.from_pretrained(
                folder,
                local_files_only=True,
                output_loading_info=True,
                use_safetensors=True,
                **options,
            )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        first = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ConfigError(f"{at}: the model cannot be loaded: {first}") from error
    model, info = cast("tuple[nn.Module, dict[str, Any]]", loaded)
    # transformers would fill them with random numbers and go on.
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{at}: {len(missing)} tensors of {type(model).__name__} are not in {folder}, the "
            f"first is {missing[0]}; download the model again"
        )
    return model


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the progress bar of transformers out of our own output."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
