"""`speculators prepare`: conversations -> samples, and a look at what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from speculators.config.schema import Config
from speculators.console import marked, open_console
from speculators.data.coloured import print_samples
from speculators.data.report_page import NUM_DRAFT_TOKENS, REPORT_HTML
from speculators.data.report_view import print_report
from speculators.data.validate import validate_rows
from speculators.data.vocabulary import require_size
from speculators.errors import DataError
from speculators.launch.data_stage import prepare_data
from speculators.launch.extract import fill_store, filling
from speculators.launch.threads import limit_threads
from speculators.launch.verifier_stage import Verifier, longest_sample
from speculators.launch.vocabulary_stage import (
    announce_vocabulary,
    choose_vocabulary,
    write_vocabulary,
)


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare the data, print the report and as many samples as `show` asks for.

    With `data.regenerate.capture` the hidden states of the samples are stored too. They are asked
    for once more, as whole rows: the server has no state for the token it wrote last.
    """
    console = open_console()
    limit_threads(config)
    capture = config.data.regenerate.capture
    config = filling(config) if capture else config
    verifier = Verifier(config)
    for notice in verifier.tokenizer.notices:
        console.print(marked("note:", "yellow", f" {notice}"), soft_wrap=True)
    if config.validate_only:
        return _validate(config, verifier, console)
    size = config.speculator.draft_vocab_size
    if size is not None:
        require_size(size, verifier.spec.vocab_size)
    data = prepare_data(config, verifier)
    print_report(data.report, console)
    if size is not None and size != verifier.spec.vocab_size:
        vocabulary = choose_vocabulary(size, verifier, data)
        coverage = announce_vocabulary(vocabulary, verifier, data, NUM_DRAFT_TOKENS, console)
        write_vocabulary(vocabulary, coverage, verifier, data)
    if config.show:
        print_samples(data.train, verifier.tokenizer, config.show, console)
    origin = " (from an earlier run)" if data.reused else ""
    console.print(f"prepared data: {data.folder}{origin}", soft_wrap=True)
    console.print(f"report: {data.folder / REPORT_HTML}", soft_wrap=True)
    if data.report.answers:
        console.print(f"every answer:  {data.report.answers}", soft_wrap=True)
    if capture:
        fill_store(config, verifier, data, console)
    return data.report.to_dict()


def _validate(config: Config, verifier: Verifier, console: Console) -> dict[str, Any]:
    """Name every problem; fail where a preparation would."""
    listing = validate_rows(
        config.data,
        verifier.tokenizer,
        vocab_size=verifier.spec.vocab_size,
        sequence_length=longest_sample(config, verifier),
        validation_fraction=config.training.validation_fraction,
        seed=config.data_seed,
        emit=lambda line: console.print(line, soft_wrap=True),
    )
    named = sum(listing.dropped.values()) + listing.num_truncated
    console.print(
        f"{listing.num_rows:,} rows read, {named:,} problems named, {listing.num_usable:,} samples "
        "usable; nothing was written",
        soft_wrap=True,
    )
    if listing.num_stops:
        number = listing.num_stops
        stops = f"{number:,} problems stop the preparation"
        stops = "1 problem stops the preparation" if number == 1 else stops
        raise DataError(f"{stops} (data.bad_rows=drop leaves such rows out)")
    if listing.refusal is not None:
        raise DataError(listing.refusal)
    if not listing.num_usable:
        raise DataError("no row is left to use")
    return listing.dropped
