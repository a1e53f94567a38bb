"""TDNN: the time-delay network, a convolution over time."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from ._affine import PIECE, Affine
from ._blocks import Tape, kept, past_the_ends, with_batch
from ._parameters import Parametrised

__all__ = ["TDNN"]


class TDNN(Parametrised):
    """A time-delay layer (Waibel et al. 1989): a linear map of some steps around each step, the same for all of them.

        y_t = bias + sum over k of W_k x_(t + k * dilation - left),    k = 0 ... kernel_size - 1

    where steps before the first and after the last true one are zeros; left = (kernel_size - 1) * dilation, so that no
    step looks ahead, or half of it, rounded down, with causal=False. That is torch.nn.Conv1d over (B, I, T) with as
    many zeros in front, or with padding="same". Put `Activation` behind it.

    in_features, out_features : I and O, at least 1.
    kernel_size : how many steps are seen; at least 1.
    dilation : how far they are apart; at least 1.
    causal : True: the present and past steps; False: steps on both sides.
    bias, dtype, seed : as in Dense; the weights start uniform in +-1/sqrt(I * kernel_size), as in torch.nn.Conv1d.

    `params` is {"weight": (O, I, kernel_size), "bias": (O,)}. TypeError, ValueError: an argument of the wrong kind or
    size, named in the message.

    >>> tdnn = TDNN(40, 64, kernel_size=3, dilation=2)
    >>> y, tape = tdnn.forward(x, lengths=n)         # (T, B, 40) -> (T, B, 64)
    >>> dx, grads = tdnn.backward(tape, dy)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        dilation: int = 1,
        causal: bool = True,
        *,
        bias: bool = True,
        dtype: DTypeLike = np.float32,
        seed: int | None = None,
    ):
        self.in_features = check.integer("in_features", in_features, 1, check.MOST)
        self.out_features = check.integer("out_features", out_features, 1, check.MOST)
        self.kernel_size = check.integer("kernel_size", kernel_size, 1, check.MOST)
        self.dilation = check.integer("dilation", dilation, 1, check.MOST)
        self.causal = check.boolean("causal", causal)
        self.bias = check.boolean("bias", bias)
        self.dtype = check.dtype_of("dtype", dtype)
        rng = np.random.default_rng(None if seed is None else check.integer("seed", seed, 0))
        bound = (self.in_features * self.kernel_size) ** -0.5
        arrays = {"weight": rng.uniform(-bound, bound, (self.out_features, self.in_features, self.kernel_size))}
        if self.bias:
            arrays["bias"] = rng.uniform(-bound, bound, self.out_features)
        self._start(arrays)

    def __repr__(self) -> str:
        shown = [self.in_features, self.out_features, self.kernel_size]
        shown += [f"dilation={self.dilation}"] if self.dilation != 1 else []
        shown += [f"{name}=False" for name in ("causal", "bias") if not getattr(self, name)]
        shown += [f"dtype='{self.dtype}'"] if self.dtype != np.float32 else []
        return f"TDNN({', '.join(map(str, shown))})"

    def __call__(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> np.ndarray:
        """x (T, B, in_features) -> y (T, B, out_features), or without the batch axis, a new array.

        lengths : (B,) integers 0 to T, without a batch one integer. The output past a sequence's end is 0 and x there
            is never read, so that a sequence gives the same in any batch.

        TypeError: another float type. ValueError: a wrong shape or length.
        """
        return self.forward(x, lengths=lengths)[0]

    def forward(self, x: ArrayLike, *, lengths: ArrayLike | None = None) -> tuple[np.ndarray, Tape]:
        """The same y, and a tape for `backward` that holds its own copy of x."""
        leading = check.shape_and_dtype("x", x)[0][:-1]
        x, ends, batched = with_batch(check.array("x", x, self.dtype, (*leading, self.in_features)), lengths)
        T, B, _ = x.shape
        past = None if ends is None else past_the_ends(ends, T)
        left, span = self._left, (self.kernel_size - 1) * self.dilation
        padded = np.zeros((span + T, B, self.in_features), self.dtype)
        padded[left : left + T] = x
        if past is not None:
            padded[left : left + T][past] = 0
        snapshot = self._snapshot
        y = np.empty((T, B, self.out_features), self.dtype)
        for steps in _pieces(T, B):
            y[steps] = snapshot.packed(self._seen(padded, steps))
        if past is not None:
            y[past] = 0
        return y if batched else y[:, 0], Tape(self, (padded, past, batched), snapshot)

    def backward(
        self, tape: Tape, dy: ArrayLike, grads: MutableMapping[str, np.ndarray] | None = None
    ) -> tuple[np.ndarray, Mapping[str, np.ndarray]]:
        """The gradients of a loss: dx_s = sum of W_k^T dy_t and dW_k = sum of dy_t x_s^T, s = t + k * dilation - left.

        tape : from `forward` of this layer, since when the weights have not changed; it may be used again.
        dy : the loss gradient of that y; past a sequence's end it is never read.
        grads : None, or a dict with the names of `params` whose arrays the gradients are added to.

        Returns (dx, grads). TypeError, ValueError: a wrong argument, or a tape of other weights; nothing has changed.
        """
        padded, past, batched = kept(tape, self)
        B, T = padded.shape[1], len(padded) - (self.kernel_size - 1) * self.dilation
        dy = check.array("dy", dy, self.dtype, (T, *((B,) if batched else ()), self.out_features))
        if grads is not None:
            self._checked_grads(grads, (("dy", dy),))
        dy = dy.reshape(T, B, self.out_features)
        if past is not None:
            dy = np.where(past[:, :, None], self.dtype.type(0), dy)
        dy, affine = np.ascontiguousarray(dy), tape._snapshot.packed
        dpadded = np.zeros(padded.shape, self.dtype)
        dweight, dbias = np.zeros((self.out_features, self.kernel_size * self.in_features)), np.zeros(self.out_features)
        with np.errstate(all="ignore"):  # NaN and infinity travel without a warning
            for steps in _pieces(T, B):
                dseen, *sums = affine.backward(self._seen(padded, steps), dy[steps])
                parts = np.split(dseen, self.kernel_size, axis=2)
                for start, part in reversed(list(zip(self._starts(), parts))):  # by t in any pieces: the same bits
                    dpadded[start + steps.start : start + steps.stop] += part
                dweight += sums[0]
                if self.bias:
                    dbias += sums[1]
            dx = dpadded[self._left : self._left + T]
            if past is not None:
                dx[past] = 0
            by_step = dweight.astype(self.dtype).reshape(self.out_features, self.kernel_size, self.in_features)
            new = {"weight": np.ascontiguousarray(by_step.swapaxes(1, 2))}
            if self.bias:
                new["bias"] = dbias.astype(self.dtype)
            grads = self._accumulated(grads, new)
        return np.array(dx if batched else dx[:, 0]), grads

    @property
    def _left(self):
        """How many steps of zeros go in front."""
        span = (self.kernel_size - 1) * self.dilation
        return span if self.causal else span // 2

    def _packed(self, params):
        by_step = params["weight"].swapaxes(1, 2).reshape(self.out_features, -1)
        return Affine(by_step, params.get("bias"))

    def _starts(self):
        return range(0, self.kernel_size * self.dilation, self.dilation)

    def _seen(self, padded, steps):
        """What W_0, W_1, ... see for each (t, b) of these steps, side by side: (steps, B, kernel_size * I)."""
        return np.concatenate([padded[start + steps.start : start + steps.stop] for start in self._starts()], axis=2)


def _pieces(T, B):
    """The steps in pieces of some PIECE rows: what a piece sees, kernel_size times as much as x, is not all of it."""
    count = max(1, PIECE // max(1, B))
    return [slice(start, min(start + count, T)) for start in range(0, T, count)]
