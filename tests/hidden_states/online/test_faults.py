"""Faults of single samples: what is fetched again is equal, what cannot be is left out, named."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch

from hidden_states.online.reliability import proves
from hidden_states.online.toy import collect, leftovers, rows, store_opener
from speculators.config.schema.hidden_states import OnGenerate
from speculators.errors import HiddenStateError, HiddenStateOutageError
from speculators.testing.faults import Fault, FaultKind

K = FaultKind

ANSWERS = {
    "500": Fault(K.status, status=500),
    "503": Fault(K.status, status=503),
    "408": Fault(K.status, status=408),
    "429": Fault(K.status, status=429),
    "connection reset": Fault(K.reset),
    "time-out": Fault(K.hang, seconds=3.0),
    "truncated JSON": Fault(K.truncated_json),
    "connection cut inside the answer": Fault(K.truncated_body),
    "echo of another prompt": Fault(K.wrong_echo),
}
FILES = {
    "missing": Fault(K.missing_file),
    "cut off": Fault(K.truncated_file),
    "of another request": Fault(K.foreign_file),
    "with NaN": Fault(K.nan),
    "with a zero row": Fault(K.zeros),
    "with fewer rows": Fault(K.fewer_rows),
    "with fewer layers": Fault(K.wrong_layers),
    "with norms far outside the running band": Fault(K.loud),
    "locked for ever": Fault(K.stuck_lock),
}
PERSISTENT = {
    "500": (Fault(K.status), 4, "HTTP 500: injected"),
    "400": (Fault(K.status, status=400, message="prompt too long"), 1, "400: prompt too long"),
    "cut JSON": (Fault(K.truncated_json), 4, "is no JSON"),
    "echo": (Fault(K.wrong_echo), 3, "another prompt: token 11 is"),
    "missing": (Fault(K.missing_file), 4, "let go of the lock without writing"),
    "cut off": (Fault(K.truncated_file), 3, "file is cut off"),
    "foreign": (Fault(K.foreign_file), 3, "states of other tokens: "),
    "NaN": (Fault(K.nan), 3, "not finite: 1 of 36 states, first at token 11, layer 1"),
    "zeros": (Fault(K.zeros), 3, "all zero: 1 of 36 states, first at token 6, layer 4"),
    "rows": (Fault(K.fewer_rows), 3, "11 x 3 x 32 instead of 12 x 3 x 32"),
    "layers": (Fault(K.wrong_layers), 3, "12 x 2 x 32 instead of 12 x 3 x 32"),
    "loud": (Fault(K.loud), 3, "norm of layer"),
    "stuck": (Fault(K.stuck_lock), 2, "still locked after 1 s"),
}


def equal(got, wanted) -> bool:
    return len(got) == len(wanted) and all(
        torch.equal(a, b) for a, b in zip(got, wanted, strict=True)
    )


@proves(
    "an answer: 408, 429, 500, 503, connection reset, time-out, truncated JSON, connection cut "
    "inside the answer, echo of another prompt",
    "asked again, after a pause that doubles or at another server; same states, same order",
)
@pytest.mark.parametrize("name", ANSWERS)
def test_a_failed_answer_is_asked_for_again(name, serve, open_source, truth, tmp_path):
    server, samples = serve(), rows(16)
    limit = 2.0 if name == "time-out" else 30.0
    source = open_source(server, fetch={"request_timeout_seconds": limit})
    source.start(["any"])
    for row in samples[2::5]:
        server.faults.add_for(ANSWERS[name], row.input_ids.tolist())
    assert equal(collect(source, samples), truth(samples))
    retries = source.gauges()["retries"]
    assert retries >= 3 if name == "time-out" else retries == 3
    source.close()
    server.stop()
    assert [n for n in leftovers(tmp_path / "transfer") if name != "time-out"] == []


@proves(
    "a file: missing, cut off, of another request, with NaN, a zero row, fewer rows, fewer layers, "
    "norms outside the running band, a lock that is never released",
    "never trained on; asked again; same states, same order",
)
@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_is_asked_for_again(name, serve, open_source, truth, tmp_path):
    server, samples = serve(), rows(20)
    locked = name == "locked for ever"
    source = open_source(server, fetch={"file_timeout_seconds": 1.0 if locked else 20.0})
    source.start(["any"])
    for row in samples[6::5]:
        server.faults.add_for(FILES[name], row.input_ids.tolist())
    assert equal(collect(source, samples), truth(samples))
    retries = source.gauges()["retries"]
    assert retries >= 3 if locked else retries == 3
    source.close()
    kept = leftovers(tmp_path / "transfer")
    # What the server still holds locked is the server's; it is removed when it is let go of.
    assert len(kept) == (6 if locked else 0)


@proves("a file that comes after the answer", "waited for under its lock")
def test_a_late_file_is_waited_for(serve, open_source, truth):
    server, samples = serve(file_delay_seconds=0.03), rows(10)
    assert equal(collect(open_source(server), samples), truth(samples))


@proves("a server that writes no lock files", "a file is taken when it is as long as it says")
def test_a_file_without_lock_is_read_when_complete(serve, open_source, truth, tmp_path):
    server, samples = serve(file_delay_seconds=0.02), rows(8)
    server.faults.add(Fault(K.no_lock), count=None)
    source = open_source(server)
    assert equal(collect(source, samples), truth(samples))
    assert leftovers(tmp_path / "transfer") == []


@proves(
    "a sample that fails at every attempt while the server is all right",
    "left out with its id and reason in the log and in `left_out.jsonl`; the others are unchanged",
)
@pytest.mark.parametrize("name", PERSISTENT)
def test_a_hopeless_sample_is_left_out_and_named(name, serve, open_source, truth, tmp_path, caplog):
    fault, attempts, reason = PERSISTENT[name]
    server, samples = serve(), rows(16)
    fetch = {"file_timeout_seconds": 1.0 if name == "stuck" else 20.0}
    source = open_source(server, fetch=fetch)
    source.start(["any"])
    server.faults.add_for(fault, samples[10].input_ids.tolist(), count=None)
    got = collect(source, samples)
    assert got.pop(10) is None
    assert equal(got, truth(samples[:10] + samples[11:]))
    asked = [c for c in server.calls if c.token_ids == tuple(samples[10].input_ids.tolist())]
    assert len(asked) == attempts
    assert f"sample {samples[10].sample_id} is left out: " in caplog.text
    assert reason in caplog.text
    line = json.loads((tmp_path / "left_out.jsonl").read_text())
    assert line["id"] == samples[10].sample_id
    assert reason in line["reason"]


@proves(
    "too many samples left out (20 in a row, or more than 1 % and more than 20)",
    "stops with the reasons counted; the trainer saves a checkpoint",
)
@pytest.mark.parametrize(
    ("every", "text"),
    [(1, "20 samples in a row could not be had"), (2, "21 of 41 samples could not be had")],
)
def test_too_many_left_out_samples_stop_the_run(every, text, serve, open_source):
    server, samples = serve(), rows(120)
    source = open_source(server)
    source.start(["any"])
    hopeless = {tuple(row.input_ids.tolist()) for row in samples[::every]}
    fault = Fault(K.status, status=400, message="refused")
    server.faults.add(fault, count=None, when=lambda call: call.token_ids in hopeless)
    with pytest.raises(HiddenStateOutageError, match=text) as caught:
        collect(source, samples, group=1)
    assert "x HTTP 400: refused" in str(caught.value)
    assert "left_out.jsonl" in str(caught.value)


@proves("a path outside the folder (`/etc/...`, `../`, a symbolic link)", "stops; nothing touched")
@pytest.mark.parametrize("kind", ["absolute", "dots", "link", "relative", "other suffix"])
def test_a_path_outside_the_folder_is_not_touched(kind, serve, open_source, tmp_path):
    server, samples = serve(), rows(4)
    source = open_source(server)
    source.start(["any"])
    victim = tmp_path / "outside" / "victim.safetensors"
    victim.parent.mkdir()
    victim.write_text("precious")
    folder = tmp_path / "transfer"
    (folder / "link").symlink_to(victim.parent)
    path = {
        "absolute": str(victim),
        "dots": f"{folder}/../outside/victim.safetensors",
        "link": f"{folder}/link/victim.safetensors",
        "relative": "outside/victim.safetensors",
        "other suffix": "/etc/passwd",
    }[kind]
    server.faults.add(Fault(K.path, path=path))
    with pytest.raises(HiddenStateError, match="not touched"):
        collect(source, samples)
    assert victim.read_text() == "precious"


def test_a_file_that_is_a_link_is_not_followed(serve, open_source, tmp_path):
    server, samples = serve(), rows(2)
    source = open_source(server)
    source.start(["any"])
    victim = tmp_path / "victim.safetensors"
    victim.write_text("precious")
    path = tmp_path / "transfer" / "cmpl-x.safetensors"
    path.symlink_to(victim)
    server.faults.add(Fault(K.path, path=str(path)))
    with pytest.raises(HiddenStateError, match="symbolic link"):
        collect(source, samples)
    assert victim.read_text() == "precious"


@proves(
    "a file this user may not read (vLLM writes mode 0600)",
    "stops at once: run server and trainer as the same user",
)
def test_a_file_of_another_user_stops_with_the_remedy(serve, open_source, monkeypatch):
    source = open_source(serve())
    source.start(["any"])
    original = os.open

    def guarded(path, flags, *rest, **options):
        if str(path).endswith(".safetensors") and not flags & os.O_WRONLY:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, flags, *rest, **options)

    monkeypatch.setattr("speculators.hidden_states.online.reading.os.open", guarded)
    with pytest.raises(HiddenStateError, match="run server and trainer as the same user"):
        collect(source, rows(2))


@proves("a stored file that is damaged", "put into quarantine with the reason and fetched again")
def test_a_damaged_stored_file_is_fetched_again(serve, open_source, truth, tmp_path):
    samples, folder = rows(6), tmp_path / "store"
    options = {"store_path": str(folder), "on_generate": OnGenerate.cache}
    server = serve()
    collect(open_source(server, **options), samples)
    store = store_opener(folder)(None)
    assert store is not None
    damaged = store.path_of(samples[3].sample_id)
    damaged.write_bytes(damaged.read_bytes()[:-40])
    source = open_source(server, **options)
    assert equal(collect(source, samples), truth(samples))
    assert source.counts.generated == 1
    reasons = (folder / "quarantine" / "reasons.jsonl").read_text()
    assert json.loads(reasons)["id"] == samples[3].sample_id


@proves(
    "files earlier requests left behind",
    "removed at start and end once unlocked and older than `orphan_age_seconds`",
)
def test_orphans_are_removed_and_the_young_and_locked_kept(serve, open_source, tmp_path):
    folder = tmp_path / "transfer"
    folder.mkdir()

    def leave(name: str, age: float) -> Path:
        path = folder / name
        for made in (path, Path(f"{path}.lock")):
            made.write_text("")
            os.utime(made, (then := time.time() - age, then))
        return path

    old = leave("cmpl-hs-1-0-a.safetensors", 1000)
    young = leave("cmpl-hs-2-0-a.safetensors", 1)
    foreign = leave("cmpl-abc-0-a.safetensors", 1000)
    source = open_source(serve())
    source.start(["any"])
    assert (old.exists(), young.exists(), foreign.exists()) == (False, True, True)
    assert not Path(f"{old}.lock").exists()
