"""Corpora, their cache, training crops and test windows."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from helpers import damage
from pezoo.data import Corpus, DataConfig, Tokens, Windows, crops, load, windows
from pezoo.data import corpus as corpus_module
from pezoo.data import tokens as tokens_module
from pezoo.data.tokenizer import Encoder
from pezoo.errors import UserError

SPLITS = ("train", "validation", "test")


def tokens_of(lengths, dtype=np.uint16):
    """Documents whose ids tell where they stand: 0, 1, 2, ... through all of them."""
    ids = np.arange(sum(lengths), dtype=dtype)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return Tokens(ids, offsets, [f"document {i}" for i in range(len(lengths))])


def texts_of(tokens: Tokens) -> dict[str, bytes]:
    """The bytes of each document."""
    bounds = zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True)
    return {name: tokens.ids[a:b].tobytes() for name, (a, b) in zip(tokens.names, bounds, strict=True)}


def all_texts(corpus: Corpus) -> dict[str, bytes]:
    return {k: v for split in SPLITS for k, v in texts_of(getattr(corpus, split)).items()}


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def text_config(path: Path, **settings) -> DataConfig:
    return DataConfig(corpus="text", path=str(path), **settings)


# Settings


def test_config_is_a_structured_config():
    schema = OmegaConf.structured(DataConfig)
    merged = OmegaConf.merge(schema, {"corpus": "text", "path": "a", "max_bytes": "1000"})
    assert OmegaConf.to_object(merged) == DataConfig("text", path="a", max_bytes=1000)
    assert OmegaConf.to_object(OmegaConf.merge(schema, {"version": 1.14})).version == "1.14"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corpus": "pyhton"}, r"data\.corpus=pyhton is no corpus\. Did you mean 'python'\?"),
        ({"corpus": "text"}, r"needs data\.path, such as data\.path=FOLDER"),
        ({"corpus": "hub"}, r"needs data\.name"),
        ({"path": "books"}, r"data\.path=books is read by data\.corpus=text alone.*add data\.cor"),
        (
            {"corpus": "text", "path": "a", "subset": "b"},
            r"data\.subset=b is read by data\.corpus=hub",
        ),
        ({"corpus": "text", "path": "a", "pattern": ""}, r"data\.pattern is empty"),
        ({"corpus": "text", "path": "a", "delimiter": ""}, r"data\.delimiter is empty"),
        ({"corpus": "python", "version": "3"}, r"data\.version=3 is read by data\.corpus=package alone"),
        ({"corpus": "text", "path": "a", "name": "b"}, r"read by data\.corpus=package or hub alone"),
        ({"delimiter": "#"}, r"read by data\.corpus=text or hub alone"),
        ({"corpus": "hub", "name": "a", "document_start": "("}, r"data\.document_start=\( is no regular expression"),
        ({"max_bytes": 0}, r"data\.max_bytes=0 must be at least 1"),
        ({"test_fraction": 0.0}, r"data\.test_fraction=0\.0 must lie between 0 and 1"),
        ({"validation_fraction": 1.5}, r"data\.validation_fraction=1\.5"),
        (
            {"validation_fraction": 0.5, "test_fraction": 0.5},
            r"data\.test_fraction=0\.5 leave nothing",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DataConfig(**settings)


# An installed package


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Lay a package out as pip does: its files, and the list that names them."""

    def install(files: dict[str, str], name="fake", folder="site", listed=None, version="1.0") -> Path:
        site = write(tmp_path / folder, files)
        info = {"METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"}
        info["RECORD"] = "".join(f"{file},,\n" for file in listed or files)
        write(site / f"{name}-{version}.dist-info", info)
        monkeypatch.setattr(sys, "path", [str(site), *(p for p in sys.path if not p.startswith(str(tmp_path)))])
        return site

    return install


SOURCES = {f"fake/part{i % 3}/module_{i}.py": f"def function_{i}():\n    return {i}\n" for i in range(40)}


def test_the_default_is_the_source_of_sympy():
    from importlib import metadata

    corpus = load(DataConfig())
    root = Path(metadata.distribution("sympy").locate_file(""))
    found = all_texts(corpus)
    assert corpus.name == f"sympy {metadata.version('sympy')}"
    assert found["sympy/core/add.py"] == (root / "sympy/core/add.py").read_bytes()
    parts = {part for name in found for part in Path(name).parts}
    assert not parts & {"..", "test", "tests", "benchmarks", "_antlr", "isympy.py", "__pycache__"}
    assert sum(map(len, found.values())) > 15_000_000
    assert (corpus.test.lengths > 16_384).sum() >= 20
    assert load(DataConfig(version=metadata.version("sympy"))).hash == corpus.hash


def test_a_package_is_the_same_on_every_machine(install):
    """Other line ends, order, compiled files, tests and strangers' files change nothing."""
    install(SOURCES)
    config = DataConfig(name="fake")
    here = load(config)
    assert {k: v.decode() for k, v in all_texts(here).items()} == SOURCES
    others = {
        "fake/part0/__pycache__/module_0.cpython-311.pyc": "compiled",
        "fake/tests/test_it.py": "assert True\n",
        "fake/part1/data.txt": "no source",
        "../../bin/fake.py": "a script",
        "alone.py": "a module beside the package",
    }
    away = {k: v.replace("\n", "\r\n") for k, v in reversed(SOURCES.items())} | others
    site = install(away, folder="other/lib/site")
    write(site, {"fake/part0/stray.py": "of nobody's list"})
    there = load(config)
    assert (there.hash, there.digest, there.name) == (here.hash, here.digest, "fake 1.0")
    assert [getattr(there, split).names for split in SPLITS] == [getattr(here, split).names for split in SPLITS]
    install({k: v.replace("return 7", "return 8") for k, v in SOURCES.items()}, folder="third")
    assert load(config).digest != here.digest


def test_a_package_that_is_not_what_was_asked_for_is_refused(install):
    site = install(SOURCES | {"fake/latin.py": b"# \xe9"})
    assert load(DataConfig(name="fake", version="1.0")).name == "fake 1.0"  # and no file that is not UTF-8
    with pytest.raises(UserError, match=r"data\.version=2\.0, but fake 1\.0 is installed: .*`pip install fake==2\.0`"):
        load(DataConfig(name="fake", version="2.0"))
    with pytest.raises(UserError, match=r"data\.name=nobody/none is not installed: .*pip install.*data\.corpus=hub"):
        load(DataConfig(name="nobody/none"))
    (site / "fake/part0/module_0.py").unlink()
    with pytest.raises(UserError, match=r"module_0\.py cannot be read: .*Install fake 1\.0 again"):
        load(DataConfig(name="fake"))
    install({"empty/a.txt": "no source"}, name="empty")
    with pytest.raises(UserError, match=r"the installed package empty.*holds no source text"):
        load(DataConfig(name="empty"))


# The standard library


@pytest.fixture(scope="module")
def python() -> Corpus:
    return load(DataConfig("python"))


def test_python_is_the_source_of_the_standard_library(python):
    root = Path(sysconfig.get_path("stdlib"))
    found = all_texts(python)
    assert found["argparse.py"] == (root / "argparse.py").read_bytes()
    assert (python.name, python.tokenizer, python.vocab_size, python.bos) == (
        "python",
        "bytes",
        256,
        None,
    )
    assert len(python.hash) == 64
    parts = {part for name in found for part in Path(name).parts}
    assert not parts & {"site-packages", "dist-packages", "test", "tests", "encodings"}


def test_python_is_split_by_file_and_nothing_leaks(python):
    splits = [texts_of(getattr(python, split)) for split in SPLITS]
    sizes = [len(split) for split in splits]
    names = set().union(*splits)
    assert sum(sizes) == len(names)
    assert sizes[2] / len(names) == pytest.approx(0.1, abs=0.01)
    assert sizes[1] / len(names) == pytest.approx(0.05, abs=0.01)
    train, validation, test = (set(split.values()) for split in splits)
    assert not test & (train | validation)
    assert not validation & train
    assert (python.test.lengths > 8192).sum() >= 5


def test_tokens_are_memory_mapped_in_the_smallest_type(python):
    assert isinstance(python.train.ids, np.memmap)
    assert not python.train.ids.flags.writeable
    assert python.train.ids.dtype == np.uint8
    assert python.train.offsets.dtype == np.int64
    assert python.train.offsets[-1] == len(python.train.ids)
    assert len(python.train) == len(python.train.offsets) - 1


DIGEST = """
import sys, hashlib
from pathlib import Path
from pezoo.data import DataConfig, crops, load, windows
corpus = load(DataConfig(), Path(sys.argv[1]))
digest = hashlib.sha256(corpus.hash.encode())
digest.update(crops(corpus.train, 64, 8, 3, 1).numpy().tobytes())
digest.update(windows(corpus.test, 1024, 8, 0).ids.numpy().tobytes())
digest.update(repr(corpus.train.names).encode())
print(digest.hexdigest())
"""


def python_process(*args: object, **environment: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.ci
def test_racing_processes_agree_to_the_byte(tmp_path):
    racing = [python_process(DIGEST, tmp_path, PYTHONHASHSEED=str(seed)) for seed in (1, 2)]
    outputs = [process.communicate(timeout=120) for process in racing]
    assert [process.returncode for process in racing] == [0, 0], outputs
    assert outputs[0] == outputs[1]
    assert outputs[0][1] == ""  # no bars, no warnings
    assert len(list((tmp_path / "corpora").iterdir())) == 1
    again = python_process(DIGEST, tmp_path, PYTHONHASHSEED="3").communicate(timeout=120)
    assert again == outputs[0]


# Files of the user


def test_a_single_file_is_cut_into_contiguous_parts(tmp_path):
    text = "".join(f"line {i} äöü\n" for i in range(1000))
    corpus = load(text_config(write(tmp_path, {"a.txt": text}) / "a.txt"))
    parts = [getattr(corpus, split).ids.tobytes() for split in SPLITS]
    assert b"".join(parts) == text.encode()
    assert [len(p) / len(text.encode()) for p in parts] == pytest.approx([0.85, 0.05, 0.1], abs=0.01)
    assert corpus.name == "a"
    assert corpus.test.names == ["a.txt (test)"]


def test_two_files_are_each_cut(tmp_path):
    write(tmp_path, {"a.txt": "a" * 1000, "b.txt": "b" * 3000})
    corpus = load(text_config(tmp_path))
    for split, share in zip(SPLITS, (0.85, 0.05, 0.1), strict=True):
        content = getattr(corpus, split).ids.tobytes()
        assert content.count(b"a") == round(1000 * share)
        assert content.count(b"b") == round(3000 * share)


def test_a_folder_is_split_by_file(tmp_path):
    files = {f"{i % 3}/{i}.txt": f"text {i} " * 20 for i in range(40)}
    corpus = load(text_config(write(tmp_path, files)))
    assert {k: v.decode() for k, v in all_texts(corpus).items()} == files
    assert [len(getattr(corpus, split)) for split in SPLITS] == [34, 2, 4]
    write(tmp_path, {"new.txt": "new"})
    larger = load(text_config(tmp_path))
    assert len(set(corpus.test.names) - set(larger.test.names)) <= 1
    assert larger.hash != corpus.hash


@pytest.mark.parametrize("validation", ["validation", "val"])
def test_subfolders_are_splits(tmp_path, validation):
    files = {
        "train/a.txt": "aa",
        "train/b/c.txt": "cc",
        f"{validation}/v.txt": "vv",
        "test/t.txt": "tt",
    }
    corpus = load(text_config(write(tmp_path, files | {"README.md": "not read"})))
    assert texts_of(corpus.train) == {"train/a.txt": b"aa", "train/b/c.txt": b"cc"}
    assert list(texts_of(corpus.validation).values()) == [b"vv"]
    assert texts_of(corpus.test) == {"test/t.txt": b"tt"}


def test_a_missing_split_is_cut_from_train(tmp_path):
    files = {f"train/{i}.txt": f"text {i}" for i in range(20)} | {"test/t.txt": "tt"}
    corpus = load(text_config(write(tmp_path, files), validation_fraction=0.2))
    assert [len(getattr(corpus, split)) for split in SPLITS] == [16, 4, 1]
    assert corpus.test.names == ["test/t.txt"]


def test_a_folder_named_test_alone_is_no_split(tmp_path):
    files = {f"src/{i}.py": f"source {i}" for i in range(9)} | {"test/t.py": "test"}
    assert len(all_texts(load(text_config(write(tmp_path, files))))) == 10


def test_what_is_held_out_is_not_trained_on(tmp_path):
    files = {
        "train/a.txt": "same",
        "train/b.txt": "own",
        "validation/v.txt": "val",
        "test/t.txt": "same",
    }
    corpus = load(text_config(write(tmp_path, files)))
    assert texts_of(corpus.train) == {"train/b.txt": b"own"}
    assert texts_of(corpus.test) == {"test/t.txt": b"same"}


def test_pattern_hidden_files_byte_order_mark_and_empty_files(tmp_path):
    files = {f"{i}.txt": f"text {i}" for i in range(4)}
    others = {".hidden.txt": "no", ".git/x.txt": "no", "x.bin": b"\xff", "empty.txt": ""}
    write(tmp_path, files | others | {"mark.txt": b"\xef\xbb\xbfmarked"})
    found = all_texts(load(text_config(tmp_path, pattern="*.txt")))
    assert found == {k: v.encode() for k, v in files.items()} | {"mark.txt": b"marked"}


def test_max_bytes_keeps_a_sample_of_whole_documents_but_the_last(tmp_path):
    files = {f"{i:03}.txt": f"{i:03}" * 30 for i in range(100)}
    corpus = load(text_config(write(tmp_path, files), max_bytes=400))
    for split in SPLITS:
        found = texts_of(getattr(corpus, split))
        assert sum(map(len, found.values())) == 400
        assert [len(text) for text in found.values()] == [90, 90, 90, 90, 40]
        assert all(files[name].encode().startswith(text) for name, text in found.items())
    assert max(corpus.train.names) > "050.txt"  # not the first files of the folder


def test_max_bytes_cuts_no_character_in_two(tmp_path):
    corpus = load(text_config(write(tmp_path, {f"{i}.txt": "ä" * (50 + i) for i in range(9)}), max_bytes=31))
    for split in SPLITS:
        assert list(texts_of(getattr(corpus, split)).values()) == [("ä" * 15).encode()]
        assert getattr(corpus, split).n_bytes == 30


def test_a_delimiter_stands_between_documents(tmp_path):
    stories = [f"  Story {i}.\n\nIt ends.  " for i in range(40)]
    config = text_config(write(tmp_path, {"a.txt": "\n<|end|>\n".join([*stories, "", "\n"])}), delimiter="<|end|>")
    corpus = load(config)
    assert sorted(all_texts(corpus).values()) == sorted(story.encode() for story in stories)
    assert [len(getattr(corpus, split)) for split in SPLITS] == [34, 2, 4]
    names = {f"a.txt[{i}]": story.encode() for i, story in enumerate(stories)}
    assert all_texts(corpus) == names
    assert load(text_config(tmp_path)).hash != corpus.hash
    with pytest.raises(UserError, match=r"data\.delimiter='##' stands between no two documents"):
        load(text_config(tmp_path, delimiter="##"))


def test_bytes_and_digest_are_those_of_the_text_and_kept(tmp_path):
    files = {f"{i}.txt": f"text {i} äöü" for i in range(30)} | {"again.txt": "text 3 äöü"}
    config = text_config(write(tmp_path, files))
    for corpus in (load(config), load(config)):
        for split in SPLITS:
            tokens = getattr(corpus, split)
            assert tokens.n_bytes == len(tokens.ids)
            assert tokens.bytes_per_token == 1.0
    assert len(corpus.digest) == 64
    assert tokens_of([3]).bytes_per_token is None
    write(tmp_path, {"3.txt": "TEXT"})
    assert load(config).digest != corpus.digest


@pytest.mark.parametrize(
    ("files", "path", "settings", "message"),
    [
        ({}, "nowhere", {}, r"data\.path=.*nowhere does not exist; give"),
        ({}, "", {}, r"no file in .* fits data\.pattern=\*"),
        ({"a.txt": "a"}, "", {"pattern": "*.md"}, r"fits data\.pattern=\*\.md"),
        ({"train/a.txt": "a", "test/.t": "t"}, "", {}, r"no file in .*test fits"),
        (
            {f"{i}.txt": "" for i in range(5)},
            "",
            {},
            r"the test split of the corpus is empty: 1 doc",
        ),
        ({"a.txt": ""}, "a.txt", {}, r"split of the corpus is empty"),
        (
            {"train/a.txt": "a", "test/a.txt": "a", "val/b": "b"},
            "",
            {},
            r"the train split .*is empty",
        ),
        (
            {"a.txt": "a", "b.txt": b"ab\xff"},
            "",
            {},
            r"b\.txt is not UTF-8 text \(byte 2\).*data\.pattern",
        ),
    ],
)
def test_text_that_cannot_be_read_is_refused_and_leaves_nothing(tmp_path, files, path, settings, message):
    (tmp_path / "data").mkdir()
    data = write(tmp_path / "data", files) / path
    with pytest.raises(UserError, match=message):
        load(text_config(data, **settings), tmp_path / "cache")
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.name != "corpora"]


def test_books_load_with_their_own_splits(shared_data, tmp_path):
    corpus = load(text_config(shared_data / "books"), tmp_path)
    assert corpus.name == "books"
    assert [len(getattr(corpus, split)) for split in SPLITS] == [12, 2, 3]
    assert corpus.test.lengths.min() > 400_000
    text = (shared_data / "books" / "test" / "frankenstein.txt").read_bytes()
    assert texts_of(corpus.test)["test/frankenstein.txt"] == text
    assert windows(corpus.test, 16_384, 30, 0).ids.shape == (30, 16_385)


# The cache


def test_a_cached_corpus_is_neither_tokenised_nor_needs_datasets(tmp_path, monkeypatch):
    config = text_config(write(tmp_path, {f"{i}.txt": f"text {i}" for i in range(5)}))
    first = load(config)
    monkeypatch.setattr(corpus_module, "_build", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert load(config).hash == first.hash
    assert all_texts(load(config)) == all_texts(first)
    with pytest.raises(TypeError):  # other settings are another corpus
        load(text_config(tmp_path, max_bytes=3))


def test_changed_text_is_read_anew(tmp_path):
    config = text_config(write(tmp_path, {f"{i}.txt": f"text {i}" for i in range(5)}))
    first = load(config)
    stat = (tmp_path / "1.txt").stat()
    write(tmp_path, {"1.txt": "TEXT 1"})
    os.utime(tmp_path / "1.txt", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = load(config)
    assert second.hash != first.hash
    assert all_texts(second)["1.txt"] == b"TEXT 1"


def test_the_hash_tells_the_tokens_not_where_they_came_from(tmp_path):
    files = {f"{i}.txt": f"text {i}" for i in range(5)}
    one, other = (load(text_config(write(tmp_path / name, files))) for name in ("one", "other"))
    assert one.hash == other.hash
    assert (one.name, other.name) == ("one", "other")


KILLED = """
import os, signal, sys
from pathlib import Path
from pezoo.data import DataConfig, corpus, load
def write(folder, name, *args, done=corpus._write):
    result = done(folder, name, *args)
    if name == "validation":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
corpus._write = write
load(DataConfig("text", path=sys.argv[1]), Path(sys.argv[2]))
"""


def test_a_killed_build_leaves_nothing_that_is_read(tmp_path):
    data = write(tmp_path / "data", {f"{i}.txt": f"text {i}" for i in range(5)})
    cache = tmp_path / "cache"
    process = python_process(KILLED, data, cache)
    process.communicate(timeout=120)
    assert process.returncode == -9
    (left,) = (cache / "corpora").iterdir()
    assert left.name.startswith(".building-")
    os.utime(left, (0, 0))  # as if long ago
    corpus = load(text_config(data), cache)
    assert len(all_texts(corpus)) == 5
    assert not left.exists()


def test_a_build_that_comes_second_yields(tmp_path, monkeypatch):
    data = write(tmp_path / "data", {f"{i}.txt": f"text {i}" for i in range(5)})
    first = load(text_config(data), tmp_path)
    monkeypatch.setattr(corpus_module, "_facts", lambda folder: None)
    assert load(text_config(data), tmp_path).hash == first.hash
    assert len(list((tmp_path / "corpora").iterdir())) == 1


@pytest.mark.parametrize("way", ["empty", "half", "flipped", "deleted", "a folder"])
def test_a_damaged_cache_is_built_anew_and_says_so(tmp_path, way, caplog):
    config = text_config(write(tmp_path / "data", {f"{i}.txt": f"text {i}" for i in range(9)}))
    first = load(config, tmp_path)
    [folder] = (tmp_path / "corpora").iterdir()
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 10
    for name in names:
        damage(folder / name, way)
        caplog.clear()
        again = load(config, tmp_path)
        assert (again.hash, again.digest, all_texts(again)) == (first.hash, first.digest, all_texts(first))
        [message] = [record.getMessage() for record in caplog.records]
        assert message.startswith(f"the corpus in {folder} is damaged ({name} ")
        assert sorted(path.name for path in folder.iterdir()) == names
    assert [path.name for path in (tmp_path / "corpora").iterdir()] == [folder.name]


def test_a_file_in_place_of_a_cached_corpus_is_replaced(tmp_path):
    config = text_config(write(tmp_path / "data", {f"{i}.txt": f"text {i}" for i in range(5)}))
    first = load(config, tmp_path)
    [folder] = (tmp_path / "corpora").iterdir()
    shutil.rmtree(folder)
    folder.touch()
    assert all_texts(load(config, tmp_path)) == all_texts(first)


FULL = """
import resource, sys
from pathlib import Path
from pezoo.data import DataConfig, load
from pezoo.errors import UserError
config, cache = DataConfig(**eval(sys.argv[1])), Path(sys.argv[2])
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, -1))
    try:
        load(config, cache)
    except UserError as error:
        print(error)
"""


@pytest.mark.parametrize("limits", [(10, 100, 1000, 5000)])
def test_a_full_disk_names_the_folder_and_what_to_do(tmp_path, limits):
    """A limit on the size of files stands for a disk that is full."""
    data = write(tmp_path / "data", {f"{i}.txt": f"text {i} " * 300 for i in range(9)})
    config = {"corpus": "text", "path": str(data)}
    process = python_process(FULL, config, tmp_path / "cache", *limits)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    folder = tmp_path / "cache" / "corpora"
    assert said.splitlines() == [
        f"there is no room for the corpus in {folder} (File too large); make some, or set the environment variable "
        "PEZOO_CACHE to a folder on another disk."
    ] * len(limits)
    assert not list(folder.iterdir())


def test_a_file_where_the_cache_should_be_is_refused(tmp_path, monkeypatch):
    data = write(tmp_path / "data", {"a.txt": "text" * 100})
    write(tmp_path, {"cache": "a file"})
    monkeypatch.setenv("PEZOO_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"cache cannot be written|corpora cannot be written.*PEZOO_CACHE"):
        load(text_config(data))


def test_no_permission_to_write_the_cache_is_refused(tmp_path):
    data = write(tmp_path / "data", {"a.txt": "text" * 100})
    (tmp_path / "cache").mkdir(mode=0o500)
    if os.access(tmp_path / "cache", os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(UserError, match=r"cannot be written.*Permission"):
        load(text_config(data), tmp_path / "cache")


# The hub


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """A small data set in a folder, which the hub's loader reads like one of the hub."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    rows = [{"text": f"document {i} of the training " * 5, "body": f"body {i}", "n": i} for i in range(30)]
    folder = tmp_path / "small"
    write(folder, {"train.jsonl": "\n".join(map(json.dumps, rows))})
    tests = [{"text": None, "body": "b", "n": 0}, {"text": "a test", "body": "b", "n": 1}]
    write(folder, {"test.jsonl": "\n".join(map(json.dumps, tests))})
    return folder


def test_a_data_set_of_the_hub(hub):
    corpus = load(DataConfig("hub", name=str(hub)))
    assert texts_of(corpus.test) == {"test[1]": b"a test"}
    assert [len(getattr(corpus, split)) for split in SPLITS] == [29, 1, 1]
    for name, text in texts_of(corpus.train).items():
        i = int(name.removeprefix("train[").removesuffix("]"))
        assert text.decode() == f"document {i} of the training " * 5


def test_another_column_of_a_parquet_data_set(hub):
    import datasets

    datasets.Dataset.from_dict({"body": [f"body {i}" for i in range(30)]}).to_parquet(hub / "p" / "a.parquet")
    corpus = load(DataConfig("hub", name=str(hub / "p"), text_column="body"))
    assert sorted(all_texts(corpus).values()) == sorted(f"body {i}".encode() for i in range(30))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"text_column": "txt"},
            r"data\.text_column=txt is no column.*Did you mean 'text'\?.*text, body",
        ),
        ({"text_column": "n"}, r"data\.text_column=n is no column of text"),
        ({"subset": "large"}, r"data\.subset=large cannot be loaded: .*large"),
        ({"name": "nobody/nothing"}, r"data\.name=nobody/nothing cannot be loaded: .*network"),
        ({"name": "/nowhere/at/all"}, r"data\.name=/nowhere/at/all cannot be loaded"),
    ],
)
def test_a_data_set_that_cannot_be_loaded_is_refused(hub, settings, message):
    with pytest.raises(UserError, match=message):
        load(DataConfig("hub", **{"name": str(hub)} | settings))


def test_a_broken_data_set_says_what_is_broken(hub):
    write(hub, {"train.jsonl": '{"text": "a"}\n{"text": '})
    with pytest.raises(UserError, match=r"cannot be loaded: .*JSON"):
        load(DataConfig("hub", name=str(hub)))


def test_columns_of_lists_and_structs_stand_beside_the_text(hub):
    row = {"tags": ["a", "b"], "of": {"author": "x", "pages": [1, 2]}}
    rows = [{"text": f"text {i} " * 9} | row for i in range(20)]
    write(hub, {"train.jsonl": "\n".join(map(json.dumps, rows)), "test.jsonl": json.dumps(rows[0] | {"text": "b"})})
    for max_bytes in (None, 10**6):
        corpus = load(DataConfig("hub", name=str(hub), max_bytes=max_bytes))
        assert len(corpus.train) == 19
        with pytest.raises(UserError, match=r"data\.text_column=tags is no column of text.*text: text\."):
            load(DataConfig("hub", name=str(hub), text_column="tags", max_bytes=max_bytes))


def test_a_loading_script_is_refused_in_a_sentence(tmp_path):
    write(tmp_path, {"speech/speech.py": "raise SystemExit('this was run')"})
    with pytest.raises(UserError, match=r"speech is a loading script.*not run\..*data\.revision=refs/convert/parquet"):
        load(DataConfig("hub", name=str(tmp_path / "speech")))


def test_several_configurations_are_named(hub):
    folder = hub.parent / "several"
    configs = "".join(f"- config_name: {n}\n  data_files: {n}.jsonl\n" for n in ("alpha", "beta"))
    rows = {n: "\n".join(json.dumps({"text": f"{n} {i}"}) for i in range(20)) for n in ("alpha", "beta")}
    write(folder, {f"{n}.jsonl": text for n, text in rows.items()} | {"README.md": f"---\nconfigs:\n{configs}---\n"})
    with pytest.raises(UserError, match=r"several configurations: add data\.subset=NAME, one of alpha, beta\.$"):
        load(DataConfig("hub", name=str(folder)))
    found = all_texts(load(DataConfig("hub", name=str(folder), subset="beta")))
    assert all(text.startswith(b"beta") for text in found.values())


WIKI = r"^ = [^=].* = $"
"""Where an article of WikiText begins."""


def test_paragraphs_are_joined_into_documents(hub):
    article = ["", " = Title {} = \n", "", " A paragraph , \n", " = = Section = = \n", "", " another = 3 . \n"]
    rows = [{"text": line.format(i)} for i in range(30) for line in article]
    write(hub, {"train.jsonl": "\n".join(map(json.dumps, rows)), "test.jsonl": "\n".join(map(json.dumps, rows[:7]))})
    whole = "".join(line or "\n" for line in article[1:])
    corpus = load(DataConfig("hub", name=str(hub), document_start=WIKI))
    # The blank row before the first title is a document of its own, the others end the article before them.
    expected = {"test[0]": "\n", "test[1]": whole.format(0)}
    assert texts_of(corpus.test) == {name: text.encode() for name, text in expected.items()}
    found = texts_of(corpus.train)
    assert len(found) + len(corpus.validation) == 30
    for name, text in found.items():
        i = int(name.removeprefix("train[").removesuffix("]"))
        assert text.decode() == whole.format(i // 7) + "\n" * (i // 7 < 29)
    assert load(DataConfig("hub", name=str(hub))).hash != corpus.hash


def test_recipes_join_the_paragraphs_of_wikitext():
    for path in (Path(__file__).parents[1] / "experiments").glob("*.yaml"):
        for size in OmegaConf.to_container(OmegaConf.load(path)).get("sizes", {}).values():
            data = size.get("data", {})
            assert "wikitext" not in data.get("name", "") or data["document_start"] == WIKI, path


def test_a_delimiter_cuts_rows(hub):
    rows = [{"text": f"one {i}<end>\ntwo {i}\n"} for i in range(20)]
    write(hub, {"train.jsonl": "\n".join(map(json.dumps, rows)), "test.jsonl": json.dumps({"text": "a<end>b"})})
    corpus = load(DataConfig("hub", name=str(hub), delimiter="<end>"))
    assert sorted(texts_of(corpus.test).items()) == [("test[0][0]", b"a"), ("test[0][1]", b"b")]
    assert len(corpus.train) + len(corpus.validation) == 40


def test_with_max_bytes_no_more_of_the_hub_is_read(tmp_path, monkeypatch):
    """The beginning of the data set alone: the file behind it is not opened. What is on disk is the same beginning."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    rows = [{"text": f"{i:03} " * 25} for i in range(200)]
    write(tmp_path / "set", {"train-0.jsonl": "\n".join(map(json.dumps, rows)), "train-1.jsonl": "this is no JSON"})
    config = DataConfig("hub", name=str(tmp_path / "set"), max_bytes=5000)
    with pytest.raises(UserError, match="cannot be loaded"):
        load(DataConfig("hub", name=str(tmp_path / "set")))
    corpus = load(config)
    rows_read = [int(name[6:-1]) for split in SPLITS for name in getattr(corpus, split).names]
    assert 50 <= max(rows_read) < 59  # 85% of 5,900 bytes are trained on
    assert corpus.train.n_bytes == 5000
    write(tmp_path / "set", {"train-1.jsonl": json.dumps({"text": "sound"})})
    assert len(all_texts(load(DataConfig("hub", name=str(tmp_path / "set"))))) == 201  # is on disk now
    assert load(config).hash == corpus.hash


@pytest.fixture
def tokenizer(tmp_path) -> Path:
    """A small tokenizer in a folder."""
    pytest.importorskip("transformers", reason="needs transformers, an optional dependency")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(models.BPE(unk_token="<unk>"))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<unk>", "<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    built.train_from_iterator(["document of the training, a test " * 20, "another text " * 9], trainer)
    built.decoder = decoders.ByteLevel()
    built.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(
        tokenizer_object=built, bos_token="<s>", unk_token="<unk>", model_max_length=8
    ).save_pretrained(folder)
    return folder


def test_a_tokenizer_by_name(hub, tokenizer):
    from transformers import AutoTokenizer

    config = DataConfig("hub", name=str(hub), tokenizer=str(tokenizer))
    corpus = load(config)
    theirs = AutoTokenizer.from_pretrained(tokenizer)
    assert corpus.vocab_size == len(theirs) > 256
    assert corpus.tokenizer == str(tokenizer)
    assert corpus.bos == theirs.bos_token_id == 1
    assert corpus.train.ids.dtype == np.uint16
    assert theirs.decode(corpus.test.ids.tolist()) == "a test"
    first = corpus.train.ids[: corpus.train.offsets[1]]
    row = int(corpus.train.names[0].removeprefix("train[").removesuffix("]"))
    assert theirs.decode(first.tolist()) == f"document {row} of the training " * 5
    assert 1 not in corpus.train.ids
    assert load(config).hash == corpus.hash
    assert load(DataConfig("hub", name=str(hub))).hash != corpus.hash


def unigram(texts, special):
    """A tokenizer whose vocabulary of words holds its marks, as that of T5 does."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    built = Tokenizer(models.Unigram())
    built.pre_tokenizer, built.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)
    built.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=built, bos_token="<s>", unk_token="<unk>")


def test_no_id_is_special_whatever_a_text_says(tmp_path, tokenizer):
    text = "a text <s> of <unk> marks</s> <s>"
    write(tmp_path / "data", {f"{i}.txt": f"{text} {i}" for i in range(20)})
    corpus = load(text_config(tmp_path / "data", tokenizer=str(tokenizer)))
    assert all(corpus.bos not in getattr(corpus, split).ids for split in SPLITS)
    words = unigram([f"{text} < > / s un k " * 20], ["<unk>", "<s>", "</s>"])
    assert 1 in words(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    (ids,) = Encoder(words, np.dtype("<u2"))([text])
    assert not np.isin(ids, [1, 2]).any()
    assert "".join(words.decode(ids.tolist()).split()) == "".join(text.split())
    assert np.array_equal(np.concatenate(list(Encoder(words, np.dtype("<u2"), 9, 40)._pieces(text, print))), ids)


PROSE = "".join(f"Line {i}: the {'quick ' * (i % 5)}text of äöü, document {i * i} 中文字 🙂🙂!\n\n" for i in range(400))


@pytest.mark.parametrize("kind", ["byte-level", "unigram", "python"])
def test_a_long_text_is_encoded_in_pieces_to_the_same_ids(kind, tokenizer):
    from transformers import AutoTokenizer, ByT5Tokenizer

    if kind == "unigram":
        loaded = unigram([PROSE], ["<unk>", "<s>"])
    else:
        loaded = AutoTokenizer.from_pretrained(tokenizer) if kind == "byte-level" else ByT5Tokenizer()
    given, longest = [], 0

    def watched(texts, **options):
        nonlocal longest
        longest = max(longest, *map(len, texts))
        return loaded(texts, **options)

    encoder = Encoder(loaded, np.dtype("<u2"), piece=700, margin=200)
    (whole,) = Encoder(loaded, np.dtype("<u2"))([PROSE])
    encoder.tokenizer = type("Watched", (), {"__call__": staticmethod(watched), "is_fast": loaded.is_fast})()
    found, short = encoder([PROSE, "the text"], given.append)
    assert found.dtype == np.uint16
    assert np.array_equal(found, whole)
    assert loaded.decode(short.tolist()) == "the text"
    assert longest <= 700 + 2 * 200  # memory is that of a piece
    assert sum(given) == len(PROSE.encode()) + 8
    assert len(given) > len(PROSE) // 800  # the bar moves


def test_pieces_that_never_agree_are_joined_where_they_meet():
    """A tokenizer that counts from the beginning of what it is given."""

    class Counting:
        is_fast, added_tokens_decoder, unk_token_id, bos_token_id = True, {}, None, None

        def __call__(self, texts, **options):
            spans = [[(i, min(i + 3, len(text))) for i in range(0, len(text), 3)] for text in texts]
            encodings = [type("Encoding", (), {"offsets": span})() for span in spans]
            ids = [[i % 7 for i in range(len(span))] for span in spans]
            return type("Batch", (dict,), {"encodings": encodings})(input_ids=ids)

    (ids,) = Encoder(Counting(), np.dtype("<u2"), piece=100, margin=31)(["x" * 1000])
    assert abs(len(ids) - 334) <= 10


def test_bits_per_byte_are_comparable_between_tokenizers(hub, tokenizer):
    ours, theirs = (load(DataConfig("hub", name=str(hub), tokenizer=name)) for name in (None, str(tokenizer)))
    assert theirs.digest == ours.digest
    assert theirs.hash != ours.hash
    for split in SPLITS:
        one, other = getattr(ours, split), getattr(theirs, split)
        assert other.n_bytes == one.n_bytes == len(one.ids)
        assert other.bytes_per_token == len(one.ids) / len(other.ids) > 1


def test_a_tokenizer_that_has_changed_is_another(tmp_path, tokenizer):
    write(tmp_path / "data", {f"{i}.txt": f"a text {i}" for i in range(5)})
    config = text_config(tmp_path / "data", tokenizer=str(tokenizer))
    first = load(config)
    path = tokenizer / "tokenizer.json"
    facts = json.loads(path.read_text("utf-8"))
    facts["model"]["merges"] = facts["model"]["merges"][:1]
    path.write_text(json.dumps(facts), "utf-8")
    assert load(config).hash != first.hash


def test_a_tokenizer_that_is_not_there_is_refused(tmp_path, tokenizer):
    with pytest.raises(UserError, match=r"data\.tokenizer=nobody/none cannot be loaded: .*bytes"):
        load(DataConfig(tokenizer="nobody/none"))
    with pytest.raises(UserError, match=r"data\.tokenizer=.* cannot be loaded"):
        load(DataConfig(tokenizer=str(tmp_path)))


def test_a_tokenizer_that_brings_code_is_refused(tmp_path, tokenizer, monkeypatch):
    """transformers would ask whether to run it."""
    ran = tmp_path / "ran"
    code = f"import pathlib; from transformers import PreTrainedTokenizer; pathlib.Path({str(ran)!r}).touch()\n"
    (tokenizer / "mine.py").write_text(code + "class Mine(PreTrainedTokenizer): pass\n")
    path = tokenizer / "tokenizer_config.json"
    facts = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["mine.Mine", None]}}
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    with pytest.raises(UserError, match=r"data\.tokenizer=.* cannot be loaded"):
        load(DataConfig(tokenizer=str(tokenizer)))
    assert not ran.exists()


def test_no_transformers_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"data\.tokenizer=gpt2 needs the package transformers.*pip"):
        load(DataConfig(tokenizer="gpt2"))


# Crops


def test_crops_are_a_function_of_seed_and_step():
    tokens = tokens_of([300, 200])
    torch.manual_seed(0)
    batch = crops(tokens, 16, 8, 5, 1)
    torch.manual_seed(1)
    np.random.default_rng(1).random()
    assert batch.shape == (8, 17)
    assert batch.dtype == torch.int64
    assert torch.equal(crops(tokens_of([300, 200]), 16, 8, 5, 1), batch)
    assert torch.equal(crops(tokens, 16, 3, 5, 1), batch[:3])
    assert not torch.equal(crops(tokens, 16, 8, 6, 1), batch)
    assert not torch.equal(crops(tokens, 16, 8, 5, 2), batch)
    assert not torch.equal(crops(tokens, 16, 8, 1, 5), batch)


def test_crops_are_the_same_in_every_version():
    starts = crops(tokens_of([300, 50, 200]), 64, 6, 7, 3)[:, 0]
    assert starts.tolist() == [196, 8, 27, 203, 22, 44]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 40), st.integers(0, 99))
def test_crops_lie_inside_documents(lengths, length, step):
    tokens = tokens_of(lengths)
    if max(lengths) <= length:
        return
    batch = crops(tokens, length, 5, step, 0)
    assert (batch.diff(dim=1) == 1).all()
    document = np.searchsorted(tokens.offsets, batch.numpy(), side="right")
    assert (document == document[:, :1]).all()


def test_every_place_is_equally_likely():
    tokens = tokens_of([20, 8, 31])  # 10 + 0 + 21 places for 11 tokens
    starts = torch.cat([crops(tokens, 10, 100, step, 0)[:, 0] for step in range(310)])
    counts = np.bincount(starts, minlength=59)
    places = [*range(10), *range(28, 49)]
    assert counts.sum() == counts[places].sum() == 31_000
    expected = 1000
    chi_squared = ((counts[places] - expected) ** 2 / expected).sum()
    assert chi_squared < 60  # 30 degrees of freedom: p = 0.001


def test_crops_run_across_documents_that_are_all_short(caplog):
    tokens = tokens_of([10] * 10)
    batch = crops(tokens, 30, 64, 0, 0)
    assert (batch.diff(dim=1) == 1).all()
    assert batch.min() >= 0
    assert batch.max() <= 99
    assert "crops run across documents" in caplog.text


def test_text_that_is_passed_over_is_told(caplog):
    crops(tokens_of([40, *[10] * 10]), 30, 4, 0, 0)
    crops(tokens_of([400, *[10] * 10]), 30, 4, 0, 0)
    assert [record.getMessage() for record in caplog.records] == [
        "only 29% of the text is in documents longer than 30 tokens; no other is read"
    ]


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (None, "the corpus has 9 tokens to crop, too few for sequences of 9: shorten train.length"),
        ("train", "the train split of the corpus has 9 tokens to crop, too few for sequences of 9: shorten"),
        ("validation", "the validation split of the corpus has 9 tokens to crop, .*: raise data.validation_fraction"),
    ],
)
def test_a_split_that_is_too_short_is_named(split, said):
    with pytest.raises(UserError, match=said):
        crops(dataclasses.replace(tokens_of([4, 5]), split=split), 9, 1, 0, 0)


def test_a_corpus_names_its_splits(tmp_path, caplog):
    texts = {f"{i}.txt": f"{i:03} some words on it and more of them" for i in range(20)}
    corpus = load(text_config(write(tmp_path, texts)))
    assert [getattr(corpus, name).split for name in ("train", "validation", "test")] == ["train", "validation", "test"]
    with pytest.raises(UserError, match="the validation split of the corpus has 37 tokens"):
        crops(corpus.validation, 60, 1, 0, 0)
    crops(corpus.train, 60, 1, 0, 0)
    assert caplog.records[-1].getMessage().startswith("no document is longer")


def test_a_plan_refuses_a_validation_that_is_too_short(tmp_path):
    from pezoo.study.plan import make_plan
    from pezoo.study.reading import load_recipe

    texts = {"train/a.txt": "some words " * 90, "test/a.txt": "other words " * 90, "validation/a.txt": "few words"}
    keys = {"study": "a", "device": "cpu", "schemes": ["rope"], "test": {"lengths": ["1x"]}}
    keys["data"] = {"corpus": "text", "path": str(write(tmp_path, texts))}
    make_plan(load_recipe(keys | {"train": {"length": 8}}))
    with pytest.raises(UserError, match="the validation split of the corpus has 9 tokens to crop"):
        make_plan(load_recipe(keys | {"train": {"length": 9}}))


def test_shorter_crops_come_from_the_documents_of_the_longest():
    tokens = tokens_of([20, 8, 31])
    for length in (3, 9, 10):
        starts = torch.cat([crops(tokens, length, 100, step, 0, longest=10)[:, 0] for step in range(200)])
        places = [*range(20 - length), *range(28, 59 - length)]
        counts = np.bincount(starts, minlength=59)
        assert counts.sum() == counts[places].sum() == 20_000
        expected = 20_000 / len(places)
        assert ((counts[places] - expected) ** 2 / expected).sum() < 90  # at most 45 degrees of freedom: p = 0.0001
    assert torch.equal(crops(tokens, 10, 8, 3, 1, longest=10), crops(tokens, 10, 8, 3, 1))


def test_drawn_lengths_find_the_starts_once(caplog):
    tokens = tokens_of([40] * 3 + [10] * 50)
    tokens_module._starts.cache_clear()
    for step, length in enumerate(range(1, 31)):
        batch = tokens.batch(step, 4, length, seed=0, longest=30)
        assert batch.tokens.shape == (4, length)
        assert batch.targets.max() < 120
    assert tokens_module._starts.cache_info().misses == 1
    assert len(caplog.records) == 1


def test_shorter_crops_run_across_documents_where_the_longest_do():
    batch = crops(tokens_of([10] * 10), 5, 64, 0, 0, longest=30)
    assert (batch.diff(dim=1) == 1).all()
    assert (batch[:, 0] // 10 != batch[:, -1] // 10).any()


def test_too_little_text_to_crop_is_refused():
    with pytest.raises(UserError, match=r"the corpus has 60 tokens.*train\.length"):
        crops(tokens_of([30, 30]), 60, 4, 0, 0)


def test_ids_beyond_sixteen_bits_survive():
    tokens = tokens_of([70_000], np.uint32)
    assert max(crops(tokens, 8, 64, step, 0).max() for step in range(20)) > 65_536


# Windows


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    length=st.integers(1, 30),
    count=st.integers(1, 40),
    seed=st.integers(0, 99),
)
def test_windows_are_fixed_fair_and_distinct(lengths, length, count, seed):
    tokens, sizes = tokens_of(lengths), np.array(lengths)
    if sizes.max() <= length:
        with pytest.raises(UserError, match=r"no test document is longer"):
            windows(tokens, length, count, seed)
        return
    cut = windows(tokens, length, count, seed)
    starts = tokens.offsets[cut.document] + cut.offset
    assert cut.ids.dtype == torch.int64
    assert cut.document.dtype == cut.offset.dtype == np.int64
    # inside their documents, where they say
    assert np.array_equal(cut.ids.numpy(), starts[:, None] + np.arange(length + 1))
    assert (cut.offset >= 0).all()
    assert (cut.offset + length + 1 <= sizes[cut.document]).all()
    # distinct, and as many as asked for
    assert len(set(starts)) == len(starts)
    places = np.maximum(sizes - length, 0)
    assert len(starts) == min(count, places.sum())
    # disjoint wherever all of them can be, and in every document that was asked for no more
    counts = np.bincount(cut.document, minlength=len(sizes))
    room = sizes // (length + 1)
    if count <= room.sum():
        assert (counts <= room).all()
    for i in np.flatnonzero(counts <= room):
        assert (np.diff(cut.offset[cut.document == i]) > length).all()
    # fair: while nothing must overlap, who gives fewer than another has no room for more
    if count <= room.sum():
        assert (counts[counts < room] >= counts.max() - 1).all()
    again = windows(tokens_of(lengths), length, count, seed)
    assert torch.equal(again.ids, cut.ids)


def test_windows_spread_over_documents():
    cut = windows(tokens_of([5000, 100, 90, 20]), 30, 9, 0)
    assert np.bincount(cut.document, minlength=4).tolist() == [4, 3, 2, 0]


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=8),
    length=st.integers(1, 30),
    count=st.integers(1, 90),
)
def test_overlap_is_how_often_a_token_is_read(lengths, length, count):
    tokens = tokens_of(lengths)
    if max(lengths) <= length:
        return
    cut = windows(tokens, length, count, 0)
    assert cut.overlap == pytest.approx(cut.ids.numel() / len(cut.ids.unique()))
    mixed = Windows(cut.ids.flip(0), cut.document[::-1], cut.offset[::-1])
    assert mixed.overlap == cut.overlap


def test_other_seeds_cut_other_windows():
    tokens = tokens_of([5000, 3000, 2000])
    one, other = windows(tokens, 100, 12, 0), windows(tokens, 100, 12, 1)
    assert not torch.equal(one.ids, other.ids)


def test_windows_are_the_same_in_every_version():
    cut = windows(tokens_of([500, 300, 40]), 64, 5, 3)
    assert list(zip(cut.document, cut.offset, strict=True)) == [
        (0, 204),
        (0, 292),
        (1, 5),
        (1, 106),
        (1, 222),
    ]


def test_fewer_windows_than_asked_are_told(caplog):
    assert len(windows(tokens_of([12, 5]), 10, 8, 0).ids) == 2
    assert "only 2 test windows of 10 tokens exist, not 8" in caplog.text


def test_no_document_long_enough_names_the_longest():
    with pytest.raises(UserError, match=r"longer than 500 tokens: .*document 1, has 500\. Keep test\.l"):
        windows(tokens_of([300, 500]), 500, 4, 0)
