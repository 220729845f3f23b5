"""The convert command on the tiny verifier, and an upload to a stand-in of the Hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from launch.hub_standin import HubStandIn, serving
from speculators.algorithms.dflash.config import DFlashConfig
from speculators.algorithms.dflash.model import DFlashDrafter
from speculators.cli import main
from speculators.config.composition import compose
from speculators.config.schema import FloatType
from speculators.conversion.layout import write_model
from speculators.data.vocabulary import DraftVocabulary
from speculators.doctor.certificate import PARITY_FILE, Certificate
from speculators.doctor.finding import Finding, Verdict
from speculators.errors import CheckpointError, ConfigError
from speculators.launch import convert
from speculators.verifier.spec_reader import read_spec
from speculators.verifier.weights import read_tables

TOKEN = "standin"
EVALUATION = {
    "acceptance_length": 2.4, "acceptance_length_ci95": [2.19, 2.62], "acceptance_rate": 0.47,
    "acceptance_per_position": [0.7, 0.45, 0.25], "num_prompts": 40, "lossless_prompts": 40,
    "definition": "acceptance length = 1 + accepted / drafts",
    "settings": {"temperature": 0.0, "sampling": None, "max_new_tokens": 128, "seed": 0},
    "categories": {"maths": {"acceptance_length": 3.1, "acceptance_length_ci95": [2.9, 3.3],
                             "acceptance_rate": 0.7, "acceptance_per_position": [0.9, 0.7, 0.5],
                             "num_prompts": 12}},
}  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory as training leaves it, with an untrained drafter."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    spec = read_spec(compose("train", []).verifier)
    tables = read_tables(spec, torch.float32)
    config = DFlashConfig(num_layers=1, block_size=4, mask_token_id=spec.vocab_size - 1)
    drafter = DFlashDrafter.build(
        DFlashDrafter.resolve(config, spec, []),
        spec,
        DraftVocabulary.full(spec.vocab_size),
        embed_tokens=tables.embed_tokens,
        lm_head=tables.lm_head,
        generator=torch.Generator().manual_seed(0),
    )
    best = folder / "checkpoints" / "3"
    write_model(best, drafter, FloatType.float32)
    (best / "parity.json").write_text(json.dumps({"states": "equal", "details": {"a": 1}}))
    (best / "optimizer_state_dict.pt").write_bytes(b"large")
    (folder / "checkpoints" / "checkpoint_best").symlink_to("3")
    resolved = {
        "data": {"name": "jsonl", "path": "/home/me/chats.jsonl", "hub_id": "some/chats"},
        "speculator": {"name": "dflash", "num_layers": 1},
        "optimizer": {"name": "adamw", "lr": 0.003},
        "output_dir": "/home/me/run",
        "seed": 7,
    }
    (folder / "resolved.yaml").write_text(json.dumps(resolved))
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "data_report.json").write_text(json.dumps({"num_tokens": 146757}))
    return folder


def best(run_folder: Path) -> Path:
    return run_folder / "checkpoints" / "checkpoint_best"


def run(checkpoint: Path, output: Path, *overrides: str) -> dict[str, Any]:
    places = [f"checkpoint={checkpoint}", f"output_dir={output}"]
    return convert.run(compose("convert", [*places, *overrides]))


def test_there_and_back_says_what_it_recognises(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    assert run(best(run_folder), there, "convert.to=z_lab") == {
        "source": "speculators", "to": "z_lab", "folder": str(there),
    }  # fmt: skip
    run(there, back, "verifier=tiny")
    lines = [line for line in capsys.readouterr().out.splitlines() if "recognised" in line]
    assert lines == [
        f"recognised:  speculators layout in {best(run_folder)}",
        f"recognised:  z_lab layout in {there}",
    ]
    weights = (best(run_folder) / "model.safetensors").read_bytes()
    assert (back / "model.safetensors").read_bytes() == weights
    assert sorted(path.name for path in back.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["convert.to=speculators"],
            "convert.to=speculators: {folder} is in the speculators layout already; give another "
            "convert.to, or push_to_hub=OWNER/NAME",
        ),
        (
            ["convert.to=z_lab", "convert.num_draft_tokens=3"],
            "convert.target_layer_ids, convert.num_draft_tokens: this checkpoint says both itself; "
            "leave them null",
        ),
        (
            ["push_to_hub=a/b/c", "dry_run=true"],
            "push_to_hub=a/b/c: must be OWNER/NAME of a hub repository",
        ),
    ],
)
def test_what_cannot_be_asked_for(
    run_folder: Path, tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        run(best(run_folder), tmp_path / "new", *overrides)
    assert str(caught.value) == message.format(folder=best(run_folder))
    assert not (tmp_path / "new").exists()


def test_a_foreign_layout_needs_its_verifier(run_folder: Path, tmp_path: Path) -> None:
    run(best(run_folder), tmp_path / "there", "convert.to=z_lab")
    with pytest.raises(ConfigError) as caught:
        run(tmp_path / "there", tmp_path / "back")
    assert str(caught.value) == (
        "verifier.name_or_path=checkpoint: the z_lab layout does not name its verifier; give "
        "verifier=hf verifier.name_or_path=DIR or a hub id"
    )


def test_a_learned_mask_vector_goes_where_it_is_understood(
    run_folder: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    run(best(run_folder), ours, "push_to_hub=me/drafter", "dry_run=true")
    torch.save({"embedding": torch.ones(2), "mask_token_id": 3}, ours / "mask_embedding.pt")
    run(ours, tmp_path / "copy", "push_to_hub=me/drafter", "dry_run=true")
    copied = (tmp_path / "copy" / "mask_embedding.pt").read_bytes()
    assert copied == (ours / "mask_embedding.pt").read_bytes()
    with pytest.raises(CheckpointError, match="the z_lab layout has no place for a mask vector"):
        run(ours, tmp_path / "new", "convert.to=z_lab")


def test_model_card_of_a_run(run_folder: Path, tmp_path: Path) -> None:
    run(best(run_folder), tmp_path / "new", "push_to_hub=me/drafter", "dry_run=true")
    card = (tmp_path / "new" / "README.md").read_text()
    for text in (
        "datasets:\n- some/chats",
        "| all | 40 | 2.400 | 2.19 to 2.62 | 47.00% | 0.700 0.450 0.250 |",
        "| maths | 12 | 3.100 | 2.90 to 3.30 | 70.00% | 0.900 0.700 0.500 |",
        "acceptance length = 1 + accepted / drafts (temperature 0.0, max_new_tokens 128, seed 0)",
        "40 of 40 answers equal plain decoding token for token.",
        "| states | equal |",
        "| num tokens | 146,757 |",
        "vllm serve me/drafter\n",
        "  lr: 0.003\n",
    ):
        assert text in card
    assert "/home/me" not in card
    assert "base_model" not in card  # the verifier is a folder of this machine


def test_card_of_a_foreign_layout_serves_it_beside_its_verifier(
    run_folder: Path, tmp_path: Path
) -> None:
    words = ("convert.to=z_lab", "push_to_hub=me/drafter", "dry_run=true")
    run(best(run_folder), tmp_path / "new", *words)
    card = (tmp_path / "new" / "README.md").read_text()
    assert (
        '--speculative-config \'{"method": "dflash", "model": "me/drafter", '
        '"num_speculative_tokens": 3}\''
    ) in card


def test_without_a_run_the_card_has_what_is_known(run_folder: Path, tmp_path: Path) -> None:
    run(best(run_folder), tmp_path / "a", "convert.to=z_lab")
    words = ("verifier=tiny", "push_to_hub=me/drafter", "dry_run=true")
    run(tmp_path / "a", tmp_path / "b", *words)
    card = (tmp_path / "b" / "README.md").read_text()
    titles = [line for line in card.splitlines() if line.startswith("#")]
    assert titles == ["# drafter", "## How to serve"]


def certified(run_folder: Path, to: Path, **changes: Any) -> Path:
    """A checkpoint with a certificate as the doctor writes it."""
    shutil.copytree(best(run_folder), to)
    found = [
        Finding("rope", Verdict.passed, "equal", measured="theta 10000"),
        Finding(
            "causality", Verdict.failed, "training and engine differ", "layer_types",
            "causal", "bidirectional", "wrong causality",
        ),
    ]  # fmt: skip
    values = Certificate(found, None, "speculators doctor").to_dict(to) | changes
    (to / PARITY_FILE).write_text(json.dumps(values))
    return to


@pytest.mark.slow
def test_what_the_doctor_found_wrong_is_not_uploaded_unless_asked_for(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    failed, output = certified(run_folder, tmp_path / "failed"), tmp_path / "new"
    words = ["push_to_hub=me/drafter", f"checkpoint={failed}", f"output_dir={output}"]
    with serving(hub := HubStandIn(TOKEN)):
        assert main(["convert", *words]) == CheckpointError.exit_code
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"error: push_to_hub=me/drafter: {failed}/parity.json says that the checkpoint is not "
        "served as it was trained: causality: training and engine differ at layer_types: causal "
        "(allowed bidirectional); wrong causality: ; mend it and run `speculators doctor "
        f"checkpoint={failed}` again, or upload it all the same: convert.allow_failed_parity=true"
    )
    assert hub.files == {}
    assert not output.exists()

    allowed = ["convert.allow_failed_parity=true"]
    with serving(hub) as address:
        done = upload(failed, output, address, TOKEN, *allowed)
    assert done.returncode == 0, done.stderr
    card = hub.files["me/drafter"]["README.md"].decode()
    assert "**This drafter is not served as it was trained:** see the first failure." in card
    assert "| causality | failed | causal | bidirectional |" in card
    assert "| rope | passed | theta 10000 |  |" in card


def test_a_certificate_of_other_files_proves_nothing(run_folder: Path, tmp_path: Path) -> None:
    checkpoint = certified(run_folder, tmp_path / "edited once", passed=True)
    run(checkpoint, tmp_path / "before", "push_to_hub=me/drafter", "dry_run=true")
    with (checkpoint / "config.json").open("a") as file:
        file.write("\n")
    line = rf"parity\.json is of other files .*`speculators doctor \"checkpoint='{checkpoint}'\"`"
    with pytest.raises(CheckpointError, match=line):  # quoted, to be typed
        run(checkpoint, tmp_path / "after", "push_to_hub=me/drafter", "dry_run=true")
    run(checkpoint, tmp_path / "there", "convert.to=z_lab")  # stays at home: no proof is asked for


def upload(checkpoint: Path, output: Path, address: str, token: str, *more: str) -> Any:
    """Run the command as a process: the Hub's client reads its settings when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token}
    words = [f"checkpoint={checkpoint}", f"output_dir={output}", "push_to_hub=me/drafter", *more]
    return subprocess.run(
        [sys.executable, "-m", "speculators", "convert", *words, "convert.private=true"],
        capture_output=True,
        text=True,
        env=environment | {"HF_HUB_DISABLE_XET": "1"},
        timeout=120,
        check=False,
    )


def test_upload_is_one_folder_with_its_card(run_folder: Path, tmp_path: Path) -> None:
    hub, output = HubStandIn(TOKEN), tmp_path / "new"
    with serving(hub) as address:
        done = upload(best(run_folder), output, address, TOKEN)
    assert done.returncode == 0, done.stderr
    assert f"uploaded:    {address}/me/drafter/commit/{'a' * 40}" in done.stdout
    assert hub.private == {"me/drafter": True}
    uploaded = hub.files["me/drafter"]
    assert uploaded == {path.name: path.read_bytes() for path in output.iterdir()}
    assert sorted(uploaded) == ["README.md", "config.json", "model.safetensors"]
    again = load_file(output / "model.safetensors")
    trained = load_file(best(run_folder) / "model.safetensors")
    assert again.keys() == trained.keys()


@pytest.mark.slow
def test_a_refused_upload_leaves_a_complete_folder(run_folder: Path, tmp_path: Path) -> None:
    hub, output = HubStandIn(TOKEN), tmp_path / "new"
    with serving(hub) as address:
        done = upload(best(run_folder), output, address, "wrong")
    assert done.returncode == 6
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error: ")]
    assert line.startswith("error: push_to_hub=me/drafter: ")
    assert line.endswith(
        f"the folder is complete: log in with `hf auth login`, then `hf upload me/drafter {output}`"
    )
    assert hub.files == {}
    assert (output / "README.md").exists()
