"""FlexAttention as a back-end: what it is given is what the definition computes, with one kernel for all lengths.

Without a GPU its functions of indices are run as they stand, beside the blocks that go with them; slow tests have
PyTorch trace them, forwards and backwards, and compile the forward pass. `tests/test_gpu.py` runs the kernel.
"""

import math
from contextlib import contextmanager, nullcontext, suppress

import pytest
import torch
from torch.nn.attention import flex_attention as library
from torch.testing import assert_close

import pezoo
from pezoo import attention, testing
from pezoo.attention import flex
from pezoo.errors import UserError
from pezoo.study import resolve
from pezoo.study.plan import make_plan
from pezoo.study.reading import load_recipe

# PyTorch looks at gradients of whatever it compiles, and hides that it warns of it, which an error in
# its place undoes.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"),
]
HEADS, WIDTH, ROWS, TRAINED = 4, 16, 2, 24
D_MODEL = HEADS * WIDTH


def scheme_of(scheme, **sizes):
    built = pezoo.create(scheme, d_model=D_MODEL, n_heads=HEADS, n_layers=1, train_length=TRAINED, **sizes)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return built


def computed(built, backend, length=37, n_queries=None, fewer=1, phase="test", **facts):
    """Outputs, and the gradients of q, k, v and every parameter."""
    generator = torch.Generator().manual_seed(0)
    n_queries = n_queries or length
    q = torch.randn(ROWS, HEADS, length, WIDTH, generator=generator)[:, :, -n_queries:]
    k, v = torch.randn(2, ROWS, HEADS // fewer, length, WIDTH, generator=generator)
    x = torch.randn(ROWS, length, D_MODEL, generator=generator)
    ids = torch.randint(9, (ROWS, length), generator=generator)
    given = [t.requires_grad_(torch.is_grad_enabled()) for t in (q.contiguous(), k, v)]
    positions = built.positions(ROWS, length, phase=phase, rows=(3, 9), tokens=ids, **facts)
    positions = positions.slice(length - n_queries, length)
    out = built.prepare(positions).attend(0, *given, backend, x=x)
    if not out.requires_grad:
        return {"out": out}
    named = dict(zip("qkv", given, strict=True)) | dict(built.named_parameters())
    gradients = torch.autograd.grad(out.square().sum(), list(named.values()), allow_unused=True)
    return {"out": out.detach()} | {n: g for n, g in zip(named, gradients, strict=True) if g is not None}


def compare(built, tolerance=1e-5, **facts):
    """The outputs, and each gradient, to a share of its largest number, or of a tenth of the largest of all."""
    expected = computed(built, "eager", **facts)
    came = computed(built, "flex", **facts)
    assert came.keys() == expected.keys()
    largest = max([expected[name].abs().max().item() for name in expected if name != "out"], default=0.0)
    for name, tensor in expected.items():
        share, own = (1e-5 if name == "out" else tolerance), tensor.abs().max().item()
        near = {"rtol": share, "atol": share * max(own, 0 if name == "out" else 0.1 * largest)}  # some are 0
        assert_close(came[name], tensor, **near, msg=lambda m, name=name: f"{name}: {m}")


def plain_flex_attention(q, k, v, score_mod, block_mask, *, enable_gqa, return_aux=None):
    """What PyTorch documents, with all pairs in memory; and a look at the blocks."""
    assert enable_gqa == (k.shape[1] < q.shape[1])
    k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], dim=1) for t in (k, v))
    size = *q.shape[:3], k.shape[2]
    places = [torch.arange(n).view([n if axis == a else 1 for axis in range(4)]) for a, n in enumerate(size)]
    seen = block_mask.mask_mod(*places).expand(size)
    check_blocks(block_mask, seen[:, 0])
    logits = score_mod(q @ k.mT / math.sqrt(q.shape[-1]), *places).masked_fill(~seen, -torch.inf)
    out = logits.softmax(-1) @ v
    return out if return_aux is None else (out, library.AuxOutput(lse=logits.logsumexp(-1)))


def check_blocks(mask, seen):
    """What is listed as whole is seen in full, and what is not listed is not seen at all."""
    side = flex.SIDE
    assert (side, side) == mask.BLOCK_SIZE
    counts = torch.nn.functional.pad(seen, (0, -seen.shape[2] % side, 0, -seen.shape[1] % side))
    counts = counts.unflatten(2, (-1, side)).unflatten(1, (-1, side)).sum((2, 4))
    n, m = counts.shape[1:]
    for whole, numbers, indices, of_keys, indices_of_keys in (
        (False, mask.kv_num_blocks, mask.kv_indices, mask.q_num_blocks, mask.q_indices),
        (True, mask.full_kv_num_blocks, mask.full_kv_indices, mask.full_q_num_blocks, mask.full_q_indices),
    ):
        blocks = listed(numbers, indices)
        assert torch.equal(blocks, listed(of_keys, indices_of_keys).mT)
        assert not blocks[:, n:].any()
        assert not blocks[:, :, m:].any()
        expected = counts == side**2 if whole else (counts > 0) & (counts < side**2)
        assert torch.equal(blocks[:, :n, :m].expand(len(seen), -1, -1), expected)


def listed(numbers, indices):
    """Lists of blocks as booleans, (R, n, m), each in its list once."""
    m = indices.shape[-1]
    counted = torch.arange(m) < numbers[..., None]
    found = (torch.nn.functional.one_hot(indices.long(), m) * counted[..., None]).sum(-2)[:, 0]
    assert found.max() <= 1
    return found.bool()


@pytest.fixture
def plainly(monkeypatch):
    """Run without PyTorch's FlexAttention, on the CPU, in blocks of 8."""
    monkeypatch.setattr(library, "flex_attention", plain_flex_attention)
    monkeypatch.setattr(flex, "compiled", lambda compiler: flex.kernel)
    monkeypatch.setattr(flex, "DEVICES", ("cuda", "cpu"))
    monkeypatch.setattr(flex, "SIDE", 8)
    monkeypatch.setattr(flex, "PAIRS", 700)


KINDS = [
    "nope",
    "rope",
    "rope+random",
    "xpos+pi",
    "alibi",
    "t5",
    "kerple+logn",
    "fire",
    "alibi+random",
    "cable",
    "nope+ssmax",
    "rope+window:size=9",
    "t5+window:size=5",
    "alibi+blockwise:size=5",
    "rope+memory:segment=6:memory=9",
    "rope+sink_logits",
    "kerple+window:size=11+sink_logits",
    {"heads": {"t5": 2, "rope+window:size=4": 2}},
]
PLACE = torch.arange(37).expand(ROWS, -1)
CASES = [
    {},
    {"documents": PLACE // torch.tensor([[11], [99]]), "valid": torch.tensor([[37], [30]]) > PLACE},
    {"valid": torch.tensor([[6], [-1]]) < PLACE, "n_queries": 5},
    {"n_queries": 1},
    {"fewer": 2, "n_queries": 9},
    {"phase": "train", "length": TRAINED},
]


@pytest.mark.parametrize("scheme", KINDS, ids=str)
def test_it_is_the_definition(scheme, plainly):
    built = scheme_of(scheme)
    for facts in CASES:
        compare(built, **facts)


@pytest.mark.parametrize("scheme", ["nope", "rope+random", "t5+window:size=5", "fire", "alibi+blockwise:size=5"])
def test_in_an_encoder_too(scheme, plainly):
    built = scheme_of(scheme, causal=False)
    for facts in ({}, {"documents": PLACE // 11, "valid": PLACE > 6}):
        compare(built, **facts)


@pytest.mark.slow
@pytest.mark.ci(one_in=7)
@pytest.mark.parametrize("member", [*pezoo.list_encodings(), *pezoo.list_extensions()])
def test_every_member_is_the_definition_or_refused(member, plainly):
    for subject in testing.subjects(member):
        built = scheme_of(str(subject.spec))
        prepared = built.prepare(built.positions(1, 2, phase="test", rows=(0,), tokens=PLACE[:1, :2]))
        refused = attention.refusal("flex", prepared.at(0)[0].composition)
        for facts in ({"phase": "train"}, {"documents": PLACE[:, : TRAINED - 1] // 9}):
            with suppress(UserError) if refused else nullcontext():  # what acts in testing alone may be trained
                compare(built, length=TRAINED - 1, **facts)


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scheme", "sizes", "reason"),
    [
        ("rope+rerope", {}, "it has no place for branches"),
        ("cope", {}, "it has no place for content"),
        ("alibi+dape", {}, "it has no place for adapt"),
        ("stick_breaking", {}, "it has no place for normalise"),
        ("rope", {"n_heads": 8}, "its kernel takes heads that are 16 wide or more, and these are 8"),
    ],
)
def test_what_it_cannot_do_is_refused_by_name(scheme, sizes, reason, plainly):
    built = pezoo.create(
        scheme, **{"d_model": D_MODEL, "n_heads": HEADS, "n_layers": 1, "train_length": TRAINED} | sizes
    )
    q = torch.zeros(1, built.shape.n_heads, 40, built.shape.head_dim)
    with pytest.raises(UserError, match=f"back-end 'flex' cannot run this scheme: {reason}; use backend=auto"):
        pezoo.attend(built, q, q, q, phase="test", rows=(0,), backend="flex")


def test_without_a_gpu_it_says_so():
    with pytest.raises(UserError, match="back-end 'flex' needs a CUDA GPU, and this is device=cpu; use backend=auto"):
        computed(scheme_of("rope"), "flex")


def test_precisions_and_sizes_that_the_kernel_has_not(plainly, monkeypatch):
    built, q = scheme_of("fire"), torch.zeros(1, HEADS, 40, WIDTH)
    with pytest.raises(UserError, match="these tensors are float64; use backend=auto"):
        pezoo.attend(built, *[q.double()] * 3, backend="flex")
    monkeypatch.setattr(flex, "NUMBERS", HEADS * 40 * 40)
    with pytest.raises(UserError, match="a bias of 1 x 4 x 40 x 40 pairs, more than its kernel can count"):
        pezoo.attend(built, q, q, q, backend="flex")


def test_a_study_is_refused_before_it_begins(monkeypatch):
    """Where there is no GPU, and where there is one for what cannot run; nothing is compiled to find out."""
    recipe = {"schemes": ["rope", "alibi"], "backend": "flex", "tasks": ["copy"], "test": {"lengths": ["1x"]}}
    with pytest.raises(UserError, match=r"backend=flex needs a CUDA GPU, and this is device=cpu; type backend=auto"):
        make_plan(load_recipe(recipe))
    monkeypatch.setattr(resolve, "find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(flex, "compiled", None)
    assert {cell.inputs["backend"] for cell in make_plan(load_recipe(recipe)).cells.values()} == {"flex"}
    with pytest.raises(UserError, match=r"schemes.*'flex' cannot run this scheme: it has no place for content"):
        make_plan(load_recipe(recipe | {"schemes": ["rope", "cope"]}))
    with pytest.raises(UserError, match=r"its kernel takes heads that are 16 wide"):
        make_plan(load_recipe(recipe | {"model": {"n_heads": 8}}))


def test_masks_are_looked_at_once_for_all_layers(plainly, monkeypatch):
    """Also where each layer has a bias of its own."""
    made = []
    usual = flex._visible
    monkeypatch.setattr(flex, "_visible", lambda composition: made.append(composition) or usual(composition))
    built = pezoo.create("t5+window:size=9", d_model=D_MODEL, n_heads=HEADS, n_layers=3, train_length=TRAINED)
    q, prepared = torch.zeros(1, HEADS, 40, WIDTH), built.prepare(built.positions(1, 40, phase="test"))
    for layer in range(3):
        prepared.attend(layer, q, q, q, "flex")
    assert len(made) == 1


@pytest.mark.parametrize("scheme", ["rope", "kerple+window:size=9", "fire", "alibi+blockwise:size=5", "t5+sink_logits"])
def test_nothing_waits_for_the_device(scheme, plainly, monkeypatch):
    """A tensor left on the host, or a number read from the device, is an error on `meta`."""
    monkeypatch.setattr(flex, "DEVICES", ("meta",))
    monkeypatch.setattr(library, "flex_attention", lambda q, k, v, *_, return_aux=None, **__: (
        torch.empty_like(q) if return_aux is None else (torch.empty_like(q), library.AuxOutput(lse=q[..., 0]))
    ))  # fmt: skip
    built, q = scheme_of(scheme).to("meta"), torch.zeros(2, HEADS, 40, WIDTH, device="meta")
    place = torch.arange(40).expand(2, -1)
    for facts in ({}, {"documents": place // 9, "valid": place > 2}):
        positions = built.positions(2, 40, phase="test", device="meta", **facts)
        assert pezoo.attend(built, q, q, q, positions=positions, backend="flex").shape == q.shape


# ---- PyTorch's own ------------------------------------------------------------------------------

LENGTHS = (300, 37, 150)


@contextmanager
def kernels():
    """A list with the number of kernels that were compiled meanwhile, once that is known."""
    import torch._dynamo
    from torch._dynamo.utils import counters

    torch._dynamo.reset()
    flex.compiled.cache_clear()
    counters.clear()
    found = []
    yield found
    found.append(counters["stats"]["unique_graphs"])


@pytest.fixture
def traced(monkeypatch):
    """PyTorch traces the kernel and its backward pass, and runs them operator by operator."""
    monkeypatch.setattr(library, "_validate_device", lambda *_: None)  # which refuses gradients on a CPU
    monkeypatch.setattr(flex, "COMPILER", "aot_eager")
    monkeypatch.setattr(flex, "DEVICES", ("cuda", "cpu"))


@pytest.mark.slow
@pytest.mark.ci(one_in=3)
@pytest.mark.parametrize("scheme", ["rope", "kerple", "fire", "alibi+blockwise:size=9", "t5+sink_logits"])
def test_one_kernel_serves_all_lengths_with_gradients(scheme, traced):
    """Or two: PyTorch may take sizes for one that are alike by chance."""
    built = scheme_of(scheme)
    with kernels() as found:
        for length in LENGTHS:
            compare(built, tolerance=5e-5, length=length)
    assert found <= [2]


@pytest.mark.slow
@pytest.mark.ci
@pytest.mark.parametrize("facts", [{"n_queries": 33, "fewer": 2}, {"documents": 29}], ids=str)
def test_other_rows_have_a_kernel_of_their_own(facts, traced):
    built = scheme_of("t5+window:size=40")
    with kernels() as found:
        for length in LENGTHS:
            packed = {"documents": torch.arange(length).expand(ROWS, -1) // 29} if "documents" in facts else {}
            compare(built, tolerance=5e-5, length=length, **facts | packed)
    assert found <= [2]


@pytest.mark.slow
@pytest.mark.ci(one_in=4)
@pytest.mark.parametrize("scheme", ["fire", "rope+blockwise:size=9"])
def test_the_compiled_forward_pass_leaves_out_blocks_and_is_the_definition(scheme, monkeypatch):
    """Of masks of pairs: PyTorch 2.13 mixes up names of sizes in the C++ that it writes for rows by distance."""
    monkeypatch.setattr(flex, "DEVICES", ("cuda", "cpu"))
    built = scheme_of(scheme)
    with kernels() as found, torch.no_grad():
        for length in (257, 300):
            compare(built, length=length)
    assert found == [1]


@pytest.mark.slow
@pytest.mark.ci
def test_a_limit_that_is_reached_is_an_error(traced, monkeypatch):
    """PyTorch alone would go on without a kernel."""
    import torch._dynamo

    monkeypatch.setattr(flex, "KERNELS", 2)
    monkeypatch.setattr(flex, "COMPILER", "eager")
    with kernels() as found, torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        for scheme in ("nope", "alibi"):
            compare(scheme_of(scheme))
        with pytest.raises(UserError, match=r"has compiled 2 kernels in this process, .* use backend=auto"):
            compare(scheme_of("fire"))
        compare(scheme_of("nope"))
    assert found == [2]
