from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from hidden_states.tables import make_identity, make_sample, states_of
from speculators.data.types import Sample
from speculators.errors import HiddenStateError
from speculators.hidden_states.identity import StoreIdentity
from speculators.hidden_states.store import HiddenStateStore
from speculators.hidden_states.types import HiddenStates

SAMPLE = make_sample(4, 5, 6, 7)


def open_store(path: Path, identity: StoreIdentity | None = None) -> HiddenStateStore:
    return HiddenStateStore.open(path, identity or make_identity(), create=True)


def filled(path: Path) -> HiddenStateStore:
    store = open_store(path)
    store.put(SAMPLE, states_of(SAMPLE.input_ids, (1, 3)))
    return store


def same(got: HiddenStates | None, expected: HiddenStates) -> bool:
    return (
        got is not None
        and torch.equal(got.aux, expected.aux)
        and torch.equal(got.last, expected.last)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_round_trip_is_exact(tmp_path: Path, samples: list[Sample], dtype: str) -> None:
    identity = make_identity(dtype=dtype)
    store = open_store(tmp_path / "s", identity)
    assert store.get(samples[0]) is None
    expected = [states_of(s.input_ids, (1, 3), getattr(torch, dtype)) for s in samples]
    for sample, states in zip(samples, expected, strict=True):
        assert same(store.put(sample, states), states)
    again = HiddenStateStore.open(tmp_path / "s", identity, create=False)
    for sample, states in zip(samples, expected, strict=True):
        assert sample.sample_id in again
        assert same(again.get(sample), states)
    assert set(again.sample_ids()) == {s.sample_id for s in samples}
    assert again.num_quarantined == 0


def test_files_say_what_they_are(tmp_path: Path) -> None:
    store = filled(tmp_path)
    path = tmp_path / SAMPLE.sample_id[:2] / f"{SAMPLE.sample_id}.safetensors"
    assert store.path_of(SAMPLE.sample_id) == path
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
        assert list(file.get_tensor("hidden_states").shape) == [4, 3, 8]
        assert file.get_tensor("token_ids").tolist() == [4, 5, 6, 7]
    assert header["format_version"] == "1"
    assert header["layer_ids"] == "[1,3,6]"
    assert (header["num_layers"], header["hidden_size"], header["num_tokens"]) == ("6", "8", "4")
    assert header["token_sha256"].startswith(SAMPLE.sample_id)
    assert json.loads((tmp_path / "store.json").read_text())["layer_ids"] == [1, 3, 6]


def test_a_store_of_more_layers_serves(tmp_path: Path) -> None:
    store = open_store(tmp_path, make_identity((0, 1, 3, 5)))
    store.put(SAMPLE, states_of(SAMPLE.input_ids, (0, 1, 3, 5)))
    narrow = open_store(tmp_path, make_identity((1, 5)))
    assert narrow.layer_ids == (0, 1, 3, 5, 6)
    assert same(narrow.get(SAMPLE), states_of(SAMPLE.input_ids, (1, 5)))
    put = narrow.put(SAMPLE, states_of(SAMPLE.input_ids, (0, 1, 3, 5)))
    assert same(put, states_of(SAMPLE.input_ids, (1, 5)))


def test_a_moved_verifier_is_the_same_one(tmp_path: Path) -> None:
    filled(tmp_path)
    store = open_store(tmp_path, make_identity(verifier="/elsewhere", engine="test 2"))
    assert store.get(SAMPLE) is not None
    assert open_store(tmp_path, make_identity(dtype="any")).get(SAMPLE) is not None
    with pytest.raises(ValueError, match="a new store needs a number format"):
        open_store(tmp_path / "new", make_identity(dtype="any"))


@pytest.mark.parametrize(
    ("identity", "text"),
    [
        (
            make_identity(verifier="other/model", verifier_revision="ffff"),
            "verifier: the store holds someone/model (0123abc), this run uses other/model (ffff)",
        ),
        (make_identity(tokenizer_hash="0" * 64), f"holds {'f' * 64}, this run uses {'0' * 64}"),
        (make_identity(dtype="bfloat16"), "dtype: the store holds float32, this run uses bfloat16"),
        (
            make_identity((1, 2, 3)),
            "layer_ids: the store holds [1, 3, 6], this run needs [1, 2, 3, 6]",
        ),
    ],
)
def test_another_store_is_refused_with_both_values(
    tmp_path: Path, identity: StoreIdentity, text: str
) -> None:
    filled(tmp_path)
    with pytest.raises(HiddenStateError) as caught:
        open_store(tmp_path, identity)
    assert f"hidden_states.store_path={tmp_path}: " in str(caught.value)
    assert text in str(caught.value)


def test_all_differences_at_once(tmp_path: Path) -> None:
    filled(tmp_path)
    with pytest.raises(HiddenStateError) as caught:
        open_store(tmp_path, make_identity((2,), "bfloat16", verifier_revision="x"))
    assert len(str(caught.value).splitlines()) == 4


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(HiddenStateError, match=r"no store there \(no store\.json\)"):
        HiddenStateStore.open(tmp_path / "none", make_identity(), create=False)
    (tmp_path / "letter.txt").write_text("hello")
    with pytest.raises(HiddenStateError, match="the folder is not empty and is no store"):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]
    (tmp_path / "store.json").write_text('{"format_version": "2"}')
    with pytest.raises(HiddenStateError, match="format_version is '2', not '1'"):
        open_store(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(HiddenStateError, match="no store can be made there"):
        open_store(tmp_path / "file")


def test_leftovers_of_a_killed_writer_are_ignored_and_removed_later(tmp_path: Path) -> None:
    store = filled(tmp_path)
    folder = store.path_of(SAMPLE.sample_id).parent
    old, new = folder / ".writing-old.safetensors", folder / ".writing-new.safetensors"
    for path in (old, new):
        path.write_bytes(b"half a file")
    two_hours_ago = time.time() - 7200
    os.utime(old, (two_hours_ago, two_hours_ago))
    again = open_store(tmp_path)
    assert list(again.sample_ids()) == [SAMPLE.sample_id]
    assert again.get(SAMPLE) is not None
    assert (old.exists(), new.exists()) == (False, True)


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speculators.hidden_states.store.flush", full)
    with pytest.raises(HiddenStateError, match=r"cannot be written: .*No space left"):
        store.put(SAMPLE, states_of(SAMPLE.input_ids, (1, 3)))
    assert SAMPLE.sample_id not in store
    assert list(store.path_of(SAMPLE.sample_id).parent.iterdir()) == []


def damage(path: Path, kind: str) -> None:
    tensors = load_file(path)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    states = tensors["hidden_states"]
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-10])
        return
    if kind == "nan":
        states[-1, 1, 3] = torch.nan
    elif kind == "zero":
        states[1, 2] = 0
    elif kind == "rows":
        tensors["hidden_states"] = states[:3]
    elif kind == "dtype":
        tensors["hidden_states"] = states.bfloat16()
    elif kind == "tokens":
        tensors["token_ids"][3] = 99
    elif kind == "layers":
        header["layer_ids"] = "[1,2,6]"
    elif kind == "plain":
        header = {}
    elif kind == "extra":
        tensors["more"] = states.clone()
    save_file({k: v.contiguous() for k, v in tensors.items()}, path, metadata=header)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", "not readable: "),
        ("nan", "not finite: 1 of 12 states, first at token 3, layer 3"),
        ("zero", "all zero: 1 of 12 states, first at token 1, layer 6"),
        ("rows", "states have shape [3, 3, 8], expected [4, 3, 8]"),
        ("dtype", "states are torch.bfloat16, expected torch.float32"),
        (
            "tokens",
            "states of other tokens: 1 of 4 differ, the first at 3 (holds 99, expected 7)",
        ),
        ("layers", "header: layer_ids is '[1,2,6]', the store says '[1,3,6]'"),
        ("plain", "header: format_version is None, the store says '1'"),
        ("extra", "holds tensors ['hidden_states', 'more', 'token_ids']"),
    ],
)
def test_damaged_files_go_to_quarantine(tmp_path: Path, kind: str, reason: str) -> None:
    store = filled(tmp_path)
    path = store.path_of(SAMPLE.sample_id)
    damage(path, kind)
    assert store.get(SAMPLE) is None
    assert not path.exists()
    assert (tmp_path / "quarantine" / path.name).exists()
    line = json.loads((tmp_path / "quarantine" / "reasons.jsonl").read_text())
    assert line["id"] == SAMPLE.sample_id
    assert line["reason"].startswith(reason)
    assert (store.num_read, store.num_quarantined) == (1, 1)
    assert store.get(SAMPLE) is None
    assert store.num_quarantined == 1
    # The sample can be generated again.
    store.put(SAMPLE, states_of(SAMPLE.input_ids, (1, 3)))
    assert store.get(SAMPLE) is not None


def test_a_file_with_unusual_norms_goes_to_quarantine(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    samples = [make_sample(*range(i, i + 6)) for i in range(1, 21)]
    for sample in samples:
        store.put(sample, states_of(sample.input_ids, (1, 3)))
    path = store.path_of(samples[18].sample_id)
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    tensors["hidden_states"][:, 1] *= 30
    save_file(tensors, path, metadata=header)
    kept = [store.get(sample) is not None for sample in samples]
    assert kept == [number != 18 for number in range(20)]
    line = json.loads((tmp_path / "quarantine" / "reasons.jsonl").read_text())
    assert line["reason"].startswith("norm of layer 3 is ")


def test_too_many_damaged_files_stop_the_run(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    samples = [make_sample(i, i + 1) for i in range(1, 23)]
    for sample in samples:
        store.put(sample, states_of(sample.input_ids, (1, 3)))
        damage(store.path_of(sample.sample_id), "nan")
    for sample in samples[:20]:
        assert store.get(sample) is None
    with pytest.raises(HiddenStateError, match="21 of 21 stored samples failed their checks"):
        store.get(samples[20])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda s: HiddenStates(s.aux * torch.nan, s.last), "not finite"),
        (lambda s: HiddenStates(s.aux, s.last * 0), "all zero"),
        (lambda s: HiddenStates(s.aux.half(), s.last.half()), "states are torch.float16"),
        (lambda s: HiddenStates(s.aux[:, :1], s.last), "states have shape [4, 2, 8]"),
    ],
)
def test_bad_states_are_not_stored(
    tmp_path: Path, change: Callable[[HiddenStates], HiddenStates], text: str
) -> None:
    store = open_store(tmp_path)
    with pytest.raises(HiddenStateError) as caught:
        store.put(SAMPLE, change(states_of(SAMPLE.input_ids, (1, 3))))
    assert text in str(caught.value)
    assert SAMPLE.sample_id not in store


def test_a_zero_embedding_row_is_no_fault(tmp_path: Path) -> None:
    store = open_store(tmp_path, make_identity((0, 3)))
    states = states_of(SAMPLE.input_ids, (0, 3))
    states.aux[1, 0] = 0
    store.put(SAMPLE, states)
    assert same(store.get(SAMPLE), states)


def test_a_wrong_address_is_a_programming_error(tmp_path: Path) -> None:
    wrong = Sample(SAMPLE.input_ids, SAMPLE.loss_mask, "0" * 32, "c")
    with pytest.raises(ValueError, match="is not the address of its tokens"):
        open_store(tmp_path).put(wrong, states_of(SAMPLE.input_ids, (1, 3)))


def test_store_identity_is_checked() -> None:
    with pytest.raises(ValueError, match="must ascend and end with 6"):
        make_identity((3, 1))
    identity = make_identity()
    assert StoreIdentity.from_json(identity.to_json()) == identity
    with pytest.raises(ValueError, match="num_layers is '6'"):
        StoreIdentity.from_json({**identity.to_json(), "num_layers": "6"})


def _write_many(path: str) -> None:
    store = HiddenStateStore.open(path, make_identity(), create=True)
    for _ in range(20):
        store.put(SAMPLE, states_of(SAMPLE.input_ids, (1, 3)))


def test_two_writers_and_a_reader_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(str(tmp_path),)) for _ in range(2)]
    for writer in writers:
        writer.start()
    expected = states_of(SAMPLE.input_ids, (1, 3))
    store = HiddenStateStore.open(tmp_path, make_identity(), create=True)
    while any(writer.is_alive() for writer in writers):
        states = store.get(SAMPLE)
        assert states is None or same(states, expected)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert same(store.get(SAMPLE), expected)
    assert store.num_quarantined == 0
