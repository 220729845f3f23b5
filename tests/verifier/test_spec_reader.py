from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from httpx import Request, Response
from huggingface_hub.errors import (
    GatedRepoError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from speculators.config.schema.verifier import VerifierConfig
from speculators.errors import ConfigError
from speculators.verifier import hub, tiny
from speculators.verifier.identity import store_identity, verifier_revision
from speculators.verifier.spec import NormKind, VerifierSpec
from speculators.verifier.spec_reader import read_spec


def read(name_or_path: Path | str, **changes: Any) -> VerifierSpec:
    return read_spec(VerifierConfig(name="test", name_or_path=str(name_or_path), **changes))


def edited(folder: Path, target: Path, name: str = "config.json", **changes: Any) -> Path:
    """Copy a folder with some keys of a JSON file replaced; None removes a key."""
    shutil.copytree(folder, target)
    path = target / name
    content = json.loads(path.read_text()) if path.exists() else {}
    content.update(changes)
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return target


def test_reads_sizes_and_ids(save_model: Callable[..., Path]) -> None:
    folder = save_model("qwen3")
    spec = read(folder)
    assert spec.name_or_path == spec.folder == str(folder)
    assert (spec.architecture, spec.model_type) == ("Qwen3ForCausalLM", "qwen3")
    assert (spec.num_layers, spec.hidden_size, spec.intermediate_size) == (4, 32, 48)
    assert (spec.num_attention_heads, spec.num_key_value_heads, spec.head_dim) == (4, 2, 8)
    assert (spec.vocab_size, spec.num_tokens) == (97, 90)
    assert (spec.bos_token_id, spec.eos_token_ids, spec.pad_token_id) == (1, (2,), 0)
    assert (spec.max_position_embeddings, spec.rms_norm_eps, spec.hidden_act) == (128, 1e-6, "silu")
    assert spec.rope_parameters["rope_type"] == "default"
    assert spec.dtype == "float32"
    assert not spec.tie_word_embeddings
    assert spec.norm_kind is NormKind.rms
    assert spec.logit_softcap is None
    assert len(spec.tokenizer_hash) == 64


@pytest.mark.parametrize(("family", "width"), [("qwen3_moe", 24), ("gpt_oss", 48)])
def test_reads_experts(save_model: Callable[..., Path], family: str, width: int) -> None:
    spec = read(save_model(family))
    assert (spec.num_experts, spec.experts_per_token) == (4, 2)
    assert spec.expert_intermediate_size == width
    assert read(save_model("qwen3")).num_experts is None


@pytest.mark.parametrize(
    ("family", "norm", "softcap"),
    [
        ("gemma2", NormKind.rms_plus_one, 30.0),
        ("gemma3", NormKind.rms_plus_one, None),
        ("gemma4", NormKind.rms, 3.0),
        ("gpt_oss", NormKind.rms, None),
    ],
)
def test_reads_the_kind_of_head_and_the_text_model_of_multimodal_ones(
    save_model: Callable[..., Path],
    family: str,
    norm: NormKind,
    softcap: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec = read(save_model(family))
    assert (spec.norm_kind, spec.logit_softcap) == (norm, softcap)
    assert (spec.num_layers, spec.head_dim, spec.num_key_value_heads) == (4, 8, 2)
    assert spec.tie_word_embeddings == family.startswith("gemma")
    assert capsys.readouterr().err == ""


def test_reads_the_form_transformers_4_wrote(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    folder = edited(
        save_model("llama"),
        tmp_path / "old",
        rope_parameters=None,
        rope_theta=500000.0,
        rope_scaling=scaling,
        dtype=None,
        torch_dtype="bfloat16",
        head_dim=None,
        num_key_value_heads=None,
    )
    spec = read(folder)
    assert spec.rope_parameters == {**scaling, "rope_theta": 500000.0}
    assert spec.dtype == "bfloat16"
    assert (spec.head_dim, spec.num_key_value_heads) == (8, 4)


def test_end_ids_of_both_files_in_order(save_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = edited(
        save_model("qwen3"), tmp_path / "m", "generation_config.json", eos_token_id=[5, 2]
    )
    assert read(folder).eos_token_ids == (2, 5)


def test_gemma_conventions(save_model: Callable[..., Path]) -> None:
    spec = read(save_model("gemma2"))
    assert spec.norm_kind is NormKind.rms_plus_one
    assert spec.logit_softcap == 30.0
    assert spec.tie_word_embeddings
    assert spec.hidden_act == "gelu_pytorch_tanh"


def test_of_nested_rope_parameters_full_attention_counts(save_model: Callable[..., Path]) -> None:
    spec = read(save_model("gemma3_text"))
    assert spec.rope_parameters["rope_theta"] == 1_000_000.0


def test_text_part_of_a_multimodal_configuration(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    text = json.loads((save_model("gemma3_text") / "config.json").read_text())
    (tmp_path / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["Gemma3ForConditionalGeneration"],
                "model_type": "gemma3",
                "text_config": text,
                "eos_token_id": [1, 106],
            }
        )
    )
    spec = read(tmp_path)
    assert spec.architecture == "Gemma3ForConditionalGeneration"
    assert (spec.model_type, spec.num_layers, spec.hidden_size) == ("gemma3_text", 4, 32)
    assert set(spec.eos_token_ids) >= {1, 106}
    assert spec.norm_kind is NormKind.rms_plus_one


def test_folder_without_tokenizer(save_model: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copy(save_model("llama") / "config.json", tmp_path)
    spec = read(tmp_path)
    assert (spec.num_tokens, spec.tokenizer_hash) == (97, "")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"model_type": "gpt2", "rms_norm_eps": None},
            "gpt2 has no RMS norm (no rms_norm_eps in its configuration); verifiers whose final "
            "norm is a LayerNorm are not supported",
        ),
        (
            {"model_type": "granite", "logits_scaling": 8.0},
            "scales its logits (logits_scaling=8.0)",
        ),
        ({"model_type": "nobody"}, "config.json cannot be read"),
    ],
)
def test_refuses_families_it_cannot_reproduce(
    save_model: Callable[..., Path], tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    folder = edited(save_model("llama"), tmp_path / "m", **changes)
    with pytest.raises(ConfigError) as caught:
        read(folder)
    assert str(caught.value).startswith(f"verifier.name_or_path={folder}: ")
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_missing_config(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder; give a folder with"):
        read(tmp_path / "nothing")
    with pytest.raises(ConfigError, match=r"no config\.json in"):
        read(tmp_path)


def test_offline_hub_says_what_was_looked_for() -> None:
    with pytest.raises(ConfigError) as caught:
        read("nobody-here/no-such-model", revision="abc")
    message = str(caught.value)
    assert message.startswith("verifier.name_or_path=nobody-here/no-such-model: ")
    assert "the Hub cannot be reached for revision abc" in message
    assert "give the path of a downloaded folder" in message


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RevisionNotFoundError, "the Hub has no revision 'v9' of it"),
        (RepositoryNotFoundError, "neither a folder here nor a model on the Hub"),
        (GatedRepoError, "accept them on https://huggingface.co/someone/model"),
        (OSError, "download failed: disk full"),
    ],
)
def test_hub_errors_say_what_to_do(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception], text: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        response = Response(404, request=Request("GET", "https://huggingface.co"))
        raise error("disk full", **({} if error is OSError else {"response": response}))

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ConfigError) as caught:
        read("someone/model", revision="v9")
    assert text in str(caught.value)


def test_hub_snapshot_gives_commit_and_only_small_files(
    monkeypatch: pytest.MonkeyPatch, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    asked: list[Any] = []
    snapshot = tmp_path / "snapshots" / "0123abc"
    shutil.copytree(save_model("llama"), snapshot)

    def download(repository: str, **kwargs: Any) -> str:
        asked.append((repository, kwargs["revision"], kwargs["allow_patterns"]))
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    spec = read("someone/model", revision="main")
    assert (spec.name_or_path, spec.revision) == ("someone/model", "0123abc")
    assert verifier_revision(spec) == "0123abc"
    assert [(name, revision) for name, revision, _ in asked] == [("someone/model", "main")]
    assert not any("safetensors" in p or p.endswith(".py") for p in asked[0][2])


def test_tiny_is_the_packaged_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(tiny, "folder", lambda: tmp_path)
    assert hub.locate("tiny") == hub.Location(str(tmp_path), tmp_path, None)


def test_revision_follows_content_not_place(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    folder = save_model("llama")
    moved = shutil.copytree(folder, tmp_path / "moved")
    assert verifier_revision(read(moved)) == verifier_revision(read(folder))
    weights = moved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert verifier_revision(read(moved)) != verifier_revision(read(folder))


def test_store_identity_adds_the_last_state(save_model: Callable[..., Path]) -> None:
    spec = read(save_model("llama"))
    identity = store_identity(spec, (1, 3), dtype="float32", engine="test 1")
    assert identity.layer_ids == (1, 3, 4)
    assert identity.verifier_revision == verifier_revision(spec)
    assert identity.tokenizer_hash == spec.tokenizer_hash
