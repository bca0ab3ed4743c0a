"""`pezoo show --config`."""

import json

import pytest

from pezoo.cli import main

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "max_position_embeddings": 64,
    "rope_theta": 500.0,
}


@pytest.fixture
def written(tmp_path):
    def write(config):
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return str(path)

    return write


def test_a_config_is_shown_as_a_scheme(written, capsys):
    assert main(["show", "--config", written(CONFIG)]) == 0
    shown = capsys.readouterr().out
    assert "rope:base=500:pairing=half" in shown
    assert "64 tokens" in shown
    assert "but" not in shown


def test_what_contradicts_itself_is_shown(written, tmp_path, capsys):
    scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "beta[fast": 1}
    written(CONFIG | {"rope_scaling": scaling})
    assert main(["show", "--config", str(tmp_path)]) == 0  # a folder will do
    shown = capsys.readouterr().out
    assert "+yarn:factor=4" in shown
    assert "but rope_parameters: factor is 4, but max_position_embeddings is 64" in shown
    assert "but rope_parameters: beta[fast is read by nothing" in shown


def test_a_scheme_is_shown_as_settings_of_the_config(written, capsys):
    assert main(["show", "ROPE+yarn:factor=4:beta_fast=8", "--config", written(CONFIG), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["told"] == "rope:base=500:pairing=half+yarn:factor=4:beta_fast=8"
    assert shown["settings"]["max_position_embeddings"] == 256
    assert shown["settings"]["rope_parameters"]["beta_fast"] == 8.0
    assert main(["show", "--config", written(CONFIG | shown["settings"] | {"rope_theta": None}), "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert (again["scheme"], again["remarks"]) == (shown["told"], [])


def test_a_scheme_that_follows_the_length_is_shown_for_one(written, capsys):
    asked = ["show", "rope+ntk", "--config", written(CONFIG), "--json"]
    assert main(asked) == 2
    assert "type --length N" in capsys.readouterr().err
    assert main([*asked, "--length", "256"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["max_position_embeddings"] == 256


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "a config is a mapping"),
        (CONFIG | {"rope_scaling": {"type": "linear"}}, "factor is missing, which rope_type linear needs"),
        (CONFIG | {"model_type": "gpt2"}, "gpt2 has no rotary positions"),
    ],
)
def test_what_cannot_be_read_is_one_message(given, said, written, capsys):
    assert main(["show", "--config", written(given)]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("error: ")
    assert said in told.err
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "name a scheme, such as pezoo show rope, or a model's config"),
        (["--config", "nowhere.json"], "cannot read nowhere.json"),
        (["alibi", "--config", "{file}"], "transformers cannot be told alibi: alibi adds a bias"),
        (["rope", "--config", "{file}", "--save", "x.svg"], "--save draws a scheme"),
    ],
)
def test_what_cannot_be_done_is_one_message(arguments, said, written, capsys):
    file = written(CONFIG)
    assert main(["show", *(a.format(file=file) for a in arguments)]) == 2
    assert said in capsys.readouterr().err
