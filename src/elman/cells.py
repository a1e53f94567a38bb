"""The cells beyond RNN, LSTM and GRU, with the same ways to be called, trained and stepped.

Each class says its equation and where it is from, and names the weights that it has; everything else is in layers.py.
Equations in NumPy: elman.reference; compiled: csrc/cells/.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from . import _options
from ._options import FORMS, Activation
from ._state import SLSTMState
from .layers import Recurrent, State

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Common(TypedDict, total=False):
    """The arguments that all cells have in common: see `elman.LSTM`."""

    bidirectional: bool
    batch_first: bool
    dropout: float
    bias: bool
    grad_clip: float | None
    merge: str | None
    zoneout: tuple[float, float]
    input_dropout: float
    recurrent_dropout: float
    weight_dropout: float
    train_state: bool
    dtype: DTypeLike
    seed: int | None
    backend: str


class _Plain(Recurrent[State]):
    """A cell without arguments of its own."""

    def __init__(self, input_size: int, hidden_size: int, num_layers: int = 1, **common: Unpack[Common]):
        super().__init__(input_size, hidden_size, num_layers, **common)


class Jordan(Recurrent[np.ndarray]):
    """The recurrent network of Jordan (1986): what comes out goes into the next step.

        h_t = act(W_ih x_t + b_ih + W_hh y_(t-1) + b_hh)
        y_t = g(W_hr h_t + b_hr)

    input_size, hidden_size, output_size, num_layers : I, H, O and how many layers are stacked.
    activations : act and g, each as in `LSTM`; ("affine", 1, 0) is none.
    clip : as in `LSTM`, of the sum inside act.

    The other arguments are those of `LSTM`. Weights weight_ih_l{k} (H, I; above the first layer H, D*O), weight_hh_l{k}
    (H, O), bias_ih_l{k}, bias_hh_l{k} (H,), weight_hr_l{k} (O, H), bias_hr_l{k} (O,). Outputs have O elements, and the
    state is the array y (num_layers * D, B, O).

    >>> jordan = Jordan(3, 32, 5)
    """

    _family = "jordan"
    _cell_options = {"activations": FORMS["jordan"].activations, "clip": None}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        output_size: int,
        num_layers: int = 1,
        *,
        activations: Sequence[Activation] = FORMS["jordan"].activations,
        clip: float | None = None,
        **common: Unpack[Common],
    ):
        self.output_size = self._output_size = check.integer("output_size", output_size, 1, check.MOST)
        chosen = _options.of("jordan", {"activations": activations, "clip": clip})
        self.clip, self.activations = chosen.clip, tuple(activation.entry for activation in chosen.activations)
        super().__init__(input_size, hidden_size, num_layers, **common)


class IndRNN(Recurrent[np.ndarray]):
    """Independently recurrent network (Li et al. 2018): of the last step each unit sees itself alone.

        h_t = act(W_ih x_t + b_ih + u * h)

    activations : (act,), as in `LSTM`; the paper has "relu", haste "tanh".
    clip : as in `LSTM`.

    The other arguments are those of `LSTM`. Weights weight_ih_l{k} (H, I), bias_ih_l{k} (H,), weight_u_l{k} (H,), which
    starts at U(0, 1) as in haste. A state is the array h.

    >>> indrnn = IndRNN(3, 32, 2, activations=("relu",))
    """

    _family = "indrnn"
    _cell_options = {"activations": FORMS["indrnn"].activations, "clip": None}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        activations: Sequence[Activation] = FORMS["indrnn"].activations,
        clip: float | None = None,
        **common: Unpack[Common],
    ):
        chosen = _options.of("indrnn", {"activations": activations, "clip": clip})
        self.clip, self.activations = chosen.clip, tuple(activation.entry for activation in chosen.activations)
        super().__init__(input_size, hidden_size, num_layers, **common)

    _starts = {"weight_u": (0.0, 1.0)}


class SRU(Recurrent[np.ndarray]):
    """Simple recurrent unit (Lei et al. 2018): no recurrent product, the gates see the old c.

        u, a_f, a_r, s = W_ih x_t                     in four blocks
        f   = sigmoid(a_f + v_f * c + b_f)
        r   = sigmoid(a_r + v_r * c + b_r)
        c_t = f * c + (1 - f) * u
        h_t = r * act(c_t) + (1 - r) * s

    activations : (act,), as in `LSTM`; ("affine", 1, 0), none, is what the authors' code does by default.

    The other arguments are those of `LSTM`; bias must be True. Weights weight_ih_l{k} (4H, I) in the order u, f, r, s;
    weight_cf_l{k}, weight_cr_l{k}, bias_f_l{k}, bias_r_l{k} (H,). Where I = H the authors take x itself for s: that is
    an identity matrix in the last block. The state is the array c; h is only what comes out. "gates" in `return_all` is
    u, f, r, s.

    >>> sru = SRU(3, 32, 4)
    """

    _family = "sru"
    _cell_options = {"activations": FORMS["sru"].activations}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        activations: Sequence[Activation] = FORMS["sru"].activations,
        **common: Unpack[Common],
    ):
        chosen = _options.of("sru", {"activations": activations})
        self.activations = tuple(activation.entry for activation in chosen.activations)
        super().__init__(input_size, hidden_size, num_layers, **common)


class AUGRU(Recurrent[np.ndarray]):
    """GRU whose update gate an attention scales (Zhou et al. 2019, oneDNN): where it is 1 the step is taken whole.

        r, z, n as in `GRU`
        z~  = (1 - a_t) * z            a_t: the attention of step t, one number for each sequence
        h_t = (1 - z~) * n + z~ * h

    reset_after : as in `GRU`.

    Called with `attention`, (T, B) in x's layout, in every layer the same; `step` takes it as (B,). `backward` returns
    its gradient as a fourth value. The other arguments and the weights are those of `GRU`. "gates" in `return_all` is
    r, z, n, with the z that attention has not scaled.

    >>> augru = AUGRU(3, 32)
    >>> y, h = augru(x, attention=a)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_after: bool = True,
        **common: Unpack[Common],
    ):
        self.reset_after = check.boolean("reset_after", reset_after)
        self._family = f"augru_reset_{'after' if self.reset_after else 'before'}"
        super().__init__(input_size, hidden_size, num_layers, **common)

    def __call__(  # type: ignore[override]
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        attention: ArrayLike,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        return_all: Sequence[str] = (),
    ) -> tuple[Any, ...]:
        """As `elman.LSTM`'s, with attention (T, B)."""
        return self._call(x, state, lengths, reset, return_all, attention)

    def forward(  # type: ignore[override]
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        attention: ArrayLike,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        rng: int | np.random.Generator | None = None,
        recompute: bool = False,
        tbptt: int | None = None,
        burn_in: int = 0,
        return_all: Sequence[str] = (),
    ) -> tuple[Any, ...]:
        """As `elman.LSTM`'s, with attention (T, B)."""
        return self._train(x, state, lengths, reset, rng, recompute, tbptt, burn_in, return_all, attention)

    def step(  # type: ignore[override]
        self, x_t: ArrayLike, state: np.ndarray, out: np.ndarray | None = None, *, attention: ArrayLike
    ) -> np.ndarray:
        """As `elman.LSTM`'s, with attention (B,), without a batch a number."""
        return self._step_with(x_t, state, out, attention)


class MinGRU(_Plain[np.ndarray]):
    """minGRU (Feng et al. 2024): the gate and the candidate see x alone, so there is no recurrent product.

        z   = sigmoid(W_iz x_t + b_iz)
        h_t = (1 - z) * h + z * g(W_ih x_t + b_ih)
        g(a) = a + 0.5 for a >= 0, else sigmoid(a)              so that h stays positive

    The arguments are those of `LSTM`. Weights weight_ih_l{k} (2H, I) and bias_ih_l{k} (2H,), in the order hidden, gate.
    A state is the array h. The authors compute in logarithms, for which h0 must be positive; here it may be anything.
    "gates" in `return_all` is g(...), z.

    >>> min_gru = MinGRU(3, 32, 2)
    """

    _family = "min_gru"


class MinLSTM(_Plain[np.ndarray]):
    """minLSTM (Feng et al. 2024): as `MinGRU`, with two gates that are scaled so that together they are 1.

        f, i = sigmoid(W_i? x_t + b_i?)
        h_t  = f / (f + i) * h + i / (f + i) * g(W_ih x_t + b_ih)       g as in `MinGRU`

    The arguments are those of `LSTM`. Weights weight_ih_l{k} (3H, I) and bias_ih_l{k} (3H,), in the order hidden, f, i.
    A state is the array h. f / (f + i) is computed so that it is right where f and i are too small for the dtype.
    "gates" in `return_all` is g(...), f / (f + i), i / (f + i).

    >>> min_lstm = MinLSTM(3, 32, 2)
    """

    _family = "min_lstm"


class QRNN(_Plain[np.ndarray]):
    """Quasi-recurrent network (Bradbury et al. 2017) with fo-pooling: no recurrent product.

        z    = tanh(W_iz x_t + b_iz)
        f, o = sigmoid(W_i? x_t + b_i?)
        c_t  = f * z + (1 - f) * c
        h_t  = o * c_t

    f is the share of the new, as in the authors' code; their paper has f and 1 - f the other way round. The window is
    1, that is, a step sees x_t alone: for a wider one put a `TDNN` in front, which does not look ahead.

    zoneout : (0, for c), as in `LSTM`, but in the gate, as in the paper: in `forward` f is 0 with this probability,
        in a call and in `step` it is smaller by this share. So h_t sees the c that stays.

    The other arguments are those of `LSTM`. Weights weight_ih_l{k} (3H, I) and bias_ih_l{k} (3H,), in the order z, f,
    o. The state is the array c; h is only what comes out. "gates" in `return_all` is z, f, o, with the f that zoneout
    has not changed.

    >>> qrnn = QRNN(3, 32, 2, zoneout=(0.0, 0.1))
    """

    _family = "qrnn"


class MGU(Recurrent[np.ndarray]):
    """Minimal gated unit (Zhou et al. 2016): a `GRU` with one gate, as flax.linen.MGUCell.

        f   = sigmoid(W_if x_t + b_if + W_hf h + b_hf)
        n   = tanh(W_in x_t + b_in + f * (W_hn h + b_hn))       reset_gate=True
        n   = tanh(W_in x_t + b_in + W_hn h)                    reset_gate=False
        h_t = (1 - f) * n + f * h

    reset_gate : whether f is at the recurrent product too. Without it b_hn stays in the weights, has no effect and
        gradient 0, since there is b_in at the same place.

    The other arguments are those of `LSTM`. Weights as there, with 2H rows in the order f, n. A state is the array h.
    In flax the bias of f starts at 1.

    >>> mgu = MGU(3, 32, reset_gate=False)
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        reset_gate: bool = True,
        **common: Unpack[Common],
    ):
        self.reset_gate = check.boolean("reset_gate", reset_gate)
        self._family = "mgu" if self.reset_gate else "mgu_no_reset"
        super().__init__(input_size, hidden_size, num_layers, **common)


class CfC(Recurrent[np.ndarray]):
    """Closed-form continuous-time network (Hasani et al. 2022): steps may lie any time dt apart.

        p, q, a, b = W_ih x_t + b_ih + W_hh h + b_hh            in four blocks
        t   = sigmoid(a * dt + b)
        h_t = (1 - t) * tanh(p) + t * tanh(q)                   mode="default"
        h_t = tanh(p) + t * tanh(q)                             mode="no_gate"
        h_t = A - A * exp(-dt * (|tau| + |p|)) * p              mode="pure", where p is the only block

    There is no backbone: this is ncps.torch.CfC with backbone_layers=0.

    Called with `timespans`, dt of each step and sequence, (T, B) in x's layout, in every layer the same; `step` takes
    it as (B,). None is 1. `backward` returns its gradient as a fourth value, where it was given. `step_many` takes 1.

    mode : which of the three.

    The other arguments are those of `LSTM`. Weights as there, with 4H rows in the order p, q, a, b (ncps: ff1, ff2,
    time_a, time_b); with mode="pure" H rows, weight_tau_l{k} and weight_a_l{k} (H,), which start at 0 and 1 as in ncps.
    |0| has slope 0 there and here, so a tau of 0 stays. A state is the array h. "gates" in `return_all` is tanh(p),
    tanh(q), a, t; mode="pure" has none.

    >>> cfc = CfC(3, 32)
    >>> y, h = cfc(x, timespans=dt)
    """

    _starts = {"weight_tau": (0.0, 0.0), "weight_a": (1.0, 1.0)}

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        mode: str = "default",
        **common: Unpack[Common],
    ):
        self.mode = check.choice("mode", mode, ("default", "no_gate", "pure"))
        self._family = f"cfc_{self.mode}"
        super().__init__(input_size, hidden_size, num_layers, **common)

    def __call__(  # type: ignore[override]
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        timespans: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        return_all: Sequence[str] = (),
    ) -> tuple[Any, ...]:
        """As `elman.LSTM`'s, with timespans (T, B) or None."""
        return self._call(x, state, lengths, reset, return_all, timespans)

    def forward(  # type: ignore[override]
        self,
        x: ArrayLike,
        state: ArrayLike | None = None,
        *,
        timespans: ArrayLike | None = None,
        lengths: ArrayLike | None = None,
        reset: ArrayLike | None = None,
        rng: int | np.random.Generator | None = None,
        recompute: bool = False,
        tbptt: int | None = None,
        burn_in: int = 0,
        return_all: Sequence[str] = (),
    ) -> tuple[Any, ...]:
        """As `elman.LSTM`'s, with timespans (T, B) or None."""
        return self._train(x, state, lengths, reset, rng, recompute, tbptt, burn_in, return_all, timespans)

    def step(  # type: ignore[override]
        self, x_t: ArrayLike, state: np.ndarray, out: np.ndarray | None = None, *, timespans: ArrayLike | None = None
    ) -> np.ndarray:
        """As `elman.LSTM`'s, with timespans (B,), without a batch a number, or None."""
        if timespans is None:
            return super().step(x_t, state, out)
        return self._step_with(x_t, state, out, timespans)


class SLSTM(_Plain[SLSTMState]):
    """sLSTM, the scalar cell of xLSTM (Beck et al. 2024): exponential gates, stabilised so that none overflows.

        l   = log(sigmoid(a_f)) + m                a_? = W_i? x_t + b_i? + W_h? h + b_h?
        m_t = max(a_i, l)
        i   = exp(a_i - m_t)
        f   = exp(l - m_t)
        c_t = f * c + i * tanh(a_z)
        n_t = f * n + i
        h_t = sigmoid(a_o) * c_t / n_t

    A sequence whose n are all 0 is at its beginning: there m_t is a_i, and f at most 1. On purpose this looks at each
    sequence for itself; the authors' code looks at the whole batch, so that there a sequence which begins later, after
    a reset say, depends on its neighbours. Where a_i = l exactly, the gradient by m_t goes to a_i.

    The other arguments are those of `LSTM`, without zoneout of c and without train_state, since c, n and m have meaning
    only together. Weights as there, with blocks of rows in the order i, f, z, o; weight_hh is one head of the authors',
    whose weights between heads are 0. A state is `SLSTMState`, which unpacks as (h, c, n, m). `return_all` has "c" (in
    units of e^m) and "gates": i, f, tanh(a_z), sigmoid(a_o).

    >>> slstm = SLSTM(3, 32)
    >>> y, (h, c, n, m) = slstm(x)
    """

    _family = "slstm"

    @staticmethod
    def _bundle(*parts: Any) -> SLSTMState:
        return SLSTMState(*parts)
