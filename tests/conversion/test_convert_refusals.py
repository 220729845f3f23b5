"""What cannot be converted is named: the key, the tensor, the folder, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from conversion.drafters import (
    FULL,
    REDUCED,
    TABLES,
    convert,
    dflash,
    eagle3,
    edit_config,
    edit_tensors,
)
from speculators.config.schema import FloatType
from speculators.conversion.layout import write_model
from speculators.errors import CheckpointError, ConfigError

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture
def z_lab(tmp_path: Path) -> Path:
    write_model(tmp_path / "ours", dflash(), FloatType.float32)
    return convert(tmp_path / "ours", tmp_path / "z", "z_lab")


@pytest.fixture
def eagle(tmp_path: Path) -> Path:
    write_model(tmp_path / "mine", eagle3(), FloatType.float32)
    return convert(tmp_path / "mine", tmp_path / "e", "eagle")


def refused(source: Path, to: str | None = None, **more: Any) -> str:
    """Return the message; nothing may be left behind."""
    target = source.parent / "refused"
    with pytest.raises(CheckpointError) as caught:
        convert(source, target, to, **more)
    assert not list(source.parent.glob("refused*"))
    return str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("fc.weight"), "missing: fc.weight [32, 96]"),
        (lambda t: t.update({"extra.weight": torch.ones(3)}), "unknown: extra.weight"),
        (
            lambda t: t.update({"norm.weight": torch.ones(31)}),
            "wrong shape: norm.weight is [31] float, must be [32] float",
        ),
        (
            lambda t: t.update({"lm_head.weight": TABLES.lm_head + 1}),
            "unknown: lm_head.weight",
        ),
    ],
)
def test_tensors_of_dflash_that_do_not_fit(
    z_lab: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    edit_tensors(z_lab, change)
    assert refused(z_lab) == (
        f"{z_lab}/model.safetensors: tensors do not fit the drafter; {message}"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: t.pop("midlayer.hidden_norm.weight"),
            "tensors do not fit the drafter; missing: midlayer.hidden_norm.weight [32]",
        ),
        (
            lambda t: t.update({"midlayer.bias": torch.ones(3)}),
            "tensors do not fit the drafter; unknown: midlayer.bias",
        ),
        (
            lambda t: t.update({"midlayer.self_attn.q_proj.weight": torch.ones(32, 32)}),
            "tensors do not fit the drafter; wrong shape: midlayer.self_attn.q_proj.weight is "
            "[32, 32] float, must be [32, 64] float",
        ),
        (lambda t: t.pop("t2d"), "has d2t but no t2d; both are needed or neither"),
        (
            lambda t: t.update({"embed_tokens.weight": TABLES.embed_tokens + 1}),
            "embed_tokens.weight is not the embedding of /verifier; a drafter with an embedding of "
            "its own cannot be run",
        ),
        (
            lambda t: t["fc.weight"].fill_(float("nan")),
            "NaN or infinite values in fc.weight",
        ),
    ],
)
def test_tensors_of_eagle_that_do_not_fit(
    eagle: Path, change: Callable[[dict[str, Tensor]], Any], message: str
) -> None:
    edit_tensors(eagle, change)
    assert refused(eagle) == f"{eagle}/model.safetensors: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c.update(logit_scale=2.0, z=1),
            "unknown keys logit_scale, z: what they change is not known here; remove them if they "
            "change no draft",
        ),
        (
            lambda c: c["dflash_config"].update(shift=1),
            "unknown keys dflash_config.shift: what they change is not known here; remove them if "
            "they change no draft",
        ),
        (lambda c: c.pop("rope_theta"), "rope_theta is missing"),
        (lambda c: c.pop("block_size"), "block_size is missing"),
        (
            lambda c: c["dflash_config"].update(block_size=9),
            "block_size and dflash_config.block_size differ: [4, 9]",
        ),
        (
            lambda c: c["dflash_config"].pop("mask_token_id"),
            "dflash_config.mask_token_id is missing",
        ),
        (
            lambda c: c.update(attention_bias=True),
            "attention_bias=True: draft layers have no biases here",
        ),
        (
            lambda c: c.update(num_target_layers=9),
            "num_target_layers is 9, but /verifier has 8; choose the verifier it was trained with",
        ),
        (
            lambda c: c.update(hidden_size=64),
            "hidden_size is 64, but /verifier has 32; choose the verifier it was trained with",
        ),
        (
            lambda c: c["dflash_config"].update(target_layer_ids=[0, 3, 7]),
            "dflash_config.target_layer_ids=[0, 3, 7]: for the last layer (7) the authors' code "
            "reads the state after the final norm, which is not captured; such a drafter cannot be "
            "served",
        ),
        (
            lambda c: c.update(layer_types=[f"{k}_attention" for k in ("sliding", "full")],
                               sliding_window=6),
            "full and sliding layers without dflash_config.causal: there the sliding ones alone "
            "are causal, which the serving layout cannot say",
        ),
        (
            lambda c: c["dflash_config"].update(causal=True),
            "dflash_config.causal=true: causal full layers cannot be run here",
        ),
        (
            lambda c: c.update(rope_scaling={"rope_type": "yarn", "factor": 2.0}),
            "rope_scaling: rope_type 'yarn' is not among those a drafter computes: default, "
            "linear, llama3",
        ),
    ],
)  # fmt: skip
def test_keys_of_dflash_that_cannot_be(z_lab: Path, change: Change, message: str) -> None:
    edit_config(z_lab, change)
    assert refused(z_lab) == f"{z_lab}/config.json: {message}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(model_type="qwen3"), "model_type=qwen3: must be llama"),
        (lambda c: c.pop("intermediate_size"), "intermediate_size is missing"),
        (
            lambda c: c.update(eagle_config={"eagle_aux_hidden_state_layer_ids": [1, 3, 4]}),
            "eagle_config.eagle_aux_hidden_state_layer_ids: readers count them from 0 or from 1; "
            "say what was trained as extraction ids (id i is the stream entering layer i), "
            "convert.target_layer_ids=[...]",
        ),
        (
            lambda c: c.update(parallel_drafting=True),
            "unknown keys parallel_drafting: what they change is not known here; remove them if "
            "they change no draft",
        ),
    ],
)
def test_keys_of_eagle_that_cannot_be(eagle: Path, change: Change, message: str) -> None:
    edit_config(eagle, change)
    assert refused(eagle) == f"{eagle}/config.json: {message}"


@pytest.mark.parametrize(
    ("drafter", "to", "message"),
    [
        (
            lambda: dflash(vocabulary=REDUCED),
            "z_lab",
            "/config.json: draft_vocab_size=8: this layout drafts all 96 tokens of the verifier; "
            "train with speculator.draft_vocab_size=null",
        ),
        (
            lambda: dflash(target_layer_ids=[0, 4]),
            "z_lab",
            "/config.json: aux_hidden_state_layer_ids=[0, 4]: this layout names outputs of layers "
            "after the last norm, so it has no equal for ids 0 and 8",
        ),
        (
            lambda: eagle3(norm_before_residual=True),
            "eagle",
            "/config.json: the drafter has norm_before_residual=True: this layout cannot say so, "
            "its readers take False",
        ),
        (
            lambda: eagle3(target_layer_ids=[1, 2, 3]),
            "eagle",
            "/config.json: the drafter has target_layer_ids=[1, 2, 3]: this layout cannot say so, "
            "its readers take [2, 4, 5]",
        ),
    ],
)
def test_drafters_a_layout_cannot_express(
    tmp_path: Path, drafter: Callable[[], Any], to: str, message: str
) -> None:
    write_model(tmp_path / "ours", drafter(), FloatType.float32)
    assert refused(tmp_path / "ours", to) == f"{tmp_path}/ours{message}"


def test_layout_of_another_algorithm(tmp_path: Path) -> None:
    write_model(tmp_path / "ours", eagle3(vocabulary=FULL), FloatType.float32)
    assert refused(tmp_path / "ours", "z_lab") == (
        "convert.to=z_lab: holds dflash drafters, this is a eagle3 drafter; possible: eagle"
    )
    with pytest.raises(ConfigError) as caught:
        convert(tmp_path / "ours", tmp_path / "new", "zlab")
    assert str(caught.value) == (
        "convert.to=zlab: no such layout: did you mean z_lab? there are speculators, z_lab, eagle"
    )


def test_keys_of_this_layout_that_nobody_knows(tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    write_model(ours, dflash(), FloatType.float32)

    def change(config: dict[str, Any]) -> None:
        config["temperature"] = 2
        config["transformer_layer_config"]["logit_scale"] = 2

    edit_config(ours, change)
    assert refused(ours, "z_lab") == (
        f"{ours}/config.json: unknown keys temperature, transformer_layer_config.logit_scale: what "
        "they change is not known here; remove them if they change no draft"
    )


def test_folders_of_no_known_layout(tmp_path: Path, z_lab: Path) -> None:
    edit_config(z_lab, lambda c: c.pop("dflash_config"))
    assert refused(z_lab) == (
        f"{z_lab}: no known layout recognised; known: speculators (the layout vLLM serves as it "
        "is); z_lab (DFlash in its authors' layout (dflash_config, body only)); eagle (Eagle-3 in "
        "the EAGLE / SpecForge layout (midlayer.*))"
    )


def test_pickles_with_code_are_not_run(tmp_path: Path, eagle: Path) -> None:
    (eagle / "model.safetensors").unlink()
    torch.save({"fc.weight": Path("x")}, eagle / "pytorch_model.bin")
    assert refused(eagle).startswith(
        f"{eagle}/pytorch_model.bin: is damaged or holds more than tensors ("
    )


def test_nothing_is_overwritten(tmp_path: Path, z_lab: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").write_text("mine")
    with pytest.raises(CheckpointError) as caught:
        convert(z_lab, taken)
    assert str(caught.value) == (
        f"output_dir={taken}: holds something already, and is not overwritten; give a new folder"
    )
    assert [path.name for path in taken.iterdir()] == ["mine"]
    (empty := tmp_path / "empty").mkdir()
    assert convert(z_lab, empty).is_dir()
