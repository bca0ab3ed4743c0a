"""Corpora, their cache, training crops and test windows."""

import json
import os
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

from pezoo.data import Corpus, DataConfig, Tokens, crops, load, windows
from pezoo.data import corpus as corpus_module
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
    complete = corpus_module._complete
    answers = iter([False])
    monkeypatch.setattr(corpus_module, "_complete", lambda f: next(answers, complete(f)))
    assert load(text_config(data), tmp_path).hash == first.hash
    assert len(list((tmp_path / "corpora").iterdir())) == 1


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
