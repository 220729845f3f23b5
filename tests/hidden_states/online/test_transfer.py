"""Which paths may be touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from speculators.errors import HiddenStateError
from speculators.hidden_states.online.transfer import TransferFolder, default_folders, make_private


def test_names_inside_the_folder_are_found(tmp_path: Path) -> None:
    folder = TransferFolder(str(tmp_path))
    (tmp_path / "deeper").mkdir()
    for name in ("a.safetensors", "deeper/a.safetensors"):
        assert folder.locate(f"{tmp_path}/{name}") == f"{tmp_path.resolve()}/{name}"


def test_a_folder_reached_through_a_link_is_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    folder = TransferFolder(str(tmp_path / "link"))
    wanted = f"{(tmp_path / 'real').resolve()}/a.safetensors"
    assert folder.locate(f"{tmp_path}/real/a.safetensors") == wanted
    assert folder.locate(f"{tmp_path}/link/a.safetensors") == wanted


@pytest.mark.parametrize(
    "path",
    [
        "{0}-other/a.safetensors",
        "{0}/../a.safetensors",
        "/etc/passwd",
        "{0}/passwd",
        "a.safetensors",
        "",
        "{0}/a\0.safetensors",
    ],
)
def test_everything_else_is_refused(path: str, tmp_path: Path) -> None:
    folder = tmp_path / "inside"
    folder.mkdir()
    with pytest.raises(HiddenStateError, match="not touched"):
        TransferFolder(str(folder)).locate(path.format(folder))


def test_the_longest_mapped_name_wins(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    names = {"/x": str(tmp_path / "a"), "/x/y/": str(tmp_path / "b")}
    folder = TransferFolder(str(tmp_path), names)
    assert folder.locate("/x/f.safetensors") == f"{tmp_path.resolve()}/a/f.safetensors"
    assert folder.locate("/x/y/f.safetensors") == f"{tmp_path.resolve()}/b/f.safetensors"
    with pytest.raises(HiddenStateError, match="not inside"):
        folder.locate("/xy/f.safetensors")


def test_without_setting_both_default_folders_are_allowed() -> None:
    assert list(TransferFolder(None).folders) == list(default_folders())


def test_a_folder_of_somebody_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.getuid", lambda: 12345)
    with pytest.raises(HiddenStateError, match="belongs to user"):
        make_private(tmp_path)
    with pytest.raises(HiddenStateError, match="cannot be created"):
        make_private(Path("/proc/none/x"))
