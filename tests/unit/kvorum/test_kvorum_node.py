import os
from pathlib import Path

import pytest

from kvorum.errors import ConfigError, NotFound
from kvorum.node import Identity, load_identity, save_identity, write_atomically

IDENTITY = Identity(uid="0b9c2f4e-2f4e-4c7a-9f2e-0b9c2f4e2f4e", name="n1", address="10.77.0.1", cluster_name="home")


def test_an_identity_is_read_as_it_was_saved_and_by_root_only(tmp_path: Path) -> None:
    path = tmp_path / "state" / "node.json"
    save_identity(IDENTITY, path)
    assert load_identity(path) == IDENTITY
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_node_in_no_cluster_is_told_how_to_get_into_one(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="in no cluster") as caught:
        load_identity(tmp_path / "node.json")
    assert "kvorum cluster init" in caught.value.remedy


def test_a_damaged_identity_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "node.json"
    path.write_text('{"uid": 1}')
    with pytest.raises(ConfigError) as caught:
        load_identity(path)
    assert caught.value.details["path"] == str(path)


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"
