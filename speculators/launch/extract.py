"""`speculators extract`: every sample's hidden states into the store, ahead of training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from speculators.config.schema import Config, HiddenStatesMode, OnGenerate, OnMissing
from speculators.config.wording import argument
from speculators.console import marked, open_console
from speculators.data.packing import pack
from speculators.data.prepared import PreparedData, SampleSet
from speculators.data.types import Sample
from speculators.errors import ConfigError
from speculators.hidden_states.float8 import stored_dtype
from speculators.hidden_states.identity import ANY_DTYPE
from speculators.hidden_states.online.transfer import free_bytes
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStateSource
from speculators.launch.data_stage import prepare_data
from speculators.launch.extract_progress import ExtractProgress
from speculators.launch.states_stage import open_source
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier
from speculators.verifier.identity import store_identity
from speculators.verifier.spec import VerifierSpec

_Share = list[tuple[SampleSet, int]]


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Fill the store with what is missing of this process's share.

    Raises:
        ConfigError: no store, or nothing that could compute states.
        HiddenStateError: states cannot be had or kept.
    """
    console = open_console()
    config = filling(config)
    verifier = Verifier(config)
    return fill_store(config, verifier, prepare_data(config, verifier), console)


def fill_store(
    config: Config, verifier: Verifier, data: PreparedData, console: Console
) -> dict[str, Any]:
    """Store the states of every sample that has none yet, of this process's share.

    Args:
        config: with the policies of `filling`.
        verifier: computes states, or says what servers must be.
        data: the samples.
        console: for progress and summary.

    Raises:
        HiddenStateError: states cannot be had or kept.
    """
    layer_ids = target_layer_ids(config, verifier.spec)
    source = open_source(config, verifier, layer_ids, must_keep=True)
    try:
        share = _share(config, data, _stored_ids(config, verifier, layer_ids))
        num_tokens = sum(int(samples.lengths[index]) for samples, index in share)
        console.print(
            f"{len(share):,} of {len(data.train) + len(data.validation):,} samples to extract"
            + _whose(config)
        )
        for line in _forecast(config, verifier.spec, num_tokens * (len(layer_ids) + 1)):
            console.print(line, soft_wrap=True)
        progress = _extract(share, source, ExtractProgress(console, len(share), num_tokens))
    finally:
        source.close()
    console.print(
        f"{progress.samples:,} samples, {progress.tokens:,} tokens, {decimal(progress.num_bytes)} "
        f"in {progress.seconds:.1f} s ({progress.tokens_per_second:,.0f} tokens/s); "
        f"{progress.left_out} left out"
    )
    console.print(f"store: {config.hidden_states.store_path}", soft_wrap=True)
    console.print(
        "next:  speculators train hidden_states=offline "
        f"{argument('hidden_states.store_path', str(config.hidden_states.store_path))}",
        soft_wrap=True,
    )
    return progress.result()


def filling(config: Config) -> Config:
    """Return the configuration with the policies that fill a store.

    Raises:
        ConfigError: no store, or nothing that could compute states.
    """
    settings = config.hidden_states
    if settings.store_path is None:
        raise ConfigError("hidden_states.store_path=null: extracting needs a store: give a folder")
    if settings.mode is HiddenStatesMode.offline:
        raise ConfigError(
            "hidden_states.mode=offline: extracting computes states: use hidden_states=online "
            "(vLLM servers) or hidden_states=embedded (in this process)"
        )
    filling = replace(
        settings, on_missing=OnMissing.generate, on_generate=OnGenerate.cache, memory_bytes=0
    )
    return replace(config, hidden_states=filling)


def _stored_ids(config: Config, verifier: Verifier, layer_ids: Sequence[int]) -> set[str]:
    path = Path(config.hidden_states.store_path or "").expanduser()
    if not (path / "store.json").is_file():
        return set()
    wanted = store_identity(verifier.spec, layer_ids, dtype=ANY_DTYPE, engine="")
    return set(HiddenStateStore.open(path, wanted, create=False).sample_ids())


def _share(config: Config, data: PreparedData, stored: set[str]) -> _Share:
    """Return this process's samples that are not stored yet, in the order training asks for them.

    Shares are settled by content: processes divide the work in the same way whenever they start.
    """
    extract = config.extract
    seen: set[str] = set()
    share: _Share = []
    for samples, order in ((data.validation, None), (data.train, _first_epoch(config, data))):
        names = list(samples.sample_ids())
        for index in range(len(names)) if order is None else order:
            name = names[index]
            mine = int(name[:15], 16) % extract.world_size == extract.rank
            if mine and name not in seen and name not in stored:
                share.append((samples, index))
            seen.add(name)
    return share[: extract.max_samples]


def _first_epoch(config: Config, data: PreparedData) -> list[int]:
    """Return the training samples in the order of the first epoch: what is needed first."""
    length = config.training.sequence_length
    rows = pack(data.train.lengths, length, seed=config.seed, epoch=0)
    return [int(index) for row in rows for index in row]


def _forecast(config: Config, spec: VerifierSpec, num_states: int) -> Iterator[str | Text]:
    """Yield what will be written and what there is room for."""
    settings = config.hidden_states
    path = Path(settings.store_path or "").expanduser()
    computed = spec.dtype if config.verifier.dtype == "auto" else config.verifier.dtype
    dtype = stored_dtype(settings.store_dtype, computed)
    item = getattr(getattr(torch, dtype, torch.bfloat16), "itemsize", 2)
    needed, free = num_states * spec.hidden_size * item, free_bytes(path)
    room = free if settings.max_bytes is None else min(free, settings.max_bytes)
    yield f"about {decimal(needed)} to write ({dtype}); {decimal(free)} free at {path}"
    if needed > room:
        yield marked(
            "note:",
            "yellow",
            f" more than the {decimal(room)} there is room for: extraction will wait for training "
            "to use what is stored (hidden_states.max_bytes), or give a larger disk, or half the "
            "bytes with hidden_states.store_dtype=float8_e4m3fn",
        )


def _extract(
    share: _Share, source: HiddenStateSource, progress: ExtractProgress
) -> ExtractProgress:
    def groups() -> Iterator[list[Sample]]:
        for samples, index in share:
            yield [samples[index]]

    with progress:
        for states in source.stream(groups()):
            progress.add(states[0])
    return progress


def _whose(config: Config) -> str:
    extract = config.extract
    if extract.world_size == 1:
        return ""
    return f" by process {extract.rank} of {extract.world_size}"
