"""What a user's program does first: run where elman is installed with NumPy alone, and typed by mypy."""

import sys

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
print("elman", elman.__version__, "works with", sorted(m for m in sys.modules if m in ("numpy", "torch", "scipy")))
