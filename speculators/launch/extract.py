"""`speculators extract`: every sample's hidden states into the store, ahead of training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from speculators.config.schema import Config, HiddenStatesMode, OnGenerate, OnMissing
from speculators.data.prepared import PreparedData
from speculators.data.types import Sample
from speculators.errors import ConfigError
from speculators.hidden_states.identity import ANY_DTYPE
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates, HiddenStateSource
from speculators.launch.data_stage import prepare_data
from speculators.launch.online_stage import open_online
from speculators.launch.states_stage import open_source
from speculators.launch.target_layers import target_layer_ids
from speculators.launch.verifier_stage import Verifier
from speculators.verifier.identity import store_identity


@dataclass
class _Tally:
    """What has been delivered."""

    samples: int = 0
    tokens: int = 0
    num_bytes: int = 0
    left_out: int = 0

    def add(self, states: HiddenStates | None) -> None:
        if states is None:
            self.left_out += 1
            return
        self.samples += 1
        self.tokens += len(states.last)
        self.num_bytes += states.aux.nbytes + states.last.nbytes


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Fill the store with what is missing of this process's share.

    Raises:
        ConfigError: no store, or nothing that could compute states.
        HiddenStateError: states cannot be had or kept.
    """
    console = Console(highlight=False)
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
    source = _open(config, verifier, layer_ids)
    try:
        share = _share(config, data, _stored_ids(config, verifier, layer_ids))
        console.print(
            f"{len(share):,} of {len(data.train) + len(data.validation):,} samples to extract"
            + _whose(config)
        )
        tally, seconds = _extract(share, source, console)
    finally:
        source.close()
    rate = tally.tokens / max(seconds, 1e-9)
    console.print(
        f"{tally.samples:,} samples, {tally.tokens:,} tokens, {decimal(tally.num_bytes)} in "
        f"{seconds:.1f} s ({rate:,.0f} tokens/s); {tally.left_out} left out"
    )
    console.print(f"store: {config.hidden_states.store_path}")
    console.print(
        "next:  speculators train hidden_states=offline "
        f"hidden_states.store_path={config.hidden_states.store_path}",
        soft_wrap=True,
    )
    return {"seconds": seconds, "tokens_per_second": rate, **vars(tally)}


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


def _open(config: Config, verifier: Verifier, layer_ids: Sequence[int]) -> HiddenStateSource:
    if config.hidden_states.mode is HiddenStatesMode.online:
        return open_online(config, verifier, layer_ids, must_keep=True)
    return open_source(config, verifier, layer_ids)


def _stored_ids(config: Config, verifier: Verifier, layer_ids: Sequence[int]) -> set[str]:
    path = Path(config.hidden_states.store_path or "").expanduser()
    if not (path / "store.json").is_file():
        return set()
    wanted = store_identity(verifier.spec, layer_ids, dtype=ANY_DTYPE, engine="")
    return set(HiddenStateStore.open(path, wanted, create=False).sample_ids())


def _share(config: Config, data: PreparedData, stored: set[str]) -> list[tuple[Any, int]]:
    """Return this process's samples that are not stored yet, as (set, index).

    Shares are settled by content: processes divide the work in the same way whenever they start.
    """
    extract = config.extract
    seen: set[str] = set()
    share: list[tuple[Any, int]] = []
    for samples in (data.validation, data.train):
        for index, sample_id in enumerate(samples.sample_ids()):
            if sample_id in seen:
                continue
            seen.add(sample_id)
            if int(sample_id[:15], 16) % extract.world_size != extract.rank:
                continue
            if sample_id not in stored:
                share.append((samples, index))
    return share[: extract.max_samples]


def _extract(
    share: Sequence[tuple[Any, int]], source: HiddenStateSource, console: Console
) -> tuple[_Tally, float]:
    tally = _Tally()
    columns = (
        TextColumn("extracting"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )

    def groups() -> Iterator[list[Sample]]:
        for samples, index in share:
            yield [samples[index]]

    began = time.perf_counter()
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=len(share), rate="")
        for states in source.stream(groups()):
            tally.add(states[0])
            seconds = max(time.perf_counter() - began, 1e-9)
            rate = f"{tally.tokens / seconds:,.0f} tokens/s  {decimal(tally.num_bytes)}"
            bar.update(task, advance=1, rate=rate)
    return tally, time.perf_counter() - began


def _whose(config: Config) -> str:
    extract = config.extract
    if extract.world_size == 1:
        return ""
    return f" by process {extract.rank} of {extract.world_size}"
