"""Seeing what happens inside an RNN, LSTM or GRU: where gradients vanish, what is remembered, which gates are stuck.

Numbers first: every function returns a small named tuple of them. Its `plot(axes=None)` draws them into the given
matplotlib axes, or into new ones, and returns the axes; matplotlib is needed for that alone.

Stacked layers are told apart by PyTorch's suffixes: "l0", "l1_reverse". Layers are measured as they infer, without
dropout and grad_clip, from a state of zeros; nothing of them changes. What a function cannot measure it refuses: the
docstrings say which options. The shapes are those of a call: x (T, B, I), with
`batch_first` (B, T, I), or (T, I); what lies past a sequence's length is never read.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from . import _checks as check
from . import _options, functional, reference
from .layers import GRU, LSTM, RNN, Recurrent, _rank

__all__ = [
    "Activation",
    "ActivationStatistics",
    "GateSaturation",
    "GradientNorms",
    "MemoryLength",
    "SingularValues",
    "SpectralRadius",
    "activation_statistics",
    "check_gradients",
    "gate_saturation",
    "gradient_norms",
    "memory_length",
    "singular_values",
    "spectral_radius",
]

Array: TypeAlias = npt.NDArray[Any]
Layer: TypeAlias = RNN | LSTM | GRU

_CELLS: dict[type[Any], tuple[str, tuple[str, ...]]] = {  # the functions' prefix, the blocks of rows in the weights
    RNN: ("rnn", ("",)),
    LSTM: ("lstm", ("i", "f", "g", "o")),
    GRU: ("gru", ("r", "z", "n")),
}
_GATES = ("i", "f", "o", "r", "z")  # the blocks that end in a sigmoid
_IMPULSE = 1e-6  # the error of central differences in float64 is least near the cube root of 2**-53, 5e-6


class GradientNorms(NamedTuple):
    """What `gradient_norms` found.

    norms : "h_l0", ... -> (T,) float64, the norm at every step of x; an LSTM has "c_l0", ... too.
    """

    norms: dict[str, Array]

    def plot(self, axes: Any = None) -> Any:
        """One curve per state over the steps, on a logarithmic scale: straight lines are powers."""
        axes = _axes(axes, "step t", "norm of the gradient reaching it")
        for name, values in self.norms.items():
            axes.plot(values, label=name)
        axes.set_yscale("log", nonpositive="mask")
        axes.legend()
        return axes


class SpectralRadius(NamedTuple):
    """What `spectral_radius` found, by block of weights: "weight_hh_l0", or for gates "weight_hh_l0[f]".

    radius : the largest modulus of an eigenvalue.
    eigenvalues : (H,) complex128, the largest first.
    """

    radius: dict[str, float]
    eigenvalues: dict[str, Array]

    def plot(self, axes: Any = None) -> Any:
        """The eigenvalues in the complex plane, with the unit circle."""
        axes = _axes(axes, "real part of the eigenvalue", "imaginary part")
        angle = np.linspace(0, 2 * np.pi, 200)
        axes.plot(np.cos(angle), np.sin(angle), color="grey", linewidth=1)
        for name, values in self.eigenvalues.items():
            axes.scatter(values.real, values.imag, s=12, label=f"{name}: {self.radius[name]:.3g}")
        axes.set_aspect("equal")
        axes.legend()
        return axes


class SingularValues(NamedTuple):
    """What `singular_values` found, by block of weights: "weight_hh_l0", or for gates "weight_hh_l0[f]".

    values : (H,) float64, or (proj_size,), the largest first.
    """

    values: dict[str, Array]

    def plot(self, axes: Any = None) -> Any:
        """The values of each block in falling order."""
        axes = _axes(axes, "rank", "singular value")
        for name, values in self.values.items():
            axes.plot(np.arange(1, len(values) + 1), values, marker=".", label=name)
        axes.legend()
        return axes


class GateSaturation(NamedTuple):
    """What `gate_saturation` found, by gate: "i_l0", "f_l0", "o_l0" of an LSTM, "r_l0", "z_l0" of a GRU.

    closed : the share of the gate's values below `low`, 0 to 1.
    open : the share above `high`.
    mean : the mean value.
    """

    closed: dict[str, float]
    open: dict[str, float]
    mean: dict[str, float]

    def plot(self, axes: Any = None) -> Any:
        """A bar per gate: closed, between, open."""
        axes = _axes(axes, "", "share of the gate's values")
        names = list(self.closed)
        closed, opened = np.array(list(self.closed.values())), np.array(list(self.open.values()))
        axes.bar(names, closed, label="closed")
        axes.bar(names, 1 - closed - opened, bottom=closed, label="between", color="lightgrey")
        axes.bar(names, opened, bottom=1 - opened, label="open")
        axes.legend()
        return axes


class Activation(NamedTuple):
    """The outputs h_t of one stacked layer in one direction, over all true steps, sequences and units.

    mean, std, minimum, maximum : of the values.
    zero : the share that is exactly 0, as where a ReLU is off.
    saturated : the share with |h| above 0.95, where tanh is flat.
    dead : the share of units that have one value throughout.
    counts, edges : a histogram of 50 equal bins from minimum to maximum, as `numpy.histogram`.
    """

    mean: float
    std: float
    minimum: float
    maximum: float
    zero: float
    saturated: float
    dead: float
    counts: Array
    edges: Array


class ActivationStatistics(NamedTuple):
    """What `activation_statistics` found.

    layers : "h_l0", ... -> `Activation`.
    """

    layers: dict[str, Activation]

    def plot(self, axes: Any = None) -> Any:
        """The histograms as densities."""
        axes = _axes(axes, "h", "density")
        for name, found in self.layers.items():
            axes.stairs(found.counts / (found.counts.sum() * np.diff(found.edges)), found.edges, label=name)
        axes.legend()
        return axes


class MemoryLength(NamedTuple):
    """What `memory_length` found.

    length : how many steps until the response has fallen below `fraction` of its peak for good; None: not within x.
    response : (T,) float64, the size of the response at every step.
    fraction : as given.
    """

    length: int | None
    response: Array
    fraction: float

    def plot(self, axes: Any = None) -> Any:
        """The response over the steps, on a logarithmic scale, with the threshold."""
        axes = _axes(axes, "steps after the impulse", "response of the output")
        axes.plot(self.response)
        axes.axhline(self.fraction * self.response.max(), color="grey", linewidth=1)
        if self.length is not None:
            axes.axvline(self.length, color="grey", linewidth=1, linestyle="--")
        axes.set_yscale("log", nonpositive="mask")
        return axes


def gradient_norms(
    layer: Layer, x: npt.ArrayLike, dy: npt.ArrayLike | None = None, lengths: npt.ArrayLike | None = None
) -> GradientNorms:
    """The norm of the gradient that reaches h_t, for every step t: where it vanishes or explodes.

        dL/dh_t = dy_t + (dh_{t+1}/dh_t)^T dL/dh_{t+1}          dy_t of a layer with one above it: that one's dx_t

    Bengio, Simard and Frasconi 1994; Pascanu, Mikolov and Bengio 2013, eq. 3-5. The norm is Euclidean, over all
    sequences and units. "c_l0" is the gradient that reaches an LSTM's c_t from step t + 1, so 0 at the last step.

    dy : the loss's gradient by y, in y's shape. None: one of norm 1, alike for all units, at each direction's last
        step, so that the top layer's curves start at 1 and read as factors.

    TypeError, ValueError: a wrong argument; a layer with layer_norm, zoneout or train_state; no true step at all.

    >>> found = gradient_norms(rnn, x)
    >>> found.norms["h_l0"][0]               # what of it arrives at the first step
    """
    run = _Run(layer, x, lengths)
    down = run.final_gradient() if dy is None else run.time_major("dy", dy, run.outputs[-1].shape[2])
    norms = {}
    for k in reversed(range(layer.num_layers)):
        below = np.zeros_like(run.inputs[k])
        for d, name in enumerate(run.names(k)):
            found, dx = run.backward(k, d, down[:, :, d * run.R : (d + 1) * run.R])
            below += dx
            norms.update({f"{letter}_{name}": values for letter, values in zip("hc", found)})
        down = below
    names = [f"{letter}_{name}" for k in range(layer.num_layers) for name in run.names(k) for letter in "hc"]
    return GradientNorms({name: norms[name] for name in names if name in norms})


def spectral_radius(layer: Layer) -> SpectralRadius:
    """The eigenvalues of every recurrent block of weights and the largest modulus.

    Of a plain RNN near h = 0, a radius below 1 makes states and gradients fade, above 1 grow (Pascanu, Mikolov and
    Bengio 2013, section 2.1). Computed in float64.

    TypeError: something else than an RNN, LSTM or GRU. ValueError: an LSTM with proj_size, whose blocks are not square.

    >>> spectral_radius(rnn).radius["weight_hh_l0"]
    """
    _without(layer, proj_size=0)
    eigenvalues = {}
    for name, block in _blocks(layer):
        values = np.linalg.eigvals(block).astype(np.complex128)
        eigenvalues[name] = values[np.argsort(-np.abs(values), kind="stable")]
    return SpectralRadius({name: float(np.abs(values[0])) for name, values in eigenvalues.items()}, eigenvalues)


def singular_values(layer: Layer) -> SingularValues:
    """The singular values of every recurrent block of weights: the least and the most that one step stretches a state
    or a gradient, before the nonlinearity. All are 1 for an orthogonal block. Computed in float64.

    TypeError: something else than an RNN, LSTM or GRU.

    >>> singular_values(rnn).values["weight_hh_l0"].max()
    """
    return SingularValues({name: np.linalg.svd(block, compute_uv=False) for name, block in _blocks(layer)})


def gate_saturation(
    layer: LSTM | GRU,
    x: npt.ArrayLike,
    lengths: npt.ArrayLike | None = None,
    *,
    low: float = 0.05,
    high: float = 0.95,
) -> GateSaturation:
    """How much of the time each gate is shut or wide open, where its gradient is near 0.

    The gates are those of the layers' docstrings, over all true steps, sequences and units (Karpathy, Johnson and
    Fei-Fei 2015, "Visualizing and understanding recurrent networks", have such shares, with 0.1 and 0.9).

    low, high : what counts as closed and as open, 0 <= low <= high <= 1.

    TypeError, ValueError: a wrong argument; an RNN, which has no gates; a layer with layer_norm, zoneout or
        train_state; no true step at all.

    >>> gate_saturation(lstm, x).open["f_l0"]
    """
    _, letters = _cell(layer)
    if isinstance(layer, RNN):
        raise TypeError("layer: expected an LSTM or a GRU, got an RNN, which has no gates")
    low, high = check.number("low", low, 0, 1), check.number("high", high, 0, 1)
    if low > high:
        raise ValueError(f"low: expected at most high={high:g}, got {low:g}")
    run = _Run(layer, x, lengths)
    found = GateSaturation({}, {}, {})
    for k in range(layer.num_layers):
        gates = run.gates(k)[run.alive]  # (N, D, G, H)
        for d, name in enumerate(run.names(k)):
            for i, letter in enumerate(letters):
                if letter in _GATES:
                    gate = gates[:, d, i]
                    found.closed[f"{letter}_{name}"] = float((gate < low).mean())
                    found.open[f"{letter}_{name}"] = float((gate > high).mean())
                    found.mean[f"{letter}_{name}"] = float(gate.mean(dtype=np.float64))
    return found


def activation_statistics(layer: Layer, x: npt.ArrayLike, lengths: npt.ArrayLike | None = None) -> ActivationStatistics:
    """How the outputs h_t of every stacked layer are spread.

    TypeError, ValueError: a wrong argument; a layer with layer_norm, zoneout or train_state; no true step at all;
        outputs that are not finite.

    >>> activation_statistics(rnn, x).layers["h_l0"].saturated
    """
    run = _Run(layer, x, lengths)
    layers = {}
    for _, _, name, h in run.parts():
        values = h[run.alive].astype(np.float64)  # (N, R)
        if not np.isfinite(values).all():
            raise ValueError(f"x: expected finite outputs, got NaN or infinity in h_{name}")
        counts, edges = np.histogram(values, bins=50)
        layers[f"h_{name}"] = Activation(
            mean=float(values.mean()),
            std=float(values.std()),
            minimum=float(values.min()),
            maximum=float(values.max()),
            zero=float((values == 0).mean()),
            saturated=float((np.abs(values) > 0.95).mean()),
            dead=float((values == values[0]).all(axis=0).mean()),
            counts=counts,
            edges=edges,
        )
    return ActivationStatistics(layers)


def memory_length(
    layer: Layer, x: npt.ArrayLike | None = None, *, steps: int = 1000, fraction: float = 0.01
) -> MemoryLength:
    """How long the layer remembers one input: its impulse response.

    Every input of the first step is in turn made a little larger and a little smaller; the response at step t is the
    Euclidean norm, over inputs, units and sequences, of the change of y_t by that of the input. Computed in float64
    by central differences, whose rounding errors are some 1e-9 of a response of size 1. The layer begins as in a call:
    with train_state from what it has learned.

    x : what the impulse is added to, at least one step. None: zeros, for `steps` steps; your data say more.
    fraction : above 0 and below 1.

    TypeError, ValueError: a wrong argument.

    >>> memory_length(lstm, x).length
    """
    _cell(layer)
    fraction = check.number("fraction", fraction, 0, 1)
    if not 0 < fraction < 1:
        raise ValueError(f"fraction: expected above 0 and below 1, got {fraction:g}")
    if x is None:
        background = np.zeros((check.integer("steps", steps, 1, check.MOST), 1, layer.input_size))
    else:
        background = layer._arguments(x, None, None, None)[1].astype(np.float64)
        if not background.size:
            raise ValueError(f"x: expected at least one true step, got T={len(background)}, B={background.shape[1]}")
    exact = layer.astype(np.float64)

    def outputs(changed: Array) -> Array:
        return exact(changed.swapaxes(0, 1))[0].swapaxes(0, 1) if layer.batch_first else exact(changed)[0]

    squares = np.zeros(len(background))
    with np.errstate(all="ignore"):
        for i in range(layer.input_size):
            impulse = np.zeros_like(background)
            impulse[0, :, i] = _IMPULSE
            change = (outputs(background + impulse) - outputs(background - impulse)) / (2 * _IMPULSE)
            squares += np.square(change).sum(axis=(1, 2))
    response = np.sqrt(squares)
    lasting = np.flatnonzero(~(response < fraction * response.max()))  # NaN lasts
    length = int(lasting[-1]) + 1 if response.any() else 0
    return MemoryLength(length if length < len(response) else None, response, fraction)


class _Run:
    """A layer's run over x, stacked layer by stacked layer, time first.

    R : what comes out of a direction, H or proj_size.
    inputs : of each stacked layer, (T, B, I or D*R).
    outputs : of each, (T, B, D*R), 0 past the end.
    alive : (T, B) bool, whether sequence b has a step t.
    """

    def __init__(self, layer: Layer, x: npt.ArrayLike, lengths: npt.ArrayLike | None):
        self._name, _ = _cell(layer)
        _without(layer, layer_norm=None, zoneout=_options.NO_ZONEOUT, train_state=False)
        self._layer = layer
        self.R = layer._output_size
        self._params = layer.params
        self._module: Any = functional if layer.backend == "compiled" else reference
        self._options = {name: getattr(layer, name) for name in layer._cell_options}
        self.D = 2 if layer.bidirectional else 1
        self._single = _rank("x", x) == 2
        below = self.time_major("x", x, layer.input_size)
        T, B, _ = self._shape = below.shape
        if self._single and lengths is not None:
            lengths = [check.integer("lengths", lengths, 0, T)]
        ends: Array = np.full(B, T) if lengths is None else check.lengths("lengths", lengths, T, B)
        self._ends = ends
        self.alive = np.arange(T)[:, None] < ends
        if not self.alive.any():
            raise ValueError(f"x: expected at least one true step, got T={T}, B={B}, lengths={ends.tolist()}")
        self.inputs, self.outputs = [], []
        for k in range(layer.num_layers):
            weights = [self.weights(k, d) for d in range(self.D)]
            y, *_ = self._call("forward", below, None, weights, lengths=ends, training=False)
            self.inputs.append(below)
            self.outputs.append(y)
            below = y

    def time_major(self, name: str, value: npt.ArrayLike, width: int) -> Array:
        """x or dy, checked, as (T, B, width)."""
        layer = self._layer
        if name == "x" and _rank("x", value) not in (2, 3):
            raise ValueError(f"x: expected shape (T, B, {width}) or (T, {width}), got {np.shape(value)}")
        T, B = ("T", "B") if name == "x" else self._shape[:2]
        shape = (T, width) if self._single else (B, T, width) if layer.batch_first else (T, B, width)
        a: Array = check.array(name, value, layer.dtype, shape)
        return a[:, None] if self._single else a.swapaxes(0, 1) if layer.batch_first else a

    def names(self, k: int) -> list[str]:
        return [f"l{k}", f"l{k}_reverse"][: self.D]

    def weights(self, k: int, d: int) -> tuple[Any, ...]:
        return tuple(self._layer._weights(self._params, k, d))

    def gates(self, k: int) -> Array:
        """(T, B, D, G, H): the values of the gates of a stacked layer."""
        weights = [self.weights(k, d) for d in range(self.D)]
        options = {"lengths": self._ends, "training": False, "return_all": ("gates",)}
        gates: Array = self._call("forward", self.inputs[k], None, weights, **options)[3]
        return gates

    def parts(self) -> Iterator[tuple[int, int, str, Array]]:
        """Every stacked layer in every direction: k, d, name and h (T, B, R)."""
        R = self.R
        for k, d in itertools.product(range(self._layer.num_layers), range(self.D)):
            yield k, d, self.names(k)[d], self.outputs[k][:, :, d * R : (d + 1) * R]

    def final_gradient(self) -> Array:
        """A gradient of y of norm 1 for the last step of each direction: where it ends, the reverse one at 0."""
        R = self.R
        dy = np.zeros_like(self.outputs[-1])
        ends = self.alive.sum(axis=0)
        some = np.flatnonzero(ends)
        size = (len(some) * R) ** -0.5
        dy[ends[some] - 1, some, :R] = size
        dy[0, some, R:] = size
        return dy

    def backward(self, k: int, d: int, dy: Array) -> tuple[list[Array], Array]:
        """Step by step forward and back: for each part of the state the norms (T,), and dx (T, B, I)."""
        x = self.inputs[k]
        T = len(x)
        order = range(T - 1, -1, -1) if d else range(T)
        packed = self._call("pack", [self.weights(k, d)])
        state, tapes = None, {}
        for t in order:
            _, state, tapes[t] = self._call("forward", x[t : t + 1], state, packed, lengths=self.alive[t].astype(int))
        norms = [np.zeros(T) for _ in (state if isinstance(state, tuple) else (state,))]
        dx = np.zeros_like(x)
        dstate: Any = None
        with np.errstate(all="ignore"):
            for t in reversed(order):
                alive = self.alive[t]
                reaching = [np.zeros_like(dy[t])] if dstate is None else dstate if len(norms) > 1 else (dstate,)
                reaching = [part.reshape(len(alive), -1)[alive] for part in reaching]
                reaching[0] = reaching[0] + dy[t][alive]
                for values, part in zip(norms, reaching):
                    values[t] = _norm(part)
                dx[t], dstate, _ = getattr(self._module, f"{self._name}_backward")(tapes.pop(t), dy[t : t + 1], dstate)
        return norms, dx

    def _call(self, what: str, *arguments: Any, **keywords: Any) -> Any:
        return getattr(self._module, f"{self._name}_{what}")(*arguments, **self._options, **keywords)


def check_gradients(
    layer: Recurrent[Any],
    x: npt.ArrayLike,
    state: Any = None,
    *,
    elements: int = 10,
    tolerance: float = 1e-6,
    seed: int = 0,
    **arguments: Any,
) -> dict[str, float]:
    """Compare a recurrent layer's `backward` with central differences, in float64: of a cell of one's own above all.

    layer : any; a copy in float64 is checked, with the noise of training drawn from `seed`.
    x : as in a call, a few steps of a few sequences.
    state : the initial state, as in a call. None: the state that a first call with x ends in.
    elements : of each array so many elements, drawn at random, are compared.
    tolerance : of the difference, beside 1 + the gradient's size. A kink (relu) within 1e-6 of a sum shows as an error.
    arguments : others of `forward`: lengths, reset, tbptt, attention, ... (tbptt and burn_in cut a gradient, so that it
        must differ, and so does one that the layer's grad_clip limits.)

    Returns the largest difference for "x", "state" (of several parts "state: h", ...) and each weight by name.

    ValueError: gradients that are wrong, all named, each with the worst element.

    >>> elman.diagnostics.check_gradients(elman.Custom(3, 4, cell=Mine), x)
    {'x': 1.2e-10, 'state': 3.0e-11, 'weight_ih_l0': 2.1e-10, ...}
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"layer: expected a recurrent layer, got {type(layer).__name__}")
    elements = check.integer("elements", elements, 1)
    tolerance = check.number_below("tolerance", tolerance, 0, open_below=True)
    exact = layer.astype(np.float64)
    x = np.array(x, np.float64)
    if state is None:
        called = {name: a for name, a in arguments.items() if name in ("lengths", "reset", exact._form.row)}
        state = exact(x, **called)[1]
    parts = {name: np.array(part, np.float64) for name, part in exact._named_parts("state", state)}
    rng = np.random.default_rng(check.integer("seed", seed, 0))

    def run() -> tuple[list[Array], Any]:
        """The arrays of which a loss can be made, outputs and final state, and the tape."""
        y, after, tape = exact.forward(x, exact._bundle(*parts.values()), rng=seed, **arguments)
        outputs = list(y) if isinstance(y, tuple) else [y]
        return [*outputs, *(part for _, part in exact._named_parts("state", after))], tape

    results, tape = run()
    directions = [rng.standard_normal(a.shape) for a in results]
    dy, dstate = directions[: -len(parts)], exact._bundle(*directions[-len(parts) :])
    dx, dbefore, grads, *_ = exact.backward(tape, tuple(dy) if len(dy) > 1 else dy[0], dstate)
    gradients = {"x": dx, **dict(zip(parts, (a for _, a in exact._named_parts("", dbefore)), strict=True)), **grads}

    def difference(a: Array, where: tuple[int, ...], change: Callable[[], None]) -> float:
        old, losses = a[where], []
        for value in (old + _IMPULSE, old - _IMPULSE):
            a[where] = value
            change()
            losses.append(sum(float((r * d).sum()) for r, d in zip(run()[0], directions, strict=True)))
        a[where] = old
        change()
        return (losses[0] - losses[1]) / (2 * _IMPULSE)

    weights = {name: np.array(a) for name, a in exact.params.items()}
    errors, wrong = {}, []
    for name, a in ({"x": x} | parts | weights).items():
        worst: tuple[float, tuple[int, ...], float, float] = (0.0, (), 0.0, 0.0)
        for flat in rng.permutation(a.size)[:elements]:
            where = tuple(int(i) for i in np.unravel_index(flat, a.shape))
            central = difference(a, where, partial(exact.load_params, weights) if name in weights else _nothing)
            found = float(gradients[name][where])
            error = abs(found - central) / (1 + abs(central))
            worst = max(worst, (np.inf if np.isnan(error) else error, where, found, central))
        errors[name] = worst[0]
        if worst[0] > tolerance:
            wrong.append(f"{name}: at {worst[1]} backward has {worst[2]:.6g}, central differences {worst[3]:.6g}")
    if wrong:
        right = ", ".join(name for name, error in errors.items() if error <= tolerance) or "nothing"
        raise ValueError(f"wrong gradients: {'; '.join(wrong)}. Right: {right}")
    return errors


def _nothing() -> None:
    pass


def _cell(layer: Any) -> tuple[str, tuple[str, ...]]:
    for cls, cell in _CELLS.items():
        if isinstance(layer, cls):
            if layer.merge != "concat":
                raise ValueError(f"layer: expected one with merge='concat', got merge={layer.merge!r}")
            return cell
    raise TypeError(f"layer: expected an RNN, LSTM or GRU, got {type(layer).__name__}")


def _without(layer: Any, **plain: Any) -> None:
    """ValueError: an RNN, LSTM or GRU that is not plain in these options."""
    _cell(layer)
    for name, value in plain.items():
        if getattr(layer, name, value) != value:
            raise ValueError(f"layer: expected one with {name}={value}, got {name}={getattr(layer, name)!r}")


def _blocks(layer: Layer) -> Iterator[tuple[str, Array]]:
    """The recurrent weights gate by gate, (H, H) each in float64."""
    _, letters = _cell(layer)
    params: Mapping[str, Array] = layer.params
    for name, weight in params.items():
        if name.startswith("weight_hh"):
            for letter, block in zip(letters, np.split(weight.astype(np.float64), len(letters))):
                yield f"{name}[{letter}]" if letter else name, block


def _norm(a: Array) -> float:
    """The Euclidean norm in float64, scaled, since squares overflow or vanish long before their root."""
    a = np.abs(a.astype(np.float64))
    peak = float(a.max(initial=0))
    if peak == 0 or not np.isfinite(peak):
        return peak
    return peak * float(np.sqrt(np.square(a / peak).sum()))


def _axes(axes: Any, x: str, y: str) -> Any:
    """The given axes, or new ones, with their labels."""
    if axes is None:
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError(f"plot: needs matplotlib: pip install 'elman[plot]' ({error})") from None
        _, axes = pyplot.subplots()
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    return axes
