"""RNN, LSTM and GRU: stacks of layers in one or two directions over `elman.functional` or `elman.reference`.

Here: arguments, weights, stacking, the caller's axis order, dropout masks, and which tape fits which weights. Not
here: arithmetic. Shapes: T steps, B sequences, I inputs, H hidden units, D directions (1 or 2).
"""

from __future__ import annotations

import copy
import importlib
import math
import warnings
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cache, cached_property, partial
from typing import Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from . import _options
from ._config import get_num_threads
from ._locks import ForkSafeLock
from ._options import GRU_ACTIVATIONS, LSTM_ACTIVATIONS, NO_ZONEOUT, Activation
from ._parameters import Parametrised, Params, Snapshot
from ._state import LSTMState

MERGES = ("concat", "sum", "mul", "mean")
_BACKENDS = {"compiled": "elman.functional", "reference": "elman.reference"}

State = TypeVar("State")  # np.ndarray, or LSTMState


class _Piece(NamedTuple):
    """Steps that gradients go through from end to start."""

    start: int
    end: int
    tapes: list[Any]  # the backend's, one per stacked layer
    outputs: list[np.ndarray]  # of each stacked layer's two directions (T, B, 2*H), where merging needs them again


class _Noise(NamedTuple):
    """What one call of `forward` has drawn, an entry for each stacked layer; None: nothing of that kind."""

    kept: list[np.ndarray | None]  # dropout after each layer but the top one: bool (T, B, width)
    inputs: list[np.ndarray] | None = None  # factors of x, the same at every step: (B, inputs)
    recurrent: list[np.ndarray] | None = None  # factors of h on its way into the recurrent product: (D, B, R)
    weights: list[np.ndarray] | None = None  # factors of weight_hh: (D, G*H, R)
    zoneout: list[tuple[Any, Any]] | None = None  # which units of h and c stay: bool (T, B, D*R) and (T, B, D*H)


class Tape:
    """What `forward` keeps for `backward`. Opaque; never written to, so it can be used again."""

    __slots__ = ("_layer", "_snapshot", "_layout", "_steps", "_batch", "_lengths", "_pieces", "_noise", "_learned")

    def __init__(
        self,
        layer: Recurrent,
        snapshot: Snapshot,
        layout: str,
        T: int,
        B: int,
        lengths: np.ndarray | None,
        pieces: list[_Piece],
        noise: _Noise,
        learned: list[bool],
    ):
        self._layer = layer
        self._snapshot = snapshot
        self._layout = layout
        self._steps = T
        self._batch = B
        self._lengths = lengths  # a copy, or None
        self._pieces = pieces  # one, unless the gradient is cut on its way through time
        self._noise = noise
        self._learned = learned  # of each part of the state, whether it began as the layer's own initial state

    def __repr__(self) -> str:
        return f"<tape of {self._layer!r}: T={self._steps}, B={self._batch}>"


class _Signature:
    """`inspect.signature` of a cell, with the arguments that it passes on as **common: for help, repr and saving."""

    def __get__(self, layer: Any, cls: type) -> Any:
        import inspect  # takes longer than all of elman

        if layer is not None:
            raise AttributeError("__signature__")
        _, *own = inspect.signature(cls.__init__).parameters.values()  # type: ignore[misc]
        if own[-1].kind is own[-1].VAR_KEYWORD:
            names = {parameter.name for parameter in own}
            general = inspect.signature(Recurrent.__init__).parameters.values()
            own[-1:] = [p for p in general if p.kind is p.KEYWORD_ONLY and p.name not in names]
        return inspect.Signature(own)


class Recurrent(Parametrised, Generic[State]):
    """What RNN, LSTM and GRU have in common; use those.

    A layer can be used from several Python threads at once. Its settings (`input_size`, `hidden_size`, `num_layers`,
    `bidirectional`, `batch_first`, `dropout`, `bias`, `dtype`, `backend`, ...) can be read and are fixed.
    """

    __signature__ = _Signature()
    _prefix = "cell"  # of the backend's functions; with "cell" they take the family's name first
    _family: str  # of _options.FORMS: what the weights and the state look like
    _cell_options: Mapping[str, Any] = {}  # settings that the backend's functions take, and their defaults
    _starts: Mapping[str, tuple[float, float]] = {}  # between what weights begin, if not -1/sqrt(H) and 1/sqrt(H)
    _has_optional = False  # whether the weights that the family may have are there
    _output_size: int  # R, what comes out of a direction: H, unless the cell projects it
    _not_pickled = (
        *Parametrised._not_pickled,
        "_form",
        "_letters",
        "_kinds",
        "_every_name",
        "_learned_names",
        "_pack",
        "_forward",
        "_backward",
        "_step",
        "_inference",
        "_drawing",
        "_quiet",
    )

    input_size: int
    hidden_size: int
    num_layers: int
    bidirectional: bool
    batch_first: bool
    dropout: float
    bias: bool
    grad_clip: float | None
    merge: str | None
    dtype: np.dtype
    backend: str

    zoneout: tuple[float, float]
    input_dropout: float
    recurrent_dropout: float
    weight_dropout: float
    train_state: bool

    def __init__(
        self, input_size, hidden_size, num_layers=1, *, bidirectional=False, batch_first=False, dropout=0.0, bias=True,
        grad_clip=None, merge="concat", zoneout=NO_ZONEOUT, input_dropout=0.0, recurrent_dropout=0.0,
        weight_dropout=0.0, train_state=False, dtype=np.float32, seed=None, backend="compiled",
    ):  # fmt: skip
        self.input_size = I = check.integer("input_size", input_size, 1, check.MOST)
        self.hidden_size = H = check.integer("hidden_size", hidden_size, 1, check.MOST)
        self.num_layers = L = check.integer("num_layers", num_layers, 1, check.MOST)
        self.bidirectional = check.boolean("bidirectional", bidirectional)
        self.batch_first = check.boolean("batch_first", batch_first)
        self.dropout = check.number("dropout", dropout, 0.0, 1.0)
        self.bias = check.boolean("bias", bias)
        if not self.bias and not self._form.has_bias and not self._form.late and self._form.own is None:
            raise ValueError(f"bias: expected True, since the biases of {type(self).__name__} belong to its gates")
        self.grad_clip = _options.limit("grad_clip", grad_clip)
        if merge is not None:
            if not isinstance(merge, str) or merge not in MERGES:
                raise ValueError(f"merge: expected one of {', '.join(map(repr, MERGES))} or None, got {merge!r}")
            merge = str(merge)
        if merge != "concat" and not self.bidirectional:
            raise ValueError(f"merge: {merge!r} needs two directions; expected bidirectional=True")
        if merge is None and L > 1:
            raise ValueError("merge: None keeps the directions apart, so no layer can follow; expected num_layers=1")
        self.merge = merge
        self._check_noise(zoneout, input_dropout, recurrent_dropout, weight_dropout)
        self.train_state = check.boolean("train_state", train_state)
        if self.train_state and self._form.keeps_c:
            raise ValueError(f"train_state: expected False, since of {type(self).__name__} {self._form.keeps_c}")
        self.dtype = check.dtype_of("dtype", dtype)
        self.backend = check.choice("backend", backend, tuple(_BACKENDS))
        if seed is not None:
            seed = check.integer("seed", seed, 0)
        if self.dropout and L == 1:
            warnings.warn("dropout acts between layers, so it does nothing with num_layers=1", stacklevel=3)

        D = self._directions = 2 if self.bidirectional else 1
        vars(self).setdefault("_output_size", H)
        width = self._width = (
            D * self._output_size if merge in ("concat", None) else self._output_size
        )  # of what is merged
        self._rng = np.random.default_rng(seed)
        limit = 1 / math.sqrt(H)
        arrays = {}
        for k in range(L):
            for d in range(D):
                for kind, name in zip(self._kinds, self._names(k, d), strict=True):
                    shape = self._form.shape(kind, width if k else I, H, self._output_size)
                    arrays[name] = self._rng.uniform(*self._starts.get(kind, (-limit, limit)), shape)
                for letter, name in self._state_names(k, d):
                    arrays[name] = np.zeros(self._part_width(letter))
        self._start(arrays)

    def _check_noise(self, zoneout: Any, input_dropout: Any, recurrent_dropout: Any, weight_dropout: Any) -> None:
        name, form = type(self).__name__, self._form
        self.zoneout = _options.shares("zoneout", zoneout)
        for letter, share in zip("hc", self.zoneout, strict=True):
            if share:
                _options.check_zoneout(f"zoneout: {letter}", letter, form, name)
        self.input_dropout = check.number("input_dropout", input_dropout, 0.0, 1.0)
        self.recurrent_dropout = check.number("recurrent_dropout", recurrent_dropout, 0.0, 1.0)
        self.weight_dropout = check.number("weight_dropout", weight_dropout, 0.0, 1.0)
        for option in ("recurrent_dropout", "weight_dropout"):
            if getattr(self, option) and not form.is_recurrent:
                raise ValueError(f"{option}: expected 0, since {name} has no recurrent product")

    @cached_property
    def _form(self) -> _options.Form:
        return _options.FORMS[self._family]

    @property
    def _gates(self) -> int:
        return self._form.gates

    @cached_property
    def _letters(self) -> tuple[str, ...]:
        return self._form.letters

    @property
    def _is_merged(self) -> bool:
        """Whether the directions' outputs become one of their size."""
        return self._width != self._directions * self._output_size

    def _part_width(self, letter: str) -> int:
        """Of a part of the state."""
        return self._output_size if letter in ("h", "y") else self.hidden_size

    # ------------------------------------------------------------------------------------------------ computing

    @overload
    def __call__(
        self, x: ArrayLike, state: Any = None, *, lengths: ArrayLike | None = None, reset: ArrayLike | None = None
    ) -> tuple[np.ndarray, State]: ...

    @overload
    def __call__(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        return_all: Sequence[str],
    ) -> tuple[Any, ...]: ...

    def __call__(self, x, state=None, *, lengths=None, reset=None, return_all=()):
        """Inference: nothing is kept for a gradient and dropout never applies.

        x : (T, B, I), with `batch_first` (B, T, I), or (T, I) without a batch. The layer's dtype, integers or lists.
            T and B may be 0. NaN and infinity travel through.
        state : the initial state, (num_layers * D, B, H), without a batch (num_layers * D, H): for RNN and GRU the
            array h, for LSTM (h, c). None, or a part that is None, means zeros. It is not changed.
        lengths : (B,) integers 0 to T in any order; without a batch one integer. The output past a sequence's end is
            0, x there is never read, the final state is the one after the last true step (with length 0 the initial
            one), and the reverse direction starts at the last true step.
        reset : (T, B), with `batch_first` (B, T), without a batch (T,); bool or 0 and 1. The state is set to zero
            before that step, in every layer; in the reverse direction between steps t and t - 1.
        return_all : names of what else is wanted of every step of the top layer: "c", the cell state of a cell that has
            one, (T, B, D*H), "gates", the values of its gates in the order of the weights, (T, B, D, G, H). The arrays
            come after the state, in the order of the names and in y's layout; past a sequence's end they are 0.

        Returns (y, state), new arrays. y : (T, B, D*H), with `batch_first` (B, T, D*H), without a batch (T, D*H): the
        top layer's output; D*H is H where `merge` makes one of the two directions, and with merge=None y is a pair.
        state : the final state, in the form and shape of the initial one.

        ValueError, TypeError: an argument of wrong shape, dtype or value.

        >>> y, state = layer(x)
        >>> y, state = layer(x_next, state)
        """
        return self._call(x, state, lengths, reset, return_all)

    def _call(self, x, state, lengths, reset, return_all, row=None):
        """A call of any cell; row: the numbers (T, B) that it takes, in x's layout."""
        inference = self._snapshot.packed[1]
        wants_all = type(return_all) is not tuple or len(return_all) > 0
        if inference is not None and lengths is None and reset is None and not wants_all:
            if row is not None or not self._form.needs_row:
                result = inference.call(x, state, self.batch_first, get_num_threads(), row)
                if result is not None:
                    return self._joined(result[0]), self._bundle(*result[1:])
        return self._infer(x, state, lengths, reset, return_all, row)

    def _infer(self, x, state, lengths, reset, return_all, row):
        """The same, for arguments of any kind."""
        stack, inference = self._snapshot.packed
        wants_all = type(return_all) is not tuple or len(return_all) > 0
        layout, below, given, lengths, reset, row = self._arguments(x, state, lengths, reset, row)
        T, B, _ = below.shape
        given = self._begun(given, B)
        if inference is None or wants_all:
            y = np.empty((*_sizes(layout, T, B), self._width), self.dtype)
            quiet = _Noise([None] * (self.num_layers - 1), zoneout=[self.zoneout] * self.num_layers)
            _, parts, _, every = self._run(
                stack, below, given, lengths, reset, row, quiet, _time_major(y, layout), return_all, training=False
            )
            return (
                self._outputs(y),
                self._callers_state(parts, layout),
                *(np.ascontiguousarray(_callers(a, layout)) for a in every),
            )
        shapes = self._state_shapes(B)
        parts = [
            np.zeros(shape, self.dtype) if part is None else np.array(part, order="C")
            for part, shape in zip(given, shapes, strict=True)
        ]
        y = np.zeros((*_sizes(layout, T, B), self._directions * self._output_size), self.dtype)
        inference.run(below, parts, lengths, reset, _time_major(y, layout), row)
        return self._joined(y), self._callers_state(parts, layout)

    @overload
    def forward(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        rng: int | np.random.Generator | None = None,
        recompute: bool = False,
        tbptt: int | None = None,
        burn_in: int = 0,
    ) -> tuple[np.ndarray, State, Tape]: ...

    @overload
    def forward(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        rng: int | np.random.Generator | None = None,
        recompute: bool = False,
        tbptt: int | None = None,
        burn_in: int = 0,
        return_all: Sequence[str],
    ) -> tuple[Any, ...]: ...

    def forward(
        self, x, state=None, *, lengths=None, reset=None, rng=None, recompute=False, tbptt=None, burn_in=0,
        return_all=(),
    ):  # fmt: skip
        """As a call, with dropout between the layers, and a tape for `backward`. The layer stays unchanged.

        x, state, lengths, reset, return_all : as in a call. They may be edited afterwards; the tape has what it needs.
        rng : where dropout's masks come from: None is the layer's own generator (started from `seed`), a whole number
            or a `numpy.random.Generator` makes them repeatable.
        recompute : True keeps only the inputs and states of each step and lets `backward` compute the gates again: for
            long sequences. The same bits, a third of an LSTM's tape, a sixth more time for both calls together.
        tbptt : k, at least 1: truncated backpropagation through time (Williams and Peng 1990). The state goes on, but
            every k steps its gradient is cut. None: never.
        burn_in : n: the first n steps warm the state up. No gradient comes from them or goes through them; tbptt counts
            from there.

        Returns (y, state, tape), and after these the arrays of return_all. What tbptt and burn_in cut changes no
        output. Both need bidirectional=False: the second direction has been everywhere before it comes to the first
        step.

        >>> y, state, tape = layer.forward(x, lengths=n)
        """
        return self._train(x, state, lengths, reset, rng, recompute, tbptt, burn_in, return_all)

    def _train(self, x, state, lengths, reset, rng, recompute, tbptt, burn_in, return_all, row=None):
        """`forward`, for every cell."""
        snapshot = self._snapshot
        layout, below, given, lengths, reset, row = self._arguments(x, state, lengths, reset, row)
        recompute = check.boolean("recompute", recompute)
        if rng is not None and not isinstance(rng, np.random.Generator):
            rng = np.random.default_rng(check.integer("rng", rng, 0))
        if tbptt is not None:
            tbptt = check.integer("tbptt", tbptt, 1)
        burn_in = check.integer("burn_in", burn_in, 0)
        if self.bidirectional and (tbptt or burn_in):
            raise ValueError(f"{'tbptt' if tbptt else 'burn_in'}: expected bidirectional=False (see forward)")
        T, B, _ = below.shape
        noise = self._draw(T, B, rng)
        stack = self._thinned(snapshot, noise)
        learned = [self.train_state and part is None for part in given]
        parts = self._begun(given, B)
        if tbptt or burn_in:
            y, parts, pieces, every = self._train_pieces(
                _cut(T, burn_in, tbptt), stack, below, parts, lengths, reset, row, noise, return_all, recompute
            )
        else:
            out = np.empty((B, T, self._width), self.dtype).swapaxes(0, 1) if layout == "BT" else None
            y, parts, piece, every = self._run(
                stack, below, parts, lengths, reset, row, noise, out, return_all, training=True, recompute=recompute
            )
            pieces = [_Piece(0, T, *piece)]
        tape = Tape(self, snapshot, layout, T, B, lengths, pieces, noise, learned)
        y, *every = (np.ascontiguousarray(_callers(a, layout)) for a in (y, *every))
        return self._outputs(y), self._callers_state(parts, layout), tape, *every

    def _train_pieces(self, cuts, stack, below, parts, lengths, reset, row, noise, return_all, recompute):
        """As `_run`, piece after piece of time; y and what return_all asks for of all of them."""
        pieces, outputs = [], []
        for start, end, training in cuts:
            y, parts, piece, every = self._run(
                stack,
                below[start:end],
                parts,
                None if lengths is None else (lengths - start).clip(0, end - start),
                None if reset is None else reset[start:end],
                None if row is None else row[start:end],
                _between(noise, start, end),
                None,
                return_all,
                training=training,
                recompute=recompute,
            )
            outputs.append((y, *every))
            if training:
                pieces.append(_Piece(start, end, *piece))
        y, *every = map(np.concatenate, zip(*outputs, strict=True))
        return y, parts, pieces, every

    def backward(
        self,
        tape: Tape,
        dy: ArrayLike | None = None,
        dstate: Any = None,
        grads: MutableMapping[str, np.ndarray] | None = None,
        dc: ArrayLike | None = None,
    ) -> tuple[np.ndarray, State, Mapping[str, np.ndarray]]:
        """The gradient of a loss by everything that `forward` was given.

        tape : from this layer's `forward`, with the weights unchanged since. It is not changed: use it again.
        dy : the loss's gradient by y, in y's shape; None means zeros. Past a sequence's end it is never read.
        dstate : the loss's gradient by the final state, in its form; None, or a part that is None, means zeros.
        grads : writable arrays under the names of `params`, which the weights' gradients are added to; None: new ones.
        dc : the loss's gradient by the top layer's c after every step (an LSTM's), (T, B, D*H) in y's layout; None
            means zeros.

        Returns (dx, dstate, grads): the gradient by x, in x's shape; by the initial state; and by each weight, in a
        dict with the names of `params` (`grads` itself, if given). Where a cell was given a number with each step
        (`attention`, `timespans`) its gradient comes fourth, in its shape.

        ValueError, TypeError: an argument of wrong shape or dtype, a tape of another layer, or one made before the
        weights changed. After an error `grads` is as it was.

        >>> dx, dstate, grads = layer.backward(tape, dy)
        """
        self._check_tape(tape)
        D, H = self._directions, self.hidden_size
        T, B, layout = tape._steps, tape._batch, tape._layout
        down = None if dy is None else self._output_gradient(dy, tape)
        given = self._state_parts("dstate", dstate, B, layout)
        if dc is not None:
            if "c" not in self._letters:
                raise ValueError(f"dc: expected None, since {type(self).__name__} has no cell state")
            dc = _time_major(check.array("dc", dc, self.dtype, (*_sizes(layout, T, B), D * H)), layout)
        if grads is not None:
            mentioned = [("dy", down), ("dc", dc), *(("dstate", part) for part in given)]
            self._checked_grads(grads, tuple((name, a) for name, a in mentioned if a is not None))

        if len(tape._pieces) == 1 and tape._pieces[0].start == 0:
            dx, given, new, drow = self._piece_backward(tape._pieces[0], tape._noise, down, dc, given)
        else:
            dx, given, new, drow = self._pieces_backward(tape, down, dc, given)
        of_row = () if drow is None else (np.ascontiguousarray(_callers(drow, layout)),)
        if self.train_state:
            self._add_initial(new, given, tape._learned)
        dx = np.ascontiguousarray(_callers(dx, layout))
        return dx, self._callers_state(given, layout), self._accumulated(grads, new), *of_row

    def _pieces_backward(self, tape, down, dc, given):
        """As `_piece_backward`, of all pieces of a tape, and of the steps before them, where the gradients are 0."""
        dx, drow, new = [], [], {}
        for piece in reversed(tape._pieces):
            steps = slice(piece.start, piece.end)
            dx_piece, given, dweights, drow_piece = self._piece_backward(
                piece, tape._noise, None if down is None else down[steps], None if dc is None else dc[steps], given
            )
            dx.insert(0, dx_piece)
            drow.insert(0, drow_piece)
            for name, dweight in dweights.items():
                new[name] = new[name] + dweight if name in new else dweight
            if piece.start > 0:
                given = [_cut_gradient(part, piece, tape) for part in given]
        before = (tape._pieces[0].start, tape._batch)
        dx.insert(0, np.zeros((*before, self.input_size), self.dtype))
        drow.insert(0, np.zeros(before, self.dtype))
        return np.concatenate(dx), given, new, None if drow[-1] is None else np.concatenate(drow)

    def _piece_backward(self, piece, noise, down, dc, given):
        """dx, the parts of dstate, the gradient of each weight and that of `row`, of the steps of one piece."""
        dparts: list[Any] = []
        new: dict[str, np.ndarray] = {}
        drow = None
        for k in reversed(range(self.num_layers)):
            if k < self.num_layers - 1:
                mask = noise.kept[k]
                self._drop(down, None if mask is None else mask[piece.start : piece.end])
            down = self._split(down, piece.outputs[k] if piece.outputs else None)
            of_c = {} if dc is None or k < self.num_layers - 1 else {"dc": dc}
            down, dstate_k, dweights, *of_row = self._backward(
                piece.tapes[k], down, self._layer_state(given, k), **of_c
            )
            if noise.inputs:
                down *= noise.inputs[k]
            if of_row:
                drow = of_row[0] if drow is None else drow + of_row[0]
            dparts.insert(0, dstate_k)
            for d in range(self._directions):
                of_names = dict(zip(self._names(k, d), (a for a in dweights[d] if a is not None), strict=True))
                if noise.weights:
                    of_names[self._names(k, d)[1]] *= noise.weights[k][d]
                new.update(of_names)
        return down, self._stacked(dparts), new, drow

    def _begun(self, given: list[np.ndarray | None], B: int) -> list[np.ndarray | None]:
        """The parts of the initial state, with the layer's own where it has one and none is given."""
        if not self.train_state:
            return given
        own = _learned_state(self._snapshot.params, self._learned_names)
        return [np.repeat(own[i][:, None], B, axis=1) if part is None else part for i, part in enumerate(given)]

    @cached_property
    def _learned_names(self) -> list[list[str]]:
        """For each part of the state, in `params`: those of every stacked layer and direction."""
        each = [self._state_names(k, d) for k in range(self.num_layers) for d in range(self._directions)]
        return [[name for _, name in of_part] for of_part in zip(*each, strict=True)]

    def _add_initial(self, new: dict[str, np.ndarray], dparts: list[np.ndarray], learned: list[bool]) -> None:
        """The gradients of the layer's own initial states: sums over the sequences that began with them."""
        for k in range(self.num_layers):
            for d in range(self._directions):
                for (_, name), part, is_learned in zip(self._state_names(k, d), dparts, learned, strict=True):
                    rows = part[k * self._directions + d]
                    new[name] = rows.sum(axis=0) if is_learned else np.zeros(rows.shape[1], self.dtype)

    def zero_state(self, batch: int | None = None) -> State:
        """A state of zeros for `step`, a call or `forward`: one per stream. With train_state=True it is the state that
        the layer has learned to begin with.

        batch : B, for arrays (num_layers * D, B, H); None for (num_layers * D, H), which goes with input without a
            batch.

        >>> state = layer.zero_state(3)
        """
        B = () if batch is None else (check.integer("batch", batch, 0, check.MOST),)
        shapes = self._state_shapes(1 if batch is None else B[0])
        parts = [np.zeros(shape, self.dtype) for shape in shapes]
        if self.train_state:
            parts = [np.array(part) for part in self._begun([None] * len(parts), shapes[0][1])]
        return self._bundle(*(part[:, 0].copy() if batch is None else part for part in parts))

    def _state_shapes(self, B: int) -> list[tuple[int, int, int]]:
        rows = self.num_layers * self._directions
        return [(rows, B, self._part_width(letter)) for letter in self._letters]

    def step(self, x_t: ArrayLike, state: Any, out: np.ndarray | None = None) -> np.ndarray:
        """One step of a stream: the same bits as a call over the whole sequence, without dropout.

        x_t : (B, I), or (I,) without a batch.
        state : changed in place. From `zero_state`, a call or `forward`, or plain writable arrays (num_layers, B, H),
            without a batch (num_layers, H), in the layer's dtype.
        out : where to write the result, (B, H) or (H,), sharing no memory with x_t and state; None: a new array.

        Returns the top layer's output, (B, H) or (H,); `out` itself, if given.

        ValueError, TypeError: an argument of wrong shape or dtype, or a bidirectional layer, which has no next step.
        After an error `state` and `out` are as they were.

        >>> state = layer.zero_state(1)
        >>> y_t = layer.step(x_t, state)
        """
        inference = self._snapshot.packed[1]
        if inference is not None:  # the quick way, for dense arrays of the right dtype and shape
            y_t = inference.step(x_t, state, out)
            if y_t is not None:
                return y_t
        return self._take_step(x_t, state, out)

    def _step_with(self, x_t, state, out, row):
        """`step` of a cell that takes a number with each sequence: row (B,), without a batch one."""
        inference = self._snapshot.packed[1]
        if inference is not None and row is not None:
            y_t = inference.step(x_t, state, out, row)
            if y_t is not None:
                return y_t
        return self._take_step(x_t, state, out, row)

    def _take_step(self, x_t, state, out, row=None):
        """`step`, for arguments of any kind."""
        if self.bidirectional:
            raise ValueError("step: a bidirectional layer needs the whole sequence; expected bidirectional=False")
        x, parts, y, row = self._step_arguments(x_t, state, out, row)
        with_row = {} if row is None else {"row": row}
        stack, _ = self._snapshot.packed
        y = self._step(x, self._bundle(*parts), stack, out=y, zoneout=self.zoneout, **with_row)
        return out if out is not None else y[0] if np.ndim(x_t) == 1 else y

    def step_many(self, x: ArrayLike, states: Sequence[Any], out: np.ndarray | None = None) -> np.ndarray:
        """One step of N streams whose states are held apart, in one call: for a server with many voices.

        x : (N, I), the input of each stream.
        states : N states, changed in place, each from `zero_state()` or `zero_state(1)`; all of them different.
        out : where to write the result, (N, H), sharing no memory with x and the states; None: a new array.

        Returns the top layer's output, (N, H). Each stream gets the bits that `step` gives it alone, and the weights
        are read once for all of them.

        ValueError, TypeError: as `step`. After an error the states and `out` are as they were.

        >>> states = [layer.zero_state() for _ in range(64)]
        >>> y = layer.step_many(x, states)
        """
        stack, inference = self._snapshot.packed
        if inference is not None and isinstance(states, (list, tuple)) and not self._form.needs_row:
            y = inference.step_many(x, tuple(states), out, get_num_threads())
            if y is not None:
                return y
        if self.bidirectional:
            raise ValueError("step_many: a bidirectional layer needs the whole sequence; expected bidirectional=False")
        if self._form.needs_row:
            raise TypeError(f"step_many: {type(self).__name__} needs {self._form.row}, which only `step` takes")
        L, R = self.num_layers, self._output_size
        checked = check.array("x", x, self.dtype, ("N", self.input_size))
        N = len(checked)
        if not isinstance(states, (list, tuple)):
            raise TypeError(f"states: expected a list of {N} states, got {type(states).__name__}")
        if len(states) != N:
            raise ValueError(f"states: expected {N} states, one for each row of x, got {len(states)}")
        apart = [("x", checked)]
        widths = [self._part_width(letter) for letter in self._letters]
        for i, state in enumerate(states):
            for (name, part), W in zip(self._named_parts(f"states[{i}]", state), widths, strict=True):
                shape = (L, 1, W) if np.ndim(part) == 3 else (L, W)
                apart.append((name, check.output(name, part, self.dtype, shape, apart)))
        y = np.empty((N, R), self.dtype) if out is None else check.output("out", out, self.dtype, (N, R), apart)
        count = len(widths)
        each = [part.reshape(L, -1) for _, part in apart[1:]]  # views, since no axis is merged
        parts = [
            np.stack(each[i::count], axis=1) if N else np.empty((L, 0, W), self.dtype) for i, W in enumerate(widths)
        ]
        self._step(checked, self._bundle(*parts), stack, out=y, zoneout=self.zoneout)
        for k, target in enumerate(each):
            target[...] = parts[k % count][:, k // count]
        return y if out is None else out

    # -------------------------------------------------------------------------------------------- the layer itself

    def __repr__(self) -> str:
        import inspect  # takes longer than all of elman

        shown = [str(self.input_size), str(self.hidden_size)]
        for name, parameter in inspect.signature(type(self)).parameters.items():
            value = getattr(self, name, parameter.default)
            if name not in ("input_size", "hidden_size") and value != parameter.default:
                shown.append(f"{name}={str(value)!r}" if name == "dtype" else f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        with self._drawing.held():
            state["_rng"] = copy.deepcopy(self._rng)
        return state

    # ------------------------------------------------------------------------------------------------- inner parts

    def _bind(self) -> None:
        """Find the backend's functions. It is imported here, so that neither needs the other."""
        backend = importlib.import_module(_BACKENDS[self.backend])
        settings = ((name, getattr(self, name), default) for name, default in self._cell_options.items())
        options = {name: value for name, value, default in settings if value != default}

        def function(what):
            found = getattr(backend, f"{self._prefix}_{what}")
            if what == "backward":
                return partial(found, grad_clip=self.grad_clip) if self.grad_clip else found
            family = (self._family,) if self._prefix == "cell" else ()
            return partial(found, *family, **options) if family or options else found

        self._pack, self._forward, self._backward, self._step = map(function, ("pack", "forward", "backward", "step"))
        between = self._is_merged and self.num_layers > 1  # what merges two layers' outputs is not among the kernels
        has_inference = not between and hasattr(backend, "Inference")
        self._inference = partial(backend.Inference, zoneout=self.zoneout) if has_inference else None
        self._drawing = ForkSafeLock()

    @cached_property
    def _kinds(self) -> list[str]:
        """The weights of one direction of one stacked layer, those that are there."""
        form = self._form
        units, optional = (tuple(name for name, _ in group) for group in (form.units, form.optional))
        is_projected = form.is_projected or self._output_size != self.hidden_size
        names = (
            *_options.HEAD, *units, *(optional if self._has_optional else ()),
            *(form.projection if is_projected else ()),
        )  # fmt: skip
        biases = ("bias_ih", "bias_hh", "bias_hr")
        return [n for n in names if form.shape(n, 1, 1, 1) is not None and (self.bias or n not in biases)]

    @cached_property
    def _every_name(self) -> list[list[list[str]]]:
        """PyTorch's names, by stacked layer and direction."""
        ways = ("", "_reverse")[: self._directions]
        return [[[f"{kind}_l{k}{way}" for kind in self._kinds] for way in ways] for k in range(self.num_layers)]

    def _names(self, k: int, d: int) -> list[str]:
        """Those of stacked layer k in direction d."""
        return self._every_name[k][d]

    def _state_names(self, k: int, d: int) -> list[tuple[str, str]]:
        """The parts of the initial state that stacked layer k learns in direction d, and their names in `params`."""
        end = f"0_l{k}{'_reverse' if d else ''}"
        return [(letter, letter + end) for letter in self._letters] if self.train_state else []

    def _weights(self, params: Mapping[str, np.ndarray], k: int, d: int) -> list[Any]:
        """Those of stacked layer k in direction d as the backend takes them."""
        given = dict(zip(self._kinds, (params[name] for name in self._names(k, d)), strict=True))
        head = [given.pop(name, None) for name in _options.HEAD]
        projection = self._form.projection if "weight_hr" in given else ()
        last = [given.pop(name, None) for name in projection]
        return [*head, *given.values(), *last]

    def _packed(self, params: Params) -> tuple[list[Any], Any]:
        """The backend's form of the weights, one entry per stacked layer, and its Inference, where it has that."""
        directions = range(self._directions)
        arrays = params._arrays  # for the backend alone
        weights = [[self._weights(arrays, k, d) for d in directions] for k in range(self.num_layers)]
        before = vars(self).get("_snapshot")
        if before is None or self.backend == "reference":
            stack = [self._pack(each) for each in weights]
        else:
            stack = [old.renewed(each) for old, each in zip(before.packed[0], weights, strict=True)]
        begin = cache(partial(_learned_state, params, self._learned_names)) if self.train_state else None
        return stack, self._inference(stack, begin=begin) if self._inference else None

    @staticmethod
    def _bundle(*parts: Any) -> Any:
        """A state of this cell from its parts."""
        (h,) = parts
        return h

    def _arguments(self, x, state, lengths, reset, row=None):
        """What a call and `forward` take, checked: the layout of x, x time first, the parts of the state, the masks."""
        rank = _rank("x", x)
        layout = "T" if rank == 2 else "BT" if self.batch_first else "TB"
        if rank not in (2, 3):
            check.array("x", x, self.dtype, "?" * rank)  # another dtype is said first
            wanted = f"({', '.join(layout)}, {self.input_size}) or (T, {self.input_size})"
            raise ValueError(f"x: expected shape {wanted}, got {np.shape(x)}")
        below = _time_major(check.array("x", x, self.dtype, (*layout, self.input_size)), layout)
        T, B, _ = below.shape
        given = self._state_parts("state", state, B, layout)
        if layout == "T" and lengths is not None:
            lengths = [check.integer("lengths", lengths, 0, T)]
        lengths = check.lengths("lengths", lengths, T, B)
        if reset is not None:
            reset = _time_major(check.reset("reset", reset, _sizes(layout, T, B)), layout)
        if row is not None:
            row = _time_major(check.array(self._form.row, row, self.dtype, _sizes(layout, T, B)), layout)
        elif self._form.needs_row:
            raise TypeError(f"{self._form.row}: expected an array of shape {_sizes(layout, T, B)}, got None")
        return layout, below, given, lengths, reset, row

    def _run(self, stack, below, given, lengths, reset, row, noise, out, return_all, training, recompute=False):
        """Layer by layer, time first: the top layer's output (in `out`, if that is given), the parts of the final
        state, what a piece of the tape has of each layer, and what return_all asks for."""
        tapes, outputs, final = [], [], []
        concat = not self._is_merged
        for k in range(self.num_layers):
            is_top = k == self.num_layers - 1
            beside = {} if row is None else {"row": row}
            if noise.recurrent:
                beside["recurrent_mask"] = noise.recurrent[k]
            if noise.zoneout:
                beside["zoneout"] = noise.zoneout[k]
            below, state_k, tape, *every = self._forward(
                below if noise.inputs is None else _masked(below, noise.inputs[k]),
                self._layer_state(given, k),
                stack[k],
                lengths=lengths,
                reset=reset,
                out=out if is_top and concat else None,
                training=training,
                recompute=recompute,
                return_all=return_all if is_top else (),
                **beside,
            )
            if not concat:
                if self.merge == "mul":
                    outputs.append(below)
                below = self._merged(below, out if is_top else None)
            if not is_top:
                self._drop(below, noise.kept[k])
            final.append(state_k)
            tapes.append(tape)
        return below, self._stacked(final), (tapes, outputs), every

    def _merged(self, y, out):
        """(T, B, 2*H) -> (T, B, H), into `out` if that is given."""
        ways = y[..., : self._output_size], y[..., self._output_size :]
        with np.errstate(all="ignore"):
            if self.merge == "mul":
                return np.multiply(*ways, out=out)
            result = np.add(*ways, out=out)
            if self.merge == "mean":
                result *= self.dtype.type(0.5)
        return result

    def _split(self, down, y):
        """The way back, for gradients: (T, B, H) -> (T, B, 2*H). y : what was merged, where that matters."""
        if down is None or not self._is_merged:
            return down
        if self.merge == "mean":
            down = down * self.dtype.type(0.5)
        both = np.concatenate([down, down], axis=-1)
        if self.merge == "mul":
            with np.errstate(all="ignore"):
                both *= np.roll(y, self._output_size, axis=-1)
        return both

    def _joined(self, y):
        """The top layer's y (..., D*R) of any layout as the caller gets it."""
        if self.merge == "concat":
            return y
        return self._outputs(self._merged(y, None) if self._is_merged else y)

    def _outputs(self, y):
        """y as the caller gets it: a pair with merge=None."""
        if self.merge is not None:
            return y
        return y[..., : self._output_size].copy(), y[..., self._output_size :].copy()

    def _output_gradient(self, dy, tape):
        """dy, checked, time first."""
        sizes = _sizes(tape._layout, tape._steps, tape._batch)
        if self.merge is not None:
            return _time_major(check.array("dy", dy, self.dtype, (*sizes, self._width)), tape._layout)
        if not isinstance(dy, (tuple, list)) or len(dy) != 2:
            raise TypeError(f"dy: expected a pair, one for each direction, got {type(dy).__name__}")
        ways = [
            np.zeros((*sizes, self._output_size), self.dtype) if one is None
            else check.array(f"dy[{d}]", one, self.dtype, (*sizes, self._output_size))
            for d, one in enumerate(dy)
        ]  # fmt: skip
        return _time_major(np.concatenate(ways, axis=-1), tape._layout)

    @cached_property
    def _quiet(self) -> _Noise | None:
        """What a call draws of a layer in which nothing is random."""
        shares = (self.dropout, self.input_dropout, self.recurrent_dropout, self.weight_dropout, *self.zoneout)
        return None if any(shares) else _Noise([None] * (self.num_layers - 1))

    def _draw(self, T: int, B: int, rng: np.random.Generator | None) -> _Noise:
        """All that is random in a call, drawn at once and in a fixed order: it depends on the generator alone."""
        if self._quiet is not None:
            return self._quiet
        if rng is None:
            with self._drawing.held():
                return self._drawn(T, B, self._rng)
        return self._drawn(T, B, rng)

    def _drawn(self, T: int, B: int, rng: np.random.Generator) -> _Noise:
        L, D, R, H = self.num_layers, self._directions, self._output_size, self.hidden_size

        def factors(p, *shape):
            """0 with probability p, else what keeps the mean."""
            if not p:
                return None
            kept = rng.random(shape, np.float32) >= p
            return kept.astype(self.dtype) * self.dtype.type(1 / (1 - p) if p < 1 else 0)

        kept: list[np.ndarray | None] = [None] * (L - 1)
        if self.dropout:
            kept = list(rng.random((L - 1, T, B, self._width), np.float32) >= self.dropout)
        inputs = [factors(self.input_dropout, B, self._width if k else self.input_size) for k in range(L)]
        recurrent = [factors(self.recurrent_dropout, D, B, R) for _ in range(L)]
        weights = [factors(self.weight_dropout, D, self._gates * H, R) for _ in range(L)]
        zoneout = None
        if any(self.zoneout):
            zoneout = [
                tuple(
                    rng.random((T, B, D * width), np.float32) < p if p else 0.0
                    for p, width in zip(self.zoneout, (R, H), strict=True)
                )
                for _ in range(L)
            ]
        return _Noise(
            kept,
            inputs if self.input_dropout else None,
            recurrent if self.recurrent_dropout else None,
            weights if self.weight_dropout else None,
            zoneout,
        )

    def _thinned(self, snapshot: Snapshot, noise: _Noise) -> list[Any]:
        """The backend's weights of each stacked layer, those of the recurrent product with what DropConnect drops."""
        stack, _ = snapshot.packed
        if noise.weights is None:
            return stack
        thinned = []
        for k, factors in enumerate(noise.weights):
            weights = [self._weights(snapshot.params, k, d) for d in range(self._directions)]
            for of_direction, mask in zip(weights, factors, strict=True):
                of_direction[1] = of_direction[1] * mask
            thinned.append(self._pack(weights) if self.backend == "reference" else stack[k].renewed(weights))
        return thinned

    def _drop(self, a: Any, kept: np.ndarray | None) -> None:
        """Dropout, in place: what is not kept is *assigned* 0, the rest scaled so that the mean stays."""
        if kept is not None:
            if self.dropout < 1:
                with np.errstate(all="ignore"):
                    a *= 1 / (1 - self.dropout)
            a[~kept] = 0

    def _state_parts(self, name: str, value: Any, B: int, layout: str) -> list[np.ndarray | None]:
        """A state as its checked parts, (L*D, B, H) each, or None for zeros."""
        if value is None:
            return [None] * len(self._letters)
        parts: list[np.ndarray | None] = []
        for (part_name, part), shape in zip(self._named_parts(name, value), self._state_shapes(B), strict=True):
            if part is not None:
                part = check.array(part_name, part, self.dtype, (shape[0], shape[2]) if layout == "T" else shape)
                part = part[:, None] if layout == "T" else part
            parts.append(part)
        return parts

    def _named_parts(self, name: str, value: Any) -> list[tuple[str, Any]]:
        parts = check.parts_of(name, value, self._letters)
        names = [name] if len(parts) == 1 else [f"{name}: {letter}" for letter in self._letters]
        return list(zip(names, parts, strict=True))

    def _layer_state(self, parts: list[np.ndarray | None], k: int) -> Any:
        """Stacked layer k's share of a state, in the backend's form."""
        if self.num_layers == 1:
            return self._bundle(*parts)
        rows = slice(k * self._directions, (k + 1) * self._directions)
        return self._bundle(*(None if part is None else part[rows] for part in parts))

    def _stacked(self, states: list[Any]) -> list[np.ndarray]:
        """The parts of a state, (L*D, B, H) each, from those of the stacked layers."""
        columns = [[state] for state in states] if len(self._letters) == 1 else states
        if len(columns) == 1:
            return list(columns[0])
        return [np.concatenate(column) for column in zip(*columns, strict=True)]

    def _callers_state(self, parts: list[np.ndarray], layout: str) -> Any:
        """A state for the caller from its parts."""
        return self._bundle(*([part[:, 0] for part in parts] if layout == "T" else parts))

    def _check_tape(self, tape: Any) -> None:
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward of this layer returned, got {type(tape).__name__}")
        if tape._layer is not self:
            raise ValueError(f"tape: expected one of this layer, got one of another, {tape._layer!r}")
        if tape._snapshot is not self._snapshot:
            raise ValueError("tape: expected one made with the present weights, got one made before they changed")

    def _step_arguments(
        self, x_t: Any, state: Any, out: Any, row: Any
    ) -> tuple[np.ndarray, list[np.ndarray], np.ndarray | None, np.ndarray | None]:
        """x_t, the parts of the state, out and row with a batch axis, checked in the words of the caller of `step`."""
        L, I = self.num_layers, self.input_size
        rank = _rank("x_t", x_t)
        batch = () if rank == 1 else ("B",)
        if rank not in (1, 2):
            check.array("x_t", x_t, self.dtype, "?" * rank)
            raise ValueError(f"x_t: expected shape (B, {I}) or ({I},), got {np.shape(x_t)}")
        x = check.array("x_t", x_t, self.dtype, (*batch, I))
        sizes = x.shape[:-1]
        if row is not None:
            row = check.array(self._form.row, row, self.dtype, sizes)
        elif self._form.needs_row:
            raise TypeError(f"{self._form.row}: expected an array of shape {sizes}, got None")
        apart = [("x_t", x), (self._form.row, row)]
        for (name, part), letter in zip(self._named_parts("state", state), self._letters, strict=True):
            apart.append((name, check.output(name, part, self.dtype, (L, *sizes, self._part_width(letter)), apart)))
        if out is not None:
            out = check.output("out", out, self.dtype, (*sizes, self._output_size), apart)
        parts = [part for _, part in apart[2:]]
        if batch:
            return x, parts, out, row
        out, row = (None if a is None else a[None] for a in (out, row))
        return x[None], [part[:, None] for part in parts], out, row


class LSTM(Recurrent[LSTMState]):
    """Long short-term memory, as `torch.nn.LSTM`.

        i, f, o = sigmoid(W_i? x_t + b_i? + W_h? h + b_h?)      the gates
        g       = tanh(W_ig x_t + b_ig + W_hg h + b_hg)
        c_t     = f * c + i * g
        h_t     = o * tanh(c_t)

    input_size, hidden_size, num_layers : I, H and how many layers are stacked, at least 1 each.
    bidirectional : a second set of weights reads each sequence from its end; D = 2, outputs side by side.
    batch_first : x, y, dy and reset are (B, T, ...). Never the state.
    dropout : 0 to 1, the chance that an output of a layer but the top one is zeroed, in `forward` only.
    bias : whether there are bias_ih and bias_hh.
    forget_bias : None: as PyTorch; a number: what the forget gates' biases start at (in bias_ih, with bias_hh 0).
    proj_size : R > 0: what comes out and goes into the next step is W_hr h_t with R < H elements (Sak et al. 2014), as
        in PyTorch; weight_hr_l{k} (R, H). The outputs and h then have R in place of H.
    peephole : the gates see the cell state, each unit its own (Gers and Schmidhuber 2000): a_i + w_ci * c,
        a_f + w_cf * c, a_o + w_co * c_t with the new c_t. Weights weight_ci_l{k}, weight_cf_l{k}, weight_co_l{k}, (H,).
    coupled : "f=1-i" (ONNX's input_forget) or "i=1-f" (TFLite, Greff et al. 2017): one gate for both. The rows of the
        gate that is no more stay in the weights, have no effect and gradient 0. Named after what is computed.
    clip : a number: the sums inside the activations are limited to -clip ... clip (ONNX). No gradient passes from
        there outwards.
    cell_clip : the same for c_t, before its peephole and its activation (TFLite).
    proj_clip : the same for what the projection gives (TFLite).
    activations : of the gates, the candidate g and the output, each a name or (name, alpha, beta) of ONNX's: "tanh",
        "sigmoid", "relu", "softsign", "softplus", ("affine", alpha, beta) alpha x + beta, ("leakyrelu", alpha),
        ("thresholdedrelu", alpha), ("scaledtanh", alpha, beta) alpha tanh(beta x), ("hardsigmoid", alpha, beta),
        ("elu", alpha).
    layer_norm : which layer normalisation (Ba et al. 2016), N(v) = (v - mean v) / sqrt(variance v + eps), there is; the
        three are different functions:
        "gate" (TFLite), of each gate by itself, eps 1e-8: a_k = gamma_k * N(W_ik x_t + W_hk h + w_ck * c) + b_k.
        weight_norm_l{k} (4H,) has the gammas; of the biases only bias_ih is there, b.
        "joint" (haste), of each product over all four gates, eps 1e-5: a = gamma_x * N(W_ih x_t) + gamma_h * N(W_hh h)
        + b, and of what comes out: h_t = o * tanh(gamma_c * N(c_t) + beta_c). weight_norm_ih_l{k}, weight_norm_hh_l{k}
        (4H,), weight_norm_c_l{k}, bias_norm_c_l{k} (H,), and b is bias_ih.
        "joint_shift" (DyNet): the same with gamma_x * N(W_ih x_t) + beta_x and gamma_h * N(W_hh h) + beta_h,
        bias_norm_ih_l{k}, bias_norm_hh_l{k} (4H,), and N(v) = (v - mean v) / (sqrt(variance v) + 1e-8).
        The gammas start at 1, betas and biases at 0. Only "gate" can have peepholes or coupled gates.
    grad_clip : a number: in `backward`, what goes back from each step to the one before, dh and dc, is limited to
        -grad_clip ... grad_clip. None: no limit.
    merge : what becomes of the two directions' outputs: "concat" side by side (D*H), "sum", "mul" or "mean" (H), or
        None: y and dy are pairs.
    zoneout : (for h, for c): in `forward` each unit keeps its old state in a step with this probability, drawn anew
        for every step; in a call and in `step` it keeps that share of it (Krueger et al. 2017).
    input_dropout, recurrent_dropout : variational dropout (Gal and Ghahramani 2016) in `forward` only: an input of a
        layer, or a unit of h on its way into the recurrent product, is zeroed with this probability at all steps alike,
        the others are scaled so that the mean stays.
    weight_dropout : DropConnect (Merity et al. 2018), in `forward` only: the same for the elements of weight_hh, drawn
        once for a call.
    train_state : True: where no initial state is given, the layer begins with one that it learns: h0_l{k} and c0_l{k},
        (H,), zero at first. After a `reset` the state is zero all the same.
    dtype : float32 or float64, of the weights and of everything that goes in and out.
    seed : a whole number, for the weights and for dropout's masks; None is random.
    backend : "compiled", or "reference" for the NumPy equations.

    Weights, per layer k and with "_reverse" for the second direction: weight_ih_l{k} (4H, I; above the first layer
    4H, D*H, or 4H, H where `merge` makes one of the two directions), weight_hh_l{k} (4H, H), bias_ih_l{k} (4H,),
    bias_hh_l{k} (4H,); blocks of rows in the order i, f, g, o.
    They start at U(-1/sqrt(H), 1/sqrt(H)). A state is `LSTMState`, which unpacks as (h, c).

    >>> lstm = LSTM(64, 128, 2)
    >>> y, (h, c) = lstm(np.zeros((100, 8, 64), np.float32))
    >>> y.shape, h.shape
    ((100, 8, 128), (2, 8, 128))
    """

    _prefix = _family = "lstm"
    _cell_options = {
        "coupled": None, "clip": None, "cell_clip": None, "proj_clip": None, "activations": LSTM_ACTIVATIONS
    }  # fmt: skip

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        bidirectional: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        forget_bias: float | None = None,
        proj_size: int = 0,
        peephole: bool = False,
        coupled: str | None = None,
        clip: float | None = None,
        cell_clip: float | None = None,
        proj_clip: float | None = None,
        activations: Sequence[Activation] = LSTM_ACTIVATIONS,
        layer_norm: str | None = None,
        grad_clip: float | None = None,
        merge: str | None = "concat",
        zoneout: tuple[float, float] = NO_ZONEOUT,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        train_state: bool = False,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
        backend: str = "compiled",
    ):
        self.peephole = check.boolean("peephole", peephole)
        self._has_optional = self.peephole
        self.layer_norm = None if layer_norm is None else check.choice("layer_norm", layer_norm, _options.LAYER_NORMS)
        given = {"activations": activations, "coupled": coupled, "clip": clip, "cell_clip": cell_clip}
        if self.layer_norm is not None:
            self._prefix, self._family = "cell", f"lstm_norm_{self.layer_norm}"
            self._starts = _options.NORM_STARTS
        if self.layer_norm in ("joint", "joint_shift"):
            why = f"since the norm of layer_norm={self.layer_norm!r} is over the products of all four gates"
            if self.peephole:
                raise ValueError(f"peephole: expected False, {why}, in which c has no place")
            if coupled is not None:
                raise ValueError(f"coupled: expected None, {why}, also of one that is not used; got {coupled!r}")
        chosen = _options.of(self._family, given | {"proj_clip": proj_clip})
        self.coupled, self.clip, self.cell_clip = chosen.coupled, chosen.clip, chosen.cell_clip
        self.proj_size, self.proj_clip = check.integer("proj_size", proj_size, 0, check.MOST), chosen.proj_clip
        H = check.integer("hidden_size", hidden_size, 1, check.MOST)
        if self.proj_size >= H:
            raise ValueError(f"proj_size: expected less than hidden_size = {H}, got {proj_size}")
        if self.proj_clip is not None and not self.proj_size:
            raise ValueError(f"proj_clip: expected None without a projection (proj_size=0), got {proj_clip}")
        self._output_size = self.proj_size or H
        self.activations = tuple(activation.entry for activation in chosen.activations)
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
            bias=bias, grad_clip=grad_clip, merge=merge, zoneout=zoneout, input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout, train_state=train_state, dtype=dtype,
            seed=seed, backend=backend,
        )  # fmt: skip
        if forget_bias is not None:
            most = float(np.finfo(self.dtype).max)
            forget_bias = check.number("forget_bias", forget_bias, -most, most)
            if not bias:
                raise ValueError(f"forget_bias: expected None with bias=False, got {forget_bias}")
            f = slice(self.hidden_size, 2 * self.hidden_size)
            with self.edit() as p:
                for name in p:
                    if name.startswith("bias"):
                        p[name][f] = forget_bias if name.startswith("bias_ih") else 0

    @staticmethod
    def _bundle(*parts: Any) -> LSTMState:
        return LSTMState(*parts)


class GRU(Recurrent[np.ndarray]):
    """Gated recurrent unit, as `torch.nn.GRU`.

        r, z = sigmoid(W_i? x_t + b_i? + W_h? h + b_h?)         the gates
        n    = tanh(W_in x_t + b_in + r * (W_hn h + b_hn))      reset_after=True: PyTorch, cuDNN
        n    = tanh(W_in x_t + b_in + W_hn (r * h) + b_hn)      reset_after=False: the paper, ONNX's default
        h_t  = (1 - z) * n + z * h

    reset_after : whether the reset gate acts after the recurrent product or before it.
    clip, activations : as in `LSTM`; of the gates and the candidate n.
    layer_norm : "joint" (haste, Ba et al. 2016): of each product over all three gates, with eps 1e-5. In place of
        W_ih x_t + b_ih and W_hh h + b_hh there are gamma_x * N(W_ih x_t) + b_ih and gamma_h * N(W_hh h) + b_hh, with
        N(v) = (v - mean v) / sqrt(variance v + eps). weight_norm_ih_l{k}, weight_norm_hh_l{k} (3H,) are the gammas,
        which start at 1, the biases at 0. It needs reset_after=True.

    The other arguments are those of `LSTM`. Weights as there, with 3H rows in the order r, z, n. A state is the array
    h.

    >>> gru = GRU(64, 128, bidirectional=True)
    >>> y, h = gru(np.zeros((100, 8, 64), np.float32))
    >>> y.shape, h.shape
    ((100, 8, 256), (2, 8, 128))
    """

    _prefix = "gru"
    _cell_options = {"reset_after": True, "clip": None, "activations": GRU_ACTIVATIONS}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        bidirectional: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        clip: float | None = None,
        activations: Sequence[Activation] = GRU_ACTIVATIONS,
        layer_norm: str | None = None,
        grad_clip: float | None = None,
        merge: str | None = "concat",
        zoneout: tuple[float, float] = NO_ZONEOUT,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        train_state: bool = False,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
        backend: str = "compiled",
    ):
        self.reset_after = check.boolean("reset_after", reset_after)
        self._family = f"gru_reset_{'after' if self.reset_after else 'before'}"
        self.layer_norm = None if layer_norm is None else check.choice("layer_norm", layer_norm, ("joint",))
        if self.layer_norm is not None:
            if not self.reset_after:
                why = "where the reset gate acts between two products, and there is not one to normalise for all gates"
                raise ValueError(f"layer_norm: expected None with reset_after=False, {why}, got {layer_norm!r}")
            self._prefix, self._family, self._starts = "cell", "gru_norm", _options.NORM_STARTS
        chosen = _options.of(self._family, {"activations": activations, "clip": clip})
        self.clip, self.activations = chosen.clip, tuple(activation.entry for activation in chosen.activations)
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
            bias=bias, grad_clip=grad_clip, merge=merge, zoneout=zoneout, input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout, train_state=train_state, dtype=dtype,
            seed=seed, backend=backend,
        )  # fmt: skip


class RNN(Recurrent[np.ndarray]):
    """The plain recurrent network (Elman 1990), as `torch.nn.RNN`.

        h_t = act(W_ih x_t + b_ih + W_hh h + b_hh)

    nonlinearity : act, "tanh", "relu", "sigmoid" or any other of the activations in `LSTM`.
    activations : the same under the name that the other cells have, in their form: (act,).
    clip : as in `LSTM`.
    leak : a leaky RNN: h_t is (1 - leak) * h + leak * act(...), 0 to 1.

    The other arguments are those of `LSTM`. Weights as there, with H rows. A state is the array h.

    >>> rnn = RNN(64, 128, nonlinearity="relu")
    >>> y, h = rnn(np.zeros((100, 64), np.float32))
    >>> y.shape, h.shape
    ((100, 128), (1, 128))
    """

    _prefix = _family = "rnn"
    _cell_options = {"nonlinearity": "tanh", "clip": None, "leak": 1.0}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        nonlinearity: Activation = "tanh",
        bidirectional: bool = False,
        batch_first: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        activations: Sequence[Activation] | None = None,
        clip: float | None = None,
        leak: float = 1.0,
        grad_clip: float | None = None,
        merge: str | None = "concat",
        zoneout: tuple[float, float] = NO_ZONEOUT,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        weight_dropout: float = 0.0,
        train_state: bool = False,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
        backend: str = "compiled",
    ):
        if activations is not None:
            if _options.rnn(nonlinearity, None) != _options.rnn("tanh", None):
                raise ValueError("activations: expected either nonlinearity or activations, got both")
            if not isinstance(activations, (tuple, list)) or len(activations) != 1:
                raise ValueError(f"activations: expected one in a tuple, got {activations!r}")
            (nonlinearity,) = activations
        chosen = _options.rnn(nonlinearity, clip, leak)
        self.nonlinearity, self.clip, self.leak = chosen.activations[0].entry, chosen.clip, chosen.leak
        self.activations = None  # it is called nonlinearity here, however it was given
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional=bidirectional, batch_first=batch_first, dropout=dropout,
            bias=bias, grad_clip=grad_clip, merge=merge, zoneout=zoneout, input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout, weight_dropout=weight_dropout, train_state=train_state, dtype=dtype,
            seed=seed, backend=backend,
        )  # fmt: skip


# A layout names the axes in front of the last one as the caller has them: "TB", "BT" (batch_first) or "T" (no batch).


def _sizes(layout: str, T: int, B: int) -> tuple[int, ...]:
    return (T, B) if layout == "TB" else (B, T) if layout == "BT" else (T,)


def _time_major(a: np.ndarray, layout: str) -> np.ndarray:
    """The caller's array as (T, B, ...), a view."""
    return a[:, None] if layout == "T" else a.swapaxes(0, 1) if layout == "BT" else a


def _callers(a: np.ndarray, layout: str) -> np.ndarray:
    """The way back, also a view."""
    return a[:, 0] if layout == "T" else a.swapaxes(0, 1) if layout == "BT" else a


def _learned_state(params: Params, names: list[list[str]]) -> list[np.ndarray]:
    """What a layer has learned to begin with, (L*D, H) of each part of its state."""
    return [np.stack([params[name] for name in of_part]) for of_part in names]


def _between(noise: _Noise, start: int, end: int) -> _Noise:
    """What is drawn for the steps of a piece; what is the same at every step stays."""
    zoneout = noise.zoneout and [
        tuple(z[start:end] if isinstance(z, np.ndarray) else z for z in both) for both in noise.zoneout
    ]
    return noise._replace(kept=[None if m is None else m[start:end] for m in noise.kept], zoneout=zoneout)


def _masked(a: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Each row of (T, B, n) times its factors (B, n); what is dropped is *assigned* 0, NaN and infinity too."""
    with np.errstate(all="ignore"):
        return np.where(factors == 0, a.dtype.type(0), a * factors)


def _cut(T: int, burn_in: int, k: int | None) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is trained) of the pieces of T steps; the last one is trained, if only on no steps."""
    first = min(burn_in, T)
    starts = list(range(first, T, k)) if k else [first]
    if not starts:
        starts = [first]
    pieces = [(start, end, True) for start, end in zip(starts, [*starts[1:], T], strict=True)]
    return [(0, first, False), *pieces] if first else pieces


def _cut_gradient(part: np.ndarray, piece: _Piece, tape: Tape) -> np.ndarray:
    """The gradient by the state before a piece, for the steps before it: only of sequences that had ended there, and so
    have their final state from those."""
    if tape._lengths is None:
        return np.zeros_like(part)
    over = tape._lengths <= (0 if piece is tape._pieces[0] else piece.start)  # nothing goes into the burn-in
    return np.where(over[:, None], part, 0).astype(part.dtype)


def _rank(name: str, value: Any) -> int:
    try:
        return np.ndim(value)
    except Exception as error:  # a ragged list, say
        raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
