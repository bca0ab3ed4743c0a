"""A recipe's keys may change, and cells keep their names as long as their numbers stay."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pezoo.model.config import ModelConfig, TransformerConfig
from pezoo.model.transformer import Transformer
from pezoo.study import Study
from pezoo.study.cells import run_cell
from pezoo.study.plan import Cell, digest, make_plan
from pezoo.study.reading import load_recipe
from pezoo.training.checkpoint import load, save
from pezoo.training.config import TrainConfig
from pezoo.training.keys import from_stored, hashed, to_stored


@dataclass
class Old:
    """Keys."""

    size: int = 8
    rates: list[float] = field(default_factory=lambda: [0.5])
    often: int = 1


@dataclass
class New:
    """The same ones, in better words, and one more."""

    width: int = field(default=8, metadata={"stored_as": "size"})
    rates: list[float] = field(default_factory=lambda: [0.5])
    often: int = field(default=1, metadata={"hashed": False})
    kind: str = field(default="new", metadata={"before": "old"})


def test_a_renamed_key_and_a_new_one_name_cells_as_before():
    assert to_stored(New(width=4)) == {"size": 4, "rates": [0.5], "often": 1, "kind": "new"}
    old = {k: v for k, v in to_stored(Old(size=4)).items() if k != "often"}
    assert hashed(New, to_stored(New(width=4, kind="old"))) == old
    for other in (New(width=5, kind="old"), New(width=4), New(width=4, rates=[1.0], kind="old")):
        assert hashed(New, to_stored(other)) != old
    assert hashed(New, to_stored(New(often=7))) == hashed(New, to_stored(New()))


def test_what_is_stored_is_read_by_the_names_of_today():
    for group in (New(), New(width=3, kind="other", often=4)):
        assert New(**from_stored(New, to_stored(group))) == group
    assert New(**from_stored(New, to_stored(Old(size=3)))) == New(width=3, kind="old")


RECIPE = {
    "study": "keys",
    "schemes": [{"scheme": "rope", "tune": [0, 2]}],
    "tasks": ["reverse_string"],
    "model": {"d_model": 8, "n_layers": 1, "n_heads": 1},
    "train": {"length": 4, "steps": 4, "batch_size": 2, "warmup_steps": 1},
    "tune": {"warmup_steps": 1},
    "test": {"lengths": ["1x"], "windows": 2},
}

NEW = {
    "token_shift": "true",
    "head_dim": 4,
    "norm_eps": 1e-3,
    "parallel_residual": "true",
    "attention_bias": "qkv",
    "feed_forward_bias": "true",
    "qk_norm_scope": "all",
}
"""Keys of `model` that 0.1.0 did not have, each with a value that changes something."""
NEW_IN_TRAIN = ("log_every", "checkpointing", "devices", "num_nodes", "strategy")
"""Keys of `train` that name no cell, or not with their defaults."""


@pytest.fixture
def renamed(monkeypatch):
    """Two keys that once had another name."""
    for cls, key, name in (
        (TrainConfig, "batch_size", "rows"),
        (ModelConfig, "d_ff", "hidden"),
        (TransformerConfig, "d_ff", "hidden"),
    ):
        monkeypatch.setattr(cls.__dataclass_fields__[key], "metadata", {"stored_as": name})


def test_cells_and_checkpoints_of_renamed_keys_have_the_old_names(renamed, tmp_path):
    study = Study.prepare(RECIPE | {"model": RECIPE["model"] | {"d_ff": 12}}, out=tmp_path)
    assert Counter(cell.kind for cell in study.plan.cells.values()) == {"train": 1, "tune": 1, "evaluate": 2}
    for key, cell in study.plan.cells.items():
        run_cell(cell, study.store, study.plan.corpora, lambda *_: None)
        assert cell.inputs["model"]["hidden"] == cell.model().config.d_ff == 12
        assert "d_ff" not in cell.inputs["model"]
        settings = cell.inputs.get("settings", {})
        settings = {k: v for k, v in settings.items() if k not in NEW_IN_TRAIN}
        named = {"model": {k: v for k, v in cell.inputs["model"].items() if k not in NEW}}
        assert digest(cell.inputs | named | ({"settings": settings} if settings else {})) == key
        if settings:
            assert settings["rows"] == {"train": 2, "tune": 4}[cell.kind]
            assert "batch_size" not in settings
            assert load(study.store.path(key) / "model.pt")[0].config.d_ff == 12
            stored = torch.load(study.store.path(key) / "model.pt", weights_only=True)["config"]
            assert stored["hidden"] == 12
    assert {r.status for r in study.results()} == {"ok"}


def test_a_checkpoint_of_0_1_0_is_read():
    """It was written by that version: its weights have other names, and `extra` holds what its model computed."""
    path = Path(__file__).parent / "checkpoint_0.1.0.pt"
    stored = torch.load(path, weights_only=True)
    assert {name.split(".")[3] for name in stored["weights"] if "scheme" in name} == {"encodings", "extensions"}
    model, extra = load(path)
    assert torch.allclose(model(extra["tokens"]), extra["logits"], atol=1e-6)
    for weight, was in zip(model.state_dict().values(), stored["weights"].values(), strict=True):
        assert torch.equal(weight, was)


def test_a_model_of_the_gpu_s_back_end_runs_where_it_is_read(tmp_path):
    sizes = {"vocab_size": 8, "d_model": 8, "n_layers": 1, "n_heads": 2, "train_length": 4}
    save(tmp_path / "model.pt", Transformer(sizes | {"backend": "flex"}), {})
    model, _ = load(tmp_path / "model.pt")
    assert model.config.backend == "auto"
    model(torch.tensor([[1, 2, 3]]))


def test_how_often_curves_get_a_point_names_no_cell():
    base = make_plan(load_recipe(RECIPE)).cells
    other = make_plan(load_recipe(RECIPE, ["train.log_every=1"])).cells
    assert base.keys() == other.keys()
    assert [c.inputs["settings"]["log_every"] for c in other.values() if c.kind == "train"] == [1]
    assert base.keys() != make_plan(load_recipe(RECIPE, ["train.lr=1"])).cells.keys()


def test_new_keys_are_no_part_of_older_names_and_inputs():
    made = make_plan(load_recipe(RECIPE)).cells
    for key, cell in made.items():
        older = Cell("", cell.inputs | {"model": {k: v for k, v in cell.inputs["model"].items() if k not in NEW}})
        assert older.key == key
        assert older.model().config == cell.model().config
    for name, value in NEW.items():
        needs = ["model.qk_norm=true"] if name == "qk_norm_scope" else []
        assert not made.keys() & make_plan(load_recipe(RECIPE, [f"model.{name}={value}", *needs])).cells.keys()
