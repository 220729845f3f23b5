"""The command line, run as people run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from speculators import __version__
from speculators.cli import main
from speculators.cli.commands import COMMANDS
from speculators.cli.help import command_help
from speculators.config.folder import group_choices

ROOT = Path(__file__).parent.parent
BLOCK = "a block holds the anchor and at least one drafted token, so it must be 2 or more"

# The stage is replaced, the rest is real: Hydra, the folders, the exit status.
STAGE = """\
import sys, types
from pathlib import Path
import speculators.errors

def run(config, argv):
    if config.seed == 6:
        raise speculators.errors.DataError("nothing.jsonl: no such file")
    folder = Path(config.output_dir)
    (folder / "seen.txt").write_text(f"{config.speculator.block_size} {config.seed}")
    if config.seed == 3:
        raise speculators.errors.DataError("rows.jsonl:7: not JSON")
    if config.seed == 4:
        raise RuntimeError("a bug")
    if config.seed == 5:
        raise KeyboardInterrupt
    from speculators.launch.provenance import write_provenance
    write_provenance(folder, config, argv)
    return {"acceptance_length": 2.5}

stage = types.ModuleType("speculators.launch.train")
stage.run = run
sys.modules[stage.__name__] = stage
from speculators.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""
IMPORTED = """\
import sys
from speculators.cli import main
status = main(sys.argv[1:])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
sys.exit(status)
"""


def run(code: str, *arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=cwd,
        env={**environment, "PYTHONPATH": str(ROOT), **extra},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_run_has_a_folder_a_record_and_can_be_repeated(tmp_path: Path) -> None:
    first = run(STAGE, "speculator.block_size=4", "output_dir=one", cwd=tmp_path)
    assert (first.returncode, first.stderr) == (0, "")
    assert (tmp_path / "one" / "seen.txt").read_text() == "4 0"
    record = json.loads((tmp_path / "one" / "provenance.json").read_text())
    assert record["argv"] == [
        "speculators",
        "train",
        "speculator.block_size=4",
        "output_dir=one",
    ]
    saved = ("--config-dir", "one", "--config-name", "resolved")
    again = run(STAGE, *saved, "output_dir=two", "seed=1", cwd=tmp_path)
    assert (again.returncode, again.stderr) == (0, "")
    assert (tmp_path / "two" / "seen.txt").read_text() == "4 1"
    one, two = ((tmp_path / name / "resolved.yaml").read_text() for name in ("one", "two"))
    assert one.replace("/one\n", "/two\n").replace("seed: 0", "seed: 1") == two


def test_runs_without_a_name_get_folders_of_their_own(tmp_path: Path) -> None:
    for _ in range(2):
        assert run(STAGE, cwd=tmp_path).returncode == 0
    assert len(list((tmp_path / "outputs").iterdir())) == 2


def test_a_multirun_has_a_folder_per_job(tmp_path: Path) -> None:
    done = run(STAGE, "--multirun", "speculator.block_size=4,8", "seed=1,2", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (sweep,) = (tmp_path / "outputs" / "multirun").iterdir()
    seen = {path.parent.name: path.read_text() for path in sweep.glob("*/seen.txt")}
    assert {name.rpartition("_")[0]: text for name, text in seen.items()} == {
        "block_size-4_seed-1": "4 1",
        "block_size-4_seed-2": "4 2",
        "block_size-8_seed-1": "8 1",
        "block_size-8_seed-2": "8 2",
    }


def test_an_error_of_a_stage_is_one_line(tmp_path: Path) -> None:
    done = run(STAGE, "seed=3", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "error: rows.jsonl:7: not JSON\n")


def test_a_stage_that_wrote_nothing_leaves_no_run_directory(tmp_path: Path) -> None:
    done = run(STAGE, "seed=6", "output_dir=runs/mine", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (3, "error: nothing.jsonl: no such file\n")
    assert not (tmp_path / "runs" / "mine").exists()
    run(STAGE, "seed=3", "output_dir=runs/mine", cwd=tmp_path)
    assert [path.name for path in (tmp_path / "runs" / "mine").iterdir()] == ["seen.txt"]


def test_an_output_dir_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")
    done = run(STAGE, "output_dir=notes", cwd=tmp_path)
    assert done.returncode == 6
    assert done.stderr == (
        "error: output_dir: notes cannot be written (File exists): choose another output_dir\n"
    )
    assert (tmp_path / "notes").read_text() == "mine"


def test_hydra_full_error_shows_where_it_came_from(tmp_path: Path) -> None:
    done = run(STAGE, "seed=3", cwd=tmp_path, HYDRA_FULL_ERROR="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_a_bug_keeps_its_traceback(tmp_path: Path) -> None:
    done = run(STAGE, "seed=4", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("RuntimeError: a bug")
    assert "Traceback" in done.stderr


def test_an_interrupt_says_so(tmp_path: Path) -> None:
    done = run(STAGE, "seed=5", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_wrong_configurations_leave_nothing_behind(tmp_path: Path) -> None:
    done = run(STAGE, "speculator.block_size=1", "training.max_stps=3", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: training.max_stps=3: no such key: did you mean training.max_steps?\n"
        f"error: speculator.block_size=1: {BLOCK}\n"
    )
    assert run(STAGE, "-m", "speculator.block_size=8,1", cwd=tmp_path).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_train_py_is_the_train_command(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "--cfg", "job", "verifier=qwen3_8b"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "name_or_path: Qwen/Qwen3-8B" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_cfg_shows_values_that_would_not_run(tmp_path: Path) -> None:
    shown = run(IMPORTED, "train", "--cfg=job", "speculator.block_size=1", cwd=tmp_path)
    assert shown.returncode == 0
    assert "  block_size: 1\n" in shown.stdout
    assert run(IMPORTED, "train", "--cfg=job", "zzz=1", cwd=tmp_path).returncode == 2


@pytest.mark.parametrize(
    "arguments", ["--help", "train --help", "train --cfg=job", "train speculator.block_size=1"]
)
def test_answers_come_without_torch(arguments: str, tmp_path: Path) -> None:
    done = run(IMPORTED, *arguments.split(), cwd=tmp_path)
    imported = set(done.stdout.splitlines()[-1].split())
    heavy = {"torch", "transformers", "datasets", "numpy", "pandas", "wandb", "aiohttp", "rich"}
    assert not imported & heavy
    assert ("hydra" in imported) == ("--help" not in arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command_is_complete(name: str) -> None:
    text = command_help(COMMANDS[name])
    for group, choices in group_choices().items():
        assert f" {group} {' '.join(choices)} " in " ".join(text.split())
    lines = text.splitlines()
    for key in COMMANDS[name].keys:
        (line,) = [line for line in lines if line.startswith(f"  {key} ")]
        assert len(line.split()) > 1, f"{key} is not documented"
    assert max(map(len, lines)) <= 100


def test_every_command_has_its_config_and_is_in_the_overview(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--help"]) == 0
    overview = capsys.readouterr().out
    for name in COMMANDS:
        assert f"  {name} " in overview
        assert (ROOT / "conf" / f"{name}.yaml").is_file()
    assert main([]) == 0
    assert capsys.readouterr().out == overview


def test_a_command_leaves_the_environment_of_the_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    before = dict(os.environ)
    assert main(["plan", "plan.device=abacus"]) == 2
    assert main(["plan", "--cfg", "job"]) == 0
    assert dict(os.environ) == before


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("trian", f"trian: no such command: did you mean train? there are {', '.join(COMMANDS)}"),
        ("zzz", f"zzz: no such command: there are {', '.join(COMMANDS)}"),
        (
            "verifier=tiny",
            "verifier=tiny: name a command first, for example speculators train verifier=tiny",
        ),
    ],
)
def test_an_unknown_command(
    argument: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([argument]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
