"""Training on states from servers: the same losses as in this process, whatever goes wrong."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hidden_states.online.reliability import proves
from hidden_states.online.toy import once_said
from launch.online_runs import PROBES, measured, online, overrides, run
from speculators.errors import HiddenStateError, HiddenStateOutageError
from speculators.hidden_states import store as store_module
from speculators.testing.fake_vllm import FakeVLLM
from speculators.testing.faults import Call, Fault, FaultKind


def test_online_offline_and_embedded_losses_are_equal(
    server: FakeVLLM, shared: Path, undisturbed: list[dict[str, Any]]
) -> None:
    store = f"hidden_states.store_path={shared / 'store'}"
    cached = run(shared, "online", *online(server), store, "hidden_states.on_generate=cache")
    assert cached == undisturbed
    calls = len(server.calls)
    assert run(shared, "offline", "hidden_states=offline", store) == undisturbed
    assert len(server.calls) == calls


K = FaultKind
FAULTS = {
    "429": Fault(K.status, status=429),
    "500": Fault(K.status, status=500),
    "time-out": Fault(K.hang, seconds=6.0),
    "connection reset": Fault(K.reset),
    "truncated JSON": Fault(K.truncated_json),
    "late file": Fault(K.late_file, seconds=0.2),
    "missing file": Fault(K.missing_file),
    "truncated file": Fault(K.truncated_file),
    "file of another request": Fault(K.foreign_file),
    "NaN": Fault(K.nan),
    "zeros": Fault(K.zeros),
    "fewer rows": Fault(K.fewer_rows),
    "lock never released": Fault(K.stuck_lock),
}
PATIENCE = {
    "time-out": "hidden_states.fetch.request_timeout_seconds=3",
    "lock never released": "hidden_states.fetch.file_timeout_seconds=1",
}


@proves(
    "while training: an answer 429, 500, time-out, connection reset, truncated JSON; a file late, "
    "missing, truncated, of another request, with NaN, zeros or fewer rows, a lock never released",
    "asked again; every loss of the run equals that of an undisturbed run, no sample is left out",
)
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_leaves_every_loss_as_it_was(
    name: str,
    server: FakeVLLM,
    shared: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    suffering: list[int] = []

    def when(call: Call) -> bool:
        due = call.number >= PROBES and call.number % 6 == 2
        suffering.extend([call.number] * due)
        return due

    server.faults.add(FAULTS[name], count=2, when=when)
    patience = PATIENCE.get(name, "hidden_states.fetch.retries=5")
    assert run(shared, str(tmp_path / "run"), *online(server), patience) == undisturbed
    assert len(suffering) >= 2
    assert not (tmp_path / "run" / "left_out.jsonl").exists()
    if FAULTS[name].kind in (K.truncated_file, K.foreign_file, K.nan, K.zeros, K.fewer_rows):
        assert caplog.text.count("; asking again") == 2


@proves(
    "while training: the server is not there at the start, or is killed and started again",
    "waits, saying for what; every loss equals that of an undisturbed run",
)
@pytest.mark.parametrize("moment", ["at the start", "in mid-run"])
def test_a_server_that_is_away_for_a_while_changes_no_loss(
    moment: str,
    server: FakeVLLM,
    shared: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = "waiting for the server at"
    if moment == "at the start":
        server.stop()
    else:
        said = "is down ("
        server.faults.add(Fault(K.death), when=lambda call: call.number == PROBES + 7)
    with once_said(caplog, said, server.start):
        got = run(shared, str(tmp_path / "run"), *online(server))
    assert got == undisturbed
    assert ("is back after" in caplog.text) == (moment == "in mid-run")


@proves(
    "while training: the disk of the server's folder is full, the disk of the store is full, or "
    "`hidden_states.max_bytes` is a third of what is needed",
    "waits for files; goes on without keeping; removes what was used: every loss equals that of "
    "an undisturbed run",
)
@pytest.mark.parametrize("disk", ["server", "store", "limit"])
def test_a_full_disk_changes_no_loss(
    disk: str,
    server: FakeVLLM,
    shared: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = tmp_path / "store"
    store = [f"hidden_states.store_path={folder}", "hidden_states.on_generate=cache"]
    expected = "going on without keeping"
    if disk == "server":
        store, expected = [], "the server cannot write files: disk full or no permission?"
        missing = Fault(K.missing_file)
        server.faults.add(missing, count=6, when=lambda call: call.number > PROBES + 2)
    elif disk == "store":
        written, original = [], store_module.save_file

        def save(*args: Any, **options: Any) -> None:
            written.append(1)
            if len(written) > 6:
                raise OSError(errno.ENOSPC, "No space left on device")
            original(*args, **options)

        monkeypatch.setattr(store_module, "save_file", save)
    else:
        limit, expected = 900_000, ""
        store.append(f"hidden_states.max_bytes={limit}")
    assert run(shared, str(tmp_path / "run"), *online(server), *store) == undisturbed
    assert expected in caplog.text
    if disk == "limit":
        sizes = [path.stat().st_size for path in folder.glob("??/*.safetensors")]
        assert 0 < sum(sizes) <= limit


_TRAINER = """
import sys, time
from pathlib import Path
from speculators.config.composition import compose
from speculators.hidden_states import store as module
from speculators.launch import train

flush = module.flush
def slow(path):
    if "KILLED" in sys.argv[1] and len(list(Path(sys.argv[2]).glob("??/*.safetensors"))) >= 9:
        print("writing", flush=True)
        time.sleep(600)
    flush(path)
module.flush = slow
train.run(compose("train", sys.argv[3:]))
"""


def another_trainer(kind: str, store: Path, overrides: list[str]) -> subprocess.Popen[str]:
    """Start a trainer in a process of its own."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen(
        [sys.executable, "-c", _TRAINER, kind, str(store), *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        text=True,
    )


@proves(
    "while training: `kill -9` of the trainer in the middle of a write to the store",
    "the same command goes on; every loss equals that of an undisturbed run, no half file is left",
)
def test_a_killed_trainer_goes_on_with_the_same_losses(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "store"
    store = [f"hidden_states.store_path={folder}", "hidden_states.on_generate=cache"]
    words = [*online(server), *store, "training.checkpoint_every_steps=1"]
    trainer = another_trainer("KILLED", folder, overrides(shared, str(tmp_path / "run"), *words))
    assert trainer.stdout is not None
    assert "writing\n" in iter(trainer.stdout.readline, "")
    trainer.send_signal(signal.SIGKILL)
    trainer.wait()
    trainer.stdout.close()
    before = len(list(folder.glob("??/*.safetensors")))
    assert before >= 9
    assert len(list(folder.rglob(".writing-*"))) >= 1
    assert run(shared, str(tmp_path / "run"), *words) == undisturbed
    for path in folder.glob("??/*.safetensors"):
        load_file(path)


@pytest.mark.slow
@proves(
    "while training: two trainers on one store, which holds a third of what they need",
    "every loss of both equals that of an undisturbed run",
)
def test_two_trainers_on_one_store_see_the_same_losses(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = tmp_path / "store"
    store = [f"hidden_states.store_path={folder}", "hidden_states.on_generate=cache"]
    words = [*online(server), *store, "hidden_states.max_bytes=900000"]
    other = another_trainer("OTHER", folder, overrides(shared, str(tmp_path / "other"), *words))
    assert run(shared, str(tmp_path / "mine"), *words) == undisturbed
    other.communicate()
    assert other.returncode == 0
    assert measured(tmp_path / "other") == undisturbed
    assert sum(path.stat().st_size for path in folder.glob("??/*.safetensors")) <= 900_000


@proves(
    "while training: the server names a file outside the folder",
    "stops at once, nothing touched; a checkpoint is saved and the same command goes on from it",
)
def test_a_malicious_path_costs_no_step(
    server: FakeVLLM, shared: Path, tmp_path: Path, undisturbed: list[dict[str, Any]]
) -> None:
    victim = tmp_path / "victim.safetensors"
    victim.write_text("precious")
    bad = Fault(K.path, path=str(victim))
    server.faults.add(bad, count=None, when=lambda call: call.number > PROBES + 12)
    with pytest.raises(HiddenStateError, match=r"not touched.*Saved checkpoints/\S+ after step \d"):
        run(shared, str(tmp_path / "run"), *online(server))
    assert victim.read_text() == "precious"
    server.faults.clear()
    assert run(shared, str(tmp_path / "run"), *online(server)) == undisturbed


@proves(
    "while training: the server stays down, in the middle of a step or of a validation",
    "stops after `outage_timeout_seconds` with a saved checkpoint; the same command goes on and "
    "every loss equals that of an undisturbed run",
)
@pytest.mark.parametrize("last_call", [14, 17])
def test_an_outage_saves_a_checkpoint_and_the_same_command_goes_on(
    last_call: int, server: FakeVLLM, shared: Path, undisturbed: list[dict[str, Any]]
) -> None:
    folder = f"outage_{last_call}"
    server.faults.add(Fault(K.death), when=lambda call: call.number == last_call)
    patience = "hidden_states.fetch.outage_timeout_seconds=0.5"
    with pytest.raises(HiddenStateOutageError, match=r"Saved checkpoints/\S+ after step \d"):
        run(shared, folder, *online(server), patience)
    before = measured(shared / folder)
    assert 0 < len(before) < len(undisturbed)
    server.start()
    assert run(shared, folder, *online(server)) == undisturbed


@proves(
    "while training: files that this user may not read from some moment on",
    "stops at once with the remedy; a checkpoint is saved and the same command goes on from it",
)
def test_files_of_another_user_cost_no_step(
    server: FakeVLLM,
    shared: Path,
    tmp_path: Path,
    undisturbed: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    original, steps = os.open, tmp_path / "run" / "metrics.jsonl"

    def guarded(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if str(path).endswith(".safetensors") and str(shared / "transfer") in str(path):
            trained = steps.exists() and '"train"' in steps.read_text()
            if trained and not flags & os.O_WRONLY:
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return original(path, flags, *rest, **options)

    text = r"run server and trainer as the same user.*Saved checkpoints/\S+ after step \d"
    with monkeypatch.context() as patch:
        patch.setattr("speculators.hidden_states.online.reading.os.open", guarded)
        with pytest.raises(HiddenStateError, match=text):
            run(shared, str(tmp_path / "run"), *online(server))
    assert run(shared, str(tmp_path / "run"), *online(server)) == undisturbed
