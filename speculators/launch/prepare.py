"""`speculators prepare`: conversations -> samples, and a look at what came out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from speculators.config.schema import Config
from speculators.data.coloured import print_samples
from speculators.data.report import print_report
from speculators.launch.threads import limit_threads
from speculators.launch.verifier_stage import Verifier, prepare_data


def run(config: Config, argv: Sequence[str] = ()) -> dict[str, Any]:
    """Prepare the data, print the report and as many samples as `show` asks for."""
    console = Console(highlight=False)
    limit_threads(config)
    verifier = Verifier(config)
    data = prepare_data(config, verifier)
    for notice in verifier.tokenizer.notices:
        console.print(f"[yellow]note:[/] {notice}", soft_wrap=True)
    print_report(data.report, console)
    if config.show:
        print_samples(data.train, verifier.tokenizer, config.show, console)
    origin = " (from an earlier run)" if data.reused else ""
    console.print(f"prepared data: {data.folder}{origin}", soft_wrap=True)
    return data.report.to_dict()
