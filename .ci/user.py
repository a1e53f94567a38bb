"""What a user's program does first: run where elman is installed with NumPy alone, and typed by mypy."""

import os
import sys
import tempfile

import numpy as np

before = set(sys.modules)

import elman  # noqa: E402

foreign = {name.partition(".")[0] for name in set(sys.modules) - before} - sys.stdlib_module_names
foreign = {name for name in foreign if name not in ("elman", "numpy") and not name.startswith(("_cython", "cython"))}
assert not foreign, f"importing elman imports {foreign}"

config = elman.config()
assert config["isa"] in elman.config()["isa_usable"]  # type: ignore[operator]
elman.show_config()

lstm = elman.LSTM(3, 5, 2, bidirectional=True, seed=0)
x = np.random.default_rng(0).standard_normal((7, 4, 3), dtype=np.float32)
y, (h, c) = lstm(x)
assert y.shape == (7, 4, 10) and h.shape == c.shape == (4, 4, 5) and y.dtype == np.float32

y, state, tape = lstm.forward(x, lengths=[7, 0, 3, 5])
dx, dstate, grads = lstm.backward(tape, np.ones_like(y))
assert dx.shape == x.shape and grads.keys() == lstm.params.keys()

reference = elman.LSTM(3, 5, 2, bidirectional=True, seed=0, backend="reference")
assert np.abs(reference(x)[0] - lstm(x)[0]).max() < 1e-6

gru = elman.GRU(3, 5, seed=0)
stream = gru.zero_state(1)
out = np.empty((1, 5), np.float32)
for x_t in x[:, :1]:
    gru.step(x_t, stream, out=out)
assert np.array_equal(out, gru(x[:, :1])[0][-1])

# One call of everything else that is public, so that its types are looked at.
head = elman.Dense(5, 3, seed=1)
optimizer = elman.Adam([gru, head], lr=1e-3)
hidden, h_n, gru_tape = gru.forward(x)
logits, head_tape = head.forward(hidden)
loss, dlogits = elman.softmax_cross_entropy(logits, np.zeros((7, 4), int))
dhidden, head_grads = head.backward(head_tape, dlogits)
_, _, gru_grads = gru.backward(gru_tape, dhidden)
norm = elman.clip_grad_norm([gru_grads, head_grads], 1.0)
elman.clip_grad_value(gru_grads, 0.5)
optimizer.step([gru_grads, head_grads])
assert loss > 0 and norm > 0 and float(head(hidden[0])[0, 0]) < 100
rnn = elman.RNN(3, 5, nonlinearity="relu")
for module in (elman.functional, elman.reference):
    w = [(rnn.params["weight_ih_l0"], rnn.params["weight_hh_l0"], rnn.params["bias_ih_l0"], rnn.params["bias_hh_l0"])]
    packed = module.rnn_pack(w, nonlinearity="relu")
    y, h_last, rnn_tape = module.rnn_forward(x, None, packed, nonlinearity="relu")
    dx, dh_0, dw = module.rnn_backward(rnn_tape, np.ones_like(y))
    module.rnn_step(x[0], h_last, [packed], nonlinearity="relu", out=np.empty_like(h_last[0]))
    assert module.tanh(x).shape == module.sigmoid(x).shape == module.exp(x).shape == dx.shape and len(dw) == 1
with elman.threads(1):
    elman.set_num_threads(elman.get_num_threads())
with rnn.edit() as p:
    p["bias_ih_l0"] += 1
rnn.load_params(dict(rnn.params))
assert rnn.astype(np.float64).params["bias_ih_l0"].dtype == np.float64 and lstm.zero_state(2).copy().h.shape == (
    4,
    2,
    5,
)

# The layers' options, and models.
everything = elman.LSTM(3, 5, peephole=True, coupled="f=1-i", clip=3, activations=("hardsigmoid", "tanh", ("elu", 0.5)))
y, _, c_all, gates = everything(x, return_all=("c", "gates"))
assert c_all.shape == y.shape == (7, 4, 5) and gates.shape == (7, 4, 1, 4, 5)
y, final, piecewise = everything.forward(x, tbptt=3, burn_in=1)
everything.backward(piecewise, np.ones_like(y), final, dc=np.ones_like(y))
model = elman.Sequential([elman.GRU(3, 8, seed=0), elman.Pooling("last"), elman.Dense(8, 2, seed=1)])
sequences = [np.full((n, 3), n % 2, np.float32) for n in range(3, 23)]
labels = np.arange(3, 23) % 2
history = model.fit(
    sequences, labels, loss="softmax_cross_entropy", epochs=20, optimizer=elman.AdamW(model, lr=0.02),
    metrics=["accuracy"], seed=0, verbose=0,
)  # fmt: skip
assert (
    history.history["accuracy"][-1] == 1
    and model.evaluate(sequences, labels, loss="softmax_cross_entropy")["loss"] < 0.3
)
path = os.path.join(tempfile.mkdtemp(), "model.safetensors")
elman.save(path, model)
assert np.array_equal(elman.load(path).predict(sequences), model.predict(sequences))
assert elman.diagnostics.spectral_radius(gru) is not None

# Training that goes on, rates by step, probabilities.
elman.save_checkpoint(path, model, history.optimizer, 20)
model, adam, epoch = elman.load_checkpoint(path)
warm_up = elman.schedules.LinearWarmup(0.02, total_iters=30)
history = model.fit(
    sequences, labels, loss="softmax_cross_entropy", optimizer=adam, initial_epoch=epoch, epochs=22, lr=warm_up,
    lr_interval="step", verbose=0, callbacks=[elman.Checkpoint(path, save_best_only=False, optimizer=adam)],
)  # fmt: skip
assert adam.steps == 22 and history.history["lr"][-1] == warm_up(21) and elman.load_checkpoint(path)[2] == 22
p = model.predict_proba(sequences)
assert isinstance(p, np.ndarray) and np.allclose(p, elman.softmax(model.predict(sequences)), atol=1e-6)
assert np.allclose(elman.log_softmax(logits), np.log(elman.softmax(logits)), atol=1e-5)
both = elman.Pooling("last", bidirectional=True)
assert both(lstm(x)[0]).shape == (4, 10)

# An encoder and a decoder.
attention = elman.AdditiveAttention(8, 8, 4, seed=0)
context, weights = attention(np.zeros((2, 4, 8), np.float32), np.ones((5, 4, 8), np.float32), return_weights=True)
assert (
    context.shape == (2, 4, 8)
    and np.allclose(weights, 0.2)
    and elman.DotAttention()(context, context).shape == (2, 4, 8)
)
translator = elman.Seq2Seq(
    [elman.Embedding(5, 4, seed=0), elman.GRU(4, 8, seed=1)],
    [elman.Embedding(7, 4, seed=2), elman.GRU(4, 8, seed=3)],
    [elman.Dense(16, 6, seed=4)],
    attention=attention,
    start=6,
    end=5,
    teacher_forcing=0.9,
    seed=5,
)
words = [np.arange(n) % 5 for n in range(1, 9)]
history = translator.fit(words, words, loss="softmax_cross_entropy", epochs=2, seed=0, verbose=0)
assert history.history["loss"][1] < history.history["loss"][0]
written = translator.predict(words, beam_width=2, max_length=9)
tokens, scores = translator.decode(np.array([[1], [2]]), beam_width=2, length_penalty=0.5, return_scores=True)
logits, seq2seq_tape = translator.forward(np.array([[1], [2]]), np.array([[3]]))
dsource, seq2seq_grads = translator.backward(seq2seq_tape, np.ones_like(logits))
assert len(written) == 8 and scores.shape == (1,) and seq2seq_grads.keys() == translator.params.keys()

print("elman", elman.__version__, "works with", sorted(m for m in sys.modules if m in ("numpy", "torch", "scipy")))
