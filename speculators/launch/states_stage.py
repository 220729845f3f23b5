"""The hidden-state stage: the source the configuration names."""

from __future__ import annotations

from collections.abc import Sequence

from speculators.config.schema import Config, HiddenStatesMode, OnGenerate, OnMissing
from speculators.hidden_states.embedded import EmbeddedSource
from speculators.hidden_states.float8 import stored_dtype
from speculators.hidden_states.identity import ANY_DTYPE
from speculators.hidden_states.offline import OfflineSource
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStateSource
from speculators.launch.online_stage import open_online
from speculators.launch.verifier_stage import Verifier
from speculators.verifier.identity import store_identity


def open_source(
    config: Config, verifier: Verifier, layer_ids: Sequence[int], *, must_keep: bool = False
) -> HiddenStateSource:
    """Open where hidden states come from. The caller closes it.

    Args:
        config: the configuration.
        verifier: the verifier.
        layer_ids: layers the drafter reads, ascending, without the last stream.
        must_keep: the store is filled for others (`speculators extract`).

    Raises:
        ConfigError: the policies lack what they need.
        HiddenStateError: the store belongs to another verifier.
    """
    settings = config.hidden_states
    generates = settings.on_missing is OnMissing.generate
    if settings.mode is HiddenStatesMode.online or (
        settings.mode is HiddenStatesMode.offline and generates
    ):
        return open_online(config, verifier, layer_ids, must_keep=must_keep)
    if settings.mode is HiddenStatesMode.offline:
        store = _open_store(config, verifier, layer_ids, dtype=ANY_DTYPE, create=False)
        return OfflineSource(store, settings.on_missing)
    model = verifier.model() if generates else None
    store = None
    if settings.store_path is not None:
        dtype = ANY_DTYPE
        if model is not None:
            computed = str(model.dtype).removeprefix("torch.")
            dtype = stored_dtype(settings.store_dtype, computed)
        keeps = settings.on_generate is OnGenerate.cache
        store = _open_store(config, verifier, layer_ids, dtype=dtype, create=keeps)
    return EmbeddedSource(
        model,
        layer_ids,
        store=store,
        on_missing=settings.on_missing,
        on_generate=settings.on_generate,
        batch_tokens=settings.batch_tokens,
        memory_bytes=settings.memory_bytes,
        must_keep=must_keep,
    )


def _open_store(
    config: Config, verifier: Verifier, layer_ids: Sequence[int], *, dtype: str, create: bool
) -> HiddenStateStore:
    wanted = store_identity(verifier.spec, layer_ids, dtype=dtype, engine="transformers")
    settings = config.hidden_states
    return HiddenStateStore.open(
        settings.store_path or "",
        wanted,
        create=create,
        max_bytes=settings.max_bytes,
        max_bad_fraction=settings.fetch.max_bad_fraction,
        norm_band=settings.fetch.norm_band,
    )
