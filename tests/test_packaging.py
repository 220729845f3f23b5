"""The wheel carries what a command needs, and nothing that is only for development."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

from speculators import __version__

ROOT = Path(__file__).parent.parent


def test_the_extras_name_each_other() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert project["name"] == "hydra-speculators"
    assert extras["sweepers"] == ["hydra-speculators[joblib,submitit,optuna]"]


def test_every_dependency_is_justified() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "docs" / "dependencies.md").read_text()
    extras = project["optional-dependencies"].values()
    for requirement in chain(project["dependencies"], *extras):
        name = requirement.split(">")[0].split("<")[0].split("[")[0]
        if name != project["name"]:
            assert f"| `{name}` |" in text, name


def test_the_wheel_runs_from_anywhere(tmp_path: Path) -> None:
    build = "from hatchling.build import build_wheel; import sys; print(build_wheel(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", build, str(tmp_path)], cwd=ROOT, check=True)
    (wheel,) = tmp_path.glob(f"hydra_speculators-{__version__}-*.whl")
    unpacked = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(unpacked)
    conf = {str(path.relative_to(ROOT)) for path in (ROOT / "conf").rglob("*.yaml")}
    assert {f"speculators/{path}" for path in conf} <= set(names)
    assert "speculators/py.typed" in names
    assert not [name for name in names if name.startswith(("tests/", "notebooks/", "conf/"))]
    done = subprocess.run(
        [sys.executable, "-m", "speculators", "train", "--info", "searchpath"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert str(unpacked / "speculators" / "conf") in done.stdout
