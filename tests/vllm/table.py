"""The served table of docs/performance.md, measured: `VLLM=COMMAND python tests/vllm/table.py`.

The drafters of `test_drafters`, trained longer and asked more.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # as pytest does

from vllm.build import add_host_plugin
from vllm.test_drafters import CHOICES, measure

_STEPS, _PROMPTS, _TOKENS = 600, 40, 128
_HEADER = """\
| drafter | drafts, accepted | served tau | in process | same drafts on |
|---|---|---|---|---|"""


def main() -> None:
    """Print one row after another."""
    print(_HEADER, flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plugin = folder / "plugin"
        plugin.mkdir()
        add_host_plugin(plugin)
        os.environ["PYTHONPATH"] = f"{plugin}:{os.environ.get('PYTHONPATH', '')}"
        for number, choices in enumerate(CHOICES):
            place = folder / str(number)
            place.mkdir()
            print(_row(choices, folder / "cache", place), flush=True)


def _row(choices: list[str], cache: Path, folder: Path) -> str:
    printed, sys.stdout = sys.stdout, sys.stderr  # what training says is no part of the table
    try:
        found = measure(
            *(choices, os.environ["VLLM"], cache, folder),
            steps=_STEPS,
            prompts=_PROMPTS,
            tokens=_TOKENS,
        )
    finally:
        sys.stdout = printed
    if found["lossless_prompts"] != _PROMPTS:
        raise SystemExit(f"{choices}: lossless on {found['lossless_prompts']} prompts only")
    own, first = found["in_process"], choices[0].removeprefix("speculator=")
    name = " ".join([first, *(choice.removeprefix("speculator.") for choice in choices[1:])])
    return (
        f"| `{name}` | {found['num_drafts']}, {found['num_accepted_tokens']} "
        f"| {found['acceptance_length']:.3f} | {own['acceptance_length']:.3f} "
        f"| {own['equal_prompts']} of {_PROMPTS} |"
    )


if __name__ == "__main__":
    main()
