"""A sealed folder tells whatever has happened to it."""

import errno
from pathlib import Path

import pytest

from pezoo import files
from pezoo.files import Damaged, move, seal, unseal

FACTS = {"loss": 1.25, "missing": float("nan"), "lengths": [16, 64], "inputs": {"é": None, "0.1": ["a"]}}


@pytest.fixture
def folder(tmp_path):
    """Two files and their seal."""
    made = tmp_path / "made"
    made.mkdir()
    (made / "weights").write_bytes(bytes(range(256)) * 8)
    (made / "empty").touch()
    seal(made / "facts.json", FACTS)
    return made


def test_facts_come_back_with_the_list_of_files(folder):
    found = unseal(folder / "facts.json")
    assert repr({key: found[key] for key in FACTS}) == repr(FACTS)
    assert {name: facts["size"] for name, facts in found["files"].items()} == {"empty": 0, "weights": 2048}
    assert found.keys() == {*FACTS, "files"}


@pytest.mark.parametrize("name", ["weights", "facts.json"])
def test_every_flipped_bit_is_found(folder, name, monkeypatch):
    content = (folder / name).read_bytes()
    for i in range(0, len(content), 7):
        monkeypatch.setattr(files, "_digests", {})  # as in another process
        flipped = bytearray(content)
        flipped[i] ^= 1 << i % 8
        (folder / name).write_bytes(flipped)
        with pytest.raises(Damaged, match=name):
            unseal(folder / "facts.json")


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\0" * 99, b'{"sha256": "0"}', b"[" * 10_000, b"\xff"]
)
def test_what_is_no_seal_is_damaged(folder, content):
    (folder / "facts.json").write_bytes(content)
    with pytest.raises(Damaged, match=r"facts\.json"):
        unseal(folder / "facts.json")


def test_what_is_missing_or_cut_is_named_without_reading_any_file(folder, monkeypatch):
    monkeypatch.setattr(files, "_sha256", None)
    unseal(folder / "facts.json", digests=False)
    (folder / "weights").write_bytes(b"cut")
    with pytest.raises(Damaged, match="weights has changed"):
        unseal(folder / "facts.json", digests=False)
    (folder / "weights").unlink()
    with pytest.raises(Damaged, match="weights is missing"):
        unseal(folder / "facts.json", digests=False)
    with pytest.raises(Damaged, match=r"facts\.json is missing"):
        unseal(folder / "none" / "facts.json")


@pytest.mark.parametrize("name", ["weights", "facts.json"])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_disk_that_does_not_answer_is_no_damage_and_the_file_is_named(folder, monkeypatch, name, number):
    usual = Path.open

    def fails(path, *args, **how):
        if path.name == name:
            raise OSError(number, "no answer")
        return usual(path, *args, **how)

    monkeypatch.setattr(files, "_digests", {})
    monkeypatch.setattr(Path, "open", fails)
    with pytest.raises(OSError, match="no answer") as error:
        unseal(folder / "facts.json")
    assert (error.value.errno, error.value.filename) == (number, str(folder / name))


def test_a_folder_in_a_file_s_place_is_damage(folder):
    (folder / "weights").unlink()
    (folder / "weights").mkdir()
    with pytest.raises(Damaged, match="weights"):
        unseal(folder / "facts.json", digests=False)
    with pytest.raises(Damaged, match="cannot be read"):
        unseal(folder)


def test_a_file_is_read_once_under_all_its_names(folder, monkeypatch):
    reads, whole = [], files.hashlib.file_digest
    monkeypatch.setattr(files, "_digests", {})
    monkeypatch.setattr(files.hashlib, "file_digest", lambda *a: reads.append(a) or whole(*a))
    (folder / "link").hardlink_to(folder / "weights")
    seal(folder / "facts.json", FACTS)
    unseal(folder / "facts.json")
    assert len(reads) == 2  # link and weights, empty


@pytest.mark.parametrize("there", ["nothing", "a folder", "a file", "a link"])
def test_a_folder_moves_to_its_place_whatever_is_there(folder, tmp_path, there):
    place, other = tmp_path / "place", tmp_path / "other"
    other.mkdir()
    (other / "kept").touch()
    if there == "a folder":
        place.mkdir()
        (place / "old").touch()
    elif there == "a file":
        place.touch()
    elif there == "a link":
        place.symlink_to(other)
    move(folder, place)
    assert sorted(path.name for path in place.iterdir()) == ["empty", "facts.json", "weights"]
    assert unseal(place / "facts.json")
    assert (other / "kept").exists()
