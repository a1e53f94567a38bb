"""One layer, one call: the compiled kernels as functions of arrays.

The same names and signatures as `elman.reference`, which has the equations. A call takes one layer with one or two
directions, time first. `weights` is a list with a tuple (weight_ih (G*H, I), weight_hh (G*H, H), bias_ih (G*H,),
bias_hh (G*H,)) for each direction, the biases may be None, and for an LSTM with peepholes (weight_ci, weight_cf,
weight_co), (H,) each, behind them; or, to lay the weights out once for many calls, what `*_pack` made of it. Gradients
of weights have the same form. Options (activations, clip, ...) are described in `elman.LSTM`. float32 and float64; no
argument is changed but `out`, and the state of `*_step`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _checks, _config, _kernels, _options, reference
from ._locks import ForkSafeLock
from ._options import GRU_ACTIVATIONS, LSTM_ACTIVATIONS, Activation
from ._types import Array, Arrays, Gradients, Packed, State, Tape, Weights

__all__ = [
    "exp", "gru_backward", "gru_forward", "gru_pack", "gru_step", "lstm_backward", "lstm_forward", "lstm_pack",
    "lstm_step", "rnn_backward", "rnn_forward", "rnn_pack", "rnn_step", "sigmoid", "tanh",
]  # fmt: skip

_CELLS = {name: number for number, name in enumerate(_kernels.cell_names())}
_ACTIVATIONS = {name: number for number, name in enumerate(_options.ACTIVATIONS)}

# Indexing a fused function once spares every call the search for its types.
_BY_DTYPE = {
    np.dtype(dtype): {
        name: getattr(_kernels, name)[c_type]
        for name in ("pack", "pack_transposed", "forward", "backward", "infer", "elementwise")
    }
    for dtype, c_type in ((np.float32, "float"), (np.float64, "double"))
}
_packing = ForkSafeLock()


class _Kind(NamedTuple):
    """A cell and what is asked of it."""

    family: str  # "rnn", "lstm", "gru_reset_after", "gru_reset_before"
    options: _options.Options

    def cell(self, has_units: bool) -> str:
        """The kernels' name: the plain cell where it does, since it is the fastest."""
        if self.family == "rnn":
            plain = f"rnn_{self.options.activations[0].name}"
            return plain if plain in _CELLS and self.options.clip is None else "rnn_any"
        default = _options.LSTM if self.family == "lstm" else _options.GRU
        return self.family if self.options == default and not has_units else f"{self.family}_any"

    def for_kernels(self) -> tuple[Any, ...]:
        """As _kernels.Packed takes them."""
        o = self.options
        activations = tuple((_ACTIVATIONS[a.name], a.alpha, a.beta) for a in o.activations)
        limits = (np.inf if limit is None else limit for limit in (o.clip, o.cell_clip))
        return activations, _options.COUPLED.index(o.coupled), *limits


class PackedWeights:
    """One layer's weights, copied and laid out for the kernels; made by `rnn_pack`, `lstm_pack` and `gru_pack`."""

    def __init__(self, kind: _Kind, weights: Any, name: str = "weights"):
        gates = {"lstm": 4, "gru": 3, "rnn": 1}[kind.family.partition("_")[0]]
        units = _options.PEEPHOLES if kind.family == "lstm" else ()
        self._lay_out(kind, _checks.weights(name, weights, gates, units))
        self.spare: deque[Array] = deque(maxlen=1)  # see _Memory

    def renewed(self, weights: Any) -> PackedWeights:
        """The same layer with other weights, which are known to have the same form: a layer's change in every step of
        an optimiser."""
        new = object.__new__(PackedWeights)
        new._lay_out(self.kind, weights)
        new.spare = self.spare  # a tape's memory goes on to the next one
        return new

    def _lay_out(self, kind, weights):
        self.kind = kind
        self.arrays = tuple(tuple(map(_frozen, d)) for d in weights)
        _, w_hh, b_ih, _, *of_units = self.arrays[0]
        self.cell = kind.cell(bool(of_units))
        self.dtype = w_hh.dtype
        self.kernels = _BY_DTYPE[self.dtype]
        self.I, self.H, self.D = self.arrays[0][0].shape[1], w_hh.shape[1], len(self.arrays)
        self.packed = _kernels.Packed(
            _CELLS[self.cell], self.dtype == np.float64, self.I, self.H, self.D, b_ih is not None, bool(of_units),
            *kind.for_kernels(),
        )  # fmt: skip
        self.letters = ("h", "c")[: self.packed.states]
        for d, (w_ih, w_hh, b_ih, b_hh, *of_units) in enumerate(self.arrays):
            Hp = self._padded(self.H)
            columns = self.packed.gates * Hp
            sizes = (self.I * columns, self.H * columns, columns, columns, self.packed.units * Hp)
            memory = _all_aligned(sizes, self.dtype)
            stacked = np.stack(of_units) if of_units else None
            self.kernels["pack"](self.packed, d, w_ih, w_hh, b_ih, b_hh, stacked, *memory)
        self._has_transposed = False

    def for_backward(self) -> _kernels.Packed:
        """The packed weights with their transposed panels, which are made when they are first wanted."""
        if not self._has_transposed:
            with _packing.held():
                for d, (w_ih, w_hh, *_) in enumerate(() if self._has_transposed else self.arrays):
                    rows = self.packed.gates * self._padded(self.H)
                    memory = _all_aligned([rows * self._padded(n) for n in (self.I, self.H)], self.dtype)
                    self.kernels["pack_transposed"](self.packed, d, w_ih, w_hh, *memory)
                self._has_transposed = True
        return self.packed

    def _padded(self, n: int) -> int:
        return -(-n // self.packed.lanes) * self.packed.lanes


class _Memory:
    """A tape's memory. When the tape is gone it waits in `spare` for the next one: to hand out fresh pages costs the
    operating system as much time as the kernels take to fill them. What waits belongs to one layer and ends with it.
    """

    WORTH = 2**20  # bytes; less than this the allocator keeps by itself

    def __init__(self, spare: deque[Array], n: int, dtype: np.dtype):
        size = n * dtype.itemsize
        try:
            whole = spare.pop()
        except IndexError:
            whole = None
        if whole is None or not size <= whole.nbytes <= 2 * size:
            whole = _aligned(size, np.dtype(np.uint8))
        self._whole, self._spare = whole, spare
        self.array = whole[:size].view(dtype)

    def __del__(self):
        if self._whole.nbytes >= self.WORTH:
            self._spare.append(self._whole)


class _Tape:
    """What a forward call keeps for its backward call; never changed."""

    __slots__ = ("weights", "x", "lengths", "reset", "memory", "recompute")

    def __init__(self, weights, x, lengths, reset, memory, recompute):
        self.weights, self.x, self.lengths, self.reset = weights, x, lengths, reset
        self.memory, self.recompute = memory, recompute

    @property
    def kept(self):
        """What the kernels wrote."""
        return self.memory.array


def rnn_pack(weights: Weights, *, nonlinearity: Activation = "tanh", clip: float | None = None) -> Packed:
    """Lay out the weights of an RNN layer once; the result goes wherever `weights` goes, with the same options."""
    return _weights(_rnn(nonlinearity, clip), weights)


def lstm_pack(
    weights: Weights,
    *,
    coupled: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    activations: Sequence[Activation] = LSTM_ACTIVATIONS,
) -> Packed:
    """Lay out the weights of an LSTM layer once; the result goes wherever `weights` goes, with the same options."""
    return _weights(_lstm(activations, coupled, clip, cell_clip), weights)


def gru_pack(
    weights: Weights,
    *,
    reset_after: bool = True,
    clip: float | None = None,
    activations: Sequence[Activation] = GRU_ACTIVATIONS,
) -> Packed:
    """Lay out the weights of a GRU layer once; the result goes wherever `weights` goes, with the same options."""
    return _weights(_gru(reset_after, activations, clip), weights)


def rnn_forward(
    x: Array,
    state: State,
    weights: Weights,
    *,
    nonlinearity: Activation = "tanh",
    clip: float | None = None,
    lengths: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    training: bool = True,
    recompute: bool = False,
    out: Array | None = None,
    return_all: Sequence[str] = (),
) -> tuple[Any, ...]:
    """h' = phi(W_ih x + b_ih + W_hh h + b_hh) for every step: see `lstm_forward`; state is h (D, B, H).

    nonlinearity: phi, "tanh", "relu", "sigmoid" or another activation of `elman.LSTM`; clip limits the sum inside it.
    """
    return _forward(_rnn(nonlinearity, clip), x, state, weights, lengths, reset, training, recompute, out, return_all)


def lstm_forward(
    x: Array,
    state: State,
    weights: Weights,
    *,
    coupled: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    activations: Sequence[Activation] = LSTM_ACTIVATIONS,
    lengths: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    training: bool = True,
    recompute: bool = False,
    out: Array | None = None,
    return_all: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Run an LSTM layer over whole sequences.

    x:        (T, B, I)
    state:    (h, c) before the first step, each (D, B, H); None, or a part None: zeros
    weights:  gates in the order i, f, g, o (see the module)
    lengths:  (B,) true steps of each sequence, 0 to T in any order; None: all T. Past a length x is never read and
              y is 0; the second direction starts at the last true step.
    reset:    (T, B) bool: the state is assigned zero before step t. The second direction is cut between t and t - 1.
    training: keep a tape for `lstm_backward`
    recompute: keep only the state before each step (2 of 6 arrays; GRU 1 of 5, with reset before 1 of 4; RNN 1 of 2)
              and let `lstm_backward` compute the rest again: a third more work, the same bits
    out:      (T, B, D*H) to write y into
    coupled, clip, cell_clip, activations: as in `elman.LSTM`
    return_all: "c" for c after every step, (T, B, D*H), "gates" for the values of the gates, (T, B, D, G, H), in the
              order of the weights (the tape then keeps them, whatever `recompute` says); zeros past a length
    Returns y (T, B, D*H), the state (h, c) after the last true steps, each (D, B, H), the tape or None, and the arrays
    that return_all asks for.
    Raises TypeError and ValueError naming the argument, before anything is written.
    Equations: csrc/cells/lstm.inc, elman.reference.
    """
    kind = _lstm(activations, coupled, clip, cell_clip)
    return _forward(kind, x, state, weights, lengths, reset, training, recompute, out, return_all)


def gru_forward(
    x: Array,
    state: State,
    weights: Weights,
    *,
    reset_after: bool = True,
    clip: float | None = None,
    activations: Sequence[Activation] = GRU_ACTIVATIONS,
    lengths: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    training: bool = True,
    recompute: bool = False,
    out: Array | None = None,
    return_all: Sequence[str] = (),
) -> tuple[Any, ...]:
    """Run a GRU layer over whole sequences: see `lstm_forward`; state is h (D, B, H), gates in the order r, z, n.

    reset_after: whether r multiplies after the recurrent product (PyTorch) or before it (the default of ONNX).
    """
    kind = _gru(reset_after, activations, clip)
    return _forward(kind, x, state, weights, lengths, reset, training, recompute, out, return_all)


def rnn_backward(
    tape: Tape | None, dy: Array | None = None, dstate: State = None, *, grad_clip: float | None = None
) -> tuple[Array, Array, Gradients]:
    """Backpropagation through time of `rnn_forward`: see `lstm_backward`; dstate is dh (D, B, H)."""
    return _backward("rnn", tape, dy, dstate, None, grad_clip)


def lstm_backward(
    tape: Tape | None,
    dy: Array | None = None,
    dstate: State = None,
    *,
    dc: Array | None = None,
    grad_clip: float | None = None,
) -> tuple[Array, Arrays, Gradients]:
    """Backpropagation through time of `lstm_forward`.

    tape:   what `lstm_forward` returned; not changed, so it can be used again
    dy:     (T, B, D*H) gradient of y; None: zeros; past a length never read
    dstate: (dh, dc) gradient of the returned state, each (D, B, H); None, or a part None: zeros
    dc:     (T, B, D*H) gradient of c after every step, beside what comes back through time; None: zeros
    grad_clip: what goes back from each step to the one before, dh and dc, is limited to -grad_clip ... grad_clip
    Returns dx (T, B, I), (dh, dc) of the initial state, and for each direction a tuple (dweight_ih, dweight_hh,
    dbias_ih, dbias_hh), the last two None where the weights had no biases. All arrays are new.
    """
    return _backward("lstm", tape, dy, dstate, dc, grad_clip)


def gru_backward(
    tape: Tape | None, dy: Array | None = None, dstate: State = None, *, grad_clip: float | None = None
) -> tuple[Array, Array, Gradients]:
    """Backpropagation through time of `gru_forward`: see `lstm_backward`; dstate is dh (D, B, H)."""
    return _backward("gru", tape, dy, dstate, None, grad_clip)


def rnn_step(
    x: Array,
    state: Array,
    stack: Sequence[Weights],
    *,
    nonlinearity: Activation = "tanh",
    clip: float | None = None,
    out: Array | None = None,
) -> Array:
    """One step of stacked RNN layers: see `lstm_step`; state is h (L, B, H)."""
    return _step(_rnn(nonlinearity, clip), x, state, stack, out)


def lstm_step(
    x: Array,
    state: Arrays,
    stack: Sequence[Weights],
    *,
    coupled: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    activations: Sequence[Activation] = LSTM_ACTIVATIONS,
    out: Array | None = None,
) -> Array:
    """One step of L stacked one-direction layers, in place.

    x:     (B, I)
    state: (h, c), each (L, B, H), changed in place
    stack: a list with the weights of each layer, fastest as `lstm_pack` made them
    out:   (B, H) to write the top layer's output into; may not overlap x or the state
    Returns the top layer's output (B, H).
    """
    return _step(_lstm(activations, coupled, clip, cell_clip), x, state, stack, out)


def gru_step(
    x: Array,
    state: Array,
    stack: Sequence[Weights],
    *,
    reset_after: bool = True,
    clip: float | None = None,
    activations: Sequence[Activation] = GRU_ACTIVATIONS,
    out: Array | None = None,
) -> Array:
    """One step of stacked GRU layers: see `lstm_step`; state is h (L, B, H)."""
    return _step(_gru(reset_after, activations, clip), x, state, stack, out)


def exp(x: npt.ArrayLike) -> Array:
    """e^x of a float32 or float64 array, elementwise: a new array, within 4 units in the last place."""
    return _elementwise("exp", x)


def sigmoid(x: npt.ArrayLike) -> Array:
    """1 / (1 + e^-x) of a float32 or float64 array, elementwise: a new array, within 4 units in the last place."""
    return _elementwise("sigmoid", x)


def tanh(x: npt.ArrayLike) -> Array:
    """tanh of a float32 or float64 array, elementwise: a new array, within 4 units in the last place."""
    return _elementwise("tanh", x)


def _rnn(nonlinearity, clip):
    return _Kind("rnn", _options.rnn(nonlinearity, clip))


def _lstm(activations, coupled, clip, cell_clip):
    return _Kind("lstm", _options.lstm(activations, coupled, clip, cell_clip))


def _gru(reset_after, activations, clip):
    where = "after" if _checks.boolean("reset_after", reset_after) else "before"
    return _Kind(f"gru_reset_{where}", _options.gru(activations, clip))


def _weights(kind, weights, name="weights"):
    if type(weights) is not PackedWeights:
        return PackedWeights(kind, weights, name)
    if weights.kind != kind:
        wanted, got = (k.family if k.family != other.family else k for k, other in
                       ((kind, weights.kind), (weights.kind, kind)))  # fmt: skip
        raise ValueError(f"{name}: expected weights packed for {wanted}, got weights packed for {got}")
    return weights


def _forward(kind, x, state, weights, lengths, reset, training, recompute, out, return_all):
    w = _weights(kind, weights)
    training, recompute = _checks.boolean("training", training), _checks.boolean("recompute", recompute)
    return_all = _options.return_all(return_all, kind.family)
    dtype, H, D = w.dtype, w.H, w.D
    x = _checks.array("x", x, dtype, ("T", "B", w.I))
    T, B, _ = x.shape
    h, c = _state("state", state, w, (D, B, H))
    lengths = _checks.lengths("lengths", lengths, T, B)
    reset = _checks.reset("reset", reset, (T, B))
    if out is None:
        y = (np.empty if lengths is None else np.zeros)((T, B, D * H), dtype)
    else:
        y = _checks.output("out", out, dtype, (T, B, D * H), (("x", x), ("state", h), ("state", c)))
        if lengths is not None:
            y[...] = 0
    tape = kept = None
    c_all = np.zeros((T, B, D * H), dtype) if "c" in return_all else None
    if training or "gates" in return_all:
        recompute = recompute and "gates" not in return_all  # which are what it would not keep
        x = np.array(x, order="C")
        lengths, reset = (None if a is None else a.copy() for a in (lengths, reset))
        rows = T * B if lengths is None else int(lengths.sum())
        memory = _Memory(w.spare, D * rows * (w.packed.states if recompute else w.packed.slots) * w._padded(H), dtype)
        tape = _Tape(w, x, lengths, reset, memory, recompute)
        kept = tape.kept
    h_last = np.empty((D, B, H), dtype)
    c_last = np.empty((D, B, H), dtype) if w.packed.states == 2 else None
    w.kernels["forward"](
        w.packed, x, h, c, lengths, reset, _config.get_num_threads(), y, c_all, h_last, c_last, kept, recompute
    )
    arrays = [c_all if name == "c" else _gates_of(tape) for name in return_all]
    return y, _bundled([h_last, c_last]), tape if training else None, *arrays


def _gates_of(tape):
    """(T, B, D, G, H): the gates in a tape, whose rows are in the order of csrc/schedule.h."""
    w, (T, B, _) = tape.weights, tape.x.shape
    G, states = w.packed.gates, w.packed.states
    lengths = np.full(B, T) if tape.lengths is None else tape.lengths
    order = np.argsort(-lengths, kind="stable")
    s, j = np.nonzero(np.arange(T)[:, None] < lengths[order])
    b = order[j]
    slots = tape.kept.reshape(w.D, w.packed.slots, len(s), w._padded(w.H))
    gates = np.zeros((T, B, w.D, G, w.H), w.dtype)
    for d in range(w.D):
        t = lengths[b] - 1 - s if d else s
        for k in range(G):
            gates[t, b, d, k] = slots[d, states + k, :, : w.H]
    if w.cell.endswith("_any"):
        gates = reference.gates_from(w.kind.options, gates)
        gates[np.arange(T)[:, None] >= lengths] = 0
    return gates


def _backward(family, tape, dy, dstate, dc_all, grad_clip):
    if type(tape) is not _Tape or not tape.weights.cell.startswith(family):
        raise TypeError(f"tape: expected the tape of {family}_forward, got {_named(tape)}")
    w, x = tape.weights, tape.x
    dtype, H, D = w.dtype, w.H, w.D
    T, B, I = x.shape
    if dy is not None:
        dy = _checks.array("dy", dy, dtype, (T, B, D * H))
    if dc_all is not None:
        dc_all = _checks.array("dc", dc_all, dtype, (T, B, D * H))
    limit = _options.limit("grad_clip", grad_clip)
    dh_last, dc_last = _state("dstate", dstate, w, (D, B, H))
    if B == 0:
        dweights = [tuple(None if a is None else np.zeros_like(a) for a in arrays) for arrays in w.arrays]
        empty = [np.empty((D, 0, H), dtype) for _ in w.letters]
        return np.empty((T, 0, I), dtype), _bundled(empty), dweights
    packed = w.for_backward()
    dx = (np.empty if tape.lengths is None else np.zeros)((T, B, I), dtype)
    dh = np.empty((D, B, H), dtype)
    dc = np.empty((D, B, H), dtype) if packed.states == 2 else None
    dweights = [tuple(None if a is None else np.empty_like(a) for a in arrays[:4]) for arrays in w.arrays]
    dunits = [np.empty((len(arrays) - 4, H), dtype) for arrays in w.arrays]
    w.kernels["backward"](
        packed, x, tape.lengths, tape.reset, _config.get_num_threads(), tape.kept, tape.recompute, dy, dc_all,
        np.inf if limit is None else limit, dh_last, dc_last, dx, dh, dc,
        [(*arrays, of_units) for arrays, of_units in zip(dweights, dunits)],
    )  # fmt: skip
    dweights = [(*arrays, *map(np.copy, of_units)) for arrays, of_units in zip(dweights, dunits)]
    return dx, _bundled([dh, dc]), dweights


def _step(kind, x, state, stack, out):
    if not isinstance(stack, (tuple, list)):
        raise TypeError(f"stack: expected a list with the weights of each layer, got {type(stack).__name__}")
    packed = []
    for layer, weights in enumerate(stack):
        w = _weights(kind, weights, f"stack[{layer}]")
        if w.D != 1:
            raise ValueError(f"stack[{layer}]: expected one direction, got two (step cannot look ahead)")
        packed.append(w)
    if not packed:
        raise ValueError("stack: expected at least one layer, got none")
    first = packed[0]
    for layer, w in enumerate(packed[1:], 1):
        if (w.I, w.H, w.dtype) != (first.H, first.H, first.dtype):
            raise ValueError(
                f"stack[{layer}]: expected I = H = {first.H} of {first.dtype}, got I = {w.I}, H = {w.H} of {w.dtype}"
            )
        if w.packed.has_units != first.packed.has_units:
            raise ValueError(f"stack[{layer}]: expected peepholes in all layers or in none")
    x = _checks.array("x", x, first.dtype, ("B", first.I))
    shape = (len(packed), x.shape[0], first.H)
    parts = _checks.parts_of("state", state, first.letters)
    apart_from = [("x", x)]
    for letter, part in zip(first.letters, parts):
        apart_from.append(
            (f"state: {letter}", _checks.output(f"state: {letter}", part, first.dtype, shape, apart_from))
        )
    parts = [part for _, part in apart_from[1:]]
    if out is None:
        y = np.empty(shape[1:], first.dtype)
    else:
        y = _checks.output("out", out, first.dtype, shape[1:], apart_from)
    dense = [np.ascontiguousarray(a) for a in (x, y, *parts)]
    Inference(packed).step(dense[0], _bundled(dense[2:]), dense[1])
    for given, result in zip((y, *parts), dense[1:]):
        if result is not given:
            given[...] = result
    return y


class Inference:
    """Packed layers, one on top of the other, without a tape: what a layer calls and steps.

    `step(x, state, out)`, `step_many(x, states, out, threads)` and `call(x, state, batch_first, threads)` are the quick
    ways for plain arguments: None says that these need the care of `*_step` and of `run`.
    """

    def __init__(self, stack: Sequence[Packed]):
        first = stack[0]
        self._stack = _kernels.Stack([w.packed for w in stack], first.dtype, _config.get_num_threads)
        self._run = first.kernels["infer"]
        self.step, self.step_many, self.call = self._stack.step, self._stack.step_many, self._stack.call

    def run(self, x, parts, lengths, reset, out):
        """Checked arguments, time first; writes y into `out`, zero before, and the states over `parts`."""
        if reset is not None:
            reset = np.ascontiguousarray(reset)
        self._run(self._stack, x, lengths, reset, _config.get_num_threads(), out, *parts, *[None] * (2 - len(parts)))


def _state(name, value, w, shape):
    parts = _checks.parts_of(name, value, w.letters)
    checked = [
        None if part is None else _checks.array(f"{name}: {letter}", part, w.dtype, shape, contiguous=True)
        for letter, part in zip(w.letters, parts)
    ]
    return checked if len(checked) == 2 else (checked[0], None)


def _bundled(parts):
    """A state from its parts: h, or (h, c)."""
    return parts[0] if len(parts) == 1 or parts[1] is None else tuple(parts)


def _elementwise(name, x):
    a = np.asarray(x)
    if a.dtype not in _BY_DTYPE:
        raise TypeError(f"x: expected float32 or float64, got {a.dtype}")
    a = np.array(a, order="C")
    y = np.empty_like(a)
    _BY_DTYPE[a.dtype]["elementwise"](name, a.reshape(-1), y.reshape(-1))
    return y


def _aligned(n: int, dtype: np.dtype) -> np.ndarray:
    """n elements that start on a cache line."""
    memory = np.empty(n * dtype.itemsize + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + n * dtype.itemsize].view(dtype)


def _all_aligned(sizes: Sequence[int], dtype: np.dtype) -> list[np.ndarray]:
    """Arrays of so many elements, each on cache lines of its own, in one piece of memory."""
    line = 64 // dtype.itemsize
    starts = [0]
    for n in sizes:
        starts.append(starts[-1] - (-n // line) * line)
    whole = _aligned(starts[-1], dtype)
    return [whole[start : start + n] for start, n in zip(starts, sizes)]


def _frozen(array):
    """An array that nobody else has or can write to: over the same memory if that is one whole bytes object, else a
    copy."""
    if array is None:
        return None
    memory = getattr(array.base, "obj", array.base)
    if isinstance(memory, bytes) and len(memory) == array.nbytes:
        return np.ndarray(array.shape, array.dtype, memory)
    return array.copy()


def _named(value):
    return f"a tape of {value.weights.cell}" if type(value) is _Tape else type(value).__name__
