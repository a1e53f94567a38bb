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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _checks, _config, _kernels, _options
from ._locks import ForkSafeLock
from ._options import GRU_ACTIVATIONS, LSTM_ACTIVATIONS, NO_ZONEOUT, Activation, Zoneout
from ._types import Array, Arrays, Gradients, Packed, State, Tape, Weights

__all__ = [
    "cell_backward", "cell_forward", "cell_pack", "cell_step", "exp", "gru_backward", "gru_forward", "gru_pack",
    "gru_step", "lstm_backward", "lstm_forward", "lstm_pack",
    "lstm_step", "rnn_backward", "rnn_forward", "rnn_pack", "rnn_step", "sigmoid", "tanh",
]  # fmt: skip

_CELLS = {name: number for number, name in enumerate(_kernels.cell_names())}
_ACTIVATIONS = {name: number for number, name in enumerate(_options.ACTIVATIONS)}
_MIN_G = len(_ACTIVATIONS)  # of minGRU and minLSTM

_OTHERS = {"jordan": "rnn_any", "lstm_norm_joint_shift": "lstm_norm_joint"}  # families that have another's kernels

# Indexing a fused function once spares every call the search for its types.
_BY_DTYPE = {
    np.dtype(dtype): {
        name: getattr(_kernels, name)[c_type] for name in ("forward", "backward", "infer", "elementwise", "gate")
    }
    for dtype, c_type in ((np.float32, "float"), (np.float64, "double"))
}
_packing = ForkSafeLock()


class _Kind(NamedTuple):
    """A cell and what is asked of it."""

    family: str  # of _options.FORMS
    options: _options.Options

    @property
    def form(self) -> _options.Form:
        return _options.FORMS[self.family]

    def cell(self, names: tuple[str, ...]) -> str:
        """The kernels' name, for weights of these names: the plain cell where it does, since it is the fastest."""
        if self.family in _OTHERS:
            return _OTHERS[self.family]
        is_plain = len(names) == len(_options.HEAD) and self.options == _options.PLAIN[self.family]
        if self.family == "rnn":
            name = f"rnn_{self.options.activations[0].name}"
            same = self.options._replace(activations=_options.PLAIN["rnn"].activations)
            return name if name in _CELLS and same == _options.PLAIN["rnn"] else "rnn_any"
        return self.family if is_plain or f"{self.family}_any" not in _CELLS else f"{self.family}_any"

    def for_kernels(self, names: tuple[str, ...]) -> tuple[Any, ...]:
        """As _kernels.Packed takes them."""
        o = self.options
        activations = [(_ACTIVATIONS["affine"], 1.0, 0.0)] * len(_options.ROLES)
        for role, a in zip(self.form.roles, o.activations, strict=True):
            activations[role] = (_ACTIVATIONS[a.name], a.alpha, a.beta)
        limits = (np.inf if limit is None else limit for limit in (o.clip, o.cell_clip, o.proj_clip))
        has_optional = bool(self.form.optional) and self.form.optional[0][0] in names
        return (
            tuple(activations), _options.COUPLED.index(o.coupled), has_optional, "weight_hr" in names,
            bool(self.form.beside), *limits, 1 - o.leak,
        )  # fmt: skip


class PackedWeights:
    """One layer's weights, copied and laid out for the kernels; made by `rnn_pack`, `lstm_pack`, `cell_pack`, ...

    `spare` and `scratch` hold the memory of a tape that is gone and of the last call, for the next one. What waits
    there belongs to one layer and ends with it.
    """

    def __init__(self, kind: _Kind, weights: Any, name: str = "weights"):
        checked = _checks.weights(name, weights, kind.form)
        self.kind = kind
        self.names = kind.form.names(len(checked[0]))
        self.cell = kind.cell(self.names)
        w_ih = checked[0][0]
        self.dtype = w_ih.dtype
        self.kernels = _BY_DTYPE[self.dtype]
        self.I, self.H, self.D = w_ih.shape[1], w_ih.shape[0] // kind.form.gates, len(checked)
        self.R = len(checked[0][self.names.index("weight_hr")]) if "weight_hr" in self.names else self.H
        self.letters = kind.form.letters
        self._widths = [self.R if letter in ("h", "y") else self.H for letter in self.letters]
        is_double = self.dtype == np.float64
        self._form = (
            _CELLS[self.cell], is_double, self.I, self.H, self.R, self.D, *kind.for_kernels(self.names)
        )  # fmt: skip
        self.spare: deque[_kernels.Memory] = deque(maxlen=1)
        self.scratch: deque[_kernels.Memory] = deque(maxlen=1)
        self._lay_out(tuple(tuple(map(_frozen, d)) for d in checked))

    def renewed(self, weights: Any) -> PackedWeights:
        """The same layer with other weights, which are known to have the same form and to be written to by nobody: a
        layer's change in every step of an optimiser."""
        new = object.__new__(PackedWeights)
        new.__dict__.update(self.__dict__)
        new._lay_out(tuple(map(tuple, weights)))
        return new

    def _lay_out(self, weights):
        self.arrays = weights
        self.packed = _kernels.Packed(*self._form)
        self.dense = [self._dense_of(arrays) for arrays in self.arrays]
        for d, dense in enumerate(self.dense):
            self.packed.pack(d, dense)
        self._has_transposed = False

    def _dense_of(self, arrays: Sequence[Any]) -> tuple[Any, ...]:
        """One direction's arrays as _kernels.pack takes them: w_ih, w_hh, b_ih, b_hh, those of each unit in one array,
        w_hr, b_hr."""
        if self.names == _options.HEAD and not self.kind.form.late:
            return (*arrays, None, None, None)
        given, form = dict(zip(self.names, arrays)), self.kind.form
        if form.beside:
            parts = [a for a in map(given.get, ("bias_ih", *form.beside)) if a is not None]
            given["bias_ih"] = sum(parts[1:], start=parts[0])
        units, start = None, 0
        for name, blocks in form.of_units():
            a = given.pop(name, None)
            if a is not None:
                units = np.zeros((self.packed.units, self.H), self.dtype) if units is None else units
                units[start : start + blocks] = a.reshape(blocks, self.H)
            start += blocks
        return (*map(given.get, _options.HEAD), units, given.get("weight_hr"), given.get("bias_hr"))

    def gradients_of(self, dense: Sequence[Any]) -> tuple[Any, ...]:
        """The way back: gradients in the form of `arrays`."""
        *head, units, w_hr, b_hr = dense
        if len(self.names) == len(head):
            return tuple(head)
        found = dict(zip(_options.HEAD, head)) | {"weight_hr": w_hr, "bias_hr": b_hr}
        start, has, form = 0, dict(zip(self.names, self.arrays[0])), self.kind.form
        for name, blocks in form.of_units() if units is not None else ():
            of_name = units[start : start + blocks].reshape(-1)
            found[name] = None if has.get(name) is None else of_name
            if name == "bias_ih":
                found |= {other: of_name.copy() for other in form.beside}
            start += blocks
        return tuple(found[name] for name in self.names)

    def for_backward(self) -> _kernels.Packed:
        """The packed weights with their transposed panels, which are made when they are first wanted."""
        if not self._has_transposed:
            with _packing.held():
                for d, dense in enumerate(() if self._has_transposed else self.dense):
                    self.packed.pack_transposed(d, dense)
                self._has_transposed = True
        return self.packed

    def state_shapes(self, D: int, B: int) -> list[tuple[int, int, int]]:
        """Of the parts of a state; an h or y has the R elements that come out."""
        return [(D, B, width) for width in self._widths]


class _Tape:
    """What a forward call keeps for its backward call; never changed, so its copy is itself. Its memory is another
    tape's when it is gone, even if a finaliser brings it back."""

    __slots__ = ("weights", "x", "lengths", "reset", "row", "noise", "memory", "recompute")

    def __init__(self, weights, x, lengths, reset, row, noise, recompute):
        self.weights, self.x, self.lengths, self.reset = weights, x, lengths, reset
        self.row, self.noise, self.recompute = row, noise, recompute
        self.memory = None
        self.memory = weights.packed.new_tape(weights.spare, self._rows(), recompute)

    def __del__(self):
        memory, self.memory = getattr(self, "memory", None), None  # none, if there was not enough of it
        if memory is not None:
            self.weights.spare.append(memory)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        raise TypeError("a tape cannot be pickled: call forward again where backward is to run")

    def _rows(self):
        return self.x.shape[0] * self.x.shape[1] if self.lengths is None else int(self.lengths.sum())

    @property
    def kept(self):
        """What the kernels wrote."""
        w = self.weights
        return np.frombuffer(self.memory, np.uint8, w.packed.tape_size(self._rows(), self.recompute)).view(w.dtype)


def rnn_pack(
    weights: Weights, *, nonlinearity: Activation = "tanh", clip: float | None = None, leak: float = 1.0
) -> Packed:
    """Lay out the weights of an RNN layer once; the result goes wherever `weights` goes, with the same options."""
    return _weights(_rnn(nonlinearity, clip, leak), weights)


def lstm_pack(
    weights: Weights,
    *,
    coupled: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
    activations: Sequence[Activation] = LSTM_ACTIVATIONS,
) -> Packed:
    """Lay out the weights of an LSTM layer once; the result goes wherever `weights` goes, with the same options."""
    return _weights(_lstm(activations, coupled, clip, cell_clip, proj_clip), weights)


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
    leak: float = 1.0,
    lengths: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    training: bool = True,
    recompute: bool = False,
    out: Array | None = None,
    return_all: Sequence[str] = (),
    zoneout: Zoneout = NO_ZONEOUT,
    recurrent_mask: Array | None = None,
) -> tuple[Any, ...]:
    """h' = phi(W_ih x + b_ih + W_hh h + b_hh) for every step: see `lstm_forward`; state is h (D, B, H).

    nonlinearity: phi, "tanh", "relu", "sigmoid" or another activation of `elman.LSTM`; clip limits the sum inside it.
    """
    return _forward(
        _rnn(nonlinearity, clip, leak),
        x,
        state,
        weights,
        lengths,
        reset,
        training,
        recompute,
        out,
        return_all,
        zoneout,
        recurrent_mask,
    )


def lstm_forward(
    x: Array,
    state: State,
    weights: Weights,
    *,
    coupled: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
    activations: Sequence[Activation] = LSTM_ACTIVATIONS,
    lengths: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    training: bool = True,
    recompute: bool = False,
    out: Array | None = None,
    return_all: Sequence[str] = (),
    zoneout: Zoneout = NO_ZONEOUT,
    recurrent_mask: Array | None = None,
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
    kind = _lstm(activations, coupled, clip, cell_clip, proj_clip)
    return _forward(
        kind, x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout, recurrent_mask
    )


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
    zoneout: Zoneout = NO_ZONEOUT,
    recurrent_mask: Array | None = None,
) -> tuple[Any, ...]:
    """Run a GRU layer over whole sequences: see `lstm_forward`; state is h (D, B, H), gates in the order r, z, n.

    reset_after: whether r multiplies after the recurrent product (PyTorch) or before it (the default of ONNX).
    """
    kind = _gru(reset_after, activations, clip)
    return _forward(
        kind, x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout, recurrent_mask
    )


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
    leak: float = 1.0,
    zoneout: Zoneout = NO_ZONEOUT,
    out: Array | None = None,
) -> Array:
    """One step of stacked RNN layers: see `lstm_step`; state is h (L, B, H)."""
    return _step(_rnn(nonlinearity, clip, leak), x, state, stack, out, zoneout)


def lstm_step(
    x: Array,
    state: Arrays,
    stack: Sequence[Weights],
    *,
    coupled: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
    activations: Sequence[Activation] = LSTM_ACTIVATIONS,
    zoneout: Zoneout = NO_ZONEOUT,
    out: Array | None = None,
) -> Array:
    """One step of L stacked one-direction layers, in place.

    x:     (B, I)
    state: (h, c), each (L, B, H), changed in place
    stack: a list with the weights of each layer, fastest as `lstm_pack` made them
    out:   (B, H) to write the top layer's output into; may not overlap x or the state
    Returns the top layer's output (B, H).
    """
    return _step(_lstm(activations, coupled, clip, cell_clip, proj_clip), x, state, stack, out, zoneout)


def gru_step(
    x: Array,
    state: Array,
    stack: Sequence[Weights],
    *,
    reset_after: bool = True,
    clip: float | None = None,
    activations: Sequence[Activation] = GRU_ACTIVATIONS,
    zoneout: Zoneout = NO_ZONEOUT,
    out: Array | None = None,
) -> Array:
    """One step of stacked GRU layers: see `lstm_step`; state is h (L, B, H)."""
    return _step(_gru(reset_after, activations, clip), x, state, stack, out, zoneout)


def cell_pack(cell: str, weights: Weights, **options: Any) -> Packed:
    """Lay out a layer's weights once, of any cell; the result goes wherever `weights` goes, with the same options."""
    return _weights(_kind(cell, options), weights)


def cell_forward(
    cell: str,
    x: Array,
    state: State,
    weights: Weights,
    *,
    row: Array | None = None,
    lengths: npt.ArrayLike | None = None,
    reset: npt.ArrayLike | None = None,
    training: bool = True,
    recompute: bool = False,
    out: Array | None = None,
    return_all: Sequence[str] = (),
    zoneout: Zoneout = NO_ZONEOUT,
    recurrent_mask: Array | None = None,
    **options: Any,
) -> tuple[Any, ...]:
    """Run a layer of any cell: see `lstm_forward`.

    cell:     its name, see elman._options.FORMS: the arrays in a direction's weights, the parts of a state, the options
    row:      (T, B) the number that the cell takes with each step of each sequence (AUGRU: attention; CfC: timespans)
    options:  activations, clip, ..., as far as the cell has them
    """
    return _forward(
        _kind(cell, options), x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout,
        recurrent_mask, row,
    )  # fmt: skip


def cell_backward(
    tape: Tape | None,
    dy: Array | None = None,
    dstate: State = None,
    *,
    dc: Array | None = None,
    grad_clip: float | None = None,
) -> tuple[Any, ...]:
    """Backpropagation through time of `cell_forward`: see `lstm_backward`. Where `row` was given its gradient (T, B)
    comes fourth."""
    return _backward("", tape, dy, dstate, dc, grad_clip)


def cell_step(
    cell: str,
    x: Array,
    state: State,
    stack: Sequence[Weights],
    *,
    row: Array | None = None,
    zoneout: Zoneout = NO_ZONEOUT,
    out: Array | None = None,
    **options: Any,
) -> Array:
    """One step of stacked layers of any cell: see `lstm_step`; row (B,)."""
    return _step(_kind(cell, options), x, state, stack, out, zoneout, row)


def exp(x: npt.ArrayLike) -> Array:
    """e^x of a float32 or float64 array, elementwise: a new array, within 4 units in the last place."""
    return _elementwise("exp", x)


def sigmoid(x: npt.ArrayLike) -> Array:
    """1 / (1 + e^-x) of a float32 or float64 array, elementwise: a new array, within 4 units in the last place."""
    return _elementwise("sigmoid", x)


def tanh(x: npt.ArrayLike) -> Array:
    """tanh of a float32 or float64 array, elementwise: a new array, within 4 units in the last place."""
    return _elementwise("tanh", x)


# What nobody asked for is found in one look: a call of a small layer takes some microseconds.
_PLAIN = {family: _Kind(family, options) for family, options in _options.PLAIN.items()}


def _rnn(nonlinearity, clip, leak):
    return _Kind("rnn", _options.rnn(nonlinearity, clip, leak))


def _lstm(activations, coupled, clip, cell_clip, proj_clip):
    if activations is LSTM_ACTIVATIONS and coupled is clip is cell_clip is proj_clip is None:
        return _PLAIN["lstm"]
    given = {"activations": activations, "coupled": coupled, "clip": clip, "cell_clip": cell_clip}
    return _Kind("lstm", _options.of("lstm", given | {"proj_clip": proj_clip}))


def _gru(reset_after, activations, clip):
    family = f"gru_reset_{'after' if _checks.boolean('reset_after', reset_after) else 'before'}"
    if activations is GRU_ACTIVATIONS and clip is None:
        return _PLAIN[family]
    return _Kind(family, _options.of(family, {"activations": activations, "clip": clip}))


def _kind(cell, options):
    family = _checks.choice("cell", cell, _options.FORMS)
    if not options:
        return _PLAIN[family]
    return _Kind(family, _options.of(family, options))


def _weights(kind, weights, name="weights"):
    if type(weights) is not PackedWeights:
        return PackedWeights(kind, weights, name)
    if weights.kind is not kind and weights.kind != kind:
        wanted, got = (kind, weights.kind) if kind.family == weights.kind.family else (kind.family, weights.kind.family)
        raise ValueError(f"{name}: expected weights packed for {wanted}, got weights packed for {got}")
    return weights


def _forward(
    kind, x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout, recurrent_mask, row=None
):
    w = _weights(kind, weights)
    training, recompute = _checks.boolean("training", training), _checks.boolean("recompute", recompute)
    return_all = _options.return_all(return_all, kind.form)
    dtype, H, R, D = w.dtype, w.H, w.R, w.D
    x = _checks.array("x", x, dtype, ("T", "B", w.I))
    T, B, _ = x.shape
    given = _state("state", state, w, D, B)
    lengths = _checks.lengths("lengths", lengths, T, B)
    reset = _checks.reset("reset", reset, (T, B))
    row = _options.row(kind.form, kind.family, row, dtype, (T, B))
    noise = _options.noise(kind.form, kind.family, zoneout, recurrent_mask, dtype, (T, B, D), R, H)
    if out is None:
        y = (np.empty if lengths is None else np.zeros)((T, B, D * R), dtype)
    else:
        apart = [("x", x), *(("state", part) for part in given), ("row", row)]
        y = _checks.output("out", out, dtype, (T, B, D * R), apart)
        if lengths is not None:
            y[...] = 0
    tape = memory = None
    c_all = (np.empty if lengths is None else np.zeros)((T, B, D * H), dtype) if "c" in return_all else None
    if training or "gates" in return_all:
        recompute = recompute and "gates" not in return_all  # which are what it would not keep
        if training:  # else the tape ends with this call
            x = np.array(x, order="C")
            lengths, reset, row = (None if a is None else a.copy() for a in (lengths, reset, row))
        if training and noise is not None:
            noise = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in noise)
        tape = _Tape(w, x, lengths, reset, row, noise, recompute)
        memory = tape.memory
    last = [np.empty(shape, dtype) for shape in w.state_shapes(D, B)]
    w.kernels["forward"](
        w.packed, x, given, lengths, reset, row, noise, _config.get_num_threads(), y, c_all, last, memory,
        recompute, w.scratch,
    )  # fmt: skip
    arrays = [c_all if name == "c" else _gates_of(tape) for name in return_all]
    return y, _bundled(last), tape if training else None, *arrays


def _gates_of(tape):
    """(T, B, D, G, H): the gates in a tape, whose rows are in the order of csrc/schedule.h."""
    w, (T, B, _), D, H = tape.weights, tape.x.shape, tape.weights.D, tape.weights.H
    rows, kept = tape._rows(), _kept_gates(w)
    Hp, start = (
        w.packed.padded(H),
        rows * w.packed.padded(w.R) if w.packed.carries_h else 0,
    )  # a direction's tape begins with h
    gates = (np.empty if tape.lengths is None else np.zeros)((T, B, D, len(kept), H), w.dtype)
    places = np.arange(0, gates.size, len(kept) * H, np.intp).reshape(T, B, D)  # of the gates of (t, b, d) in `gates`
    if tape.lengths is not None:
        order = np.argsort(-tape.lengths, kind="stable")
        s, j = np.nonzero(np.arange(T)[:, None] < tape.lengths[order])
        b = order[j]
    in_tape = tape.kept.reshape(D, -1)
    for d in range(D):
        if tape.lengths is None:
            place = places[:: -1 if d else 1, :, d].flatten()
        else:
            place = places[tape.lengths[b] - 1 - s if d else s, b, d]
        slots = in_tape[d, start:][: w.packed.slots * rows * Hp].reshape(w.packed.slots, rows, Hp)
        for k, (slot, activation) in enumerate(kept):
            w.kernels["gate"](w.packed, activation, slots[slot], place, gates.reshape(-1)[k * H :])
    if w.kind.options.coupled is not None:
        of = 0 if w.kind.options.coupled == "f=1-i" else 1
        inside = True if tape.lengths is None else (np.arange(T)[:, None] < tape.lengths)[..., None, None]
        np.subtract(1, gates[..., of, :], out=gates[..., 1 - of, :], where=inside)
    return gates


def _kept_gates(w):
    """For each gate, in the order of the weights, its slot in a tape and the activation that it wants yet."""
    G, first = w.packed.gates, w.packed.states - 1  # the first slots have c, ...
    kept = [(first + k, None) for k in range(G)]
    if w.cell in ("min_gru", "min_lstm"):
        kept[0] = 0, (_MIN_G, 0.0, 0.0)
    if w.cell == "min_lstm":
        kept[2] = 1, (_ACTIVATIONS["affine"], -1.0, 1.0)  # 1 - f
    if w.cell.endswith("_any") or w.kind.form.late:  # which keep pre-activations
        activations = w.kind.for_kernels(w.names)[0]
        gate, candidate = (activations[_options.ROLES.index(role)] for role in ("gates", "candidate"))
        kept = [(slot, candidate if k == 2 else gate) for k, (slot, _) in enumerate(kept)]  # i f g o, or r z n
    return kept


def _backward(family, tape, dy, dstate, dc_all, grad_clip):
    if type(tape) is not _Tape or not tape.weights.cell.startswith(family):
        raise TypeError(f"tape: expected the tape of {family or 'cell'}_forward, got {_named(tape)}")
    if tape.memory is None:
        raise ValueError("tape: expected one in use, got one that was garbage before a finaliser brought it back")
    w, x = tape.weights, tape.x
    dtype, H, R, D = w.dtype, w.H, w.R, w.D
    T, B, I = x.shape
    if dy is not None:
        dy = _checks.array("dy", dy, dtype, (T, B, D * R))
    if dc_all is not None:
        if "c" not in w.letters:
            raise ValueError(f"dc: expected None, since {w.kind.family} has no cell state")
        dc_all = _checks.array("dc", dc_all, dtype, (T, B, D * H))
    limit = _options.limit("grad_clip", grad_clip)
    dlast = _state("dstate", dstate, w, D, B)
    drow = None if tape.row is None else np.zeros((D, T, B), dtype)
    dstate = [np.empty(shape, dtype) for shape in w.state_shapes(D, B)]
    if B == 0:
        dweights = [tuple(None if a is None else np.zeros_like(a) for a in arrays) for arrays in w.arrays]
        of_row = () if drow is None else (drow.sum(axis=0),)
        return np.empty((T, 0, I), dtype), _bundled(dstate), dweights, *of_row
    dx = (np.empty if tape.lengths is None else np.zeros)((T, B, I), dtype)
    dense = [tuple([None if a is None else np.empty(a.shape, dtype) for a in arrays]) for arrays in w.dense]
    w.kernels["backward"](
        w.for_backward(), x, tape.lengths, tape.reset, tape.row, tape.noise, _config.get_num_threads(), tape.memory,
        tape.recompute, dy, dc_all, np.inf if limit is None else limit, dlast, dx, dstate, drow, dense, w.scratch,
    )  # fmt: skip
    of_row = () if drow is None else (drow.sum(axis=0),)
    return dx, _bundled(dstate), [w.gradients_of(arrays) for arrays in dense], *of_row


def _step(kind, x, state, stack, out, zoneout=NO_ZONEOUT, row=None):
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
        if (w.I, w.H, w.R, w.dtype) != (first.R, first.H, first.R, first.dtype):
            raise ValueError(
                f"stack[{layer}]: expected I = H = {first.H} of {first.dtype}, got I = {w.I}, H = {w.H} of {w.dtype}"
            )
        if w.names != first.names:
            what = "peepholes" if kind.form.optional else "the same weights"
            raise ValueError(f"stack[{layer}]: expected {what} in all layers or in none")
    x = _checks.array("x", x, first.dtype, ("B", first.I))
    B = len(x)
    shapes = first.state_shapes(len(packed), B)
    parts = _checks.parts_of("state", state, first.letters)
    row = _options.row(kind.form, kind.family, row, first.dtype, (B,))
    apart_from = [("x", x), ("row", row)]
    for letter, part, shape in zip(first.letters, parts, shapes):
        apart_from.append(
            (f"state: {letter}", _checks.output(f"state: {letter}", part, first.dtype, shape, apart_from))
        )
    parts = [part for _, part in apart_from[2:]]
    zoneout = _options.shares("zoneout", zoneout)
    if out is None:
        y = np.empty((B, first.R), first.dtype)
    else:
        y = _checks.output("out", out, first.dtype, (B, first.R), apart_from)
    dense = [np.ascontiguousarray(a) for a in (y, *parts)]
    Inference(packed, zoneout).run(x[None], dense[1:], None, None, dense[0][None], None if row is None else row[None])
    for given, result in zip((y, *parts), dense):
        if result is not given:
            given[...] = result
    return y


class Inference:
    """Packed layers, one on top of the other, without a tape: what a layer calls and steps.

    `step(x, state, out, row)`, `step_many(x, states, out, threads)` and `call(x, state, batch_first, threads, row)` are
    the quick ways for plain arguments: None says that these need the care of `*_step` and of `run`. `begin` is asked
    for what `call` begins with where it is given no state, or only a part: (L * D, H) of each; None: zeros.
    """

    def __init__(
        self,
        stack: Sequence[Packed],
        zoneout: tuple[float, float] = NO_ZONEOUT,
        begin: Callable[[], list[np.ndarray]] | None = None,
    ):
        first = stack[0]
        self._stack = _kernels.Stack([w.packed for w in stack], first.dtype, _config.get_num_threads, zoneout, begin)
        self._run = first.kernels["infer"]
        self.step, self.step_many, self.call = self._stack.step, self._stack.step_many, self._stack.call

    def run(self, x, parts, lengths, reset, out, row=None):
        """Checked arguments, time first; writes y into `out`, zero before, and the states over `parts`."""
        if reset is not None:
            reset = np.ascontiguousarray(reset)
        if row is not None:
            row = np.ascontiguousarray(row)
        self._run(self._stack, x, lengths, reset, row, _config.get_num_threads(), out, parts)


def _state(name, value, w, D, B):
    if value is None:
        return [None] * len(w.letters)
    parts = _checks.parts_of(name, value, w.letters)
    return [
        None if part is None else _checks.array(f"{name}: {letter}", part, w.dtype, shape, contiguous=True)
        for letter, part, shape in zip(w.letters, parts, w.state_shapes(D, B))
    ]


def _bundled(parts):
    """A state from its parts: h, or (h, c, ...)."""
    return parts[0] if len(parts) == 1 else tuple(parts)


def _elementwise(name, x):
    a = np.asarray(x)
    if a.dtype not in _BY_DTYPE:
        raise TypeError(f"x: expected float32 or float64, got {a.dtype}")
    a = np.array(a, order="C")
    y = np.empty_like(a)
    _BY_DTYPE[a.dtype]["elementwise"](name, a.reshape(-1), y.reshape(-1))
    return y


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
