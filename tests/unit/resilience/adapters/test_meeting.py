"""Where workers meet that were told of no folder."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from resilience.adapters.meeting import folder_of, is_private
from resilience.storage.state_memory import MemoryStateStorage
from resilience.storage.state_shm import SharedMemoryStateStorage


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder with a path of few characters, as a service's are."""
    with tempfile.TemporaryDirectory(prefix="meet-", dir="/tmp") as folder:
        yield Path(folder)


def folder(uri: str) -> Path:
    found = folder_of(SharedMemoryStateStorage(uri))
    assert found is not None
    return found


def test_beside_a_file_in_a_folder_of_the_user_s_own(short: Path) -> None:
    assert short / "state.peers" == folder(f"shm://{short}/state")


def test_under_the_file_s_name_in_the_temporary_folder_where_others_can_enter(
    short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short.chmod(0o755)
    monkeypatch.setattr(tempfile, "tempdir", "/temporary")
    found = folder(f"shm://{short}/state")
    assert (Path("/temporary"), True) == (found.parent, found.name.startswith(f"seawall-{os.geteuid()}-state-"))
    assert folder("shm://shop").name.startswith(f"seawall-{os.geteuid()}-shop.state-1-")


def test_every_file_has_a_folder_of_its_own_which_every_process_finds() -> None:
    uris = ("shm://", "shm://shop", f"shm://{'x' * 63}a", f"shm://{'x' * 63}b", "shm:///none/state", "shm:///no/state")
    assert len(uris) == len({folder(uri) for uri in uris})
    assert [folder(uri) for uri in uris] == [folder(uri) for uri in uris]
    assert folder("shm://shop") == folder("shm://shop?records=64"), "it is the same file"


def test_the_path_leaves_room_for_the_name_of_a_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longest = "/4194304." + 24 * "x" + ".sock\0"
    deep = tmp_path / ("deep" * 10)
    deep.mkdir(mode=0o700)
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    for uri in (f"shm://{deep}/state", f"shm://{'x' * 64}"):
        assert len(str(folder(uri)) + longest) <= 104
    monkeypatch.setattr(tempfile, "tempdir", "/a/temporary/folder/with/a/long/path")
    assert len(str(folder(f"shm://{'x' * 64}")) + longest) <= 104


def test_what_is_not_kept_in_a_file_of_this_machine_has_no_folder() -> None:
    assert None is folder_of(MemoryStateStorage())


def test_a_folder_is_private_that_nobody_else_can_enter(short: Path) -> None:
    link, file = short / "link", short / "file"
    link.symlink_to(short)
    file.touch()
    assert [True, False, False, False] == [is_private(path) for path in (short, link, file, short / "missing")]
    short.chmod(0o710)
    assert not is_private(short)
