"""Algorithms are found, in this project and outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from speculators.algorithms.dflash.config import DFlashConfig
from speculators.config import discovery
from speculators.config.discovery import algorithms
from speculators.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = """\
from dataclasses import dataclass
from speculators.config.schema import SpeculatorConfig

@dataclass
class FooConfig(SpeculatorConfig):
    name: str = "foo"
    depth: int = 3
    \"\"\"How deep.\"\"\"
"""


def install(folder: Path) -> None:
    """What pip leaves behind of a package with an algorithm of its own."""
    package = folder / "foo_drafter"
    (package / "conf" / "speculator").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "config.py").write_text(OUTSIDE)
    (package / "conf" / "speculator" / "foo.yaml").write_text(
        "# Foo.\ndefaults: [/schema/speculator/foo@_here_, _self_]\nnum_layers: 2\n"
    )
    metadata = folder / "foo_drafter-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: foo-drafter\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[speculators.algorithms]\nfoo = foo_drafter\n")


def speculators(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}"}
    return subprocess.run(
        [sys.executable, "-m", "speculators", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_folders_of_this_project_are_found() -> None:
    found = algorithms()["dflash"]
    assert found.schema is DFlashConfig
    assert found.package == "speculators.algorithms.dflash"
    assert found.built_in


def test_an_installed_package_is_found_with_its_schema_and_yaml(tmp_path: Path) -> None:
    install(tmp_path)
    shown = speculators("train", "speculator=foo", "speculator.depth=5", "--cfg=job", path=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "  name: foo\n  num_layers: 2\n" in shown.stdout
    assert "  depth: 5\n" in shown.stdout
    wrong = speculators("train", "speculator=foo", "speculator.max_anchors=5", path=tmp_path)
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: speculator.max_anchors=5: no such key: speculator has")
    assert (
        "  speculator       dflash  dspark  eagle3  foo  peagle\n"
        in speculators("train", "--help", path=tmp_path).stdout
    )


def test_an_installed_package_that_is_broken_is_named(tmp_path: Path) -> None:
    install(tmp_path)
    (tmp_path / "foo_drafter" / "config.py").write_text("import a_package_nobody_has\n")
    done = speculators("train", path=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "error: speculator=foo: the installed package foo_drafter cannot be imported "
        "(No module named 'a_package_nobody_has'): repair or uninstall it\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "must define one subclass of SpeculatorConfig, it defines 0"),
        (OUTSIDE.replace('"foo"', '"bar"'), "FooConfig.name is 'bar': it must be 'foo'"),
    ],
)
def test_a_config_module_has_one_schema_of_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    name = f"foo_{abs(hash(content))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "config.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=message):
        discovery._read("foo", name)
