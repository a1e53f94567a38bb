"""Every argument of every public method of the layers, wrong in every way: the error names it and nothing changes.

And the other side: odd inputs that are fine. (The tables of load_params and edit are in test_parameters.py.)
"""

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from backends import BACKENDS

import elman
from elman import _checks
from elman.layers import GRU, LSTM, RNN, Tape

T, B, I, H, L = 4, 3, 5, 6, 2
DTYPE = np.float32
CELLS = ["lstm", "gru"]
LAYOUTS = {"time first": "TB", "batch first": "BT", "unbatched": "T"}


class Scene:
    """A layer and one good set of arguments for each of its methods."""

    def __init__(self, cell, layout, backend, dtype=DTYPE):
        kind = {"lstm": LSTM, "gru": GRU}[cell]
        options = dict(batch_first=layout == "BT", dropout=0.5, dtype=dtype, seed=0, backend=backend)
        self.layer, self.layout, self.cell, self.dtype = kind(I, H, L, **options), layout, cell, dtype
        front = tuple({"T": T, "B": B}[axis] for axis in layout)
        self.batch = front[1:] if layout == "TB" else front[:1] if layout == "BT" else ()
        self.rng = np.random.default_rng(0)
        x, dy = self.normal(*front, I), self.normal(*front, H)
        lengths = np.array([2, 4, 0]) if self.batch else 3
        reset = self.rng.random(front) < 0.3
        tape = self.layer.forward(x, self.state(), lengths=lengths, reset=reset, rng=1)[2]
        grads = {name: self.normal(*a.shape) for name, a in self.layer.params.items()}
        run = dict(x=x, state=self.state(), lengths=lengths, reset=reset)
        self.good = {
            "__call__": run,
            "forward": run | {"rng": 3},
            "backward": dict(tape=tape, dy=dy, dstate=self.state(), grads=grads),
            "step": dict(x_t=self.normal(*self.batch, I), state=self.state(), out=self.normal(*self.batch, H)),
            "zero_state": dict(batch=3),
            "astype": dict(dtype=np.float64),
        }

    def normal(self, *shape):
        return self.rng.normal(size=shape).astype(self.dtype)

    def parts(self):
        return [self.normal(L, *self.batch, H) for _ in ("hc" if self.cell == "lstm" else "h")]

    def state(self):
        return self.form(self.parts())

    def form(self, parts):
        return tuple(parts) if self.cell == "lstm" else parts[0]

    def call(self, method, **changes):
        return getattr(self.layer, method)(**(self.good[method] | changes))

    def image(self, *others):
        """Everything that a failed call must leave alone."""
        layer = self.layer
        return image([self.good, others, layer.params, id(layer._snapshot), layer._rng.bit_generator.state])


def image(value):
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.strides, value.tobytes()
    if isinstance(value, Mapping):
        return {key: image(v) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [image(v) for v in value]
    return repr(value)


def check_refused(scene, method, argument, error, words="", **changes):
    before = scene.image(changes)
    with pytest.raises((TypeError, ValueError)) as caught:
        scene.call(method, **changes)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(f"{argument}: ") and "expected" in message and ", got " in message, message
    assert words in message, message
    assert scene.image(changes) == before


# ---------------------------------------------------------------------------------- arrays that are wrong anywhere


def read_only(a):
    return np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape)


WRONG_ARRAYS = {
    "float64": (lambda a: a.astype(np.float64), TypeError),
    "float16": (lambda a: a.astype(np.float16), TypeError),
    "complex": (lambda a: a.astype(np.complex64), TypeError),
    "bool": (lambda a: a > 0, TypeError),
    "object": (lambda a: a.astype(object), TypeError),
    "strings": (lambda a: a.astype("S9"), TypeError),
    "dates": (lambda a: np.zeros(a.shape, "M8[s]"), TypeError),
    "a string": (lambda a: "array", TypeError),
    "a set": (lambda a: {1, 2}, TypeError),
    "ragged": (lambda a: [[[1, 2]], [[1]]], ValueError),
    "a number": (lambda a: 1.5, ValueError),
    "an empty list": (lambda a: [], ValueError),
    "one axis": (lambda a: a.reshape(-1), ValueError),
    "an axis more": (lambda a: a[None], ValueError),
    "two axes more": (lambda a: a[None, None], ValueError),
    "last axis short": (lambda a: a[..., :-1], ValueError),
    "last axis long": (lambda a: np.concatenate([a, a], -1), ValueError),
    "transposed": (lambda a: a.T, ValueError),
}
# what only an array to write into must not be
WRONG_OUTPUTS = {
    "none": (lambda a: None, TypeError),
    "list": (lambda a: a.tolist(), TypeError),
    "integers": (lambda a: a.astype(int), TypeError),
    "byte-swapped": (lambda a: a.astype(">f4"), TypeError),
    "read-only": (read_only, ValueError),
    "last axis strided": (lambda a: np.repeat(a, 2, -1)[..., ::2], ValueError),
    "unaligned": (lambda a: np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape), ValueError),
}


SAME_WITH_ONE_AXIS = ("transposed", "one axis")


@pytest.mark.parametrize(
    "method, argument", [("__call__", "x"), ("forward", "x"), ("backward", "dy"), ("step", "x_t"), ("step", "out")]
)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_arrays(backend, cell, layout, method, argument):
    scene = Scene(cell, layout, backend)
    for what, (spoil, error) in WRONG_ARRAYS.items():
        value, name = spoil(scene.good[method][argument]), argument
        if layout == "T" and method == "step" and what in SAME_WITH_ONE_AXIS:
            continue
        if layout == "T" and argument in ("x", "x_t") and what == "an axis more":
            name = "state"  # a batch, which the rest does not go with
        if argument == "out" and not isinstance(value, np.ndarray):
            error = TypeError
        check_refused(scene, method, name, error, **{argument: value})
    scene.layer.backward(scene.good["backward"]["tape"])  # the tape still fits


@pytest.mark.parametrize("cell, part", [("lstm", 0), ("lstm", 1), ("gru", 0)])
@pytest.mark.parametrize(
    "method, argument", [("__call__", "state"), ("forward", "state"), ("backward", "dstate"), ("step", "state")]
)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_parts_of_a_state(backend, layout, method, argument, cell, part):
    scene = Scene(cell, layout, backend)
    name = argument if cell == "gru" else f"{argument}: {'hc'[part]}"

    def refused(spoil, error, words=""):
        parts = scene.parts()
        parts[part] = spoil(parts[part])
        if method == "step" and not isinstance(parts[part], np.ndarray):
            error = TypeError
        check_refused(scene, method, name, error, words, **{argument: scene.form(parts)})

    for spoil, error in WRONG_ARRAYS.values():
        refused(spoil, error)
    wanted = f"expected shape {(L, *scene.batch, H)}, got "
    refused(lambda a: a[:, None], ValueError, wanted)
    refused(lambda a: a[:1], ValueError, wanted)
    if layout != "T":
        refused(lambda a: a[:, 0], ValueError, wanted + f"({L}, {H})")
        refused(lambda a: a[:, :-1], ValueError, wanted + f"({L}, {B - 1}, {H})")


@pytest.mark.parametrize("method, argument", [("__call__", "state"), ("backward", "dstate"), ("step", "state")])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_forms_of_a_state(backend, layout, method, argument):
    scene = Scene("lstm", layout, backend)
    h, c = scene.parts()
    for value, error in [
        (h, TypeError),
        (np.stack([h, c]), TypeError),
        ({"h": h, "c": c}, TypeError),
        ("hc", TypeError),
        (3, TypeError),
        (iter([h, c]), TypeError),
        ((), ValueError),
        ((h,), ValueError),
        ([h, c, c], ValueError),
    ]:
        check_refused(scene, method, argument, error, **{argument: value})
    scene = Scene("gru", layout, backend)
    (h,) = scene.parts()
    for value, error in [((h,), TypeError), ((h, h), TypeError), ({"h": h}, TypeError), (3, (ValueError, TypeError))]:
        error = error if not isinstance(error, tuple) else TypeError if method == "step" else ValueError
        check_refused(scene, method, argument, error, **{argument: value})


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_step_wants_arrays_to_write_into(backend, cell, layout):
    scene = Scene(cell, layout, backend)
    for what, (spoil, error) in WRONG_OUTPUTS.items():
        for part in range(len(scene.parts())):
            parts = scene.parts()
            parts[part] = spoil(parts[part])
            check_refused(scene, "step", "state", error, state=scene.form(parts))
        if what != "none":
            check_refused(scene, "step", "out", error, out=spoil(scene.good["step"]["out"]))
    check_refused(scene, "step", "state", TypeError, state=None)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_step_wants_memory_that_does_not_overlap(backend, cell, layout):
    scene = Scene(cell, layout, backend)
    rows = int(np.prod(scene.batch, dtype=int))
    memory = scene.normal(200)

    def at(start, *shape):
        return memory[start : start + int(np.prod(shape))].reshape(shape)

    x_t, out, free = at(10, *scene.batch, I), (*scene.batch, H), scene.parts()
    check_refused(scene, "step", "out", ValueError, "x_t", x_t=x_t, out=at(10 + rows * I - 1, *out))
    check_refused(scene, "step", "out", ValueError, "x_t", x_t=x_t, out=at(9, *out))
    scene.call("step", x_t=x_t, out=at(10 + rows * I, *out))
    for part in range(len(free)):
        parts = list(free)
        parts[part] = at(20, L, *scene.batch, H)
        check_refused(scene, "step", "out", ValueError, "state", state=scene.form(parts), out=at(15, *out))
        check_refused(scene, "step", "state", ValueError, "x_t", x_t=at(20, *scene.batch, I), state=scene.form(parts))
    if cell == "lstm":
        parts = [at(0, L, *scene.batch, H), at(L * rows * H - 1, L, *scene.batch, H)]
        check_refused(scene, "step", "state", ValueError, "state: h", state=tuple(parts))
        check_refused(scene, "step", "state", ValueError, "state: h", state=(parts[0], parts[0]))


# ------------------------------------------------------------------------------------------------- lengths, reset, rng

WRONG_LENGTHS = {
    "negative": ([2, -1, 0], ValueError),
    "beyond T": ([2, 4, T + 1], ValueError),
    "too few": ([2, 4], ValueError),
    "too many": ([2, 4, 0, 1], ValueError),
    "a column": ([[2], [4], [0]], ValueError),
    "one number": (2, ValueError),
    "floats": (np.array([2.0, 4.0, 0.0]), TypeError),
    "a list of floats": ([2.0, 4.0, 0.0], TypeError),
    "bool": (np.array([True, False, True]), TypeError),
    "a list of bool": ([True, False, True], TypeError),
    "objects": (np.array([2, 4, 0], object), TypeError),
    "strings": (["2", "4", "0"], TypeError),
    "ragged": ([[2], [4, 1], 3], ValueError),
    "nan": ([2, 4, np.nan], TypeError),
}
WRONG_LENGTH = {
    "negative": (-1, ValueError),
    "beyond T": (T + 1, ValueError),
    "float": (2.0, TypeError),
    "bool": (True, TypeError),
    "a list": ([2], TypeError),
    "an array": (np.array([2]), TypeError),
    "a string": ("2", TypeError),
}


@pytest.mark.parametrize("method", ["__call__", "forward"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_lengths(backend, cell, layout, method):
    scene = Scene(cell, layout, backend)
    for value, error in (WRONG_LENGTH if layout == "T" else WRONG_LENGTHS).values():
        check_refused(scene, method, "lengths", error, lengths=value)


@pytest.mark.parametrize("method", ["__call__", "forward"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_reset(backend, cell, layout, method):
    scene = Scene(cell, layout, backend)
    good = scene.good[method]["reset"]
    wrong = [
        (good.astype(np.float32), TypeError),
        (good.astype(float).tolist(), TypeError),
        (good.astype(object), TypeError),
        (good.astype(str), TypeError),
        (good.astype(int) * 2, ValueError),
        (good.astype(int) * -1, ValueError),
        (good[..., None], ValueError),
        (good[0], ValueError),
        (good[:-1], ValueError),
        (True, ValueError),
        (1, ValueError),
        ([[True], [True, False]], ValueError),
    ]
    if layout != "T":
        wrong += [(good.T, ValueError), (good[:, :-1], ValueError), (good.reshape(-1), ValueError)]
    for value, error in wrong:
        check_refused(scene, method, "reset", error, reset=value)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_rng(backend, cell, dropout):
    scene = Scene(cell, "TB", backend)
    if not dropout:
        scene.layer = type(scene.layer)(I, H, L, backend=backend)
        scene.good["backward"]["tape"] = scene.layer.forward(scene.good["forward"]["x"])[2]
    for value, error in [
        (-1, ValueError),
        (1.0, TypeError),
        (True, TypeError),
        ("seed", TypeError),
        ([1, 2], TypeError),
        (np.random.RandomState(0), TypeError),
        (np.random.default_rng, TypeError),
    ]:
        check_refused(scene, "forward", "rng", error, rng=value)


# ------------------------------------------------------------------------------------------------------- tape and grads


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_tape(backend, cell, layout):
    scene = Scene(cell, layout, backend)
    tape = scene.good["backward"]["tape"]
    for value in (None, 1, "tape", Tape, [tape], tape._pieces[0].tapes[0], {"tape": tape}):
        check_refused(scene, "backward", "tape", TypeError, tape=value)
    for other in CELLS:
        check_refused(
            scene, "backward", "tape", ValueError, tape=Scene(other, layout, backend).good["backward"]["tape"]
        )
    with scene.layer.edit() as p:
        p["weight_ih_l0"] *= 1
    scene.good["backward"]["tape"] = scene.layer.forward(scene.good["forward"]["x"])[2]
    check_refused(scene, "backward", "tape", ValueError, "changed", tape=tape)


WRONG_GRADS = {
    "not a mapping": (lambda g: list(g.values()), TypeError, ""),
    "missing": (lambda g: {k: v for k, v in g.items() if k != "bias_hh_l1"}, ValueError, "bias_hh_l1"),
    "unexpected": (lambda g: g | {"weight_hr_l0": np.zeros(3, DTYPE)}, ValueError, "weight_hr_l0"),
    "shape": (lambda g: g | {"bias_hh_l1": np.zeros(7, DTYPE)}, ValueError, "bias_hh_l1"),
    "transposed": (lambda g: g | {"weight_ih_l0": g["weight_ih_l0"].T}, ValueError, "weight_ih_l0"),
    "twice the same": (lambda g: g | {"bias_ih_l0": g["bias_hh_l0"]}, ValueError, "overlaps"),
    "overlap": (lambda g: g | overlapping(g), ValueError, "overlaps"),
    **{
        what: (lambda g, spoil=spoil: g | {"weight_hh_l1": spoil(g["weight_hh_l1"])}, error, "weight_hh_l1")
        for what, (spoil, error) in WRONG_OUTPUTS.items()
    },
    "float64": (lambda g: g | {"weight_hh_l1": g["weight_hh_l1"].astype(float)}, TypeError, "weight_hh_l1"),
}


def overlapping(grads):
    n, m = grads["bias_ih_l0"].size, grads["bias_ih_l1"].size
    memory = np.zeros(n + m - 1, DTYPE)
    return {"bias_ih_l0": memory[:n], "bias_ih_l1": memory[n - 1 :]}


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_grads(backend, cell):
    scene = Scene(cell, "TB", backend)
    for spoil, error, words in WRONG_GRADS.values():
        check_refused(scene, "backward", "grads", error, words, grads=spoil(scene.good["backward"]["grads"]))


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_grads_are_apart_from_what_is_read(backend, cell):
    scene = Scene(cell, "TB", backend)
    good = scene.good["backward"]
    dy = good["dy"]
    grads = good["grads"] | {"bias_ih_l0": dy.reshape(-1)[: good["grads"]["bias_ih_l0"].size]}
    check_refused(scene, "backward", "grads", ValueError, "dy", grads=grads)
    parts = scene.parts()
    parts[-1] = good["grads"]["weight_hh_l0"].reshape(-1)[: L * B * H].reshape(L, B, H)
    check_refused(scene, "backward", "grads", ValueError, "dstate", dstate=scene.form(parts))


# ---------------------------------------------------------------------------------------- constructor and small methods


@pytest.mark.parametrize("backend", BACKENDS)
def test_wrong_batch_and_dtype(backend):
    scene = Scene("gru", "TB", backend)
    for value, error in [(-1, ValueError), (1.0, TypeError), (True, TypeError), ("3", TypeError), ([3], TypeError)]:
        check_refused(scene, "zero_state", "batch", error, batch=value)
    for value in (None, int, np.float16, np.complex64, object, ">f8", "nonsense", 3, [1, 2]):
        check_refused(scene, "astype", "dtype", TypeError, dtype=value)


WRONG_SETTINGS = [
    *[
        (kind, name, value, error)
        for kind in (RNN, LSTM, GRU)
        for name in ("input_size", "hidden_size", "num_layers")
        for value, error in [(0, ValueError), (-3, ValueError), (2.0, TypeError), (True, TypeError), ("2", TypeError)]
        + [(None, TypeError), ([2], TypeError)]
    ],
    *[
        (kind, name, value, TypeError)
        for kind in (RNN, LSTM, GRU)
        for name in ("bidirectional", "batch_first", "bias")
        for value in (None, 1, 0.0, "yes", [True])
    ],
    *[
        (kind, "dropout", value, error)
        for kind in (RNN, LSTM, GRU)
        for value, error in [(-0.1, ValueError), (1.1, ValueError), (np.nan, ValueError), (np.inf, ValueError)]
        + [(None, TypeError), ("0.5", TypeError), (True, TypeError), ([0.5], TypeError), (0.5j, TypeError)]
    ],
    *[
        (kind, "dtype", v, TypeError)
        for kind in (RNN, LSTM, GRU)
        for v in (None, int, "f2", ">f4", complex, "nonsense")
    ],
    *[
        (kind, "seed", value, error)
        for kind in (RNN, LSTM, GRU)
        for value, error in [(-1, ValueError), (1.5, TypeError), (True, TypeError), ("seed", TypeError)]
    ],
    *[(kind, "backend", v, ValueError) for kind in (RNN, LSTM, GRU) for v in (None, "torch", "Compiled", 3)],
    *[(RNN, "nonlinearity", v, ValueError) for v in (None, "gelu", "Tanh", np.tanh, 3)],
    *[(GRU, "reset_after", v, TypeError) for v in (None, 1, "before")],
    *[
        (LSTM, "forget_bias", value, error)
        for value, error in [(np.nan, ValueError), (np.inf, ValueError), ("1", TypeError), (True, TypeError)]
        + [([1.0], TypeError), (1e300, ValueError)]
    ],
]


def test_wrong_settings():
    for kind, name, value, error in WRONG_SETTINGS:
        options = dict(input_size=I, hidden_size=H, num_layers=L, backend="reference") | {name: value}
        with pytest.raises((TypeError, ValueError)) as caught:
            kind(**options)
        message = str(caught.value)
        case = (kind.__name__, name, value, message)
        assert type(caught.value) is error, case
        assert message.startswith(f"{name}: ") and "expected" in message and ", got " in message, case
    for kind, name in [(LSTM, "nonlinearity"), (LSTM, "reset_after"), (GRU, "forget_bias"), (RNN, "forget_bias")]:
        with pytest.raises(TypeError, match=name):
            kind(I, H, **{name: None})


# ---------------------------------------------------------------------------------------------------- odd, and accepted


class Subclass(np.ndarray):
    pass


def unaligned(a):
    b = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    b[...] = a
    return b


ODD = {
    "list": lambda a: a.tolist(),
    "integers": lambda a: a.astype(np.int16),
    "unsigned": lambda a: a.astype(np.uint8),
    "fortran order": np.asfortranarray,
    "strided": lambda a: np.repeat(a, 2, -1)[..., ::2],
    "reversed": lambda a: np.ascontiguousarray(a[..., ::-1])[..., ::-1],
    "reversed in front": lambda a: np.ascontiguousarray(a[::-1])[::-1],
    "read-only": read_only,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder("S")),
    "subclass": lambda a: a.view(Subclass),
    "matrix-like": lambda a: np.ma.masked_array(a),
    "unaligned": unaligned,
    "memoryview": lambda a: memoryview(np.ascontiguousarray(a)),
    "broadcast": lambda a: np.broadcast_to(a[:1], a.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=list(LAYOUTS))
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_arrays_are_as_good(backend, cell, layout):
    scene = Scene(cell, layout, backend)

    def whole(a):
        """Small whole numbers, equal along the first axis: what every odd form can hold."""
        return np.ascontiguousarray(np.broadcast_to(abs(np.rint(a[:1] * 2)), a.shape))

    def results(odd):
        x, dy, x_t = odd(arrays["x"]), odd(arrays["dy"]), odd(arrays["x_t"])
        state, dstate = (scene.form([odd(p.copy()) for p in parts]) for _ in range(2))
        y, final, tape = scene.call("forward", x=x, state=state)
        dx, initial, grads = scene.layer.backward(tape, dy, dstate)
        moving = [p.copy() for p in parts]
        y_t = scene.layer.step(x_t, scene.form(moving))
        for a in (x, dy, x_t, *(state if scene.cell == "lstm" else [state])):
            given.append(np.array(a, DTYPE).tobytes())
        assert {type(a) for a in (y, dx, y_t, *grads.values())} == {np.ndarray}
        return image([y, list(final), dx, list(initial), grads, y_t, moving])

    arrays = {"x": scene.good["forward"]["x"], "dy": scene.good["backward"]["dy"], "x_t": scene.good["step"]["x_t"]}
    arrays = {name: whole(a) for name, a in arrays.items()}
    parts, given = [whole(p) for p in scene.parts()], []
    expected = results(lambda a: a)
    unchanged = list(given)
    for what, odd in ODD.items():
        given.clear()
        assert results(odd) == expected, what
        assert given == unchanged, what


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_lengths_and_resets_are_as_good(backend, cell):
    scene = Scene(cell, "TB", backend)
    run = scene.good["forward"]
    expected = image(scene.call("__call__")[0])
    n, reset = run["lengths"], run["reset"]
    for lengths in (n.tolist(), tuple(n), n.astype(np.uint8), n.astype(">i4"), np.repeat(n, 2)[::2], read_only(n)):
        assert image(scene.call("__call__", lengths=lengths)[0]) == expected
    odd = [reset.tolist(), reset.astype(int), reset.astype(np.uint8), reset.astype(int).tolist(), read_only(reset)]
    odd += [np.asfortranarray(reset), np.repeat(reset, 2, 1)[:, ::2], reset.astype(">i8")]
    for mask in odd:
        assert image(scene.call("__call__", reset=mask)[0]) == expected
    assert image(scene.call("__call__", lengths=None)[0]) == image(scene.call("__call__", lengths=[T] * B)[0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_of_numpy_are_numbers(backend):
    layer = LSTM(
        np.int64(3),
        np.uint8(4),
        np.int32(2),
        dropout=np.float32(0.5),
        bias=np.bool_(True),
        forget_bias=np.float64(1),
        dtype="f8",
        seed=np.int64(3),
        backend=backend,
    )
    assert layer.zero_state(np.int8(2)).h.shape == (2, 2, 4)
    assert type(layer.hidden_size) is int and type(layer.bias) is bool and type(layer.dropout) is float


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_are_no_errors(backend, cell, value):
    scene = Scene(cell, "TB", backend)
    x = scene.good["forward"]["x"].copy()
    x[0, 0, 0] = value
    for lengths, reset in itertools.product((None, [T] * B), (None,)):
        with np.errstate(all="raise"):
            y, state, tape = scene.layer.forward(x, lengths=lengths, reset=reset)
            dx, _, _ = scene.layer.backward(tape, np.ones_like(y))
        assert np.isnan(y[:, 0]).any() == np.isnan(value) and np.isfinite(y[:, 1:]).all()


# ------------------------------------------------------------------------------------------ memory, and absurd sizes


@pytest.mark.parametrize("backend", BACKENDS)
def test_arrays_between_one_another_do_not_overlap(backend):
    """Only elements count, not the bounds of strided arrays."""
    layer = elman.LSTM(4, 8, seed=0, backend=backend)
    x = np.random.default_rng(0).standard_normal((2, 4)).astype(np.float32)
    state, expected = np.zeros((1, 2, 16), np.float32), layer.zero_state(2)
    shared = np.zeros((2, 12), np.float32)
    shared[:, :4] = x
    assert np.array_equal(layer.step(shared[:, :4], (state[..., :8], state[..., 8:]), out=shared[:, 4:]),
                          layer.step(x, expected))  # fmt: skip
    assert np.array_equal(state, np.concatenate(expected, axis=-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_array_to_write_into_may_not_overlap_itself(backend):
    layer = elman.GRU(4, 8, seed=0, backend=backend)
    x = np.zeros((2, 4), np.float32)
    folded = np.lib.stride_tricks.as_strided(np.zeros(16, np.float32), (1, 2, 8), (0, 16, 4))
    with pytest.raises(ValueError, match="state: expected memory of its own for each element"):
        layer.step(x, folded)
    with pytest.raises(ValueError, match="out: expected memory of its own for each element"):
        layer.step(x, layer.zero_state(2), out=np.lib.stride_tricks.as_strided(folded, (2, 8), (0, 4)))
    _, _, tape = layer.forward(x[None])
    grads = {name: np.zeros_like(w) for name, w in layer.params.items()}
    grads["weight_hh_l0"] = np.lib.stride_tricks.as_strided(np.zeros(8, np.float32), (24, 8), (0, 4))
    with pytest.raises(ValueError, match="grads: weight_hh_l0: expected memory of its own for each element"):
        layer.backward(tape, grads=grads)


@pytest.mark.parametrize("backend", BACKENDS)
def test_lists_of_arrays_are_not_cast_either(backend):
    layer = elman.RNN(3, 2, seed=0, backend=backend)
    x = np.ones((2, 4, 3))
    with pytest.raises(TypeError, match="x: expected dtype float32, got float64"):
        layer(list(x))
    assert np.array_equal(layer(list(x.astype(np.float32)))[0], layer(x.tolist())[0])
    with pytest.raises(ValueError, match="weight_ih_l0: expected finite"):
        layer.load_params(dict(layer.params) | {"weight_ih_l0": [[1e300] * 3] * 2})


@pytest.mark.parametrize("backend", BACKENDS)
def test_absurd_sizes(backend):
    for arguments, name in (((4, 2**62), "hidden_size"), ((2**62, 4), "input_size"), ((4, 4, 2**62), "num_layers")):
        with pytest.raises(ValueError, match=f"{name}: expected 1 to"):
            elman.LSTM(*arguments, backend=backend)
    layer = elman.LSTM(1, 1, backend=backend)
    with pytest.raises(ValueError, match="batch: expected 0 to"):
        layer.zero_state(2**62)


def test_no_sequences_for_a_very_long_time():
    layer = elman.LSTM(1, 1)
    for T in (10**12, 2**61 - 1):
        _, _, tape = layer.forward(np.zeros((T, 0, 1), np.float32))
        dx, _, grads = layer.backward(tape)
        assert dx.shape == (T, 0, 1) and not any(g.any() for g in grads.values())


def test_lengths_are_checked_on_a_copy():
    """Another thread may write into the caller's array after the check, while the kernels read."""
    given = np.full(3, 2, np.intp)
    assert not np.shares_memory(_checks.lengths("lengths", given, 2, 3), given)
