"""The processes of an application work out the same folder, and no other application does."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from longconn.channels.errors import ChannelError
from longconn.channels.places import folder, name_of


def test_a_name_is_a_folder_of_this_user_in_shared_memory() -> None:
    assert f"longconn-{os.geteuid()}-shop" == folder("shop").name
    assert folder("shop").parent in (Path("/dev/shm"), Path(tempfile.gettempdir()))


def test_without_shared_memory_it_is_in_the_temporary_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("longconn.channels.places._SHARED_MEMORY", Path("/no/such/folder"))
    assert Path(tempfile.gettempdir()) == folder("shop").parent


def test_a_path_is_the_folder_itself(tmp_path: Path) -> None:
    assert tmp_path / "x" == folder(str(tmp_path / "x"))


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "a b", "a/b", "../x", "./x", "x" * 49, "é", "/x\0"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ChannelError, match="for channels"):
        folder(name)


@pytest.mark.parametrize("import_name", ["app", "__main__", "my.package.app", "ünïcode", "x" * 90, "..."])
def test_every_application_has_a_name_that_is_one(import_name: str) -> None:
    name = name_of(import_name, "/srv/app")
    assert folder(name).name.endswith(name)
    assert name == name_of(import_name, "/srv/app") != name_of(import_name, "/srv/other")


def test_the_sockets_of_a_folder_have_paths_that_every_unix_takes() -> None:
    assert len(os.fsencode(folder(name_of("x" * 90, "/srv/app")) / "s1023.1")) < 104
