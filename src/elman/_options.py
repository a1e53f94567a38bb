"""What a cell can be asked to do otherwise than the plain equations say: activations, clipping, coupled gates.

Checked here once for the reference and for the kernels. No arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

from . import _checks

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
LARGEST = 3.4e38  # of alpha and beta, which must fit float32 too
ROLES = ("gates", "candidate", "output")


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

    activations: tuple[Chosen, ...]  # of gates, candidate and output, as far as the cell has them
    coupled: str | None = None
    clip: float | None = None
    cell_clip: float | None = None


LSTM_ACTIVATIONS = ("sigmoid", "tanh", "tanh")
GRU_ACTIVATIONS = ("sigmoid", "tanh")
LSTM = Options(tuple(map(Chosen, LSTM_ACTIVATIONS)))
_RNN = {name: Options((Chosen(name),)) for name, numbers in ACTIVATIONS.items() if not numbers}
GRU = Options(tuple(map(Chosen, GRU_ACTIVATIONS)))


def lstm(activations: Any, coupled: Any, clip: Any, cell_clip: Any) -> Options:
    """ValueError, TypeError: an option that is wrong, named. What nobody asked for costs a call nothing."""
    if activations is LSTM_ACTIVATIONS and coupled is clip is cell_clip is None:
        return LSTM
    return Options(
        _all(activations, LSTM.activations), _coupled(coupled), limit("clip", clip), limit("cell_clip", cell_clip)
    )


def gru(activations: Any, clip: Any) -> Options:
    if activations is GRU_ACTIVATIONS and clip is None:
        return GRU
    return Options(_all(activations, GRU.activations), clip=limit("clip", clip))


def rnn(nonlinearity: Any, clip: Any) -> Options:
    if clip is None and isinstance(nonlinearity, str) and nonlinearity in _RNN:
        return _RNN[nonlinearity]
    return Options((_one("nonlinearity", nonlinearity),), clip=limit("clip", clip))


def _all(value: Any, default: tuple[Chosen, ...]) -> tuple[Chosen, ...]:
    roles = ROLES[: len(default)]
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


def _coupled(value: Any) -> str | None:
    if value is not None:
        value = str(_checks.choice("coupled", value, COUPLED[1:]))
    return value  # type: ignore[no-any-return]


def limit(name: str, value: Any) -> float | None:
    """A clip: a positive number, or None."""
    if value is None:
        return None
    return _checks.number_below(name, value, 0, open_below=True)


def return_all(value: Any, family: str) -> tuple[str, ...]:
    """What a cell of this family can return for every step."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"return_all: expected a tuple of names, got {value!r}")
    possible = {"lstm": ("c", "gates"), "rnn": ()}.get(family, ("gates",))
    for name in value:
        if name not in possible:
            wanted = " and ".join(map(repr, possible)) or "nothing, since it has neither a cell state nor gates"
            raise ValueError(f"return_all: expected {wanted}, got {name!r}")
    if len(set(value)) < len(value):
        raise ValueError(f"return_all: expected each name once, got {value!r}")
    return tuple(value)
