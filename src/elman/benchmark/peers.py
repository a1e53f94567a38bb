"""The contestants of a case, each made ready to be called and checked against the NumPy reference in float64.

Every contestant is a function (case, inputs) -> (call, read): `call()` is what is timed and does all of the work each
time; `read(call())` names the arrays of its result, with PyTorch's names for gradients of weights. It takes as many
threads as elman may take at that moment (`elman.threads`), in the words of its own library.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np

from .._config import get_num_threads
from .cases import LAYERS, Case, Inputs, inputs

# Largest difference from the float64 reference, relative to the largest magnitude in the array; some ten times what
# the worst contestant shows. A wrong gate order gives 1e-2 and more.
TOLERANCE = {"float32": 2e-5, "float64": 2e-14}
STEPS_CHECKED = 3  # a step is checked after so many calls, so that the state's way back is checked too

Ready = tuple[Callable[[], Any], Callable[[Any], dict[str, np.ndarray]]]
Contestant = Callable[[Case, Inputs], Ready]
MODULES = {"torch": ("torch",), "onnxruntime": ("onnx", "onnxruntime"), "jax": ("jax",)}  # of each peer


def contestants(case: Case) -> dict[str, Contestant]:
    """Who takes part: elman and numpy always, then the peers."""
    found: dict[str, Contestant] = {"elman": _elman, "numpy": functools.partial(_elman, backend="reference")}
    if case.lengths is None:
        found["torch"] = _torch
    else:
        found["torch packed"] = functools.partial(_torch, packed=True)
        if not case.bidirectional:  # backwards it would begin within the padding
            found["torch padded"] = _torch
    if case.is_step and case.layers == 1:
        found["torch cell"] = _torch_cell
    if case.work == "step":
        found["onnxruntime bound"] = functools.partial(_onnxruntime, bound=True)
    if case.work == "step_many":
        del found["torch"]
    if case.work != "train":
        found["onnxruntime"] = _onnxruntime
    elif case.lengths is None or not case.bidirectional:
        found["jax" if case.lengths is None else "jax padded"] = _jax
    return found


def peer_of(name: str) -> str:
    """The library: of "torch packed" it is "torch"."""
    return name.split()[0]


def missing(name: str) -> str | None:
    """The module that this contestant lacks here."""
    needed = MODULES.get(peer_of(name), ())
    return next((module for module in needed if importlib.util.find_spec(module) is None), None)


def is_slow(case: Case, name: str) -> bool:
    return case.slow or (case.work == "train" and name == "torch packed")  # 4 s for what others do in 0.2


def ready(case: Case, name: str) -> Callable[[], Any]:
    """What to time, after one look at its result. AssertionError: the result is wrong."""
    call, read = contestants(case)[name](case, inputs(case))
    for _ in range(STEPS_CHECKED if case.is_step else 1):
        result = call()
    check(case, name, read(result))
    return call


def check(case: Case, name: str, result: dict[str, np.ndarray]) -> None:
    expected = truth(case)
    absent = set(expected) - set(result)
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
    for _ in range(STEPS_CHECKED if case.is_step else 1):
        result = call()
    return read(result)


def named(prefix: str, parts: Any) -> dict[str, Any]:
    """{"h": ...} or {"h": ..., "c": ...}, from an array or a tuple."""
    return {prefix + letter: part for letter, part in zip("hc", _parts(parts), strict=False)}


def _parts(state: Any) -> tuple[Any, ...]:
    """Of a state: an array, or a tuple."""
    return state if isinstance(state, tuple) else (state,)


def _state(case: Case, parts: Any) -> Any:
    """The way back."""
    return tuple(parts) if case.cell == "lstm" else parts[0]


def _apart(data: Inputs) -> list[tuple[np.ndarray, ...]]:
    """The states of streams that are held apart, as tuples of parts (layers, H)."""
    return [tuple(part[:, b].copy() for part in data.state) for b in range(len(data.x))]


def _joined(states: list[Any]) -> dict[str, np.ndarray]:
    """The way back: {"h": (layers, B, H), ...}."""
    parts = zip(*map(_parts, states), strict=True)
    return named("", tuple(np.stack([np.asarray(a) for a in part], axis=1) for part in parts))


# ------------------------------------------------------------------------------------------- elman and the reference


def _elman(case: Case, data: Inputs, backend: str = "compiled") -> Ready:
    layer = LAYERS[case.cell](
        case.I, case.H, case.layers, bidirectional=case.bidirectional, dtype=data.x.dtype, backend=backend
    )
    layer.load_params(data.params)
    x, dy, lengths = data.x, data.dy, data.lengths
    initial = _state(case, data.state)

    if case.work == "step":
        state = layer.zero_state(case.B)
        for part, start in zip(named("", state).values(), data.state, strict=True):
            part[...] = start
        out = np.empty((case.B, case.H), x.dtype)
        return lambda: layer.step(x, state, out), lambda y: {"y": y, **named("", state)}

    if case.work == "step_many":
        states = [_state(case, parts) for parts in _apart(data)]
        out = np.empty((case.B, case.H), x.dtype)
        return lambda: layer.step_many(x, states, out), lambda y: {"y": y, **_joined(states)}

    if case.work == "forward":
        return lambda: layer(x, initial, lengths=lengths), lambda r: {"y": r[0], **named("", r[1])}

    def train():
        y, _, tape = layer.forward(x, initial, lengths=lengths)
        return y, *layer.backward(tape, dy)

    return train, lambda r: {"y": r[0], "dx": r[1], **named("d", r[2]), **r[3]}


# ------------------------------------------------------------------------------------------------------------ PyTorch


def _import_torch() -> Any:
    import torch

    torch.set_num_threads(get_num_threads())  # before the first operation: with one, no pool is ever started
    return torch


def _torch(case: Case, data: Inputs, packed: bool = False) -> Ready:
    """nn.RNN, nn.LSTM, nn.GRU: the fastest that it offers for whole sequences. Ragged: packed, or padded and masked."""
    torch = _import_torch()
    pack, unpack = torch.nn.utils.rnn.pack_padded_sequence, torch.nn.utils.rnn.pad_packed_sequence
    kind = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[case.cell]
    module = kind(case.I, case.H, case.layers, bidirectional=case.bidirectional, dtype=getattr(torch, case.dtype))
    module.load_state_dict({name: torch.tensor(a) for name, a in data.params.items()})
    x, *parts = (torch.tensor(a) for a in (data.x, *data.state))
    if case.work == "step":
        x = x[None]

    def run():
        if not packed:
            return module(x, _state(case, parts))
        y, state = module(pack(x, lengths, enforce_sorted=False), _state(case, parts))
        return unpack(y, total_length=case.T)[0], state

    if packed:
        lengths = torch.tensor(data.lengths)

    if case.work == "step":
        state = _state(case, parts)

        @torch.inference_mode()
        def step():
            nonlocal state
            y, state = module(x, state)
            return y, state

        return step, lambda r: {"y": r[0][0].numpy(), **_numpy(named("", r[1]))}

    padded = case.lengths is not None and not packed
    if padded:
        past = torch.tensor(np.arange(case.T)[:, None, None] >= data.lengths[:, None])

    if case.work == "forward":

        @torch.inference_mode()
        def forward():
            y, state = run()
            return (y.masked_fill_(past, 0), None) if padded else (y, state)

        return forward, lambda r: _numpy({"y": r[0]} | ({} if padded else named("", r[1])))

    dy = torch.tensor(data.dy)
    wanted = {"dx": x, **named("d", _state(case, parts)), **dict(module.named_parameters())}
    for a in wanted.values():
        a.requires_grad_()

    def train():
        y, _ = run()
        return y, torch.autograd.grad(y, wanted.values(), dy)  # dy is zero past the ends, and so is all that follows

    def read(result):
        y = result[0].detach()
        return _numpy({"y": y.masked_fill(past, 0) if padded else y} | dict(zip(wanted, result[1], strict=True)))

    return train, read


def _torch_cell(case: Case, data: Inputs) -> Ready:
    """nn.LSTMCell and nn.GRUCell, for one step often faster than the layer."""
    torch = _import_torch()
    cell = {"rnn": torch.nn.RNNCell, "lstm": torch.nn.LSTMCell, "gru": torch.nn.GRUCell}[case.cell](case.I, case.H)
    cell.load_state_dict({name.removesuffix("_l0"): torch.tensor(a) for name, a in data.params.items()})
    x, *parts = (torch.tensor(a) for a in (data.x, *(part[0] for part in data.state)))
    state = _state(case, parts)

    if case.work == "step_many":
        states = [tuple(torch.tensor(a) for a in one) for one in _apart(data)]

        @torch.inference_mode()
        def step_many():
            nonlocal states
            parts = [torch.cat(part) for part in zip(*states, strict=True)]
            parts = _parts(cell(x, _state(case, parts)))
            states = list(zip(*(part.split(1) for part in parts), strict=True))
            return parts[0]

        return step_many, lambda y: {"y": y.numpy(), **_joined(states)}

    @torch.inference_mode()
    def step():
        nonlocal state
        state = cell(x, state)
        return state

    def read(state):
        arrays = _numpy(named("", state))
        return {"y": arrays["h"]} | {letter: a[None] for letter, a in arrays.items()}

    return step, read


def _numpy(tensors: dict[str, Any]) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in tensors.items()}


# ------------------------------------------------------------------------------------------------------- ONNX Runtime

# ONNX's gates, as positions in PyTorch's order: LSTM i, o, f, c of i, f, g, o; GRU z, r, h of r, z, n.
ONNX_GATES = {"rnn": (0,), "lstm": (0, 3, 1, 2), "gru": (1, 0, 2)}
ONNX_OPTIONS = {"rnn": {}, "lstm": {}, "gru": {"linear_before_reset": 1}}


def _onnx_model(case: Case, data: Inputs) -> bytes:
    """A chain of nodes, RNN, LSTM or GRU, one for each layer, with the weights inside.

    Inputs: X (T, B, I), lengths (B,) where there are any, and initial_h{k}, for LSTM initial_c{k}, (D, B, H) of
    layer k. Outputs: Y (T, D, B, H) of the last layer, h{k} and c{k} (D, B, H).
    """
    from onnx import TensorProto, helper, numpy_helper

    assert case.dtype == "float32"
    T, B, H, D, letters = case.T, case.B, case.H, case.directions, "hc"[: len(data.state)]
    ragged = data.lengths is not None
    nodes, weights = [], {}
    below = "X"  # what the next layer reads
    for k in range(case.layers):
        weights |= {f"{name}{k}": a for name, a in _onnx_weights(case, data, k).items()}
        read = [below, f"W{k}", f"R{k}", f"B{k}", "lengths" if ragged else "", *(f"initial_{s}{k}" for s in letters)]
        written = [f"Y{k}" if k + 1 < case.layers else "Y", *(f"{s}{k}" for s in letters)]
        direction = "bidirectional" if case.bidirectional else "forward"
        options = ONNX_OPTIONS[case.cell]
        nodes.append(helper.make_node(case.cell.upper(), read, written, hidden_size=H, direction=direction, **options))
        if k + 1 < case.layers:  # (T, D, B, H) -> (T, B, D*H)
            below = f"X{k + 1}"
            if case.bidirectional:
                nodes.append(helper.make_node("Transpose", [f"Y{k}"], [f"Z{k}"], perm=[0, 2, 1, 3]))
                nodes.append(helper.make_node("Reshape", [f"Z{k}", "wide"], [below]))
                weights["wide"] = np.array([0, 0, D * H])
            else:  # may be done in place
                nodes.append(helper.make_node("Squeeze", [f"Y{k}", "axis"], [below]))
                weights["axis"] = np.array([1])

    def floats(name: str, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    states = [f"{s}{k}" for k in range(case.layers) for s in letters]
    taken = [floats("X", T, B, case.I), *(floats(f"initial_{name}", D, B, H) for name in states)]
    if ragged:
        taken.append(helper.make_tensor_value_info("lengths", TensorProto.INT32, (B,)))
    given = [floats("Y", T, D, B, H), *(floats(name, D, B, H) for name in states)]
    initializers = [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in weights.items()]
    graph = helper.make_graph(nodes, "layers", taken, given, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    return bytes(model.SerializeToString())


def _onnx_weights(case: Case, data: Inputs, k: int) -> dict[str, np.ndarray]:
    """W (D, G*H, inputs), R (D, G*H, H) and B (D, 2*G*H) of layer k, in ONNX's order of gates."""

    def gates(name: str) -> np.ndarray:
        blocks = np.split(data.params[name], len(ONNX_GATES[case.cell]))
        return np.concatenate([blocks[g] for g in ONNX_GATES[case.cell]])

    ends = [f"l{k}", f"l{k}_reverse"][: case.directions]
    return {
        "W": np.stack([gates(f"weight_ih_{end}") for end in ends]),
        "R": np.stack([gates(f"weight_hh_{end}") for end in ends]),
        "B": np.stack([np.concatenate([gates(f"bias_ih_{end}"), gates(f"bias_hh_{end}")]) for end in ends]),
    }


def _onnxruntime(case: Case, data: Inputs, bound: bool = False) -> Ready:
    """InferenceSession.run with NumPy arrays; bound: with buffers that stay, which spares a step the copies."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = get_num_threads(), 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(_onnx_model(case, data), options, providers=["CPUExecutionProvider"])
    letters, D = "hc"[: len(data.state)], case.directions
    states = [f"{s}{k}" for k in range(case.layers) for s in letters]
    taken = [f"initial_{name}" for name in states]
    state = dict(zip(letters, data.state, strict=True))
    feed = {f"initial_{s}{k}": state[s][k * D : (k + 1) * D] for k in range(case.layers) for s in letters}
    feed["X"] = data.x[None] if case.is_step else data.x

    def by_letter(arrays):
        """The state of all layers (L*D, B, H), from a dict of those of each."""
        return {s: np.concatenate([arrays[f"{s}{k}"] for k in range(case.layers)]) for s in letters}

    if case.work == "step":  # the last h is the output; not asking for Y saves a copy
        top = f"h{case.layers - 1}"
        if bound:
            binding = session.io_binding()
            values = {name: onnxruntime.OrtValue.ortvalue_from_numpy(a.copy()) for name, a in feed.items()}
            for name, value in values.items():
                binding.bind_ortvalue_input(name, value)
            for name in states:  # in place
                binding.bind_ortvalue_output(name, values[f"initial_{name}"])

            def state_now(_):
                now = {name: values[f"initial_{name}"].numpy() for name in states}
                return {"y": now[top][0], **by_letter(now)}

            return lambda: session.run_with_iobinding(binding), state_now

        def step():
            given = session.run(states, feed)
            feed.update(zip(taken, given, strict=True))
            return given

        def read(given):
            now = dict(zip(states, given, strict=True))
            return {"y": now[top][0], **by_letter(now)}

        return step, read

    if case.work == "step_many":
        apart = _apart(data)

        def step_many():
            nonlocal apart
            feed.update({name: np.stack(part, axis=1) for name, part in zip(taken, zip(*apart), strict=True)})
            given = session.run(states, feed)
            apart = [tuple(part[:, b] for part in given) for b in range(case.B)]
            return given[0][0]

        return step_many, lambda y: {"y": y, **_joined(apart)}

    if data.lengths is not None:
        feed["lengths"] = data.lengths.astype(np.int32)
    return lambda: session.run(None, feed), lambda r: {
        "y": r[0].transpose(0, 2, 1, 3).reshape(case.T, case.B, D * case.H),
        **by_letter(dict(zip(states, r[1:], strict=True))),
    }


# ---------------------------------------------------------------------------------------------------------------- JAX


def _jax(case: Case, data: Inputs) -> Ready:
    """jax.vjp through a lax.scan, compiled; the products with x are one product outside of it. Ragged: padded.

    How many threads it takes is read when it is imported: XLA_FLAGS and the cores that the process may use.
    """
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)  # allows float64, and leaves float32 as it is
    L, D = case.layers, case.directions

    def cell(state, a, b):
        """The next state, of the gates' parts from x (B, G*H) and from h (B, G*H)."""
        if case.cell == "rnn":
            return (jnp.tanh(a + b),)
        if case.cell == "lstm":
            i, f, g, o = jnp.split(a + b, 4, axis=-1)
            c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * jnp.tanh(g)
            return jax.nn.sigmoid(o) * jnp.tanh(c), c
        (a_r, a_z, a_n), (b_r, b_z, b_n) = jnp.split(a, 3, axis=-1), jnp.split(b, 3, axis=-1)
        r, z = jax.nn.sigmoid(a_r + b_r), jax.nn.sigmoid(a_z + b_z)
        return ((1 - z) * jnp.tanh(a_n + r * b_n) + z * state[0],)

    def forward(params, x, state):
        for k in range(L):
            ys = []
            for d in range(D):
                end = f"l{k}" + "_reverse" * d
                w_hh, b_hh = params[f"weight_hh_{end}"].T, params[f"bias_hh_{end}"]

                def step(before, a, w_hh=w_hh, b_hh=b_hh):
                    after = cell(before, a, before[0] @ w_hh + b_hh)
                    return after, after[0]

                a = x @ params[f"weight_ih_{end}"].T + params[f"bias_ih_{end}"]
                ys.append(jax.lax.scan(step, tuple(part[k * D + d] for part in state), a, reverse=d == 1)[1])
            x = ys[0] if D == 1 else jnp.concatenate(ys, axis=-1)
        return x

    @jax.jit
    def both_ways(params, x, state, dy):
        y, backward = jax.vjp(forward, params, x, state)
        return y, backward(dy)  # dy is zero past the ends, and so is all that follows

    arguments = jax.tree.map(jnp.asarray, (data.params, data.x, data.state, data.dy))

    def read(result):
        y, (dparams, dx, dstate) = jax.tree.map(np.asarray, result)
        if data.lengths is not None:
            y = np.where(np.arange(case.T)[:, None, None] < data.lengths[:, None], y, y.dtype.type(0))
        return {"y": y, "dx": dx, **named("d", dstate), **dparams}

    return lambda: jax.block_until_ready(both_ways(*arguments)), read
