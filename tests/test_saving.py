"""Saving and loading: round trips, the safetensors package and PyTorch as second witnesses, hostile files."""

import copy
import inspect
import json
import math
import os
import pickle
import re
import stat
import struct
import threading
import tracemalloc

import numpy as np
import pytest
from processes import output_of

import elman
from elman import _safetensors, saving

LAYERS = {
    "rnn": lambda **o: elman.RNN(3, 4, nonlinearity="relu", seed=1, **o),
    "lstm": lambda **o: elman.LSTM(3, 4, 2, bidirectional=True, dropout=0.25, seed=2, **o),
    "lstm-plain": lambda **o: elman.LSTM(3, 4, bias=False, batch_first=True, forget_bias=None, seed=3, **o),
    "gru": lambda **o: elman.GRU(3, 4, 2, reset_after=False, seed=4, backend="reference", **o),
    "dense": lambda **o: elman.Dense(3, 4, seed=5, **o),
    "dense-plain": lambda **o: elman.Dense(3, 4, bias=False, seed=6, **o),
}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "layer.safetensors"


def output(layer, x):
    y = layer(x)
    return y if isinstance(layer, elman.Dense) else y[0]


# --------------------------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", LAYERS)
def test_what_was_saved_comes_back(path, name, dtype):
    layer = LAYERS[name](dtype=dtype)
    elman.save(path, layer)
    loaded = elman.load(path)
    assert type(loaded) is type(layer) and repr(loaded) == repr(layer) and loaded.dtype == layer.dtype
    assert list(loaded.params) == list(layer.params)
    for key, a in layer.params.items():
        assert loaded.params[key].dtype == a.dtype and np.array_equal(loaded.params[key], a)
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(dtype)
    assert np.array_equal(output(loaded, x), output(layer, x))
    with loaded.edit() as p:  # it is a layer as any other
        for a in p.values():
            a *= 2


def test_every_argument_is_kept(path):
    """None of them at its default; a description that forgot one would not notice in most round trips."""
    common = {"bidirectional": True, "batch_first": True, "dropout": 0.5, "bias": False, "dtype": np.float64}
    common |= {"backend": "reference", "grad_clip": 0.5, "merge": "mul", "train_state": True, "input_dropout": 0.25}
    clipped = common | {"clip": 1.5, "recurrent_dropout": 0.125, "weight_dropout": 0.375, "zoneout": (0.25, 0.0)}
    three = ("hardsigmoid", ("elu", 0.5), ("scaledtanh", 1.5, 0.5))
    layers = [
        elman.RNN(3, 4, 2, nonlinearity=("leakyrelu", 0.25), leak=0.5, **clipped),
        elman.GRU(3, 4, 2, reset_after=False, activations=three[:2], **clipped),
        elman.LSTM(
            3,
            4,
            2,
            peephole=True,
            coupled="i=1-f",
            cell_clip=2.5,
            activations=three,
            proj_size=3,
            proj_clip=2,
            layer_norm="gate",
            **clipped,
        ),
        elman.Jordan(3, 4, 5, 2, activations=("relu", "sigmoid"), **clipped),
        elman.IndRNN(3, 4, 2, activations=("relu",), clip=1.5, zoneout=(0.25, 0.0), **common),
        elman.SRU(3, 4, 2, activations=("tanh",), zoneout=(0.0, 0.25), **(common | {"bias": True})),
        elman.MinGRU(3, 4, 2, zoneout=(0.25, 0.0), **common),
        elman.MinLSTM(3, 4, 2, zoneout=(0.25, 0.0), **common),
        elman.QRNN(3, 4, 2, zoneout=(0.0, 0.25), **common),
        elman.MGU(3, 4, 2, reset_gate=False, **{name: value for name, value in clipped.items() if name != "clip"}),
        elman.CfC(3, 4, 2, mode="pure", **{name: value for name, value in clipped.items() if name != "clip"}),
        elman.CfC(3, 4, 2, mode="no_gate", **{name: value for name, value in clipped.items() if name != "clip"}),
        elman.AUGRU(3, 4, 2, reset_after=False, **{n: value for n, value in clipped.items() if n != "clip"}),
        elman.ESN(
            3,
            4,
            2,
            spectral_radius=0.75,
            leak=0.5,
            density=0.5,
            input_scaling=0.25,
            nonlinearity=("leakyrelu", 0.25),
            bidirectional=True,
            batch_first=True,
            bias=False,
            merge="mul",
            dtype=np.float64,
            backend="reference",
        ),
        elman.SLSTM(3, 4, 2, **{n: value for n, value in clipped.items() if n not in ("clip", "train_state")}),
    ]
    for layer in layers:
        for name, parameter in inspect.signature(type(layer)).parameters.items():
            apart = (
                {("activations", elman.RNN)}
                | {(n, elman.SRU) for n in ("recurrent_dropout", "weight_dropout")}
                | {("bias", elman.SRU)}
            )
            without_product = (elman.IndRNN, elman.MinGRU, elman.MinLSTM, elman.QRNN)
            apart |= {(n, cls) for cls in without_product for n in ("recurrent_dropout", "weight_dropout")}
            apart.add(("train_state", elman.SLSTM))
            apart |= {("layer_norm", elman.GRU)}  # not with reset_after=False: see test_layer_norm.py
            if name not in ("seed", "forget_bias", "input_size", "hidden_size") and (name, type(layer)) not in apart:
                assert getattr(layer, name) != parameter.default, name
        elman.save(path, layer)
        public = {k: v for k, v in vars(layer).items() if not k.startswith("_")}
        assert {k: v for k, v in vars(elman.load(path)).items() if not k.startswith("_")} == public


def test_the_forget_bias_is_among_the_weights(path):
    layer = elman.LSTM(3, 4, forget_bias=3.0, seed=0)
    elman.save(path, layer)
    assert np.array_equal(elman.load(path).params["bias_ih_l0"][4:8], np.full(4, 3, np.float32))


def test_the_same_layer_gives_the_same_bytes(path):
    layer = LAYERS["lstm"]()
    elman.save(path, layer)
    first = path.read_bytes()
    elman.save(path, copy.deepcopy(layer))
    assert path.read_bytes() == first
    elman.save(path, elman.load(path))
    assert path.read_bytes() == first


VERSION_1 = (
    '{"__metadata__":{"elman":"{\\"version\\":1,\\"model\\":{\\"class\\":\\"RNN\\",\\"arguments\\":{\\"input_size\\":1,'
    '\\"hidden_size\\":1,\\"num_layers\\":1,\\"nonlinearity\\":\\"tanh\\",\\"bidirectional\\":false,\\"batch_first\\":'
    'false,\\"dropout\\":0.0,\\"bias\\":false,\\"dtype\\":\\"float32\\",\\"backend\\":\\"compiled\\"}}}"},'
    '"weight_ih_l0":{"dtype":"F32","shape":[1,1],"data_offsets":[0,4]},'
    '"weight_hh_l0":{"dtype":"F32","shape":[1,1],"data_offsets":[4,8]}}'
)


def test_a_file_of_the_first_day_stays_readable(path):
    """Options that came later must be in their class's `later`."""
    path.write_bytes(packed(VERSION_1, struct.pack("<2f", 0.5, -2)))
    rnn = elman.load(path)
    assert repr(rnn) == "RNN(1, 1, bias=False)"
    assert rnn.params["weight_ih_l0"] == 0.5 and rnn.params["weight_hh_l0"] == -2


def test_arguments_that_came_later_have_their_default_in_older_files(path, monkeypatch):
    path.write_bytes(packed(VERSION_1.replace('\\"backend\\":\\"compiled\\"', '\\"backend\\":\\"reference\\"')
                            .replace('\\"nonlinearity\\":\\"tanh\\",', ""), bytes(8)))  # fmt: skip
    refused(path, "RNN: expected the arguments .* got no nonlinearity")
    monkeypatch.setitem(
        saving.KINDS, "RNN", saving.KINDS["RNN"]._replace(later=(*saving.KINDS["RNN"].later, "nonlinearity"))
    )
    assert elman.load(path).nonlinearity == "tanh" and elman.load(path).backend == "reference"


def test_pooling_knows_its_directions_and_older_files_have_one(path):
    model = elman.Sequential([elman.GRU(2, 4, bidirectional=True), elman.Pooling("last", bidirectional=True)])
    elman.save(path, model)
    assert repr(elman.load(path)) == repr(model)
    raw = path.read_bytes()
    header, data = taken_apart(raw)
    text = header["__metadata__"]["elman"].replace('"last","bidirectional":true', '"last"')
    assert text != header["__metadata__"]["elman"]
    header["__metadata__"]["elman"] = text
    path.write_bytes(packed(header, data))
    assert repr(elman.load(path)[1]) == "Pooling('last')"


# -------------------------------------------------------------------------------------------------- models of layers


class Stack:
    """What a model of layers must offer: arguments as attributes, params, load_params."""

    def __init__(self, *layers, gaps=(), name=None):
        self.layers, self.gaps, self.name = layers, gaps, name

    @property
    def params(self):
        return {f"{i}.{name}": a for i, layer in enumerate(self.layers) for name, a in layer.params.items()}

    def load_params(self, mapping):
        for i, layer in enumerate(self.layers):
            layer.load_params({name: mapping[f"{i}.{name}"] for name in layer.params})


@pytest.fixture
def stack(monkeypatch):
    """One line makes a class known."""
    monkeypatch.setitem(saving.KINDS, "Stack", saving.Kind(Stack))
    return Stack(elman.GRU(2, 3, seed=0), Stack(elman.Dense(3, 3, seed=1), name="in"), gaps=(0.5, ("a", None)))


def test_a_model_within_a_model(path, stack):
    elman.save(path, stack)
    loaded = elman.load(path)
    assert repr(loaded.layers[0]) == repr(stack.layers[0]) and loaded.gaps == (0.5, ("a", None))
    assert loaded.layers[1].name == "in" and loaded.name is None
    assert loaded.params.keys() == stack.params.keys() and "1.0.weight" in loaded.params
    assert all(np.array_equal(loaded.params[name], a) for name, a in stack.params.items())


def test_a_shared_layer_is_refused(path, stack):
    gru = elman.GRU(2, 2)
    with pytest.raises(ValueError, match=r"layer: layers\[1\]: layers\[0\]: expected each layer once"):
        elman.save(path, Stack(gru, Stack(gru)))
    assert not path.exists()


def test_the_layers_of_a_model_are_counted_together(path, stack):
    """Two layers that would each fit into the file's weights, but not both."""
    elman.save(path, Stack(elman.Dense(9, 9, bias=False)))
    header, data = taken_apart(path.read_bytes())
    description = json.loads(header["__metadata__"]["elman"])
    layers = description["model"]["arguments"]["layers"]
    layers.append(layers[0])
    header["__metadata__"]["elman"] = json.dumps(description)
    path.write_bytes(packed(header, data))
    refused(path, "Dense: in_features=9, out_features=9: needs more weights than the file holds")


# ------------------------------------------------------------------------------------------------------ plain weights


ARRAYS = {
    "scalar": np.array(3, np.int64),
    "half": np.arange(3, dtype=np.float16),
    "none": np.zeros((0, 3), np.float32),
    "matrix": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "bytes": np.arange(5, dtype=np.uint8),
    "mask": np.array([[True], [False]]),
    "wide": np.array([[math.pi, np.nan, -np.inf]]),
    "ü/名": np.array([-1, 2], ">i2"),
}


def test_arrays_of_any_kind(path):
    elman.save_params(str(path), ARRAYS)
    read = elman.read_params(os.fsencode(path))
    assert list(read) == list(ARRAYS)
    for name, a in ARRAYS.items():
        assert read[name].shape == a.shape and read[name].dtype == a.dtype.newbyteorder("=")
        assert read[name].flags.writeable and read[name].flags.c_contiguous
        np.testing.assert_array_equal(read[name], a)


def test_every_array_is_aligned(path):
    elman.save_params(path, ARRAYS)
    raw = path.read_bytes()
    header, _ = taken_apart(raw)
    start = 8 + int.from_bytes(raw[:8], "little")
    assert start % 8 == 0
    for name, entry in header.items():
        assert (start + entry["data_offsets"][0]) % ARRAYS[name].itemsize == 0, name


def test_no_arrays_at_all(path):
    elman.save_params(path, {})
    assert elman.read_params(path) == {}
    assert path.read_bytes() == b"\x08" + bytes(7) + b"{}      "


def test_the_safetensors_package_reads_ours(path):
    numpy = pytest.importorskip("safetensors.numpy")
    elman.save_params(path, ARRAYS)
    theirs = numpy.load_file(path)
    assert theirs.keys() == ARRAYS.keys()
    for name, a in ARRAYS.items():
        assert theirs[name].shape == a.shape and theirs[name].dtype == a.dtype.newbyteorder("=")
        np.testing.assert_array_equal(theirs[name], a)
    elman.save(path, LAYERS["lstm"]())
    assert numpy.load_file(path).keys() == LAYERS["lstm"]().params.keys()


def test_ours_reads_the_safetensors_package(path):
    numpy = pytest.importorskip("safetensors.numpy")
    arrays = {name: np.ascontiguousarray(a).astype(a.dtype.newbyteorder("=")) for name, a in ARRAYS.items()}
    numpy.save_file(arrays, path, metadata={"format": "np"})
    ours = elman.read_params(path)
    assert ours.keys() == arrays.keys()
    for name, a in arrays.items():
        assert ours[name].dtype == a.dtype
        np.testing.assert_array_equal(ours[name], a)
    refused(path, "expected a file of elman.save, got one without a description")


def test_a_bool_is_a_byte_of_0_or_1(path):
    header = {"mask": entry(dtype="BOOL", shape=[3], data_offsets=[0, 3])}
    path.write_bytes(packed(header, b"\x01\x00\x01"))
    mask = elman.read_params(path)["mask"]
    assert mask.dtype == np.bool_ and mask.tolist() == [True, False, True]
    path.write_bytes(packed(header, b"\x01\x00\x02"))
    refused(path, "'mask': expected bytes 0 and 1 for BOOL, got 2", elman.read_params)


def test_both_ways_with_pytorch(path):
    torch = pytest.importorskip("torch")
    pytorch = pytest.importorskip("safetensors.torch")
    theirs = torch.nn.LSTM(3, 4, 2, bidirectional=True)
    pytorch.save_file(theirs.state_dict(), path)
    ours = elman.LSTM(3, 4, 2, bidirectional=True)
    ours.load_params(elman.read_params(path))
    x = np.random.default_rng(0).standard_normal((5, 2, 3), np.float32)
    with torch.no_grad():
        assert np.abs(theirs(torch.from_numpy(x))[0].numpy() - ours(x)[0]).max() < 1e-6
    changed = elman.LSTM(3, 4, 2, bidirectional=True, seed=1)
    elman.save(path, changed)
    theirs.load_state_dict(pytorch.load_file(path))
    with torch.no_grad():
        assert np.abs(theirs(torch.from_numpy(x))[0].numpy() - changed(x)[0]).max() < 1e-6


# ------------------------------------------------------------------------------------------------------------ writing


def test_a_failed_write_leaves_everything_as_it_was(path, monkeypatch):
    elman.save(path, LAYERS["rnn"]())
    before = path.read_bytes()

    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        elman.save(path, LAYERS["lstm"]())
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_the_data_is_on_the_disk_before_it_gets_its_name(path, monkeypatch):
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: calls.append((name, a)) or real(*a))
    elman.save(path, LAYERS["rnn"]())
    assert [name for name, _ in calls] == ["fsync", "replace"]
    draft, target = calls[1][1]
    assert os.path.dirname(draft) == os.path.dirname(target) and target == str(path.resolve())


@pytest.mark.skipif(os.name != "posix", reason="modes and links of POSIX")
def test_the_file_has_the_usual_mode_and_a_link_stays_a_link(path):
    link = path.with_name("link")
    link.symlink_to(path)
    elman.save(link, LAYERS["rnn"]())
    assert link.is_symlink() and repr(elman.load(path)) == repr(LAYERS["rnn"]())
    path.with_name("plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(path.with_name("plain").stat().st_mode)


def test_many_threads_saving_to_one_path(path):
    layers = [elman.Dense(30, 40, seed=i) for i in range(6)]
    threads = [threading.Thread(target=elman.save, args=(path, layer)) for layer in layers for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    weight = elman.load(path).params["weight"]
    assert sum(np.array_equal(weight, layer.params["weight"]) for layer in layers) == 1
    assert os.listdir(path.parent) == [path.name]


class Derived(elman.LSTM):
    pass


LSTM = type("LSTM", (elman.LSTM,), {})


@pytest.mark.parametrize(
    "call, error, words",
    [
        (lambda p: elman.save(p, Derived(1, 1)), TypeError, "layer: expected one of RNN, LSTM, .*got Derived"),
        (lambda p: elman.save(p, LSTM(1, 1)), TypeError, "layer: expected one of RNN, LSTM, .*got LSTM"),
        (lambda p: elman.save(p, [elman.LSTM(1, 1)]), TypeError, "layer: expected one of RNN, .*got list"),
        (lambda p: elman.save(p, None), TypeError, "layer: expected one of RNN, .*got NoneType"),
        (lambda p: elman.save(3.0, elman.LSTM(1, 1)), TypeError, "path: expected a str or os.PathLike, got float"),
        (lambda p: elman.load(None), TypeError, "path: expected a str or os.PathLike, got NoneType"),
        (lambda p: elman.save_params(p, [1, 2]), TypeError, "params: expected a mapping .*got list"),
        (lambda p: elman.save_params(p, {1: [1.0]}), TypeError, "params: expected names that are strings, got 1"),
        (lambda p: elman.save_params(p, {"__metadata__": [1.0]}), ValueError, "params: expected another name"),
        (
            lambda p: elman.save_params(p, {"a": [1j]}),
            TypeError,
            "params: a: expected a dtype of F64, .*got complex128",
        ),
        (lambda p: elman.save_params(p, {"a": "text"}), TypeError, "params: a: expected a dtype"),
        (lambda p: elman.save_params(p, {"a": None}), TypeError, "params: a: expected a dtype of .*got object"),
        (lambda p: elman.save_params(p, {"a" * 10**7: [1.0]}), ValueError, "params: expected names that need at most"),
        (lambda p: elman.load(p), FileNotFoundError, "layer.safetensors"),
        (lambda p: elman.save(p / "deeper" / "still", elman.LSTM(1, 1)), FileNotFoundError, "deeper"),
    ],
)
def test_errors_name_the_argument(path, call, error, words):
    with pytest.raises(error, match=words):
        call(path)
    assert os.listdir(path.parent) == []


# ------------------------------------------------------------------------------------------------------ hostile files


def packed(header, data=b""):
    """A file from a header, JSON text or what becomes it."""
    text = header if isinstance(header, str) else json.dumps(header)
    raw = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
    return len(raw).to_bytes(8, "little") + raw + data


def taken_apart(raw):
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def refused(path, words, load=elman.load):
    """The file is refused by name, and for the stated reason."""
    with pytest.raises(ValueError, match=words) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and len(message) < 2000 and "Traceback" not in message


def entry(**changes):
    return {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes


BIG = 2**63 - 1
FILES = {
    "empty": (b"", "expected a safetensors file, got 0 bytes"),
    "seven bytes": (b"\x02" + bytes(6), "expected a safetensors file, got 7 bytes"),
    "length 0": (bytes(8), "header: expected a JSON object"),
    "length beyond": (b"\x09" + bytes(7) + b'{"a": 1}', "expected a header of 9 bytes, got a file of 16"),
    "length huge": (b"\xff" * 8 + b"{}", "header of at most 10000000 bytes, got a length of 18446744073709551615"),
    "length above the limit": ((10**7 + 1).to_bytes(8, "little") + b"{}", "at most 10000000 bytes"),
    "not UTF-8": (packed('{"a\udc80": 1}'), "header: expected UTF-8"),
    "UTF-16": ((8).to_bytes(8, "little") + '{  }'.encode("utf-16-le"), "header: not sound JSON"),
    "no object": (packed("[1, 2]"), "header: expected a JSON object"),
    "a space first": (packed(" {}"), "header: expected a JSON object"),
    "half an object": (packed('{"a": {"dtype'), "header: not sound JSON"),
    "two objects": (packed("{}{}"), "header: not sound JSON"),
    "deep": (packed('{"a":' + "[" * 100000), "header: JSON nested too deeply"),
    "deep and closed": (packed('{"a":' * 90000 + "1" + "}" * 90000), "header: JSON nested too deeply"),
    "NaN": (packed('{"a": NaN}'), "NaN is not a JSON number"),
    "Infinity": (packed('{"a": -Infinity}'), "Infinity is not a JSON number"),
    "a huge float": (packed('{"a": 1e999}'), "the number '1e999' is too large"),
    "a huge integer": (packed('{"a": ' + "9" * 100000 + "}"), "a whole number of 100000 digits"),
    "a key twice": (packed('{"a": {}, "a": {}}'), "the key 'a' is there twice"),
    "an inner key twice": (packed('{"a": {"shape": 1, "shape": 2}}'), "the key 'shape' is there twice"),
    "metadata no map": (packed({"__metadata__": []}), "__metadata__: expected a map from strings to strings"),
    "metadata null": (packed({"__metadata__": None}), "__metadata__: expected a map"),
    "metadata of numbers": (packed({"__metadata__": {"elman": 1}}), "__metadata__: expected a map"),
    "no entry": (packed({"a": 1}), "'a': expected dtype, shape and data_offsets, got 1"),
    "no shape": (packed({"a": {"dtype": "F32", "data_offsets": [0, 0]}}), "'a': expected dtype, shape and data_off"),
    "another key": (packed({"a": entry(more=1)}, bytes(8)), "'a': expected dtype, shape and data_offsets"),
    "dtype unknown": (packed({"a": entry(dtype="float32")}, bytes(8)), "'a': dtype: expected one of F64, .*'float32'"),
    "dtype BF16": (packed({"a": entry(dtype="BF16")}, bytes(4)), "'a': dtype: expected one of F64, .*'BF16'"),
    "dtype object": (packed({"a": entry(dtype="O")}, bytes(8)), "'a': dtype"),
    "dtype no string": (packed({"a": entry(dtype=["F32"])}, bytes(8)), "'a': dtype"),
    "shape no list": (packed({"a": entry(shape=2)}, bytes(8)), "'a': shape: expected at most 32 whole numbers"),
    "shape negative": (packed({"a": entry(shape=[-1, -2])}, bytes(8)), "'a': shape"),
    "shape float": (packed({"a": entry(shape=[2.0])}, bytes(8)), "'a': shape"),
    "shape bool": (packed({"a": entry(shape=[True, 2])}, bytes(8)), "'a': shape"),
    "shape too long": (packed({"a": entry(shape=[1] * 32 + [2])}, bytes(8)), "'a': shape"),
    "shape overflows": (packed({"a": entry(shape=[2**32, 2**32, 2])}, bytes(8)), "'a': shape: .*more than a machine"),
    "shape overflows to 8": (packed({"a": entry(shape=[2**62 + 2])}, bytes(8)), "'a': shape: .*more than a machine"),
    "shape empty and huge": (packed({"a": entry(shape=[0, BIG, BIG], data_offsets=[0, 0])}), "more than a machine"),
    "shape mismatch": (packed({"a": entry(shape=[3])}, bytes(8)), r"'a': data_offsets: expected 12 bytes .* got 8"),
    "shape large": (packed({"a": entry(shape=[2**40])}, bytes(8)), "'a': data_offsets: expected 4398046511104 bytes"),
    "offsets no list": (packed({"a": entry(data_offsets="08")}, bytes(8)), "'a': data_offsets"),
    "offsets of one": (packed({"a": entry(data_offsets=[8])}, bytes(8)), "'a': data_offsets"),
    "offsets negative": (packed({"a": entry(data_offsets=[-8, 0])}, bytes(8)), "'a': data_offsets"),
    "offsets backwards": (packed({"a": entry(data_offsets=[8, 0])}, bytes(8)), "'a': data_offsets"),
    "offsets float": (packed({"a": entry(data_offsets=[0.0, 8.0])}, bytes(8)), "'a': data_offsets"),
    "offsets beyond": (packed({"a": entry()}, bytes(7)), "expected 8 bytes of data, got 7"),
    "offsets far beyond": (
        packed({"a": entry(shape=[2**40], data_offsets=[0, 2**42])}, bytes(8)),
        "expected 4398046511104 bytes of data, got 8",
    ),
    "bytes left over": (packed({"a": entry()}, bytes(9)), "expected 8 bytes of data, got 9"),
    "gap first": (packed({"a": entry(data_offsets=[4, 12])}, bytes(12)), "'a': .*begin at 0, got 4: leaves a gap"),
    "gap between": (
        packed({"a": entry(), "b": entry(data_offsets=[12, 20])}, bytes(20)),
        "'b': .*begin at 8, got 12: leaves a gap",
    ),
    "overlap": (packed({"a": entry(), "b": entry(data_offsets=[4, 12])}, bytes(12)), "'b': .*at 8, got 4: overlaps"),
    "the same twice": (packed({"a": entry(), "b": entry()}, bytes(8)), "'b': .*at 8, got 0: overlaps"),
    "empty inside another": (
        packed({"a": entry(), "b": entry(shape=[0], data_offsets=[4, 4])}, bytes(8)),
        "'b': .*at 8, got 4: overlaps",
    ),
    "a long name": (packed({"x" * 10**6: 1}), "expected dtype, shape and data_offsets"),
    "long rubbish": (packed({"a": entry(dtype="x" * 10**6)}, bytes(8)), "dtype: expected one of"),
    "pickle": (pickle.dumps(elman.LSTM(1, 1)), "expected a safetensors header|got a file of"),
    "zip": (b"PK\x03\x04" + bytes(100), "expected a header of|expected a safetensors header"),
}  # fmt: skip


@pytest.mark.parametrize("load", [elman.load, elman.read_params])
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_no_safetensors(path, name, load):
    raw, words = FILES[name]
    path.write_bytes(raw)
    refused(path, words, load)


def test_the_safetensors_package_is_no_stricter(path):
    """Whatever it refuses of the above, we refuse too; and what we refuse beyond it is meant."""
    numpy = pytest.importorskip("safetensors.numpy")
    beyond = []
    for name, (raw, _) in FILES.items():
        try:
            numpy.load(raw)
            beyond.append(name)
        except Exception:
            pass
    assert set(beyond) <= {
        "a key twice", "an inner key twice", "another key", "metadata null", "dtype BF16", "a space first",
        "shape empty and huge", "shape too long",
    }, beyond  # fmt: skip


def test_the_header_may_name_the_arrays_in_any_order(path):
    path.write_bytes(packed({"b": entry(data_offsets=[8, 16]), "a": entry()}, struct.pack("<4f", 1, 2, 3, 4)))
    read = elman.read_params(path)
    assert list(read) == ["b", "a"] and read["a"].tolist() == [1, 2] and read["b"].tolist() == [3, 4]


@pytest.mark.parametrize("load", [elman.load, elman.read_params])
def test_what_is_no_file(tmp_path, load):
    refused(tmp_path, "expected a file, got a directory", load)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")  # to open it would wait for ever
        refused(tmp_path / "pipe", "expected a file, got a directory or a device", load)


def test_a_file_that_shrinks_while_it_is_read(path):
    elman.save(path, elman.Dense(100, 100))
    with _safetensors.Reader(path) as file:
        os.truncate(path, 20000)
        with pytest.raises(ValueError, match="the file was cut short while it was read"):
            file.read("weight")


@pytest.mark.parametrize("name", LAYERS)
def test_a_file_cut_anywhere(path, name):
    elman.save(path, LAYERS[name]())
    raw = path.read_bytes()
    for n in (*range(0, len(raw), 31), len(raw) - 1):
        path.write_bytes(raw[:n])
        refused(path, "expected")
    path.write_bytes(raw)
    assert elman.load(path)


class Bomb:
    """A pickle that tells when it is opened."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_is_not_executed(path, monkeypatch):
    monkeypatch.chdir(path.parent)
    bomb = pickle.dumps(Bomb())
    good = VERSION_1.replace("weight_hh_l0", "'; import os; os.mkdir('executed')#")
    for raw in (
        bomb,
        packed("{}") + bomb,
        packed(good, bytes(8)),
        packed(VERSION_1.replace("RNN", "os.mkdir"), bytes(8)),
    ):
        path.write_bytes(raw)
        refused(path, "expected")
    assert os.listdir() == [path.name]


def described(change, layer=None, data=None):
    """The file of a small layer whose description was changed."""

    def made(path):
        elman.save(path, elman.LSTM(2, 3, seed=0) if layer is None else layer)
        header, old = taken_apart(path.read_bytes())
        description = json.loads(header["__metadata__"]["elman"])
        changed = change(description)
        header["__metadata__"]["elman"] = changed if isinstance(changed, str) else json.dumps(description)
        return packed(header, old)

    return made


def arguments(**changes):
    def change(description):
        description["model"]["arguments"].update(changes)

    return described(change)


def without(name):
    return described(lambda d: d["model"]["arguments"].pop(name) and None)


def model(value):
    return described(lambda d: d.update(model=value))


def entries(change):
    """The file of a small layer whose header was changed."""

    def made(path):
        elman.save(path, elman.LSTM(2, 3, seed=0))
        header, data = taken_apart(path.read_bytes())
        change(header)
        return packed(header, data)

    return made


def nested(depth):
    return described(lambda d: json.dumps(d).replace('"bias": true', '"bias": ' + "[" * depth + "]" * depth))


def weight(value, where):
    """The file of a small layer with one weight changed."""

    def made(path):
        elman.save(path, elman.LSTM(2, 3, seed=0))
        raw = bytearray(path.read_bytes())
        raw[len(raw) - where : len(raw) - where + 4] = struct.pack("<f", value)
        return bytes(raw)

    return made


def many_small_layers(path):
    """A thousand layers of one unit that one large array would pay for."""
    elman.save(path, elman.LSTM(1, 1))
    header, data = taken_apart(path.read_bytes())
    header["large"] = {"dtype": "F32", "shape": [4000], "data_offsets": [len(data), len(data) + 16000]}
    header["__metadata__"]["elman"] = header["__metadata__"]["elman"].replace('num_layers":1', 'num_layers":1000')
    return packed(header, data + bytes(16000))


DESCRIPTIONS = {
    "small layers": (many_small_layers, "LSTM: .*num_layers=1000: needs more weights than the file holds"),
    "not JSON": (described(lambda d: "LSTM(2, 3)"), "description: not sound JSON"),
    "deep JSON": (described(lambda d: "[" * 10**5), "description: JSON nested too deeply"),
    "a list": (described(lambda d: "[1]"), r"description: expected version and model, got \[1\]"),
    "no version": (described(lambda d: d.pop("version") and None), "description: expected version and model"),
    "more": (described(lambda d: d.update(more=1)), "description: expected version and model"),
    "version 2": (described(lambda d: d.update(version=2)), "description: expected version and model and optimizer"),
    "version 4": (described(lambda d: d.update(version=4)), "expected format version 1 to 3, got 4"),
    "version true": (described(lambda d: d.update(version=True)), "expected format version 1 to 3, got True"),
    "version text": (described(lambda d: d.update(version="1")), "expected format version 1 to 3, got '1'"),
    "model null": (model(None), "model: expected class and arguments, got None"),
    "model a number": (model(3), "model: expected class and arguments, got 3"),
    "model a list": (model([]), r"model: expected class and arguments, got \[\]"),
    "no class": (model({"arguments": {}}), "model: expected class and arguments"),
    "class unknown": (model({"class": "Bomb", "arguments": {}}), "model: class: expected one of RNN, .*got 'Bomb'"),
    "class of Python": (model({"class": "os.system", "arguments": {}}), "class: expected one of .*'os.system'"),
    "class private": (model({"class": "__class__", "arguments": {}}), "class: expected one of"),
    "class no string": (model({"class": ["LSTM"], "arguments": {}}), "class: expected one of"),
    "another class": (described(lambda d: d["model"].update({"class": "GRU"})), "GRU: .*got no reset_after"),
    "arguments a list": (model({"class": "LSTM", "arguments": [2, 3]}), "LSTM: expected arguments by name"),
    "no arguments": (model({"class": "LSTM", "arguments": {}}), "LSTM: expected the arguments .*no input_size"),
    "one missing": (without("batch_first"), "LSTM: expected the arguments .*got no batch_first"),
    "dtype missing": (without("dtype"), "LSTM: expected the arguments .*got no dtype"),
    "one more": (arguments(proj=3), "LSTM: expected the arguments .*got unexpected 'proj'"),
    "a seed": (arguments(seed=3), "LSTM: expected the arguments .*got unexpected 'seed'"),
    "self": (arguments(self=3), "LSTM: .*got unexpected 'self'"),
    "size 0": (arguments(input_size=0), "LSTM: input_size: expected a whole number of at least 1, got 0"),
    "size negative": (arguments(hidden_size=-3), "LSTM: hidden_size: expected a whole number of at least 1"),
    "size text": (arguments(hidden_size="3"), "LSTM: hidden_size: expected a whole number of at least 1, got '3'"),
    "size bool": (arguments(hidden_size=True), "LSTM: hidden_size: expected a whole number of at least 1, got True"),
    "size layer": (arguments(hidden_size={}), "LSTM: hidden_size: expected a whole number of at least 1"),
    "size larger": (arguments(input_size=3), "needs more weights|weight_ih_l0: expected float32"),
    "size huge": (arguments(input_size=2**24, hidden_size=2**24), "LSTM: .*needs more weights than the file holds"),
    "layers huge": (arguments(num_layers=2**24), "LSTM: .*num_layers=16777216: needs more weights"),
    "layers more": (arguments(num_layers=2, hidden_size=1), "expected exactly the weights .*got no weight_ih_l1"),
    "size smaller": (arguments(hidden_size=2), "weight_ih_l0: expected float32 .8, 2., got float32 .12, 2."),
    "no bias": (arguments(bias=False), "expected exactly the weights .*unexpected 'bias_ih_l0'"),
    "bidirectional": (arguments(bidirectional=True), "expected exactly the weights .*no weight_ih_l0_reverse"),
    "bias text": (arguments(bias="False"), "LSTM: bias: expected True or False, got 'False'"),
    "dropout": (arguments(dropout=7), "LSTM: dropout: expected 0 to 1, got 7"),
    "backend": (arguments(backend="os"), "LSTM: backend: expected one of"),
    "backend long": (arguments(backend="x" * 10**6), "LSTM: backend: expected one of"),
    "dtype": (arguments(dtype="float64"), "weight_ih_l0: expected float64 .*got float32"),
    "dtype object": (arguments(dtype="O"), "LSTM: dtype: expected float32 or float64, got 'O'"),
    "dtype by another name": (arguments(dtype="f4"), "LSTM: dtype: expected float32 or float64, got 'f4'"),
    "dtype of parts": (arguments(dtype="(2,f4,("), "LSTM: dtype: expected float32 or float64"),
    "dtype list": (arguments(dtype=["float32"]), "LSTM: dtype: expected float32 or float64"),
    "a layer for a number": (
        arguments(dropout={"class": "Dense", "arguments": {"in_features": 1, "out_features": 1, "bias": False,
                                                           "dtype": "float32"}}),
        "LSTM: dropout: expected a number",
    ),
    "lists for a number": (nested(20), "LSTM: bias: expected True or False"),
    "deep lists": (nested(60), "nested too deeply"),
    "a weight missing": (entries(lambda h: h.update(other=h.pop("bias_hh_l0"))), "got no bias_hh_l0, unexpected 'ot"),
    "a shape": (entries(lambda h: h["bias_hh_l0"].update(shape=[3, 4])), "bias_hh_l0: expected float32 .12,., got "),
    "an integer": (entries(lambda h: h["bias_hh_l0"].update(dtype="I32")), "'bias_hh_l0': expected F32 or F64, got i"),
    "a half": (entries(lambda h: h["bias_hh_l0"].update(dtype="F16", shape=[24])), "'bias_hh_l0': expected F32 or F64"),
    "a double": (entries(lambda h: h["bias_hh_l0"].update(dtype="F64", shape=[6])), "bias_hh_l0: expected float32"),
    "NaN": (weight(math.nan, 4), r"bias_hh_l0: expected finite values, got nan at \(11,\)"),
    "infinity": (weight(math.inf, 48), r"bias_hh_l0: expected finite values, got inf at \(0,\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_description_that_lies(path, name):
    make, words = DESCRIPTIONS[name]
    path.write_bytes(make(path))
    refused(path, words)


@pytest.mark.parametrize("name", ["size huge", "layers huge", "layers more", "shape large", "offsets far beyond"])
def test_nothing_large_is_allocated(path, name):
    path.write_bytes(FILES[name][0] if name in FILES else DESCRIPTIONS[name][0](path))
    tracemalloc.start()
    try:
        refused(path, "expected|needs")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1_000_000


# ---------------------------------------------------------------------------------------------- checkpoints of training


OPTIMIZERS = {
    "SGD": lambda m: elman.SGD(m, lr=0.1),
    "SGD-momentum": lambda m: elman.SGD(m, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "RMSprop": lambda m: elman.RMSprop(m, lr=0.003, momentum=0.5, centered=True),
    "RMSprop-plain": lambda m: elman.RMSprop(m, alpha=0.9, eps=1e-7),
    "Adam": lambda m: elman.Adam(m, lr=1 / 3, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.1),
    "AdamW": lambda m: elman.AdamW(m, lr=0.01),
}


def trained(name="Adam", dtype="f4"):
    """A model of 46 weights and its optimiser, which has done three steps."""
    model = elman.Sequential([elman.RNN(3, 4, dtype=dtype, seed=1), elman.Dense(4, 2, dtype=dtype, seed=2)])
    optimizer = OPTIMIZERS[name](model)
    for seed in range(3):
        optimizer.step(some_grads(model, seed))
    return model, optimizer


def some_grads(model, seed):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(w.shape).astype(w.dtype) for name, w in model.params.items()}


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_goes_on_with_the_same_bits(path, name, dtype):
    model, optimizer = trained(name, dtype)
    elman.save_checkpoint(path, model, optimizer, 7)
    first = path.read_bytes()
    other, other_optimizer, epoch = elman.load_checkpoint(path)
    assert epoch == 7 and repr(other) == repr(model) and repr(other_optimizer) == repr(optimizer)
    assert type(other_optimizer) is type(optimizer) and other_optimizer._layers == (other,)
    elman.save_checkpoint(path, other, other_optimizer, epoch)
    assert path.read_bytes() == first
    for seed in (3, 4):
        for m, o in ((model, optimizer), (other, other_optimizer)):
            o.step(some_grads(m, seed))
    assert all(np.array_equal(w, other.params[k]) for k, w in model.params.items())


def test_without_its_moments_the_way_is_another(path):
    model, optimizer = trained()
    elman.save_checkpoint(path, model, optimizer, 0)
    fresh = elman.load(path)  # the model alone, from the same file
    assert all(np.array_equal(w, fresh.params[k]) for k, w in model.params.items())
    OPTIMIZERS["Adam"](fresh).step(some_grads(fresh, 3))
    optimizer.step(some_grads(model, 3))
    assert not any(np.array_equal(w, fresh.params[k]) for k, w in model.params.items())


def test_a_layer_alone_can_be_a_checkpoint_and_others_read_it(path):
    numpy = pytest.importorskip("safetensors.numpy")
    model = elman.Dense(2, 1, seed=0)
    optimizer = elman.Adam(model)
    optimizer.step(some_grads(model, 0))
    elman.save_checkpoint(path, model, optimizer, 1)
    assert elman.load_checkpoint(path)[1].state_dict().keys() == optimizer.state_dict().keys()
    theirs = numpy.load_file(path)
    moments = [f"optimizer.0.{name}.{moment}" for name in model.params for moment in ("exp_avg", "exp_avg_sq")]
    assert sorted(theirs) == sorted([*model.params, *moments])
    np.testing.assert_array_equal(theirs["optimizer.0.bias.exp_avg"], optimizer.state_dict()["0.bias.exp_avg"])


class Descended(elman.Adam):
    pass


def test_what_is_no_checkpoint_is_not_written(path):
    model, optimizer = trained()
    for arguments, error, words in (
        ((model, Descended(model), 0), TypeError, "optimizer: expected one of SGD, .*got Descended"),
        ((model, "adam", 0), TypeError, "optimizer: expected one of SGD, .*got str"),
        ((copy.deepcopy(model), optimizer, 0), ValueError, "optimizer: expected one made over this model"),
        ((model, elman.Adam([*model.layers]), 0), ValueError, "optimizer: expected one made over this model"),
        ((model, optimizer, -1), ValueError, "epoch: expected 0 to"),
        ((model, optimizer, 1.0), TypeError, "epoch: expected an integer"),
    ):
        with pytest.raises(error, match=words):
            elman.save_checkpoint(path, *arguments)
    assert not path.exists()
    elman.save(path, model)
    refused(path, "expected a file of elman.save_checkpoint, got one of elman.save", elman.load_checkpoint)


def stopping():
    """An EarlyStopping that remembers the weights after two epochs."""
    callback = elman.EarlyStopping(3)
    callback.on_train_begin(trained()[0], 0, ("loss",))
    for epoch, loss in enumerate((2.0, 1 / 3, np.inf)):
        callback.on_epoch_end(trained()[0], epoch, {"loss": loss})
    return callback


class Counting(elman.Callback):
    """A callback with a memory of its own."""

    def __init__(self, count=0):
        self.count = count

    def state_dict(self):
        return {"count": self.count, "seen": np.arange(3.0), "nothing": None}

    def load_state_dict(self, state):
        self.count = state["count"]
        assert np.array_equal(state["seen"], np.arange(3.0)) and state["nothing"] is None


def test_a_checkpoint_has_the_memory_of_a_schedule_and_of_callbacks(path):
    plateau, callback = elman.schedules.ReduceLROnPlateau(0.1, patience=0), stopping()
    plateau(1.5), plateau(2.0)
    best = elman.Checkpoint(path)  # which has seen nothing: its best is NaN
    elman.save_checkpoint(path, *trained(), 3, lr=plateau, callbacks=[Counting(4), callback, Counting(5), best])
    first = path.read_bytes()
    assert b"pickle" not in first and set(elman.load(path).params) == set(trained()[0].params)
    new = elman.schedules.ReduceLROnPlateau(0.1, patience=0)
    others = [elman.EarlyStopping(3), Counting(), Counting(), elman.Checkpoint(path), elman.Callback()]
    model, adam, epoch = elman.load_checkpoint(path, lr=new, callbacks=others)
    assert new.state_dict() == plateau.state_dict() and new.lr == 0.1 * 0.1 and epoch == 3
    assert [others[1].count, others[2].count] == [4, 5] and np.isnan(others[3].best)
    (a, b), names = (each.state_dict() for each in (callback, others[0])), {"weights." + n for n in model.params}
    assert a.keys() == b.keys() == names | {"best", "best_epoch"} and (b["best"], b["best_epoch"]) == (1 / 3, 1)
    assert all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in names)
    elman.save_checkpoint(path, model, adam, epoch, lr=new, callbacks=[others[1], others[0], others[2], others[3]])
    assert path.read_bytes() == first
    assert elman.load_checkpoint(path)[2] == 3  # nobody who would want it back
    for arguments, words in (
        ({"callbacks": [Counting(), Counting(), Counting()]}, "expected what the training had .*'Checkpoint', got Cou"),
        ({"lr": 0.1}, "lr: expected None or a ReduceLROnPlateau, got 0.1"),
        ({"callbacks": elman.EarlyStopping(3)}, "callbacks: expected a list of Callback"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            elman.load_checkpoint(path, **arguments)
    elman.save_checkpoint(path, *trained(), 3, lr=0.5, callbacks=[elman.Callback()])
    assert path.read_bytes() == path_of_plain(path)
    with pytest.raises(ValueError, match="expected what the training had and the file remembers, nothing, got Reduce"):
        elman.load_checkpoint(path, lr=new)


def path_of_plain(path):
    """The bytes of a checkpoint without memory."""
    elman.save_checkpoint(path, *trained(), 3)
    return path.read_bytes()


@pytest.mark.parametrize(
    "value", ["text", [1.0], np.array(["a"]), 1j, np.array([2**53 + 1]), 2**128, -(2**63)], ids=repr
)
def test_what_a_checkpoint_cannot_remember(path, value):
    """As no file could hold it: the seed of a NumPy generator, a whole number of 128 bits, for one."""
    callback = Counting(value)
    with pytest.raises((TypeError, ValueError), match="Counting: count: expected "):
        elman.save_checkpoint(path, *trained(), 3, callbacks=[callback])
    assert not path.exists()


@pytest.mark.parametrize("value", [2**62, -(2**62), True, np.int64(-3), np.float32(0.1), None], ids=repr)
def test_what_a_checkpoint_can_remember(path, value):
    elman.save_checkpoint(path, *trained(), 3, callbacks=[Counting(value)])
    callback = Counting()
    elman.load_checkpoint(path, callbacks=[callback])
    assert callback.count == value


@pytest.mark.parametrize("state", [None, [("count", 1)], {1: 2}, {None: 1.0}], ids=repr)
def test_a_memory_that_is_no_mapping_with_names(path, state):
    callback = Counting()
    callback.state_dict = lambda: state
    with pytest.raises(TypeError, match="Counting: state_dict: expected a mapping with names, got"):
        elman.save_checkpoint(path, *trained(), 3, callbacks=[callback])
    assert not path.exists()


def test_all_get_their_memory_or_none(path):
    elman.save_checkpoint(path, *trained(), 3, callbacks=[stopping()])
    first = elman.EarlyStopping(3)
    with pytest.raises(ValueError, match="expected what the training had .*, got Counting"):
        elman.load_checkpoint(path, callbacks=[first, Counting()])
    assert np.isnan(first.best) and first.best_epoch == -1


def test_best_weights_of_a_file_are_not_restored_unasked(path):
    model, adam = trained()
    elman.save_checkpoint(path, model, adam, 3, callbacks=[stopping()])
    quiet = elman.EarlyStopping(3, restore_best=False)
    model, _, _ = elman.load_checkpoint(path, callbacks=[quiet])
    with model.edit() as params:
        for name in params:
            params[name] = params[name] + 1
    moved = dict(model.params)
    quiet.on_train_begin(model, 3, ("loss",))
    quiet.on_train_end(model)
    assert all(np.array_equal(w, moved[name]) for name, w in model.params.items())


def checkpoint(change=lambda d: None, header_change=lambda h: None, **memory):
    """The file of a small training whose description or header was changed."""

    def made(path):
        elman.save_checkpoint(path, *trained(), 7, **memory)
        header, data = taken_apart(path.read_bytes())
        description = json.loads(header["__metadata__"]["elman"])
        change(description)
        header["__metadata__"]["elman"] = json.dumps(description)
        header_change(header)
        return packed(header, data)

    return made


def of_optimizer(**changes):
    return checkpoint(lambda d: d["optimizer"].update(changes))


def of_options(**changes):
    return checkpoint(lambda d: d["optimizer"]["options"].update(changes))


def moment(value):
    def made(path):
        elman.save_checkpoint(path, *trained(), 7)
        raw = bytearray(path.read_bytes())
        raw[-4:] = struct.pack("<f", value)  # the last one's exp_avg_sq
        return bytes(raw)

    return made


DEEP = json.loads("[" * 400 + "]" * 400)
CHECKPOINTS = {
    "version 1": (checkpoint(lambda d: d.update(version=1)), "description: expected version and model, got"),
    "version 4": (checkpoint(lambda d: d.update(version=4)), "expected format version 1 to 3, got 4"),
    "no epoch": (checkpoint(lambda d: d.pop("epoch")), "description: expected version and model and optimizer and ep"),
    "no optimizer": (checkpoint(lambda d: d.pop("optimizer")), "description: expected version and model and optimizer"),
    "epoch negative": (checkpoint(lambda d: d.update(epoch=-1)), "epoch: expected a whole number .* got -1"),
    "epoch true": (checkpoint(lambda d: d.update(epoch=True)), "epoch: expected a whole number .* got True"),
    "epoch deep": (checkpoint(lambda d: d.update(epoch=DEEP)), "epoch: expected a whole number"),
    "optimizer null": (checkpoint(lambda d: d.update(optimizer=None)), "optimizer: expected class, options and step"),
    "more": (of_optimizer(more=1), "optimizer: expected class, options and step"),
    "class of Python": (of_optimizer(**{"class": "os.system"}), "optimizer: class: expected one of SGD, .*'os.system'"),
    "class of elman": (of_optimizer(**{"class": "Optimizer"}), "optimizer: class: expected one of SGD"),
    "class no string": (of_optimizer(**{"class": ["Adam"]}), "optimizer: class: expected one of SGD"),
    "another class": (of_optimizer(**{"class": "SGD"}), "SGD: expected the options lr, momentum, nesterov, weight_dec"),
    "options a list": (of_optimizer(options=[1]), r"Adam: expected the options betas, .* got \[1\]"),
    "options short": (of_optimizer(options={"lr": 1}), "Adam: expected the options betas"),
    "options layers": (of_options(layers=[]), "Adam: expected the options betas"),
    "lr negative": (of_options(lr=-1), "Adam: lr: expected at least 0 and finite, got -1"),
    "lr text": (of_options(lr="1"), "Adam: lr: expected a number, got '1'"),
    "lr true": (of_options(lr=True), "Adam: lr: expected a number, got True"),
    "lr null": (of_options(lr=None), "Adam: lr: expected a number, got None"),
    "lr deep": (of_options(lr=DEEP), "Adam: lr: expected a number"),
    "lr many": (of_options(lr=[1.0]), "Adam: lr: expected a number"),
    "betas one": (of_options(betas=[0.9]), "Adam: betas: expected two numbers"),
    "betas a number": (of_options(betas=0.9), "Adam: betas: expected two numbers"),
    "betas 1": (of_options(betas=[0.9, 1]), "Adam: betas: expected at least 0 and below 1"),
    "betas deep": (of_options(betas=[0.9, DEEP]), "Adam: betas: expected a number"),
    "step negative": (of_optimizer(step=-1), "Adam: state: step: expected 0 to"),
    "step float": (of_optimizer(step=1.5), "Adam: state: step: expected an integer, got 1.5"),
    "step true": (of_optimizer(step=True), "Adam: state: step: expected an integer, got True"),
    "step deep": (of_optimizer(step=DEEP), "Adam: step: expected a number"),
    "step huge": (of_optimizer(step=2**62 + 1), "Adam: state: step: expected 0 to"),
    "a moment missing": (
        checkpoint(header_change=lambda h: h.update(other=h.pop("optimizer.0.1.bias.exp_avg"))),
        "expected exactly the weights of the layer it describes, got unexpected 'other'",
    ),
    "a moment renamed": (
        checkpoint(header_change=lambda h: h.update({"optimizer.x": h.pop("optimizer.0.1.bias.exp_avg")})),
        "expected exactly the moments of the optimiser it describes, got no optimizer.0.1.bias.exp_avg, unexp",
    ),
    "a weight renamed": (
        checkpoint(header_change=lambda h: h.update({"optimizer.y": h.pop("1.bias")})),
        "expected exactly the weights of the layer it describes, got no 1.bias",
    ),
    "a shape": (
        checkpoint(header_change=lambda h: h["optimizer.0.1.bias.exp_avg"].update(shape=[1, 2])),
        "optimizer.0.1.bias.exp_avg: expected float32",
    ),
    "an integer": (
        checkpoint(header_change=lambda h: h["optimizer.0.1.bias.exp_avg"].update(dtype="I32")),
        "expected F32 or F64, got i",
    ),
    "moments for weights": (
        checkpoint(lambda d: d["model"]["arguments"]["layers"][0]["arguments"].update(hidden_size=9, input_size=9)),
        "RNN: hidden_size=9, input_size=9, num_layers=1: needs more weights than the file holds",
    ),
    "NaN": (moment(math.nan), "Adam: state: 0.1.bias.exp_avg_sq: expected finite values"),
    "infinity": (moment(math.inf), "Adam: state: 0.1.bias.exp_avg_sq: expected finite values"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_checkpoint_that_lies(path, name):
    make, words = CHECKPOINTS[name]
    path.write_bytes(make(path))
    refused(path, words, elman.load_checkpoint)


def memory(change=lambda m: None, header_change=lambda h: None):
    """Of an EarlyStopping."""
    return checkpoint(lambda d: change(d["memory"]), header_change, callbacks=[stopping()])


LYING_MEMORIES = {
    "no list": (checkpoint(lambda d: d.update(memory={}), callbacks=[stopping()]), "memory: expected a list, got {}"),
    "no memory": (checkpoint(lambda d: d.pop("memory"), callbacks=[stopping()]), "description: expected version and"),
    "null": (memory(lambda m: m.append(None)), "memory: expected class and state, got None"),
    "no state": (memory(lambda m: m[0].pop("state")), "memory: expected class and state, got"),
    "a list as state": (memory(lambda m: m[0].update(state=[])), "memory: expected class and state, got"),
    "another class": (memory(lambda m: m[0].update({"class": "Sequential"})), "remembers, 'Sequential', got EarlyStop"),
    "a list as class": (memory(lambda m: m[0].update({"class": []})), "remembers, \\[\\], got EarlyStopping"),
    "text": (memory(lambda m: m[0]["state"].update(best="a")), "memory: expected a number, got 'a'"),
    "a list": (memory(lambda m: m[0]["state"].update(best=DEEP)), "memory: expected a number, got"),
    "no best": (memory(lambda m: m[0]["state"].pop("best")), "EarlyStopping: state: expected .*no best"),
    "best null": (memory(lambda m: m[0]["state"].update(best=None)), "EarlyStopping: state: best: expected a number"),
    "best_epoch": (
        memory(lambda m: m[0]["state"].update(best_epoch=0.5)),
        "EarlyStopping: state: best_epoch: expected",
    ),
    "more": (memory(lambda m: m[0]["state"].update(more=1)), "EarlyStopping: state: expected .*unexpected 'more'"),
    "nobody's array": (
        memory(header_change=lambda h: h.update({"memory.1.weights.x": h.pop("memory.0.weights.1.bias")})),
        "'memory.1.weights.x': expected an array of what is remembered",
    ),
    "a number's array": (
        memory(header_change=lambda h: h.update({"memory.0.best": h.pop("memory.0.weights.1.bias")})),
        "'memory.0.best': expected an array of what is remembered",
    ),
}


@pytest.mark.parametrize("name", LYING_MEMORIES)
def test_a_memory_that_lies(path, name):
    made, words = LYING_MEMORIES[name]
    path.write_bytes(made(path))
    refused(path, words, lambda p: elman.load_checkpoint(p, callbacks=[elman.EarlyStopping(3)]))


@pytest.mark.parametrize("layer", [elman.Activation("tanh"), elman.Dropout(0.25), elman.DotAttention(),
                                   elman.Pooling("last", bidirectional=True)], ids=repr)  # fmt: skip
def test_a_layer_without_weights_alone(path, layer):
    elman.save(path, layer)
    assert repr(elman.load(path)) == repr(layer) and elman.read_params(path) == {}
    header, _ = taken_apart(path.read_bytes())
    header["more"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    path.write_bytes(packed(header, bytes(4)))
    refused(path, "expected exactly the weights of the layer it describes, got unexpected 'more'")


def test_a_checkpoint_cut_anywhere(path):
    elman.save_checkpoint(path, *trained(), 7)
    raw = path.read_bytes()
    for n in (*range(0, len(raw), 31), len(raw) - 1):
        path.write_bytes(raw[:n])
        refused(path, "expected", elman.load_checkpoint)
    path.write_bytes(raw)
    assert elman.load_checkpoint(path)[2] == 7


def test_a_negative_mean_square_is_refused_by_the_step(path):
    path.write_bytes(moment(-1.0)(path))
    model, optimizer, _ = elman.load_checkpoint(path)
    before = dict(model.params)
    with pytest.raises(ValueError, match="1.bias: this step would make a weight or a moment infinite or NaN"):
        optimizer.step({name: np.zeros_like(w) for name, w in model.params.items()})
    assert all(np.array_equal(w, before[name]) for name, w in model.params.items())


A_LAYER = {"class": "Dense", "arguments": {"in_features": 1, "out_features": 1, "bias": True, "dtype": "float32"}}
VALUES = (None, True, False, -1, 0, 1, 2, 2**24, 2**62, 0.5, -1e300, "", "float64", "relu", [], [1], [[]], {}, A_LAYER)


@pytest.mark.filterwarnings("ignore:dropout acts between layers")
@pytest.mark.parametrize("name", LAYERS)
def test_every_argument_with_every_kind_of_value(path, name):
    elman.save(path, LAYERS[name]())
    header, data = taken_apart(path.read_bytes())
    description = json.loads(header["__metadata__"]["elman"])
    arguments = description["model"]["arguments"]
    refusals = 0
    for argument, value in arguments.items():
        for other in VALUES:
            arguments[argument] = other
            header["__metadata__"]["elman"] = json.dumps(description)
            path.write_bytes(packed(header, data))
            try:
                assert {k: v.shape for k, v in elman.load(path).params.items()} == {
                    k: tuple(v["shape"]) for k, v in header.items() if k != "__metadata__"
                }
            except ValueError as error:
                assert str(error).startswith(f"{path}: "), (argument, other)
                refusals += 1
        arguments[argument] = value
    assert len(arguments) * (len(VALUES) - 6) < refusals < len(arguments) * len(VALUES)


def mutated(raw, rng):
    """A copy with some damage: bits, bytes, numbers of the header, pieces cut out, doubled or swapped, a new length."""
    raw = bytearray(raw)
    kind = rng.integers(7)
    a, b = sorted(int(i) for i in rng.integers(0, len(raw) + 1, 2))
    if kind == 0:
        for i in rng.integers(0, len(raw), rng.integers(1, 4)):
            raw[i] ^= 1 << rng.integers(8)
    elif kind == 1:
        for i in rng.integers(8, len(raw), rng.integers(1, 8)):
            raw[i] = rng.integers(256)
    elif kind == 2:
        numbers = [m.span() for m in re.finditer(rb"\d+", raw)]
        a, b = numbers[rng.integers(len(numbers))]
        raw[a:b] = str(rng.choice([0, 1, 2, 7, 255, 2**24, 2**31, 2**62, -1])).encode()
    elif kind == 3:
        del raw[a : min(b, a + 40)]
    elif kind == 4:
        raw[a:a] = raw[a : min(b, a + 40)]
    elif kind == 5:
        words = [m.span() for m in re.finditer(rb"[A-Za-z_]\w+", raw)]
        (a, b), (c, d) = (words[i] for i in rng.integers(0, len(words), 2))
        raw[a:b] = raw[c:d]
    else:
        raw[:8] = int(rng.integers(0, 2 * len(raw))).to_bytes(8, "little")
    if kind in (2, 3, 4, 5) and rng.random() < 0.8:  # a header whose length is right again gets further
        end = raw.rfind(b"}}") + 2
        raw[:8] = max(end - 8, 0).to_bytes(8, "little")
    return bytes(raw)


MUTATIONS = 400  # of each layer's file


def test_fuzz(path):
    """Whatever comes, it is refused with the file's name, or it is a sound layer."""
    loaded = 0
    for name in LAYERS:
        elman.save(path, LAYERS[name]())
        raw = path.read_bytes()
        rng = np.random.default_rng(sum(name.encode()))
        for i in range(MUTATIONS):
            case = mutated(raw, rng)
            path.write_bytes(case)
            try:
                layer = elman.load(path)
            except ValueError as error:
                assert str(error).startswith(f"{path}: "), (name, i)
                continue
            loaded += 1
            assert type(layer).__name__ in saving.KINDS
            assert all(np.isfinite(a).all() for a in layer.params.values()), (name, i)
            x = np.ones((2, 2, getattr(layer, "input_size", getattr(layer, "in_features", None))), layer.dtype)
            assert np.isfinite(output(layer, x)).all() or np.abs(list(layer.params.values())[0]).max() > 1e30, (name, i)
    assert 50 < loaded < 2500  # a flipped bit of a weight makes a sound file; most damage does not


@pytest.mark.parametrize("with_memory", [False, True])
def test_fuzz_of_checkpoints(path, with_memory):
    memory = (
        (lambda: {"lr": elman.schedules.ReduceLROnPlateau(0.1), "callbacks": [stopping()]}) if with_memory else dict
    )
    elman.save_checkpoint(path, *trained(), 7, **memory())
    raw, rng, loaded = path.read_bytes(), np.random.default_rng(5), 0
    for i in range(2 * MUTATIONS):
        path.write_bytes(mutated(raw, rng))
        try:
            model, optimizer, epoch = elman.load_checkpoint(path, **memory())
        except ValueError as error:
            assert str(error).startswith(f"{path}: "), i
            continue
        loaded += 1
        assert epoch >= 0 and all(np.isfinite(a).all() for a in optimizer.state_dict().values()), i
        assert optimizer._layers == (model,), i
    assert 10 < loaded < MUTATIONS


def test_no_other_package_is_needed(path):
    elman.save(path, elman.LSTM(2, 3))
    code = f"""
        import sys
        sys.modules["safetensors"] = sys.modules["torch"] = None
        import elman
        elman.save({str(path)!r}, elman.load({str(path)!r}))
        print(elman.load({str(path)!r}))
    """
    assert output_of(code) == "LSTM(2, 3)"


@pytest.mark.parametrize(
    "layer, shown",
    [
        (lambda: elman.LSTM(3, 4, layer_norm=np.str_("gate")), "layer_norm='gate'"),
        (lambda: elman.GRU(3, 4, layer_norm=np.str_("joint")), "layer_norm='joint'"),
        (lambda: elman.LSTM(3, 4, coupled=np.str_("i=1-f")), "coupled='i=1-f'"),
        (lambda: elman.CfC(3, 4, mode=np.str_("pure")), "mode='pure'"),
        (lambda: elman.RNN(3, 4, nonlinearity=np.str_("relu")), "nonlinearity='relu'"),
        (lambda: elman.Activation(np.str_("relu")), "Activation('relu')"),
        (lambda: elman.Pooling(np.str_("max")), "Pooling('max')"),
    ],
    ids=["lstm", "gru", "coupled", "cfc", "rnn", "activation", "pooling"],
)
def test_a_string_of_numpy_is_taken_as_a_plain_one(layer, shown, tmp_path):
    model = elman.Sequential([layer()])
    assert shown in repr(model)
    elman.save(tmp_path / "model", model)
    assert repr(elman.load(tmp_path / "model")) == repr(model)
