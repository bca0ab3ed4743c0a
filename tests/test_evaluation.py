"""Each protocol against a naive loop, and what happens where a length has no value."""

import math
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from helpers import watch
from pezoo.compose import Scheme
from pezoo.contract import Undefined
from pezoo.data import Windows
from pezoo.errors import UserError
from pezoo.evaluation import PROTOCOLS, LengthResult, evaluate, parse_protocol, passes, sliding
from pezoo.evaluation.passes import token_losses
from pezoo.evaluation.result import bin_edges
from pezoo.model import devices
from pezoo.model.transformer import Transformer, TransformerConfig
from pezoo.outcome import peak_memory, reset_peak_memory

VOCAB, LONGEST, LAST = 19, 50, 6
DOCUMENTS = np.array([4, 4, 1, 4, 7])
LENGTHS = [8, 13, 50]
OF_LOSS = [name for name, protocol in PROTOCOLS.items() if "loss" in protocol.METRICS]


def make(scheme):
    """A small model with weights large enough that positions matter."""
    size = {"vocab_size": VOCAB, "d_model": 16, "n_heads": 2, "n_layers": 2}
    model = Transformer(TransformerConfig(**size, train_length=8, scheme=scheme))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(10)
    return model.eval()


@pytest.fixture
def text():
    """Five windows of three documents."""
    ids = torch.randint(VOCAB, (5, LONGEST + 1), generator=torch.Generator().manual_seed(1))
    return Windows(ids, DOCUMENTS, np.zeros(5, dtype=np.int64))


def by_hand(model, ids, declared, row):
    """The loss of each target of one context, ids (T + 1,), in float64."""
    inputs, targets = ids[:-1][None], ids[1:]
    positions = model.positions(1, len(targets), declared=declared, phase="test", rows=(row,))
    with torch.no_grad():
        logits = model(inputs, positions)[0].double()
    return -logits.log_softmax(-1)[torch.arange(len(targets)), targets].numpy()


def one_by_one(model, text, length, contexts):
    """Each scored token from a forward pass of its own, that reads its context and nothing after it.

    Args:
        model: in evaluation mode.
        text: windows.
        length: what the scheme is told.
        contexts: for each scored place i in the windows (ids[:, i + 1] is scored), where its context starts.

    Returns:
        Losses in float64, (N, places), and the positions in their contexts, (places,).
    """
    losses = []
    for place, start in contexts.items():
        tokens, target = text.ids[:, start : place + 1], text.ids[:, place + 1]
        positions = model.positions(len(tokens), tokens.shape[1], declared=length, phase="test")
        with torch.no_grad():
            logits = model(tokens, positions)[:, -1].double()
        losses.append(-logits.log_softmax(-1)[torch.arange(len(tokens)), target].numpy())
    return np.stack(losses, axis=1), np.array([place - start for place, start in contexts.items()])


def assert_equals_one_by_one(result, model, text, contexts):
    """Values and bins of `result` are those of `contexts`, as in `one_by_one`."""
    losses, positions = one_by_one(model, text, result.test_length, contexts)
    assert_values(result, losses.ravel(), losses[:, positions >= result.test_length - LAST].ravel())
    bins = result.bins
    for row, document in enumerate(bins.documents):
        of_document = losses[document == DOCUMENTS]
        for column, (start, stop) in enumerate(pairwise(bins.edges)):
            inside = of_document[:, (positions >= start) & (positions < stop)]
            assert bins.tokens[row, column] == inside.size
            assert bins.loss_sum[row, column] == pytest.approx(inside.sum(), rel=1e-4)


def breaking(error, beyond, monkeypatch):
    """Make forward passes of more than `beyond` tokens raise."""

    def hidden(self, tokens, positions=None, cache=None, inner=Transformer.hidden):
        if tokens.shape[1] > beyond:
            raise error
        return inner(self, tokens, positions, cache)

    monkeypatch.setattr(Transformer, "hidden", hidden)


def assert_values(result: LengthResult, losses, last):
    """`losses`: all scored losses; `last`: those that count for the last tokens."""
    assert result.status == "ok"
    assert result.reason == ""
    assert result.n_tokens == len(losses)
    assert result.values["loss"] == pytest.approx(np.mean(losses), rel=1e-5)
    assert result.values["perplexity"] == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert result.values["last_perplexity"] == pytest.approx(math.exp(np.mean(last)), rel=1e-5)


@pytest.mark.parametrize("scheme", ["rope", "alibi", "dynamic_sinusoidal", "rope+pi", "rope+random"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 16384])
def test_prefix_is_the_mean_over_the_beginnings_of_windows(scheme, batch_tokens, text):
    model = make(scheme)
    results = evaluate(model, text, LENGTHS, last=LAST, batch_tokens=batch_tokens)
    assert [result.test_length for result in results] == LENGTHS
    for length, result in zip(LENGTHS, results, strict=True):
        windows = [by_hand(model, ids[: length + 1], length, row) for row, ids in enumerate(text.ids)]
        last = np.concatenate([losses[-LAST:] for losses in windows])
        assert_values(result, np.concatenate(windows), last)
        assert (result.protocol, result.stride, result.bos) == ("prefix", None, False)
        assert result.n_documents == 3


@pytest.mark.parametrize("scheme", ["rope", "alibi", "dynamic_sinusoidal", "rope+pi", "rope+random"])
@pytest.mark.parametrize("batch_tokens", [1, 100, 16384])
def test_non_overlapping_is_the_mean_over_blocks_with_fresh_context(scheme, batch_tokens, text):
    model = make(scheme)
    lengths = [10, *LENGTHS]  # 10 divides the windows, 8 and 13 leave shorter blocks
    results = evaluate(model, text, lengths, protocol="non_overlapping", last=LAST, batch_tokens=batch_tokens)
    for length, result in zip(lengths, results, strict=True):
        full = [ids[start : start + length + 1] for ids in text.ids for start in range(0, LONGEST - length + 1, length)]
        rest = [ids[LONGEST - LONGEST % length :] for ids in text.ids if LONGEST % length]
        losses = [by_hand(model, ids, length, row) for row, ids in enumerate(full + rest)]
        last = [one[max(0, length - LAST) :] for one in losses]
        assert_values(result, np.concatenate(losses), np.concatenate(last))
        assert result.n_tokens == 5 * LONGEST
        assert (result.protocol, result.stride, result.bos) == ("non_overlapping", length, False)


@pytest.mark.parametrize("scheme", ["rope", "alibi", "rope+dynamic_ntk", "dynamic_sinusoidal"])
@pytest.mark.parametrize(
    ("length", "stride"),
    [(8, 1), (8, 3), (8, 6), (13, 5), (13, 13), (50, 7), (1, 1)],  # 3, 5 and 13 leave a rest, 50 is one context
)
def test_sliding_scores_each_token_in_the_first_context_that_holds_it(scheme, length, stride, text):
    model = make(scheme)
    [result] = evaluate(model, text, [length], protocol=f"sliding:stride={stride}", last=LAST)
    contexts = {i: next(s for s in range(0, LONGEST, stride) if s + length > i) for i in range(LONGEST)}
    assert_equals_one_by_one(result, model, text, contexts)
    assert (result.n_tokens, result.stride, result.bos) == (5 * LONGEST, stride, False)


@settings(deadline=None, max_examples=50)
@given(st.data())
def test_sliding_scores_every_token_once_and_keeps_to_its_length(data):
    longest = data.draw(st.integers(1, 40))
    length = data.draw(st.integers(1, longest))
    stride = data.draw(st.integers(1, length))
    ids = torch.arange(2 * (longest + 1)).view(2, -1)
    read = sliding.cut(Windows(ids, np.array([3, 5]), np.zeros(2)), length, stride)
    scored = [group.ids(range(len(group)))[:, -group.scored :] for group in read]
    assert sorted(i for group in scored for i in group.flatten().tolist()) == ids[:, 1:].flatten().tolist()
    assert all(group.length <= length for group in read)
    for group, scored_ids in zip(read, scored, strict=True):
        assert ((scored_ids > longest) == torch.from_numpy(group.documents == 5)[:, None]).all()


@pytest.mark.parametrize("scheme", ["rope", "rope+dynamic_ntk", "rope+random"])
@pytest.mark.parametrize("length", [8, 10, 50])
@pytest.mark.parametrize("beyond", [0, 7])
def test_sliding_by_its_length_is_non_overlapping(scheme, length, beyond, text):
    model = make(scheme)
    [a] = evaluate(model, text, [length], protocol="non_overlapping", last=LAST)
    [b] = evaluate(model, text, [length], protocol=f"sliding:stride={length + beyond}", last=LAST)
    assert a.values == b.values
    assert (a.n_tokens, a.stride) == (b.n_tokens, b.stride)
    assert np.array_equal(a.bins.loss_sum, b.bins.loss_sum)
    assert np.array_equal(a.bins.tokens, b.bins.tokens)


def test_sliding_by_default_is_by_a_quarter_of_each_length(text):
    results = evaluate(make("rope"), text, [3, *LENGTHS], protocol="sliding", last=LAST)
    assert [result.stride for result in results] == [1, 2, 3, 12]


@pytest.mark.parametrize("scheme", ["rope", "alibi", "rope+dynamic_ntk", "dynamic_sinusoidal"])
@pytest.mark.parametrize("n_tokens", [1, 4, 8])  # fewer and more than LAST
def test_last_scores_the_same_tokens_with_more_and_more_to_their_left(scheme, n_tokens, text):
    model = make(scheme)
    results = evaluate(model, text, LENGTHS, protocol=f"last:n_tokens={n_tokens}", last=LAST)
    for length, result in zip(LENGTHS, results, strict=True):
        places = range(LONGEST - n_tokens, LONGEST)
        assert_equals_one_by_one(result, model, text, dict.fromkeys(places, LONGEST - length))
        assert (result.n_tokens, result.stride, result.bos) == (5 * n_tokens, None, False)


def test_last_by_default_scores_as_many_as_last_and_needs_contexts_that_hold_them(text):
    short, long = evaluate(make("rope"), text, [8, 13], protocol="last", last=9)
    assert (long.status, long.n_tokens) == ("ok", 5 * 9)
    assert (short.status, short.values, short.bins) == ("undefined", {}, None)
    assert short.reason == "a context of 8 tokens does not hold the 9 that are scored"


@pytest.mark.parametrize("scheme", ["rope", "rope+pi"])
def test_protocols_agree_at_the_windows_own_length(scheme, text):
    model = make(scheme)
    whole, slid, end = (
        evaluate(model, text, [LONGEST], protocol=name, last=LAST)[0] for name in ("prefix", "sliding", "last")
    )
    assert slid.values == pytest.approx(whole.values, rel=1e-6)
    assert end.values["perplexity"] == pytest.approx(whole.values["last_perplexity"], rel=1e-6)


def test_one_pass_serves_all_lengths_of_a_stable_scheme(text, monkeypatch):
    model = make("rope")
    seen = watch(monkeypatch)
    at_once = evaluate(model, text, LENGTHS, last=LAST)
    assert [tokens.shape for tokens, _ in seen] == [(5, 50)]
    monkeypatch.setattr(Scheme, "prefix_stable", False)
    apart = evaluate(model, text, LENGTHS, last=LAST)
    assert sorted(tokens.shape for tokens, _ in seen[1:]) == [(5, 8), (5, 13), (5, 50)]
    for a, b in zip(at_once, apart, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-5)
        np.testing.assert_allclose(a.bins.loss_sum, b.bins.loss_sum, rtol=1e-4)


@pytest.mark.parametrize("protocol", OF_LOSS)
def test_random_draws_are_the_same_again(protocol, text):
    a, b = (evaluate(make("rope+random"), text, LENGTHS, protocol=protocol, last=LAST) for _ in range(2))
    assert [result.values for result in a] == [result.values for result in b]
    assert all(result.values for result in a)


@pytest.mark.parametrize("scheme", ["dynamic_sinusoidal", "rope+pi", "rope+dynamic_ntk"])
def test_other_schemes_take_a_pass_a_length_and_are_told_it(scheme, text, monkeypatch):
    model, seen = make(scheme), watch(monkeypatch)
    evaluate(model, text, LENGTHS, last=LAST)
    assert sorted((tokens.shape[1], facts.length) for tokens, facts in seen) == [(8, 8), (13, 13), (50, 50)]
    assert all(facts.phase == "test" for _, facts in seen)


@pytest.mark.parametrize("protocol", OF_LOSS)
def test_random_draws_do_not_depend_on_the_batch_size(protocol, text, monkeypatch):
    model = make("rope+random")
    seen = watch(monkeypatch)
    a = evaluate(model, text, [8], protocol=protocol, last=LAST, batch_tokens=16384)
    whole = [row for _, facts in seen for row in facts.rows]
    seen.clear()
    b = evaluate(model, text, [8], protocol=protocol, last=LAST, batch_tokens=20)
    assert [row for _, facts in seen for row in facts.rows] == whole == list(range(len(whole)))
    assert a[0].values == pytest.approx(b[0].values, rel=1e-5)


@pytest.mark.parametrize("protocol", OF_LOSS)
def test_bins_hold_the_sums_that_the_value_is_made_of(protocol, text):
    model = make("rope")
    for result in evaluate(model, text, LENGTHS, protocol=protocol, last=LAST):
        bins, length = result.bins, result.test_length
        assert bins.edges.tolist() == bin_edges(length).tolist()
        assert bins.documents.tolist() == [1, 4, 7]
        assert bins.loss_sum.dtype == np.float64
        assert bins.tokens.sum() == result.n_tokens
        assert bins.loss_sum.sum() / bins.tokens.sum() == result.values["loss"]
        share = bins.tokens.sum(axis=1) / result.n_tokens  # documents have 1, 3 and 1 windows of 5
        assert share == pytest.approx([0.2, 0.6, 0.2])


@pytest.mark.parametrize(("protocol", "n_blocks"), [("prefix", 1), ("non_overlapping", 2)])
def test_bins_are_by_document_and_position(protocol, n_blocks, text):
    model = make("rope")
    [result] = evaluate(model, text, [25], protocol=protocol, last=LAST)
    bins = result.bins
    for row, document in enumerate(bins.documents):
        blocks = [
            text.ids[i, 25 * k : 25 * k + 26] for i in np.flatnonzero(document == DOCUMENTS) for k in range(n_blocks)
        ]
        losses = np.sum([by_hand(model, ids, 25, 0) for ids in blocks], axis=0)
        for column, (start, stop) in enumerate(pairwise(bins.edges)):
            assert bins.loss_sum[row, column] == pytest.approx(losses[start:stop].sum(), rel=1e-5)
            assert bins.tokens[row, column] == (stop - start) * len(blocks)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 64, 100, 1024, 1000])
def test_bin_edges_ascend_from_zero_to_the_length(length):
    edges = bin_edges(length)
    assert edges[0] == 0
    assert edges[-1] == length
    assert (np.diff(edges) > 0).all()
    assert set(2 ** np.arange(20)) & set(range(length)) <= set(edges.tolist())


def test_an_undefined_length_is_reported_and_loses_no_other(text):
    model = make("learned")  # stable, with a table of 8 positions
    assert model.scheme.prefix_stable
    short, *long = evaluate(model, text, LENGTHS, last=LAST)
    [alone] = evaluate(model, text, [8], last=LAST)
    assert short.status == "ok"
    assert short.values == alone.values
    for result in long:
        assert (result.status, result.values, result.bins) == ("undefined", {}, None)
        assert "learned" in result.reason


@pytest.mark.parametrize("protocol", OF_LOSS)
@pytest.mark.parametrize(
    ("error", "status"),
    [
        (MemoryError(), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried ..."), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
        (Undefined("only 13 positions"), "undefined"),
    ],
)
def test_a_length_that_breaks_is_reported_and_loses_no_other(error, status, protocol, text, monkeypatch):
    model = make("rope")
    whole = evaluate(model, text, LENGTHS, protocol=protocol, last=LAST)
    breaking(error, 13, monkeypatch)
    results = evaluate(model, text, LENGTHS, protocol=protocol, last=LAST)
    assert [result.status for result in results] == ["ok", "ok", status]
    assert results[2].reason
    assert results[2].values == {}
    for a, b in zip(whole[:2], results[:2], strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-5)


@pytest.mark.parametrize("protocol", [*OF_LOSS, "attention"])
@pytest.mark.parametrize("error", [RuntimeError("an illegal memory access"), KeyError("slopes"), UserError("mine")])
def test_what_else_goes_wrong_is_no_result(error, protocol, text, monkeypatch):
    breaking(error, 13, monkeypatch)
    with pytest.raises(type(error), match=str(error)):
        evaluate(make("rope"), text, LENGTHS, protocol=protocol, last=LAST)


@pytest.mark.parametrize("protocol", [*OF_LOSS, "attention"])
@pytest.mark.parametrize("scheme", ["rope", "rope+random", "learned"])
def test_where_memory_runs_out_fewer_contexts_are_read_at_a_time(scheme, protocol, text, monkeypatch):
    """Also in the middle of a pass, of which part has been counted."""
    model, sizes, calls = make(scheme), [], []
    lengths = LENGTHS if scheme != "learned" else LENGTHS[:1]
    whole = evaluate(model, text, lengths, protocol=protocol, last=LAST)

    def head(hidden, inner=model.head.forward):
        sizes.append(len(tokens_of[-1]))
        if sizes[-1] > 1 and len(sizes) > 1:  # the first batch is counted
            raise torch.OutOfMemoryError("CUDA out of memory")
        return inner(hidden)

    tokens_of = []

    def hidden(self, tokens, positions=None, cache=None, inner=Transformer.hidden):
        tokens_of.append(tokens)
        return inner(self, tokens, positions, cache)

    monkeypatch.setattr(Transformer, "hidden", hidden)
    monkeypatch.setattr(model.head, "forward", head)
    how = {"batch_tokens": 2 * lengths[-1], "progress": lambda *call: calls.append(call)}
    found = evaluate(model, text, lengths, protocol=protocol, last=LAST, **how)
    assert max(sizes) > 1
    assert 1 in sizes
    for a, b in zip(whole, found, strict=True):
        assert (a.status, a.n_tokens, a.n_documents) == (b.status, b.n_tokens, b.n_documents)
        assert a.values == pytest.approx(b.values, rel=1e-5)
    done, total = calls[-1]
    assert done == total == max(total for _, total in calls)


def test_a_loss_that_is_not_finite_is_a_divergence_from_its_position_on(text, monkeypatch):
    def hidden(self, tokens, positions=None, cache=None, inner=Transformer.hidden):
        logits = inner(self, tokens, positions, cache)
        logits[-1, 13:] = math.nan
        return logits

    monkeypatch.setattr(Transformer, "hidden", hidden)
    results = evaluate(make("rope"), text, LENGTHS, last=LAST)
    assert [result.status for result in results] == ["ok", "ok", "diverged"]
    assert "position 13" in results[2].reason
    assert (results[2].values, results[2].bins) == ({}, None)


def test_a_perplexity_beyond_floats_is_a_divergence(text):
    model = make("rope")
    with torch.no_grad():
        model.head.weight.mul_(1e6)
    [result] = evaluate(model, text, [8], last=LAST)
    assert result.status == "diverged"
    assert "no finite perplexity" in result.reason


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_as_it_was(training, text):
    model = make("rope").train(training)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    evaluate(model, text, LENGTHS, last=LAST)
    assert model.training is training
    assert all(module.training is training for module in model.modules())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())
    assert torch.is_grad_enabled()
    model(text.ids[:1, :8]).sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_dropout_is_off(text):
    model = make("rope")
    expected = evaluate(model, text, [8], last=LAST)[0].values
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    assert evaluate(model, text, [8], last=LAST)[0].values == expected


@pytest.mark.parametrize("scheme", ["rope", "rope+pi", "learned"])
@pytest.mark.parametrize("protocol", OF_LOSS)
def test_progress_ends_at_the_total(scheme, protocol, text):
    calls = []
    evaluate(
        make(scheme),
        text,
        LENGTHS,
        protocol=protocol,
        last=LAST,
        batch_tokens=30,
        progress=lambda *call: calls.append(call),
    )
    done, total = zip(*calls, strict=True)
    assert list(done) == sorted(done)
    assert done[-1] == total[-1]


def test_last_is_at_most_the_length(text):
    [result] = evaluate(make("rope"), text, [8], last=1000)
    assert result.values["last_perplexity"] == pytest.approx(result.values["perplexity"], rel=1e-6)


def test_lengths_keep_their_order(text):
    results = evaluate(make("rope"), text, [50, 8, 13], last=LAST)
    assert [result.test_length for result in results] == [50, 8, 13]


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("prefix", "prefix"),
        (" sliding ", "sliding"),
        ("sliding:stride=null", "sliding"),
        ("sliding:stride=0x10", "sliding:stride=16"),
        ("last:n_tokens=64", "last:n_tokens=64"),
    ],
)
def test_a_protocol_has_one_text_which_results_carry(text, canonical):
    protocol = parse_protocol(text)
    assert str(protocol) == canonical
    assert parse_protocol(canonical) == protocol == parse_protocol(protocol)
    assert len({protocol, parse_protocol(canonical)}) == 1
    windows = Windows(torch.zeros(1, 101, dtype=torch.int64), np.zeros(1, np.int64), np.zeros(1, np.int64))
    [result] = evaluate(make("nope"), windows, [100], protocol=text, last=LAST)
    assert result.protocol == canonical
    assert tuple(result.values) == protocol.metrics


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide", "unknown protocol 'slide'. Did you mean 'sliding'? Choose from: prefix, non_overlapping"),
        ("sliding:strid=4", "sliding has no setting 'strid'. Did you mean 'stride'? Its settings: stride"),
        ("prefix:stride=4", "prefix has no setting 'stride'. Its settings: none"),
        ("sliding:stride=0", "sliding:stride must be at least 1, got 0"),
        ("sliding:stride=1.5", "sliding:stride must be a whole number, got '1.5'"),
        ("last:n_tokens=few", "last:n_tokens must be a whole number, got 'few'"),
        ("sliding:16", "cannot read the protocol 'sliding:16'; write it like sliding:stride=16"),
        ("sliding+last", "cannot read the protocol 'sliding+last'"),
        ("", "cannot read the protocol ''"),
        (16, "cannot read the protocol 16"),
    ],
)
def test_a_protocol_that_cannot_be_read_is_one_clear_message(text, message):
    with pytest.raises(UserError) as caught:
        parse_protocol(text)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": "prefixes"}, "unknown protocol 'prefixes'. Did you mean 'prefix'"),
        ({"lengths": [8, 51]}, r"test lengths \[8, 51\] must lie in 1 \.\.\. 50"),
        ({"lengths": [0]}, r"must lie in 1"),
        ({"last": 0}, "last=0 .* at least 1"),
        ({"batch_tokens": 0}, "batch_tokens=0 must be at least 1"),
        ({"precision": "tf32"}, "test.precision=tf32 needs a CUDA GPU, and this is device=cpu; type float32 or bf16"),
        ({"precision": "fp8"}, "test.precision is one of float32, tf32, bf16, not 'fp8'"),
    ],
)
def test_a_mistake_is_one_clear_message(change, message, text):
    with pytest.raises(UserError, match=message):
        evaluate(make("nope"), text, **{"lengths": [8], "last": LAST} | change)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_token_losses_are_cross_entropies_in_chunks(dtype, monkeypatch):
    model, hidden = make("nope").to(dtype), torch.randn(3, 7, 16).to(dtype)
    targets = torch.randint(VOCAB, (3, 7))
    expected = F.cross_entropy(model.head(hidden).float().flatten(0, 1), targets.flatten(), reduction="none")
    monkeypatch.setattr(passes, "TOKENS", 4)
    monkeypatch.setattr(passes, "CPU_LOGITS", 4 * VOCAB)
    with torch.no_grad():
        losses = token_losses(model, hidden, targets)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, expected.detach().view(3, 7))


def read_at_once(model):
    """Record how many tokens the output layer reads in each call."""
    seen = []
    model.head.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].flatten(0, -2).shape[0]))
    return seen


@pytest.mark.parametrize("protocol", OF_LOSS)
def test_the_output_layer_reads_scored_tokens_alone_a_few_at_a_time(protocol, text, monkeypatch):
    monkeypatch.setattr(passes, "TOKENS", 4)
    monkeypatch.setattr(passes, "CPU_LOGITS", 4 * VOCAB)
    model = make("rope")
    seen = read_at_once(model)
    [result] = evaluate(model, text, [LONGEST], protocol=protocol, last=LAST)
    assert max(seen) == 4
    assert sum(seen) == result.n_tokens


@pytest.mark.skipif(peak_memory(torch.device("cpu")) is None, reason="needs Linux's /proc")
def test_a_large_vocabulary_takes_little_memory():
    cpu, vocabulary, length = torch.device("cpu"), 20_000, 4096
    size = {"vocab_size": vocabulary, "d_model": 16, "n_heads": 1, "n_layers": 1}
    model = Transformer(TransformerConfig(**size, scheme="nope"))
    ids = torch.randint(vocabulary, (1, length + 1), generator=torch.Generator().manual_seed(0))
    windows = Windows(ids, np.zeros(1, np.int64), np.zeros(1, np.int64))
    reset_peak_memory(cpu)
    before = peak_memory(cpu)
    evaluate(model, windows, [length], last=1)
    assert peak_memory(cpu) - before < length * vocabulary * 4 / 3


def test_bf16_is_near_float32_and_ends_with_the_test(text):
    model = make("rope")
    with torch.no_grad():
        model.head.weight.mul_(0.1)
    exact, rounded = (evaluate(model, text, [50], last=LAST, precision=p)[0].values for p in ("float32", "bf16"))
    assert rounded != exact
    assert rounded["loss"] == pytest.approx(exact["loss"], rel=0.02)
    assert evaluate(model, text, [50], last=LAST)[0].values == exact
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("before", [True, False])
def test_subnormal_numbers_are_flushed_in_testing_alone(before, text, monkeypatch):
    def flushed():
        return bool(torch.tensor([1e-39]) * 1 == 0)

    def hidden(*args, inner=Transformer.hidden):
        seen.append(flushed())
        return inner(*args)

    seen = []
    monkeypatch.setattr(Transformer, "hidden", hidden)
    torch.set_flush_denormal(before)
    try:
        evaluate(make("rope"), text, [8], last=LAST)
        assert flushed() == before
    finally:
        torch.set_flush_denormal(False)
    assert seen == [True]


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize(("precision", "allowed"), [("float32", False), ("tf32", True)])
def test_tf32_is_what_the_precision_says_and_comes_back(before, precision, allowed):
    backends = torch.backends.cuda.matmul, torch.backends.cudnn
    found = [backend.allow_tf32 for backend in backends]
    try:
        for backend in backends:
            backend.allow_tf32 = before
        with devices.testing_in(torch.device("cuda"), precision):
            assert all(backend.allow_tf32 is allowed for backend in backends)
        assert all(backend.allow_tf32 is before for backend in backends)
    finally:
        for backend, was in zip(backends, found, strict=True):
            backend.allow_tf32 = was


def test_float32_is_float32_under_somebody_elses_autocast(text):
    model = make("rope")
    expected = evaluate(model, text, [8], last=LAST)[0].values
    with torch.autocast("cpu", torch.bfloat16):
        assert evaluate(model, text, [8], last=LAST)[0].values == expected


@pytest.mark.skipif(peak_memory(torch.device("cpu")) is None, reason="needs Linux's /proc")
def test_peak_memory_sees_an_allocation_and_forgets_it():
    """In a process of its own: here other tests may have left memory that is used again."""
    code = """
import torch
from pezoo.outcome import peak_memory, reset_peak_memory

cpu = torch.device("cpu")
reset_peak_memory(cpu)
before = peak_memory(cpu)
torch.ones(2**25)  # 128 MiB
peak = peak_memory(cpu)
assert peak - before > 2**26
reset_peak_memory(cpu)
assert peak_memory(cpu) < peak
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
