"""What `speculators train` says when its servers cannot be used: one line, and nothing is begun."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from hidden_states.online.reliability import proves
from launch.online_runs import online, overrides
from speculators.cli import main
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.served_model import ServedModel

SAID = {
    "another model": ["from its last layer's state the teacher says token ", "(toy)"],
    "another layer count": ["states are 24 x 3 x 128 instead of 24 x 4 x 128", "speculators serve"],
    "a folder that is not shared": ["the server writes hidden states to ", "is not inside "],
    "files of another user": ["permission denied", "run server and trainer as the same user"],
    "no server": ["no vLLM server at http://127.0.0.1:", "start one with `speculators serve`"],
}


def change(server: FakeVLLM, model: ServedModel, kind: str) -> list[str]:
    """Make a server unusable; return what else stands on the command line."""
    if kind == "another model":

        def other(tokens: Sequence[int], layers: Sequence[int]) -> tuple[Tensor, int]:
            states, token = model(tokens, layers)
            states[:, -1] = states[:, -1].flip(-1)  # only the last layer can tell
            return states, token

        server.states = other
    elif kind == "another layer count":
        server.layer_ids = [1, 3, 7]
    elif kind == "a folder that is not shared":
        return [f"hidden_states.fetch.transfer_path={server.folder.parent / 'elsewhere'}"]
    elif kind == "no server":
        server.stop()
        return ["hidden_states.fetch.startup_timeout_seconds=0.2"]
    return []


def forbid(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Let nobody read files there, as if another user had written them with mode 0600."""
    original = os.open

    def guarded(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        inside = str(path).startswith(str(folder)) and str(path).endswith(".safetensors")
        if inside and not flags & os.O_WRONLY:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, flags, *rest, **options)

    patch.setattr("speculators.hidden_states.online.reading.os.open", guarded)


@proves(
    "`speculators train` with another model, another layer count, a folder that is not shared, "
    "files of another user, or no server at all",
    "says in one line what was found and what to do; exit status 4; nothing was begun",
)
@pytest.mark.parametrize("kind", SAID)
def test_one_line_says_why_training_does_not_begin(
    kind: str,
    server: FakeVLLM,
    model: ServedModel,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    words = [*online(server), *change(server, model, kind)]
    if kind == "files of another user":
        forbid(shared / "transfer", monkeypatch)
    status = main(["train", *overrides(shared, str(tmp_path / "run"), *words)])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert status == 4
    assert len(errors) == 1
    assert all(text in errors[0] for text in SAID[kind])
    assert {path.name for path in (tmp_path / "run").glob("*")} <= {"train.log"}
