"""Make the tiny verifier from nothing: `python -m speculators.verifier.tiny.build --output DIR`.

Generates the conversations, learns the tokenizer, trains on one core and writes the folder.
Everything is drawn from one seed: the same machine, torch version and a single thread give the
same bytes; elsewhere the last bits of the weights may differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from speculators.data.tiny import tiny_conversations
from speculators.verifier.tiny import folder
from speculators.verifier.tiny.model import TinyQwen3
from speculators.verifier.tiny.settings import Settings
from speculators.verifier.tiny.tokenizer import PAD, TURN_END, train_tokenizer, write_tokenizer
from speculators.verifier.tiny.train import train

_TOKENIZER_CONVERSATIONS = 20_000


def _write_json(content: dict[str, object], path: Path) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_weights(model: TinyQwen3, path: Path) -> None:
    """Write the weights rounded to bfloat16; there is no head, it is the embedding."""
    tensors = {n: p.detach().to(torch.bfloat16).contiguous() for n, p in model.named_parameters()}
    save_file(tensors, str(path), metadata={"format": "pt"})
    path.chmod(0o644)


def build(output: Path, settings: Settings) -> str:
    """Train the model and write its folder.

    Args:
        output: created if missing; files of the same names are replaced.
        settings: sizes and schedule.

    Returns:
        sha256 of the weights file.
    """
    output.mkdir(parents=True, exist_ok=True)
    conversations = tiny_conversations(_TOKENIZER_CONVERSATIONS, settings.seed)
    texts = (turn.content for conversation in conversations for turn in conversation.turns)
    tokenizer = train_tokenizer(texts, settings.num_tokens)
    pad, end = (tokenizer.get_vocab()[token] for token in (PAD, TURN_END))
    model = train(settings, tokenizer)
    write_tokenizer(tokenizer, output, settings.max_positions)
    _write_json(settings.model_config(pad, end), output / "config.json")
    generation = {"do_sample": False, "eos_token_id": [end, pad], "pad_token_id": pad}
    _write_json(generation, output / "generation_config.json")
    write_weights(model, output / "model.safetensors")
    return sha256_of(output / "model.safetensors")


def sha256_of(path: Path) -> str:
    """Return the hash of a file in hex digits."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


SHIPPED_FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


def compare(output: Path) -> list[str]:
    """Compare a folder with the shipped one, file by file.

    Args:
        output: of `build`.

    Returns:
        A line per file: equal, or how far apart.
    """
    lines = []
    for name in SHIPPED_FILES:
        mine, theirs = output / name, folder() / name
        equal = sha256_of(mine) == sha256_of(theirs)
        lines.append(f"{name}: {'equal' if equal else 'different'}")
        if not equal and name == "model.safetensors":
            one, two = load_file(mine), load_file(theirs)
            if {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}:
                gap = max(float((one[k].float() - two[k].float()).abs().max()) for k in one)
                lines[-1] += f", largest difference of a weight {gap:.3g}"
    return lines


def main() -> None:
    """Build, print the hash, and compare if asked to."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--compare", action="store_true", help="compare with the shipped files")
    for field in dataclasses.fields(Settings):
        kind = type(field.default)
        option = f"--{field.name.replace('_', '-')}"
        parser.add_argument(option, type=kind, default=field.default, help=f"({field.default})")
    options = vars(parser.parse_args())
    output, with_comparison = options.pop("output"), options.pop("compare")
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    print(f"sha256 of model.safetensors: {build(output, Settings(**options))}", flush=True)
    if with_comparison:
        print("\n".join(compare(output)))


if __name__ == "__main__":
    main()
