"""`speculators prepare`: conversations -> samples, and a look at what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from speculators.config.schema import Config
from speculators.data.coloured import print_samples
from speculators.data.report import print_report
from speculators.launch.data_stage import prepare_data
from speculators.launch.extract import fill_store, filling
from speculators.launch.threads import limit_threads
from speculators.launch.verifier_stage import Verifier


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare the data, print the report and as many samples as `show` asks for.

    With `data.regenerate.capture` the hidden states of the samples are stored too. They are asked
    for once more, as whole rows: the server has no state for the token it wrote last.
    """
    console = Console(highlight=False)
    limit_threads(config)
    capture = config.data.regenerate.capture
    config = filling(config) if capture else config
    verifier = Verifier(config)
    data = prepare_data(config, verifier)
    for notice in verifier.tokenizer.notices:
        console.print(f"[yellow]note:[/] {notice}", soft_wrap=True)
    print_report(data.report, console)
    if config.show:
        print_samples(data.train, verifier.tokenizer, config.show, console)
    origin = " (from an earlier run)" if data.reused else ""
    console.print(f"prepared data: {data.folder}{origin}", soft_wrap=True)
    if data.report.answers:
        console.print(f"every answer:  {data.report.answers}", soft_wrap=True)
    if capture:
        fill_store(config, verifier, data, console)
    return data.report.to_dict()
