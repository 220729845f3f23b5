"""How fast conversations become samples: against a straightforward `datasets.map`.

    python benchmarks/prepare.py TOKENIZER FILE [FILE ...] [--count 5000] [--rounds 2] [--json FILE]

TOKENIZER is a model folder with a chat template, FILE holds conversations in the messages layout.
Both sides start from the same file and a loaded tokenizer, end with token ids and loss masks on
disk, and run in turns, each in a process of its own on the same processors. Imports and the loading
of the tokenizer are not counted.

- straightforward: `datasets.Dataset.map` calls `apply_chat_template` for the conversation up to
  every assistant turn, with and without that turn, and compares; nothing is rendered twice (with
  generation tags in the template: once, `return_assistant_tokens_mask`);
- this project: everything `speculators prepare` does, validation, split, counts, report included.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
from transformers import AutoTokenizer

from speculators.config.schema import DataConfig
from speculators.data.prepare import prepare
from speculators.data.template import VerifierTokenizer

SEQUENCE_LENGTH = 8192


class Loaded:
    """What both sides start from.

    Args:
        folder: of the tokenizer.

    Attributes:
        plain: the `transformers` tokenizer.
        vocab_size: embedding rows of its model.
    """

    def __init__(self, folder: str) -> None:
        self.plain: Any = AutoTokenizer.from_pretrained(folder)
        sizes = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        self.vocab_size = int(sizes["vocab_size"])


def read_rows(files: list[str], count: int) -> list[dict[str, Any]]:
    """Return the first rows, files taken in order, each with an id of its own."""
    rows: list[dict[str, Any]] = []
    for file in files:
        lines = Path(file).read_text(encoding="utf-8").strip().split("\n")
        rows += [{"messages": json.loads(line)["messages"]} for line in lines]
    return [{"id": str(number), **row} for number, row in enumerate(rows[:count])]


def straightforward(folder: Path, file: Path, loaded: Loaded, num_processes: int) -> int:
    """Prepare as most scripts do; return the number of rows."""
    tokenizer = loaded.plain
    tagged = re.search(r"\{%-?\s*generation", tokenizer.chat_template) is not None

    def ids(messages: list[dict[str, str]], prompt: bool) -> list[int]:
        found = tokenizer.apply_chat_template(messages, add_generation_prompt=prompt)
        return list(found["input_ids"])

    def convert(row: dict[str, Any]) -> dict[str, Any]:
        messages = row["messages"]
        if tagged:
            found = tokenizer.apply_chat_template(
                messages, return_dict=True, return_assistant_tokens_mask=True
            )
            return {"input_ids": found["input_ids"], "loss_mask": found["assistant_masks"]}
        whole = ids(messages, False)
        mask = [0] * len(whole)
        for turn, message in enumerate(messages):
            if message["role"] == "assistant":
                start = len(ids(messages[:turn], True))
                is_last = turn + 1 == len(messages)
                stop = len(whole if is_last else ids(messages[: turn + 1], False))
                mask[start:stop] = [1] * (min(stop, len(whole)) - min(start, len(whole)))
        return {"input_ids": whole[:SEQUENCE_LENGTH], "loss_mask": mask[:SEQUENCE_LENGTH]}

    table = datasets.Dataset.from_json(str(file), cache_dir=str(folder / "cache"))
    assert isinstance(table, datasets.Dataset)
    processes = num_processes if num_processes > 1 else None
    done = table.map(convert, num_proc=processes, remove_columns=["messages"])
    done.save_to_disk(str(folder / "rows"))
    return len(done)


def this_project(folder: Path, file: Path, loaded: Loaded, num_processes: int) -> int:
    """Prepare with this project; return the number of samples."""
    data = prepare(
        DataConfig(name="benchmark", path=str(file), num_workers=num_processes),
        VerifierTokenizer(loaded.plain, loaded.plain.chat_template),
        vocab_size=loaded.vocab_size,
        sequence_length=SEQUENCE_LENGTH,
        validation_fraction=0.1,
        seed=0,
        cache_dir=folder,
        progress=False,
    )
    return data.report.num_samples


SIDES = {"straightforward": straightforward, "this project": this_project}


def run_side(name: str, file: Path, tokenizer: str, num_processes: int) -> float:
    """Return seconds of one side in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        code = [sys.executable, __file__, "--side", name, "--count", str(num_processes)]
        command = [*code, tokenizer, str(file), "--folder", folder]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(result.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure both sides in turns."""
    rows = read_rows(arguments.files, arguments.count)
    results: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        processors = len(os.sched_getaffinity(0))
        settings = [
            ("straightforward", 1),
            ("straightforward", processors),
            ("this project", 0),
            ("this project", processors),
        ]
        for _ in range(arguments.rounds):
            for name, count in settings:
                seconds = run_side(name, file, arguments.tokenizer, count)
                results.setdefault(f"{name}, num_workers={count}", []).append(seconds)
    medians = {name: statistics.median(seconds) for name, seconds in results.items()}
    best = min(s for name, s in medians.items() if name.startswith("straightforward"))
    return {
        "conversations": len(rows),
        "processors": processors,
        "seconds": medians,
        "ratio_to_best_straightforward": {
            name: seconds / best for name, seconds in medians.items()
        },
    }


def main() -> None:
    """Measure and print, or run one side."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("tokenizer")
    parser.add_argument("files", nargs="+")
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side is not None:
        loaded = Loaded(arguments.tokenizer)
        start = time.perf_counter()
        SIDES[arguments.side](arguments.folder, Path(arguments.files[0]), loaded, arguments.count)
        print(time.perf_counter() - start)
        return
    result = measure(arguments)
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
