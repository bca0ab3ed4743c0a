"""A trained decoder carried to four times its length: the page that says how, and whether it comes out right."""

import re
import shlex

import pytest

pytest.importorskip("transformers")

import torch
from test_attach import tiny
from test_examples import blocks, run
from transformers import AutoModelForCausalLM

import pezoo
from helpers import write_words
from pezoo.cli import main
from pezoo.study.models import find_model
from tools.paths import DOCS

PAGE = DOCS / "carry.md"


def lines():
    """The command lines of the page."""
    return [line[2:] for code in blocks(PAGE, "console") for line in code.splitlines() if line.startswith("$ ")]


def typed(line):
    """The arguments of a command line."""
    program, *rest = shlex.split(line)
    assert program == "pezoo"
    return rest


@pytest.mark.slow
@pytest.mark.ci
def test_every_command_of_the_page_does_what_it_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny("llama", vocab_size=256, max_position_embeddings=32, num_hidden_layers=2).save_pretrained("my_model")
    write_words(tmp_path / "texts")
    said = {}
    for line in lines():  # smaller
        quick = ["--windows", "2"] if " evaluate " in line else []
        line = line.replace("--tune 200", "--tune 3").replace("200 steps", "3 steps")
        assert main([*typed(line), *quick]) == 0, line
        said[line.split()[1]] = capsys.readouterr().out
    assert "rope:pairing=half" in said["show"]
    assert "rope+yarn, 3 steps @ 4x" in said["evaluate"]
    assert main(["export", "runs/carry", "rope+pi", "by_length"]) == 2
    assert "type --length N, and it is told as it is at that length" in capsys.readouterr().err
    assert (tmp_path / "runs" / "carry_tuned" / "report" / "report.html").is_file()
    assert (tmp_path / "runs" / "carry_tuned" / "report" / "curves.png").is_file()
    assert "my_model_4x" in said["export"]
    names = run(blocks(PAGE, "python")[0])
    assert names["longest"] == 128
    ours = find_model("runs/carry_tuned", "rope+yarn, 3 steps @ 4x").model
    tokens = torch.randint(256, (1, 128))
    with torch.no_grad():
        torch.testing.assert_close(names["model"](tokens).logits, ours(tokens), rtol=0, atol=1e-4)


RECIPE = {
    "study": "carried",
    "device": "cpu",
    "data": {"max_bytes": 2_000_000},
    "model": {
        "from": {
            "model_type": "llama",
            "hidden_size": 64,
            "intermediate_size": 176,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
        }
    },
    "schemes": ["own", "rope+pi", "rope+yarn:beta_fast=4"],
    "train": {"length": 32, "steps": 400, "batch_size": 32},
    "tune": {"steps": [0, 60], "length": "4x", "batch_size": 8, "lr": 1e-3, "warmup_steps": 10},
    "test": {"lengths": ["1x", "4x"], "windows": 24, "protocols": ["non_overlapping"]},
}


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("label", ["rope+pi, 60 steps @ 4x", "rope+yarn:beta_fast=4, 60 steps @ 4x"])
def test_a_llama_is_trained_swept_tuned_exported_and_loaded(label, carried, tmp_path):
    """The order alone: plain extrapolation is worst, tuning helps, and what is loaded is what was tuned."""
    value = pezoo.load(carried).frame.query("metric == 'perplexity'").set_index(["label", "test_length"])["value"]
    assert value["own", 128] > 1.1 * value["own", 32]
    assert value[label, 128] < value["own", 128]
    assert value[label, 128] < value[label.split(",")[0], 128]
    ours = find_model(carried, label).model
    assert main(["export", str(carried), label, str(tmp_path / "long")]) == 0
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "long").eval()
    tokens = torch.randint(256, (2, 128))
    with torch.no_grad():
        torch.testing.assert_close(theirs(tokens).logits, ours(tokens), rtol=0, atol=1e-4)


@pytest.fixture(scope="module")
def carried(tmp_path_factory):
    """The folder of that study, run."""
    out = tmp_path_factory.mktemp("carried") / "study"
    pezoo.run(RECIPE, out=out)
    return out


def test_pezoos_own_model_is_no_model_of_transformers(tmp_path, capsys):
    keys = ["size=test", "schemes=[rope]", "seeds=[0]"]
    pezoo.run("quickstart", keys, out=tmp_path / "out")
    assert main(["export", str(tmp_path / "out"), "rope", str(tmp_path / "model")]) == 2
    assert re.search(r"pezoo's own Transformer, which transformers does not have", capsys.readouterr().err)
