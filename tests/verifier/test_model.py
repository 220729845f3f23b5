from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from miniatures import DECODING, FAMILIES
from speculators.config.schema.verifier import VerifierConfig
from speculators.errors import ConfigError, HiddenStateError
from speculators.verifier.model import VerifierModel
from speculators.verifier.spec import NormKind
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import make_head, read_tables

LAYERS = [0, 1, 3]


def load(folder: Path, dtype: str = "auto") -> VerifierModel:
    spec = read_spec(VerifierConfig(name="test", name_or_path=str(folder)))
    return VerifierModel.load(spec, dtype=dtype)


def tokens(length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 97, (length,), generator=torch.Generator().manual_seed(seed))


def close(got: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_those_of_transformers(save_model: Callable[..., Path], family: str) -> None:
    folder = save_model(family)
    model = load(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = tokens(20)
    with torch.no_grad():
        expected = reference(ids[None], output_hidden_states=True)
    states = model.capture([ids], LAYERS)[0]
    for column, layer in enumerate(LAYERS):
        close(states.aux[:, column], expected.hidden_states[layer][0])
    # The last state stands before the final norm, unlike hidden_states[L] of transformers.
    close(make_head(model.spec, model.tables).logits(states.last), expected.logits[0])
    stored = make_head(model.spec, read_tables(model.spec))
    close(stored.logits(states.last), expected.logits[0])
    assert not torch.allclose(states.last, expected.hidden_states[-1][0], atol=1e-2)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_pass_gives_what_each_alone_gets(
    save_model: Callable[..., Path], family: str
) -> None:
    model = load(save_model(family))
    rows = [tokens(length, seed=length) for length in (9, 20, 1, 13)]
    together = model.capture(rows, LAYERS)
    limited = model.capture(rows, LAYERS, max_tokens=30)
    for row, first, second in zip(rows, together, limited, strict=True):
        alone = model.capture([row], LAYERS)[0]
        for states in (first, second):
            assert states.aux.shape == (len(row), 3, 32)
            close(states.aux, alone.aux)
            close(states.last, alone.last)


def test_alone_means_the_same_bits(save_model: Callable[..., Path]) -> None:
    model = load(save_model("llama"))
    rows = [tokens(length, seed=length) for length in (9, 20, 13)]
    each = model.capture(rows, LAYERS, max_tokens=1)
    for row, states in zip(reversed(rows), reversed(each), strict=True):
        assert torch.equal(model.capture([row], LAYERS)[0].aux, states.aux)


def test_states_can_be_trained_on_and_ignore_autocast(save_model: Callable[..., Path]) -> None:
    model = load(save_model("llama"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        states = model.capture([tokens(7)], LAYERS)[0]
    assert states.aux.dtype == states.last.dtype == torch.float32
    weight = torch.ones(32, requires_grad=True)
    (states.aux @ weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("family", DECODING)
def test_decoding_with_a_cache_equals_a_full_pass(
    save_model: Callable[..., Path], family: str
) -> None:
    model = load(save_model(family))
    ids = tokens(24)
    whole = model.forward(ids, model.new_cache(), [1, 4])
    assert whole.logits.shape == (24, 97)
    states = model.capture([ids], [1])[0]
    close(whole.aux[:, 0], states.aux[:, 0])
    close(whole.aux[:, 1], states.last)
    cache, start = model.new_cache(), 0
    for length in (10, 1, 5, 8):
        step = model.forward(ids[start : start + length], cache, [1, 4])
        close(step.logits, whole.logits[start : start + length])
        close(step.aux, whole.aux[start : start + length])
        start += length


@pytest.mark.parametrize("family", DECODING)
def test_cropping_equals_never_having_seen(save_model: Callable[..., Path], family: str) -> None:
    model = load(save_model(family))
    ids = tokens(24)
    whole = model.forward(ids, model.new_cache(), [2])
    cache = model.new_cache()
    model.forward(torch.cat([ids[:15], tokens(6, seed=9)]), cache)
    model.crop(cache, 15)
    step = model.forward(ids[15:20], cache, [2])
    close(step.logits, whole.logits[15:20])
    close(step.aux, whole.aux[15:20])
    model.crop(cache, 20)
    model.crop(cache, 3)
    close(model.forward(ids[3:], cache).logits, whole.logits[3:])
    with pytest.raises(ValueError, match="cannot crop a cache of 24 positions to 25"):
        model.crop(cache, 25)


def test_last_logits_only(save_model: Callable[..., Path]) -> None:
    model = load(save_model("llama"))
    ids = tokens(9)
    full = model.forward(ids, model.new_cache())
    assert full.aux.shape == (9, 0, 32)
    close(model.forward(ids, model.new_cache(), num_logits=2).logits, full.logits[-2:])


def test_recurrent_verifiers_give_states_but_do_not_decode(
    save_model: Callable[..., Path],
) -> None:
    model = load(save_model("qwen3_5_text"))
    with pytest.raises(HiddenStateError, match="cannot be rolled back"):
        model.new_cache()


def test_bfloat16(save_model: Callable[..., Path]) -> None:
    exact = load(save_model("llama"))
    model = load(save_model("llama"), dtype="bfloat16")
    ids = tokens(16)
    states = model.capture([ids], LAYERS)[0]
    assert states.aux.dtype == torch.bfloat16
    step = model.forward(ids, model.new_cache())
    assert step.logits.dtype == torch.float32
    difference = states.last.float() - exact.capture([ids], LAYERS)[0].last
    assert difference.norm() < 0.05 * states.last.float().norm()


@pytest.mark.parametrize("ids", [[-1], [1, 1], [3, 1], [5]])
def test_wrong_layers(save_model: Callable[..., Path], ids: list[int]) -> None:
    model = load(save_model("llama"))
    with pytest.raises(HiddenStateError, match=r"must be distinct, ascend and lie in 0\.\.4"):
        model.capture([tokens(3)], ids)


def test_missing_tensors_are_no_random_numbers(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(save_model("llama"), tmp_path / "m")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=r"1 tensors .* first is model\.layers\.2\.mlp\.up_proj"):
        load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="the model cannot be loaded"):
        load(folder)


def test_probe_finds_a_wrong_norm_and_a_wrong_head(save_model: Callable[..., Path]) -> None:
    spec = read_spec(VerifierConfig(name="test", name_or_path=str(save_model("llama"))))
    for wrong in (
        replace(spec, norm_kind=NormKind.rms_plus_one),
        replace(spec, logit_softcap=1.0),
    ):
        with pytest.raises(HiddenStateError, match=r"logits are not lm_head\(norm\(last state\)\)"):
            VerifierModel.load(wrong)
    with pytest.raises(HiddenStateError, match="has no decoder of 7 layers"):
        VerifierModel.load(replace(spec, num_layers=7))


def test_probe_finds_a_model_that_sees_the_future(save_model: Callable[..., Path]) -> None:
    folder = save_model("llama")
    spec = read_spec(VerifierConfig(name="test", name_or_path=str(folder)))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.is_causal = False
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(HiddenStateError, match="it is not a causal language model"):
        VerifierModel(spec, model)
