"""SGD, RMSprop, Adam and AdamW, and gradient clipping by norm and by value.

An optimiser holds layers and takes the gradients that their `backward` returned; it never computes one. All
arguments are checked before any weight, moment or gradient changes. The equations are in the classes' docstrings;
csrc/optimizers.inc computes them in one pass over all weights of a layer.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from . import _checks, _config, _kernels
from ._parameters import Parametrised, Params, SoleWriter, same_names
from ._types import Array

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "clip_grad_norm", "clip_grad_value"]

Grads: TypeAlias = "Mapping[str, Array] | Sequence[Mapping[str, Array]]"  # of one layer, or of several

NO_EDITS: contextlib.nullcontext[Any] = contextlib.nullcontext(())
LEAST_SUM = 1e-280  # of squares: in a smaller one some may have vanished
_UPDATE = {np.dtype(np.float32): _kernels.update["float"], np.dtype(np.float64): _kernels.update["double"]}


class Optimizer:
    """What SGD, RMSprop, Adam and AdamW have in common; use those.

    layers : a layer, or a list of different layers: anything with `params` and `edit`, as LSTM or Dense.
    """

    _kernel: str  # the rule in csrc/optimizers.inc

    def __init__(self, layers: Parametrised | Sequence[Parametrised], options: dict[str, Any], moments: Sequence[str]):
        """options: every number by name. moments: what is kept for each weight, in the order of elman_parameter."""
        self._single = _is_layer(layers)
        self._layers = _layers([layers] if self._single else layers)
        self._ours = [layer for layer in self._layers if isinstance(layer, Parametrised)]
        self._others = [layer for layer in self._layers if not isinstance(layer, Parametrised)]
        self._options = {name: _option(name, name, value) for name, value in options.items()}
        self._names = tuple(moments)
        self._shapes = [{name: w.shape for name, w in layer.params.items()} for layer in self._layers]
        self._steps = 0
        self._moments = [_zeros(len(moments), i, layer) for i, layer in enumerate(self._layers)]
        self._next = [a.copy() for a in self._moments]  # written by the next step, so that an error changes nothing

    @property
    def lr(self) -> float:
        """The learning rate of the next step; may be set between steps, by a schedule (`elman.schedules`)."""
        lr: float = self._options["lr"]
        return lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._options["lr"] = _option("lr", "lr", value)

    @property
    def steps(self) -> int:
        """How many steps were done, those before a `load_state_dict` included: what a schedule by step takes."""
        return self._steps

    def __repr__(self) -> str:
        kinds = ", ".join(type(layer).__name__ for layer in self._layers)
        shown = ", ".join(f"{name}={value}" for name, value in self._options.items())
        return f"{type(self).__name__}([{kinds}], {shown})"

    def step(self, grads: Grads) -> None:
        """Changes the weights of all layers by one step, all at once.

        As after `layer.edit()`, running calls finish on the old weights, and `backward` refuses tapes made before.

        grads : what `backward` returned: for one layer a dict with the keys, shapes and dtypes of `layer.params`, for a
            list of layers a list of dicts in the same order. Not changed.

        TypeError, ValueError: other keys, shapes or dtypes; a gradient that is NaN or infinite, or, but for SGD, too
        large for its square to be finite; a step after which a weight would not be finite. Nothing has changed then.
        """
        if self._single and (type(grads) is dict or isinstance(grads, Mapping)):
            grads = [grads]
        if not isinstance(grads, (list, tuple)) or len(grads) != len(self._layers):
            wanted = "a dict" if self._single else f"a list of {len(self._layers)} dicts, one per layer"
            raise TypeError(f"grads: expected {wanted}, got {_checks._kind(grads)}")
        with self._edits() if self._others else NO_EDITS as drafts:  # an error leaves every layer as it was
            with SoleWriter([part for layer in self._ours for part in layer._parts()], "step"):
                rule = self._rule(self._steps + 1)
                weights = {id(layer): self._moved(i, rule, grads[i]) for i, layer in enumerate(self._layers)}
                for layer, draft in drafts:
                    draft.update(weights[id(layer)])
                snapshots = [layer._snapshot_of(weights[id(layer)]) for layer in self._ours]
                for layer, snapshot in zip(self._ours, snapshots):
                    layer._snapshot = snapshot
                self._moments, self._next = self._next, self._moments
                self._steps += 1

    @contextlib.contextmanager
    def _edits(self) -> Iterator[list[tuple[Any, Any]]]:
        """The layers that are not elman's, each with the draft of an edit."""
        with contextlib.ExitStack() as stack:
            yield [(layer, stack.enter_context(layer.edit())) for layer in sorted(self._others, key=id)]

    def state_dict(self) -> dict[str, Any]:
        """What the next steps depend on but weights and gradients, for `load_state_dict`: a dict of numbers and arrays.

        The numbers are "step", "lr" and the other options ("betas" is an array of two). The arrays are copies of the
        moments, in the shapes of the weights, named by layer, weight and PyTorch's word: "0.weight_ih_l0.exp_avg".

        With the weights saved too, training goes on with the same bits as if it had not been interrupted.

        >>> np.savez("adam.npz", **optimizer.state_dict())
        """
        state: dict[str, Any] = {"step": self._steps, **self._options}
        if "betas" in state:
            state["betas"] = np.array(state["betas"])
        for name, flat in self._views(self._moments):
            state[name] = flat.copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where another optimiser of the same kind, with layers of the same names and shapes, was.

        state : what its `state_dict` returned; numbers may be arrays without axes, as `numpy.load` makes them. The lr
            and the other options are taken over too. The values are copied.

        TypeError, ValueError: a name missing or unexpected, a wrong shape, dtype or number, a moment that is not
        finite. Nothing has changed then.
        """
        views = dict(self._views(self._next))
        expected = ["step", *self._options, *views]
        if not isinstance(state, Mapping):
            raise TypeError(f"state: expected a mapping from names to arrays and numbers, got {_checks._kind(state)}")
        odd = [f"no {name}" for name in expected if name not in state]
        odd += [f"unexpected {name!r}" for name in state if name not in expected]
        if odd:
            raise ValueError(f"state: expected exactly the names of state_dict(), got {', '.join(odd)}")
        steps = _checks.integer("state: step", _plain(state["step"]), 0, 2**62)
        options = {name: _option(f"state: {name}", name, _plain(state[name])) for name in self._options}
        for name in ("momentum", "centered", "nesterov"):
            if bool(options.get(name)) != bool(self._options.get(name)):
                raise ValueError(f"state: {name}: expected as in {self!r}, got {options[name]}")
        for name, view in views.items():
            a = _checks.array(f"state: {name}", state[name], view.dtype, view.shape)
            if not np.isfinite(a).all():
                raise ValueError(f"state: {name}: expected finite values, got NaN or infinity")
            view[...] = a
        self._moments, self._next = self._next, self._moments
        self._steps, self._options = steps, options

    def _rule(self, t: int) -> tuple[float, ...]:
        """The numbers of elman_rule for step t = 1, 2, ..., in its order."""
        raise NotImplementedError

    def _moved(self, i, rule, grads):
        """The new weights of layer i; the new moments go to self._next."""
        params = self._layers[i].params
        weights = params._arrays if type(params) is Params else dict(params)
        moments = self._moments[i], self._next[i]
        update = _UPDATE[moments[0].dtype]
        try:
            if type(grads) is dict:  # the quick way, for dense arrays of the right names, dtypes and shapes
                new = update(self._kernel, rule, weights, grads, *moments, _config.get_num_threads)
                if new is not None:
                    return new
            grads, weights = self._checked(i, grads, "grads"), self._checked(i, weights, "params")
            return update(self._kernel, rule, weights, grads, *moments, _config.get_num_threads)
        except FloatingPointError:
            raise ValueError(self._complaint(i, rule, weights, grads)) from None

    def _checked(self, i, arrays, what):
        """Gradients or weights of layer i as dense arrays, in the order of its weights."""
        where = what if self._single else f"{what}[{i}]"
        same_names(where, arrays, self._shapes[i])
        dtype = self._moments[i].dtype
        return {
            name: _checks.array(f"{where}: {name}", arrays[name], dtype, shape, contiguous=True)
            for name, shape in self._shapes[i].items()
        }

    def _complaint(self, i, rule, weights, grads):
        """Why a step with these arrays is refused."""
        where = "grads" if self._single else f"grads[{i}]"
        grads = self._checked(i, grads, "grads")
        squared = self._kernel != "sgd"
        for name, g in grads.items():
            with np.errstate(all="ignore"):
                good = np.isfinite(g * g if squared else g)
            if not good.all():
                at = tuple(int(k) for k in np.argwhere(~good)[0])
                limit = f" below {math.sqrt(np.finfo(g.dtype).max):.1e}" if squared else ""
                place = ", ".join(map(str, at))
                return f"{where}: {name}: expected finite values{limit}, got {g[at]:.3g} at ({place})"
        start = 0
        for name, g in grads.items():
            part = slice(start, start + g.size)
            moments = self._moments[i][:, part], self._next[i][:, part]
            start += g.size
            try:
                update = _UPDATE[g.dtype]
                update(self._kernel, rule, {name: weights[name]}, {name: g}, *moments, _config.get_num_threads)
            except FloatingPointError:
                break
        return f"{where}: {name}: this step would make a weight or a moment infinite or NaN"

    def _views(self, moments: list[Array]) -> Iterator[tuple[str, Array]]:
        """The names of state_dict with the moments of each weight, in its shape."""
        for i, shapes in enumerate(self._shapes):
            start = 0
            for name, shape in shapes.items():
                end = start + math.prod(shape)
                for moment, flat in zip(self._names, moments[i], strict=True):
                    yield f"{i}.{name}.{moment}", flat[start:end].reshape(shape)
                start = end


class SGD(Optimizer):
    """Stochastic gradient descent, with the words, defaults and equations of torch.optim.SGD (without dampening).

        g = g + weight_decay * weight
        m = momentum * m + g                                    # m starts at 0; without momentum m = g
        weight -= lr * m                                        # nesterov: lr * (g + momentum * m)

    layers : a layer, or a list of different layers: anything with `params` and `edit`, as LSTM or Dense.
    lr : learning rate, 0 or above. The attribute `lr` may be set between steps.
    momentum : how much of the last move is kept (Polyak 1964), 0 or above.
    weight_decay : 0 or above, an L2 penalty of weight_decay / 2 * weight^2.
    nesterov : look ahead along the momentum (Sutskever et al. 2013); needs momentum.

    TypeError, ValueError: an argument of the wrong kind or range.

    >>> optimizer = SGD([lstm, head], lr=0.1, momentum=0.9)
    >>> optimizer.step([lstm_grads, head_grads])
    """

    _kernel = "sgd"

    def __init__(
        self,
        layers: Parametrised | Sequence[Parametrised],
        lr: float = 1e-3,
        momentum: float = 0.0,
        *,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ):
        options = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(layers, options, ["momentum_buffer"] if momentum else [])
        if nesterov and not momentum:
            raise ValueError("nesterov: expected momentum above 0 with it, got momentum=0")

    def _rule(self, t: int) -> tuple[float, ...]:
        o = self._options
        return o["lr"], o["weight_decay"], 1.0, o["momentum"], 0.0, 0.0, 0.0, o["nesterov"], False


class RMSprop(Optimizer):
    """RMSprop (Hinton 2012, lecture 6e), with the words, defaults and equations of torch.optim.RMSprop.

        g = g + weight_decay * weight
        s = alpha * s + (1 - alpha) * g^2                       # s, a and m start at 0
        a = alpha * a + (1 - alpha) * g                         # centered (Graves 2013): s - a^2 stands for s below
        m = momentum * m + g / (sqrt(s) + eps)
        weight -= lr * m

    layers : a layer, or a list of different layers: anything with `params` and `edit`, as LSTM or Dense.
    lr : learning rate, 0 or above. The attribute `lr` may be set between steps.
    alpha : how slowly the mean square forgets, at least 0 and below 1.
    eps : added to the denominator, 0 or above.
    weight_decay : 0 or above, an L2 penalty of weight_decay / 2 * weight^2.
    momentum : 0 or above.
    centered : divide by the standard deviation of the gradient. Where rounding takes s - a^2 below 0 it counts as 0
        (torch.optim.RMSprop makes the weight NaN there).

    TypeError, ValueError: an argument of the wrong kind or range.
    """

    _kernel = "rmsprop"

    def __init__(
        self,
        layers: Parametrised | Sequence[Parametrised],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
    ):
        moments = ["square_avg"] + ["grad_avg"] * bool(centered) + ["momentum_buffer"] * bool(momentum)
        options = {"lr": lr, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        super().__init__(layers, {**options, "momentum": momentum, "centered": centered}, moments)

    def _rule(self, t: int) -> tuple[float, ...]:
        o = self._options
        return o["lr"], o["weight_decay"], 1.0, o["momentum"], 0.0, o["alpha"], o["eps"], False, o["centered"]


class Adam(Optimizer):
    """Adam (Kingma and Ba 2015, algorithm 1), with the words, defaults and equations of torch.optim.Adam.

        g = g + weight_decay * weight
        m = beta1 * m + (1 - beta1) * g                         # m and v start at 0
        v = beta2 * v + (1 - beta2) * g^2
        weight -= lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)      # t = 1, 2, ...

    The last line is computed with the root multiplied out, as at the end of section 2 of the paper.

        optimizer = elman.Adam([lstm, head], lr=2e-3)
        optimizer.step([lstm_grads, head_grads])

    layers : a layer, or a list of different layers: anything with `params` and `edit`, as LSTM or Dense.
    lr : learning rate, 0 or above. The attribute `lr` may be set between steps, for a schedule.
    betas : how slowly the mean and the mean square forget, each at least 0 and below 1.
    eps : added to the denominator, 0 or above.
    weight_decay : 0 or above, an L2 penalty of weight_decay / 2 * weight^2; see `AdamW` for the other kind.

    The moments have the dtypes of the weights. Weights may be edited or loaded between the steps.

    TypeError, ValueError: an argument of the wrong kind or range.
    """

    _kernel = "adam"

    def __init__(
        self,
        layers: Parametrised | Sequence[Parametrised],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ):
        options = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(layers, options, ["exp_avg", "exp_avg_sq"])

    def _decays(self) -> tuple[float, float]:
        """What weight_decay adds to the gradient, and what it leaves of the weight."""
        return self._options["weight_decay"], 1.0

    def _rule(self, t: int) -> tuple[float, ...]:
        beta1, beta2 = self._options["betas"]
        root = math.sqrt(1 - beta2**t)
        lr = self._options["lr"] * root / (1 - beta1**t)
        return lr, *self._decays(), 0.0, beta1, beta2, self._options["eps"] * root, False, False


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), as torch.optim.AdamW: the weight itself shrinks.

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g^2
        weight = (1 - lr * weight_decay) * weight - lr / (1 - beta1^t) * m / (sqrt(v) / sqrt(1 - beta2^t) + eps)

    weight_decay : 0 or above. The other arguments are those of `Adam`.
    """

    def __init__(
        self,
        layers: Parametrised | Sequence[Parametrised],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(layers, lr, betas, eps, weight_decay)

    def _decays(self) -> tuple[float, float]:
        return 0.0, 1 - self._options["lr"] * self._options["weight_decay"]


def clip_grad_norm(grads: Grads, max_norm: float) -> float:
    """Scales all gradients by one factor so that their common Euclidean norm is at most max_norm.

    If norm > max_norm, every g becomes g * max_norm / norm (Pascanu, Mikolov and Bengio 2013, algorithm 1);
    torch.nn.utils.clip_grad_norm_ adds 1e-6 to the norm in the denominator, this does not.

    Args:
        grads: a dict of float32 or float64 arrays, or a list of such dicts (then one norm over all), changed in place.
        max_norm: above 0; infinity only measures.

    Returns:
        The norm before clipping, a Python float accumulated in float64. If a gradient is NaN or infinite the norm is
        too, and nothing is changed: skip that step, or let the optimiser's `step` refuse it.

    Raises:
        TypeError, ValueError: gradients that are not writable float arrays, an array given twice, a wrong max_norm.
            Nothing has changed then.
    """
    max_norm = _checks.number_below("max_norm", max_norm, 0, open_below=True, infinite=True)
    many = [grads] if type(grads) is dict else grads
    quick = isinstance(many, (list, tuple)) and all(type(given) is dict for given in many)
    arrays = [g for given in many for g in given.values()] if quick else []
    total = _kernels.sum_of_squares(arrays) if quick else None
    if total is not None and LEAST_SUM < total < math.inf:
        norm = math.sqrt(total)
    else:
        arrays = _arrays(grads)
        norm = _norm(arrays)
    if math.isfinite(norm) and norm > max_norm:
        with np.errstate(all="ignore"):
            for g in arrays:
                g *= max_norm / norm
    return norm


def clip_grad_value(grads: Grads, clip_value: float) -> None:
    """Clamps every entry of every gradient to [-clip_value, clip_value], like torch.nn.utils.clip_grad_value_.

    Args:
        grads: a dict of float32 or float64 arrays, or a list of such dicts, changed in place. NaN stays NaN.
        clip_value: above 0.

    Raises:
        TypeError, ValueError: gradients that are not writable float arrays, an array given twice, a wrong
            clip_value. Nothing has changed then.
    """
    clip_value = _checks.number_below("clip_value", clip_value, 0, open_below=True)
    for g in _arrays(grads):
        with np.errstate(all="ignore"):
            limit = g.dtype.type(clip_value)
        np.clip(g, -limit, limit, out=g)


def _norm(arrays):
    """The Euclidean norm over all arrays, in float64; scaled where the plain squares overflow or vanish."""
    if not arrays:
        return 0.0
    flat = np.concatenate(arrays, axis=None, dtype=np.float64)
    with np.errstate(all="ignore"):
        total = _sum_of_squares(flat)
        if LEAST_SUM < total < math.inf:
            return math.sqrt(total)
        peak = float(np.abs(flat).max(initial=0))
        if peak == 0 or not math.isfinite(peak):
            return peak
        flat /= peak
        return peak * math.sqrt(_sum_of_squares(flat))


def _sum_of_squares(flat):
    return float(np.einsum("i,i", flat, flat))  # not np.dot: its threads spin, and a busy machine stands still


def _arrays(grads):
    """All arrays of a dict or of a list of dicts, checked to be writable, of float dtypes, and each there once."""
    single = isinstance(grads, Mapping)
    if not single and not isinstance(grads, (list, tuple)):
        raise TypeError(f"grads: expected a dict of arrays or a list of such dicts, got {_checks._kind(grads)}")
    arrays = []
    for i, given in enumerate([grads] if single else grads):
        where = "grads" if single else f"grads[{i}]"
        if not isinstance(given, Mapping):
            raise TypeError(f"{where}: expected a dict of arrays, got {_checks._kind(given)}")
        for key, g in given.items():
            name = f"{where}: {key}"
            if not isinstance(g, np.ndarray) or g.dtype not in _checks.FLOATS:
                raise TypeError(f"{name}: expected an array of float32 or float64, got {_checks._kind(g)}")
            if not g.flags.writeable:
                raise ValueError(f"{name}: expected a writable array, got a read-only one")
            arrays.append((name, g))
    owners = {id(g) for _, g in arrays if g.flags.owndata}  # such an array shares memory with itself and views only
    for i, (name, g) in enumerate(arrays if len(owners) < len(arrays) else ()):
        for other_name, other in arrays[:i]:
            if other is g or _checks.overlap(other, g):
                raise ValueError(f"{name}: expected memory of its own, got an array that overlaps {other_name}")
    return [g for _, g in arrays]


def _is_layer(value):
    return hasattr(value, "params") and hasattr(value, "edit") and not isinstance(value, type)


def _layers(value):
    if not isinstance(value, (list, tuple)) or not value:
        raise TypeError(f"layers: expected a layer or a list of layers, got {_checks._kind(value)}")
    for i, layer in enumerate(value):
        if not _is_layer(layer):
            raise TypeError(f"layers[{i}]: expected a layer (with params and edit), got {_checks._kind(layer)}")
        if any(layer is other for other in value[:i]):
            raise ValueError(f"layers[{i}]: expected different layers, got one twice")
    seen: set[int] = set()  # of layers that hold weights: a model is made of such
    for i, layer in enumerate(value):
        parts = {id(part) for part in layer._parts()} if isinstance(layer, Parametrised) else set()
        if parts & seen:
            raise ValueError(f"layers[{i}]: expected layers that share no weights, got one with weights of another")
        seen |= parts
    return tuple(value)


def _zeros(count, i, layer):
    """(count, all weights of the layer, one behind the other)"""
    dtypes = {w.dtype for w in layer.params.values()}
    if len(dtypes) != 1 or not dtypes <= set(_UPDATE):
        shown = ", ".join(sorted(map(str, dtypes))) or "no weights"
        raise TypeError(f"layers[{i}]: expected weights of one dtype, float32 or float64, got {shown}")
    return np.zeros((count, sum(w.size for w in layer.params.values())), *dtypes)


def _option(label, name, value):
    """One of the optimisers' numbers, checked."""
    if name in ("centered", "nesterov"):
        return _checks.boolean(label, value)
    if name == "betas":
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise TypeError(f"{label}: expected two numbers, got {value!r}")
        return tuple(_checks.number_below(label, beta, 0, 1) for beta in value)
    return _checks.number_below(label, value, 0, 1 if name == "alpha" else math.inf)


def _plain(value):
    """A number, or a list of them, from the array that a file may have made of it."""
    return value.tolist() if isinstance(value, np.ndarray) else value
