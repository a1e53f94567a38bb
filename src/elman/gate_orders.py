"""Weights of other systems into elman's order of gates and back.

    lstm.load_params({
        "weight_ih_l0": from_order(kernel, "lstm", "keras", axis=1).T,            # kernel (I, 4H)
        "weight_hh_l0": from_order(recurrent_kernel, "lstm", "keras", axis=1).T,  # recurrent_kernel (H, 4H)
        "bias_ih_l0": from_order(bias, "lstm", "keras"),                          # bias (4H,)
        "bias_hh_l0": np.zeros_like(bias),                                        # the system has one bias
    })

Blocks are put in order, and negated where a system's GRU mixes the other way round. Nothing is transposed, summed or
split here. `ORDERS` is the one table; no file is read.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from . import _checks
from ._types import Array

__all__ = ["ORDERS", "from_order", "to_order"]

_Weights = TypeVar("_Weights", Array, dict[str, Array], tuple[Array, ...], list[Array])

ORDERS: Mapping[str, Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {
        system: MappingProxyType({cell: tuple(order.split()) for cell, order in orders.items()})
        for system, orders in {
            "elman": {"lstm": "i f g o", "gru": "r z n", "gru_bias": "r z n hn", "peephole": "i f o"},
            "pytorch": {"lstm": "i f g o", "gru": "r z n"},
            "keras": {"lstm": "i f g o", "gru": "z r n"},
            "onnx": {"lstm": "i o f g", "gru": "z r n", "peephole": "i o f"},
            "onednn": {"lstm": "i f g o", "gru": "z r n", "gru_bias": "z r n hn", "peephole": "i f o"},
            "tflite": {"lstm": "i f g o", "peephole": "i f o"},
            "haste": {"lstm": "i g f o", "gru": "z r n"},
            "flashrnn": {"lstm": "i f g o", "gru_bias": "hn r z n"},
            "flashrnn_W": {"gru": "r z n"},  # its GRU has one order for the input's weights
            "flashrnn_R": {"gru": "n r z"},  # and another for the recurrent ones
            "flax": {"lstm": "i f g o", "gru": "r z n"},
            "equinox": {"lstm": "i f g o", "gru": "r z n"},
            "thinc": {"lstm": "f i o g"},
            "dynet": {"lstm": "i f o g", "gru": "-z r n"},
            "rtneural": {"lstm": "i f g o", "gru": "z r n"},
            "rnnoise": {"gru": "z r n"},
            "ncnn": {"lstm": "i f o g", "gru": "r z n", "gru_bias": "r z n hn"},
            "openvino": {"lstm": "f i g o", "gru": "z r n"},
            "lyra": {"gru": "r z n"},
            "rust-lstm": {"gru": "r -z n"},
        }.items()
    }
)
"""system -> cell -> its gates in the order of their blocks, in elman's letters, as its own source or manual has it.

LSTM: i, f, g (the candidate; elsewhere c or z), o. GRU: r, z (the update gate, elsewhere u), n (the candidate,
elsewhere h, c or o). "-z" marks a GRU that computes h' = (1 - z) * h + z * n: since 1 - sigmoid(a) = sigmoid(-a), it is
elman's h' = (1 - z) * n + z * h with the weights and biases of z negated. Where a system keeps its gates apart (TFLite,
flax's LSTMCell, DyNet's GRU, rust-lstm), the order is the one in which it declares them.

"peephole" is the LSTM's diagonal weights to each gate: weight_ci, weight_cf, weight_co. "gru_bias" is the one bias with
four blocks of a GRU that resets after the product: those of r and z, then the candidate's bias_ih (n) and bias_hh (hn).
"""


def from_order(weights: _Weights, cell: str, system: str, *, axis: int = 0) -> _Weights:
    """The system's weights in elman's order.

    weights : an array, float32 or float64, with G blocks of H along `axis`: weights (G*H, I) and (G*H, H), biases
    (G*H,), peepholes (3*H,); or a dict, a tuple or a list of such arrays. With axis=-1 a list may mix Keras' kernels
    (I, G*H) and its biases (G*H,) or (2, 3*H). An array with an axis for the gates alone has H = 1 there.
    cell : "lstm" (G = 4: i, f, g, o), "gru" (3: r, z, n), "peephole" (3: i, f, o) or "gru_bias" (4: r, z, n, hn; then
    bias_ih is the first three blocks, and bias_hh is zero but for its last block, which is the fourth).
    system : a key of `ORDERS` that has this cell.

    Returns new arrays of the same shapes and dtypes, in the same kind of container.

    What a system keeps otherwise is yours to do: ONNX has W (D, G*H, I) and R, with axis=1, but both biases in one
    array (D, 2*G*H), to be split in two first; Keras and haste have kernels (I, G*H), to be transposed; DyNet's LSTM
    adds 1 to the forget gate as it runs, which belongs into elman's bias.

    >>> from_order(np.array([1.0, 2.0, 3.0, 4.0]), "lstm", "onnx")      # i, o, f, g
    array([1., 3., 4., 2.])

    Raises ValueError for an unknown cell or system, a size that is not G blocks, an axis that is not there; TypeError
    for other dtypes.
    """
    elman, order = _orders(cell, system)
    converted: _Weights = _rearranged(weights, order, elman, axis)
    return converted


def to_order(weights: _Weights, cell: str, system: str, *, axis: int = 0) -> _Weights:
    """Weights in elman's order in the system's: the inverse of `from_order`, with the same arguments and errors."""
    elman, order = _orders(cell, system)
    converted: _Weights = _rearranged(weights, elman, order, axis)
    return converted


def _orders(cell: str, system: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """elman's and the system's."""
    _checks.choice("cell", cell, ORDERS["elman"])
    _checks.choice("system", system, [name for name, orders in ORDERS.items() if cell in orders])
    return ORDERS["elman"][cell], ORDERS[system][cell]


def _rearranged(weights: Any, given: tuple[str, ...], wanted: tuple[str, ...], axis: int) -> Any:
    axis = _checks.integer("axis", axis, -_checks.MOST)
    if isinstance(weights, Mapping):
        return {name: _array(f"weights[{name!r}]", a, given, wanted, axis) for name, a in weights.items()}
    if isinstance(weights, (tuple, list)):
        arrays = [_array(f"weights[{i}]", a, given, wanted, axis) for i, a in enumerate(weights)]
        return tuple(arrays) if isinstance(weights, tuple) else arrays
    return _array("weights", weights, given, wanted, axis)


def _array(name: str, value: Any, given: tuple[str, ...], wanted: tuple[str, ...], axis: int) -> Array:
    a = _checks.floats(name, value)
    if not -a.ndim <= axis < a.ndim:
        raise ValueError(f"axis: expected an axis of {name}, which has {a.ndim}, got {axis}")
    size = a.shape[axis]
    if size == 0 or size % len(given):
        gates = ", ".join(gate.lstrip("-") for gate in given)
        wanted_size = f"a multiple of {len(given)} ({gates}) along axis {axis}"
        raise ValueError(f"{name}: expected {wanted_size}, got shape {a.shape}")
    blocks = dict(zip(given, np.split(a, len(given), axis)))
    return np.concatenate([blocks[g] if g in blocks else -blocks[_negated(g)] for g in wanted], axis)


def _negated(gate: str) -> str:
    return gate[1:] if gate.startswith("-") else f"-{gate}"
