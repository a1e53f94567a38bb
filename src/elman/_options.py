"""What a cell can be asked to do otherwise than the plain equations say: activations, clipping, coupled gates.

Checked here once for the reference and for the kernels. No arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _checks
from ._types import Array

Activation: TypeAlias = "str | tuple[str, float] | tuple[str, float, float]"

# The activations of ONNX in lower case, with the alpha and beta that each takes and what they are if not given. The
# order is that of elman_activations in csrc/elman.h.
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "tanh": (),
    "sigmoid": (),
    "relu": (),
    "affine": (1.0, 0.0),  # alpha x + beta
    "leakyrelu": (0.01,),  # x for x >= 0, else alpha x
    "thresholdedrelu": (1.0,),  # x for x > alpha, else 0
    "scaledtanh": (1.0, 1.0),  # alpha tanh(beta x)
    "hardsigmoid": (0.2, 0.5),  # alpha x + beta between 0 and 1
    "elu": (1.0,),  # x for x >= 0, else alpha (e^x - 1)
    "softsign": (),  # x / (1 + |x|)
    "softplus": (),  # log(1 + e^x)
}
COUPLED = (None, "f=1-i", "i=1-f")
PEEPHOLES = ("weight_ci", "weight_cf", "weight_co")
Zoneout: TypeAlias = "tuple[float | Array, float | Array]"  # of h and of c: the share, or which units, stay as they are
NO_ZONEOUT = (0.0, 0.0)
LARGEST = 3.4e38  # of alpha and beta, which must fit float32 too
ROLES = ("gates", "candidate", "output", "projection")


class Form(NamedTuple):
    """What the arrays of a family of cells look like; the arithmetic is in reference.py and csrc/cells/.

    A direction's weights are a tuple (weight_ih (G*H, I), weight_hh (G*H, R), bias_ih (G*H,), bias_hh (G*H,)), with
    None for what the family has not, and the others behind them. R is H unless the cell projects its h.
    """

    gates: int  # G: blocks of H rows in weight_ih
    letters: tuple[str, ...] = ("h",)  # the parts of a state, the first of which comes out, if it is not c
    is_recurrent: bool = True  # whether there are weight_hh and bias_hh
    has_bias: bool = True
    late: tuple[str, ...] = ()  # of bias_ih and bias_hh those that are not inside the products, but behind norms
    beside: tuple[str, ...] = ()  # of the units' weights those that stand beside the late bias_ih, as parts of one sum
    units: tuple[tuple[str, int], ...] = ()  # further weights (blocks * H,) and their blocks
    optional: tuple[tuple[str, int], ...] = ()  # the same, all there or none
    projection: tuple[str, ...] = ()  # "weight_hr" (R, H), "bias_hr" (R,)
    is_projected: bool = False  # whether they must be there
    row: str = ""  # the number that comes with each step of each sequence ...
    needs_row: bool = False  # ... and whether there is none that could stand for it
    activations: tuple[Activation, ...] = ()  # as they are if nobody asks for others ...
    roles: tuple[int, ...] = ()  # ... and which of ROLES they have in the kernels
    takes: tuple[str, ...] = ()  # which other options have meaning
    returns: tuple[str, ...] = ()  # what can be had of every step, beside y; "gates" are the first slots behind c, ...
    takes_stay: bool = False  # whether zoneout of c is the cell's own matter, since its h sees the c that stays
    keeps_c: str = ""  # why zoneout of c has no meaning, and neither has an initial state that is learned
    own: Callable[[int, int], Mapping[str, tuple[int, ...]]] | None = None  # of a cell of one's own: all its weights

    def names(self, count: int) -> tuple[str, ...] | None:
        """Of so many weights, in order."""
        if self.own:
            return tuple(self.own(1, 1))
        for optional in ((), self.optional):
            for projection in (self.projection,) if self.is_projected else ((), self.projection):
                names = (*HEAD, *(name for name, _ in (*self.units, *optional)), *projection)
                if len(names) == count:
                    return names
        return None

    def shape(self, name: str, I: int, H: int, R: int) -> tuple[int, ...] | None:
        """None: this family has no such weight."""
        if self.own:
            return self.own(I, H)[name]
        blocks = dict((*self.units, *self.optional))
        if name in blocks:
            return (blocks[name] * H,)
        rows = self.gates * H
        return {
            "weight_ih": (rows, I),
            "weight_hh": (rows, R) if self.is_recurrent else None,
            "bias_ih": (rows,) if self.has_bias or "bias_ih" in self.late else None,
            "bias_hh": (rows,) if self.has_bias and self.is_recurrent else None,
            "weight_hr": (R, H),
            "bias_hr": (R,),
        }[name]

    def of_units(self) -> tuple[tuple[str, int], ...]:
        """What the kernels have as weights of each unit, in their order; those `beside` are in their bias_ih."""
        units = (*self.units, *self.optional)
        return (*((name, self.gates) for name in self.late), *((n, k) for n, k in units if n not in self.beside))

    def described(self) -> str:
        optional = [f"[{', '.join(names)}]" for names in (tuple(n for n, _ in self.optional), self.projection) if names]
        if self.is_projected:
            optional = [", ".join(self.projection)]
        return ", ".join((*HEAD, *(name for name, _ in self.units), *optional))


IDENTITY = ("affine", 1.0, 0.0)
HEAD = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")


def _joint(*shifts: str) -> Form:
    """An LSTM with norms over all gates together."""
    norms = (("weight_norm_ih", 4), ("weight_norm_hh", 4), ("weight_norm_c", 1), ("bias_norm_c", 1))
    return Form(
        4,
        ("h", "c"),
        has_bias=False,
        late=("bias_ih",),
        beside=shifts,
        units=(*norms, *((name, 4) for name in shifts)),
        projection=("weight_hr",),
        activations=("sigmoid", "tanh", "tanh"),
        roles=(0, 1, 2),
        takes=("clip", "cell_clip", "proj_clip"),
        returns=("c", "gates"),
    )


FORMS = {
    "rnn": Form(1, activations=("tanh",), roles=(0,), takes=("clip", "leak")),
    "lstm": Form(
        4,
        ("h", "c"),
        optional=tuple((name, 1) for name in PEEPHOLES),
        projection=("weight_hr",),
        activations=("sigmoid", "tanh", "tanh"),
        roles=(0, 1, 2),
        takes=("coupled", "clip", "cell_clip", "proj_clip"),
        returns=("c", "gates"),
    ),
    "gru_reset_after": Form(3, activations=("sigmoid", "tanh"), roles=(0, 1), takes=("clip",), returns=("gates",)),
    "gru_reset_before": Form(3, activations=("sigmoid", "tanh"), roles=(0, 1), takes=("clip",), returns=("gates",)),
    "jordan": Form(
        1,
        ("y",),
        projection=("weight_hr", "bias_hr"),
        is_projected=True,
        activations=("tanh", IDENTITY),
        roles=(0, 3),
        takes=("clip",),
    ),
    "indrnn": Form(1, is_recurrent=False, units=(("weight_u", 1),), activations=("tanh",), roles=(0,), takes=("clip",)),
    "sru": Form(
        4,
        ("c",),
        is_recurrent=False,
        has_bias=False,
        units=(("weight_cf", 1), ("weight_cr", 1), ("bias_f", 1), ("bias_r", 1)),
        activations=(IDENTITY,),
        roles=(2,),
        returns=("c", "gates"),
    ),
    "augru_reset_after": Form(3, row="attention", needs_row=True, returns=("gates",)),
    "min_gru": Form(2, is_recurrent=False, returns=("gates",)),
    "min_lstm": Form(3, is_recurrent=False, returns=("gates",)),
    "qrnn": Form(3, ("c",), is_recurrent=False, returns=("c", "gates"), takes_stay=True),
    "mgu": Form(2, returns=("gates",)),
    "mgu_no_reset": Form(2, returns=("gates",)),
    "cfc_default": Form(4, row="timespans", returns=("gates",)),
    "cfc_no_gate": Form(4, row="timespans", returns=("gates",)),
    "cfc_pure": Form(1, units=(("weight_tau", 1), ("weight_a", 1)), row="timespans"),
    "slstm": Form(
        4,
        ("h", "c", "n", "m"),
        returns=("c", "gates"),
        keeps_c="c, n and m have meaning only together: c and n are in units of e^m, and n is above 0 or all 0",
    ),
    "augru_reset_before": Form(3, row="attention", needs_row=True, returns=("gates",)),
    "lstm_norm_gate": Form(
        4,
        ("h", "c"),
        has_bias=False,
        late=("bias_ih",),
        units=(("weight_norm", 4),),
        optional=tuple((name, 1) for name in PEEPHOLES),
        projection=("weight_hr",),
        activations=("sigmoid", "tanh", "tanh"),
        roles=(0, 1, 2),
        takes=("coupled", "clip", "cell_clip", "proj_clip"),
        returns=("c", "gates"),
    ),
    "lstm_norm_joint": _joint(),
    "lstm_norm_joint_shift": _joint("bias_norm_ih", "bias_norm_hh"),
    "gru_norm": Form(
        3,
        late=("bias_ih", "bias_hh"),
        units=(("weight_norm_ih", 3), ("weight_norm_hh", 3)),
        activations=("sigmoid", "tanh"),
        roles=(0, 1),
        takes=("clip",),
        returns=("gates",),
    ),
}
LAYER_NORMS = ("gate", "joint", "joint_shift")  # of an LSTM: TFLite's, haste's, DyNet's
NORM_STARTS = dict.fromkeys(("weight_norm", "weight_norm_ih", "weight_norm_hh", "weight_norm_c"), (1.0, 1.0)) | (
    dict.fromkeys(("bias_norm_c", "bias_norm_ih", "bias_norm_hh", "bias_ih", "bias_hh"), (0.0, 0.0))
)  # between what the weights begin


class Chosen(NamedTuple):
    """One activation with its numbers."""

    name: str
    alpha: float = 0.0
    beta: float = 0.0

    @property
    def entry(self) -> Activation:
        """As the user writes it."""
        numbers = (self.alpha, self.beta)[: len(ACTIVATIONS[self.name])]
        return (self.name, *numbers) if numbers else self.name  # type: ignore[return-value]


class Options(NamedTuple):
    """What an LSTM, a GRU or an RNN was asked for, checked. Cells take from it what has meaning for them."""

    activations: tuple[Chosen, ...]  # of gates, candidate, output and projection, as far as the cell has them
    coupled: str | None = None
    clip: float | None = None
    cell_clip: float | None = None
    proj_clip: float | None = None
    leak: float = 1.0  # the share of the new h in a leaky RNN


LSTM_ACTIVATIONS = FORMS["lstm"].activations
GRU_ACTIVATIONS = FORMS["gru_reset_after"].activations


def of(family: str, given: Mapping[str, Any]) -> Options:
    """The options of a cell from what the user gave of them.

    ValueError, TypeError: one that is wrong, or that this cell has not, named. What nobody asked for costs a call
    nothing.
    """
    form = FORMS[family]
    asked = {}
    for name, value in given.items():
        default = _DEFAULTS.get(name, form.activations)
        if value is not default and not (name == "leak" and type(value) is float and value == default):
            asked[name] = value
    if not asked:
        return PLAIN[family]
    checked = PLAIN[family]._asdict()
    for name, value in asked.items():
        if name not in (*form.takes, *(("activations",) if form.activations else ())):
            raise ValueError(f"{name}: expected none, since {family} has no such option, got {value!r}")
        if name == "activations":
            checked[name] = _all(value, form)
        elif name == "coupled":
            checked[name] = _checks.choice(name, value, COUPLED[1:])
        elif name == "leak":
            checked[name] = _checks.number(name, value, 0.0, 1.0)
        else:
            checked[name] = limit(name, value)
    return Options(**checked)


def rnn(nonlinearity: Any, clip: Any, leak: Any = 1.0) -> Options:
    """Of an RNN, whose one activation has a name of its own."""
    if clip is None and type(leak) is float and leak == 1 and isinstance(nonlinearity, str) and nonlinearity in _RNN:
        return _RNN[nonlinearity]
    return of("rnn", {"clip": clip, "leak": leak})._replace(activations=(_one("nonlinearity", nonlinearity),))


def _all(value: Any, form: Form) -> tuple[Chosen, ...]:
    roles = [ROLES[role] for role in form.roles]
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"activations: expected one for each of {', '.join(roles)}, got {value!r}")
    if len(value) != len(roles):
        raise ValueError(f"activations: expected {len(roles)}, for {', '.join(roles)}, got {len(value)}")
    return tuple(_one(f"activations: {role}", entry) for role, entry in zip(roles, value, strict=True))


def _one(name: str, entry: Any) -> Chosen:
    given: tuple[Any, ...] = ()
    if isinstance(entry, (tuple, list)) and entry:
        entry, *rest = entry
        given = tuple(rest)
    defaults = ACTIVATIONS[_checks.choice(name, entry, tuple(ACTIVATIONS))]
    if len(given) > len(defaults):
        takes = ("nothing", "alpha", "alpha and beta")[len(defaults)]
        raise ValueError(f"{name}: expected {takes} beside {entry!r}, got {len(given)} numbers")
    numbers = [_checks.number(name, value, -LARGEST, LARGEST) for value in given]
    return Chosen(str(entry), *numbers, *defaults[len(numbers) :])


def row(form: Form, family: str, value: Any, dtype: np.dtype[Any], sizes: tuple[int, ...]) -> Array | None:
    """The numbers that come with each step of each sequence, (T, B), or with one step, (B,)."""
    if not form.row:
        if value is not None:
            raise ValueError(
                f"row: expected None, since {family} takes no number with each step, got {type(value).__name__}"
            )
        return None
    if value is None:
        if form.needs_row:
            raise TypeError(f"{form.row}: expected an array of shape {sizes}, got None")
        return None
    return _checks.array(form.row, value, dtype, sizes, contiguous=True)


def shares(name: str, value: Any) -> tuple[float, float]:
    """Zoneout's probabilities, of h and of c."""
    return tuple(_checks.number(f"{name}: {part}", p, 0.0, 1.0) for part, p in _pair(name, value))  # type: ignore[return-value]


def _pair(name: str, value: Any) -> Iterable[tuple[str, Any]]:
    """What zoneout is for h and for c, by letter."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"{name}: expected a pair, for h and for c, got {value!r}")
    return zip("hc", value, strict=True)


def check_zoneout(name: str, letter: str, form: Form, family: str) -> None:
    """ValueError: zoneout of this part of the state has no meaning."""
    if letter not in form.letters and not (letter == "h" and "y" in form.letters):
        raise ValueError(f"{name}: expected 0, since {family} has no such state")
    if letter == "c" and form.keeps_c:
        raise ValueError(f"{name}: expected 0, since of {family} {form.keeps_c}")


def noise(
    form: Form,
    family: str,
    zoneout: Any,
    recurrent_mask: Any,
    dtype: np.dtype[Any],
    sizes: tuple[int, int, int],
    R: int,
    H: int,
) -> tuple[Any, ...] | None:
    """(recurrent_mask, zoneout of h, zoneout of c), checked; None if there is none of all this."""
    if zoneout is NO_ZONEOUT and recurrent_mask is None:
        return None
    T, B, D = sizes
    checked: list[Any] = []
    for (letter, given), width in zip(_pair("zoneout", zoneout), (R, H), strict=True):
        name = f"zoneout: {letter}"
        if isinstance(given, np.ndarray):
            if given.dtype != bool or given.shape != (T, B, D * width):
                wanted = f"a number, or bool of shape {(T, B, D * width)}"
                raise ValueError(f"{name}: expected {wanted}, got {given.dtype} {given.shape}")
            checked.append(np.ascontiguousarray(given))
        else:
            checked.append(_checks.number(name, given, 0.0, 1.0))
        if not (isinstance(given, (int, float)) and given == 0):
            check_zoneout(name, letter, form, family)
    if recurrent_mask is not None:
        if not form.is_recurrent:
            raise ValueError(f"recurrent_mask: expected None, since {family} has no recurrent product")
        recurrent_mask = _checks.array("recurrent_mask", recurrent_mask, dtype, (D, B, R), contiguous=True)
    return recurrent_mask, *checked


def limit(name: str, value: Any) -> float | None:
    """A clip: a positive number, or None."""
    if value is None:
        return None
    return _checks.number_below(name, value, 0, open_below=True)


_DEFAULTS: dict[str, Any] = {"coupled": None, "clip": None, "cell_clip": None, "proj_clip": None, "leak": 1.0}
PLAIN = {family: Options(tuple(_one("activations", a) for a in form.activations)) for family, form in FORMS.items()}
_RNN = {name: Options((Chosen(name),)) for name, numbers in ACTIVATIONS.items() if not numbers}


def return_all(value: Any, form: Form) -> tuple[str, ...]:
    """What a cell of this form can return for every step."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"return_all: expected a tuple of names, got {value!r}")
    possible = form.returns
    for name in value:
        if name not in possible:
            wanted = " and ".join(map(repr, possible)) or "nothing, since this cell offers y alone of every step"
            raise ValueError(f"return_all: expected {wanted}, got {name!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"return_all: expected each name once, got {value!r}")
    return tuple(value)
