"""Sequential: layers one after another, as one model with one `forward` and one `backward`.

No arithmetic here but zeros past the ends of sequences. What a layer takes (`state`, `lengths`, `rng`) is read from
the signature of its `forward`; a layer that takes a state returns one, and only its y goes on to the next layer.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from . import training
from ._blocks import past_the_ends
from ._parameters import Parametrised, Params
from .activation import Activation
from .dropout import Dropout
from .embedding import Embedding
from .pooling import Pooling

__all__ = ["Sequential"]

KEEPING = (Activation, Dropout, Pooling)  # layers that give as many features as they take, whatever their number


class Tape:
    """What `Sequential.forward` keeps for `backward`, and the final state. Never written to.

    state : a tuple with the final state of each recurrent layer; give it to the next call to go on.
    """

    __slots__ = ("_model", "_tapes", "_past", "state")

    def __init__(self, model: Sequential, tapes: list[Any], past: np.ndarray | None, state: tuple[Any, ...]):
        self._model, self._tapes, self._past, self.state = model, tapes, past, state

    def __repr__(self) -> str:
        return f"<tape of {self._model!r}>"


class Composite(Parametrised):
    """A model whose weights are those of its layers: the subclass says in `_weighted` which, and under what names,
    once and in the order of the names in what `backward` returns."""

    _weighted: list[tuple[str, Parametrised]]

    @property
    def params(self) -> Params:
        """The weights of all layers as they are now: a read-only mapping of read-only arrays.

        >>> model.params["0.weight_ih_l0"].shape
        (256, 12)
        """
        return Params({f"{i}.{name}": a for i, layer in self._weighted for name, a in layer.params._arrays.items()})

    def _parts(self) -> list[Parametrised]:
        return [layer for _, layer in self._weighted]

    def _snapshot_of(self, params: dict[str, np.ndarray]) -> Any:
        """One snapshot for each layer with weights."""
        arrays = iter(params.values())
        return [layer._snapshot_of(dict(zip(layer.params._arrays, arrays))) for _, layer in self._weighted]

    @property
    def _snapshot(self) -> Any:
        return [layer._snapshot for _, layer in self._weighted]

    @_snapshot.setter
    def _snapshot(self, snapshots: Any) -> None:
        for (_, layer), snapshot in zip(self._weighted, snapshots):
            layer._snapshot = snapshot

    def _accumulated(self, grads: MutableMapping | None, new: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        return new if grads is None else super()._accumulated(grads, new)


class Sequential(Composite):
    """A model from a list of layers, each one fed with what the layer before gives out.

    layers : different layers, all of one dtype and time first: LSTM, GRU, RNN, Dense, Embedding, TDNN, Dropout,
        Activation, Pooling; or any object without weights that has `__call__`, `forward` and `backward` like these. A
        Sequential among them stands for its layers, in its place: the new model has these very layers, so their
        weights are those of both models.

    `params`, `load_params`, `edit`, `backward` and the optimisers use the names "0.weight_ih_l0": the layer's place in
    the list, then its own name. A model can be pickled, deep-copied and converted by `astype`. `fit`, `evaluate` and
    `predict` train and use it on data that comes batch first; calls, `forward` and `step` are time first like the
    layers. `edit` and `load_params` check all weights before any layer changes, and then change layer by layer: a call
    that runs in another thread at that moment may see some layers before and others after.

    TypeError: not a list of layers, or different dtypes. ValueError: a layer twice, AUGRU, a layer with merge=None or
    batch_first=True, a layer over time behind Pooling, a layer that takes another number of features than the one
    before gives (as far as elman knows the layers), Pooling("last", bidirectional=True) behind a layer without two
    directions side by side.

    >>> model = Sequential([LSTM(12, 64), Pooling("last"), Dense(64, 9)])
    >>> model.fit(x, y, loss="softmax_cross_entropy", epochs=20)
    >>> logits = model.predict(x)

    >>> encoder = Sequential([Embedding(50, 16), GRU(16, 32)])
    >>> tagger = Sequential([encoder, Dense(32, 5)])         # "0.weight", "1.weight_ih_l0", ..., "2.weight"
    """

    layers: tuple[Any, ...]

    def __init__(self, layers: Sequence[Any]):
        import inspect  # takes longer than all of elman

        if not isinstance(layers, (list, tuple)) or not layers:
            raise TypeError(f"layers: expected a list of layers, got {check._kind(layers)}")
        layers = [one for x in layers for one in (x.layers if type(x) is Sequential else (x,))]
        takes, pooled, seen = [], False, set()
        for i, layer in enumerate(layers):
            if not (callable(layer) and hasattr(layer, "forward") and hasattr(layer, "backward")):
                raise TypeError(f"layers[{i}]: expected a layer, got {check._kind(layer)}")
            if isinstance(layer, Sequential):
                raise TypeError(f"layers[{i}]: expected a layer, got a subclass of Sequential: {type(layer).__name__}")
            if hasattr(layer, "params") and not isinstance(layer, Parametrised):
                raise TypeError(f"layers[{i}]: expected a layer of elman, or one without params, got {layer!r}")
            if id(layer) in seen:
                raise ValueError(f"layers[{i}]: expected different layers, got one twice")
            seen.add(id(layer))
            if getattr(layer, "batch_first", False):
                raise ValueError(f"layers[{i}]: expected batch_first=False, since a model is time first, got {layer!r}")
            parameters = inspect.signature(layer.forward).parameters
            if "attention" in parameters:
                raise ValueError(f"layers[{i}]: expected a layer that takes x alone, got {layer!r}, with attention=")
            if getattr(layer, "merge", "concat") is None:
                raise ValueError(f"layers[{i}]: expected merge other than None, which gives a pair, got {layer!r}")
            takes.append(frozenset(parameters) & {"state", "lengths", "rng"})
            if pooled and "lengths" in takes[i]:
                raise ValueError(f"layers[{i}]: expected no layer over time behind Pooling, got {layer!r}")
            pooled = pooled or isinstance(layer, Pooling)
        dtypes = [layer.dtype for layer in layers if isinstance(layer, Parametrised)]
        if len(set(dtypes)) > 1:
            raise TypeError(f"layers: expected one dtype, got {', '.join(map(str, dtypes))}")
        self._features = _check_features(layers)
        self.layers = tuple(layers)
        self.dtype = dtypes[0] if dtypes else check.FLOATS[0]
        self._takes = takes
        self._options = [tuple(sorted(names - {"state"})) for names in takes]
        self._stateful = [(layer, "state" in names) for layer, names in zip(layers, takes)]
        self._state_count = sum(has_state for _, has_state in self._stateful)
        self._whole = next((i for i, names in enumerate(takes) if _needs_whole(layers[i], names)), None)
        self._weighted = [(str(i), layer) for i, layer in enumerate(layers) if isinstance(layer, Parametrised)]
        self._places = [f"layers[{i}], {type(layer).__name__}" for i, layer in enumerate(layers)]
        self._fixed = frozenset(("layers", "dtype"))

    def __repr__(self) -> str:
        return f"Sequential([{', '.join(map(repr, self.layers))}])"

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, i: int) -> Any:
        return self.layers[i]

    # ------------------------------------------------------------------------------------------------ computing

    @overload
    def __call__(self, x: ArrayLike, state: Any = None, *, lengths: ArrayLike | None = None) -> np.ndarray: ...
    @overload
    def __call__(
        self, x: ArrayLike, state: Any = None, *, lengths: ArrayLike | None = None, return_state: bool
    ) -> Any: ...
    def __call__(
        self, x: ArrayLike, state: Any = None, *, lengths: ArrayLike | None = None, return_state: bool = False
    ) -> Any:
        """Inference: nothing is kept for a gradient, and dropout never applies.

        x : what the first layer takes, time first: (T, B, I), or (T, B) integers for Embedding, or without a batch.
        state : None for zeros, or a tuple with the initial state of each recurrent layer, in their order.
        lengths : (B,) integers 0 to T, without a batch one integer. x past a sequence's end has no effect, y is 0
            there.
        return_state : True to get the final state too.

        Returns y, (T, B, O), or (B, O) behind Pooling; with return_state (y, state).

        ValueError, TypeError: a wrong argument; what a layer refuses is told with its place in the list.

        >>> y = model(x, lengths=n)
        >>> y, state = model(x, state, return_state=True)
        """
        check.boolean("return_state", return_state)
        x, past = self._entered(x, lengths)
        states = iter(self._states(state))
        final = []
        with Placed(*self._places) as at:
            for at.i, (layer, has_state) in enumerate(self._stateful):
                options = {"lengths": lengths} if "lengths" in self._takes[at.i] else {}
                if has_state:
                    x, state_i = layer(x, next(states), **options)
                    final.append(state_i)
                else:
                    x = layer(x, **options)
        y = self._left(x, past)
        return (y, tuple(final)) if return_state else y

    def forward(
        self,
        x: ArrayLike,
        state: Any = None,
        *,
        lengths: ArrayLike | None = None,
        rng: int | np.random.Generator | None = None,
    ) -> tuple[np.ndarray, Tape]:
        """As a call, with dropout, and a tape for `backward`. No layer changes.

        rng : where dropout's masks come from, layer after layer: None is each layer's own generator, a whole number or
            a `numpy.random.Generator` makes them repeatable.

        Returns (y, tape); the final state is `tape.state`.

        >>> y, tape = model.forward(x, lengths=n)
        """
        if rng is not None and not isinstance(rng, np.random.Generator):
            rng = np.random.default_rng(check.integer("rng", rng, 0))
        x, past = self._entered(x, lengths)
        states = iter(self._states(state))
        given = {"lengths": lengths, "rng": rng}
        final, tapes = [], []
        with Placed(*self._places) as at:
            for at.i, (layer, has_state) in enumerate(self._stateful):
                options = {name: given[name] for name in self._options[at.i]}
                if has_state:
                    x, state_i, tape = layer.forward(x, next(states), **options)
                    final.append(state_i)
                else:
                    x, tape = layer.forward(x, **options)
                tapes.append(tape)
        return self._left(x, past), Tape(self, tapes, past, tuple(final))

    def backward(
        self, tape: Tape, dy: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[Any, Mapping[str, np.ndarray]]:
        """The gradient of a loss by x and by every weight.

        tape : from `forward` of this model, with the weights unchanged since. It is not changed: use it again.
        dy : the loss's gradient by y. Past a sequence's end it is never read.
        grads : writable arrays under the names of `params`, which the gradients are added to; None: new ones.

        Returns (dx, grads); dx is None where the first layer takes integers. Nothing flows back through the initial
        and the final state: pieces of a series give truncated backpropagation through time.

        ValueError, TypeError: a wrong argument; `grads` is then as it was.

        >>> dx, grads = model.backward(tape, dy)
        """
        if not isinstance(tape, Tape):
            raise TypeError(f"tape: expected what forward of this model returned, got {type(tape).__name__}")
        if tape._model is not self:
            raise ValueError(f"tape: expected one of this model, got one of another, {tape._model!r}")
        if grads is not None:
            self._checked_grads(grads, (("dy", dy),) if isinstance(dy, np.ndarray) else ())
        dx, _, new = self._backward(tape, dy)
        return dx, self._accumulated(grads, new)

    def _backward(self, tape: Tape, dy: Any, dstate: tuple[Any, ...] = ()) -> tuple[Any, tuple[Any, ...], Any]:
        """dx, the gradient by the initial states, and by every weight. dstate : by the final states, or ()."""
        d: Any = dy if tape._past is None or self._pools else self._zeroed("dy", dy, tape._past)
        final, initial, found = list(dstate), [], []
        with Placed(*self._places) as at:
            for at.i in reversed(range(len(self.layers))):
                layer, has_state = self._stateful[at.i]
                given = {"dstate": final.pop()} if dstate and has_state else {}
                d, *dstate_i, layer_grads = layer.backward(tape._tapes[at.i], d, **given)
                initial[:0] = dstate_i
                found.append((at.i, layer_grads))
        return d, tuple(initial), {f"{i}.{name}": g for i, grads in reversed(found) for name, g in grads.items()}

    def zero_state(self, batch: int | None = None) -> tuple[Any, ...]:
        """A state of zeros for `step`, a call or `forward`: the `zero_state(batch)` of each recurrent layer.

        >>> state = model.zero_state(1)
        """
        return tuple(layer.zero_state(batch) for layer, takes in zip(self.layers, self._takes) if "state" in takes)

    def step(self, x_t: ArrayLike, state: tuple[Any, ...]) -> np.ndarray:
        """One step of a stream, without dropout.

        x_t : one step of x, (B, I) or (I,); (B,) integers for Embedding.
        state : from `zero_state` or a call, or one writable state for each recurrent layer; changed in place.

        Returns y_t, (B, O) or (O,).

        ValueError, TypeError: a wrong argument, or a model with Pooling, TDNN or a bidirectional layer, which has no
        next step.

        >>> state = model.zero_state(1)
        >>> y_t = model.step(x_t, state)
        """
        self._check_streams("step")
        states = iter(self._states(state))
        x: Any = x_t
        with Placed(*self._places) as at:
            for at.i, (layer, has_state) in enumerate(self._stateful):
                x = layer.step(x, next(states)) if has_state else layer(x)
        return x

    # ------------------------------------------------------------------------------------------------- training

    fit = training.fit
    evaluate = training.evaluate
    predict = training.predict
    predict_proba = training.predict_proba

    # ------------------------------------------------------------------------------------------ weights and copies

    def astype(self, dtype: DTypeLike) -> Sequential:
        """A copy of the model that works in another dtype, float32 or float64."""
        dtype = check.dtype_of("dtype", dtype)
        return Sequential([x.astype(dtype) if isinstance(x, Parametrised) else copy.deepcopy(x) for x in self.layers])

    def __getstate__(self) -> dict[str, Any]:
        return {"layers": self.layers}

    def __setstate__(self, state: dict[str, Any]) -> None:
        Sequential.__init__(self, state["layers"])

    # ---------------------------------------------------------------------------------------------- inner parts

    def _timed_axes(self, integers: bool) -> int:
        """How many axes an array of sequences has at least, if a layer needs time; 0: none does."""
        if not any(takes & {"state", "lengths"} for takes in self._takes):
            return 0
        first = self.layers[0]
        if isinstance(first, Embedding):
            return 2
        return 2 if integers and not self._takes_features() else 3

    def _takes_features(self) -> bool:
        """Whether integers in x are numbers for the first layer, not tokens."""
        first = self.layers[0]
        return isinstance(first, KEEPING) or hasattr(first, "input_size") or hasattr(first, "in_features")

    @property
    def _pools(self) -> bool:
        return any(isinstance(layer, Pooling) for layer in self.layers)

    def _entered(self, x, lengths):
        """x for the first layer, and where the sequences have ended, (T, B), or (T,) without a batch; None: nowhere."""
        if lengths is None:
            return x, None
        shape, _ = check.shape_and_dtype("x", x)
        if np.ndim(lengths) == 0:
            past = np.arange(shape[0] if shape else 0) >= check.integer("lengths", lengths, 0, shape[0] if shape else 0)
        else:
            if len(shape) < 2:
                raise ValueError(f"x: expected shape (T, B, ...) with lengths of several sequences, got {shape}")
            ends = check.lengths("lengths", lengths, *shape[:2])
            if (ends == shape[0]).all():
                return x, None
            past = past_the_ends(ends, shape[0])
        return (x if "lengths" in self._takes[0] else self._zeroed("x", x, past)), past

    def _zeroed(self, name, value, past):
        """A copy that is zero where the sequences have ended."""
        a = np.asarray(value)
        a = np.array(a if a.dtype.kind in "iu" else check.array(name, value, self.dtype, a.shape))
        if a.shape[: past.ndim] != past.shape:
            raise ValueError(f"{name}: expected shape {past.shape} and the features, got {a.shape}")
        a[past] = 0
        return a

    def _left(self, y, past):
        if past is not None and not self._pools and "lengths" not in self._takes[-1]:
            y[past] = 0
        return y

    def _states(self, state):
        count = self._state_count
        if state is None:
            return [None] * count
        if not isinstance(state, (tuple, list)) or isinstance(state, np.ndarray):
            raise TypeError(f"state: expected a tuple with one state per recurrent layer, got {check._kind(state)}")
        if len(state) != count or hasattr(state, "_fields"):  # an LSTMState is a tuple too
            raise ValueError(f"state: expected a tuple with {count} states, one per recurrent layer, got {state!r}")
        return state

    def _check_streams(self, who):
        if self._whole is not None:
            i = self._whole
            raise ValueError(
                f"{who}: layers[{i}], {self.layers[i]!r}, needs the whole sequence and cannot go on from a state"
            )


def _needs_whole(layer: Any, takes: frozenset[str]) -> bool:
    """Whether the layer, which takes these, cannot be stepped."""
    return getattr(layer, "bidirectional", False) or takes & {"state", "lengths"} == {"lengths"}


def _check_features(layers: Sequence[Any]) -> tuple[int | None, int | None]:
    """That each layer takes what the one before gives; how many features the model takes and gives, None: unknown."""
    first = gives = giver = None
    for i, layer in enumerate(layers):
        if isinstance(layer, Pooling) and layer.mode == "last" and layer.bidirectional:
            if isinstance(giver, Parametrised) and not _gives_two_directions(giver):
                wanted = "behind a bidirectional layer with merge='concat'"
                raise ValueError(f"layers[{i}]: expected Pooling with bidirectional=True {wanted}, got {giver!r} there")
        if isinstance(layer, KEEPING):
            continue
        takes = _size(layer, "input_size", "in_features")
        if None not in (takes, gives) and takes != gives:
            wanted = f"a layer that takes the {gives} features of {giver!r}"
            raise ValueError(f"layers[{i}]: expected {wanted}, got {layer!r}, which takes {takes}")
        first = takes if giver is None else first
        giver, gives = layer, _size(layer, "_width", "out_features", "embedding_dim")
    return first, gives


def _gives_two_directions(layer: Any) -> bool:
    """Side by side."""
    return getattr(layer, "bidirectional", False) and layer.merge == "concat"


def _size(layer: Any, *names: str) -> int | None:
    """The first of these attributes that a layer of elman has."""
    if not isinstance(layer, Parametrised):
        return None
    return next((getattr(layer, name) for name in names if hasattr(layer, name)), None)


class Placed:
    """`with` it, errors say where in a model they come from: in which of these places, the one of number `i`."""

    __slots__ = ("_places", "i")

    def __init__(self, *places: str):
        self._places, self.i = places, 0

    def __enter__(self) -> Placed:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, *trace: object) -> None:
        if kind in (ValueError, TypeError):
            raise kind(f"{self._places[self.i]}: {error}") from error
