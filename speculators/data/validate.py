"""`validate_only=true`: every row read and masked, every problem named, nothing written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Int

from speculators.config.schema import DataConfig
from speculators.config.schema.data import Duplicates
from speculators.data.contamination import open_prompt_sets
from speculators.data.findings import require_samples
from speculators.data.masking import Masker
from speculators.data.probe import MaskMethod, probe_template
from speculators.data.readers import Part, open_parts, open_validation
from speculators.data.repeats import Repeats
from speculators.data.report import DataReport
from speculators.data.samples import SampleIndex, mask_records
from speculators.data.selection import Selector
from speculators.data.template import VerifierTokenizer
from speculators.data.truncation import Cutter
from speculators.errors import DataError

STOPS, LEFT_OUT = "stops the preparation", "left out"


@dataclass
class Listing(DataReport):
    """A report that names every problem as it is found.

    Attributes:
        emit: takes one line at a time: file, line, reason and what becomes of the row.
        num_stops: problems that a preparation would end with.
        num_usable: samples that a preparation would write.
        refusal: what else a preparation would end with; None: nothing.
    """

    emit: Callable[[str], object] = field(default=print, compare=False)
    num_stops: int = 0
    num_usable: int = 0
    refusal: str | None = None

    def drop(
        self,
        reason: str,
        example: str | None = None,
        count: int = 1,
        *,
        stops: bool = False,
        asked_for: bool = False,
    ) -> None:
        """Name the row, and whether it is left out or stops everything."""
        super().drop(reason, example, count, stops=stops, asked_for=asked_for)
        self.num_stops += count if stops else 0
        self.emit(f"{example or reason} -> {STOPS if stops else LEFT_OUT}")

    def truncate(self, example: str, lost_tokens: int) -> None:
        """Name the row that is cut or split."""
        super().truncate(example, lost_tokens)
        self.emit(f"{example} -> {lost_tokens} tokens lost")


def validate_rows(
    config: DataConfig,
    tokenizer: VerifierTokenizer,
    *,
    vocab_size: int,
    sequence_length: int,
    validation_fraction: float,
    seed: int,
    emit: Callable[[str], object] = print,
) -> Listing:
    """Read and mask everything that would be prepared; write nothing.

    Args:
        config: where conversations come from, and the policies.
        tokenizer: the verifier's.
        vocab_size: embedding rows of the verifier.
        sequence_length: longest sample, in tokens.
        validation_fraction: share of the conversations held out.
        seed: of the split and of `max_samples`.
        emit: takes one line per problem.

    Raises:
        ConfigError: a template whose masks come out wrong.
        DataError: nothing readable is there.
    """
    listing = Listing(emit=emit)
    prompts = open_prompt_sets(config, tokenizer.decode)
    selector = Selector(config, listing, seed=seed, prompts=prompts, raises=False)
    parts = open_parts(config, vocab_size=vocab_size, seed=seed)
    validation = open_validation(config, vocab_size=vocab_size)
    # In the order of a preparation: of equal rows those of the validation file stay.
    held_out = None if validation is None else selector.select([Part(validation)])
    chosen = selector.select(parts, config.max_samples if config.sources else None)
    selections = [chosen] if held_out is None else [held_out, chosen]
    if config.regenerate.enabled:
        # Only questions are used; what the verifier answers is not known yet.
        listing.num_usable = sum(selection.num_records for selection in selections)
        return listing
    method = probe_template(tokenizer).method
    listing.method = method.value
    masker = Masker(tokenizer, config.multi_turn, use_tags=method is MaskMethod.tags)
    cutter = Cutter(config, sequence_length, listing)
    repeats = Repeats(listing, once=config.duplicates is not Duplicates.keep)
    index, unnamed, border = SampleIndex(), list[Int[np.ndarray, "token"]](), 0
    for selection in selections:
        for record, masked in mask_records(selection.records(), masker, config.num_workers):
            for cut in cutter.cut(record, masked):
                if repeats.leaves_out(record, cut.input_ids, cut.loss_mask):
                    continue
                listing.num_samples += 1
                listing.num_fully_supervised += cut.is_unmasked
                index.add(record, cut.input_ids, cut.loss_mask)
                if record.item.conversation_id is None:
                    unnamed.append(cut.input_ids.astype(np.uint32))
        if selection is held_out:
            repeats.hold_out()
            border = len(index)
    listing.num_usable = len(index)
    sources = ", ".join(part.source.name for part in parts)
    training = sources, len(index) - border
    try:
        if validation is None:
            require_samples(listing, config, training=training, validation=None)
            names = index.names(unnamed)
            index.split(names, repeats, fraction=validation_fraction, seed=seed)
        else:
            held = validation.name, border
            require_samples(listing, config, training=training, validation=held)
    except DataError as error:
        listing.refusal = str(error)
    return listing
