"""params, load_params, edit: read by anyone at any time, replaced only as a whole."""

import copy
import pickle
import threading
import time
import warnings
from collections import OrderedDict

import numpy as np
import pytest
from backends import BACKENDS

from elman.layers import GRU, LSTM, RNN

pytestmark = pytest.mark.parametrize("backend", BACKENDS)


def lstm(backend, **options):
    return LSTM(3, 4, 2, seed=0, backend=backend, **options)


def bytes_of(params):
    return {name: a.tobytes() for name, a in params.items()}


def changed(layer):
    """New values for every parameter."""
    rng = np.random.default_rng(9)
    return {name: rng.normal(size=a.shape).astype(a.dtype) for name, a in layer.params.items()}


# ------------------------------------------------------------------------------------------------------------ params


def test_names_order_and_shapes_are_pytorchs(backend):
    layer = GRU(3, 4, 2, bidirectional=True, backend=backend)
    G, H, I = 3, 4, 3
    expected = []
    for k, inputs in enumerate((I, 2 * H)):
        for end in ("", "_reverse"):
            expected += [
                (f"weight_ih_l{k}{end}", (G * H, inputs)),
                (f"weight_hh_l{k}{end}", (G * H, H)),
                (f"bias_ih_l{k}{end}", (G * H,)),
                (f"bias_hh_l{k}{end}", (G * H,)),
            ]
    assert [(name, a.shape) for name, a in layer.params.items()] == expected


def test_names_without_bias(backend):
    assert list(lstm(backend, bias=False).params) == ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_initialisation_is_pytorchs(backend, dtype):
    layer = LSTM(50, 100, dtype=dtype, seed=3, backend=backend)
    for name, a in layer.params.items():
        assert a.dtype == dtype
        assert abs(a).max() <= np.nextafter(dtype(0.1), dtype(1)), name
        assert abs(a).max() > 0.0985, name  # 1/sqrt(100), reached by a uniform distribution, not by a narrower one
        assert abs(a.std() - 0.1 / 3**0.5) < 0.004, name
        assert abs(a.mean()) < 0.01, name
    assert len({a.tobytes() for a in layer.params.values()}) == 4


def test_seed(backend):
    same = [bytes_of(LSTM(3, 4, seed=7, backend=backend).params) for _ in range(2)]
    assert same[0] == same[1]
    assert same[0] != bytes_of(LSTM(3, 4, seed=8, backend=backend).params)
    assert bytes_of(LSTM(3, 4, backend=backend).params) != bytes_of(LSTM(3, 4, backend=backend).params)


def test_forget_bias(backend):
    plain = lstm(backend)
    layer = lstm(backend, forget_bias=1.5, bidirectional=False)
    f = slice(4, 8)
    for k in (0, 1):
        assert (layer.params[f"bias_ih_l{k}"][f] == 1.5).all()
        assert (layer.params[f"bias_hh_l{k}"][f] == 0).all()
    others = [0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15]
    for name, a in plain.params.items():
        assert np.array_equal(layer.params[name][others], a[others])
    assert (lstm(backend, forget_bias=0).params["bias_ih_l0"][f] == 0).all()
    both = LSTM(3, 4, bidirectional=True, forget_bias=-2, backend=backend).params
    assert (both["bias_ih_l0_reverse"][f] == -2).all() and (both["bias_hh_l0_reverse"][f] == 0).all()
    with pytest.raises(ValueError, match="forget_bias.*bias=False"):
        lstm(backend, forget_bias=1.0, bias=False)


def test_nothing_makes_params_writable(backend):
    layer = lstm(backend)
    params = layer.params
    before = bytes_of(params)
    a = params["weight_ih_l0"]
    with pytest.raises(ValueError):
        a[0, 0] = 1
    with pytest.raises(ValueError):
        a *= 2
    with pytest.raises(ValueError):
        a.setflags(write=True)
    with pytest.raises(ValueError):
        a.flags.writeable = True
    for view in (a.view(), a[:], a.T, a.reshape(-1), a.base if isinstance(a.base, np.ndarray) else a.view()):
        with pytest.raises(ValueError):
            view.setflags(write=True)
    with pytest.raises(TypeError):
        params["weight_ih_l0"] = a.copy()
    with pytest.raises(TypeError):
        del params["weight_ih_l0"]
    with pytest.raises(AttributeError):
        layer.params = {}
    with pytest.raises(KeyError):
        params["weight"]
    assert bytes_of(layer.params) == before


def test_what_is_done_to_an_array_of_params_is_done_to_that_object_alone(backend):
    layer = lstm(backend)
    before, x = bytes_of(layer.params), np.ones((2, 1, layer.input_size), layer.dtype)
    y, _, tape = layer.forward(x)
    a, b, c = (layer.params["weight_ih_l0"] for _ in range(3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of setting a shape
        a.shape = (a.size,)
        b.dtype = np.int32
    c.__setstate__((1, c.shape, c.dtype, False, bytes(c.nbytes)))
    assert not c.any()
    assert bytes_of(layer.params) == before
    assert np.array_equal(layer(x)[0], y)
    assert layer.backward(tape, y)[2]["weight_ih_l0"].shape == layer.params["weight_ih_l0"].shape
    with pytest.raises(TypeError, match="weight_hh_l0: expected dtype"), layer.edit() as p:
        p["weight_hh_l0"].dtype = np.int32 if layer.dtype == np.float32 else np.int64
    assert bytes_of(layer.params) == before


def test_params_taken_before_a_change_keep_their_values(backend):
    layer = lstm(backend)
    params = layer.params
    before = bytes_of(params)
    with layer.edit() as p:
        p["weight_ih_l0"] *= 2
    assert bytes_of(params) == before
    assert np.array_equal(layer.params["weight_ih_l0"], 2 * params["weight_ih_l0"])


def test_params_pickle_and_copy_as_a_plain_dict(backend):
    layer = lstm(backend)
    for other in (pickle.loads(pickle.dumps(layer.params)), copy.deepcopy(layer.params), dict(layer.params)):
        assert type(other) is dict and bytes_of(other) == bytes_of(layer.params)
        layer.load_params(other)
    assert copy.deepcopy(layer.params)["bias_ih_l0"].flags.writeable
    assert "weight_hh_l1" in repr(layer.params) and "float32" in repr(layer.params)


# ------------------------------------------------------------------------------------------------------- load_params


def test_load_params_takes_effect_and_copies(backend):
    layer, x = lstm(backend), np.ones((2, 1, 3), np.float32)
    new = changed(layer)
    expected = bytes_of(new)
    layer.load_params(new)
    y, _ = layer(x)
    for a in new.values():
        a[...] = 0
    assert bytes_of(layer.params) == expected
    assert np.array_equal(layer(x)[0], y)
    other = LSTM(3, 4, 2, seed=5, backend=backend)
    other.load_params(layer.params)
    assert np.array_equal(other(x)[0], y)


def test_load_params_accepts_what_numpy_reads(backend):
    layer = lstm(backend)
    new = changed(layer)

    class Tensor:
        def __init__(self, a):
            self.a = a

        def __array__(self, dtype=None, copy=None):
            return self.a

    odd = OrderedDict(reversed(new.items()))  # any order
    odd["weight_ih_l0"] = new["weight_ih_l0"].tolist()
    odd["weight_hh_l0"] = np.asfortranarray(new["weight_hh_l0"])
    odd["bias_ih_l0"] = np.repeat(new["bias_ih_l0"], 2)[::2]
    odd["bias_hh_l0"] = new["bias_hh_l0"].astype(">f4")
    odd["weight_ih_l1"] = Tensor(new["weight_ih_l1"])
    odd["bias_hh_l1"] = np.arange(16)
    layer.load_params(odd)
    expected = bytes_of(new) | {"bias_hh_l1": np.arange(16, dtype=np.float32).tobytes()}
    assert bytes_of(layer.params) == expected


def test_load_params_of_torch(backend):
    torch = pytest.importorskip("torch")
    theirs = torch.nn.LSTM(3, 4, 2, bidirectional=True)
    layer = LSTM(3, 4, 2, bidirectional=True, backend=backend)
    layer.load_params(theirs.state_dict())
    assert list(layer.params) == list(theirs.state_dict())
    x = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float32)
    y, (h, c) = layer(x)
    with torch.no_grad():
        expected, (eh, ec) = theirs(torch.from_numpy(x))
    for ours, other in ((y, expected), (h, eh), (c, ec)):
        np.testing.assert_allclose(ours, other.numpy(), rtol=1e-5, atol=1e-6)


BAD_PARAMS = {
    "missing": (lambda p: p.pop("bias_hh_l1"), ValueError, "bias_hh_l1"),
    "unexpected": (lambda p: p.update(weight_ih_l2=np.zeros(1)), ValueError, "weight_ih_l2"),
    "number as name": (lambda p: p.update({3: np.zeros(1)}), ValueError, "3"),
    "shape": (lambda p: p.update(bias_hh_l1=np.zeros(15, np.float32)), ValueError, r"bias_hh_l1.*\(16,\).*\(15,\)"),
    "transposed": (lambda p: p.update(weight_ih_l0=p["weight_ih_l0"].T), ValueError, "weight_ih_l0"),
    "rank": (lambda p: p.update(bias_ih_l0=p["bias_ih_l0"][:, None]), ValueError, "bias_ih_l0"),
    "float64": (lambda p: p.update(bias_hh_l1=np.zeros(16)), TypeError, "bias_hh_l1.*float32.*float64"),
    "float16": (lambda p: p.update(bias_hh_l1=np.zeros(16, np.float16)), TypeError, "bias_hh_l1"),
    "bool": (lambda p: p.update(bias_hh_l1=np.zeros(16, bool)), TypeError, "bias_hh_l1"),
    "complex": (lambda p: p.update(bias_hh_l1=np.zeros(16, complex)), TypeError, "bias_hh_l1"),
    "strings": (lambda p: p.update(bias_hh_l1=np.array(["a"] * 16)), TypeError, "bias_hh_l1"),
    "none": (lambda p: p.update(bias_hh_l1=None), TypeError, "bias_hh_l1"),
    "ragged": (lambda p: p.update(bias_hh_l1=[[1], [1, 2]]), ValueError, "bias_hh_l1"),
    "nan": (lambda p: p["weight_hh_l1"].__setitem__((5, 2), np.nan), ValueError, r"weight_hh_l1.*finite.*\(5, 2\)"),
    "inf": (lambda p: p["bias_hh_l1"].__setitem__(15, -np.inf), ValueError, "bias_hh_l1.*finite.*-inf"),
}


@pytest.mark.parametrize("case", BAD_PARAMS)
def test_load_params_refuses_before_it_changes(backend, case):
    spoil, error, words = BAD_PARAMS[case]
    layer = lstm(backend)
    before, snapshot = bytes_of(layer.params), layer._snapshot
    new = changed(layer)
    spoil(new)
    with pytest.raises(error, match=words):
        layer.load_params(new)
    assert bytes_of(layer.params) == before and layer._snapshot is snapshot


@pytest.mark.parametrize("mapping", [None, 3, "weights", [("weight_ih_l0", np.zeros(3))]])
def test_load_params_wants_a_mapping(backend, mapping):
    with pytest.raises(TypeError, match="mapping"):
        lstm(backend).load_params(mapping)


def test_load_params_is_strict_about_the_dtype_of_a_float64_layer(backend):
    layer = LSTM(3, 4, dtype=np.float64, backend=backend)
    with pytest.raises(TypeError, match="weight_ih_l0.*float64.*float32"):
        layer.load_params(LSTM(3, 4, backend=backend).params)


# -------------------------------------------------------------------------------------------------------------- edit


def test_edit_in_place_and_by_assignment(backend):
    layer = lstm(backend)
    old = dict(layer.params)
    with layer.edit() as p:
        assert list(p) == list(old) and len(p) == len(old) and "bias_ih_l0" in p and "nonsense" not in p
        p["weight_hh_l0"] *= 0.5
        p["weight_ih_l0"][0, 1] = 9
        p["bias_ih_l0"] = list(range(16))
        p["bias_hh_l0"] = p["bias_ih_l0"]
        p["bias_hh_l0"] += 1  # not bias_ih_l0: what is assigned is copied
        assert bytes_of(layer.params) == bytes_of(old)
    new = layer.params
    assert np.array_equal(new["weight_hh_l0"], old["weight_hh_l0"] * np.float32(0.5))
    assert new["weight_ih_l0"][0, 1] == 9
    assert np.array_equal(new["bias_ih_l0"], np.arange(16))
    assert np.array_equal(new["bias_hh_l0"], np.arange(16) + 1)
    for name in ("weight_ih_l1", "weight_hh_l1", "bias_ih_l1", "bias_hh_l1"):
        assert np.array_equal(new[name], old[name])


@pytest.mark.parametrize("make", [RNN, LSTM, GRU])
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_ih_l1_reverse"])
def test_no_way_to_a_stale_answer(backend, make, name):
    """After an edit the layer computes like one that has had these weights from the start."""
    layer = make(3, 4, 2, bidirectional=True, seed=0, backend=backend)
    x = np.random.default_rng(1).normal(size=(4, 2, 3)).astype(np.float32)
    first = layer(x)[0]
    with layer.edit() as p:
        p[name][...] = 0.25
    fresh = make(3, 4, 2, bidirectional=True, seed=1, backend=backend)
    fresh.load_params(layer.params)
    assert layer(x)[0].tobytes() == fresh(x)[0].tobytes() != first.tobytes()
    _, _, tape = layer.forward(x)
    _, _, fresh_tape = fresh.forward(x)
    dy = np.ones((4, 2, 8), np.float32)
    assert layer.backward(tape, dy)[0].tobytes() == fresh.backward(fresh_tape, dy)[0].tobytes()


def test_step_sees_an_edit(backend):
    layer = lstm(backend)
    x = np.ones((1, 3), np.float32)
    first = layer.step(x, layer.zero_state(1))
    with layer.edit() as p:
        p["bias_ih_l1"] += 1
    assert not np.array_equal(layer.step(x, layer.zero_state(1)), first)


def test_arrays_kept_after_the_block_are_harmless(backend):
    layer = lstm(backend)
    mine = np.ones(16, np.float32)
    with layer.edit() as p:
        kept = p["weight_ih_l0"]
        p["bias_ih_l0"] = mine
    before = bytes_of(layer.params)
    kept[...] = 7
    mine[...] = 7
    assert bytes_of(layer.params) == before
    with pytest.raises(RuntimeError, match="ended"):
        p["weight_ih_l0"] *= 2
    with pytest.raises(RuntimeError, match="ended"):
        p["bias_ih_l0"] = mine
    assert bytes_of(layer.params) == before


def spoil_by_raising(p):
    p["weight_ih_l0"] *= 2
    raise ZeroDivisionError("edit: weight_ih_l0")


def add_name(p):
    p["weight_ih_l0"] *= 2
    p["weight_ih_l7"] = np.zeros(3)


def remove_name(p):
    del p["weight_ih_l0"]


def assign(value):
    def spoil(p):
        p["weight_hh_l0"] *= 2
        p["weight_ih_l0"] = value

    return spoil


def in_place(function):
    def spoil(p):
        p["weight_hh_l0"] *= 2
        function(p["weight_ih_l0"])

    return spoil


def set_shape(a):
    a.shape = (3, 16)


def set_dtype(a):
    a.dtype = np.float16


BAD_EDITS = {
    "block raises": (spoil_by_raising, ZeroDivisionError),
    "name added": (add_name, ValueError),
    "name removed": (remove_name, ValueError),
    "name popped": (lambda p: p.pop("weight_ih_l0"), ValueError),
    "cleared": (lambda p: p.clear(), ValueError),
    "none in place of an array": (lambda p: p.update(weight_ih_l0=None), TypeError),
    "shape": (assign(np.zeros((3, 16), np.float32)), ValueError),
    "dtype": (assign(np.zeros((16, 3))), TypeError),
    "kind": (assign(None), TypeError),
    "nan assigned": (assign(np.full((16, 3), np.nan, np.float32)), ValueError),
    "nan in place": (in_place(lambda a: a.fill(np.nan)), ValueError),
    "inf in place": (in_place(lambda a: a.__setitem__((3, 2), np.inf)), ValueError),
    "reshaped in place": (in_place(set_shape), ValueError),
    "retyped in place": (in_place(set_dtype), TypeError),
}


@pytest.mark.filterwarnings("ignore:Setting the (shape|dtype):DeprecationWarning")
@pytest.mark.parametrize("case", BAD_EDITS)
def test_a_failed_edit_changes_nothing(backend, case):
    spoil, error = BAD_EDITS[case]
    layer = lstm(backend)
    before, snapshot = bytes_of(layer.params), layer._snapshot
    with pytest.raises(error, match="weight_ih_l"):
        with layer.edit() as p:
            spoil(p)
    assert bytes_of(layer.params) == before and layer._snapshot is snapshot
    with layer.edit() as p:  # the lock is free again
        p["bias_ih_l0"][...] = 0
    assert not layer.params["bias_ih_l0"].any()


def test_reading_an_unknown_name_is_a_key_error(backend):
    with lstm(backend).edit() as p:
        with pytest.raises(KeyError):
            p["weight_ih_l7"]
        assert p.get("weight_ih_l7") is None


def test_a_look_without_a_change_keeps_tapes(backend):
    layer = lstm(backend)
    _, _, tape = layer.forward(np.zeros((2, 1, 3), np.float32))
    with layer.edit():
        pass
    layer.backward(tape)


@pytest.mark.parametrize("inner", ["edit", "load_params"])
def test_an_edit_within_an_edit_raises(backend, inner):
    layer = lstm(backend)
    before = bytes_of(layer.params)
    with pytest.raises(RuntimeError, match=inner):
        with layer.edit() as p:
            p["weight_ih_l0"] *= 2
            if inner == "edit":
                with layer.edit():
                    pass
            else:
                layer.load_params(layer.params)
    assert bytes_of(layer.params) == before
    with layer.edit(), lstm(backend).edit():  # two layers are no conflict
        pass


def test_edits_from_threads_are_serialised(backend):
    layer = lstm(backend)
    with layer.edit() as p:
        p["bias_ih_l0"][...] = 0

    def add():
        for _ in range(20):
            with layer.edit() as p:
                value = p["bias_ih_l0"].copy()
                time.sleep(0.0002)
                p["bias_ih_l0"] = value + 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert (layer.params["bias_ih_l0"] == 80).all()


def test_load_params_waits_for_an_edit_of_another_thread(backend):
    layer = lstm(backend)
    new = changed(layer)
    with layer.edit() as p:
        p["bias_ih_l0"][...] = 5
        loader = threading.Thread(target=layer.load_params, args=(new,))
        loader.start()
        time.sleep(0.02)
        assert loader.is_alive()
    loader.join()
    assert bytes_of(layer.params) == bytes_of(new)


def test_calls_during_edits_see_whole_weights(backend):
    """Each answer belongs to one set of weights: all zeros, or all ones."""
    layer = RNN(1, 2, 2, nonlinearity="relu", seed=0, backend=backend)
    zeros = {name: np.zeros_like(a) for name, a in layer.params.items()}
    ones = {name: np.ones_like(a) for name, a in layer.params.items()}
    x = np.ones((2, 1, 1), np.float32)
    allowed = set()
    for params in (zeros, ones):
        layer.load_params(params)
        allowed.add(layer(x)[0].tobytes())
    assert len(allowed) == 2
    stop = threading.Event()

    def edit():
        while not stop.is_set():
            for params in (zeros, ones):
                with layer.edit() as p:
                    p.update(params)

    editor = threading.Thread(target=edit)
    editor.start()
    try:
        answers = {layer(x)[0].tobytes() for _ in range(300)}
    finally:
        stop.set()
        editor.join()
    assert answers <= allowed
