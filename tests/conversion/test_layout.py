"""A drafter on disk: exactly the tensors a server needs, and strict in both directions."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from speculators.config.schema import FloatType
from speculators.conversion import layout
from speculators.conversion.layout import (
    load_weights,
    read_model,
    read_serving_config,
    read_vocabulary,
    write_model,
)
from speculators.data.vocabulary import DraftVocabulary
from speculators.errors import CheckpointError
from speculators.verifier.spec import VerifierSpec
from training.toy import SPEC, TABLES, ToyDrafter, ToyRows, toy_drafter

REDUCED = DraftVocabulary(torch.tensor([1, 2, 5, 9, 16]), SPEC.vocab_size)


@pytest.fixture(autouse=True)
def _toy_is_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "drafter_class", {"toy": ToyDrafter}.__getitem__)


def read(folder: Path, spec: VerifierSpec = SPEC) -> ToyDrafter:
    drafter = read_model(folder, spec=spec, tables=TABLES)
    assert isinstance(drafter, ToyDrafter)
    return drafter


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def edit_config(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def refused(action: Callable[[], Any]) -> str:
    with pytest.raises(CheckpointError) as error:
        action()
    return str(error.value)


@pytest.mark.parametrize("vocabulary", [None, REDUCED])
def test_fp32_comes_back_bit_for_bit(tmp_path: Path, vocabulary: DraftVocabulary | None) -> None:
    drafter = toy_drafter(vocabulary)
    write_model(tmp_path, drafter, FloatType.float32)
    again = read(tmp_path)
    assert again.vocabulary.fingerprint == drafter.vocabulary.fingerprint
    for name, tensor in drafter.saved_tensors().items():
        assert torch.equal(tensor, again.saved_tensors()[name])
    row = ToyRows().row(0, 0)
    starts = drafter.start_candidates(row).nonzero().flatten()
    assert torch.equal(drafter.draft(row, starts), again.draft(row, starts))


def test_bfloat16_is_the_rounded_weights_and_keeps_integers(tmp_path: Path) -> None:
    drafter = toy_drafter(REDUCED)
    write_model(tmp_path, drafter, FloatType.bfloat16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    tensors = load_file(tmp_path / "model.safetensors")
    assert {name: t.dtype for name, t in tensors.items()} == {
        "fc.weight": torch.bfloat16,
        "layers.0.weight": torch.bfloat16,
        "layers.1.weight": torch.bfloat16,
        "norm.weight": torch.bfloat16,
        "lm_head.weight": torch.bfloat16,
        "d2t": torch.int64,
        "t2d": torch.bool,
    }
    assert read_serving_config(tmp_path)["dtype"] == "bfloat16"
    assert torch.equal(read(tmp_path).fc.weight, drafter.fc.weight.bfloat16().float())


def test_writing_again_replaces_and_is_reproducible(tmp_path: Path) -> None:
    write_model(tmp_path, toy_drafter(seed=1), FloatType.float32)
    write_model(tmp_path, toy_drafter(seed=2), FloatType.float32)
    first = (tmp_path / "model.safetensors").read_bytes()
    write_model(tmp_path / "new", toy_drafter(seed=2), FloatType.float32)
    assert (tmp_path / "new" / "model.safetensors").read_bytes() == first


def test_a_saved_head_is_not_overwritten_by_the_verifiers(tmp_path: Path) -> None:
    drafter = toy_drafter(REDUCED)
    with torch.no_grad():
        drafter.lm_head.weight.mul_(2)
    write_model(tmp_path, drafter, FloatType.float32)
    assert torch.equal(read(tmp_path).lm_head.weight, drafter.lm_head.weight)


def test_maps_are_offsets(tmp_path: Path) -> None:
    write_model(tmp_path, toy_drafter(REDUCED), FloatType.float32)
    tensors = load_file(tmp_path / "model.safetensors")
    assert (torch.arange(5) + tensors["d2t"]).tolist() == [1, 2, 5, 9, 16]
    assert tensors["t2d"].nonzero().flatten().tolist() == [1, 2, 5, 9, 16]
    assert read_vocabulary(tmp_path, SPEC.vocab_size).ids.tolist() == [1, 2, 5, 9, 16]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.weight"), "missing: fc.weight [8, 16]"),
        (
            lambda t: t.update({"verifier_norm.weight": torch.ones(8)}),
            "unknown: verifier_norm.weight",
        ),
        (
            lambda t: t.update({"norm.weight": torch.ones(4)}),
            "wrong shape: norm.weight is [4] float, must be [8] float",
        ),
        (
            lambda t: t.update({"norm.weight": torch.ones(8, dtype=torch.int64)}),
            "wrong shape: norm.weight is [8] int64, must be [8] float",
        ),
        (
            lambda t: t.update({f"model.{name}": t.pop(name) for name in list(t)}),
            "missing: fc.weight [8, 16], layers.0.weight [8, 8], layers.1.weight [8, 8], "
            "norm.weight [8]; unknown: model.fc.weight, model.layers.0.weight, "
            "model.layers.1.weight, model.norm.weight",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    write_model(tmp_path, toy_drafter(), FloatType.float32)
    edit_tensors(tmp_path, change)
    assert refused(lambda: read(tmp_path)) == (
        f"{tmp_path}/model.safetensors: tensors do not fit the drafter; {message}"
    )


def test_nan_is_refused_in_both_directions(tmp_path: Path) -> None:
    drafter = toy_drafter()
    write_model(tmp_path, drafter, FloatType.float32)
    edit_tensors(tmp_path, lambda t: t["fc.weight"].fill_(float("inf")))
    line = f"{tmp_path}/model.safetensors: NaN or infinite values in fc.weight"
    assert refused(lambda: read(tmp_path)) == line
    with torch.no_grad():
        drafter.norm.weight[0] = float("nan")
    target = tmp_path / "new"
    assert refused(lambda: write_model(target, drafter, FloatType.bfloat16)) == (
        f"{target}/model.safetensors: NaN or infinite values in norm.weight"
    )
    assert not target.exists()


def test_another_verifier_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, toy_drafter(), FloatType.float32)
    other = dataclasses.replace(SPEC, hidden_size=16, name_or_path="other/model")
    assert refused(lambda: read(tmp_path, other)) == (
        f"{tmp_path}: made for a verifier with hidden_size 8, but other/model has 16; "
        "choose the verifier it was trained with"
    )
    other = dataclasses.replace(SPEC, vocab_size=18)
    assert refused(lambda: read(tmp_path, other)) == (
        f"{tmp_path}: made for a verifier with vocab_size 17, but toy has 18; "
        "choose the verifier it was trained with"
    )


def test_maps_must_be_two_of_this_vocabulary_and_agree(tmp_path: Path) -> None:
    write_model(tmp_path, toy_drafter(REDUCED), FloatType.float32)
    path = tmp_path / "model.safetensors"
    original = path.read_bytes()
    edit_tensors(tmp_path, lambda t: t.pop("d2t"))
    assert refused(lambda: read(tmp_path)) == (
        f"{path}: has t2d but no d2t; both are needed or neither"
    )
    path.write_bytes(original)
    edit_tensors(tmp_path, lambda t: t.update(t2d=torch.cat([t["t2d"], torch.zeros(1).bool()])))
    assert refused(lambda: read(tmp_path)) == (
        f"{path}: t2d has 18 entries, the verifier's vocabulary 17: made for another verifier"
    )
    path.write_bytes(original)
    edit_tensors(tmp_path, lambda t: t.update(d2t=REDUCED.ids.clone()))
    assert refused(lambda: read(tmp_path)).startswith(
        f"{path}: draft vocabulary: d2t and t2d name different tokens"
    )
    path.write_bytes(original)
    edit_tensors(tmp_path, lambda t: (t.pop("d2t"), t.pop("t2d")))
    assert refused(lambda: read(tmp_path)) == (
        f"{tmp_path}: draft_vocab_size is 5 in config.json, but the maps in model.safetensors "
        "name 17 tokens"
    )


def test_weights_of_another_draft_vocabulary_are_refused(tmp_path: Path) -> None:
    write_model(tmp_path, toy_drafter(REDUCED), FloatType.float32)
    other = DraftVocabulary(torch.tensor([0, 2, 5, 9, 16]), SPEC.vocab_size)
    assert refused(lambda: load_weights(toy_drafter(other), tmp_path)) == (
        f"{tmp_path}/model.safetensors: d2t differs from the drafter's own; the checkpoint belongs "
        "to another draft vocabulary or verifier"
    )


def test_files_that_are_missing_or_damaged(tmp_path: Path) -> None:
    assert refused(lambda: read(tmp_path)) == (
        f"{tmp_path}/config.json: cannot be read (No such file or directory); give a checkpoint "
        "folder, for example checkpoint=RUN/checkpoints/checkpoint_best"
    )
    write_model(tmp_path, toy_drafter(), FloatType.float32)
    weights, config = tmp_path / "model.safetensors", tmp_path / "config.json"
    content = weights.read_bytes()
    weights.write_bytes(content[:-8])
    assert refused(lambda: read(tmp_path)).startswith(
        f"{weights}: is damaged or not a safetensors file ("
    )
    weights.unlink()
    assert refused(lambda: read(tmp_path)) == f"{weights}: does not exist"
    weights.write_bytes(content)
    (tmp_path / "more.safetensors").write_bytes(content)
    assert refused(lambda: read(tmp_path)) == (
        f"{tmp_path}: holds more.safetensors beside model.safetensors; a drafter is one file"
    )
    assert refused(lambda: write_model(tmp_path, toy_drafter(), FloatType.float32)) == (
        f"{tmp_path}: holds more.safetensors, which vLLM would read too; write to another folder"
    )
    (tmp_path / "more.safetensors").unlink()
    edit_config(tmp_path, lambda c: c.pop("speculators_model_type"))
    assert refused(lambda: read(tmp_path)) == (
        f"{config}: has no speculators_model_type, so it does not describe a drafter of this layout"
    )
    config.write_text("{")
    assert refused(lambda: read(tmp_path)).startswith(f"{config}: is not JSON (")


class Careless(ToyDrafter):
    """Forgets a tensor, or writes one nobody may read."""

    mistake: str

    def saved_tensors(self) -> dict[str, Tensor]:
        tensors = super().saved_tensors()
        if self.mistake == "maps":
            del tensors["d2t"], tensors["t2d"]
        elif self.mistake == "trained":
            del tensors["layers.1.weight"]
        else:
            tensors["verifier_lm_head.weight"] = torch.ones(2)
        return tensors


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        ("maps", "missing: d2t [5], t2d [17]"),
        ("trained", "missing: layers.1.weight [8, 8]"),
        ("more", "unknown: verifier_lm_head.weight"),
    ],
)
def test_an_incomplete_drafter_is_not_written(tmp_path: Path, mistake: str, message: str) -> None:
    drafter = toy_drafter(REDUCED)
    drafter.__class__ = Careless
    vars(drafter)["mistake"] = mistake
    target = tmp_path / "model"
    assert refused(lambda: write_model(target, drafter, FloatType.float32)) == (
        f"{target}/model.safetensors: tensors do not fit the drafter; {message}"
    )
    assert not target.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"speculators_model_type": "eagle3"},
            "speculators_model_type is 'eagle3', the drafter is 'toy'",
        ),
        ({"draft_vocab_size": 4}, "but the maps in model.safetensors name 17 tokens"),
        ({"speculators_config": {}}, "speculative_tokens is None, the drafter drafts 2"),
        (
            {"transformer_layer_config": {}},
            "made for a verifier with hidden_size None, but toy has 8",
        ),
        ({"mask_token_id": 17}, "mask_token_id 17 is outside the verifier's 17 embedding rows"),
    ],
)
def test_a_configuration_that_contradicts_the_drafter_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], message: str
) -> None:
    drafter = toy_drafter()
    config = drafter.serving_config() | change
    monkeypatch.setattr(drafter, "serving_config", lambda: config)
    assert message in refused(lambda: write_model(tmp_path / "m", drafter, FloatType.float32))
    assert not (tmp_path / "m").exists()


def test_draft_vocabulary_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, toy_drafter(REDUCED), FloatType.float32)
    now, other = SPEC.tokenizer_hash or "a" * 64, "b" * 64
    edit_config(tmp_path, lambda config: config.update(verifier_tokenizer_sha256=other))
    spec = dataclasses.replace(SPEC, tokenizer_hash=now)
    assert refused(lambda: read(tmp_path, spec)) == (
        f"{tmp_path}: its draft vocabulary was chosen over another tokenizer (sha256 "
        f"bbbbbbbbbbbb, that of {spec.name_or_path} is {now[:12]}), so its rows mean other "
        "tokens; choose the verifier it was trained with, or train a new drafter"
    )
    write_model(tmp_path, toy_drafter(DraftVocabulary.full(SPEC.vocab_size)), FloatType.float32)
    edit_config(tmp_path, lambda config: config.update(verifier_tokenizer_sha256=other))
    read(tmp_path, spec)  # every token can be drafted: there is no map to misread
