"""The contestants of a case, each made ready to be called and checked against the NumPy reference in float64.

Every contestant is a function (case, inputs) -> (call, read): `call()` is what is timed and does all of the work each
time; `read(call())` names the arrays of its result, with PyTorch's names for gradients of weights. One thread each.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from cases import LAYERS, Case, Inputs, inputs

# Largest difference from the float64 reference, relative to the largest magnitude in the array; some ten times what
# the worst contestant shows. A wrong gate order gives 1e-2 and more.
TOLERANCE = {"float32": 2e-5, "float64": 2e-14}
STEPS_CHECKED = 3  # a step is checked after so many calls, so that the state's way back is checked too

Contestant = Callable[[Case, Inputs], tuple[Callable[[], Any], Callable[[Any], dict[str, np.ndarray]]]]


def contestants(case: Case) -> dict[str, Contestant]:
    """Who takes part: elman and numpy always, then the peers."""
    found: dict[str, Contestant] = {"elman": _elman, "numpy": functools.partial(_elman, backend="reference")}
    if case.lengths is not None:
        found |= {"torch packed": functools.partial(_torch, packed=True), "torch padded": _torch}
    else:
        found["torch"] = _torch
    if case.work == "step":
        found["torch cell"] = _torch_cell
        found["onnxruntime bound"] = functools.partial(_onnxruntime, bound=True)
    if case.work != "train":
        found["onnxruntime"] = _onnxruntime
    return found


def missing(name: str) -> str | None:
    """The module that this contestant lacks here."""
    needed = {"torch": ("torch",), "onnxruntime": ("onnx", "onnxruntime")}.get(name.split()[0], ())
    return next((module for module in needed if importlib.util.find_spec(module) is None), None)


def is_slow(case: Case, name: str) -> bool:
    return case.slow or (case.work == "train" and name == "torch packed")  # 4 s for what others do in 0.2


def ready(case: Case, name: str) -> Callable[[], Any]:
    """What to time, after one look at its result. AssertionError: the result is wrong."""
    call, read = contestants(case)[name](case, inputs(case))
    for _ in range(STEPS_CHECKED if case.work == "step" else 1):
        result = call()
    check(case, name, read(result))
    return call


def check(case: Case, name: str, result: dict[str, np.ndarray]) -> None:
    expected = truth(case)
    absent = expected.keys() - result.keys()
    if name == "torch padded":
        absent -= {"h", "c"}  # it runs on past the ends, so its last state is not the one asked for
    assert not absent, f"{case.name}: {name} gave no {sorted(absent)}"
    for key, value in result.items():
        assert value.shape == expected[key].shape, f"{case.name}: {name}: {key}: {value.shape}, {expected[key].shape}"
        assert value.dtype == case.dtype, f"{case.name}: {name}: {key}: {value.dtype}"
        error = np.abs(value - expected[key]).max() / np.abs(expected[key]).max()
        limit = TOLERANCE[case.dtype]
        assert error <= limit, f"{case.name}: {name}: {key} is off by {error:.1e} of its maximum, limit {limit:.0e}"


@functools.lru_cache(maxsize=1)
def truth(case: Case) -> dict[str, np.ndarray]:
    call, read = _elman(case, inputs(case).astype("float64"), backend="reference")
    for _ in range(STEPS_CHECKED if case.work == "step" else 1):
        result = call()
    return read(result)


def _named(prefix: str, parts: Any) -> dict[str, Any]:
    """{"h": ...} or {"h": ..., "c": ...}, from an array or a tuple."""
    parts = parts if isinstance(parts, tuple) else (parts,)
    return {prefix + letter: part for letter, part in zip("hc", parts, strict=False)}


# ------------------------------------------------------------------------------------------- elman and the reference


def _elman(case: Case, data: Inputs, backend: str = "compiled"):
    layer = LAYERS[case.cell](case.I, case.H, case.layers, dtype=data.x.dtype, backend=backend)
    layer.load_params(data.params)
    x, dy, lengths = data.x, data.dy, data.lengths
    initial = data.state if case.cell == "lstm" else data.state[0]

    if case.work == "step":
        state = layer.zero_state(case.B)
        for part, start in zip(_named("", state).values(), data.state, strict=True):
            part[...] = start
        out = np.empty((case.B, case.H), x.dtype)
        return lambda: layer.step(x, state, out), lambda y: {"y": y, **_named("", state)}

    if case.work == "forward":
        return lambda: layer(x, initial, lengths=lengths), lambda r: {"y": r[0], **_named("", r[1])}

    def train():
        y, _, tape = layer.forward(x, initial, lengths=lengths)
        return y, *layer.backward(tape, dy)

    return train, lambda r: {"y": r[0], "dx": r[1], **_named("d", r[2]), **r[3]}


# ------------------------------------------------------------------------------------------------------------ PyTorch


def _import_torch():
    import torch

    torch.set_num_threads(1)  # before the first operation: no pool is ever started
    return torch


def _torch(case: Case, data: Inputs, packed: bool = False):
    """nn.RNN, nn.LSTM, nn.GRU: the fastest that it offers for whole sequences. Ragged: packed, or padded and masked."""
    torch = _import_torch()
    pack, unpack = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    module = kind(case.I, case.H, case.layers, dtype=getattr(torch, case.dtype))
    module.load_state_dict({name: torch.tensor(a) for name, a in data.params.items()})
    x, *parts = (torch.tensor(a) for a in (data.x, *data.state))
    if case.work == "step":
        x = x[None]

    def form(parts):
        return tuple(parts) if case.cell == "lstm" else parts[0]

    def run():
        if not packed:
            return module(x, form(parts))
        y, state = module(pack(x, lengths, enforce_sorted=False), form(parts))
        return unpack(y, total_length=case.T)[0], state

    if packed:
        lengths = torch.tensor(data.lengths)

    if case.work == "step":
        state = form(parts)

        @torch.inference_mode()
        def step():
            nonlocal state
            y, state = module(x, state)
            return y, state

        return step, lambda r: {"y": r[0][0].numpy(), **_numpy(_named("", r[1]))}

    padded = case.lengths is not None and not packed
    if padded:
        past = torch.tensor(np.arange(case.T)[:, None, None] >= data.lengths[:, None])

    if case.work == "forward":

        @torch.inference_mode()
        def forward():
            y, state = run()
            return (y.masked_fill_(past, 0), None) if padded else (y, state)

        return forward, lambda r: _numpy({"y": r[0]} | ({} if padded else _named("", r[1])))

    dy = torch.tensor(data.dy)
    wanted = {"dx": x, **_named("d", form(parts)), **dict(module.named_parameters())}
    for a in wanted.values():
        a.requires_grad_()

    def train():
        y, _ = run()
        return y, torch.autograd.grad(y, wanted.values(), dy)  # dy is zero past the ends, and so is all that follows

    def read(result):
        y = result[0].detach()
        return _numpy({"y": y.masked_fill(past, 0) if padded else y} | dict(zip(wanted, result[1], strict=True)))

    return train, read


def _torch_cell(case: Case, data: Inputs):
    """nn.LSTMCell and nn.GRUCell, for one step often faster than the layer."""
    torch = _import_torch()
    cell = {"rnn": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[case.cell](case.I, case.H)
    cell.load_state_dict({name.removesuffix("_l0"): torch.tensor(a) for name, a in data.params.items()})
    x, *parts = (torch.tensor(a) for a in (data.x, *(part[0] for part in data.state)))
    state = tuple(parts) if case.cell == "lstm" else parts[0]

    @torch.inference_mode()
    def step():
        nonlocal state
        state = cell(x, state)
        return state

    def read(state):
        arrays = _numpy(_named("", state))
        return {"y": arrays["h"]} | {letter: a[None] for letter, a in arrays.items()}

    return step, read


def _numpy(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------------- ONNX Runtime

# ONNX's gates, as positions in PyTorch's order: LSTM i, o, f, c of i, f, g, o; GRU z, r, h of r, z, n.
ONNX_GATES = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
ONNX_OPTIONS = {"rnn": {}, "lstm": {}, "gru": {"linear_before_reset": 1}}


def _onnx_model(case: Case, data: Inputs) -> bytes:
    """A graph of one node, RNN, LSTM or GRU, with the initial state as inputs and the weights inside."""
    from onnx import TensorProto, helper, numpy_helper

    assert case.layers == 1 and case.dtype == "float32"

    def gates(name):
        blocks = np.split(data.params[name], len(ONNX_GATES[case.cell]))
        return np.concatenate([blocks[g] for g in ONNX_GATES[case.cell]])

    B, I, H, letters = case.B, case.I, case.H, "hc"[: len(data.state)]
    bias = np.concatenate([gates("bias_ih_l0"), gates("bias_hh_l0")])
    weights = {"W": gates("weight_ih_l0")[None], "R": gates("weight_hh_l0")[None], "B": bias[None]}

    def float_info(name, shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    taken = [float_info("X", (case.T, B, I)), *(float_info(f"initial_{s}", (1, B, H)) for s in letters)]
    if data.lengths is not None:
        taken.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, (B,)))
    given = [float_info("Y", (case.T, 1, B, H)), *(float_info(f"Y_{s}", (1, B, H)) for s in letters)]
    node = helper.make_node(
        case.cell.upper(),
        ["X", "W", "R", "B", "lengths" if data.lengths is not None else "", *(f"initial_{s}" for s in letters)],
        [info.name for info in given],
        hidden_size=H,
        **ONNX_OPTIONS[case.cell],
    )
    initializers = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in weights.items()]
    graph = helper.make_graph([node], "one_layer", taken, given, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return model.SerializeToString()


def _onnxruntime(case: Case, data: Inputs, bound: bool = False):
    """InferenceSession.run with NumPy arrays; bound: with buffers that stay, which spares a step the copies."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_onnx_model(case, data), options, providers=["CPUExecutionProvider"])
    run = session.run
    feed = _named("initial_", data.state)

    if case.work == "step":
        feed["X"] = data.x[None]
        names = [f"Y_{s}" for s in "hc"[: len(data.state)]]  # Y_h is the output; not asking for Y saves a copy

        if bound:
            binding = session.io_binding()
            values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(a.copy()) for name, a in feed.items()}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in names:  # in place
                binding.bind_ortvalue_output(name, values[name.replace("Y", "initial")])

            def state_now(_):
                state = _named("", tuple(values[name.replace("Y", "initial")].numpy() for name in names))
                return {"y": state["h"][0], **state}

            return lambda: session.run_with_iobinding(binding), state_now

        def step():
            state = run(names, feed)
            for name, part in zip(("initial_h", "initial_c"), state, strict=False):
                feed[name] = part
            return state

        return step, lambda r: {"y": r[0][0], **_named("", tuple(r))}

    feed["X"] = data.x
    if data.lengths is not None:
        feed["lengths"] = data.lengths.astype(np.int32)
    return lambda: run(None, feed), lambda r: {"y": r[0][:, 0], **_named("", tuple(r[1:]))}
