"""What several files of tests use: small models, texts and studies, and what is compared."""

import random

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import pezoo
from pezoo.contract import Positions
from pezoo.data import Tokens
from pezoo.model.transformer import Transformer
from pezoo.registry import entry, make_config
from pezoo.study.cells import run_cell

WORDS = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
MAY_DIFFER = (
    "train_seconds",
    "train_cpu_seconds",
    "eval_seconds",
    "tokens_per_second",
    "peak_memory_bytes",
    "date",
    "config_hash",
)

# ---- members ------------------------------------------------------------------------------------


def member(scheme, name, layer=0, part=0):
    """The module of a member of a built scheme, by its name and layer."""
    copies = scheme.parts[part].copies()[name]
    return copies[layer % len(copies)]


def make_task(name, **settings):
    """A task of its own, with settings."""
    return entry(name).cls(make_config(name, settings)[0])


def vectors(*size, seed=0):
    """Normal numbers."""
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def reals(p):
    """Positions at given coordinates (R, L)."""
    return Positions.build(p.shape[1], len(p), phase="test").replace(query=p, key=p, spacing=None)


def transformers_frequencies(kind, head_dim, longest, length, **parameters):
    """Frequencies and attention factor of transformers, in a model made for `longest` tokens, at a length."""
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = transformers.LlamaConfig(
        hidden_size=head_dim,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=longest,
        rope_parameters={"rope_type": kind} | parameters,
    )
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), seq_len=length)


def transformers_layers(model, config, ids):
    """The attention of each layer of a model of transformers, with what it read and gave for these ids.

    Args:
        model: its class, as "gemma3.Gemma3TextModel".
        config: settings of its config, beside a small size.
        ids: (B, T), below 16.
    """
    import importlib

    family, _, name = model.partition(".")
    pytest.importorskip("transformers", reason="parity needs transformers")
    module = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
    cls = getattr(module, name)
    small = {"vocab_size": 16, "hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}
    small |= {"intermediate_size": 8, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    torch.manual_seed(0)
    built = cls(cls.config_class(**small | config, attn_implementation="eager")).eval()
    for parameter in built.parameters():
        parameter.data = torch.randn_like(parameter) * (0.5 if parameter.ndim > 1 else 1)
    found = []
    for layer in built.layers:
        layer.self_attn.register_forward_hook(
            lambda one, args, kwargs, out: found.append((one, kwargs["hidden_states"], out[0])), with_kwargs=True
        )
    with torch.no_grad():
        built(ids)
    return found


def same_attention(scheme, layers, half=True):
    """Hold the attention of a scheme's layers against those of `transformers_layers`, made with the same weights.

    Args:
        scheme: a built one, of as many layers.
        layers: as `transformers_layers` gives them.
        half: whether these turn channels (k, k + d/2), where the scheme turns (2k, 2k + 1).
    """
    h, d = scheme.shape.n_heads, scheme.shape.head_dim
    order = torch.arange(d).view(2, -1).T.flatten() if half else torch.arange(d)
    assert len(layers) == scheme.shape.n_layers
    for i, (module, x, expected) in enumerate(layers):

        def projected(name, module=module, x=x):
            out = getattr(module, f"{name}_proj")(x).unflatten(-1, (h, d))
            return getattr(module, f"{name}_norm", torch.nn.Identity())(out).transpose(1, 2)

        with torch.no_grad():
            q, k, v = map(projected, "qkv")
            q = q[..., order] * (module.scaling * d**0.5)
            out = pezoo.attend(scheme, q, k[..., order], v, layer=i, phase="test")
            came = module.o_proj(out.transpose(1, 2).flatten(2))
        torch.testing.assert_close(came, expected, atol=1e-4, rtol=1e-4)


# ---- models -------------------------------------------------------------------------------------


def far_from_start(config):
    """A model whose weights are far from their initial values: nothing hides behind a zero, and all it reads counts."""
    model = Transformer(config).eval()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.startswith("scheme."):
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
            elif p.ndim > 1:
                p.mul_(40 if "attention.out" in name else 20 if "qkv" in name else 6)
    return model


def watch(monkeypatch):
    """Record the tokens and positions of each forward pass."""
    seen = []

    def hidden(self, tokens, positions=None, cache=None, inner=Transformer.hidden):
        seen.append((tokens.clone(), positions))
        return inner(self, tokens, positions, cache)

    monkeypatch.setattr(Transformer, "hidden", hidden)
    return seen


def assert_same_weights(a, b):
    """Of two models, or two state dictionaries."""
    a, b = (x if isinstance(x, dict) else x.state_dict() for x in (a, b))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


# ---- texts and studies --------------------------------------------------------------------------


def rising_text(vocabulary):
    """Two documents in which each token is likely to follow from the one before it."""
    ids = (np.cumsum(np.random.default_rng(0).integers(1, 3, 600)) % vocabulary).astype(np.uint8)
    return Tokens(ids, np.array([0, 350, 600]), ["a", "b"])


def write_words(folder, n=250, words=WORDS):
    """The `data` of a recipe: twelve documents of n words."""
    draw = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(12):
        (folder / f"{i}.txt").write_text(" ".join(draw.choices(words, k=n)))
    return {"corpus": "text", "path": str(folder)}


def run_cells(study):
    """Run what is not done in this process, without workers."""
    for key, cell in study.plan.cells.items():
        if not study.store.done(key):
            run_cell(cell, study.store, study.plan.corpora, lambda *_: None)


def values(results):
    """What must not depend on when, where and how fast a study ran."""
    return [{k: v for k, v in vars(r).items() if k not in MAY_DIFFER} for r in results]


def curves(folder):
    """TensorBoard's curves, by tag: (step, value) of each point."""
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def damage(path, way):
    """Spoil a file as a disk, a kill or somebody's hand may; `way` "deleted" leaves none."""
    content = bytearray(path.read_bytes())
    path.unlink()
    match way:
        case "empty":
            path.touch()
        case "zeros":
            path.write_bytes(bytes(len(content)))
        case "half":
            path.write_bytes(content[: len(content) // 2])
        case "flipped":
            content[len(content) // 2] ^= 4
            path.write_bytes(content)
        case "a folder":
            path.mkdir()
