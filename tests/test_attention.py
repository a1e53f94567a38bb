"""DotAttention and AdditiveAttention: literal values, central differences, PyTorch, masks, tapes, copies, errors."""

import copy
import pickle

import numpy as np
import pytest

import elman
from elman import AdditiveAttention, DotAttention, attention

S, T, B = 5, 3, 4
LENGTHS = [5, 2, 0, 3]
PAST = np.arange(S)[:, None] >= LENGTHS
KINDS = ["dot", "additive"]


def make(kind, dtype="f8"):
    """The layer, and its number of features in the query and the memory."""
    if kind == "dot":
        return DotAttention(), 6, 6
    return AdditiveAttention(3, 6, 7, dtype=dtype, seed=1), 3, 6


def draw(*shape, dtype="f8", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def problem(kind, dtype="f8"):
    layer, Q, M = make(kind, dtype)
    return layer, draw(T, B, Q, dtype=dtype), draw(S, B, M, dtype=dtype, seed=1), draw(T, B, M, dtype=dtype, seed=2)


def params(layer):
    return getattr(layer, "params", {})


def test_literal_values():
    query = np.array([[[1.0, 0.0]], [[0.0, 2.0]]])
    memory = np.log(np.array([[[1.0, 1.0]], [[3.0, 1.0]], [[4.0, 2.0]]]))
    context, weights = DotAttention()(query, memory, return_weights=True)
    np.testing.assert_allclose(weights[:, 0], [[1 / 8, 3 / 8, 4 / 8], [1 / 6, 1 / 6, 4 / 6]], rtol=1e-15)
    np.testing.assert_allclose(context[0, 0], [3 / 8 * np.log(3) + 1 / 2 * np.log(4), 1 / 2 * np.log(2)], rtol=1e-15)
    shorter = DotAttention()(query, memory, lengths=[2], return_weights=True)[1]
    np.testing.assert_allclose(shorter[:, 0], [[1 / 4, 3 / 4, 0], [1 / 2, 1 / 2, 0]], rtol=1e-15)


def test_the_scores_of_additive_attention():
    layer, query, memory, _ = problem("additive")
    w = layer.params
    scores = np.empty((T, B, S))
    for t, b, s in np.ndindex(T, B, S):
        hidden = np.tanh(w["weight_query"] @ query[t, b] + w["weight_memory"] @ memory[s, b])
        scores[t, b, s] = hidden @ w["weight_score"]
    expected = np.exp(scores) / np.exp(scores).sum(axis=2, keepdims=True)
    np.testing.assert_allclose(layer(query, memory, return_weights=True)[1], expected, rtol=1e-12)
    bounds = {"weight_query": 3**-0.5, "weight_memory": 6**-0.5, "weight_score": 7**-0.5}
    assert {name: a.shape for name, a in w.items()} == {
        "weight_query": (7, 3), "weight_memory": (7, 6), "weight_score": (7,),
    }  # fmt: skip
    for name, bound in bounds.items():
        assert 0.6 * bound < np.abs(w[name]).max() <= bound


def check_gradients(layer, query, memory, dcontext, lengths):
    _, tape = layer.forward(query, memory, lengths=lengths)
    dquery, dmemory, grads = layer.backward(tape, dcontext)
    assert list(grads) == list(params(layer))
    wanted = {"query": (query, dquery), "memory": (memory, dmemory)}
    wanted.update({name: (w, grads[name]) for name, w in params(layer).items()})
    for name, (at, got) in wanted.items():
        assert got.shape == at.shape and np.abs(got).max() > 1e-3
        other = copy.deepcopy(layer)

        def loss(value, name=name, other=other):
            given = {"query": query, "memory": memory}
            if name in given:
                given[name] = value
            else:
                other.load_params({**layer.params, name: value})
            return float((other(**given, lengths=lengths) * dcontext).sum())

        numeric = np.empty(at.shape)
        for i in np.ndindex(at.shape):
            high, low = at.copy(), at.copy()
            high[i] += 1e-5
            low[i] -= 1e-5
            numeric[i] = (loss(high) - loss(low)) / 2e-5
        np.testing.assert_allclose(got, numeric, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_central_differences(kind, lengths):
    check_gradients(*problem(kind), lengths)


@pytest.mark.parametrize(
    "kind, right, wrong",
    [
        ("dot", "weights * (dweights - (weights * dweights)", "weights * (dweights + (weights * dweights)"),
        ("dot", "_batched(weights.swapaxes(1, 2), d).swapaxes(0, 1) + dvalues", "dvalues.copy()"),
        ("dot", "dkeys = _batched(dscores.swapaxes(1, 2)", "dkeys = -_batched(dscores.swapaxes(1, 2)"),
        ("additive", "d * v * (1 - tanh * tanh)", "d * v * (1 - tanh)"),
        ("additive", "dkeys += d", "dkeys = d"),
        ("additive", "of_query.backward(query, dprojected)", "of_query.backward(query, -dprojected)"),
        ("additive", "dv += (d * tanh)", "dv = (d * tanh)"),
    ],
)
def test_a_planted_bug_is_seen(kind, right, wrong):
    import inspect
    import types

    source = inspect.getsource(attention)
    assert source.count(right) == 1, f"bring the list of planted bugs up to date: {right}"
    mutant = types.ModuleType("elman.attention")
    mutant.__package__ = "elman"
    exec(compile(source.replace(right, wrong), "attention with a planted bug", "exec"), mutant.__dict__)
    layer, *arguments = problem(kind)
    bad = mutant.DotAttention() if kind == "dot" else mutant.AdditiveAttention(3, 6, 7, dtype="f8", seed=1)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_gradients(bad, *arguments, None)


@pytest.mark.parametrize("dtype, tolerance", [("f4", 2e-6), ("f8", 1e-14)])
@pytest.mark.parametrize("lengths", [None, [5, 2, 1, 3]])  # PyTorch gives NaN for a sequence without steps
@pytest.mark.parametrize("kind", KINDS)
def test_against_pytorch(kind, lengths, dtype, tolerance):
    torch = pytest.importorskip("torch")
    layer, query, memory, dcontext = problem(kind, dtype)
    q, m = (torch.tensor(a, requires_grad=True) for a in (query, memory))
    w = {name: torch.tensor(a, requires_grad=True) for name, a in params(layer).items()}
    keep = (
        torch.ones(B, 1, S, dtype=bool) if lengths is None else torch.arange(S) < torch.tensor(lengths)[:, None, None]
    )
    if kind == "dot":
        scaled = torch.nn.functional.scaled_dot_product_attention
        context = scaled(*(a.transpose(0, 1) for a in (q, m, m)), attn_mask=keep, scale=1.0).transpose(0, 1)
    else:
        sums = (q @ w["weight_query"].T)[:, None] + (m @ w["weight_memory"].T)[None]  # (T, S, B, U)
        scores = (torch.tanh(sums) @ w["weight_score"]).permute(2, 0, 1).masked_fill(~keep, -torch.inf)
        context = (scores.softmax(-1) @ m.transpose(0, 1)).transpose(0, 1)
    context.backward(torch.tensor(dcontext))
    got, tape = layer.forward(query, memory, lengths=lengths)
    dquery, dmemory, grads = layer.backward(tape, dcontext)
    pairs = [(got, context.detach()), (dquery, q.grad), (dmemory, m.grad)] + [(grads[k], w[k].grad) for k in grads]
    for ours, theirs in pairs:
        assert ours.dtype == dtype and np.abs(ours).max() > 0.01
        np.testing.assert_allclose(ours, theirs.numpy(), rtol=tolerance, atol=5 * tolerance)


@pytest.mark.parametrize("kind", KINDS)
def test_past_the_ends_nothing_is_read(kind):
    layer, query, memory, dcontext = problem(kind)
    clean, weights = layer(query, memory, lengths=LENGTHS, return_weights=True)
    assert not weights[:, PAST.T].any() and not clean[:, 2].any()
    np.testing.assert_allclose(weights.sum(axis=2), np.broadcast_to(np.array(LENGTHS) > 0, (T, B)), rtol=1e-14)
    for b, n in enumerate(LENGTHS):
        if n:
            np.testing.assert_allclose(layer(query[:, b : b + 1], memory[:n, b : b + 1])[:, 0], clean[:, b], rtol=1e-12)
    memory[PAST] = np.nan
    np.testing.assert_array_equal(layer(query, memory, lengths=LENGTHS), clean)
    context, tape = layer.forward(query, memory, lengths=LENGTHS)
    np.testing.assert_array_equal(context, clean)
    dquery, dmemory, grads = layer.backward(tape, dcontext)
    assert not dmemory[PAST].any() and dmemory[~PAST].any(axis=1).all() and not dquery[:, 2].any()
    assert all(np.isfinite(a).all() for a in (dquery, dmemory, *grads.values()))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("S, T, B", [(0, 2, 3), (2, 0, 3), (2, 2, 0), (0, 0, 0)])
def test_empty(kind, S, T, B):
    layer, Q, M = make(kind)
    context, tape = layer.forward(np.ones((T, B, Q)), np.ones((S, B, M)), lengths=[S] * B)
    assert context.shape == (T, B, M) and (S or not context.any())
    dquery, dmemory, grads = layer.backward(tape, np.ones((T, B, M)))
    assert dquery.shape == (T, B, Q) and dmemory.shape == (S, B, M)
    assert not any(g.any() for g in grads.values()) or (S and T and B)


def test_large_scores_do_not_overflow():
    query = np.full((1, 1, 2), 300, np.float32)
    memory = np.array([[[300, 300]], [[-300, 300]], [[1e19, 1e19]]], np.float32)
    context, weights = DotAttention()(query, memory, lengths=[2], return_weights=True)
    np.testing.assert_array_equal(weights[0, 0], [1, 0, 0])
    np.testing.assert_array_equal(context, memory[:1])
    context, weights = DotAttention()(-query, memory, lengths=[1], return_weights=True)  # -180000 beside 0 past the end
    np.testing.assert_array_equal(weights[0, 0], [1, 0, 0])
    np.testing.assert_array_equal(context, memory[:1])


def test_more_rows_than_one_product_takes():
    """The products go in blocks of rows."""
    query, memory = draw(40, 2, 96), draw(96, 2, 96, seed=1)
    scores = np.einsum("tbq,sbq->tbs", query, memory)
    weights = np.exp(scores - scores.max(axis=2, keepdims=True))
    weights /= weights.sum(axis=2, keepdims=True)
    got, got_weights = DotAttention()(query, memory, return_weights=True)
    np.testing.assert_allclose(got_weights, weights, rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(got, np.einsum("tbs,sbm->tbm", weights, memory), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_tapes(kind):
    layer, query, memory, dcontext = problem(kind)
    _, tape = layer.forward(query, memory)
    first = layer.backward(tape, dcontext)
    query[:], memory[:] = np.nan, np.nan
    first[0][:], first[1][:] = 7, 7
    again, third = layer.backward(tape, dcontext), layer.backward(tape, dcontext)
    for a, b in zip(again[:2] + tuple(again[2].values()), third[:2] + tuple(third[2].values()), strict=True):
        assert np.isfinite(a).all() and np.array_equal(a, b) and not np.shares_memory(a, b)
    with pytest.raises(ValueError, match="tape: expected one of this layer"):
        copy.deepcopy(layer).backward(tape, dcontext)
    with pytest.raises(TypeError, match="tape: expected what forward of this layer returned"):
        layer.backward(None, dcontext)
    if kind == "additive":
        given = {name: np.full_like(g, 3) for name, g in third[2].items()}
        assert layer.backward(tape, dcontext, given)[2] is given
        for name, g in third[2].items():
            np.testing.assert_allclose(given[name], g + 3)
        with layer.edit() as p:
            p["weight_score"] *= 2
        with pytest.raises(ValueError, match="tape: expected one made with the present weights"):
            layer.backward(tape, dcontext, given)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_and_files(kind, tmp_path):
    layer, query, memory, _ = problem(kind)
    if kind == "additive":
        elman.save(tmp_path / "attention.safetensors", layer)
    copies = [copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))]
    copies += [elman.load(tmp_path / "attention.safetensors"), layer.astype("f8")] if kind == "additive" else []
    for other in copies:
        assert repr(other) == repr(layer)
        np.testing.assert_array_equal(other(query, memory), layer(query, memory))
    assert repr(eval(repr(layer))) == repr(layer)


Q6, M6 = np.zeros((2, 3, 6)), np.zeros((4, 3, 6))
ADDITIVE = AdditiveAttention(6, 6, 2, dtype="f8")


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda: DotAttention()(Q6[0], M6), ValueError, r"query: expected shape \(T, B, Q\), got \(3, 6\)"),
        (lambda: DotAttention()(Q6, M6[..., :5]), ValueError, r"memory: expected shape \(S, 3, 6\), got \(4, 3, 5\)"),
        (lambda: DotAttention()(Q6, M6.astype("f4")), TypeError, "memory: expected dtype float64, got float32"),
        (lambda: DotAttention()(Q6, M6, lengths=[5, 0, 0]), ValueError, "lengths: expected 0 to 4"),
        (lambda: DotAttention()(Q6, M6, lengths=[1.0, 0, 0]), TypeError, "lengths: expected integers"),
        (lambda: DotAttention()(Q6, M6, return_weights=1), TypeError, "return_weights: expected True or False"),
        (lambda: ADDITIVE(Q6.astype("f4"), M6), TypeError, "query: expected dtype float64"),
        (lambda: ADDITIVE(Q6, M6[:, :2]), ValueError, r"memory: expected shape \(S, 3, 6\)"),
        (lambda: ADDITIVE.backward(ADDITIVE.forward(Q6, M6)[1], Q6[:1]), ValueError, r"dcontext: expected shape"),
        (lambda: ADDITIVE.backward(ADDITIVE.forward(Q6, M6)[1], Q6, {}), ValueError, "grads: expected exactly"),
        (lambda: DotAttention().backward(DotAttention().forward(Q6, M6)[1], Q6), ValueError, "tape: "),
        (lambda: AdditiveAttention(0, 1, 1), ValueError, "query_size: expected 1 to"),
        (lambda: AdditiveAttention(1, 1.0, 1), TypeError, "memory_size: expected an integer"),
        (lambda: AdditiveAttention(1, 1, True), TypeError, "units: expected an integer"),
    ],
)
def test_errors(call, error, words):
    with pytest.raises(error, match=words):
        call()
