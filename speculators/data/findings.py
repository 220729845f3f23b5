"""What a report says beside its counts: lengths, coverage, origins, settings, a few samples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from speculators.config.schema import DataConfig
from speculators.config.schema.data import BadRows
from speculators.data.coloured import Excerpt, headline, stretches
from speculators.data.coverage import coverage_sizes, suggest_size
from speculators.data.hub import HubSource
from speculators.data.readers import Part
from speculators.data.repeats import HELD_OUT
from speculators.data.report import DataReport, length_histogram
from speculators.data.template import VerifierTokenizer
from speculators.data.truncation import Cutter
from speculators.data.types import Sample
from speculators.data.vocabulary import forced_token_ids
from speculators.errors import DataError

_SAMPLES, _CONTEXT_TOKENS, _TOKENS = 4, 120, 1500
_TOLERATED = 0.01
_SHOWN = 5
_PERCENT = (50, 90, 99, 100)
_POLICIES = ("truncation", "multi_turn", "bad_rows", "duplicates", "contaminated")


def add_lengths(report: DataReport, cutter: Cutter, sequence_length: int) -> None:
    """Add the histograms of all and of supervised tokens, before truncation."""
    lengths = np.frombuffer(cutter.lengths, dtype=np.int64)
    report.length_edges, report.length_counts = length_histogram(lengths, sequence_length)
    ordered = np.sort(lengths)
    places = {str(percent): percent * len(ordered) // 100 for percent in _PERCENT}
    last = len(ordered) - 1
    report.length_quantiles = {key: int(ordered[min(at, last)]) for key, at in places.items()}
    supervised = np.frombuffer(cutter.supervised, dtype=np.int64)
    report.supervised_edges, report.supervised_counts = length_histogram(
        supervised, sequence_length
    )
    report.sequence_length = sequence_length


def add_coverage(
    report: DataReport, counts: Int[Tensor, "vocab"], tokenizer: VerifierTokenizer
) -> None:
    """Add sizes of draft vocabularies, from the counts of supervised training tokens."""
    forced = forced_token_ids(counts, tokenizer.special_tokens, tokenizer.end_of_turn_ids)
    report.coverage_sizes = coverage_sizes(counts)
    report.suggested_vocab_size = suggest_size(counts, len(forced))


def add_origins(report: DataReport, config: DataConfig, parts: Sequence[Part]) -> None:
    """Add the licences of the sources, and the commits that the hub names."""
    sources = [part.source for part in parts]
    for source, setting in zip(sources, config.sources.values() or (config,), strict=True):
        if setting.licence is not None:
            report.licences[source.name] = setting.licence
        if isinstance(source, HubSource) and (commit := source.commit()) is not None:
            report.commits[source.name] = commit


def require_samples(
    report: DataReport,
    config: DataConfig,
    *,
    training: tuple[str, int],
    validation: tuple[str, int] | None,
) -> None:
    """Refuse data that nothing can be learnt from, or measured on.

    Args:
        report: what was left out.
        config: policies.
        training: name of the sources, and samples they gave.
        validation: the same of `data.validation_path`; None: part of the training samples.

    Raises:
        DataError: answers that the verifier would never write, a side without samples, or more
            than a few samples that are supervised throughout.
    """
    unstable = report.dropped.get("unstable turn", 0)
    if unstable and config.bad_rows is BadRows.error:
        lines = "".join(f"\n  {x}" for x in report.examples if "unstable" in x)
        raise DataError(
            f"verifier.template: {unstable} assistant turns begin with something else than "
            "what the generation prompt asks for, so the verifier would never write them: give "
            "them what it asks for (reasoning behind <think>), change the prompt "
            "(+verifier.template_arguments.enable_thinking=false), let the verifier answer "
            f"(data.regenerate.enabled=true) or leave them out (data.bad_rows=drop):{lines}"
        )
    if not training[1] and report.dropped.get(HELD_OUT):
        raise DataError("data.validation_path: every training row is in it as well")
    for name, samples in filter(None, (validation, training)):
        if not samples:
            lines = "".join(f"\n  {line}" for line in report.examples[:_SHOWN])
            raise DataError(f"{name}: no row is left to use; the first reasons:{lines}")
    _require_masks(report)


def _require_masks(report: DataReport) -> None:
    if report.num_fully_supervised > _TOLERATED * report.num_samples:
        raise DataError(
            f"{report.num_fully_supervised} of {report.num_samples} samples are supervised "
            "from the first to the last token, prompts included: the loss mask must be 0 on "
            "what the verifier did not write"
        )


def settings_facts(
    config: DataConfig, tokenizer: VerifierTokenizer, sequence_length: int, seed: int
) -> list[tuple[str, str]]:
    """Return what the samples depend on, as lines for a reader."""
    arguments = tokenizer.template_arguments
    values = {name: getattr(config, name).value for name in _POLICIES}
    return [
        ("template arguments", json.dumps(arguments) if arguments else "none"),
        ("sequence length", f"{sequence_length:,} tokens"),
        ("seed", str(seed)),
        ("policies", ", ".join(f"{name}={value}" for name, value in values.items())),
    ]


def shown_samples(
    table: Any,
    conversation_ids: Sequence[str],
    chosen: Bool[np.ndarray, "sample"],
    tokenizer: VerifierTokenizer,
) -> list[Excerpt]:
    """Return the first samples of different conversations, from shortly before what is supervised.

    Args:
        table: arrow table of samples.
        conversation_ids: of its rows.
        chosen: which of its rows may be shown.
        tokenizer: spells them.
    """
    rows: dict[str, int] = {}
    seen: set[str] = set()
    for row in np.flatnonzero(chosen).tolist():
        name, sample_id = conversation_ids[row], table["sample_id"][row].as_py()
        if name not in rows and sample_id not in seen:
            rows[name] = row
        seen.add(sample_id)
        if len(rows) == _SAMPLES:
            break
    shown = []
    for name, row in rows.items():
        ids, mask = (torch.tensor(table[c][row].as_py()) for c in ("input_ids", "loss_mask"))
        start = max(0, int(mask.argmax()) - _CONTEXT_TOKENS)
        stop = start + _TOKENS
        sample = Sample(ids[start:stop], mask[start:stop] == 1, "", name)
        source = table["source"][row].as_py()
        title = f"{source}, {headline(len(ids), int(mask.sum()), name)}"
        parts = [*stretches(sample, tokenizer)]
        before, after = [("\u2026 ", False)] * (start > 0), [(" \u2026", False)] * (stop < len(ids))
        shown.append(Excerpt(title, (*before, *parts, *after)))
    return shown
