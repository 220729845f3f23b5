"""The trainer with a real drafter: learns, resumes bit for bit, and what it saves can be read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from speculators.algorithms.base import Drafter, StepContext
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.config.schema import Config, FloatType, LossWeights
from speculators.conversion.layout import read_model
from speculators.data.vocabulary import DraftVocabulary
from speculators.training.trainer import Trainer
from training.test_resume_exact import Killed, StoppingRows, kill
from training.toy import AUX, SPEC, TABLES, TOY, ToyRows, toy_config, toy_trainer

REDUCED = DraftVocabulary(torch.arange(0, SPEC.vocab_size, 2), SPEC.vocab_size)


def drafter(vocabulary: DraftVocabulary) -> DFlashDrafter:
    settings = DFlashConfig(
        num_layers=2,
        block_size=4,
        max_anchors=8,
        target_layer_ids=list(AUX),
        draft_vocab_size=len(vocabulary),
        mask_token_id=16,
        input_noise=0.01,
        loss=LossWeights(ce=1.0, kl=0.5),
        head_dim=4,
    )
    return DFlashDrafter.build(
        DFlashDrafter.resolve(settings, SPEC, [16]),
        SPEC,
        vocabulary,
        embed_tokens=TABLES.embed_tokens,
        lm_head=TABLES.lm_head,
        generator=torch.Generator().manual_seed(0),
    )


def validate(trained: Drafter[Any]) -> Mapping[str, Any]:
    output = trained.compute_loss(ToyRows(seed=9).row(0, 0), TOY.head, StepContext(0, 0))
    return {"acceptance_length": 1.0, "loss": float(output.loss_sum / output.divisor)}


def trainer(
    run_dir: Path, config: Config, vocabulary: DraftVocabulary, rows: ToyRows | None = None
) -> Trainer:
    model: Any = drafter(vocabulary)
    return toy_trainer(run_dir, config, drafter=model, rows=rows, validate=validate)


def config(run_dir: Path) -> Config:
    return toy_config(run_dir, checkpoint_every_steps=2, ema_decay=0.9)


@pytest.mark.parametrize("vocabulary", [DraftVocabulary.full(SPEC.vocab_size), REDUCED])
def test_kill_and_resume(tmp_path: Path, vocabulary: DraftVocabulary) -> None:
    trainer(tmp_path / "whole", config(tmp_path), vocabulary).fit()
    rows = StoppingRows(stop_at=8, action=kill)
    with pytest.raises(Killed):
        trainer(tmp_path / "killed", config(tmp_path), vocabulary, rows).fit()
    trainer(tmp_path / "killed", config(tmp_path), vocabulary).fit()
    a, b = ((tmp_path / name) for name in ("whole", "killed"))
    assert (a / "metrics.jsonl").read_text() == (b / "metrics.jsonl").read_text()
    model = Path("checkpoints", "1", "model.safetensors")
    assert (a / model).read_bytes() == (b / model).read_bytes()


@pytest.mark.parametrize("dtype", list(FloatType))
@pytest.mark.parametrize("vocabulary", [DraftVocabulary.full(SPEC.vocab_size), REDUCED])
def test_what_is_saved_is_the_drafter(
    tmp_path: Path, vocabulary: DraftVocabulary, dtype: FloatType
) -> None:
    settings = toy_config(tmp_path, checkpoint_dtype=dtype)
    run = trainer(tmp_path, settings, vocabulary)
    result = run.fit()
    assert result.last_checkpoint is not None
    again = read_model(result.last_checkpoint, spec=SPEC, tables=TABLES).eval()
    trained = run._drafter.eval()
    kind = getattr(torch, dtype.value)
    for name, tensor in trained.trainable_parameters().items():
        assert torch.equal(tensor.to(kind).float(), again.trainable_parameters()[name])
    assert again.vocabulary.fingerprint == vocabulary.fingerprint
    if dtype is FloatType.float32:
        row = ToyRows().row(0, 0)
        starts = again.start_candidates(row).nonzero().flatten()
        assert torch.equal(again.draft(row, starts), trained.draft(row, starts))
