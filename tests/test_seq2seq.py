"""Seq2Seq: central differences, PyTorch, teacher forcing, decoding against exhaustive search, fit, files, errors."""

import copy
import itertools
import pickle

import numpy as np
import pytest

import elman
from elman import (
    GRU,
    LSTM,
    RNN,
    TDNN,
    Activation,
    Adam,
    AdditiveAttention,
    Dense,
    DotAttention,
    Dropout,
    Embedding,
    Pooling,
    Seq2Seq,
    losses,
)

START, END, TOKENS, CLASSES = 6, 5, 7, 6
N = [5, 2, 1, 4]  # of the sources
M = [2, 3, 1, 0]  # of the targets
SOURCE = np.random.default_rng(1).integers(0, 8, (5, 4))
TARGET = np.random.default_rng(2).integers(0, 5, (3, 4))
LENGTHS = {"source_lengths": N, "target_lengths": M}
QUIET = {"verbose": 0, "seed": 0}


def lively(model, scale=2.5):
    """With larger weights, so that everything matters."""
    model.load_params({name: w if name.endswith(".0.weight") else scale * w for name, w in model.params.items()})
    return model


def lstms(dtype="f8", dropout=0.0, **options):
    """Two directions, two layers, additive attention."""
    model = Seq2Seq(
        [Embedding(8, 3, dtype=dtype, seed=0), LSTM(3, 4, 2, bidirectional=True, dropout=dropout, dtype=dtype, seed=1)],
        [Embedding(TOKENS, 3, dtype=dtype, seed=2), LSTM(3, 8, 2, dropout=dropout, dtype=dtype, seed=3)],
        [Dropout(dropout, seed=4), Dense(16, CLASSES, dtype=dtype, seed=5)],
        attention=AdditiveAttention(8, 8, 5, dtype=dtype, seed=6),
        **{"start": START, "end": END, **options},
    )
    return lively(model)


def grus(dtype="f8", **options):
    """Dot attention; layers behind and between the recurrent ones."""
    model = Seq2Seq(
        [Embedding(8, 3, dtype=dtype, seed=0), GRU(3, 5, dtype=dtype, seed=1), Dense(5, 6, dtype=dtype, seed=2)],
        [Embedding(TOKENS, 3, dtype=dtype, seed=3), GRU(3, 5, dtype=dtype, seed=4), Dense(5, 6, dtype=dtype, seed=5)],
        [Dense(12, 4, dtype=dtype, seed=6), Activation("tanh"), Dense(4, CLASSES, dtype=dtype, seed=7)],
        attention=DotAttention(),
        **{"start": START, "end": END, **options},
    )
    return lively(model)


def plain(dtype="f8", **options):
    """No attention, two kinds of recurrent layers in a row."""
    cells = [RNN(3, 4, dtype=dtype, seed=1), LSTM(4, 5, bidirectional=True, dtype=dtype, seed=2)]
    model = Seq2Seq(
        [Embedding(8, 3, dtype=dtype, seed=0), *cells],
        [Embedding(TOKENS, 3, dtype=dtype, seed=3), RNN(3, 4, dtype=dtype, seed=4), LSTM(4, 10, dtype=dtype, seed=5)],
        [Dense(10, CLASSES, dtype=dtype, seed=6)],
        **{"start": START, "end": END, **options},
    )
    return lively(model)


MODELS = [lstms, grus, plain]
each = pytest.mark.parametrize("make", MODELS)


def wild(model, scale=2.5, seed=0):
    """With large weights and no biases, so that what is written depends on what was read and fed."""
    rng = np.random.default_rng(seed)
    new = {name: scale * rng.standard_normal(w.shape) for name, w in model.params.items()}
    model.load_params({name: np.where("bias" in name, 0, w).astype(model.dtype) for name, w in new.items()})
    return model


def draw(*shape, dtype="f8", seed=9):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


# ------------------------------------------------------------------------------------------------- gradients


def check_gradients(model, source, some=5, ratio=1.0, **lengths):
    model.teacher_forcing = ratio
    logits, tape = model.forward(source, TARGET, rng=3, **lengths)
    dlogits = draw(*logits.shape)
    dsource, grads = model.backward(tape, dlogits)
    assert list(grads) == list(model.params)
    wanted = {name: (w, grads[name]) for name, w in model.params.items()}
    if source.dtype.kind == "f":
        wanted["source"] = source, dsource
    else:
        assert dsource is None
    other = copy.deepcopy(model)
    layers = {f"{place}.{name}": (layer, name) for place, layer in other._weighted for name in layer.params}

    def loss(name, value):
        if name != "source":
            layer, own = layers[name]
            layer.load_params({**layer.params, own: value})
        logits, _ = other.forward(value if name == "source" else source, TARGET, rng=3, **lengths)
        return float((logits * dlogits).sum())

    for name, (at, got) in wanted.items():
        places = np.random.default_rng(1).permutation(at.size)[:some]
        numeric = []
        for i in places:
            high, low = at.copy(), at.copy()
            high.flat[i] += 1e-5
            low.flat[i] -= 1e-5
            numeric.append((loss(name, high) - loss(name, low)) / 2e-5)
        loss(name, at)  # as it was
        np.testing.assert_allclose(got.flat[places], numeric, rtol=1e-5, atol=1e-8, err_msg=name)
        assert np.abs(got).max() > 1e-4, name


@pytest.mark.parametrize(
    "lengths, ratio", [({}, 1.0), (LENGTHS, 1.0), (LENGTHS, 0.3)], ids=["whole", "ragged", "sampled"]
)
@each
def test_gradients_by_central_differences(make, lengths, ratio):
    """At ratio 0.3 what is fed is a choice that a small change of a weight does not alter."""
    check_gradients(make(dropout=0.3) if make is lstms else make(), SOURCE, ratio=ratio, **lengths)


def test_gradients_by_a_source_of_numbers():
    model = Seq2Seq(
        [GRU(3, 5, dtype="f8", seed=1)],
        [Embedding(TOKENS, 3, dtype="f8", seed=2), GRU(3, 5, dtype="f8", seed=3)],
        [Dense(10, CLASSES, dtype="f8", seed=4)],
        attention=DotAttention(),
        start=START,
        end=END,
    )
    check_gradients(model, draw(5, 4, 3, seed=1), **LENGTHS)
    source = draw(5, 4, 3, seed=1)
    source[4, 1] = np.nan
    assert np.isfinite(model(source, TARGET, **LENGTHS)).all()


@pytest.mark.parametrize(
    "method, right, wrong",
    [
        ("backward", "self._bridged_back(dstate)", "()"),
        ("backward", "d = d + dquery", "d = d - dquery"),
        ("backward", "dcontext, d = d[..., :M], d[..., M:]", "d, dcontext = d[..., :M], d[..., M:]"),
        ("_bridged_back", "a.reshape(L, B, 2, H)", "a[..., ::-1].reshape(L, B, 2, H)"),
    ],
)
def test_a_planted_bug_is_seen(method, right, wrong, monkeypatch):
    import inspect
    import textwrap

    source = textwrap.dedent(inspect.getsource(getattr(Seq2Seq, method)))
    assert source.count(right) == 1, f"bring the list of planted bugs up to date: {right}"
    names = dict(vars(elman.seq2seq))
    exec(compile(source.replace(right, wrong), "with a planted bug", "exec"), names)
    monkeypatch.setattr(Seq2Seq, method, names[method])
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_gradients(lstms(), SOURCE, **LENGTHS)


def test_against_pytorch():
    """Ragged, bidirectional, with attention: packed sequences and autograd."""
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn
    model = lstms()
    w = {name: torch.tensor(a, requires_grad=True) for name, a in model.params.items()}
    functional_call = torch.func.functional_call
    ours = {part: {k[len(part) + 3 :]: a for k, a in w.items() if k.startswith(f"{part}.1.")} for part in PARTS}
    encoder = torch.nn.LSTM(3, 4, 2, bidirectional=True, dtype=torch.float64)
    decoder = torch.nn.LSTM(3, 8, 2, dtype=torch.float64)
    embedded = w["encoder.0.weight"][torch.tensor(SOURCE)]
    packed = rnn.pack_padded_sequence(embedded, torch.tensor(N), enforce_sorted=False)
    memory, state = functional_call(encoder, ours["encoder"], (packed,))
    memory, _ = rnn.pad_packed_sequence(memory)
    state = tuple(torch.stack([torch.cat([a[2 * i], a[2 * i + 1]], -1) for i in range(2)]) for a in state)
    fed = torch.cat([torch.full((1, 4), START), torch.tensor(TARGET)])
    hidden, _ = functional_call(decoder, ours["decoder"], (w["decoder.0.weight"][fed], state))
    sums = (hidden @ w["attention.weight_query"].T)[:, None] + (memory @ w["attention.weight_memory"].T)[None]
    scores = torch.tanh(sums) @ w["attention.weight_score"]  # (T, S, B)
    scores = scores.masked_fill((torch.arange(5)[:, None] >= torch.tensor(N))[None], -torch.inf)
    context = torch.einsum("tsb,sbm->tbm", scores.softmax(1), memory)
    logits = torch.cat([context, hidden], -1) @ w["output.1.weight"].T + w["output.1.bias"]
    labels, ends = model.labels(TARGET, M)
    inside = torch.arange(4)[:, None] < torch.tensor(ends)
    loss = torch.nn.functional.cross_entropy(logits[inside], torch.tensor(labels)[inside])
    loss.backward()

    got, tape = model.forward(SOURCE, TARGET, **LENGTHS)
    value, dlogits = elman.softmax_cross_entropy(got, labels, lengths=ends)
    _, grads = model.backward(tape, dlogits)
    assert value == pytest.approx(loss.item(), rel=1e-13)
    np.testing.assert_allclose(got[inside], logits[inside].detach(), rtol=1e-12, atol=1e-14)
    assert not got[~inside.numpy()].any()
    for name, g in grads.items():
        assert np.abs(g).max() > 1e-5, name
        np.testing.assert_allclose(g, w[name].grad, rtol=1e-10, atol=1e-14, err_msg=name)


PARTS = ("encoder", "decoder")


# ------------------------------------------------------------------------------------- what goes in, what comes out


@each
def test_a_call_is_forward_without_dropout(make):
    model = make()
    np.testing.assert_array_equal(model.forward(SOURCE, TARGET, **LENGTHS)[0], model(SOURCE, TARGET, **LENGTHS))
    dropping = lstms(dropout=0.5)
    assert not np.array_equal(dropping.forward(SOURCE, TARGET, rng=0)[0], dropping(SOURCE, TARGET))
    np.testing.assert_array_equal(
        dropping.forward(SOURCE, TARGET, rng=0)[0],
        dropping.forward(SOURCE, TARGET, rng=np.random.default_rng(0))[0],
    )
    np.testing.assert_array_equal(dropping(SOURCE, TARGET), lstms()(SOURCE, TARGET))


@each
def test_the_logits_before_a_token_do_not_see_it(make):
    model, other = make(), TARGET.copy()
    other[1] = (other[1] + 1) % 5
    a, b = model(SOURCE, TARGET), model(SOURCE, other)
    np.testing.assert_array_equal(a[:2], b[:2])
    assert (np.abs(a[2:] - b[2:]).max(axis=(0, 2)) > 1e-6).all()


@each
def test_each_sequence_is_what_it_is_alone(make):
    model = make()
    source, target = SOURCE.copy(), TARGET.copy()
    source[np.arange(5)[:, None] >= N] = -7
    target[np.arange(3)[:, None] >= M] = 99
    together, tape = model.forward(source, target, **LENGTHS)
    dlogits = draw(*together.shape)
    grads = model.backward(tape, np.where((np.arange(4)[:, None] <= M)[..., None], dlogits, np.nan))[1]
    summed = {name: np.zeros_like(g) for name, g in grads.items()}
    for b, (n, m) in enumerate(zip(N, M)):
        alone, tape = model.forward(SOURCE[:n, b : b + 1], TARGET[:m, b : b + 1])
        np.testing.assert_allclose(together[: m + 1, b], alone[:, 0], rtol=1e-12, atol=1e-14)
        assert not together[m + 1 :, b].any()
        model.backward(tape, dlogits[: m + 1, b : b + 1], summed)
    for name, g in grads.items():
        np.testing.assert_allclose(g, summed[name], rtol=1e-9, atol=1e-12, err_msg=name)


def test_labels():
    labels, ends = grus().labels([[1, 2], [3, 4]], [2, 0])
    np.testing.assert_array_equal(labels, [[1, END], [3, 0], [END, 0]])
    np.testing.assert_array_equal(ends, [3, 1])
    labels, ends = grus().labels([[1, 2], [3, 4]])
    np.testing.assert_array_equal(labels, [[1, 2], [3, 4], [END, END]])
    assert ends is None


def test_the_attention_shows_its_weights():
    model = lstms()
    logits, weights = model(SOURCE, TARGET, **LENGTHS, return_weights=True)
    np.testing.assert_array_equal(logits, model(SOURCE, TARGET, **LENGTHS))
    assert weights.shape == (4, 4, 5)
    np.testing.assert_allclose(weights.sum(axis=2), 1, rtol=1e-13)
    assert not weights[:, (np.arange(5) >= np.array(N)[:, None])].any()
    with pytest.raises(ValueError, match="return_weights: expected False, since this model has no attention"):
        plain()(SOURCE, TARGET, return_weights=True)


# --------------------------------------------------------------------------------------------- teacher forcing


def test_ratio_1_calls_each_kernel_once(monkeypatch):
    calls = []
    model = grus()
    monkeypatch.setattr(GRU, "step", lambda self, *a: calls.append("step") or GRU.__mro__[1].step(self, *a))
    monkeypatch.setattr(GRU, "forward", lambda self, *a, **k: calls.append(1) or GRU.__mro__[1].forward(self, *a, **k))
    model.forward(SOURCE, TARGET)
    assert calls == [1, 1]
    model.teacher_forcing = 0.5
    model.forward(SOURCE, TARGET)
    assert calls[2:] == [1, "step", "step", "step", 1]


@each
def test_ratio_0_feeds_what_is_written(make):
    """The target then has no say but in its length, and the logits are those of what `decode` writes."""
    model = wild(make(teacher_forcing=0.0, end=0))
    logits, _ = model.forward(SOURCE, TARGET, source_lengths=N)
    again, _ = model.forward(SOURCE, (TARGET + 1) % 5, source_lengths=N)
    np.testing.assert_array_equal(logits, again)
    written = logits.argmax(axis=2)
    np.testing.assert_allclose(logits, model(SOURCE, written[:-1], source_lengths=N), rtol=1e-12)
    for b, tokens in enumerate(model.decode(SOURCE, source_lengths=N, max_length=4)):
        np.testing.assert_array_equal(tokens, written[: len(tokens), b])
        assert len(tokens) == 4 or written[len(tokens), b] == 0
    assert len(np.unique(written)) > 1
    assert np.abs(logits - model(SOURCE, TARGET, source_lengths=N)).max() > 0.1


def test_between_0_and_1_coins_are_thrown():
    """For each token one, as likely as they should be; the fed tokens are then the true or the written ones."""
    model, fed = wild(grus(teacher_forcing=0.7)), []
    source, target = np.tile(SOURCE, (1, 50)), np.tile(TARGET, (10, 50))
    inner = model.decoder.forward

    class Spy(type(model.decoder)):
        def forward(self, x, *arguments, **options):
            fed.append(x.copy())
            return inner(x, *arguments, **options)

    object.__setattr__(model.decoder, "__class__", Spy)
    logits, _ = model.forward(source, target, rng=0)
    again, _ = model.forward(source, target, rng=0)
    other, _ = model.forward(source, target, rng=1)
    np.testing.assert_array_equal(logits, again)
    assert not np.array_equal(logits, other)
    assert (fed[0][0] == START).all()
    written = logits.argmax(axis=2)[:-1]
    true, own = fed[0][1:] == target, fed[0][1:] == written
    assert (true | own).all()
    differ = target != written
    assert 0.65 < true[differ].mean() < 0.75 and differ.mean() > 0.5
    for axis in (0, 1):  # neither whole steps nor whole sequences
        share = (true & differ).sum(axis=axis) / np.maximum(differ.sum(axis=axis), 1)
        assert ((0.2 < share) & (share < 1))[differ.sum(axis=axis) > 12].all()


def test_without_rng_the_seed_says_it():
    first, second, other = (wild(grus(teacher_forcing=0.5, seed=seed)) for seed in (1, 1, 2))
    a, b, c = (model.forward(SOURCE, TARGET)[0] for model in (first, second, other))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    twin = copy.deepcopy(first)
    np.testing.assert_array_equal(first.forward(SOURCE, TARGET)[0], twin.forward(SOURCE, TARGET)[0])


# ---------------------------------------------------------------------------------------------------- decoding


def log_p(model, source, tokens, end):
    """Of these tokens and, if `end`, the end."""
    logits = model(source, np.array(tokens, int).reshape(-1, 1))[:, 0]
    rows = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return sum(rows[t, token] for t, token in enumerate([*tokens, model.end] if end else tokens))


@each
def test_greedy(make):
    """Against a loop over whole calls."""
    model = wild(make(end=0))
    got = model.decode(SOURCE, source_lengths=N, max_length=6)
    for b, n in enumerate(N):
        tokens = []
        while len(tokens) < 6:
            logits = model(SOURCE[:n, b : b + 1], np.array(tokens, int).reshape(-1, 1))
            tokens.append(int(logits[-1, 0].argmax()))
            if tokens[-1] == 0:
                break
        np.testing.assert_array_equal(got[b], [token for token in tokens if token])
    assert len({tuple(tokens) for tokens in got}) > 1
    assert all(tokens.dtype.kind == "i" for tokens in got)


def tiny(seed):
    """Three classes and an end that comes at any time."""
    model = Seq2Seq(
        [Embedding(4, 3, dtype="f8", seed=seed), GRU(3, 4, dtype="f8", seed=seed + 1)],
        [Embedding(4, 3, dtype="f8", seed=seed + 2), GRU(3, 4, dtype="f8", seed=seed + 3)],
        [Dense(8, 3, dtype="f8", seed=seed + 4)],
        attention=DotAttention(),
        start=3,
        end=1,
    )
    return wild(model, scale=1.0, seed=seed)


@pytest.mark.parametrize("penalty", [0.0, 0.6, 1.0])
def test_a_wide_beam_is_exhaustive_search(penalty):
    """All that can be written in four tokens, the end included, or without an end: 31 hypotheses, so that a beam of 31
    has no place for one that is there twice."""
    source, longest, differ = np.array([[0, 1, 2], [3, 1, 0]]), 4, 0
    for seed in range(4):
        model = tiny(10 * seed)
        got, scores = model.decode(
            source, max_length=longest, beam_width=31, length_penalty=penalty, return_scores=True
        )
        greedy = model.decode(source, max_length=longest)
        for b in range(3):
            x, found = source[:, b : b + 1], {}
            for n in range(longest):
                for tokens in itertools.product((0, 2), repeat=n):
                    found[tokens] = log_p(model, x, tokens, True) / (n + 1) ** penalty
            for tokens in itertools.product((0, 2), repeat=longest):
                found[tokens] = log_p(model, x, tokens, False) / longest**penalty
            best = max(found, key=found.get)
            assert tuple(got[b]) == best
            assert scores[b] == pytest.approx(found[best], rel=1e-12)
            differ += tuple(greedy[b]) != best
    assert differ  # greedy is not always as good


def by_lists(model, source, longest, width, penalty):
    """A beam search in the plainest words, on one source: what it finds, and its score."""
    beam = [((), 0.0, False)]  # tokens with the end, log-probability, ended
    for _ in range(longest):
        grown = [hypothesis for hypothesis in beam if hypothesis[2]]
        for tokens, total, ended in beam:
            if not ended:
                logits = model(source, np.array(tokens, int).reshape(-1, 1))[-1, 0]
                of_next = total + logits - np.log(np.exp(logits).sum())
                grown += [((*tokens, token), p, token == model.end) for token, p in enumerate(of_next)]
        beam = sorted(grown, key=lambda hypothesis: -hypothesis[1] / len(hypothesis[0]) ** penalty)[:width]
    tokens, total, ended = beam[0]
    return tokens[: len(tokens) - ended], total / len(tokens) ** penalty


@pytest.mark.parametrize("width, penalty", [(1, 1.0), (2, 1.0), (2, 0.0), (4, 0.7), (5, 1.0)])
def test_a_beam_against_plain_lists(width, penalty):
    source, lengths = np.random.default_rng(1).integers(0, 4, (3, 12)), [3, 1, 2] * 4
    options = {"max_length": 6, "beam_width": width, "length_penalty": penalty, "return_scores": True}
    for seed in range(2):
        model = tiny(seed)
        written, scores = model.decode(source, source_lengths=lengths, **options)
        for b, n in enumerate(lengths):
            tokens, score = by_lists(model, source[:n, b : b + 1], 6, width, penalty)
            assert tuple(written[b]) == tokens and scores[b] == pytest.approx(score, rel=1e-12)


def test_an_ended_hypothesis_takes_one_place():
    """Tokens whose chances depend on the last one only: the end is likely at once, "aaaa" is better in the mean. What
    would follow the end must not push it out of a beam of two."""
    after_a, after_end, after_b, after_start = [0.98, 0.01, 0.01], [0.01, 0.01, 0.98], [0.3, 0.4, 0.3], [0.3, 0.6, 0.1]
    model = Seq2Seq(
        [Embedding(1, 4, dtype="f8"), RNN(4, 4, dtype="f8")],
        [Embedding(4, 4, dtype="f8"), RNN(4, 4, nonlinearity="relu", bias=False, dtype="f8")],
        [Dense(4, 3, bias=False, dtype="f8")],
        start=3,
        end=1,
    )
    with model.edit() as p:
        p["decoder.0.weight"][:] = p["decoder.1.weight_ih_l0"][:] = np.eye(4)
        p["decoder.1.weight_hh_l0"][:] = 0
        p["output.0.weight"][:] = np.log([after_a, after_end, after_b, after_start]).T
    source, options = np.zeros((1, 1), int), {"max_length": 4, "return_scores": True}
    (written,), (score,) = model.decode(source, beam_width=1, **options)
    assert len(written) == 0 and score == pytest.approx(np.log(0.6))
    (written,), (score,) = model.decode(source, beam_width=2, **options)
    assert written.tolist() == [0, 0, 0, 0] and score == pytest.approx((np.log(0.3) + 3 * np.log(0.98)) / 4)


def test_a_beam_is_between_greedy_and_exhaustive():
    model = tiny(0)
    source = np.random.default_rng(0).integers(0, 4, (3, 60))
    options = {"max_length": 6, "length_penalty": 0.0, "return_scores": True}
    scores = [model.decode(source, beam_width=width, **options)[1] for width in (1, 4, 729)]
    assert (scores[0] <= scores[2] + 1e-12).all() and (scores[1] <= scores[2] + 1e-12).all()
    assert scores[0].mean() < scores[1].mean()
    for width in (1, 3):  # a batch is its sequences
        together = model.decode(source, beam_width=width)
        for b in range(0, 60, 7):
            np.testing.assert_array_equal(model.decode(source[:, b : b + 1], beam_width=width)[0], together[b])


def test_length_penalty_favours_longer_ones():
    model = tiny(0)
    source = np.random.default_rng(0).integers(0, 4, (3, 60))
    total = [
        sum(map(len, model.decode(source, max_length=8, beam_width=9, length_penalty=penalty)))
        for penalty in (0.0, 1.0, 3.0)
    ]
    assert total[0] < total[1] < total[2]


@pytest.mark.parametrize("width", [1, 3])
def test_the_end_ends(width):
    model = grus()
    with model.edit() as p:
        p["output.2.bias"][END] = 50
    assert [len(tokens) for tokens in model.decode(SOURCE, beam_width=width)] == [0] * 4
    with model.edit() as p:
        p["output.2.bias"][END] = -50
    assert [len(tokens) for tokens in model.decode(SOURCE, beam_width=width, max_length=7)] == [7] * 4
    assert model.decode(np.zeros((5, 0), int), beam_width=width) == []


@pytest.mark.parametrize("width", [1, 3])
def test_a_long_way(width):
    """What `max_length` allows is not taken before it is needed, and the tokens of many steps are kept."""
    model = grus()
    with model.edit() as p:
        p["output.2.bias"][END] = -50
    long, scores = model.decode(SOURCE, beam_width=width, max_length=200, return_scores=True)
    assert [len(tokens) for tokens in long] == [200] * 4
    for b, tokens in enumerate(long):
        logits = model(SOURCE[:, b : b + 1], tokens[:, None])[:-1, 0].astype(np.float64)
        picked = (logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))[np.arange(200), tokens]
        np.testing.assert_allclose(picked.mean(), scores[b], rtol=1e-6)
    with model.edit() as p:
        p["output.2.bias"][END] = 50
    assert [len(tokens) for tokens in model.decode(SOURCE, beam_width=width, max_length=2**62)] == [0] * 4


# ---------------------------------------------------------------------------------------------------- training


def reversals(count, seed=0):
    """Short rows of integers, to be written backwards and each one less."""
    rng = np.random.default_rng(seed)
    x = [rng.integers(1, 5, n) for n in rng.integers(1, 6, count)]
    return x, [a[::-1] - 1 for a in x]


def student(seed=0, dtype="f4", **options):
    return Seq2Seq(
        [Embedding(5, 8, dtype=dtype, seed=seed), GRU(8, 16, bidirectional=True, dtype=dtype, seed=seed + 1)],
        [Embedding(6, 8, dtype=dtype, seed=seed + 2), GRU(8, 32, dtype=dtype, seed=seed + 3)],
        [Dense(64, 32, dtype=dtype, seed=seed + 4), Activation("tanh"), Dense(32, 5, dtype=dtype, seed=seed + 5)],
        attention=DotAttention(),
        start=5,
        end=4,
        **options,
    )


def train(model, epochs, optimizer=None, count=150, **options):
    x, y = reversals(count)
    options = {"loss": "softmax_cross_entropy", "clip_norm": 1.0, **QUIET, **options}
    return model.fit(x, y, epochs=epochs, optimizer=optimizer or Adam(model, lr=0.01), **options)


def same(a, b):
    return all(np.array_equal(a.params[name], w) for name, w in b.params.items())


@pytest.mark.parametrize("ratio", [1.0, 0.75])
def test_it_learns(ratio, tmp_path):
    model = student(teacher_forcing=ratio)
    x, y = reversals(100, seed=1)
    path = tmp_path / "best.safetensors"
    history = train(
        model, 12, count=600, validation_data=(x, y), metrics=["accuracy"], callbacks=[elman.Checkpoint(path)]
    )
    found = model.evaluate(x, y, loss="softmax_cross_entropy", metrics=["accuracy"], batch_size=7)
    assert found["accuracy"] > 0.97
    assert history.history["val_accuracy"][-1] == found["accuracy"]
    assert found["loss"] == pytest.approx(history.history["val_loss"][-1], rel=1e-4)
    for width in (1, 3):
        written = model.predict(x, beam_width=width, batch_size=9, max_length=8)
        assert np.mean([np.array_equal(a, b) for a, b in zip(written, y, strict=True)]) > 0.9
    best = elman.load(path)
    assert best.evaluate(x, y, loss="softmax_cross_entropy")["loss"] == min(history.history["val_loss"])


def test_evaluate_is_the_mean_over_all_tokens():
    model, (x, y) = student(dtype="f8"), reversals(23)
    total = count = right = 0
    for a, b in zip(x, y):
        logits = model(a[:, None], b[:, None])
        total += losses.softmax_cross_entropy(logits, model.labels(b[:, None])[0], reduction="sum")[0]
        right += (logits[:, 0].argmax(axis=1) == [*b, 4]).sum()
        count += len(b) + 1
    model.teacher_forcing = 0.0  # of no effect here
    found = model.evaluate(x, y, loss="softmax_cross_entropy", metrics=["accuracy"], batch_size=5)
    assert found["loss"] == pytest.approx(total / count, rel=1e-12) and found["accuracy"] == right / count


def test_arrays_are_lists_of_like_length():
    x, y = np.arange(24).reshape(6, 4) % 5, np.arange(18).reshape(6, 3) % 4
    a, b = student(), student()
    options = {"loss": "softmax_cross_entropy", "epochs": 2, "batch_size": 3, "shuffle": False, **QUIET}
    a.fit(x, y, **options)
    b.fit(list(x), list(y), **options)
    for name, w in a.params.items():
        np.testing.assert_allclose(w, b.params[name], rtol=1e-5, atol=1e-6)
    assert all(np.array_equal(p, q) for p, q in zip(a.predict(x, max_length=4), a.predict(list(x), max_length=4)))


@pytest.mark.parametrize("ratio", [1.0, 0.5])
def test_same_seed_same_bits_whatever_the_threads(ratio):
    def trained(threads, **options):
        with elman.threads(threads):
            model = student(teacher_forcing=ratio)
            return model, train(model, 2, **options).history

    (a, first), (b, second), (c, _) = trained(1), trained(4), trained(1, seed=1)
    assert same(a, b) and first == second and not same(a, c)


def test_two_fits_are_one():
    whole, part = student(teacher_forcing=0.5), student(teacher_forcing=0.5)
    train(whole, 3)
    first = train(part, 1)
    assert not same(whole, part)
    train(part, 3, first.optimizer, initial_epoch=1)
    assert same(whole, part)


def test_the_ratio_goes_down_by_a_callback():
    class Less(elman.Callback):
        def on_epoch_end(self, model, epoch, logs):
            model.teacher_forcing = 1 - 0.25 * (epoch + 1)

    model, other = student(), student()
    train(model, 3, callbacks=[Less()])
    train(other, 3)
    assert model.teacher_forcing == 0.25 and not same(model, other)
    with pytest.raises(ValueError, match="teacher_forcing: expected 0 to 1"):
        model.teacher_forcing = 1.5


def test_early_stopping_restores_the_best():
    model = student()
    history = train(model, 3, Adam(model, lr=0.5), callbacks=[elman.EarlyStopping(1)], validation_data=reversals(20))
    best = min(history.history["val_loss"])
    x, y = reversals(20)
    assert model.evaluate(x, y, loss="softmax_cross_entropy")["loss"] == pytest.approx(best, rel=1e-5)


# -------------------------------------------------------------------------------------- weights, copies and files


@each
def test_copies_and_files(make, tmp_path):
    model = wild(make("f4", teacher_forcing=0.5))
    path = tmp_path / "model.safetensors"
    elman.save(path, model)
    raw = path.read_bytes()
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), elman.load(path), model.astype("f4")]
    for other in [*others, eval(repr(model), vars(elman))]:
        other.load_params(model.params)
        assert repr(other) == repr(model) and other.teacher_forcing == 0.5
        np.testing.assert_array_equal(other(SOURCE, TARGET, **LENGTHS), model(SOURCE, TARGET, **LENGTHS))
        elman.save(path, other)
        assert path.read_bytes() == raw
        with other.edit() as p:
            p["encoder.0.weight"] += 1
        assert not np.array_equal(other(SOURCE, TARGET), model(SOURCE, TARGET))
    wide = model.astype("f8")
    assert wide.dtype == np.float64 and all(w.dtype == np.float64 for w in wide.params.values())
    np.testing.assert_allclose(wide(SOURCE, TARGET), model(SOURCE, TARGET), atol=1e-4)
    with pytest.raises(AttributeError, match="start"):
        model.start = 1


def test_a_hostile_file_is_refused(tmp_path):
    path = tmp_path / "model.safetensors"
    for right, wrong in (
        (b'"start\\":6', b'"start\\":9'),
        (b'"units\\":5', b'"units\\":9'),
        (b'"hidden_size\\":8', b'"hidden_size\\":7'),
        (b'"class\\":\\"Dropout\\"', b'"class\\":\\"Sequent\\"'),
        (b'"attention\\":{', b'"attentiom\\":{'),
    ):
        elman.save(path, lstms())
        raw = path.read_bytes()
        assert right in raw
        path.write_bytes(raw.replace(right, wrong))
        with pytest.raises(ValueError, match="model.safetensors: "):
            elman.load(path)


def test_names_and_atomic_changes():
    model = lstms()
    own = [f"encoder.{i}.{name}" for i in (0, 1) for name in model.encoder[i].params]
    own += [f"decoder.{i}.{name}" for i in (0, 1) for name in model.decoder[i].params]
    own += [f"attention.{name}" for name in model.attention.params] + ["output.1.weight", "output.1.bias"]
    assert list(model.params) == own
    before = dict(model.params)
    with pytest.raises(ValueError, match="output.1.bias: expected finite"):
        with model.edit() as p:
            p["encoder.0.weight"] += 1
            p["attention.weight_score"] += 1
            p["output.1.bias"][0] = np.nan
    assert all(np.array_equal(model.params[name], w) for name, w in before.items())


def test_tapes():
    model, dlogits = lstms(), draw(4, 4, CLASSES)
    _, tape = model.forward(SOURCE, TARGET)
    grads = model.backward(tape, dlogits)[1]
    given = {name: np.full_like(g, 3) for name, g in grads.items()}
    assert model.backward(tape, dlogits, given)[1] is given
    for name, g in grads.items():
        np.testing.assert_allclose(given[name], g + 3)
    with pytest.raises(TypeError, match="tape: expected what forward of this model returned"):
        model.backward(None, dlogits)
    with pytest.raises(ValueError, match="tape: expected one of this model"):
        copy.deepcopy(model).backward(tape, dlogits)
    kept = {name: g.copy() for name, g in given.items()}
    layers = {"encoder": model.encoder[1], "attention": model.attention, "decoder": model.decoder[0]}
    for part, layer in {**layers, "output": model.output[1]}.items():
        _, tape = model.forward(SOURCE, TARGET)
        with layer.edit() as p:
            p[next(iter(p))] *= 2
        with pytest.raises(ValueError, match=f"{part}: .*tape: "):
            model.backward(tape, dlogits, given)
    assert all(np.array_equal(given[name], g) for name, g in kept.items())


# ------------------------------------------------------------------------------------------------------ errors


def built(encoder=None, decoder=None, output=None, **options):
    return Seq2Seq(
        encoder or [Embedding(8, 3), GRU(3, 4)],
        decoder or [Embedding(7, 3), GRU(3, 4)],
        output or [Dense(4, 6)],
        **{"start": 6, "end": 5, **options},
    )


SHARED = GRU(3, 4)


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: built(encoder=GRU(3, 4)), TypeError, "encoder: layers: expected a list of layers, got GRU"),
        (lambda: built(encoder=[Embedding(8, 3)]), ValueError, "encoder: expected a recurrent layer"),
        (lambda: built(encoder=[GRU(3, 4), Pooling("last")]), ValueError, "encoder: expected no Pooling"),
        (lambda: built(encoder=[GRU(3, 5)]), ValueError, r"decoder: expected .* the encoder gives, .*5.*, got .*4"),
        (lambda: built(encoder=[LSTM(3, 4)]), ValueError, "decoder: expected recurrent layers with the states"),
        (lambda: built(encoder=[GRU(3, 4, 2)]), ValueError, "decoder: expected recurrent layers with the states"),
        (lambda: built(encoder=[GRU(3, 4, dtype="f8")]), TypeError, "decoder: expected dtype float64 as the encoder"),
        (lambda: built([SHARED], [Embedding(7, 3), SHARED]), ValueError, "expected layers that are in no other part"),
        (lambda: built(decoder=[GRU(3, 4)]), ValueError, "decoder: expected Embedding as its first layer"),
        (
            lambda: built(decoder=[Embedding(7, 3), TDNN(3, 3, 2), GRU(3, 4)]),
            ValueError,
            r"decoder: decode: layers\[1\], TDNN.*needs the whole sequence",
        ),
        (
            lambda: built(decoder=[Embedding(7, 3), GRU(3, 4, bidirectional=True)]),
            ValueError,
            r"decoder: decode: layers\[1\]",
        ),
        (lambda: built(output=[GRU(4, 6), Dense(6, 6)]), ValueError, "output: expected layers for each step by itself"),
        (lambda: built(output=[Activation("tanh")]), ValueError, "output: expected Dense as its last layer"),
        (lambda: built(output=[Dense(4, 8)]), ValueError, "output: expected at most the 7 tokens"),
        (lambda: built(attention="dot"), TypeError, "attention: expected DotAttention, AdditiveAttention or None"),
        (lambda: built(attention=AdditiveAttention(4, 4, 2, dtype="f8")), TypeError, "attention: expected dtype"),
        (lambda: built(start=7), ValueError, "start: expected 0 to 6"),
        (lambda: built(end=6), ValueError, "end: expected 0 to 5"),
        (lambda: built(end=1.0), TypeError, "end: expected an integer"),
        (lambda: built(teacher_forcing=-0.1), ValueError, "teacher_forcing: expected 0 to 1"),
        (lambda: built(seed=-1), ValueError, "seed"),
        (lambda: built()(SOURCE[0], TARGET), ValueError, r"source: expected shape \(S, B\), got \(4,\)"),
        (lambda: built()(SOURCE[:, :3], TARGET), ValueError, "source: expected 4 sequences as in target, got 3"),
        (lambda: built()(SOURCE + 1, TARGET), ValueError, r"encoder: layers\[0\], Embedding: x: expected 0 to 7"),
        (lambda: built()(SOURCE, TARGET[0]), ValueError, r"target: expected shape \(T, B\)"),
        (lambda: built()(SOURCE, TARGET * 1.0), TypeError, "target: expected integers"),
        (lambda: built()(SOURCE, TARGET + 2), ValueError, "target: expected 0 to 5"),
        (lambda: built()(SOURCE, TARGET, target_lengths=[4, 0, 0, 0]), ValueError, "target_lengths: expected 0 to 3"),
        (lambda: built()(SOURCE, TARGET, source_lengths=[1]), ValueError, "source_lengths: expected shape"),
        (lambda: built().forward(SOURCE, TARGET, rng=0.5), TypeError, "rng"),
        (lambda: built([Embedding(8, 3), GRU(4, 4)]), ValueError, r"encoder: layers\[1\]: expected .* 3 .*Embedding"),
        (lambda: built(None, [Embedding(7, 2), GRU(3, 4)]), ValueError, r"decoder: layers\[1\]: .* 2 .*Embedding"),
        (lambda: built(output=[Activation("tanh"), Dense(8, 6)]), ValueError, r"output: .* 4 .*GRU\(3, 4\), got .* 8$"),
        (
            lambda: built(attention=DotAttention()),
            ValueError,
            r"output: expected layers that take 8 features, the context's 4 and the decoder's 4, got .* 4$",
        ),
        (
            lambda: built([Embedding(8, 3), GRU(3, 4), Dense(4, 3)], None, [Dense(7, 6)], attention=DotAttention()),
            ValueError,
            "attention: expected .* the same number of features for DotAttention, got 3 and 4",
        ),
        (lambda: built(attention=AdditiveAttention(5, 4, 2)), ValueError, "attention: expected query_size 4.* got 5"),
        (lambda: built(attention=AdditiveAttention(4, 5, 2)), ValueError, "attention: expected memory_size 4.* got 5"),
        (lambda: built().backward(built().forward(SOURCE, TARGET)[1], None), ValueError, "tape: "),
        (lambda: built().decode(SOURCE, beam_width=0), ValueError, "beam_width: expected at least 1"),
        (lambda: built().decode(SOURCE, max_length=0), ValueError, "max_length: expected at least 1"),
        (lambda: built().decode(SOURCE, length_penalty=-1), ValueError, "length_penalty: expected at least 0"),
        (lambda: built().decode(SOURCE, return_scores=1), TypeError, "return_scores"),
        (lambda: built().predict([SOURCE[:, 0]], batch_size=0), ValueError, "batch_size: expected at least 1"),
        (lambda: built().predict([]), ValueError, "^x: expected at least one sequence, got none"),
        (lambda: built().predict([[]]), ValueError, r"x\[0\]: expected at least one step"),
    ],
)  # fmt: skip
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"x": np.zeros((2, 3), np.float32)}, ValueError, "x: expected sources with a time axis"),
        ({"x": np.ones(2, int)}, ValueError, r"x: expected \(N, T\), got \(2,\); one sequence alone is x\[None\]"),
        ({"x": [], "y": []}, ValueError, "^x: expected at least one sequence, got none"),
        ({"validation_data": ([], [])}, ValueError, "^validation_data: x: expected at least one sequence, got none"),
        ({"x": [[1, 2], []]}, ValueError, r"x\[1\]: expected at least one step"),
        ({"y": [[0, 1]]}, ValueError, "y: expected 2 targets"),
        ({"y": [[0, 1], [0.5]]}, TypeError, r"y\[1\]: expected integers"),
        ({"y": [[0, 1], 2]}, ValueError, r"y\[1\]: expected shape"),
        ({"y": [[0, 1], [6]]}, ValueError, r"y\[1\]: expected 0 to 5"),
        ({"y": [[0, 5], [1]]}, ValueError, r"y\[0\]: expected no end token \(5\)"),
        ({"validation_data": ([[1]], [[9]])}, ValueError, r"validation_data: y\[0\]: expected 0 to 5"),
        ({"tbptt": 2}, ValueError, "tbptt: expected None, since a Seq2Seq needs whole sequences"),
        ({"loss": "ctc"}, ValueError, "loss: expected one with a target for every step for a Seq2Seq, got ctc"),
    ],
)
def test_errors_of_fit(options, error, words):
    model = built()
    before = dict(model.params)
    with pytest.raises(error, match=words):
        model.fit(**{"x": [[1, 2], [3]], "y": [[0], []], "loss": "softmax_cross_entropy", **QUIET, **options})
    assert all(np.array_equal(model.params[name], w) for name, w in before.items())
