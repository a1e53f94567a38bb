"""The equations of elman's recurrent networks in NumPy: forward, and backpropagation through time (BPTT).

Read this file beside a textbook; `elman.functional` computes the same with compiled kernels, under the same names, and
is tested against it. No kernel is imported here.

The recurrent network (Elman 1990). A cell carries a state from step to step. The plain one, with t = 0 ... T-1:

    h_t = tanh(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh)      h_(-1) is the initial state, called h0 in the code
    o_t = V h_t + c                                        the output layer (elman.Dense), not part of the cell
    L   = sum_t L_t(o_t)                                   the total loss

A batch holds B sequences: x is (T, B, I), and row b of x_t (B, I) belongs to sequence b, so the product W x_t is
written `x_t @ W.T`. y (T, B, D*H) collects h_t of D = 1 or 2 directions; the second runs from the end to the start.

Backpropagation through time (Werbos 1990). A loss sees h_t twice, through o_t and through the next step:

    dL/dh_t     = V^T dL/do_t                              the direct part, given as dy[t]
                + (the part that comes back through h_(t+1))
    dL/dh_(t-1) = W_hh^T da_t,   da_t = dL/dh_t * tanh'    da_t: the gradient of the sum inside tanh
    dL/dx_t     = W_ih^T da_t
    dL/dW_ih    = sum_t da_t x_t^T                         the same weights act at every step, so their
    dL/dW_hh    = sum_t da_t h_(t-1)^T                     gradients are sums over t
    dL/db_ih    = dL/db_hh = sum_t da_t

So one loop runs back over the steps of the forward loop, hands dL/dh_t to the step before, and adds up. In the code the
gradient dL/dv of the loss by anything called v is `dv`; h stands for h_(t-1) and h_t for the new one; `*` is
elementwise.

Every cell consists of two small functions: a step, and that step backwards. `_forward`, `_backward` and `_step` below
hold what all cells have in common: time, directions, lengths and resets.

    lengths  A sequence takes part in step t only while t < length. Its rows are picked out of the batch, so whatever
             lies beyond its end is never read; its output there is 0, and its state stays as it is.
    reset    Where a sequence begins anew the state is assigned 0 before the step, so not even a NaN survives, and no
             gradient passes. In the second direction the cut lies between the same two steps, t and t-1.

To add a cell: write its two functions, a line in `_MORE` that names them, and its form in `_options.FORMS`.

All arithmetic is done in the dtype of the weights, float32 or float64; x and the states must have the same one. Wrong
arguments raise TypeError or ValueError, naming the argument, before anything has changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _checks, _options
from ._options import FORMS, GRU_ACTIVATIONS, LSTM_ACTIVATIONS, NO_ZONEOUT, Activation, Zoneout
from ._types import Array, Arrays, Gradients, Packed, State, Tape, Weights

__all__ = [
    "cell_backward",
    "cell_forward",
    "cell_pack",
    "cell_step",
    "exp",
    "gru_backward",
    "gru_forward",
    "gru_pack",
    "gru_step",
    "lstm_backward",
    "lstm_forward",
    "lstm_pack",
    "lstm_step",
    "rnn_backward",
    "rnn_forward",
    "rnn_pack",
    "rnn_step",
    "sigmoid",
    "tanh",
]


# ------------------------------------------------------------------------------------------- elementwise functions


def exp(x: npt.ArrayLike) -> Array:
    """e^x of every element of a float32 or float64 array, as a new array; anything else raises TypeError."""
    return np.asarray(_quietly(np.exp, _floats(x)))


def sigmoid(x: npt.ArrayLike) -> Array:
    """1 / (1 + e^-x) of every element of a float32 or float64 array, as a new array; anything else raises TypeError.

    For x < 0 this is e^x / (1 + e^x): of the two forms, each side takes the one whose exponential cannot overflow.
    """
    return np.asarray(_quietly(_sigmoid, _floats(x)))


def tanh(x: npt.ArrayLike) -> Array:
    """tanh x of every element of a float32 or float64 array, as a new array; anything else raises TypeError."""
    return np.asarray(_quietly(np.tanh, _floats(x)))


def _sigmoid(x: Array) -> Array:
    return np.exp(np.minimum(x, 0)) / (1 + np.exp(-np.abs(x)))


def _floats(x: npt.ArrayLike) -> Array:
    a = np.asarray(x)
    _checks.dtype_of("x", a.dtype)
    return a


def _quietly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Overflow, NaN and infinity travel as IEEE 754 says, without warnings and whatever np.seterr has been set to."""
    with np.errstate(all="ignore"):
        return function(*arguments)


# -------------------------------------------------------------------------------------------- the product with weights


class _Masked(NamedTuple):
    """Weights whose inputs are multiplied by a mask on their way in: W (mask * x)."""

    W: Array
    mask: Array  # (B, inputs)


def _linear(x: Array, W: Array | _Masked, b: Array | float) -> Array:
    """a = W x + b for every row x: (B, inputs) -> (B, outputs)."""
    if isinstance(W, _Masked):
        return _linear(W.mask * x, W.W, b)
    return x @ W.T + b


def _linear_backward(da: Array, x: Array, W: Array | _Masked) -> Arrays:
    """dx = W^T da, dW = sum over rows of da x^T, db = sum over rows of da."""
    if isinstance(W, _Masked):
        dx, dW, db = _linear_backward(da, W.mask * x, W.W)
        return W.mask * dx, dW, db
    return da @ W, da.T @ x, da.sum(axis=0)


# --------------------------------------------------------------------------------------------------------- the cells
#
# step(x_t, state, weights) -> (new state, saved)            state is (h,) or (h, c), each (B, H), the one before step t
#                                                            saved: first the gates, in the order of the weights
# step_backward(dstate_t, x_t, state, weights, saved)        dstate_t: the gradient of the new state
#              -> (dx_t, dstate, dweights)                   dstate: of the one before; dweights: what step t adds
#
# A cell whose h is no state returns (h, c) as the new state and takes (c,). One that takes a number with each row has
# it, (B, 1), as its last argument, and its gradient (B,) as the last result. One that mixes c with the old one itself,
# in zoneout, has the share that stays, a number or (B, H), as its last argument.


class _Cell(NamedTuple):
    """What the time loop has to know about a cell. The first part of its new state is its output."""

    name: str  # begins with the prefix of its public functions
    form: _options.Form
    step: Callable[..., tuple[Arrays, Arrays]]
    step_backward: Callable[..., tuple[Any, ...]]
    options: _options.Options | None = None  # of a cell that saves pre-activations instead of gates

    @property
    def is_carried(self) -> bool:
        """Whether the output is a part of the state."""
        return self.form.letters[0] != "c"


# RNN:  h_t = act(W_ih x_t + b_ih + W_hh h + b_hh)


def _rnn_cell(name: str, act: Callable[[Array], Array], slope: Callable[[Array], Array]) -> _Cell:
    """slope: the derivative of act, expressed by its result h_t = act(a)."""

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        (h,) = state
        W_ih, W_hh, b_ih, b_hh = weights
        h_t = act(_linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh))
        return (h_t,), (h_t,)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        (dh_t,), (h,), (h_t,) = dstate_t, state, saved
        W_ih, W_hh, _, _ = weights
        da = dh_t * slope(h_t)
        dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
        dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
        return dx_t, (dh,), (dW_ih, dW_hh, db_ih, db_hh)

    return _Cell(name, FORMS["rnn"], step, step_backward)


_RNN = {
    "tanh": _rnn_cell("rnn_tanh", np.tanh, lambda h_t: 1 - h_t**2),
    "relu": _rnn_cell("rnn_relu", lambda a: np.maximum(a, 0), lambda h_t: h_t > 0),  # the slope at the kink is 0
    "sigmoid": _rnn_cell("rnn_sigmoid", _sigmoid, lambda h_t: h_t * (1 - h_t)),
}


# LSTM (Hochreiter & Schmidhuber 1997; forget gate: Gers, Schmidhuber & Cummins 2000)
#
#     i = sigmoid(a_i)   f = sigmoid(a_f)   g = tanh(a_g)   o = sigmoid(a_o)    a = W_ih x_t + b_ih + W_hh h + b_hh
#     c_t = f * c + i * g
#     h_t = o * tanh(c_t)


def _lstm_step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    h, c = state
    W_ih, W_hh, b_ih, b_hh = weights
    a_i, a_f, a_g, a_o = _gates(_linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh), 4)
    i = _sigmoid(a_i)
    f = _sigmoid(a_f)
    g = np.tanh(a_g)
    o = _sigmoid(a_o)
    c_t = f * c + i * g
    h_t = o * np.tanh(c_t)
    return (h_t, c_t), (i, f, g, o, c_t)


def _lstm_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
) -> tuple[Array, Arrays, Arrays]:
    (dh_t, dc_t), (h, c), (i, f, g, o, c_t) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    tanh_c_t = np.tanh(c_t)
    do = dh_t * tanh_c_t
    dc_t = dc_t + dh_t * o * (1 - tanh_c_t**2)  # c_t acts through the step after, and through h_t
    di = dc_t * g
    df = dc_t * c
    dg = dc_t * i
    dc = dc_t * f
    da_i = di * i * (1 - i)
    da_f = df * f * (1 - f)
    da_g = dg * (1 - g**2)
    da_o = do * o * (1 - o)
    da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
    dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
    dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
    return dx_t, (dh, dc), (dW_ih, dW_hh, db_ih, db_hh)


_LSTM = _Cell("lstm", FORMS["lstm"], _lstm_step, _lstm_step_backward)


# GRU (Cho et al. 2014)
#
#     r = sigmoid(ax_r + ah_r)    z = sigmoid(ax_z + ah_z)      ax = W_ih x_t + b_ih      ah = W_hh h + b_hh
#     n = tanh(ax_n + r * ah_n)                                 reset after the product: cuDNN, PyTorch
#     n = tanh(ax_n + W_hn (r * h) + b_hn)                      reset before it: the paper, ONNX's default
#     h_t = (1 - z) * n + z * h


def _gru_after_step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    (h,) = state
    W_ih, W_hh, b_ih, b_hh = weights
    ax_r, ax_z, ax_n = _gates(_linear(x_t, W_ih, b_ih), 3)
    ah_r, ah_z, ah_n = _gates(_linear(h, W_hh, b_hh), 3)
    r = _sigmoid(ax_r + ah_r)
    z = _sigmoid(ax_z + ah_z)
    n = np.tanh(ax_n + r * ah_n)
    h_t = (1 - z) * n + z * h
    return (h_t,), (r, z, n, ah_n)


def _gru_after_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
) -> tuple[Array, Arrays, Arrays]:
    (dh_t,), (h,), (r, z, n, ah_n) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    dz = dh_t * (h - n)
    dn = dh_t * (1 - z)
    da_n = dn * (1 - n**2)
    dr = da_n * ah_n
    dah_n = da_n * r
    da_r = dr * r * (1 - r)
    da_z = dz * z * (1 - z)
    dax = np.concatenate([da_r, da_z, da_n], axis=1)
    dah = np.concatenate([da_r, da_z, dah_n], axis=1)
    dx_t, dW_ih, db_ih = _linear_backward(dax, x_t, W_ih)
    dh, dW_hh, db_hh = _linear_backward(dah, h, W_hh)
    dh = dh + dh_t * z  # h acts through the product, and directly
    return dx_t, (dh,), (dW_ih, dW_hh, db_ih, db_hh)


def _gru_before_step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    (h,) = state
    W_ih, W_hh, b_ih, b_hh = weights
    W_hrz, W_hn = _split_rz_n(W_hh)
    b_hrz, b_hn = _split_rz_n(b_hh)
    ax_r, ax_z, ax_n = _gates(_linear(x_t, W_ih, b_ih), 3)
    ah_r, ah_z = _gates(_linear(h, W_hrz, b_hrz), 2)
    r = _sigmoid(ax_r + ah_r)
    z = _sigmoid(ax_z + ah_z)
    n = np.tanh(ax_n + _linear(r * h, W_hn, b_hn))
    h_t = (1 - z) * n + z * h
    return (h_t,), (r, z, n)


def _gru_before_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
) -> tuple[Array, Arrays, Arrays]:
    (dh_t,), (h,), (r, z, n) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    W_hrz, W_hn = _split_rz_n(W_hh)
    dz = dh_t * (h - n)
    dn = dh_t * (1 - z)
    da_n = dn * (1 - n**2)
    drh, dW_hn, db_hn = _linear_backward(da_n, r * h, W_hn)  # drh: the gradient of r * h
    dr = drh * h
    da_r = dr * r * (1 - r)
    da_z = dz * z * (1 - z)
    dh, dW_hrz, db_hrz = _linear_backward(np.concatenate([da_r, da_z], axis=1), h, W_hrz)
    dh = dh + drh * r + dh_t * z  # h acts through r and z, through r * h, and directly
    dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da_r, da_z, da_n], axis=1), x_t, W_ih)
    return dx_t, (dh,), (dW_ih, np.concatenate([dW_hrz, dW_hn]), db_ih, np.concatenate([db_hrz, db_hn]))


def _split_rz_n(a: Any) -> Any:
    """The rows of r and z, and those of n."""
    if isinstance(a, _Masked):
        return tuple(_Masked(W, a.mask) for W in _split_rz_n(a.W))
    H = len(a) // 3
    return a[: 2 * H], a[2 * H :]


_GRU_AFTER = _Cell("gru_reset_after", FORMS["gru_reset_after"], _gru_after_step, _gru_after_step_backward)
_GRU_BEFORE = _Cell("gru_reset_before", FORMS["gru_reset_before"], _gru_before_step, _gru_before_step_backward)


def _gates(a: Array, count: int) -> list[Array]:
    """The columns of each gate: (B, count*H) -> count times (B, H)."""
    H = a.shape[1] // count
    return [a[:, k * H : (k + 1) * H] for k in range(count)]


# ------------------------------------------------------------------------------- the same cells with other activations
#
# and with clipping, coupled gates and peepholes. A pre-activation is now written whole and kept, since the slope of an
# activation need not follow from its value.


def _always(value: float) -> Callable[[Array], Array]:
    return lambda a: np.full_like(a, value)


def _softplus(a: Array) -> Array:
    return np.maximum(a, 0) + np.log1p(np.exp(-np.abs(a)))


def _function_of(chosen: _options.Chosen) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """An activation of ONNX and its slope, both of the pre-activation; at a kink the slope of the side below."""
    name, alpha, beta = chosen
    pairs: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
        "tanh": (np.tanh, lambda a: 1 - np.tanh(a) ** 2),
        "sigmoid": (_sigmoid, lambda a: _sigmoid(a) * (1 - _sigmoid(a))),
        "relu": (lambda a: np.maximum(a, 0), lambda a: a > 0),
        "affine": (lambda a: alpha * a + beta, _always(alpha)),
        "leakyrelu": (lambda a: np.where(a < 0, alpha * a, a), lambda a: np.where(a > 0, 1, alpha)),
        "thresholdedrelu": (lambda a: np.where(a <= alpha, 0, a), lambda a: a > alpha),
        "scaledtanh": (lambda a: alpha * np.tanh(beta * a), lambda a: alpha * beta * (1 - np.tanh(beta * a) ** 2)),
        "hardsigmoid": (
            lambda a: np.clip(alpha * a + beta, 0, 1),
            lambda a: np.where((0 < alpha * a + beta) & (alpha * a + beta < 1), alpha, 0),
        ),
        "elu": (
            lambda a: np.where(a < 0, alpha * np.expm1(np.minimum(a, 0)), a),
            lambda a: np.where(a > 0, 1, alpha * np.exp(np.minimum(a, 0))),
        ),
        "softsign": (lambda a: a / (1 + np.abs(a)), lambda a: 1 / (1 + np.abs(a)) ** 2),
        "softplus": (_softplus, _sigmoid),
    }
    return pairs[name]


def _clip(limit: float | None, a: Array) -> Array:
    return a if limit is None else np.clip(a, -limit, limit)


def _clip_backward(limit: float | None, a: Array, da: Array) -> Array:
    """No gradient passes where a was clipped, nor on the border."""
    return da if limit is None else np.where(np.abs(a) < limit, da, 0)


class _Activation:
    """y = f(clip(a))"""

    def __init__(self, chosen: _options.Chosen, clip: float | None):
        self._f, self._slope = _function_of(chosen)
        self._limit = clip

    def __call__(self, a: Array) -> Array:
        return np.asarray(self._f(_clip(self._limit, a)), a.dtype)

    def backward(self, a: Array, dy: Array) -> Array:
        """The gradient by a from that by y."""
        slope = np.asarray(self._slope(_clip(self._limit, a)), a.dtype)
        return _clip_backward(self._limit, a, dy * slope)


def _gates_from(options: _options.Options, a: Array) -> Array:
    """The values of the gates (..., G, H) of an LSTM or a GRU from their pre-activations a."""
    G = a.shape[-2]
    gate, candidate = (_Activation(chosen, options.clip) for chosen in options.activations[:2])
    gates = [(candidate if k == 2 else gate)(a[..., k, :]) for k in range(G)]  # i f g o, or r z n
    if options.coupled == "f=1-i":
        gates[1] = 1 - gates[0]
    if options.coupled == "i=1-f":
        gates[0] = 1 - gates[1]
    return np.stack(gates, axis=-2)


# h_t = (1 - leak) * h + leak * act(clip(W_ih x_t + b_ih + W_hh h + b_hh))


def _rnn_any(options: _options.Options) -> _Cell:
    act = _Activation(options.activations[0], options.clip)
    leak = options.leak

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        (h,) = state
        W_ih, W_hh, b_ih, b_hh = weights
        a = _linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh)
        h_t = act(a) if leak == 1 else (1 - leak) * h + leak * act(a)
        return (h_t,), (a,)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        (dh_t,), (h,), (a,) = dstate_t, state, saved
        W_ih, W_hh, _, _ = weights
        da = act.backward(a, leak * dh_t)
        dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
        dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
        return dx_t, (dh if leak == 1 else dh + (1 - leak) * dh_t,), (dW_ih, dW_hh, db_ih, db_hh)

    return _Cell(f"rnn_any {options}", FORMS["rnn"], step, step_backward, options)


def _two_gates(gate: _Activation, coupled: str | None, a_i: Array, a_f: Array) -> Arrays:
    """i and f, one of which may be made from the other."""
    i, f = gate(a_i), gate(a_f)
    if coupled == "f=1-i":
        f = 1 - i
    if coupled == "i=1-f":
        i = 1 - f
    return i, f


def _uncoupled(coupled: str | None, di: Array, df: Array) -> Arrays:
    """The gradients at the gates that there are; the one that is made from the other has none."""
    if coupled == "f=1-i":
        return di - df, np.zeros_like(df)
    if coupled == "i=1-f":
        return np.zeros_like(di), df - di
    return di, df


# i = gate(clip(a_i + p_i * c))   f = gate(clip(a_f + p_f * c))   g = candidate(clip(a_g))
# coupled="f=1-i": f = 1 - i;  coupled="i=1-f": i = 1 - f         (the weights of the gate that is no more are not used)
# c_t = cell_clip(f * c + i * g)
# o = gate(clip(a_o + p_o * c_t))                                 the peephole of o looks at the new c
# h_t = o * output(c_t)


def _lstm_any(options: _options.Options) -> _Cell:
    gate, candidate = (_Activation(chosen, options.clip) for chosen in options.activations[:2])
    output = _Activation(options.activations[2], None)
    coupled, limit = options.coupled, options.cell_clip

    def peep(p: Array, c: Array) -> Array | float:
        return p * c if p.size else 0.0

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        h, c = state
        W_ih, W_hh, b_ih, b_hh, p_i, p_f, p_o = _with_peepholes(weights)
        a_i, a_f, a_g, a_o = _gates(_linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh), 4)
        a_i = a_i + peep(p_i, c)
        a_f = a_f + peep(p_f, c)
        i, f = _two_gates(gate, coupled, a_i, a_f)
        c_t = _clip(limit, f * c + i * candidate(a_g))
        a_o = a_o + peep(p_o, c_t)
        h_t = gate(a_o) * output(c_t)
        return (h_t, c_t), (a_i, a_f, a_g, a_o)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        (dh_t, dc_t), (h, c), (a_i, a_f, a_g, a_o) = dstate_t, state, saved
        W_ih, W_hh, _, _, p_i, p_f, p_o = _with_peepholes(weights)
        i, f = _two_gates(gate, coupled, a_i, a_f)
        g, o = candidate(a_g), gate(a_o)
        c_whole = f * c + i * g
        c_t = _clip(limit, c_whole)
        da_o = gate.backward(a_o, dh_t * output(c_t))
        dc_t = dc_t + output.backward(c_t, dh_t * o) + peep(p_o, da_o)
        dc_t = _clip_backward(limit, c_whole, dc_t)
        di = dc_t * g
        df = dc_t * c
        di, df = _uncoupled(coupled, di, df)
        da_i = gate.backward(a_i, di)
        da_f = gate.backward(a_f, df)
        da_g = candidate.backward(a_g, dc_t * i)
        dc = dc_t * f + peep(p_i, da_i) + peep(p_f, da_f)
        da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
        dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
        dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
        dp = [(da_k * seen).sum(axis=0) for da_k, seen in ((da_i, c), (da_f, c), (da_o, c_t))]
        return dx_t, (dh, dc), (dW_ih, dW_hh, db_ih, db_hh, *dp[: len(weights) - 4])

    return _Cell(f"lstm_any {options}", FORMS["lstm"], step, step_backward, options)


# A projection of what comes out, which is also what goes into the next step (LSTM: Sak et al. 2014; an RNN with it is
# that of Jordan 1986):    r_t = act(clip(W_hr h_t + b_hr))


def _projected(inner: _Cell, act: _Activation) -> _Cell:
    """The cell whose h is projected; W_hr and b_hr are the last of its weights."""

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        *inner_weights, W_hr, b_hr = weights
        (h_t, *rest), saved = inner.step(x_t, state, tuple(inner_weights))
        a_r = _linear(h_t, W_hr, b_hr)
        return (act(a_r), *rest), (*saved, h_t, a_r)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        (dr_t, *drest), (*inner_saved, h_t, a_r) = dstate_t, saved
        *inner_weights, W_hr, _ = weights
        dh_t, dW_hr, db_hr = _linear_backward(act.backward(a_r, dr_t), h_t, W_hr)
        dx_t, dstate, dweights = inner.step_backward(
            (dh_t, *drest), x_t, state, tuple(inner_weights), tuple(inner_saved)
        )
        return dx_t, dstate, (*dweights, dW_hr, db_hr)

    return inner._replace(name=f"{inner.name} projected", step=step, step_backward=step_backward)


def _with_peepholes(weights: Arrays) -> Arrays:
    """Without peepholes three arrays of no size stand for them."""
    return weights if len(weights) == 7 else (*weights, *[np.zeros(0, weights[0].dtype)] * 3)


# r = gate(clip(a_r))    z = gate(clip(a_z))    n = candidate(clip(a_n)), with r in a_n as above
# h_t = (1 - z) * n + z * h


def _gru_after_any(options: _options.Options) -> _Cell:
    gate, candidate = (_Activation(chosen, options.clip) for chosen in options.activations)

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        (h,) = state
        W_ih, W_hh, b_ih, b_hh = weights
        ax_r, ax_z, ax_n = _gates(_linear(x_t, W_ih, b_ih), 3)
        ah_r, ah_z, ah_n = _gates(_linear(h, W_hh, b_hh), 3)
        a_r = ax_r + ah_r
        a_z = ax_z + ah_z
        a_n = ax_n + gate(a_r) * ah_n
        z, n = gate(a_z), candidate(a_n)
        return ((1 - z) * n + z * h,), (a_r, a_z, a_n, ah_n)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        (dh_t,), (h,), (a_r, a_z, a_n, ah_n) = dstate_t, state, saved
        W_ih, W_hh, _, _ = weights
        r, z, n = gate(a_r), gate(a_z), candidate(a_n)
        da_n = candidate.backward(a_n, dh_t * (1 - z))
        da_r = gate.backward(a_r, da_n * ah_n)
        da_z = gate.backward(a_z, dh_t * (h - n))
        dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da_r, da_z, da_n], axis=1), x_t, W_ih)
        dh, dW_hh, db_hh = _linear_backward(np.concatenate([da_r, da_z, da_n * r], axis=1), h, W_hh)
        return dx_t, (dh + dh_t * z,), (dW_ih, dW_hh, db_ih, db_hh)

    return _Cell(f"gru_reset_after_any {options}", FORMS["gru_reset_after"], step, step_backward, options)


def _gru_before_any(options: _options.Options) -> _Cell:
    gate, candidate = (_Activation(chosen, options.clip) for chosen in options.activations)

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        (h,) = state
        W_ih, W_hh, b_ih, b_hh = weights
        (W_hrz, W_hn), (b_hrz, b_hn) = _split_rz_n(W_hh), _split_rz_n(b_hh)
        ax_r, ax_z, ax_n = _gates(_linear(x_t, W_ih, b_ih), 3)
        ah_r, ah_z = _gates(_linear(h, W_hrz, b_hrz), 2)
        a_r = ax_r + ah_r
        a_z = ax_z + ah_z
        a_n = ax_n + _linear(gate(a_r) * h, W_hn, b_hn)
        z, n = gate(a_z), candidate(a_n)
        return ((1 - z) * n + z * h,), (a_r, a_z, a_n)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Arrays]:
        (dh_t,), (h,), (a_r, a_z, a_n) = dstate_t, state, saved
        W_ih, W_hh, _, _ = weights
        W_hrz, W_hn = _split_rz_n(W_hh)
        r, z, n = gate(a_r), gate(a_z), candidate(a_n)
        da_n = candidate.backward(a_n, dh_t * (1 - z))
        da_z = gate.backward(a_z, dh_t * (h - n))
        drh, dW_hn, db_hn = _linear_backward(da_n, r * h, W_hn)
        da_r = gate.backward(a_r, drh * h)
        dh, dW_hrz, db_hrz = _linear_backward(np.concatenate([da_r, da_z], axis=1), h, W_hrz)
        dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da_r, da_z, da_n], axis=1), x_t, W_ih)
        dW_hh, db_hh = np.concatenate([dW_hrz, dW_hn]), np.concatenate([db_hrz, db_hn])
        return dx_t, (dh + drh * r + dh_t * z,), (dW_ih, dW_hh, db_ih, db_hh)

    return _Cell(f"gru_reset_before_any {options}", FORMS["gru_reset_before"], step, step_backward, options)


# ------------------------------------------------------------------------------------------------------- further cells

# IndRNN (Li et al. 2018): h_t = act(clip(W_ih x_t + b_ih + u * h))


def _indrnn(options: _options.Options) -> _Cell:
    act = _Activation(options.activations[0], options.clip)

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        (h,) = state
        W_ih, _, b_ih, _, u = weights
        a = _linear(x_t, W_ih, b_ih) + u * h
        return (act(a),), (a,)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Any]:
        (dh_t,), (h,), (a,) = dstate_t, state, saved
        W_ih, _, _, _, u = weights
        da = act.backward(a, dh_t)
        dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
        return dx_t, (da * u,), (dW_ih, None, db_ih, None, (da * h).sum(axis=0))

    return _Cell(f"indrnn {options}", FORMS["indrnn"], step, step_backward)


# SRU (Lei et al. 2018), the gates seeing the old c:
#
#     u, f, r, s = W x_t in four blocks
#     f = sigmoid(f + v_f * c + b_f)     r = sigmoid(r + v_r * c + b_r)
#     c_t = f * c + (1 - f) * u          h_t = r * act(c_t) + (1 - r) * s


def _sru(options: _options.Options) -> _Cell:
    act = _Activation(options.activations[0], None)

    def step(x_t: Array, state: Arrays, weights: Any) -> tuple[Arrays, Arrays]:
        (c,) = state
        W_ih, _, _, _, v_f, v_r, b_f, b_r = weights
        u, a_f, a_r, s = _gates(x_t @ W_ih.T, 4)
        f = _sigmoid(a_f + v_f * c + b_f)
        r = _sigmoid(a_r + v_r * c + b_r)
        c_t = f * c + (1 - f) * u
        return (r * act(c_t) + (1 - r) * s, c_t), (u, f, r, s, c_t)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Any, saved: Arrays
    ) -> tuple[Array, Arrays, Any]:
        (dh_t, dc_t), (c,), (u, f, r, s, c_t) = dstate_t, state, saved
        W_ih, _, _, _, v_f, v_r, _, _ = weights
        dr = dh_t * (act(c_t) - s)
        dc_t = dc_t + act.backward(c_t, dh_t * r)
        da_f = dc_t * (c - u) * f * (1 - f)
        da_r = dr * r * (1 - r)
        da = np.concatenate([dc_t * (1 - f), da_f, da_r, dh_t * (1 - r)], axis=1)
        dx_t, dW_ih, _ = _linear_backward(da, x_t, W_ih)
        dc = dc_t * f + da_f * v_f + da_r * v_r
        of_units = ((da_f * c).sum(axis=0), (da_r * c).sum(axis=0), da_f.sum(axis=0), da_r.sum(axis=0))
        return dx_t, (dc,), (dW_ih, None, None, None, *of_units)

    return _Cell(f"sru {options}", FORMS["sru"], step, step_backward)


# AUGRU (Zhou et al. 2019): a GRU, z~ = (1 - attention) * z for z


def _augru_after_step(x_t: Array, state: Arrays, weights: Arrays, attention: Array) -> tuple[Arrays, Arrays]:
    (h,) = state
    _, (r, z, n, ah_n) = _gru_after_step(x_t, state, weights)
    z_scaled = (1 - attention) * z
    return ((1 - z_scaled) * n + z_scaled * h,), (r, z, n, ah_n)


def _augru_after_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays, attention: Array
) -> tuple[Any, ...]:
    (dh_t,), (h,), (r, z, n, ah_n) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    z_scaled = (1 - attention) * z
    dz_scaled = dh_t * (h - n)
    da_n = dh_t * (1 - z_scaled) * (1 - n**2)
    da_r = da_n * ah_n * r * (1 - r)
    da_z = dz_scaled * (1 - attention) * z * (1 - z)
    dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da_r, da_z, da_n], axis=1), x_t, W_ih)
    dh, dW_hh, db_hh = _linear_backward(np.concatenate([da_r, da_z, da_n * r], axis=1), h, W_hh)
    dattention = -(dz_scaled * z).sum(axis=1)
    return dx_t, (dh + dh_t * z_scaled,), (dW_ih, dW_hh, db_ih, db_hh), dattention


def _augru_after(options: _options.Options) -> _Cell:
    return _Cell("augru_reset_after", FORMS["augru_reset_after"], _augru_after_step, _augru_after_step_backward)


# minGRU and minLSTM (Feng et al. 2024): no gate sees h.
#
#     minGRU     a, z = W_ih x_t + b_ih        h_t = (1 - sigmoid(z)) * h + sigmoid(z) * g(a)
#     minLSTM    a, f, i = W_ih x_t + b_ih     h_t = f' * h + i' * g(a)
#                f' = sigmoid(f) / (sigmoid(f) + sigmoid(i))     i' = 1 - f'
#     g(a) = a + 0.5 for a >= 0, else sigmoid(a)


def _min_g(a: Array) -> Array:
    return np.where(a >= 0, a + a.dtype.type(0.5), _sigmoid(a))


def _min_g_slope(a: Array) -> Array:
    return np.where(a < 0, _sigmoid(a) * (1 - _sigmoid(a)), a.dtype.type(1))


def _min_gru_step(x_t: Array, state: Arrays, weights: Any) -> tuple[Arrays, Arrays]:
    (h,) = state
    W_ih, _, b_ih, _ = weights
    a, a_z = _gates(_linear(x_t, W_ih, b_ih), 2)
    g, z = _min_g(a), _sigmoid(a_z)
    return ((1 - z) * h + z * g,), (g, z, a)


def _min_gru_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Any, saved: Arrays
) -> tuple[Array, Arrays, Any]:
    (dh_t,), (h,), (g, z, a) = dstate_t, state, saved
    W_ih, _, _, _ = weights
    da = dh_t * z * _min_g_slope(a)
    da_z = dh_t * (g - h) * z * (1 - z)
    dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da, da_z], axis=1), x_t, W_ih)
    return dx_t, (dh_t * (1 - z),), (dW_ih, None, db_ih, None)


def _min_gru(options: _options.Options) -> _Cell:
    return _Cell("min_gru", FORMS["min_gru"], _min_gru_step, _min_gru_step_backward)


def _min_lstm_step(x_t: Array, state: Arrays, weights: Any) -> tuple[Arrays, Arrays]:
    (h,) = state
    W_ih, _, b_ih, _ = weights
    a, a_f, a_i = _gates(_linear(x_t, W_ih, b_ih), 3)
    log_ratio = _softplus(-a_i) - _softplus(-a_f)  # of sigmoid(f) / sigmoid(i), which may both be too small to divide
    g, f, i = _min_g(a), _sigmoid(log_ratio), _sigmoid(-log_ratio)
    return (f * h + i * g,), (g, f, i, a, a_f, a_i)


def _min_lstm_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Any, saved: Arrays
) -> tuple[Array, Arrays, Any]:
    (dh_t,), (h,), (g, f, i, a, a_f, a_i) = dstate_t, state, saved
    W_ih, _, _, _ = weights
    da = dh_t * i * _min_g_slope(a)
    dlog_ratio = dh_t * (h - g) * f * i
    da_f = dlog_ratio * _sigmoid(-a_f)
    da_i = -dlog_ratio * _sigmoid(-a_i)
    dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da, da_f, da_i], axis=1), x_t, W_ih)
    return dx_t, (dh_t * f,), (dW_ih, None, db_ih, None)


def _min_lstm(options: _options.Options) -> _Cell:
    return _Cell("min_lstm", FORMS["min_lstm"], _min_lstm_step, _min_lstm_step_backward)


# QRNN (Bradbury et al. 2017), fo-pooling with a window of 1; zoneout is in f, so that h sees the c that stays:
#
#     z = tanh(z)    f = sigmoid(f) * (1 - stay)    o = sigmoid(o)     of W_ih x_t + b_ih
#     c_t = f * z + (1 - f) * c                     h_t = o * c_t


def _qrnn_step(x_t: Array, state: Arrays, weights: Any, stay: Any) -> tuple[Arrays, Arrays]:
    (c,) = state
    W_ih, _, b_ih, _ = weights
    a_z, a_f, a_o = _gates(_linear(x_t, W_ih, b_ih), 3)
    z, s, o = np.tanh(a_z), _sigmoid(a_f), _sigmoid(a_o)
    f = s * (1 - np.asarray(stay, s.dtype))
    c_t = f * z + (1 - f) * c
    return (o * c_t, c_t), (z, s, o, f, c_t)


def _qrnn_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Any, saved: Arrays, stay: Any
) -> tuple[Array, Arrays, Any]:
    (dh_t, dc_t), (c,), (z, s, o, f, c_t) = dstate_t, state, saved
    W_ih, _, _, _ = weights
    dc_t = dc_t + dh_t * o
    da_z = dc_t * f * (1 - z**2)
    da_f = dc_t * (z - c) * f * (1 - s)
    da_o = dh_t * c_t * o * (1 - o)
    dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da_z, da_f, da_o], axis=1), x_t, W_ih)
    return dx_t, (dc_t * (1 - f),), (dW_ih, None, db_ih, None)


def _qrnn(options: _options.Options) -> _Cell:
    return _Cell("qrnn", FORMS["qrnn"], _qrnn_step, _qrnn_step_backward)


# MGU (Zhou et al. 2016) as flax has it:
#
#     f = sigmoid(ax_f + ah_f)         ax = W_ih x_t + b_ih      ah = W_hh h + b_hh
#     n = tanh(ax_n + f * ah_n)        or, without the reset, tanh(ax_n + W_hn h), where b_hn is not used
#     h_t = (1 - f) * n + f * h


def _mgu_step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    (h,) = state
    W_ih, W_hh, b_ih, b_hh = weights
    ax_f, ax_n = _gates(_linear(x_t, W_ih, b_ih), 2)
    ah_f, ah_n = _gates(_linear(h, W_hh, b_hh), 2)
    f = _sigmoid(ax_f + ah_f)
    n = np.tanh(ax_n + f * ah_n)
    return ((1 - f) * n + f * h,), (f, n, ah_n)


def _mgu_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
) -> tuple[Array, Arrays, Arrays]:
    (dh_t,), (h,), (f, n, ah_n) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    da_n = dh_t * (1 - f) * (1 - n**2)
    df = dh_t * (h - n) + da_n * ah_n
    da_f = df * f * (1 - f)
    dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da_f, da_n], axis=1), x_t, W_ih)
    dh, dW_hh, db_hh = _linear_backward(np.concatenate([da_f, da_n * f], axis=1), h, W_hh)
    return dx_t, (dh + dh_t * f,), (dW_ih, dW_hh, db_ih, db_hh)


def _mgu(options: _options.Options) -> _Cell:
    return _Cell("mgu", FORMS["mgu"], _mgu_step, _mgu_step_backward)


def _without_b_hn(b_hh: Array) -> Array:
    return np.concatenate([b_hh[: len(b_hh) // 2], np.zeros_like(b_hh[len(b_hh) // 2 :])])


def _mgu_no_reset_step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    (h,) = state
    W_ih, W_hh, b_ih, b_hh = weights
    a_f, a_n = _gates(_linear(x_t, W_ih, b_ih) + _linear(h, W_hh, _without_b_hn(b_hh)), 2)
    f, n = _sigmoid(a_f), np.tanh(a_n)
    return ((1 - f) * n + f * h,), (f, n)


def _mgu_no_reset_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
) -> tuple[Array, Arrays, Arrays]:
    (dh_t,), (h,), (f, n) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    da_f = dh_t * (h - n) * f * (1 - f)
    da_n = dh_t * (1 - f) * (1 - n**2)
    da = np.concatenate([da_f, da_n], axis=1)
    dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
    dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
    return dx_t, (dh + dh_t * f,), (dW_ih, dW_hh, db_ih, _without_b_hn(db_hh))


def _mgu_no_reset(options: _options.Options) -> _Cell:
    return _Cell("mgu_no_reset", FORMS["mgu_no_reset"], _mgu_no_reset_step, _mgu_no_reset_step_backward)


# CfC (Hasani et al. 2022) without a backbone; dt is the number that comes with the row. With a = W_ih x_t + b_ih +
# W_hh h + b_hh, in blocks p, q, a, b (or one):
#
#     default    h_t = (1 - t) * tanh(p) + t * tanh(q)          t = sigmoid(a * dt + b)
#     no_gate    h_t = tanh(p) + t * tanh(q)
#     pure       h_t = A - A * exp(-dt * (|tau| + |a|)) * a     |0| has slope 0


def _cfc(family: str, is_gated: bool) -> _Cell:
    def step(x_t: Array, state: Arrays, weights: Arrays, dt: Array) -> tuple[Arrays, Arrays]:
        (h,) = state
        W_ih, W_hh, b_ih, b_hh = weights
        a_p, a_q, a_a, a_b = _gates(_linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh), 4)
        p, q, t = np.tanh(a_p), np.tanh(a_q), _sigmoid(a_a * dt + a_b)
        return ((1 - t) * p + t * q if is_gated else p + t * q,), (p, q, a_a, t)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays, dt: Array
    ) -> tuple[Any, ...]:
        (dh_t,), (h,), (p, q, a_a, t) = dstate_t, state, saved
        W_ih, W_hh, _, _ = weights
        dp = dh_t * (1 - t) if is_gated else dh_t
        dq = dh_t * t
        da_b = dh_t * (q - p if is_gated else q) * t * (1 - t)
        da = np.concatenate([dp * (1 - p**2), dq * (1 - q**2), da_b * dt, da_b], axis=1)
        dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
        dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
        return dx_t, (dh,), (dW_ih, dW_hh, db_ih, db_hh), (da_b * a_a).sum(axis=1)

    return _Cell(family, FORMS[family], step, step_backward)


def _cfc_default(options: _options.Options) -> _Cell:
    return _cfc("cfc_default", True)


def _cfc_no_gate(options: _options.Options) -> _Cell:
    return _cfc("cfc_no_gate", False)


def _cfc_pure_step(x_t: Array, state: Arrays, weights: Any, dt: Array) -> tuple[Arrays, Arrays]:
    (h,) = state
    W_ih, W_hh, b_ih, b_hh, tau, most = weights
    a = _linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh)
    e = np.exp(-dt * (np.abs(tau) + np.abs(a)))
    return (most - most * e * a,), (a, e)


def _cfc_pure_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Any, saved: Arrays, dt: Array
) -> tuple[Any, ...]:
    (dh_t,), (h,), (a, e) = dstate_t, state, saved
    W_ih, W_hh, _, _, tau, most = weights
    drate = dh_t * most * a * e  # the gradient of dt * (|tau| + |a|)
    da = -dh_t * most * e + drate * dt * np.sign(a)
    dtau, dmost = drate * dt * np.sign(tau), dh_t * (1 - e * a)
    dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
    dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
    ddt = (drate * (np.abs(tau) + np.abs(a))).sum(axis=1)
    return dx_t, (dh,), (dW_ih, dW_hh, db_ih, db_hh, dtau.sum(axis=0), dmost.sum(axis=0)), ddt


def _cfc_pure(options: _options.Options) -> _Cell:
    return _Cell("cfc_pure", FORMS["cfc_pure"], _cfc_pure_step, _cfc_pure_step_backward)


def _augru_before_step(x_t: Array, state: Arrays, weights: Arrays, attention: Array) -> tuple[Arrays, Arrays]:
    (h,) = state
    _, (r, z, n) = _gru_before_step(x_t, state, weights)
    z_scaled = (1 - attention) * z
    return ((1 - z_scaled) * n + z_scaled * h,), (r, z, n)


def _augru_before_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays, attention: Array
) -> tuple[Any, ...]:
    (dh_t,), (h,), (r, z, n) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    W_hrz, W_hn = _split_rz_n(W_hh)
    z_scaled = (1 - attention) * z
    dz_scaled = dh_t * (h - n)
    da_n = dh_t * (1 - z_scaled) * (1 - n**2)
    drh, dW_hn, db_hn = _linear_backward(da_n, r * h, W_hn)
    da_r = drh * h * r * (1 - r)
    da_z = dz_scaled * (1 - attention) * z * (1 - z)
    dh, dW_hrz, db_hrz = _linear_backward(np.concatenate([da_r, da_z], axis=1), h, W_hrz)
    dx_t, dW_ih, db_ih = _linear_backward(np.concatenate([da_r, da_z, da_n], axis=1), x_t, W_ih)
    dweights = (dW_ih, np.concatenate([dW_hrz, dW_hn]), db_ih, np.concatenate([db_hrz, db_hn]))
    return dx_t, (dh + drh * r + dh_t * z_scaled,), dweights, -(dz_scaled * z).sum(axis=1)


def _augru_before(options: _options.Options) -> _Cell:
    return _Cell("augru_reset_before", FORMS["augru_reset_before"], _augru_before_step, _augru_before_step_backward)


# sLSTM of xLSTM (Beck et al. 2024), stabilised:
#
#     l = log(sigmoid(a_f)) + m                                   a = W_ih x_t + b_ih + W_hh h + b_hh
#     m_t = max(a_i, l), or a_i in a row that begins: one whose n are all 0 (the source looks at the whole batch)
#     i = min(exp(a_i - m_t), 1)    f = min(exp(l - m_t), 1)    z = tanh(a_z)    o = sigmoid(a_o)
#     c_t = f * c + i * z    n_t = f * n + i    h_t = o * c_t / n_t
#
# Where a_i = l, the gradient by m_t is one by a_i; where min cuts f off, f has none.


def _slstm_step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
    h, c, n, m = state
    W_ih, W_hh, b_ih, b_hh = weights
    a_i, a_f, a_z, a_o = _gates(_linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh), 4)
    l = -_softplus(-a_f) + m
    begins = (n == 0).all(axis=1, keepdims=True)
    m_t = np.where(begins, a_i, np.maximum(a_i, l))
    i = np.exp(np.minimum(a_i - m_t, 0))
    f = np.exp(np.minimum(l - m_t, 0))
    z = np.tanh(a_z)
    o = _sigmoid(a_o)
    c_t = f * c + i * z
    n_t = f * n + i
    return (o * c_t / n_t, c_t, n_t, m_t), (i, f, z, o, a_f, c_t, n_t)


def _slstm_step_backward(
    dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
) -> tuple[Array, Arrays, Arrays]:
    (dh_t, dc_t, dn_t, dm_t), (h, c, n, _), (i, f, z, o, a_f, c_t, n_t) = dstate_t, state, saved
    W_ih, W_hh, _, _ = weights
    do = dh_t * c_t / n_t
    dc_t = dc_t + dh_t * o / n_t
    dn_t = dn_t - dh_t * o * c_t / n_t**2
    di = dc_t * z + dn_t
    df = dc_t * c + dn_t * n
    du_i = np.where(i < 1, di * i, 0)  # by a_i - m_t
    du_f = np.where(f < 1, df * f, 0)  # by l - m_t
    dm_t = dm_t - du_i - du_f
    da_i = du_i + np.where(i < 1, 0, dm_t)
    dl = du_f + np.where(i < 1, dm_t, 0)
    da_f = dl * _sigmoid(-a_f)
    da_z = dc_t * i * (1 - z**2)
    da_o = do * o * (1 - o)
    da = np.concatenate([da_i, da_f, da_z, da_o], axis=1)
    dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
    dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
    return dx_t, (dh, dc_t * f, dn_t * f, dl), (dW_ih, dW_hh, db_ih, db_hh)


def _slstm(options: _options.Options) -> _Cell:
    return _Cell("slstm", FORMS["slstm"], _slstm_step, _slstm_step_backward)


def _jordan(options: _options.Options) -> _Cell:
    hidden, output = options.activations
    inner = _rnn_any(options._replace(activations=(hidden,)))
    return _projected(inner, _Activation(output, None))._replace(name=f"jordan {options}", form=FORMS["jordan"])


# Layer normalisation (Ba et al. 2016): N(a) = (a - mean a) / (sqrt(variance a + eps) + beside), over the elements of
# each row; DyNet has its eps beside the deviation, the others within.


class _Norm:
    """N(a) as `value`, and its way back."""

    def __init__(self, a: Array, eps: float, beside: float = 0.0):
        away = a - a.mean(axis=1, keepdims=True)
        away = away - away.mean(axis=1, keepdims=True)  # what rounding left: DyNet divides equal elements' by 1e-8
        deviation = np.sqrt((away**2).mean(axis=1, keepdims=True) + eps)
        self._scale, self._stretch = 1 / (deviation + beside), (deviation + beside) / deviation
        self.value = away * self._scale

    def backward(self, d: Array) -> Array:
        """The gradient at a from that at N(a)."""
        along = (d * self.value).mean(axis=1, keepdims=True)
        return np.asarray(self._scale * (d - d.mean(axis=1, keepdims=True) - self.value * along * self._stretch))


# LSTM with a norm of each gate by itself (TFLite), a being the pre-activations of lstm_any without biases:
#
#     a_k = gamma_k * N(W_ik x_t + W_hk h + p_k * c) + b_k      for k = i, f, g, o; there is no p_g, and p_o sees c_t


def _lstm_norm_gate(options: _options.Options) -> _Cell:
    gate, candidate = (_Activation(chosen, options.clip) for chosen in options.activations[:2])
    output = _Activation(options.activations[2], None)
    coupled, limit, eps = options.coupled, options.cell_clip, 1e-8

    def peepholes(weights: Arrays) -> Any:
        return weights[5:8] if len(weights) > 5 else (0, 0, 0)

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        h, c = state
        W_ih, W_hh, b, _, gamma = weights[:5]
        p_i, p_f, p_o = peepholes(weights)
        b_i, b_f, b_g, b_o = b.reshape(4, -1)
        gamma_i, gamma_f, gamma_g, gamma_o = gamma.reshape(4, -1)
        s_i, s_f, s_g, s_o = _gates(_linear(x_t, W_ih, 0) + _linear(h, W_hh, 0), 4)
        s_i = s_i + p_i * c
        s_f = s_f + p_f * c
        a_i = gamma_i * _Norm(s_i, eps).value + b_i
        a_f = gamma_f * _Norm(s_f, eps).value + b_f
        a_g = gamma_g * _Norm(s_g, eps).value + b_g
        i, f = _two_gates(gate, coupled, a_i, a_f)
        c_t = _clip(limit, f * c + i * candidate(a_g))
        s_o = s_o + p_o * c_t
        a_o = gamma_o * _Norm(s_o, eps).value + b_o
        return (gate(a_o) * output(c_t), c_t), (a_i, a_f, a_g, a_o, s_i, s_f, s_g, s_o)

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Arrays
    ) -> tuple[Array, Arrays, Any]:
        (dh_t, dc_t), (h, c), (a_i, a_f, a_g, a_o, *s) = dstate_t, state, saved
        W_ih, W_hh, _, _, gamma = weights[:5]
        p_i, p_f, p_o = peepholes(weights)
        gamma_i, gamma_f, gamma_g, gamma_o = gamma.reshape(4, -1)
        n_i, n_f, n_g, n_o = (_Norm(s_k, eps) for s_k in s)
        i, f = _two_gates(gate, coupled, a_i, a_f)
        g, o = candidate(a_g), gate(a_o)
        c_whole = f * c + i * g
        c_t = _clip(limit, c_whole)
        da_o = gate.backward(a_o, dh_t * output(c_t))
        ds_o = n_o.backward(gamma_o * da_o)
        dc_t = _clip_backward(limit, c_whole, dc_t + output.backward(c_t, dh_t * o) + p_o * ds_o)
        di = dc_t * g
        df = dc_t * c
        di, df = _uncoupled(coupled, di, df)
        da_i = gate.backward(a_i, di)
        da_f = gate.backward(a_f, df)
        da_g = candidate.backward(a_g, dc_t * i)
        ds_i = n_i.backward(gamma_i * da_i)
        ds_f = n_f.backward(gamma_f * da_f)
        ds_g = n_g.backward(gamma_g * da_g)
        da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
        ds = np.concatenate([ds_i, ds_f, ds_g, ds_o], axis=1)
        dx_t, dW_ih, _ = _linear_backward(ds, x_t, W_ih)
        dh, dW_hh, _ = _linear_backward(ds, h, W_hh)
        dgamma = (da * np.concatenate([n.value for n in (n_i, n_f, n_g, n_o)], axis=1)).sum(axis=0)
        dp = [(ds_k * seen).sum(axis=0) for ds_k, seen in ((ds_i, c), (ds_f, c), (ds_o, c_t))]
        dc = dc_t * f + p_i * ds_i + p_f * ds_f
        return dx_t, (dh, dc), (dW_ih, dW_hh, da.sum(axis=0), None, dgamma, *dp[: len(weights) - 5])

    return _Cell(f"lstm_norm_gate {options}", FORMS["lstm_norm_gate"], step, step_backward, options)


# LSTM with a norm of each product over all gates together, and one of c_t on its way out (haste). DyNet's norms of the
# products have shifts beta besides:
#
#     a   = b + gamma_x * N(W_ih x_t) [+ beta_x] + gamma_h * N(W_hh h) [+ beta_h]       in blocks a_i, a_f, a_g, a_o
#     c_t = cell_clip(f * c + i * g)
#     h_t = o * output(gamma_c * N(c_t) + beta_c)


def _lstm_norm_joint(family: str, options: _options.Options) -> _Cell:
    gate, candidate = (_Activation(chosen, options.clip) for chosen in options.activations[:2])
    output = _Activation(options.activations[2], None)
    limit = options.cell_clip
    eps = (1e-30, 1e-8) if FORMS[family].beside else (1e-5, 0.0)  # the first of DyNet only against 0 / 0

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        h, c = state
        W_ih, W_hh, b, _, gamma_x, gamma_h, gamma_c, beta_c, *shifts = weights
        n_x, n_h = _Norm(_linear(x_t, W_ih, 0), *eps), _Norm(_linear(h, W_hh, 0), *eps)
        a = gamma_x * n_x.value + gamma_h * n_h.value + b
        for beta in shifts:
            a = a + beta
        a_i, a_f, a_g, a_o = _gates(a, 4)
        c_whole = gate(a_f) * c + gate(a_i) * candidate(a_g)
        c_t = _clip(limit, c_whole)
        n_c = _Norm(c_t, *eps)
        h_t = gate(a_o) * output(gamma_c * n_c.value + beta_c)
        return (h_t, c_t), (a_i, a_f, a_g, a_o, c_whole, n_x, n_h, n_c)  # type: ignore[return-value]

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Any
    ) -> tuple[Array, Arrays, Any]:
        (dh_t, dc_t), (h, c), (a_i, a_f, a_g, a_o, c_whole, n_x, n_h, n_c) = dstate_t, state, saved
        W_ih, W_hh, _, _, gamma_x, gamma_h, gamma_c, beta_c, *shifts = weights
        m = gamma_c * n_c.value + beta_c
        dm = output.backward(m, dh_t * gate(a_o))
        dc_t = _clip_backward(limit, c_whole, dc_t + n_c.backward(gamma_c * dm))
        da_i = gate.backward(a_i, dc_t * candidate(a_g))
        da_f = gate.backward(a_f, dc_t * c)
        da_g = candidate.backward(a_g, dc_t * gate(a_i))
        da_o = gate.backward(a_o, dh_t * output(m))
        da = np.concatenate([da_i, da_f, da_g, da_o], axis=1)
        dx_t, dW_ih, _ = _linear_backward(n_x.backward(gamma_x * da), x_t, W_ih)
        dh, dW_hh, _ = _linear_backward(n_h.backward(gamma_h * da), h, W_hh)
        db = da.sum(axis=0)
        dgammas = ((d * n.value).sum(axis=0) for d, n in ((da, n_x), (da, n_h), (dm, n_c)))
        dweights = (dW_ih, dW_hh, db, None, *dgammas, dm.sum(axis=0), *(db for _ in shifts))
        return dx_t, (dh, dc_t * gate(a_f)), dweights

    return _Cell(f"{family} {options}", FORMS[family], step, step_backward, options)


# GRU with a norm of each product over all gates together (haste), the reset gate behind the norm:
#
#     x_k = gamma_x * N(W_ih x_t) + b     h_k = gamma_h * N(W_hh h) + b_h      each in blocks r, z, n
#     r = gate(clip(x_r + h_r))    z = gate(clip(x_z + h_z))    n = candidate(clip(x_n + r * h_n))
#     h_t = (1 - z) * n + z * h


def _gru_norm(options: _options.Options) -> _Cell:
    gate, candidate = (_Activation(chosen, options.clip) for chosen in options.activations)
    eps = 1e-5

    def step(x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Arrays]:
        (h,) = state
        W_ih, W_hh, b, b_h, gamma_x, gamma_h = weights
        n_x, n_h = _Norm(_linear(x_t, W_ih, 0), eps), _Norm(_linear(h, W_hh, 0), eps)
        x_r, x_z, x_n = _gates(gamma_x * n_x.value + b, 3)
        h_r, h_z, h_n = _gates(gamma_h * n_h.value + b_h, 3)
        a_r = x_r + h_r
        a_z = x_z + h_z
        a_n = x_n + gate(a_r) * h_n
        z, n = gate(a_z), candidate(a_n)
        return ((1 - z) * n + z * h,), (a_r, a_z, a_n, h_n, n_x, n_h)  # type: ignore[return-value]

    def step_backward(
        dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Any
    ) -> tuple[Array, Arrays, Arrays]:
        (dh_t,), (h,), (a_r, a_z, a_n, h_n, n_x, n_h) = dstate_t, state, saved
        W_ih, W_hh, _, _, gamma_x, gamma_h = weights
        r, z, n = gate(a_r), gate(a_z), candidate(a_n)
        da_n = candidate.backward(a_n, dh_t * (1 - z))
        da_r = gate.backward(a_r, da_n * h_n)
        da_z = gate.backward(a_z, dh_t * (h - n))
        dx_k = np.concatenate([da_r, da_z, da_n], axis=1)
        dh_k = np.concatenate([da_r, da_z, da_n * r], axis=1)
        dx_t, dW_ih, _ = _linear_backward(n_x.backward(gamma_x * dx_k), x_t, W_ih)
        dh, dW_hh, _ = _linear_backward(n_h.backward(gamma_h * dh_k), h, W_hh)
        dgamma_x, dgamma_h = ((d * n_k.value).sum(axis=0) for d, n_k in ((dx_k, n_x), (dh_k, n_h)))
        return dx_t, (dh + dh_t * z,), (dW_ih, dW_hh, dx_k.sum(axis=0), dh_k.sum(axis=0), dgamma_x, dgamma_h)

    return _Cell(f"gru_norm {options}", FORMS["gru_norm"], step, step_backward, options)


_MORE: dict[str, Callable[[_options.Options], _Cell]] = {
    "jordan": _jordan,
    "indrnn": _indrnn,
    "sru": _sru,
    "augru_reset_after": _augru_after,
    "min_gru": _min_gru,
    "min_lstm": _min_lstm,
    "qrnn": _qrnn,
    "mgu": _mgu,
    "mgu_no_reset": _mgu_no_reset,
    "cfc_default": _cfc_default,
    "cfc_no_gate": _cfc_no_gate,
    "cfc_pure": _cfc_pure,
    "slstm": _slstm,
    "augru_reset_before": _augru_before,
    "lstm_norm_gate": _lstm_norm_gate,
    "lstm_norm_joint": partial(_lstm_norm_joint, "lstm_norm_joint"),
    "lstm_norm_joint_shift": partial(_lstm_norm_joint, "lstm_norm_joint_shift"),
    "gru_norm": _gru_norm,
}


# ------------------------------------------------------------------------------------ the time loop, forward and back


class _Moment(NamedTuple):
    """One step of one direction, as backward needs it; n of the B sequences take part."""

    t: int
    rows: Array  # (n,) which ones
    cut: Array  # (n, 1) whether the state was zeroed before the step
    x_t: Array  # (n, I)
    row: Any  # (n, 1) the numbers that come with the rows, or the share of c that stays, if the cell takes them
    state: Arrays  # (n, H) each: the state the step started from
    saved: Arrays | None  # what the cell's step saved; None: backward takes the step again to have it


class _Sizes(NamedTuple):
    T: int
    B: int
    I: int
    H: int
    R: int  # what comes out of a direction: H, or its projection
    D: int

    def of_parts(self, cell: _Cell, rows: int) -> list[tuple[int, int, int]]:
        """The shapes of the parts of a state with so many rows (D, or layers)."""
        return [(rows, self.B, self.R if letter in ("h", "y") else self.H) for letter in cell.form.letters]


class _Tape(NamedTuple):
    """What forward keeps for backward, in copies of its own. Nothing writes into it afterwards."""

    cell: _Cell
    sizes: _Sizes
    weights: tuple[tuple[Array | None, ...], ...]
    noise: Any
    has_row: bool
    moments: tuple[list[_Moment], ...]  # per direction, in the order of the computation


def _sizes(weights: Sequence[Sequence[Any]], form: _options.Form, T: int, B: int) -> _Sizes:
    if isinstance(weights, _Packed) and form.own:
        I, H = weights.sizes
        return _Sizes(T, B, I, H, H, len(weights))
    names = form.names(len(weights[0])) or ()
    H = len(weights[0][0]) // form.gates
    R = len(weights[0][names.index("weight_hr")]) if "weight_hr" in names else H
    return _Sizes(T, B, weights[0][0].shape[1], H, R, len(weights))


def _masked(weights: Arrays, noise: Any, direction: int, rows: Array) -> Any:
    """The weights of a step for these sequences, with the mask of what goes into the recurrent product."""
    if noise is None or noise[0] is None:
        return weights
    W_ih, W_hh, *others = weights
    return W_ih, _Masked(W_hh, noise[0][direction, rows]), *others


def _stays(noise: Any, i: int, t: int, rows: Array, columns: slice) -> Any:
    """Zoneout of h (i = 0) or c (1): 0 to 1, or bool (n, columns), how much of the old state stays."""
    if noise is None or i > 1:
        return 0.0
    given = noise[1 + i]
    return given[t, rows, columns] if isinstance(given, np.ndarray) else given


def _mix(stays: Any, old: Array, new: Array) -> Array:
    if isinstance(stays, np.ndarray):
        return np.where(stays, old, new)
    return new if stays == 0 else stays * old + (1 - stays) * new


def _times(T: int, direction: int) -> Iterable[int]:
    return range(T) if direction == 0 else reversed(range(T))


def _cuts(begins: Array, ends: Array, direction: int) -> Array:
    """(T, B): whether this direction's state is zeroed before it takes step t.

    begins[t] (the argument reset) cuts between t-1 and t. The second direction comes from t+1, so begins[t+1] stands
    before its step t, unless the sequence has no step t+1.
    """
    if direction == 0:
        return begins
    T, B = begins.shape
    cuts = np.zeros((T, B), bool)
    cuts[:-1] = begins[1:] & (np.arange(1, T)[:, None] < ends)
    return cuts


def _forward(
    cell: _Cell,
    x: Array,
    state: State,
    weights: Weights,
    lengths: Any,
    reset: Any,
    training: bool,
    recompute: bool,
    out: Array | None,
    return_all: Sequence[str],
    zoneout: Any = NO_ZONEOUT,
    recurrent_mask: Array | None = None,
    row: Array | None = None,
) -> tuple[Any, ...]:
    form, family = cell.form, _family(cell)
    checked = _checked_weights("weights", weights, cell)
    dtype = checked[0][0].dtype
    x = _checks.array("x", x, dtype, ("T", "B", _sizes(checked, form, 0, 0).I))
    sizes = _sizes(checked, form, *x.shape[:2])
    T, B, _, H, R, D = sizes
    given = _checked_parts("state", state, cell, dtype, sizes.of_parts(cell, D))
    lengths = _checks.lengths("lengths", lengths, T, B)
    reset = _checks.reset("reset", reset, (T, B))
    row = _options.row(form, family, row, dtype, (T, B))
    noise = _options.noise(form, family, zoneout, recurrent_mask, dtype, (T, B, D), R, H)
    training, recompute = _checks.boolean("training", training), _checks.boolean("recompute", recompute)
    return_all = _options.return_all(return_all, form)
    if out is not None:
        apart = [("x", x), *(("state", part) for part in given), ("row", row)]
        out = _checks.output("out", out, dtype, (T, B, D * R), apart)

    ends = np.full(B, T) if lengths is None else lengths
    begins = np.zeros((T, B), bool) if reset is None else reset.astype(bool)
    numbers = np.ones((T, B), dtype) if row is None else row
    parts = [
        np.zeros(shape, dtype) if part is None else part.copy()
        for part, shape in zip(given, sizes.of_parts(cell, D), strict=True)
    ]
    y = np.zeros((T, B, D * R), dtype)
    every = {"c": np.zeros((T, B, D * H), dtype), "gates": np.zeros((T, B, D, form.gates, H), dtype)}
    moments: tuple[list[_Moment], ...] = tuple([] for _ in range(D))
    first = 0 if cell.is_carried else 1  # of what the step returns, the state begins there
    if noise is not None:
        noise = tuple(a.copy() if isinstance(a, np.ndarray) else a for a in noise)

    for direction in range(D):
        w = _filled(checked[direction], form)
        cuts = _cuts(begins, ends, direction)
        state_t = [part[direction] for part in parts]  # h, or h and c: views, overwritten step by step
        of_R, of_H = (slice(direction * n, (direction + 1) * n) for n in (R, H))
        for t in _times(T, direction):
            rows = np.flatnonzero(t < ends)
            cut = cuts[t, rows, None]
            before = tuple(np.where(cut, 0, part[rows]) for part in state_t)
            x_t = x[t, rows]
            row_t = (numbers[t, rows, None],) if form.row else ()
            if form.takes_stay:
                row_t = (_stays(noise, 1, t, rows, of_H),)
            after, saved = cell.step(x_t, before, _masked(w, noise, direction, rows), *row_t)
            after = list(after)
            for k, old in enumerate(() if form.takes_stay else before, first):
                after[k] = _mix(_stays(noise, k, t, rows, of_H if k else of_R), old, after[k])
            for part, new in zip(state_t, after[first:], strict=True):
                part[rows] = new
            y[t, rows, of_R] = after[0]
            if "c" in return_all:
                every["c"][t, rows, of_H] = after[1]
            if "gates" in return_all:
                every["gates"][t, rows, direction] = np.stack(saved[: form.gates], axis=1)
            if training:
                moments[direction].append(_Moment(t, rows, cut, x_t, row_t, before, None if recompute else saved))

    kept = tuple(_copies(w) for w in checked)
    tape = _Tape(cell, sizes, kept, noise, row is not None, moments) if training else None
    if out is not None:
        out[...] = y
        y = out
    if "gates" in return_all and cell.options is not None:
        every["gates"] = _gates_from(cell.options, every["gates"])
        every["gates"][np.arange(T)[:, None] >= ends] = 0
    return y, _joined(parts), tape, *(every[name] for name in return_all)


def _backward(
    prefix: str, tape: Any, dy: Array | None, dstate: State, dc: Array | None, grad_clip: float | None
) -> tuple[Any, ...]:
    if not isinstance(tape, _Tape) or not tape.cell.name.startswith(prefix):
        came = f"a tape of {tape.cell.name}" if isinstance(tape, _Tape) else type(tape).__name__
        raise TypeError(f"tape: expected the tape of {prefix or 'cell'}_forward, got {came}")
    cell, sizes, noise = tape.cell, tape.sizes, tape.noise
    T, B, I, H, R, D = sizes
    weights = [_filled(w, cell.form) for w in tape.weights]
    dtype = weights[0][0].dtype
    if dy is not None:
        dy = _checks.array("dy", dy, dtype, (T, B, D * R))
    if dc is not None:
        if "c" not in cell.form.letters:
            raise ValueError(f"dc: expected None, since {cell.name} has no cell state")
        dc = _checks.array("dc", dc, dtype, (T, B, D * H))
    limit = _options.limit("grad_clip", grad_clip)
    shapes = sizes.of_parts(cell, D)
    given = _checked_parts("dstate", dstate, cell, dtype, shapes)

    dy = np.zeros((T, B, D * R), dtype) if dy is None else dy
    dparts = [
        np.zeros(shape, dtype) if part is None else part.copy() for part, shape in zip(given, shapes, strict=True)
    ]
    dx = np.zeros((T, B, I), dtype)
    drow = np.zeros((T, B), dtype)
    dweights: Gradients = []
    first = 0 if cell.is_carried else 1

    for direction in range(D):
        w = weights[direction]
        dw = [None if weight is None else np.zeros_like(weight) for weight in w]
        dstate_t = [part[direction] for part in dparts]  # dh, or dh and dc: views, overwritten step by step
        columns = [slice(direction * n, (direction + 1) * n) for n in (R, H)]
        direct = (dy, *(() if dc is None else (dc,)))  # of h, and of c
        for t, rows, cut, x_t, row_t, before, saved in reversed(tape.moments[direction]):
            dafter = [part[rows] for part in dstate_t]  # what comes back through the next step ...
            dafter = [np.zeros((len(rows), R), dtype)] * first + dafter
            for i, direct_part in enumerate(direct):
                dafter[i] = dafter[i] + direct_part[t, rows, columns[i]]  # ... and the direct part
            past = []  # what of it goes past the step
            for k in range(first, len(dafter)):
                stays = 0.0 if cell.form.takes_stay else _stays(noise, k, t, rows, columns[min(k, 1)])
                nothing = np.zeros_like(dafter[k])
                past.append(_mix(stays, dafter[k], nothing))
                dafter[k] = _mix(stays, nothing, dafter[k])
            masked = _masked(w, noise, direction, rows)
            if saved is None:
                _, saved = cell.step(x_t, before, masked, *row_t)
            dx_t, dbefore, dw_t, *drow_t = cell.step_backward(tuple(dafter), x_t, before, masked, saved, *row_t)
            for part, new, beside in zip(dstate_t, dbefore, past, strict=True):
                part[rows] = np.where(cut, 0, _clip(limit, new + beside))
            dx[t, rows] += dx_t
            for of_row in drow_t:
                drow[t, rows] += of_row
            for total, addend in zip(dw, dw_t, strict=True):
                if total is not None:
                    total += addend
        had = tape.weights[direction]
        dweights.append(tuple(None if weight is None else total for weight, total in zip(had, dw, strict=False)))
    return dx, _joined(dparts), dweights, *((drow,) if tape.has_row else ())


def _step(
    cell: _Cell,
    x: Array,
    state: State,
    stack: Sequence[Weights],
    out: Array | None,
    zoneout: Any = NO_ZONEOUT,
    row: Any = None,
) -> Array:
    if not isinstance(stack, (tuple, list)):
        raise TypeError(f"stack: expected a list with the weights of each layer, got {type(stack).__name__}")
    if not stack:
        raise ValueError("stack: expected at least one layer, got none")
    layers: list[Arrays] = []
    first: Any = None
    for number, weights in enumerate(stack):
        name = f"stack[{number}]"
        directions = _checked_weights(name, weights, cell)
        if len(directions) != 1:
            raise ValueError(f"{name}: expected one direction, got two (step cannot look ahead)")
        sizes, dtype = _sizes(directions, cell.form, 1, 0), directions[0][0].dtype
        if first is None:
            first, first_dtype, count = sizes, dtype, len(directions[0])
        if len(directions[0]) != count:
            what = "peepholes" if cell.form.optional else "the same weights"
            raise ValueError(f"{name}: expected {what} in all layers or in none")
        I, H, R = sizes.I, sizes.H, sizes.R
        if (H, R) != (first.H, first.R) or dtype != first_dtype or (layers and I != first.R):
            wanted = f"I = H = {first.H} of {first_dtype}"
            raise ValueError(f"{name}: expected {wanted}, got I = {I}, H = {H} of {dtype}")
        layers.append(_filled(directions[0], cell.form))
    L = len(layers)
    x = np.ascontiguousarray(_checks.array("x", x, dtype, ("B", first.I)))  # some BLAS round other strides differently
    B = len(x)
    shapes = first._replace(B=B).of_parts(cell, L)
    letters = cell.form.letters
    parts = _checks.parts_of("state", state, letters)
    row = _options.row(cell.form, _family(cell), row, dtype, (B,))
    others = [("x", x), ("row", row)]  # whatever the next array to be written may not overlap
    for letter, part, shape in zip(letters, parts, shapes, strict=True):
        others.append((f"state: {letter}", _checks.output(f"state: {letter}", part, dtype, shape, others)))
    parts = [part for _, part in others[2:]]
    shares = _options.shares("zoneout", zoneout)
    row_t = () if not cell.form.row else (np.ones((B, 1), dtype) if row is None else row[:, None],)
    if cell.form.takes_stay:
        row_t, shares = (shares[1],), (0.0, 0.0)
    if out is not None:
        out = _checks.output("out", out, dtype, (B, first.R), others)

    after = []
    h_t = x
    start = 0 if cell.is_carried else 1
    for layer, w in enumerate(layers):
        before = tuple(part[layer] for part in parts)
        new, _ = cell.step(h_t, before, w, *row_t)
        mixed = [
            _mix(shares[k] if k < 2 else 0.0, old, value)
            for k, (old, value) in enumerate(zip(before, new[start:]), start)
        ]
        after.append(mixed)
        h_t = mixed[0] if cell.is_carried else new[0]
    for layer, values in enumerate(after):
        for part, value in zip(parts, values, strict=True):
            part[layer] = value
    if out is None:
        return h_t
    out[...] = h_t
    return out


class _Packed(tuple):
    """Weights as they are, checked, copied and read-only (the compiled module lays them out anew)."""

    cell: str  # its name
    sizes: tuple[int, int]  # I and H, of a cell of one's own


def _pack(cell: _Cell, weights: Weights) -> _Packed:
    packed = _Packed(_copies(w) for w in _checked_weights("weights", weights, cell))
    packed.cell = cell.name
    return packed


def _checked_weights(name: str, weights: Any, cell: _Cell) -> Sequence[Sequence[Any]]:
    if not isinstance(weights, _Packed):
        return _checks.weights(name, weights, cell.form)
    if weights.cell != cell.name:
        raise ValueError(f"{name}: expected weights packed for {cell.name}, got weights packed for {weights.cell}")
    return weights


def _checked_parts(
    name: str, value: State, cell: _Cell, dtype: Any, shapes: list[tuple[int, int, int]]
) -> list[Array | None]:
    letters = cell.form.letters
    parts = zip(letters, _checks.parts_of(name, value, letters), shapes, strict=True)
    return [None if a is None else _checks.array(f"{name}: {letter}", a, dtype, shape) for letter, a, shape in parts]


def _filled(weights: Sequence[Any], form: _options.Form) -> Arrays:
    """No bias is a bias of zeros, and behind a projection there is always one."""
    if form.own:
        return tuple(weights)
    names = form.names(len(weights)) or ()
    W_ih = weights[0]
    H = len(W_ih) // form.gates
    R = len(weights[names.index("weight_hr")]) if "weight_hr" in names else H
    filled = []
    for name, a in zip(names, weights, strict=True):
        shape = form.shape(name, 1, H, R)
        filled.append(np.zeros(shape, W_ih.dtype) if a is None and shape is not None else a)
    if names[-1] == "weight_hr":
        filled.append(np.zeros(R, W_ih.dtype))
    return tuple(filled)


def _family(cell: _Cell) -> str:
    return next((name for name, form in FORMS.items() if form is cell.form), cell.name)


def _copies(weights: Sequence[Array | None]) -> tuple[Array | None, ...]:
    copies = [None if weight is None else weight.copy() for weight in weights]
    for copy in copies:
        if copy is not None:
            copy.flags.writeable = False
    return tuple(copies)


def _joined(parts: Sequence[Array]) -> Array | Arrays:
    return parts[0] if len(parts) == 1 else tuple(parts)


# ------------------------------------------------------------------------------------------------ the public functions


def rnn_pack(
    weights: Weights, *, nonlinearity: Activation = "tanh", clip: float | None = None, leak: float = 1.0
) -> Packed:
    """Checked, read-only copies of the weights, accepted wherever `weights` is.

    weights: one or two directions, each (weight_ih (H, I), weight_hh (H, H), bias_ih (H,), bias_hh (H,)), float32 or
    float64; both biases may be None. nonlinearity, clip: see `rnn_forward`.
    """
    return _pack(_rnn(nonlinearity, clip, leak), weights)


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
    """Run one recurrent layer over whole sequences: h_t = act(W_ih x_t + b_ih + W_hh h_(t-1) + b_hh), Elman 1990.

    x: (T, B, I). T and B may be 0.
    state: h0 (D, B, H); None is zeros.
    weights: D = 1 or 2 directions, see `rnn_pack`. Their dtype, float32 or float64, must be that of x and state.
    nonlinearity: act, "tanh", "relu", "sigmoid" or another activation, see `lstm_forward`.
    clip: the sum inside act is limited to -clip ... clip; None: it is not.
    lengths: (B,) integers 0 to T in any order; None is T.
    reset: (T, B) bool, or integers 0 and 1: the state is zeroed before that step; None is never.
    training: whether to keep a tape for `rnn_backward`.
    recompute: whether the tape keeps only x and the states, so that `rnn_backward` takes each step again.
    out: (T, B, D*H), an array to write y into, that shares no memory with x and state.

    Returns y (T, B, D*H), zero past the end of a sequence; the state (D, B, H) after each one's last step (the initial
    state if its length is 0); the tape, or None. Raises TypeError or ValueError naming the argument that is wrong.
    """
    cell = _rnn(nonlinearity, clip, leak)
    return _quietly(
        _forward, cell, x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout, recurrent_mask
    )


def rnn_backward(
    tape: Tape | None, dy: Array | None = None, dstate: State = None, *, grad_clip: float | None = None
) -> tuple[Array, Array, Gradients]:
    """Backpropagate through time (Werbos 1990), along what `rnn_forward` recorded.

    tape: from `rnn_forward`. It is not changed and can be used again.
    dy: (T, B, D*H), the direct part of dL/dh_t; None is zeros. Past the end of a sequence it is not read.
    dstate: (D, B, H), the gradient of the returned state; None is zeros.
    grad_clip: what goes back from each step to the one before is limited to -grad_clip ... grad_clip; None: no limit.

    Returns dx (T, B, I), zero past the end of a sequence; dstate (D, B, H), the gradient of the initial state; and per
    direction (dweight_ih, dweight_hh, dbias_ih, dbias_hh), None where the weights had no bias. All are new arrays.
    Raises TypeError or ValueError naming the argument that is wrong.
    """
    return _quietly(_backward, "rnn", tape, dy, dstate, None, grad_clip)


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
    """Take one step through a stack of L one-directional layers (equation: `rnn_forward`); the state changes in place.

    x: (B, I). state: (L, B, H), overwritten. stack: L weights of one direction each, see `rnn_pack`; the inputs of all
    but the first are the H outputs of the layer below. out: (B, H), an array to write y into, that shares no memory
    with x and state.

    Returns y (B, H), the output of the top layer. Raises TypeError or ValueError naming the argument that is wrong;
    the state is then as it was.
    """
    return _quietly(_step, _rnn(nonlinearity, clip, leak), x, state, stack, out, zoneout)


def lstm_pack(
    weights: Weights,
    *,
    coupled: str | None = None,
    clip: float | None = None,
    cell_clip: float | None = None,
    proj_clip: float | None = None,
    activations: Sequence[Activation] = LSTM_ACTIVATIONS,
) -> Packed:
    """Checked, read-only copies of the weights, accepted wherever `weights` is.

    weights: one or two directions, each (weight_ih (4H, I), weight_hh (4H, H), bias_ih (4H,), bias_hh (4H,)), gates in
    the order i, f, g, o, float32 or float64; both biases may be None. With peepholes three more, (weight_ci, weight_cf,
    weight_co), (H,) each, and as many more gradients. The options are those of `lstm_forward`.
    """
    return _pack(_lstm(weights, activations, coupled, clip, cell_clip, proj_clip), weights)


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
    """Run one LSTM layer over whole sequences. With a = W_ih x_t + b_ih + W_hh h_(t-1) + b_hh, in blocks i, f, g, o:

        i = sigmoid(a_i)    f = sigmoid(a_f)    g = tanh(a_g)    o = sigmoid(a_o)
        c_t = f * c_(t-1) + i * g
        h_t = o * tanh(c_t)

    Hochreiter & Schmidhuber 1997, with the forget gate of Gers, Schmidhuber & Cummins 2000.

    x: (T, B, I). T and B may be 0.
    state: (h0, c0), each (D, B, H); None, or a None in it, is zeros.
    weights: D = 1 or 2 directions, see `lstm_pack`. Their dtype, float32 or float64, must be that of x and state.
    coupled: None, "f=1-i" or "i=1-f": one gate for both; the weights of the gate that is no more are not used.
    clip: the sums inside the activations of gates and candidate are limited to -clip ... clip (ONNX); None: not.
    cell_clip: c_t likewise, before its peephole and its activation (TFLite).
    activations: of gates, candidate and output; each a name or (name, alpha, beta), see elman.LSTM.
    lengths: (B,) integers 0 to T in any order; None is T.
    reset: (T, B) bool, or integers 0 and 1: the state is zeroed before that step; None is never.
    training: whether to keep a tape for `lstm_backward`.
    recompute: whether the tape keeps only x and the states, so that `lstm_backward` takes each step again.
    out: (T, B, D*H), an array to write y into, that shares no memory with x and state.
    return_all: "c" for every c_t, (T, B, D*H), "gates" for the values of i, f, g, o, (T, B, D, 4, H).

    Returns y (T, B, D*H), zero past the end of a sequence; the state (h, c), each (D, B, H), after each one's last step
    (the initial state if its length is 0); the tape, or None; and what return_all asks for, zero past the end. Raises
    TypeError or ValueError naming the argument that is wrong.
    """
    cell = _lstm(weights, activations, coupled, clip, cell_clip, proj_clip)
    return _quietly(
        _forward, cell, x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout, recurrent_mask
    )


def lstm_backward(
    tape: Tape | None,
    dy: Array | None = None,
    dstate: State = None,
    *,
    dc: Array | None = None,
    grad_clip: float | None = None,
) -> tuple[Array, Arrays, Gradients]:
    """Backpropagate through time (Werbos 1990), along what `lstm_forward` recorded.

    tape: from `lstm_forward`. It is not changed and can be used again.
    dy: (T, B, D*H), the direct part of dL/dh_t; None is zeros. Past the end of a sequence it is not read.
    dstate: (dh, dc), each (D, B, H), the gradient of the returned state; None, or a None in it, is zeros.
    dc: (T, B, D*H), the direct part of dL/dc_t at every step; None is zeros. Past the end of a sequence it is not read.
    grad_clip: what goes back from each step to the one before is limited to -grad_clip ... grad_clip; None: no limit.

    Returns dx (T, B, I), zero past the end of a sequence; dstate (dh, dc), the gradient of the initial state; and per
    direction (dweight_ih, dweight_hh, dbias_ih, dbias_hh), None where the weights had no bias. All are new arrays.
    Raises TypeError or ValueError naming the argument that is wrong.
    """
    return _quietly(_backward, "lstm", tape, dy, dstate, dc, grad_clip)


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
    """Take one step through a stack of L one-directional layers (equations: `lstm_forward`); state changes in place.

    x: (B, I). state: (h, c), each (L, B, H), overwritten. stack: L weights of one direction each, see `lstm_pack`; the
    inputs of all but the first are the H outputs of the layer below. out: (B, H), an array to write y into, that shares
    no memory with x and state.

    Returns y (B, H), the output of the top layer. Raises TypeError or ValueError naming the argument that is wrong;
    the state is then as it was.
    """
    cell = _lstm(_widest(stack), activations, coupled, clip, cell_clip, proj_clip)
    return _quietly(_step, cell, x, state, stack, out, zoneout)


def gru_pack(
    weights: Weights,
    *,
    reset_after: bool = True,
    clip: float | None = None,
    activations: Sequence[Activation] = GRU_ACTIVATIONS,
) -> Packed:
    """Checked, read-only copies of the weights, accepted wherever `weights` is.

    weights: one or two directions, each (weight_ih (3H, I), weight_hh (3H, H), bias_ih (3H,), bias_hh (3H,)), gates in
    the order r, z, n, float32 or float64; both biases may be None. reset_after: see `gru_forward`.
    """
    return _pack(_gru(reset_after, activations, clip), weights)


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
    """Run one GRU layer over whole sequences:

        r = sigmoid(W_ir x_t + b_ir + W_hr h_(t-1) + b_hr)
        z = sigmoid(W_iz x_t + b_iz + W_hz h_(t-1) + b_hz)
        n = tanh(W_in x_t + b_in + r * (W_hn h_(t-1) + b_hn))     reset_after=True: cuDNN, PyTorch
        n = tanh(W_in x_t + b_in + W_hn (r * h_(t-1)) + b_hn)     reset_after=False: Cho et al. 2014, ONNX's default
        h_t = (1 - z) * n + z * h_(t-1)

    x: (T, B, I). T and B may be 0.
    state: h0 (D, B, H); None is zeros.
    weights: D = 1 or 2 directions, see `gru_pack`. Their dtype, float32 or float64, must be that of x and state.
    reset_after: which of the two forms.
    clip, activations: as in `lstm_forward`, of the gates and the candidate n.
    lengths: (B,) integers 0 to T in any order; None is T.
    reset: (T, B) bool, or integers 0 and 1: the state is zeroed before that step; None is never.
    training: whether to keep a tape for `gru_backward`.
    recompute: whether the tape keeps only x and the states, so that `gru_backward` takes each step again.
    out: (T, B, D*H), an array to write y into, that shares no memory with x and state.

    Returns y (T, B, D*H), zero past the end of a sequence; the state (D, B, H) after each one's last step (the initial
    state if its length is 0); the tape, or None. Raises TypeError or ValueError naming the argument that is wrong.
    """
    cell = _gru(reset_after, activations, clip)
    return _quietly(
        _forward, cell, x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout, recurrent_mask
    )


def gru_backward(
    tape: Tape | None, dy: Array | None = None, dstate: State = None, *, grad_clip: float | None = None
) -> tuple[Array, Array, Gradients]:
    """Backpropagate through time (Werbos 1990), along what `gru_forward` recorded.

    tape: from `gru_forward`. It is not changed and can be used again.
    dy: (T, B, D*H), the direct part of dL/dh_t; None is zeros. Past the end of a sequence it is not read.
    dstate: (D, B, H), the gradient of the returned state; None is zeros.
    grad_clip: what goes back from each step to the one before is limited to -grad_clip ... grad_clip; None: no limit.

    Returns dx (T, B, I), zero past the end of a sequence; dstate (D, B, H), the gradient of the initial state; and per
    direction (dweight_ih, dweight_hh, dbias_ih, dbias_hh), None where the weights had no bias. All are new arrays.
    Raises TypeError or ValueError naming the argument that is wrong.
    """
    return _quietly(_backward, "gru", tape, dy, dstate, None, grad_clip)


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
    """Take one step through a stack of L one-directional layers (equations: `gru_forward`); the state changes in place.

    x: (B, I). state: (L, B, H), overwritten. stack: L weights of one direction each, see `gru_pack`; the inputs of all
    but the first are the H outputs of the layer below. out: (B, H), an array to write y into, that shares no memory
    with x and state.

    Returns y (B, H), the output of the top layer. Raises TypeError or ValueError naming the argument that is wrong;
    the state is then as it was.
    """
    return _quietly(_step, _gru(reset_after, activations, clip), x, state, stack, out, zoneout)


def cell_pack(cell: str, weights: Weights, **options: Any) -> Packed:
    """Checked, read-only copies of the weights of any cell, see `cell_forward`."""
    return _pack(_cell(cell, weights, options), weights)


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
    """Run one layer of any cell over whole sequences: as `lstm_forward`, with the equations beside the cell's functions
    above.

    cell: its name in elman._options.FORMS, which also says what arrays its weights and its state have.
    row: (T, B), the number that some cells take with each step of each sequence (AUGRU: attention; CfC: timespans).
    options: activations, clip, ..., as far as the cell has them.
    """
    return _quietly(
        _forward, _cell(cell, weights, options), x, state, weights, lengths, reset, training, recompute, out,
        return_all, zoneout, recurrent_mask, row,
    )  # fmt: skip


def cell_backward(
    tape: Tape | None,
    dy: Array | None = None,
    dstate: State = None,
    *,
    dc: Array | None = None,
    grad_clip: float | None = None,
) -> tuple[Any, ...]:
    """Backpropagate through time along what `cell_forward` recorded, as `lstm_backward`. Where `row` was given, its
    gradient (T, B) comes fourth."""
    return _quietly(_backward, "", tape, dy, dstate, dc, grad_clip)  # type: ignore[no-any-return]


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
    """Take one step through stacked layers of any cell, as `lstm_step`; row (B,)."""
    return _quietly(_step, _cell(cell, _widest(stack), options), x, state, stack, out, zoneout, row)  # type: ignore[no-any-return]


# The same for a cell of one's own, which elman.Custom has checked.


def own_cell(form: _options.Form, step: Callable[..., Any], step_backward: Callable[..., Any]) -> _Cell:
    return _Cell("a cell of one's own", form, step, step_backward)


def own_pack(cell: _Cell, I: int, H: int, weights: Weights) -> Packed:
    packed = _Packed(map(_copies, weights))
    packed.cell, packed.sizes = cell.name, (I, H)
    return packed


def own_forward(
    cell: _Cell, x: Array, state: State, weights: Packed, *, lengths: Any, reset: Any, training: bool, recompute: bool,
    out: Array | None, return_all: Sequence[str], zoneout: Zoneout = NO_ZONEOUT,
) -> tuple[Any, ...]:  # fmt: skip
    return _quietly(_forward, cell, x, state, weights, lengths, reset, training, recompute, out, return_all, zoneout)  # type: ignore[no-any-return]


def own_step(
    cell: _Cell, x: Array, state: State, stack: Sequence[Packed], *, out: Array | None, zoneout: Zoneout
) -> Array:
    return _quietly(_step, cell, x, state, stack, out, zoneout)  # type: ignore[no-any-return]


def _rnn(nonlinearity: Activation, clip: float | None, leak: float) -> _Cell:
    options = _options.rnn(nonlinearity, clip, leak)
    name = options.activations[0].name
    is_plain = options._replace(activations=()) == _options.PLAIN["rnn"]._replace(activations=())
    return _RNN[name] if name in _RNN and is_plain else _rnn_any(options)


def _widest(stack: Any) -> Any:
    """The weights of the layer with the most of them, so that one with peepholes is not overlooked."""
    if not isinstance(stack, (tuple, list)) or not stack or not all(isinstance(w, (tuple, list)) and w for w in stack):
        return None  # which _step complains about
    return max(stack, key=lambda w: len(w[0]) if isinstance(w[0], (tuple, list)) else 0)


def _lstm(
    weights: Any,
    activations: Sequence[Activation],
    coupled: str | None,
    clip: float | None,
    cell_clip: float | None,
    proj_clip: float | None,
) -> _Cell:
    """The plain cell, unless something else is asked for or the weights come with peepholes or a projection."""
    given = {"activations": activations, "coupled": coupled, "clip": clip, "cell_clip": cell_clip}
    options = _options.of("lstm", given | {"proj_clip": proj_clip})
    names = _names("lstm", weights)
    cell = _lstm_any(options) if len(names) > 4 or options != _options.PLAIN["lstm"] else _LSTM
    return _maybe_projected(cell, names, proj_clip)


def _names(family: str, weights: Any) -> tuple[str, ...]:
    """Of the arrays in a direction's weights, as far as they look like that."""
    if isinstance(weights, (tuple, list)) and weights and isinstance(weights[0], (tuple, list)):
        return FORMS[family].names(len(weights[0])) or ()
    return ()


def _maybe_projected(cell: _Cell, names: Sequence[str], proj_clip: float | None) -> _Cell:
    """The LSTM whose weights have these names."""
    if "weight_hr" not in names:
        return cell
    return _projected(cell, _Activation(_options.Chosen("affine", 1.0, 0.0), proj_clip))


def _gru(reset_after: bool, activations: Sequence[Activation], clip: float | None) -> _Cell:
    family = f"gru_reset_{'after' if _checks.boolean('reset_after', reset_after) else 'before'}"
    options = _options.of(family, {"activations": activations, "clip": clip})
    is_plain = options == _options.PLAIN[family]
    if reset_after:
        return _GRU_AFTER if is_plain else _gru_after_any(options)
    return _GRU_BEFORE if is_plain else _gru_before_any(options)


def _cell(cell: str, weights: Any, options: dict[str, Any]) -> _Cell:
    family = _checks.choice("cell", cell, tuple(FORMS))
    chosen = _options.of(family, options)
    if family == "rnn":
        return _rnn(chosen.activations[0].entry, chosen.clip, chosen.leak)
    if family == "lstm":
        return _lstm(weights, *(options.get(name, default) for name, default in _LSTM_DEFAULTS.items()))
    if family.startswith("gru_reset"):
        return _gru(family == "gru_reset_after", options.get("activations", GRU_ACTIVATIONS), chosen.clip)
    made = _MORE[family](chosen)
    return _maybe_projected(made, _names(family, weights), chosen.proj_clip) if family.startswith("lstm") else made


_LSTM_DEFAULTS = {"activations": LSTM_ACTIVATIONS, "coupled": None, "clip": None, "cell_clip": None, "proj_clip": None}


# --------------------------------------------------------------------------------------------------------------- a loss


def ctc(logits: Array, targets: Array, lengths: Array, counts: Array, blank: int) -> tuple[Array, Array]:
    """Connectionist temporal classification (Graves et al. 2006), which `elman.losses.ctc` computes with a kernel.

    logits (T, B, C), targets (B, S) classes, of which sequence b has lengths[b] steps and counts[b] classes; no logit
    past an end is read, and a target there is any class. Returns the loss of each sequence (B,), infinite if it is too
    short for its target, and the gradient of their sum (T, B, C): 0 where a loss is infinite, NaN where it is NaN. All
    in float64.
    """
    return _quietly(_ctc, logits, targets, lengths, counts, blank)  # type: ignore[no-any-return]


def _ctc(logits: Array, targets: Array, lengths: Array, counts: Array, blank: int) -> Arrays:
    T, B, _ = logits.shape
    inside = np.arange(T)[:, None] < lengths
    rows = logits[inside].astype(np.float64)
    rows -= rows.max(axis=1, keepdims=True)
    rows -= np.log(np.exp(rows).sum(axis=1, keepdims=True))
    log_p = np.zeros(logits.shape)
    log_p[inside] = rows
    log_likelihood, occupied = _alignments(log_p, targets, lengths, counts, blank)
    dlogits = np.exp(log_p) - occupied  # eq. 16
    dlogits[:, np.isneginf(log_likelihood)] = 0
    dlogits[:, np.isnan(log_likelihood)] = np.nan
    dlogits[~inside] = 0
    return 0 - log_likelihood, dlogits


def _alignments(log_p: Array, targets: Array, lengths: Array, counts: Array, blank: int) -> Arrays:
    """The forward-backward recursion over all paths that spell the targets, eq. 6-15 in logarithms.

    Returns the logarithm of their total probability, (B,), and for each class the probability that such a path is in
    it, (T, B, C), not a number where there is no path.
    State 2s+1 is class s of the target, the even ones are the blanks around them (the paper's l').
    """
    T, B, C = log_p.shape
    N = 2 * targets.shape[1] + 1
    states = np.full((B, N), blank)
    states[:, 1::2] = targets
    emitted = np.take_along_axis(log_p, np.broadcast_to(states, (T, B, N)), axis=2)
    skip = np.full((B, N), -np.inf)  # + 0 where a path may come from two states before: to a class unlike the last one
    skip[:, 1:2] = 0
    skip[:, 3::2][targets[:, 1:] != targets[:, :-1]] = 0

    # Two states more in front, never reached again: every path is in the second of them before the first step.
    alpha = np.full((T + 1, B, N + 2), -np.inf)
    alpha[0, :, 1] = 0
    for t in range(T):
        before = alpha[t]
        alpha[t + 1, :, 2:] = emitted[t] + np.logaddexp(
            np.logaddexp(before[:, 2:], before[:, 1:-1]), before[:, :-2] + skip
        )
    b, last = np.arange(B), 2 * counts + 2  # the blank after the last class; or that class
    log_likelihood = np.logaddexp(alpha[lengths, b, last], alpha[lengths, b, last - 1])

    final = np.full((B, N + 2), -np.inf)
    final[b, last] = final[b, last - 1] = 0
    beta = np.full((B, N), -np.inf)  # of the steps still to come; before a sequence's last step there is none
    ahead, ahead_skip = np.full((2, B, N + 2), -np.inf)
    occupied = np.empty_like(log_p)
    classes = (b[:, None] * C + states).ravel()
    for t in reversed(range(T)):
        ends = lengths == t + 1
        beta[ends] = final[ends, 2:]
        here = np.exp(alpha[t + 1, :, 2:] + beta - log_likelihood[:, None])
        occupied[t] = np.bincount(classes, here.ravel(), B * C).reshape(B, C)
        ahead[:, :N] = beta + emitted[t]
        ahead_skip[:, :N] = ahead[:, :N] + skip
        beta = np.logaddexp(np.logaddexp(ahead[:, :N], ahead[:, 1:-1]), ahead_skip[:, 2:])
    return log_likelihood, occupied
