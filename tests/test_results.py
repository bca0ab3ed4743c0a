"""The results schema: what is written is read back, and nothing else is read."""

import dataclasses
import json
import math
import os
import re
import typing
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pezoo import results
from pezoo.errors import UserError
from pezoo.results import Result, losses
from pezoo.results.losses import Losses
from pezoo.study.reading import load_recipe

RESULT = Result(
    study="quickstart",
    cell="0f3a",
    label="rope+pi, 200 steps @ 8x",
    scheme="rope+pi",
    encoding="rope",
    extensions=("pi",),
    family="relative",
    task="language_modelling",
    corpus="python",
    protocol="prefix",
    metric="perplexity",
    value=5.25,
    n_tokens=4096,
    n_documents=7,
    train_length=64,
    test_length=512,
    length_ratio=8,
    scale_factor=8.0,
    seed=0,
    learning_rate=2e-3,
    steps=800,
    finetune_steps=200,
    finetune_length=512,
    params=212_736,
    train_seconds=41.5,
    eval_seconds=0.5,
    tokens_per_second=4e4,
    peak_memory_bytes=None,
    threads=1,
    config_hash="77ab",
    versions={"torch": "2.13.0"},
    device="cpu",
    date="2030-01-01T00:00:00+00:00",
)
UNDEFINED = dataclasses.replace(RESULT, value=math.nan, status="undefined", reason="the table holds 64 positions")
LOSSES = Losses(
    loss_sum=[[2.0, 8.0, 0.0], [4.0, 8.0, 0.0]],
    tokens=[[1, 4, 0], [1, 4, 0]],
    edges=[0, 1, 5, 9],
    documents=["a.py", "bé.py"],
    test_length=9,
    protocol="prefix",
)


def change(path, **changes):
    """Rewrite the second of two lines with some keys changed; None as key removes it."""
    results.write(path, [RESULT, RESULT])
    lines = path.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | changes)
    path.write_text("\n".join(lines) + "\n")


def test_what_is_written_is_read_back(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    results.write(path, [RESULT, UNDEFINED])
    assert results.read(path) == [RESULT, UNDEFINED]


@given(value=st.floats(allow_subnormal=False), ratio=st.integers(1, 64), label=st.text())
def test_any_number_and_any_label_survive(tmp_path_factory, value, ratio, label):
    finite = math.isfinite(value)
    status = {} if finite else {"status": "diverged", "reason": "the loss is not finite"}
    made = dataclasses.replace(RESULT, value=value, label=label, test_length=64 * ratio, length_ratio=ratio, **status)
    path = tmp_path_factory.mktemp("results") / "results.jsonl"
    results.write(path, [made])
    (found,) = results.read(path)
    assert found == made
    assert found.value == (value if finite else None)


def test_a_file_holds_the_whole_schema_in_plain_json(tmp_path):
    results.write(tmp_path / "r", [UNDEFINED])
    line = (tmp_path / "r").read_text()
    found = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} in the file"))
    assert list(found) == [field.name for field in dataclasses.fields(Result)]
    assert found["value"] is None
    assert line.endswith("\n")


def test_the_schema_has_the_promised_fields():
    promised = (
        "study cell scheme encoding extensions family task corpus protocol stride bos depth metric "
        "value n_tokens n_documents train_length test_length length_ratio scale_factor seed "
        "learning_rate steps finetune_steps finetune_length params train_seconds eval_seconds "
        "tokens_per_second peak_memory_bytes threads config_hash versions device date status "
        "reason label part corpus_digest tokenizer window_overlap test_precision "
        "machine train_versions train_device train_machine trained_params rate_is train_cpu_seconds"
    )
    assert {field.name for field in dataclasses.fields(Result)} == set(promised.split())
    assert typing.get_args(results.Status) == (
        "ok", "undefined", "diverged", "out_of_memory", "failed",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valeu": 1.0}, "unknown key 'valeu'. Did you mean 'value'?"),
        ({"seed": "0"}, "'seed' must be a whole number, got '0'"),
        ({"seed": 0.5}, "'seed' must be a whole number, got 0.5"),
        ({"seed": True}, "'seed' must be a whole number, got True"),
        ({"bos": 1}, "'bos' must be true or false, got 1"),
        ({"learning_rate": None}, "'learning_rate' must be a finite number, got None"),
        ({"finetune_length": "512"}, "must be a whole number or null, got '512'"),
        ({"extensions": "pi"}, "'extensions' must be a list of strings, got 'pi'"),
        ({"versions": {"torch": 2}}, "'versions' must be a mapping of strings"),
        ({"status": "lost"}, "'status' must be one of ok, undefined, diverged, out_of_memory, fa"),
        ({"value": None}, "'value' must be null exactly where 'status' is not 'ok'"),
        ({"value": math.nan}, "NaN is not a JSON number"),
        ({"value": math.inf}, "Infinity is not a JSON number"),
        ({"value": None, "status": "failed"}, "'reason' must say why the status is 'failed'"),
        ({"reason": "?"}, "'reason' must say why the status is 'ok', and only then"),
        ({"length_ratio": 4.0}, "'length_ratio' must be test_length / train_length = 8, got 4"),
        ({"test_length": 0}, "'train_length' and 'test_length' must be at least 1"),
    ],
)
def test_a_line_that_breaks_the_schema_is_refused_by_its_number(tmp_path, changes, message):
    path = tmp_path / "results.jsonl"
    change(path, **changes)
    with pytest.raises(UserError, match=re.escape(f"{path}, line 2: ") + ".*" + re.escape(message)):
        results.read(path)


def test_files_from_before_a_key_was_there_are_read(tmp_path):
    """With its default, which says that it is not known."""
    path = tmp_path / "results.jsonl"
    results.write(path, [RESULT])
    added = {"corpus_digest": "", "tokenizer": "", "window_overlap": None, "test_precision": "float32"}
    added |= {"machine": "", "train_versions": {}, "train_device": "", "train_machine": ""}
    added |= {"trained_params": None, "rate_is": "", "train_cpu_seconds": None}
    line = {key: value for key, value in json.loads(path.read_text()).items() if key not in added}
    path.write_text(json.dumps(line))
    [found] = results.read(path)
    assert found == RESULT
    assert {key: getattr(found, key) for key in added} == added == {key: getattr(RESULT, key) for key in results._ADDED}


@pytest.mark.parametrize("key", [f.name for f in dataclasses.fields(Result) if f.name not in results._ADDED])
def test_every_key_must_be_there(tmp_path, key):
    path = tmp_path / "results.jsonl"
    results.write(path, [RESULT])
    line = json.loads(path.read_text())
    del line[key]
    path.write_text(json.dumps(line))
    with pytest.raises(UserError, match=f"line 1: missing key '{key}'"):
        results.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'{"study": "qui', "not a whole line of JSON"),
        (b"\n", "not a whole line of JSON"),
        (b"\xff\n", "not a whole line of JSON"),
        (b"[1]\n", "must be a JSON object, got list"),
    ],
)
def test_a_line_that_is_no_result_is_refused(tmp_path, text, message):
    path = tmp_path / "results.jsonl"
    results.write(path, [RESULT])
    path.write_bytes(path.read_bytes() + text)
    with pytest.raises(UserError, match=f"line 2: {message}"):
        results.read(path)


def test_a_missing_file_is_the_users_mistake(tmp_path):
    with pytest.raises(UserError, match=r"cannot read results from .*none.*pezoo run"):
        results.read(tmp_path / "none")


def test_results_take_numpy_numbers_and_refuse_wrong_types():
    made = dataclasses.replace(RESULT, seed=np.int64(0), value=np.float32(5.25), extensions=["pi"])
    assert made == RESULT
    assert type(made.seed) is int
    assert type(made.value) is float
    with pytest.raises(ValueError, match="'steps' must be a whole number"):
        dataclasses.replace(RESULT, steps=None)
    with pytest.raises(ValueError, match="'learning_rate' must be a finite number, got nan"):
        dataclasses.replace(RESULT, learning_rate=math.nan)


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "results.jsonl"
    results.write(path, [RESULT])

    def fails():
        yield UNDEFINED
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        results.write(path, fails())
    assert results.read(path) == [RESULT]
    assert os.listdir(tmp_path) == ["results.jsonl"]


WRITERS = {
    "plain": lambda file: file.write(bytes(100_000)),
    "numpy": lambda file: np.savez_compressed(file, a=np.random.default_rng(0).random(9999)),
    "torch": lambda file: torch.save({"a": torch.zeros(9999)}, file),
    "torch, at the end": lambda file: torch.save({"a": torch.zeros(900)}, file),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_names_the_file_whoever_writes(writer, tmp_path, small_files):
    path = tmp_path / "file"
    path.write_text("what was there")
    with pytest.raises(OSError, match=f"File too large: '{path}'"), results.replacing(path) as file:
        WRITERS[writer](file)
    assert path.read_text() == "what was there"
    assert os.listdir(tmp_path) == ["file"]


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="unknown"), results.replacing(tmp_path / "file"):
        raise RuntimeError("unknown")


def test_a_file_is_replaced_only_once_it_is_whole(tmp_path, monkeypatch):
    path, seen = tmp_path / "results.jsonl", []
    results.write(path, [RESULT])
    replace = os.replace

    def spy(old, new):
        seen.append((len(results.read(old)), len(results.read(new)), old.parent == new.parent))
        replace(old, new)

    monkeypatch.setattr(os, "replace", spy)
    results.write(path, [RESULT] * 500)
    assert seen == [(500, 1, True)]


def test_files_are_as_readable_as_the_user_lets_them_be(tmp_path):
    results.write(tmp_path / "r", [RESULT])
    (tmp_path / "plain").touch()
    assert (tmp_path / "r").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_frame_has_a_column_per_field():
    frame = results.to_frame([RESULT, UNDEFINED])
    assert list(frame.columns) == [field.name for field in dataclasses.fields(Result)]
    assert frame.value.dtype == float
    assert frame.value[0] == 5.25
    assert math.isnan(frame.value[1])
    assert list(frame.status) == ["ok", "undefined"]
    assert frame.extensions[0] == ("pi",)
    assert list(results.to_frame([]).columns) == list(frame.columns)


def test_losses_survive(tmp_path):
    losses.write_losses(tmp_path / "losses.npz", LOSSES)
    found = losses.read_losses(tmp_path / "losses.npz")
    for field in dataclasses.fields(Losses):
        kept, read = getattr(LOSSES, field.name), getattr(found, field.name)
        assert type(read) is type(kept)
        np.testing.assert_array_equal(read, kept)
    assert found.loss_sum.dtype == np.float64
    assert found.tokens.dtype == np.int64


def test_loss_by_position_weighs_tokens_and_leaves_out_empty_bins():
    position, loss = LOSSES.marginals().by_position()
    assert position.tolist() == [1.0, 3.5]  # the first token; the middle of the 2nd to the 5th
    assert loss.tolist() == [3.0, 2.0]


def test_losses_must_fit_together():
    with pytest.raises(ValueError, match=r"must both be \(documents, bins\) = \(1, 3\)"):
        dataclasses.replace(LOSSES, documents=["a.py"])
    with pytest.raises(ValueError, match="edges must ascend"):
        dataclasses.replace(LOSSES, edges=[0, 1, 1, 9])


@pytest.mark.parametrize("packed", [False, True])
def test_losses_whose_compressed_bytes_are_damaged_are_refused(tmp_path, packed):
    path = tmp_path / "losses.npz"
    losses.pack_losses(path, {"a1": [LOSSES.marginals()]}) if packed else losses.write_losses(path, LOSSES)
    with zipfile.ZipFile(path) as file:
        first = file.infolist()[0]
    content = bytearray(path.read_bytes())
    start = 30 + sum(content[26:30:2]) + 256 * sum(content[27:30:2])  # behind the header of the first file
    content[start : start + first.compress_size] = b"\xff" * first.compress_size
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cannot read (the )?losses"):
        losses.losses_of(path, ["a1"]) if packed else losses.read_losses(path)


def test_a_losses_file_that_is_not_whole_is_refused(tmp_path):
    path = tmp_path / "losses.npz"
    with pytest.raises(UserError, match="cannot read losses from"):
        losses.read_losses(path)
    np.savez(path, tokens=np.zeros((1, 1)))
    with pytest.raises(UserError, match="it must hold loss_sum, tokens, edges"):
        losses.read_losses(path)
    losses.write_losses(path, LOSSES)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match="cannot read losses from"):
        losses.read_losses(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="cannot read losses from"):
        losses.read_losses(path)


PUBLISHED = sorted((Path(__file__).parents[1] / "experiments" / "results").glob("*/results.jsonl.gz"))


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_published_results_are_read_and_say_where_they_come_from(path):
    found = results.read(path)
    assert {r.study for r in found} == {path.parent.name}
    assert (path.parent / "table.md").is_file()
    assert load_recipe(path.parent / "recipe.yaml").study == path.parent.name


def test_comma_separated_values_hold_every_field_as_text():
    import csv
    import io

    one = dataclasses.replace(RESULT, extensions=("pi", "window"), label='a "b", c', value=0.1)
    [row] = csv.DictReader(io.StringIO(results.to_csv([one])))
    assert list(row) == [field.name for field in dataclasses.fields(results.Result)]
    assert (row["extensions"], row["label"], float(row["value"])) == ("pi+window", 'a "b", c', 0.1)
    assert json.loads(row["versions"]) == one.versions
    assert row["depth"] == ""
