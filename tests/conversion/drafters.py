"""Small drafters and folders to convert."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from algorithms.rows import make_batch, make_spec
from speculators.algorithms.base import Drafter
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.algorithms.eagle3.config import Eagle3Config
from speculators.algorithms.eagle3.fused_config import LayerType
from speculators.algorithms.eagle3.model import Eagle3Drafter
from speculators.algorithms.layouts import Wishes
from speculators.conversion.convert import (
    TargetModel,
    choose_target,
    read_body,
    recognise,
    write_body,
)
from speculators.conversion.folders import read_content, write_content
from speculators.conversion.layout import read_model
from speculators.data.vocabulary import DraftVocabulary
from speculators.verifier.spec import VerifierSpec
from speculators.verifier.weights import VerifierTables

SPEC = make_spec()
_random = torch.Generator().manual_seed(3)
TABLES = VerifierTables(
    torch.randn(SPEC.vocab_size, SPEC.hidden_size, generator=_random),
    torch.randn(SPEC.vocab_size, SPEC.hidden_size, generator=_random),
    torch.ones(SPEC.hidden_size),
)
TARGET = TargetModel(SPEC, lambda: TABLES)
REDUCED = DraftVocabulary(torch.tensor([2, 3, 5, 7, 30, 31, 64, 95]), SPEC.vocab_size)
FULL = DraftVocabulary.full(SPEC.vocab_size)


def no_tables() -> VerifierTables:
    raise AssertionError("the verifier's tables were read")


def dflash(**changes: Any) -> Drafter[Any]:
    values: dict[str, Any] = {
        "num_layers": 2,
        "block_size": 4,
        "target_layer_ids": [1, 4, 7],
        "mask_token_id": 95,
    }
    vocabulary = changes.pop("vocabulary", FULL)
    config = DFlashConfig(draft_vocab_size=len(vocabulary), **values | changes)
    return _shaken(DFlashDrafter, DFlashDrafter.resolve(config, SPEC, []), vocabulary)


def eagle3(**changes: Any) -> Drafter[Any]:
    """One that the authors' layout can express, unless changed."""
    values: dict[str, Any] = {
        "num_layers": 1,
        "layer_type": LayerType.llama,
        "norm_before_residual": False,
        "train_lm_head": True,
    }
    vocabulary = changes.pop("vocabulary", REDUCED)
    config = Eagle3Config(draft_vocab_size=len(vocabulary), **values | changes)
    return _shaken(Eagle3Drafter, Eagle3Drafter.resolve(config, SPEC, []), vocabulary)


def _shaken(kind: type[Drafter[Any]], config: Any, vocabulary: DraftVocabulary) -> Drafter[Any]:
    """Build a drafter no weight of which is left at a round value."""
    generator = torch.Generator().manual_seed(11)
    drafter = kind.build(
        config,
        SPEC,
        vocabulary,
        embed_tokens=TABLES.embed_tokens,
        lm_head=TABLES.lm_head,
        generator=generator,
    )
    with torch.no_grad():
        for parameter in drafter.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return drafter


def convert(
    source: Path,
    target: Path,
    to: str | None = None,
    *,
    spec: VerifierSpec = SPEC,
    tables: Callable[[], VerifierTables] = lambda: TABLES,
    wishes: Wishes | None = None,
) -> Path:
    """Do what the command does with a verifier that is known."""
    content, model = read_content(source), TargetModel(spec, tables)
    kind = recognise(content)
    body = read_body(content, kind, model, wishes or Wishes())
    config, tensors = write_body(body, choose_target(kind, to), model, source)
    write_content(target, config, tensors, {}, {})
    return target


def drafts(folder: Path) -> Tensor:
    """Draft after every possible start of a packed row."""
    drafter = read_model(folder, spec=SPEC, tables=TABLES).eval()
    batch = make_batch()
    return drafter.draft(batch, drafter.start_candidates(batch).nonzero().flatten())


def tensors_of(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = tensors_of(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = config_of(folder)
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def equal_bits(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a
    )
