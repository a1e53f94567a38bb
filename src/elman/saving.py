"""Keeping what was learned: layers in safetensors files, never pickles.

A file holds the weights under the names of `params`, so every program that reads safetensors reads them, and in its
metadata, under "elman", a description of the layer as JSON:

    {"version": 1, "model": {"class": "LSTM", "arguments": {"input_size": 64, "hidden_size": 128, ...}}}

A checkpoint of training has the moments of the optimiser too, as "optimizer." + their names in its `state_dict`, and

    {"version": 2, "model": ..., "optimizer": {"class": "Adam", "options": {"lr": 1e-3, ...}, "step": 120}, "epoch": 3}

and, if there is such a thing, what a ReduceLROnPlateau and callbacks remember; their arrays are named "memory." + the
place in this list + their own name:

    {"version": 3, ..., "memory": [{"class": "EarlyStopping", "state": {"best": 0.25, "best_epoch": 2}}, ...]}

A class is one of a fixed table, an argument one of its constructor's: null, true, false, a number, a string, an array
of such, or another description. Nothing else can be said, so a file can build a layer and an optimiser over it, and do
nothing more.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import _checks as check
from ._options import FORMS
from ._safetensors import Entry, Reader, shown, write
from .activation import Activation
from .attention import AdditiveAttention, DotAttention
from .callbacks import Callback
from .cells import AUGRU, MGU, QRNN, SLSTM, SRU, CfC, IndRNN, Jordan, MinGRU, MinLSTM
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding
from .esn import ESN
from .layers import GRU, LSTM, RNN
from .optimizers import SGD, Adam, AdamW, Optimizer, RMSprop
from .pooling import Pooling
from .schedules import ReduceLROnPlateau
from .seq2seq import Seq2Seq
from .sequential import Sequential
from .tdnn import TDNN

__all__ = ["load", "load_checkpoint", "read_params", "save", "save_checkpoint", "save_params"]

# What the description holds, by version; a layer alone stays readable for a program that knows only the first.
VERSIONS = {
    1: ("version", "model"),
    2: ("version", "model", "optimizer", "epoch"),
    3: ("version", "model", "optimizer", "epoch", "memory"),
}
OPTIMIZER, MEMORY = "optimizer.", "memory."  # what the names of their arrays begin with; no weight's name does
DEEPEST = 32  # descriptions and arrays within each other


class Kind(NamedTuple):
    """What a line of `KINDS` says of a class; its constructor's arguments must be attributes of the same names."""

    cls: type[Any]
    # Products of numbers and arguments: it has no fewer weights. "outputs" is what comes out of a recurrent layer.
    least: tuple[tuple[int | str, ...], ...] = ()
    later: tuple[str, ...] = ()  # arguments that files may lack, since they came later: their default is meant


def _recurrent(cls: type[Any], family: str, *later: str) -> Kind:
    """A recurrent layer of a family of cells, with what came after the first files could be written."""
    form = FORMS[family]
    least: tuple[tuple[int | str, ...], ...] = ((form.gates, "hidden_size", "input_size"),)
    if form.is_recurrent:
        least = (*least, (form.gates, "num_layers", "hidden_size", "outputs"))
    return Kind(cls, least, later)


_LATER = (
    "activations", "clip", "grad_clip", "merge", "zoneout", "input_dropout", "recurrent_dropout", "weight_dropout",
    "train_state",
)  # fmt: skip
KINDS = {
    kind.cls.__name__: kind
    for kind in (
        _recurrent(RNN, "rnn", *_LATER, "leak"),
        _recurrent(LSTM, "lstm", *_LATER, "peephole", "coupled", "cell_clip", "proj_size", "proj_clip", "layer_norm"),
        _recurrent(GRU, "gru_reset_after", *_LATER, "layer_norm"),
        _recurrent(Jordan, "jordan"),
        _recurrent(IndRNN, "indrnn"),
        _recurrent(SRU, "sru"),
        _recurrent(AUGRU, "augru_reset_after", "reset_after"),
        _recurrent(SLSTM, "slstm"),
        _recurrent(ESN, "rnn"),
        _recurrent(MinGRU, "min_gru"),
        _recurrent(MinLSTM, "min_lstm"),
        _recurrent(QRNN, "qrnn"),
        _recurrent(MGU, "mgu"),
        _recurrent(CfC, "cfc_pure"),  # the mode with the fewest weights
        Kind(Dense, (("in_features", "out_features"),)),
        Kind(Embedding, (("num_embeddings", "embedding_dim"),)),
        Kind(TDNN, (("in_features", "out_features", "kernel_size"),)),
        Kind(Activation),
        Kind(Dropout),
        Kind(Pooling, later=("bidirectional",)),
        Kind(DotAttention),
        Kind(AdditiveAttention, (("units", "query_size"), ("units", "memory_size"))),
        Kind(Sequential),
        Kind(Seq2Seq),
    )
}

OPTIMIZERS: dict[str, type[Optimizer]] = {cls.__name__: cls for cls in (SGD, RMSprop, Adam, AdamW)}
NOT_KEPT = ("seed", "forget_bias")  # arguments that say how weights begin, which the weights make void


def save(path: str | os.PathLike[str], layer: Any) -> None:
    """Keep a layer, or a model made of layers: what it is and its weights, in one safetensors file.

    path : where to; a file that is there is replaced at the end, whole or not at all.
    layer : an RNN, LSTM, GRU, Dense, Embedding, TDNN, AdditiveAttention, a layer without weights such as Pooling, or a
        Sequential or Seq2Seq.

    Not kept: the state of the generator that draws dropout's masks, and optimisers (see `save_checkpoint`). The same
    layer gives the same bytes. The weights are named as in `params`, so PyTorch can load a layer's file too:
    `torch_lstm.load_state_dict(safetensors.torch.load_file(path))`.

    TypeError: something else than a layer that elman knows, or a subclass of one. ValueError: a layer that occurs
    twice in a model. OSError: the file cannot be written. After an error the path is as it was.

    >>> elman.save("lstm.safetensors", lstm)
    """
    description = {"version": 1, "model": _described("layer", layer, set())}
    _write(path, _params(layer), description)


def load(path: str | os.PathLike[str]) -> Any:
    """The layer or model that `save` or `save_checkpoint` kept.

    It computes the same bits as the one that was saved; dropout's masks come from a new random generator.

    A file may come from anywhere: it is checked in full, nothing of it is executed, and nothing is allocated that is
    large beside the file itself. ValueError, with the file's name and what is wrong: it is damaged, cut short, of a
    newer format or no elman file at all. OSError: it cannot be read.

    >>> lstm = elman.load("lstm.safetensors")
    """
    with Reader(path) as file:
        return _model(file, _description(file))


def save_checkpoint(
    path: str | os.PathLike[str],
    model: Any,
    optimizer: Optimizer,
    epoch: int,
    *,
    lr: Any = None,
    callbacks: Sequence[Callback] = (),
) -> None:
    """Keep a training: the model, the state of its optimiser and where it is, in one safetensors file.

    path : where to; a file that is there is replaced at the end, whole or not at all.
    model : as in `save`.
    optimizer : an SGD, RMSprop, Adam or AdamW over this model, `elman.Adam(model)`.
    epoch : how many epochs are done, 0 or above: the initial_epoch of the `fit` that goes on.

    lr, callbacks : as given to `fit`. What a ReduceLROnPlateau, an EarlyStopping, a Checkpoint and any callback with a
        `state_dict` of its own remember is kept too.

    TypeError: another kind of model, optimiser or callback, or one that remembers what is no number and no array of
    floats. ValueError: an optimiser over other layers, what `save` refuses, a remembered whole number beyond 2**62.
    OSError: the file cannot be written. After an error the path is as it was.

    >>> elman.save_checkpoint("training.safetensors", model, adam, epoch=10)
    """
    check_optimizer(optimizer, model)
    options, state = optimizer._options, optimizer.state_dict()
    description = {
        "version": 2,
        "model": _described("model", model, set()),
        "optimizer": {"class": type(optimizer).__name__, "options": options, "step": state["step"]},
        "epoch": check.integer("epoch", epoch, 0, 2**62),
    }
    arrays = {OPTIMIZER + name: a for name, a in state.items() if name != "step" and name not in options}
    memory = []
    for i, one in enumerate(_remembering(lr, callbacks)):
        name, kept, state = type(one).__name__, {}, one.state_dict()
        if not isinstance(state, Mapping) or not all(isinstance(key, str) for key in state):
            raise TypeError(f"{name}: state_dict: expected a mapping with names, got {state!r:.200}")
        for key, value in state.items():
            if not isinstance(value, np.ndarray) or not value.ndim:
                kept[key] = _number(f"{name}: {key}", value)
            elif value.dtype in check.FLOATS:
                arrays[f"{MEMORY}{i}.{key}"] = value
            else:
                raise TypeError(f"{name}: {key}: expected an array of float32 or float64, got {value.dtype}")
        memory.append({"class": name, "state": kept})
    if memory:
        description |= {"version": 3, "memory": memory}
    _write(path, {**model.params, **arrays}, description)


def load_checkpoint(
    path: str | os.PathLike[str], *, lr: ReduceLROnPlateau | None = None, callbacks: Sequence[Callback] = ()
) -> tuple[Any, Optimizer, int]:
    """The training that `save_checkpoint`, or a `Checkpoint` with an optimiser, kept: (model, optimizer, epoch).

    `fit` goes on with them bit for bit as if it had never ended, given the same data, seed and other arguments.

    lr, callbacks : for the `fit` that goes on, made anew with the same arguments: each one gets the memory of its
        counterpart, the callbacks of a class in their order. What the training had else is left in the file.

    The file is checked as by `load`. ValueError, OSError: as there; also for a file of `save`, which has no optimiser,
    and where the training had no counterpart. TypeError: another kind of lr or callback.

    >>> model, adam, epoch = elman.load_checkpoint("training.safetensors")
    >>> model.fit(x, y, loss="huber", optimizer=adam, epochs=50, initial_epoch=epoch, seed=0)

    >>> plateau, stopping = ReduceLROnPlateau(1e-2), EarlyStopping(10)
    >>> model, adam, epoch = elman.load_checkpoint("training.safetensors", lr=plateau, callbacks=[stopping])
    """
    if not isinstance(lr, (ReduceLROnPlateau, type(None))):
        raise TypeError(f"lr: expected None or a ReduceLROnPlateau, got {lr!r}")
    remembering = _remembering(lr, callbacks)
    with Reader(path) as file:
        description = _description(file)
        if "optimizer" not in description:
            file.refuse("expected a file of elman.save_checkpoint, got one of elman.save, without an optimiser")
        epoch = description["epoch"]
        if type(epoch) is not int or epoch < 0:
            file.refuse(f"epoch: expected a whole number of at least 0, got {shown(epoch)}")
        model = _model(file, description)
        optimizer = _optimizer(file, description["optimizer"], model)
        _remind(file, description.get("memory", []), remembering)
        return model, optimizer, epoch


def save_params(path: str | os.PathLike[str], params: Mapping[str, ArrayLike]) -> None:
    """Keep named arrays alone, in a safetensors file.

    path : where to; a file that is there is replaced at the end, whole or not at all.
    params : arrays of floats (16, 32, 64 bits), integers or bool, of any shape, or what `numpy.asarray` reads, by name.

    TypeError, ValueError: a name that is no string, another dtype. OSError: the file cannot be written. After an
    error the path is as it was.

    >>> elman.save_params("weights.safetensors", lstm.params)
    """
    write(path, params)


def read_params(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The named arrays of any safetensors file, as `safetensors.numpy.load_file`: one of `save_params`, of `save`, or
    one exported from PyTorch. Values are not checked; a layer's `load_params` does.

    ValueError, with the file's name and what is wrong: it is damaged, cut short, no safetensors file, or holds a dtype
    that NumPy lacks (BF16). OSError: it cannot be read.

    >>> lstm.load_params(elman.read_params("weights.safetensors"))
    """
    with Reader(path) as file:
        return {name: file.read(name) for name in file.entries}


def check_optimizer(optimizer: Any, model: Any) -> None:
    """TypeError, ValueError: it is none that a checkpoint can hold, or one over other layers."""
    if OPTIMIZERS.get(type(optimizer).__name__) is not type(optimizer):
        raise TypeError(f"optimizer: expected one of {', '.join(OPTIMIZERS)}, got {type(optimizer).__name__}")
    if len(optimizer._layers) != 1 or optimizer._layers[0] is not model:
        raise ValueError("optimizer: expected one made over this model, as elman.Adam(model), got one over others")


def _write(path: str | os.PathLike[str], arrays: dict[str, np.ndarray], description: dict[str, Any]) -> None:
    write(path, arrays, {"elman": json.dumps(description, separators=(",", ":"), allow_nan=False)})


def _description(file: Reader) -> dict[str, Any]:
    """What the file says of itself: its version is known and what that version holds is there, itself unchecked."""
    if "elman" not in file.metadata:
        file.refuse("expected a file of elman.save, got one without a description of its layer: use read_params")
    description = file.parsed("description", file.metadata["elman"])
    if not isinstance(description, dict) or not description.keys() >= {"version", "model"}:
        file.refuse(f"description: expected version and model, got {shown(description)}")
    version = description["version"]
    if type(version) is not int or version not in VERSIONS:
        file.refuse(f"expected format version 1 to {max(VERSIONS)}, got {shown(version)}: of a newer elman, or damaged")
    if description.keys() != set(VERSIONS[version]):
        file.refuse(f"description: expected {' and '.join(VERSIONS[version])}, got {shown(description)}")
    for name, entry in file.entries.items():
        if entry.dtype.kind != "f" or entry.dtype.itemsize < 4:
            file.refuse(f"{shown(name)}: expected F32 or F64, got {entry.dtype.name}")
    return description


def _model(file: Reader, description: dict[str, Any]) -> Any:
    """The layer with its weights."""
    others = tuple(prefix for prefix in (OPTIMIZER, MEMORY) if prefix.rstrip(".") in description)
    entries = {name: entry for name, entry in file.entries.items() if not name.startswith(others)}
    layer = _Builder(file, entries).layer("model", description["model"], 0)
    _check_entries(file, entries, _params(layer), "weights of the layer")
    try:
        if entries:
            layer.load_params({name: file.read(name) for name in entries})
    except (TypeError, ValueError) as error:  # a weight that is not finite
        file.refuse(str(error))
    return layer


def _optimizer(file: Reader, value: Any, model: Any) -> Optimizer:
    """The optimiser with its state, over this model."""
    if not isinstance(value, dict) or value.keys() != {"class", "options", "step"}:
        file.refuse(f"optimizer: expected class, options and step, got {shown(value)}")
    name, options, step = value["class"], value["options"], value["step"]
    if not isinstance(name, str) or name not in OPTIMIZERS:
        file.refuse(f"optimizer: class: expected one of {', '.join(OPTIMIZERS)}, got {shown(name)}")
    wanted = set(inspect.signature(OPTIMIZERS[name]).parameters) - {"layers"}
    if not isinstance(options, dict) or options.keys() != wanted:
        file.refuse(f"{name}: expected the options {', '.join(sorted(wanted))}, got {shown(options)}")
    for option, given in (*options.items(), ("step", step)):
        if not all(isinstance(n, (int, float)) for n in (given if isinstance(given, list) else [given])):
            file.refuse(f"{name}: {option}: expected a number, got {shown(given)}")
    try:
        optimizer = OPTIMIZERS[name](model, **options)
    except (TypeError, ValueError) as error:
        file.refuse(f"{name}: {str(error)[:500]}")
    entries = {n: entry for n, entry in file.entries.items() if n.startswith(OPTIMIZER)}
    moments = {OPTIMIZER + n: a for n, a in optimizer._views(optimizer._moments)}
    _check_entries(file, entries, moments, "moments of the optimiser")
    arrays = {n.removeprefix(OPTIMIZER): file.read(n) for n in entries}
    try:
        optimizer.load_state_dict({"step": step, **options, **arrays})
    except (TypeError, ValueError) as error:  # a moment that is not finite
        file.refuse(f"{name}: {str(error)[:500]}")
    return optimizer


def _remembering(lr: Any, callbacks: Any) -> list[Any]:
    """What has a memory among these arguments of `fit`."""
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(c, Callback) for c in callbacks):
        raise TypeError(f"callbacks: expected a list of Callback, got {callbacks!r}")
    plateaus = [lr] if isinstance(lr, ReduceLROnPlateau) else []
    return plateaus + [each for each in callbacks if type(each).state_dict is not Callback.state_dict]


def _remind(file: Reader, memory: Any, remembering: list[Any]) -> None:
    """Gives each its memory."""
    if not isinstance(memory, list):
        file.refuse(f"memory: expected a list, got {shown(memory)}")
    states: dict[str, dict[str, Any]] = {}  # by place
    for i, each in enumerate(memory):
        if not isinstance(each, dict) or each.keys() != {"class", "state"} or not isinstance(each["state"], dict):
            file.refuse(f"memory: expected class and state, got {shown(each)}")
        states[str(i)] = {name: _unpacked(file, value) for name, value in each["state"].items()}
    for name in file.entries:
        if name.startswith(MEMORY):
            place, _, own = name.removeprefix(MEMORY).partition(".")
            if place not in states or own in states[place]:
                file.refuse(f"{shown(name)}: expected an array of what is remembered")
            states[place][own] = file.read(name)
    left = [(each["class"], state) for each, state in zip(memory, states.values())]
    pairs = []
    for one in remembering:
        name, kinds = type(one).__name__, [kind for kind, _ in left]
        if name not in kinds:
            had = ", ".join(map(shown, kinds)) or "nothing"
            file.refuse(f"lr, callbacks: expected what the training had and the file remembers, {had}, got {name}")
        pairs.append((one, left.pop(kinds.index(name))[1]))
    for one, state in pairs:
        try:
            one.load_state_dict(state)
        except (TypeError, ValueError) as error:
            file.refuse(f"{type(one).__name__}: {str(error)[:500]}")


def _number(where: str, value: Any) -> Any:
    """What JSON can hold of a number, or None; what is not finite as a string."""
    value = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
    if not isinstance(value, (bool, int, float, type(None))):
        raise TypeError(f"{where}: expected a number, None or an array of floats, got {check._kind(value)}")
    if isinstance(value, int):
        return value if isinstance(value, bool) else check.integer(where, value, -(2**62), 2**62)  # as files may hold
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _unpacked(file: Reader, value: Any) -> Any:
    """What `_number` was given."""
    if value in ("nan", "inf", "-inf"):
        return float(value)
    if not isinstance(value, (bool, int, float, type(None))):
        file.refuse(f"memory: expected a number, got {shown(value)}")
    return value


def _params(layer: Any) -> dict[str, np.ndarray]:
    return dict(getattr(layer, "params", {}))


def _described(where: str, layer: Any, seen: set[int]) -> dict[str, Any]:
    """A layer as JSON can hold it."""
    kind = KINDS.get(type(layer).__name__)
    if kind is None or type(layer) is not kind.cls:
        raise TypeError(f"{where}: expected one of {', '.join(KINDS)}, got {type(layer).__name__}")
    if id(layer) in seen:
        raise ValueError(f"{where}: expected each layer once, got one that is elsewhere in the model too: {layer!r}")
    seen.add(id(layer))
    arguments = {name: _argument(f"{where}: {name}", getattr(layer, name), seen) for name in _arguments(kind)}
    return {"class": type(layer).__name__, "arguments": arguments}


def _argument(where: str, value: Any, seen: set[int]) -> Any:
    """A constructor's argument, likewise."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, (tuple, list)):
        return [_argument(f"{where}[{i}]", item, seen) for i, item in enumerate(value)]
    return _described(where, value, seen)


def _arguments(kind: Kind) -> dict[str, inspect.Parameter]:
    """The arguments that are kept of a class."""
    parameters = inspect.signature(kind.cls).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in NOT_KEPT}


class _Builder:
    """Makes what a description says, as long as the file has the weights for it."""

    def __init__(self, file: Reader, entries: Mapping[str, Entry]):
        self._refuse = file.refuse
        self._weights = sum(math.prod(entry.shape) for entry in entries.values())  # for the layers to come
        self._arrays = len(entries)

    def layer(self, where: str, value: Any, depth: int) -> Any:
        """From a description, a layer with weights of no matter."""
        if not isinstance(value, dict) or value.keys() != {"class", "arguments"}:
            self._refuse(f"{where}: expected class and arguments, got {shown(value)}")
        name, given = value["class"], value["arguments"]
        if not isinstance(name, str) or name not in KINDS:
            self._refuse(f"{where}: class: expected one of {', '.join(KINDS)}, got {shown(name)}")
        kind = KINDS[name]
        self._check_arguments(name, kind, given)
        self._check_size(name, kind, given)
        call = inspect.signature(kind.cls).bind_partial()
        for argument in _arguments(kind):
            if argument in given:
                call.arguments[argument] = self._argument(f"{name}: {argument}", given[argument], depth + 1)
        try:
            return kind.cls(*call.args, **call.kwargs)
        except (TypeError, ValueError) as error:
            self._refuse(f"{name}: {str(error)[:500]}")

    def _argument(self, where: str, value: Any, depth: int) -> Any:
        """Arrays become tuples, descriptions layers."""
        if depth > DEEPEST:
            self._refuse(f"{where}: nested too deeply")
        if isinstance(value, list):
            return tuple(self._argument(f"{where}[{i}]", item, depth + 1) for i, item in enumerate(value))
        return self.layer(where, value, depth) if isinstance(value, dict) else value

    def _check_arguments(self, name: str, kind: Kind, given: Any) -> None:
        if not isinstance(given, dict):
            self._refuse(f"{name}: expected arguments by name, got {shown(given)}")
        wanted = _arguments(kind)
        faults = [f"no {argument}" for argument in wanted if argument not in given and argument not in kind.later]
        faults += [f"unexpected {shown(argument)}" for argument in given if argument not in wanted]
        if faults:
            self._refuse(f"{name}: expected the arguments {', '.join(wanted)}, got {', '.join(faults[:8])}")
        if "dtype" in given and given["dtype"] not in ("float32", "float64"):
            self._refuse(f"{name}: dtype: expected float32 or float64, got {shown(given['dtype'])}")

    def _check_size(self, name: str, kind: Kind, given: dict[str, Any]) -> None:
        """Refuse, before it is made, a layer that would be large beside the file."""
        outputs = given.get("proj_size") or given.get("output_size") or given.get("hidden_size")
        known = given | {"outputs": outputs}
        sizes = {n: known[n] for product in kind.least for n in product if isinstance(n, str)}
        for size, value in sizes.items():
            if type(value) is not int or value < 1:
                self._refuse(f"{name}: {size}: expected a whole number of at least 1, got {shown(value)}")
        products = [math.prod(n if isinstance(n, int) else sizes[n] for n in product) for product in kind.least]
        self._weights -= max(products, default=0)
        self._arrays -= sizes.get("num_layers", 0)
        if self._weights < 0 or self._arrays < 0:
            shape = ", ".join(f"{size}={value}" for size, value in sizes.items() if size in given)
            self._refuse(f"{name}: {shape}: needs more weights than the file holds")


def _check_entries(file: Reader, entries: Mapping[str, Entry], arrays: Mapping[str, np.ndarray], what: str) -> None:
    """These entries of the file are exactly these arrays."""
    faults = [f"no {name}" for name in arrays if name not in entries]
    faults += [f"unexpected {shown(name)}" for name in entries if name not in arrays]
    if faults:
        file.refuse(f"expected exactly the {what} it describes, got {', '.join(faults[:8])}")
    for name, a in arrays.items():
        entry = entries[name]
        if entry.shape != a.shape or entry.dtype != a.dtype.newbyteorder("<"):
            file.refuse(f"{name}: expected {a.dtype} {a.shape}, got {entry.dtype.name} {entry.shape}")
