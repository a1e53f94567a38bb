"""Custom: a layer from a cell that its user writes in NumPy. Slow, but with everything that the other layers do.

No arithmetic: the time loop is that of elman.reference, the layer that of layers.py. Here: what a cell must have, and
the checks of what its functions return.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property, partial
from typing import Any, Protocol

import numpy as np

from . import _checks as check
from . import _options, reference
from ._locks import ForkSafeLock
from ._types import Array, Arrays
from .layers import Recurrent

__all__ = ["Cell", "Custom"]


class Cell(Protocol):
    """What `Custom` needs of a cell: a module, a class with static methods or an object, with these names.

    Of the n sequences that take part in a step: x_t (n, I), every part of the state (n, H). n may be 0.
    """

    # Names of the parts of the state: ("h",), ("h", "c"), ("h", "n"). The first is "h", what comes out; "c", which has
    # a zoneout of its own, can only be the second.
    state: tuple[str, ...]

    def weights(self, I: int, H: int, /) -> Mapping[str, tuple[int, ...]]:
        """Names and shapes of the weights, at least one, for I inputs and H hidden units; the names depend on neither.
        None is called like a part of the state with 0 behind it ("h0"), as the initial state is that a layer learns."""

    def step(self, x_t: Array, state: Arrays, weights: Arrays, /) -> tuple[Arrays, Any]:
        """(the new state, whatever step_backward needs). weights: the arrays, in the order of their names."""

    def step_backward(
        self, dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Any, /
    ) -> tuple[Array, Arrays, Arrays]:
        """(dx_t, dstate, dweights): the gradients by x_t, by the state before the step, and what the step adds to those
        by the weights. dstate_t: that by the new state; state: the one before the step."""


class Custom(Recurrent[Any]):
    """A recurrent layer from a cell of one's own, for research: stacks, directions, lengths, resets, dropout, zoneout,
    tbptt, streaming and training, for two functions in NumPy.

    input_size, hidden_size, num_layers : I, H and how many layers are stacked.
    cell : something with `state`, `weights`, `step` and `step_backward`, see `elman.custom.Cell`.

    The other arguments are those of `LSTM`, but for these, which ask what elman cannot know: bias must be True,
    recurrent_dropout and weight_dropout 0, backend "reference". Weights are named as by the cell, with "_l{k}" and for
    the second direction "_reverse" behind it; they start at U(-1/sqrt(H), 1/sqrt(H)). A state is an array, of a cell
    with several parts a tuple of arrays.

    `elman.save` does not know it, since a file holds no functions: keep the weights by `save_params`.
    `elman.diagnostics.check_gradients` tells whether step_backward is right.

    >>> class Plain:
    ...     state = ("h",)
    ...     def weights(I, H):
    ...         return {"weight_ih": (H, I), "weight_hh": (H, H)}
    ...     def step(x_t, state, weights):
    ...         (h,), (W, U) = state, weights
    ...         h_t = np.tanh(x_t @ W.T + h @ U.T)
    ...         return (h_t,), h_t
    ...     def step_backward(dstate_t, x_t, state, weights, h_t):
    ...         (dh_t,), (h,), (W, U) = dstate_t, state, weights
    ...         da = dh_t * (1 - h_t**2)
    ...         return da @ W, (da @ U,), (da.T @ x_t, da.T @ h)
    >>> layer = elman.Custom(3, 32, 2, cell=Plain)
    """

    cell: Any
    _not_pickled = (*Recurrent._not_pickled, "_own_pack")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        *,
        cell: Cell,
        backend: str = "reference",
        **common: Any,
    ):
        self.cell = cell
        for name in ("step", "step_backward", "weights"):
            if not callable(getattr(cell, name, None)):
                raise TypeError(f"cell: expected a function {name}, got {type(cell).__name__} without")
        _check_state(getattr(cell, "state", None))
        _check_names(cell.weights(1, 1), cell.state)
        if backend != "reference":
            raise ValueError(f"backend: expected 'reference', since this cell is written in NumPy, got {backend!r}")
        if common.get("bias", True) is not True:
            raise ValueError("bias: expected True: a cell of one's own says itself what weights it has")
        for name in ("recurrent_dropout", "weight_dropout"):
            if common.get(name, 0.0) != 0:
                raise ValueError(f"{name}: expected 0, since elman does not know what is recurrent in this cell")
        super().__init__(input_size, hidden_size, num_layers, backend=backend, **common)

    @cached_property
    def _form(self) -> _options.Form:
        return _options.Form(1, letters=self.cell.state, is_recurrent=False, own=self._shapes)

    @cached_property
    def _kinds(self) -> list[str]:
        return list(self.cell.weights(1, 1))

    def _shapes(self, I: int, H: int) -> dict[str, tuple[int, ...]]:
        """The cell's own, checked."""
        shapes = self.cell.weights(I, H)
        if not isinstance(shapes, Mapping) or list(shapes) != self._kinds:
            raise ValueError(f"cell: weights({I}, {H}): expected the names {self._kinds}, as ever, got {shapes!r}")
        return {name: _shape(f"cell: weights({I}, {H}): {name}", shape) for name, shape in shapes.items()}

    def _weights(self, params: Any, k: int, d: int) -> list[Any]:
        return [params[name] for name in self._names(k, d)]

    def _bind(self) -> None:
        cell = reference.own_cell(self._form, self._checked_step, self._checked_step_backward)
        self._own_pack = partial(reference.own_pack, cell)
        self._forward = partial(reference.own_forward, cell)
        self._backward = partial(reference.cell_backward, grad_clip=self.grad_clip)
        self._step = partial(reference.own_step, cell)
        self._drawing = ForkSafeLock()

    def _packed(self, params: Any) -> tuple[list[Any], Any]:
        stack = []
        for k in range(self.num_layers):
            weights = [self._weights(params, k, d) for d in range(self._directions)]
            stack.append(self._own_pack(self._width if k else self.input_size, self.hidden_size, weights))
        return stack, None

    @staticmethod
    def _bundle(*parts: Any) -> Any:
        return parts[0] if len(parts) == 1 else parts

    def _checked_step(self, x_t: Array, state: Arrays, weights: Arrays) -> tuple[Arrays, Any]:
        result = self.cell.step(x_t, state, weights)
        if not isinstance(result, tuple) or len(result) != 2:
            raise TypeError(f"step: expected (state, saved), got {_kind(result)}")
        new, saved = result
        return _like("step: state", new, self.cell.state, state), saved

    def _checked_step_backward(
        self, dstate_t: Arrays, x_t: Array, state: Arrays, weights: Arrays, saved: Any
    ) -> tuple[Array, Arrays, Arrays]:
        result = self.cell.step_backward(dstate_t, x_t, state, weights, saved)
        if not isinstance(result, tuple) or len(result) != 3:
            raise TypeError(f"step_backward: expected (dx_t, dstate, dweights), got {_kind(result)}")
        dx_t, dstate, dweights = result
        (dx_t,) = _like("step_backward", (dx_t,), ("dx_t",), (x_t,))
        dstate = _like("step_backward: dstate", dstate, self.cell.state, state)
        return dx_t, dstate, _like("step_backward: dweights", dweights, self._kinds, weights)


def _check_state(state: Any) -> None:
    if not isinstance(state, tuple) or not state or not all(isinstance(n, str) and n.isidentifier() for n in state):
        raise TypeError(f"cell: state: expected a tuple of names, such as ('h',), got {state!r}")
    if len(set(state)) < len(state):
        raise ValueError(f"cell: state: expected each name once, got {state!r}")
    if state[0] != "h":
        raise ValueError(f"cell: state: expected 'h' first, which is what comes out, got {state!r}")
    if "c" in state[2:]:
        raise ValueError(f"cell: state: expected 'c' as the second part, if there is one, got {state!r}")


def _check_names(shapes: Any, state: tuple[str, ...]) -> None:
    if not isinstance(shapes, Mapping) or not all(isinstance(n, str) and n.isidentifier() for n in shapes):
        raise TypeError(f"cell: weights: expected a dict from names to shapes, got {shapes!r}")
    if not shapes:
        raise ValueError("cell: weights: expected at least one, got none")
    for name in shapes:
        if name in [f"{letter}0" for letter in state]:
            raise ValueError(f"cell: weights: expected another name than that of an initial state, got {name!r}")


def _shape(name: str, shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, tuple):
        raise TypeError(f"{name}: expected a tuple of integers, got {shape!r}")
    return tuple(check.integer(f"{name}: size", size, 1) for size in shape)


def _like(what: str, values: Any, names: Any, models: Arrays) -> Arrays:
    """Arrays of the shapes and dtypes of others."""
    if not isinstance(values, (tuple, list)) or len(values) != len(models):
        raise TypeError(f"{what}: expected ({', '.join(names)}), got {_kind(values)}")
    for name, value, model in zip(names, values, models, strict=True):
        if not isinstance(value, np.ndarray) or value.shape != model.shape or value.dtype != model.dtype:
            raise ValueError(f"{what}: {name}: expected {model.dtype} {model.shape}, got {_kind(value)}")
    return tuple(values)


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape}"
    return f"a {type(value).__name__} of {len(value)}" if isinstance(value, (tuple, list)) else type(value).__name__
