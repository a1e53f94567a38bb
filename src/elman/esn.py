"""ESN: the reservoir of an echo state network, and its readout by ridge regression.

The reservoir is a leaky RNN whose weights are drawn once and never trained; how they are drawn, and the solution for
the readout, is here, in float64. Running it is layers.py.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from . import _options
from ._options import Activation
from .dense import Dense
from .layers import Recurrent

__all__ = ["ESN"]

_EXACT = 500  # hidden units up to which the spectral radius is that of all eigenvalues
_SQUARINGS = 20
_ATTEMPTS = 100


class ESN(Recurrent[np.ndarray]):
    """Reservoir of an echo state network (Jaeger 2001): fixed random weights, of which nothing is trained.

        h_t = (1 - leak) * h + leak * act(W_ih x_t + b_ih + W_hh h)

    input_size, hidden_size, num_layers : I, H and how many reservoirs are stacked, at least 1 each.
    spectral_radius : what weight_hh is scaled to, the largest absolute value of its eigenvalues; above 0. Below 1 the
        reservoir forgets how it began, as a rule. Up to H = 500 it is that of the eigenvalues; above, it is found by
        squaring weight_hh 20 times, within a relative error of about 1e-5.
    leak : the share of the new state, 0 to 1: how fast the reservoir is (reservoirpy's lr).
    density : the share of elements of weight_hh that are not 0, above 0 (reservoirpy's rc_connectivity). These are
        normally distributed before they are scaled.
    input_scaling : weight_ih and bias_ih are uniform from -input_scaling to input_scaling.
    nonlinearity : act, as in `RNN`.
    bias : whether there is bias_ih, which is drawn as the weights of an input that is always 1. (bias_hh is 0.)
    bidirectional, batch_first, merge, dtype, backend : as in `LSTM`.
    seed : a whole number, for the weights; None is random.

    Calls, `step`, states, lengths and resets, and the weights' names are those of `RNN`. There is no backpropagation:
    `fit_readout` gives the output layer.

    ValueError: with so few weights that are not 0 no draw has a cycle, so that no scaling reaches the spectral radius.

    >>> esn = elman.ESN(1, 300, spectral_radius=0.9, leak=0.3, seed=0)
    >>> readout = esn.fit_readout(x, y, ridge=1e-6, warmup=100)
    >>> model = elman.Sequential([esn, readout])      # to predict and to save
    """

    _prefix = _family = "rnn"
    _cell_options = {"nonlinearity": "tanh", "leak": 1.0}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        spectral_radius: float = 0.9,
        leak: float = 1.0,
        density: float = 0.1,
        input_scaling: float = 1.0,
        nonlinearity: Activation = "tanh",
        bidirectional: bool = False,
        batch_first: bool = False,
        bias: bool = True,
        merge: str | None = "concat",
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
        backend: str = "compiled",
    ):
        self.spectral_radius = check.number_below("spectral_radius", spectral_radius, 0, open_below=True)
        self.density = check.number("density", density, 0.0, 1.0)
        if not self.density:
            raise ValueError("density: expected above 0, got 0.0")
        self.input_scaling = check.number_below("input_scaling", input_scaling, 0)
        chosen = _options.rnn(nonlinearity, None, leak)
        self.nonlinearity, self.leak = chosen.activations[0].entry, chosen.leak
        super().__init__(
            input_size, hidden_size, num_layers, bidirectional=bidirectional, batch_first=batch_first, bias=bias,
            merge=merge, dtype=dtype, seed=seed, backend=backend,
        )  # fmt: skip
        with self.edit() as p:
            for name, a in p.items():
                if name.startswith("weight_hh"):
                    a[...] = self._drawn_reservoir(len(a))
                elif name.startswith("bias_hh"):
                    a[...] = 0
                else:
                    a[...] = self._rng.uniform(-self.input_scaling, self.input_scaling, a.shape)

    def _drawn_reservoir(self, H: int) -> np.ndarray:
        count = max(1, round(self.density * H * H))
        for _ in range(_ATTEMPTS):
            W = np.zeros((H, H))
            W.flat[self._rng.choice(H * H, count, replace=False)] = self._rng.standard_normal(count)
            if _has_cycle(W != 0):
                W *= self.spectral_radius / spectral_radius_of(W)
                return W
        raise ValueError(
            f"density: expected more than {self.density:g}, which leaves {count} of {H} x {H} weights, none in a cycle"
        )

    def forward(
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        **others: Any,
    ) -> NoReturn:
        """TypeError: a reservoir is not trained. (A `Sequential` reads from here what a call takes.)"""
        raise TypeError("ESN: a reservoir has no backpropagation; call it, and train an output layer by fit_readout")

    def backward(self, *arguments: Any, **keywords: Any) -> NoReturn:
        """TypeError: a reservoir is not trained."""
        self.forward(())

    def fit_readout(
        self,
        x: ArrayLike,
        y: ArrayLike,
        *,
        ridge: float = 1e-6,
        warmup: int = 0,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
    ) -> Dense:
        """The output layer with the least sum of squared errors plus ridge times the sum of its squared weights (the
        bias does not count), as scikit-learn's Ridge and reservoirpy's.

        x : (T, B, I), with `batch_first` (B, T, I), or (T, I): the inputs, from a state of zeros on.
        y : (T, B, O), (B, T, O) or (T, O): the target of every step.
        ridge : above 0, in units of squared states summed over all steps.
        warmup : so many first steps of each sequence, in which the initial state is forgotten, do not count.
        lengths, reset : as in a call. Steps past a length do not count.

        Returns a new `Dense` of this layer's dtype, solved in float64. The reservoir does not change.

        ValueError, TypeError: an argument of wrong shape, dtype or value; merge=None; no step is left.

        >>> readout = esn.fit_readout(x, y, warmup=100)
        >>> prediction = readout(esn(x)[0])
        """
        ridge = check.number_below("ridge", ridge, 0, open_below=True)
        warmup = check.integer("warmup", warmup, 0)
        if self.merge is None:
            raise ValueError("fit_readout: expected outputs side by side, got a pair, since merge is None")
        states, _ = self(x, lengths=lengths, reset=reset)
        target = check.array("y", y, self.dtype, (*states.shape[:-1], "O"))
        if states.ndim == 3 and self.batch_first:
            states, target = states.swapaxes(0, 1), target.swapaxes(0, 1)
        t = np.arange(len(states))
        counts = t >= warmup
        if lengths is not None:
            ends = np.asarray(lengths)
            counts = counts[:, None] & (t[:, None] < ends) if states.ndim == 3 else counts & (t < ends)
        elif states.ndim == 3:
            counts = np.repeat(counts[:, None], states.shape[1], axis=1)
        if not counts.any():
            raise ValueError(f"warmup: expected steps that are left to fit, got none after the first {warmup}")
        h, wanted = states[counts].astype(np.float64), target[counts].astype(np.float64)
        for name, values in (("x: expected finite outputs", h), ("y: expected finite values", wanted)):
            if not np.isfinite(values).all():
                raise ValueError(f"{name} in the steps that count")
        h_mean, mean = h.mean(axis=0), wanted.mean(axis=0)
        h -= h_mean
        weight = np.linalg.solve(h.T @ h + ridge * np.eye(h.shape[1]), h.T @ (wanted - mean)).T
        readout = Dense(h.shape[1], wanted.shape[1], dtype=self.dtype, seed=0)
        readout.load_params({"weight": weight.astype(self.dtype), "bias": (mean - weight @ h_mean).astype(self.dtype)})
        return readout


def spectral_radius_of(W: np.ndarray) -> float:
    """The largest absolute value of the eigenvalues of a square float64 matrix that has one which is not 0.

    Above H = 500 by Gelfand's formula, |W^k|^(1/k) with k = 2**20.
    """
    if len(W) <= _EXACT:
        return float(np.abs(np.linalg.eigvals(W)).max())
    log_norm = 0.0
    for squaring in range(_SQUARINGS):
        norm = float(np.linalg.norm(W))
        log_norm += np.log(norm) / 2**squaring
        W = W / norm
        W = W @ W
    return float(np.exp(log_norm + np.log(np.linalg.norm(W)) / 2**_SQUARINGS))


def _has_cycle(edges: np.ndarray) -> bool:
    """Whether a path through these edges (H, H) comes back to where it began: without one all eigenvalues are 0."""
    left = np.ones(len(edges), bool)
    while left.any():
        leads_on = edges[:, left].any(axis=1) & left
        if leads_on.sum() == left.sum():
            return True
        left = leads_on
    return False
