"""Conversations -> a folder of samples: written aside, renamed when complete, reused when equal."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from rich.progress import track

from speculators.config.schema import DataConfig
from speculators.config.schema.data import Duplicates
from speculators.console import open_console
from speculators.data.contamination import PromptSets, open_prompt_sets
from speculators.data.dialogue import Answerer, Rules
from speculators.data.findings import (
    add_coverage,
    add_lengths,
    add_origins,
    require_samples,
    settings_facts,
    shown_samples,
)
from speculators.data.ledger import AnswerLedger
from speculators.data.masking import Masker
from speculators.data.prepared import FREQUENCIES, MANIFEST, USED, PreparedData
from speculators.data.probe import MaskMethod, TemplateProbe, probe_template
from speculators.data.readers import Part, Source, open_parts, open_validation
from speculators.data.regenerate import RegenerationBar, regenerate_rows
from speculators.data.repeats import Repeats
from speculators.data.report import DataReport
from speculators.data.report_page import write_report
from speculators.data.rows import Record
from speculators.data.samples import SampleIndex, SampleWriter, mask_records
from speculators.data.selection import Selection, Selector
from speculators.data.storage import count_tokens, read_arrow, save_dataset, written_aside
from speculators.data.template import VerifierTokenizer
from speculators.data.truncation import Cutter
from speculators.data.turns import one_at_a_time
from speculators.errors import ConfigError, DataError

FORMAT_VERSION = 5
_LONGEST_NAME = 80  # bytes; of the 255 a file system takes, others are written around it


def prepare(
    config: DataConfig,
    tokenizer: VerifierTokenizer,
    *,
    vocab_size: int,
    sequence_length: int,
    validation_fraction: float,
    seed: int,
    cache_dir: Path,
    answerer: Answerer | None = None,
    verifier: str = "",
    progress: bool = True,
    only_found: bool = False,
) -> PreparedData:
    """Return prepared data, made now or found from an earlier run with the same inputs.

    The folder is `<cache_dir>/prepared/<name>-<fingerprint>`. It appears when it is complete.

    Args:
        config: where conversations come from, and the policies.
        tokenizer: the verifier's.
        vocab_size: embedding rows of the verifier.
        sequence_length: longest sample, in tokens.
        validation_fraction: share of the conversations held out.
        seed: of the split and of `max_samples`.
        cache_dir: parent of all prepared data.
        answerer: the verifier; needed when `data.regenerate.enabled`. It is asked nothing when
            prepared data or answers of an earlier start are found.
        verifier: hash of the verifier's weights; part of the identity of regenerated data.
        progress: show a progress bar.
        only_found: prepare nothing.

    Raises:
        ConfigError: regeneration without a verifier, or a template whose masks come out wrong.
        DataError: rows that cannot be read, or nothing left to train on; with `only_found`, nothing
            prepared.
    """
    if config.regenerate.enabled and answerer is None:
        raise ConfigError("data.regenerate.enabled=true: needs a verifier that can generate")
    job = _Job(
        config=config,
        tokenizer=tokenizer,
        vocab_size=vocab_size,
        sequence_length=sequence_length,
        validation_fraction=validation_fraction,
        seed=seed,
        answerer=answerer if config.regenerate.enabled else None,
        verifier=verifier if config.regenerate.enabled else "",
        answers=cache_dir / "regenerated",
        progress=progress,
        parts=open_parts(config, vocab_size=vocab_size, seed=seed),
        validation=open_validation(config, vocab_size=vocab_size),
        prompts=open_prompt_sets(config, tokenizer.decode),
    )
    identity = job.identity()
    text = json.dumps(identity, sort_keys=True, default=str)
    fingerprint = hashlib.sha256(text.encode()).hexdigest()
    folder = cache_dir / "prepared" / f"{_file_name(config.name)}-{fingerprint[:16]}"
    if (folder / MANIFEST).exists():
        return PreparedData.load(folder)
    if only_found:
        raise DataError(f"{folder}: not prepared yet; `speculators prepare` does it")
    with one_at_a_time(folder):
        made = not (folder / MANIFEST).exists()  # another process may have done it meanwhile
        if made:
            with written_aside(folder) as partial:
                job.run(partial, identity, fingerprint)
    return PreparedData.load(folder, reused=not made)


@dataclass
class _Job:
    """One preparation."""

    config: DataConfig
    tokenizer: VerifierTokenizer
    vocab_size: int
    sequence_length: int
    validation_fraction: float
    seed: int
    answerer: Answerer | None
    verifier: str
    answers: Path
    progress: bool
    parts: list[Part]
    validation: Source | None
    prompts: PromptSets | None
    report: DataReport = field(default_factory=DataReport)

    def identity(self) -> dict[str, Any]:
        """Return everything the result depends on."""
        settings = _plain(self.config)
        # Where something lies does not matter, only what it holds.
        for name in ("validation_path", "prompt_sets", "num_workers", "seed"):
            del settings[name]
        for name in ("batch_size", "capture"):
            del settings["regenerate"][name]
        for place in (settings, *settings["sources"].values()):
            for name in ("name", "path", "licence"):
                del place[name]
        prompts = self.prompts
        return {
            "format_version": FORMAT_VERSION,
            "settings": settings,
            "sources": [part.source.fingerprint() for part in self.parts],
            "prompts": None if prompts is None else prompts.fingerprint(),
            "validation": self.validation.fingerprint() if self.validation else None,
            "tokenizer": self.tokenizer.fingerprint,
            "vocab_size": self.vocab_size,
            "sequence_length": self.sequence_length,
            "validation_fraction": None if self.validation else self.validation_fraction,
            "seed": self.seed,
            "verifier": self.verifier,
        }

    def run(self, folder: Path, identity: dict[str, Any], fingerprint: str) -> None:
        """Write the complete content of `folder`."""
        started = time.perf_counter()
        probe = self._probe()
        part = folder / "rows" / "part.arrow"
        part.parent.mkdir()
        cutter = Cutter(self.config, self.sequence_length, self.report)
        repeats = Repeats(self.report, once=self.config.duplicates is not Duplicates.keep)
        writer = SampleWriter(part, cutter, self.report, repeats)
        selector = Selector(self.config, self.report, seed=self.seed, prompts=self.prompts)
        try:
            # First, so that of equal rows those of the validation file stay.
            if self.validation is not None:
                self._write(selector.select([Part(self.validation)]), writer, probe)
                repeats.hold_out()
            border = len(writer.index)
            limit = self.config.max_samples if self.config.sources else None
            self._write(selector.select(self.parts, limit), writer, probe)
        finally:
            writer.close()
        index, held_out = writer.index, self.validation
        require_samples(
            self.report,
            self.config,
            training=(self.name, len(index) - border),
            validation=None if held_out is None else (held_out.name, border),
        )
        conversation_ids = _conversation_ids(index, part)
        validates = self._split(index, conversation_ids, border, repeats)
        counts, used = count_tokens(part, ~validates, self.vocab_size)
        save_dataset(part, folder, conversation_ids, validates)
        shown = shown_samples(read_arrow(part), conversation_ids, ~validates, self.tokenizer)
        shutil.rmtree(part.parent)
        frequencies = {i: int(counts[i]) for i in np.flatnonzero(counts).tolist()}
        torch.save(frequencies, folder / FREQUENCIES)
        np.save(folder / USED, used)
        self.report.num_validation = int(validates.sum())
        self.report.num_train = len(validates) - self.report.num_validation
        add_lengths(self.report, cutter, self.sequence_length)
        self.report.truncation = self.config.truncation.value
        add_coverage(self.report, torch.from_numpy(counts), self.tokenizer)
        add_origins(self.report, self.config, self.parts)
        self.report.seconds = round(time.perf_counter() - started, 3)
        facts = settings_facts(self.config, self.tokenizer, self.sequence_length, self.seed)
        facts = [("sources", self.name), *facts]
        write_report(folder, self.report, self.config.name, samples=shown, facts=facts)
        self._write_manifest(folder, identity, fingerprint, index.sample_ids)

    def _probe(self) -> TemplateProbe:
        probe = probe_template(self.tokenizer)
        self.report.not_shown = list(probe.refused)
        self.report.method = "the verifier's own tokens" if self.answerer else probe.method.value
        return probe

    def _write(self, selection: Selection, writer: SampleWriter, probe: TemplateProbe) -> None:
        config = self.config
        records, total = selection.records(), selection.num_records
        if self.answerer is not None:
            self._regenerate(records, total, writer, self.answerer)
            return
        tags = probe.method is MaskMethod.tags
        masker = Masker(self.tokenizer, config.multi_turn, use_tags=tags)
        for record, result in track(
            mask_records(records, masker, config.num_workers),
            description="tokenising",
            console=open_console(stderr=True),
            total=total,
            transient=True,
            disable=not self.progress,
        ):
            writer.add(record, result)

    def _regenerate(
        self, records: Iterator[Record], total: int, writer: SampleWriter, answerer: Answerer
    ) -> None:
        identity = self._answer_identity()
        text = json.dumps(identity, sort_keys=True, default=str)
        folder = self.answers / hashlib.sha256(text.encode()).hexdigest()[:16]
        with one_at_a_time(folder), contextlib.closing(AnswerLedger(folder, identity)) as ledger:
            self.report.answers = str(ledger.path)
            bar = RegenerationBar(total, enabled=self.progress)
            rules = Rules(
                self.tokenizer,
                self.config.regenerate,
                self.sequence_length,
                self.config.multi_turn,
                self.seed,
                ledger,
                bar.watch,
            )
            rows = regenerate_rows(records, answerer, rules, self.report)
            with bar, contextlib.closing(rows):
                for record, result in rows:
                    writer.add(record, result)

    def _answer_identity(self) -> dict[str, Any]:
        """Return everything an answer depends on beside its question."""
        settings = self.config.regenerate
        return {
            "verifier": self.verifier,
            "tokenizer": self.tokenizer.fingerprint,
            "max_new_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "sequence_length": self.sequence_length,
            "seed": self.seed,
        }

    def _split(
        self,
        index: SampleIndex,
        conversation_ids: list[str],
        border: int,
        repeats: Repeats,
    ) -> Bool[np.ndarray, "sample"]:
        if self.validation is not None:
            return np.arange(len(index)) < border
        fraction, seed = self.validation_fraction, self.seed
        split = index.split(conversation_ids, repeats, fraction=fraction, seed=seed)
        self.report.validation_fraction = self.validation_fraction
        self.report.num_groups = split.num_groups
        self.report.largest_group = split.largest_group
        return split.validates

    @property
    def name(self) -> str:
        """What messages call the sources together."""
        return ", ".join(part.source.name for part in self.parts)

    def _write_manifest(
        self, folder: Path, identity: dict[str, Any], fingerprint: str, sample_ids: list[str]
    ) -> None:
        manifest = {
            "format_version": FORMAT_VERSION,
            "fingerprint": fingerprint,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "inputs": identity,
            "path": self.name,
            "validation_path": self.validation.name if self.validation else None,
            "template_arguments": self.tokenizer.template_arguments,
            "content": hashlib.sha256("".join(sample_ids).encode()).hexdigest(),
            "versions": {
                name: version(name) for name in ("datasets", "tokenizers", "torch", "transformers")
            },
            "report": self.report.to_dict(),
        }
        text = json.dumps(manifest, indent=2, default=str)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _file_name(name: str) -> str:
    """Return a name as part of a file's: that of a hub data set, or of a folder, is a path."""
    plain = re.sub(r"[^\w.-]+", "_", name).encode()
    # The end of a path says most; what the cut leaves of a character goes as well.
    return plain[-_LONGEST_NAME:].decode("utf-8", "ignore").strip("._-") or "data"


def _plain(config: DataConfig) -> dict[str, Any]:
    """Return settings as plain values, enums by their value."""
    return dataclasses.asdict(
        config,
        dict_factory=lambda items: {
            name: value.value if isinstance(value, Enum) else value for name, value in items
        },
    )


def _conversation_ids(index: SampleIndex, part: Path) -> list[str]:
    column = read_arrow(part)["input_ids"]
    return index.names(column[number].as_py() for number in index.unnamed)
