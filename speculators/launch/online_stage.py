"""The online stage: what servers must be, and the source that asks them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from speculators.config.schema import Config, OnGenerate
from speculators.errors import SpeculatorsError
from speculators.hidden_states.float8 import stored_dtype
from speculators.hidden_states.identity import ANY_DTYPE
from speculators.hidden_states.online.handshake import Expected, Greeting, Reference
from speculators.hidden_states.online.source import OnlineSource
from speculators.hidden_states.store import HiddenStateStore
from speculators.launch.verifier_stage import Verifier, longest_sample
from speculators.verifier.first_layers import FirstLayers, reference_layers
from speculators.verifier.identity import store_identity
from speculators.verifier.weights import make_head

_log = logging.getLogger(__name__)


def open_online(
    config: Config, verifier: Verifier, layer_ids: Sequence[int], *, must_keep: bool = False
) -> OnlineSource:
    """Open the source that reads the store and asks servers for the rest.

    Args:
        config: the configuration.
        verifier: the verifier; its model is not loaded.
        layer_ids: layers the drafter reads, ascending, without the last stream.
        must_keep: see `OnlineSource`.

    Raises:
        ConfigError: the policies lack what they need.
        HiddenStateError: the store belongs to another verifier.
    """
    settings, spec = config.hidden_states, verifier.spec

    def open_store(greeting: Greeting | None) -> HiddenStateStore | None:
        path = Path(settings.store_path or "").expanduser()
        keeps = settings.on_generate is OnGenerate.cache
        if greeting is None and keeps and not (path / "store.json").is_file():
            return None  # begun when the server has shown its number format
        computed = ANY_DTYPE if greeting is None else greeting.dtype_name
        dtype = computed if greeting is None else stored_dtype(settings.store_dtype, computed)
        engine = "vllm" if greeting is None else greeting.engine
        wanted = store_identity(spec, layer_ids, dtype=dtype, engine=engine)
        return HiddenStateStore.open(
            path,
            wanted,
            create=greeting is not None,
            max_bytes=settings.max_bytes,
            max_bad_fraction=settings.fetch.max_bad_fraction,
            norm_band=settings.fetch.norm_band,
        )

    return OnlineSource(
        settings,
        (*layer_ids, spec.num_layers),
        spec.hidden_size,
        expectation(config, verifier),
        open_store=None if settings.store_path is None else open_store,
        record=Path(config.output_dir) / "left_out.jsonl",
        must_keep=must_keep,
    )


def expectation(config: Config, verifier: Verifier) -> Callable[[tuple[int, ...]], Expected]:
    """Return what says what servers must be, given the layer ids their files hold."""
    spec = verifier.spec

    def expected(served: tuple[int, ...]) -> Expected:
        tables = verifier.tables()
        return Expected(
            spec,
            served,
            longest_sample(config, verifier),
            tables.embed_tokens,
            make_head(spec, tables),
            _reference(config, verifier, served),
            config.seed,
        )

    return expected


def _reference(config: Config, verifier: Verifier, served: tuple[int, ...]) -> Reference | None:
    """Return the first layers where they are cheap to run; without them the check is thinner."""
    if not config.hidden_states.fetch.handshake:
        return None
    trust = config.verifier.trust_remote_code
    try:
        count = reference_layers(verifier.spec, served)
        return FirstLayers(verifier.spec, count, trust_remote_code=trust)
    except (SpeculatorsError, OSError, ValueError, RuntimeError, AttributeError) as error:
        # Nested configurations and the like: the teacher's token is still compared.
        _log.warning(
            "layer ids of servers are not compared with layers computed here: %s",
            str(error).partition("\n")[0],
        )
        return None
