"""The compiled kernels against the NumPy reference, on every instruction set this machine has.

The reference computes in float64 on the same numbers, so what is seen is the error of the kernels; tolerances.py says
how large it may be, and the last section shows that a wrong result is larger.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random

import hypothesis
import numpy as np
import pytest
from helpers import CELLS, mutant, problem
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from tolerances import TABLE, assert_close, operation_of

import elman
from elman import _kernels, reference
from elman import functional as F

DTYPES = ("float32", "float64")
ISAS = _kernels.isa_built()

each_cell = pytest.mark.parametrize("name", CELLS)
each_D = pytest.mark.parametrize("D", [1, 2], ids=["forward", "bidirectional"])
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


@pytest.fixture(params=ISAS)
def isa(request):
    """Every instruction set in turn: what is packed during the test runs on it."""
    if request.param not in _kernels.isa_usable():
        pytest.skip(f"this machine cannot run {request.param}")
    before = _kernels.isa()
    _kernels.select_isa(request.param)
    yield request.param
    _kernels.select_isa(before)


@each_dtype
@each_cell
def test_the_chosen_instruction_set_is_the_one_that_runs(isa, name, dtype):
    p = problem(CELLS[name], 1, 1, 1, 1, dtype=dtype)
    assert p.cell.run(F, "pack", p.weights).packed.isa == isa


# ------------------------------------------------------------------------------------- a problem, and both its answers


def wide(p):
    """The same numbers in float64."""

    def widened(a):
        return None if a is None else a.astype(np.float64)

    return dataclasses.replace(
        p,
        x=widened(p.x),
        state=list(map(widened, p.state)),
        weights=[tuple(map(widened, direction)) for direction in p.weights],
        dy=widened(p.dy),
        dstate=list(map(widened, p.dstate)),
    )


def tame(weights, gates):
    """Recurrent weights that do not blow rounding errors up: of norm 1 at most. Large random ones are so by nature."""
    for _, w_hh, *_ in weights:
        H = w_hh.shape[1]
        if H <= 32:
            blocks = w_hh.reshape(gates, H, H)
            blocks /= np.maximum(1, np.linalg.norm(blocks, 2, axis=(1, 2)))[:, None, None]


def is_spread(p, tape):
    """Whether the problem shows something: no gate is always open, shut, or at rest. `tape` is the reference's."""
    for moments in tape.moments:
        for saved in zip(*(moment.saved[: p.cell.gates] for moment in moments)):
            values = np.concatenate([v.ravel() for v in saved])
            values = values[np.isfinite(values)]
            if values.size < 200:
                continue
            at_rest = values.std() < 0.05
            saturated = (np.abs(values) > 0.99).mean() > 0.5 or (np.abs(values) < 0.01).mean() > 0.7
            if at_rest or (saturated and "_any" not in tape.cell.name):  # which keeps pre-activations
                return False
    return True


def check(p, expected_from=reference):
    """The kernels agree with the reference (or with the mutant of it that is given) about every output and gradient.

    Raises AssertionError; returns whether the problem was a good one. It is not where its gates do nothing, and where
    an input of relu is so close to its kink that rounding decides about the slope.
    """
    q = wide(p)
    y, state, tape = q.forward(expected_from)
    expected = {"y": y} | dict(zip(p.cell.parts, state))
    if not is_spread(p, tape):
        return False
    y, state, kernel_tape = p.forward(F)
    got = {"y": y} | dict(zip(p.cell.parts, state))
    assert all(a.dtype == p.x.dtype for a in got.values())
    assert_close(got, expected)
    if not ((got["y"] > 0) == (expected["y"] > 0)).all() and "relu" in p.cell.options.values():
        return False
    got, expected = (
        {f"d{name}": a for name, a in given.backward(module, tape).items()}
        for given, module, tape in ((p, F, kernel_tape), (q, expected_from, tape))
    )
    assert all(a.dtype == p.x.dtype for a in got.values())
    assert_close(got, expected)
    return True


def check_with_some_seed(make, seed):
    """check(make(seed)), or with the next seed where that one makes no good problem."""
    for attempt in range(10):
        if check(make(seed + 1000 * attempt)):
            return
    raise AssertionError("no seed makes a good problem")


# ---------------------------------------------------------------------------------------------------- a covering design

# What can be combined with everything else. Sizes of I and H are in vectors of the instruction set: (lanes, more).
FACTORS = {
    "kernel": [(name, D, dtype) for name in CELLS for D in (1, 2) for dtype in DTYPES],
    "T": [0, 1, 5, 70],  # 70: beyond CHUNK_ROWS and BLOCK_ROWS
    "B": [0, 1, 2, 3, 7, 70],  # 70: beyond TASK_ROWS; the others: every kind of register tile
    "I": [(0, 1), (1, -1), (1, 0), (1, 1), (3, 0), (16, 3)],  # (16, 3): beyond 4 panels of 4 vectors at once
    "H": [(0, 1), (1, -1), (1, 0), (1, 1), (2, 0), (0, 49), (16, 3)],  # 49: beyond UNIT_BLOCK
    "masks": ["plain", "lengths", "reset", "lengths+reset"],
    "bias": [True, False],
    "state": ["state", "no state", "state in part"],
    "dy": ["dy", "no dy"],
    "dstate": ["dstate", "no dstate", "dstate in part"],
    "threads": [1, 3],
}
LARGEST = 1e8  # multiplications of one case


def cost(case):
    """The multiplications of a case, some of whose factors may be missing (then as cheap as can be)."""
    name, D, _ = case.get("kernel", ("rnn-tanh", 1, None))
    I, H = (16 * lanes + more for lanes, more in (case.get(n, (0, 1)) for n in "IH"))
    return D * CELLS[name].gates * case.get("T", 1) * case.get("B", 1) * H * (I + H)


def pairs(case):
    return {((f, case[f]), (g, case[g])) for f, g in itertools.combinations(FACTORS, 2) if f in case and g in case}


def covering(seed, **fixed):
    """Cases (dicts of factor -> level) in which every pair of levels meets, greedily few. `fixed`: one level each."""
    rng = random.Random(seed)
    levels = {f: [fixed[f]] if f in fixed else list(v) for f, v in FACTORS.items()}
    missing = {
        ((f, a), (g, b)): None  # a dict keeps its order
        for f, g in itertools.combinations(FACTORS, 2)
        for a in levels[f]
        for b in levels[g]
    }
    cases = []
    while missing:
        case = fixed | dict(next(iter(missing)))  # what is fixed counts from the start in what the rest may cost
        for f in rng.sample(list(levels), len(levels)):
            if f not in case:
                fits = [v for v in levels[f] if cost(case | {f: v}) <= LARGEST]
                new = [sum((pair in missing) for pair in pairs_with(case, f, v)) for v in fits]
                case[f] = rng.choice([v for v, n in zip(fits, new) if n == max(new)])
        for pair in pairs(case):
            missing.pop(pair, None)
        cases.append(case)
    return cases


def pairs_with(case, f, v):
    order = list(FACTORS).index
    return [((f, v), (g, u)) if order(f) < order(g) else ((g, u), (f, v)) for g, u in case.items()]


def label(case):
    name, D, dtype = case["kernel"]
    sizes = "-".join(f"{n}={lanes}v{more:+d}" for n, (lanes, more) in ((n, case[n]) for n in "IH"))
    rest = "-".join(case[f] for f in ("masks", "state", "dy", "dstate"))
    bias = "bias" if case["bias"] else "no bias"
    return f"{name}-D{D}-{dtype}-T{case['T']}-B{case['B']}-{sizes}-{rest}-{bias}-{case['threads']} threads"


def problem_of(case, seed):
    name, D, dtype = case["kernel"]
    cell, T, B = CELLS[name], case["T"], case["B"]
    packed = _kernels.Packed(0, dtype == "float64", 1, 1, 1, 1)
    I, H = (max(1, packed.lanes * lanes + more) for lanes, more in (case["I"], case["H"]))
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, T + 1, B) if "lengths" in case["masks"] else None
    reset = rng.random((T, B)) < 0.2 if "reset" in case["masks"] else None
    p = problem(cell, T, B, I, H, D, dtype, case["bias"], lengths, reset, seed)
    tame(p.weights, cell.gates)
    p.state = without(p.state, case["state"])
    p.dstate = without(p.dstate, case["dstate"])
    if case["dy"] == "no dy":
        p.dy = None
    return p


def without(parts, what):
    """All parts of a state, none, or all but the first."""
    if what.startswith("no "):
        return [None] * len(parts)
    return [None, *parts[1:]] if what.endswith(" in part") else parts


def check_case(case, seed):
    with elman.threads(case["threads"]):
        check_with_some_seed(functools.partial(problem_of, case), seed)


CASES = [
    pytest.param(isa, case, seed, id=f"{isa}-{label(case)}-seed{seed}")
    for number, isa in enumerate(ISAS)
    for seed, case in enumerate(covering(number))
]


def test_the_design_meets_every_pair_of_levels():
    for isa in ISAS:
        met = set().union(*(pairs(case.values[1]) for case in CASES if case.values[0] == isa))
        for f, g in itertools.combinations(FACTORS, 2):
            assert all(((f, a), (g, b)) in met for a in FACTORS[f] for b in FACTORS[g]), f"{f} and {g} on {isa}"
    assert max(cost(case.values[1]) for case in CASES) <= LARGEST


@pytest.mark.parametrize("isa, case, seed", CASES, indirect=["isa"])
def test_every_pair_of_options(isa, case, seed):
    check_case(case, seed)


@pytest.mark.parametrize("kernel", FACTORS["kernel"], ids=lambda kernel: "{}-D{}-{}".format(*kernel))
def test_every_pair_of_options_in_every_kernel(isa, kernel):
    for seed, case in enumerate(covering(str(kernel), kernel=kernel)):
        try:
            check_case(case, seed)
        except AssertionError as error:
            raise AssertionError(f"{label(case)}, seed {seed}: {error}") from error


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@hypothesis.given(data=st.data())
def test_any_shape_lengths_and_reset(isa, data):
    def draw(name, strategy):
        return data.draw(strategy, label=name)

    cell, D = CELLS[draw("cell", st.sampled_from(sorted(CELLS)))], draw("D", st.integers(1, 2))
    dtype, seed = draw("dtype", st.sampled_from(DTYPES)), draw("seed", st.integers(0, 999))
    T, B = draw("T", st.integers(0, 12)), draw("B", st.integers(0, 12))
    I, H = draw("I", st.integers(1, 40)), draw("H", st.integers(1, 40))
    lengths = draw("lengths", st.none() | st.lists(st.integers(0, T), min_size=B, max_size=B))
    steps = st.lists(st.booleans(), min_size=B, max_size=B)
    reset = draw("reset", st.none() | st.lists(steps, min_size=T, max_size=T))
    lengths = None if lengths is None else np.array(lengths, np.intp)
    reset = None if reset is None else np.array(reset, bool).reshape(T, B)

    def make(seed):
        p = problem(cell, T, B, I, H, D, dtype, lengths=lengths, reset=reset, seed=seed)
        tame(p.weights, cell.gates)
        return p

    check_with_some_seed(make, seed)


# ------------------------------------------------------------------------------------------------------- odd arguments

T, B, I, H = 6, 7, 5, 9
LENGTHS = np.array([6, 0, 3, 1, 6, 5, 2])
RESET = np.random.default_rng(0).random((T, B)) < 0.25


def odd_problem(name, D, dtype):
    return problem(CELLS[name], T, B, I, H, D, dtype, lengths=LENGTHS.copy(), reset=RESET.copy())


def moved(a, offset):
    """The same values, `offset` bytes behind a multiple of 64."""
    memory = np.empty(a.nbytes + 64 + offset, np.uint8)
    start = -memory.ctypes.data % 64 + offset
    result = memory[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    result[...] = a
    return result


def with_reversed(axis):
    def odd(a):
        return np.flip(np.ascontiguousarray(np.flip(a, axis % a.ndim)), axis % a.ndim)

    return odd


def every_second(axis):
    def odd(a):
        index = [slice(None)] * a.ndim
        index[axis % a.ndim] = slice(None, None, 2)
        result = np.repeat(a, 2, axis % a.ndim)
        result[tuple(slice(1, None, 2) if s.step else s for s in index)] = 77
        return result[tuple(index)]

    return odd


def read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


ODD_FORMS = {
    "one byte off": lambda a: moved(a, 1),
    "one element off": lambda a: moved(a, a.itemsize),
    "read-only": read_only,
    "Fortran order": np.asfortranarray,
    "batch first": lambda a: np.ascontiguousarray(a.swapaxes(0, -2)).swapaxes(0, -2) if a.ndim > 1 else a,
    "time reversed": with_reversed(0),
    "batch reversed": with_reversed(1),
    "last axis reversed": with_reversed(-1),
    "every second step": every_second(0),
    "every second sequence": every_second(1),
    "every second column": every_second(-1),
}


def in_form(p, form):
    """The problem with every array in an odd form."""
    return dataclasses.replace(
        p,
        x=form(p.x),
        state=list(map(form, p.state)),
        weights=[tuple(map(form, direction)) for direction in p.weights],
        dy=form(p.dy),
        dstate=list(map(form, p.dstate)),
        lengths=None if p.lengths is None else form(p.lengths),
        reset=None if p.reset is None else form(p.reset),
    )


def assert_same_bytes(got, expected):
    """Two sets of results (name -> array) are equal to the last bit."""
    assert got.keys() == expected.keys()
    for name, e in expected.items():
        assert got[name].shape == e.shape and got[name].tobytes() == e.tobytes(), f"{name} has other bytes"


@pytest.mark.parametrize("form", ODD_FORMS)
@each_dtype
@each_D
@each_cell
def test_arguments_in_odd_memory(name, D, dtype, form):
    p = odd_problem(name, D, dtype)
    odd = in_form(p, ODD_FORMS[form])
    np.testing.assert_array_equal(odd.x, p.x)
    assert_same_bytes(odd.results(F), p.results(F))


@each_cell
def test_the_odd_forms_are_odd(name):
    """Each differs from the plain arrays in a flag, the strides, the address or the dtype, in both dtypes."""
    for dtype, (form, make) in itertools.product(DTYPES, ODD_FORMS.items()):
        plain = odd_problem(name, 1, dtype).x
        odd = make(plain)
        assert (
            odd.strides != plain.strides
            or odd.dtype != plain.dtype
            or odd.flags.writeable != plain.flags.writeable
            or odd.flags.aligned != plain.flags.aligned
            or odd.ctypes.data % 64 == odd.itemsize
        ), form


@pytest.mark.parametrize("form", ODD_FORMS)
@each_dtype
@each_cell
def test_arguments_of_a_step_in_odd_memory(name, dtype, form):
    p = odd_problem(name, 1, dtype)
    odd = in_form(p, ODD_FORMS[form])
    x = np.where(p.inside, p.x, 0)
    odd_x = ODD_FORMS[form](x)
    for t in range(T):
        before = p.cell.state([part.copy() for part in p.state])
        expected = p.cell.run(F, "step", x[t], before, [p.weights])
        # a state that cannot be written to is refused: it is given as it comes
        after = p.cell.state([part.copy() for part in p.state])
        got = p.cell.run(F, "step", odd_x[t], after, [odd.weights])
        assert got.tobytes() == expected.tobytes()
        for a, b in zip(p.cell.parts_of(before), p.cell.parts_of(after)):
            assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("form", ["one element off", "batch reversed", "every second sequence", "batch first"])
@each_dtype
@each_cell
def test_a_step_changes_the_state_in_place_wherever_it_lies(name, dtype, form):
    p = problem(CELLS[name], 1, B, I, H, 1, dtype)
    plain = [part.copy() for part in p.state]
    odd = [ODD_FORMS[form](part) for part in p.state]
    out = np.empty((B, H), dtype)
    p.cell.run(F, "step", p.x[0], p.cell.state(plain), [p.weights])
    returned = p.cell.run(F, "step", p.x[0], p.cell.state(odd), [p.weights], out=out)
    assert returned is out and out.tobytes() == plain[0][0].tobytes()
    for a, b in zip(odd, plain):
        np.testing.assert_array_equal(a, b)


# ------------------------------------------------------------------------------------------------------------- canaries

CANARY = 0xFF  # a NaN in both dtypes, so that what is read by mistake shows as well


class Guarded:
    """In place of NumPy in elman.functional: memory that is new is full of NaN and stands between canaries."""

    SPACE = 256

    def __init__(self):
        self.memories = []

    def __getattr__(self, name):
        return getattr(np, name)

    def empty(self, shape, dtype=np.float64):
        shape, dtype = np.atleast_1d(shape), np.dtype(dtype)
        size = int(np.prod(shape)) * dtype.itemsize
        memory = np.full(2 * self.SPACE + size + 64, CANARY, np.uint8)
        start = -memory.ctypes.data % 64 + self.SPACE
        self.memories.append((memory, start, start + size))
        return memory[start : start + size].view(dtype).reshape(shape)

    def zeros(self, shape, dtype=np.float64):
        a = self.empty(shape, dtype)
        a[...] = 0
        return a

    def empty_like(self, a):
        return self.empty(a.shape, a.dtype)

    def filled(self, a):
        copy = self.empty_like(a)
        copy[...] = a
        return copy

    def assert_alive(self):
        assert self.memories
        for memory, start, end in self.memories:
            assert (memory[:start] == CANARY).all(), "written before an array"
            assert (memory[end:] == CANARY).all(), "written behind an array"


@pytest.fixture
def guarded(monkeypatch):
    guard = Guarded()
    monkeypatch.setattr(F, "np", guard)
    return guard


@pytest.mark.parametrize("masks", ["plain", "lengths+reset"])
@pytest.mark.parametrize("size", [(0, 1), (1, -1), (1, 0), (1, 1), (0, 49)], ids="{0[0]}v{0[1]:+d}".format)
@each_dtype
@each_D
@each_cell
def test_nothing_is_touched_around_any_array(isa, guarded, name, D, dtype, size, masks):
    """Not outside of outputs and gradients; and not read outside of the arguments. (Packed weights and scratch have
    guards in tests/csrc/check.c.)"""
    case = {"kernel": (name, D, dtype), "T": 5, "B": 7, "I": size, "H": size, "masks": masks, "bias": True}
    p = problem_of(case | {"state": "state", "dy": "dy", "dstate": "dstate"}, seed=0)
    expected = wide(p).results(reference)
    assert_close(in_form(p, guarded.filled).results(F), expected)
    guarded.assert_alive()


@pytest.mark.parametrize("recompute", [False, True])
@each_dtype
@each_D
@each_cell
def test_a_tape_in_larger_memory_ends_where_it_should(name, D, dtype, recompute):
    """Memory that an earlier tape has left for it may be larger."""
    p = odd_problem(name, D, dtype)
    _, _, tape = p.forward(F, recompute=recompute)
    expected, size = p.backward(F, tape), tape.kept.nbytes
    packed = dataclasses.replace(p, weights=p.cell.run(F, "pack", p.weights))
    left = _kernels.Memory(2 * size)
    np.frombuffer(left, np.uint8)[:] = CANARY
    packed.weights.spare.append(left)
    _, _, tape = packed.forward(F, recompute=recompute)
    assert tape.memory is left
    assert_same_bytes(packed.backward(F, tape), expected)
    rest = np.frombuffer(left, np.uint8)[size:]
    assert len(rest) == size and (rest == CANARY).all(), "written behind a tape"
    del tape
    assert list(packed.weights.spare) == [left], "the next tape cannot have it"


@pytest.mark.parametrize("offset", [-1, 0], ids=["before", "behind"])
def test_a_canary_dies_of_one_element(offset):
    guard = Guarded()
    guard.zeros((2, 3), np.float32)
    guard.assert_alive()
    memory, start, end = guard.memories[0]
    memory[start - 4 if offset else end] = 0
    with pytest.raises(AssertionError, match="written"):
        guard.assert_alive()


OUT_FORMS = {  # where an array of a given shape lies in a larger one: (shape of that one, what to take of it)
    "dense": lambda *shape: ((3, *shape), lambda a: a[1]),
    "one element off": lambda *shape: (
        (int(np.prod(shape)) + 9,),
        lambda a: a[1 : 1 + int(np.prod(shape))].reshape(shape),
    ),
    "rows apart": lambda *shape: ((*shape[:-1], shape[-1] + 5), lambda a: a[..., 2 : 2 + shape[-1]]),
    "first axis reversed": lambda *shape: ((3, *shape), lambda a: a[1][::-1]),
    "every second of the first axis": lambda *shape: ((2 * shape[0] + 1, *shape[1:]), lambda a: a[1::2]),
    "batch first": lambda *shape: ((shape[-2], *shape[:-2], shape[-1]), lambda a: np.moveaxis(a, 0, -2)),
    "every second sequence": lambda *shape: (
        (*shape[:-2], 2 * shape[-2] + 1, shape[-1]),
        lambda a: a[..., 1::2, :],
    ),
}


def check_out(form, expected, write):
    """write(out) writes `expected` into an `out` of that form, and nothing around it."""
    shape, part = OUT_FORMS[form](*expected.shape)
    blank = np.full(expected.nbytes, CANARY, np.uint8).view(expected.dtype).reshape(expected.shape)
    memory = np.full(int(np.prod(shape)) * expected.itemsize, CANARY, np.uint8)
    out = part(memory.view(expected.dtype).reshape(shape))
    assert out.shape == expected.shape
    assert write(out) is out
    assert out.tobytes() == expected.tobytes()
    out[...] = blank
    assert (memory == CANARY).all(), "written beside `out`"


@pytest.mark.parametrize("form", OUT_FORMS)
@pytest.mark.parametrize("masks", ["plain", "lengths+reset"])
@each_dtype
@each_D
@each_cell
def test_out_is_written_and_nothing_beside_it(name, D, dtype, masks, form):
    p = odd_problem(name, D, dtype) if masks != "plain" else problem(CELLS[name], T, B, I, H, D, dtype)
    expected, _, _ = p.forward(F)
    check_out(form, expected, lambda out: p.forward(F, out=out)[0])


@pytest.mark.parametrize("form", OUT_FORMS)
@each_dtype
@each_cell
def test_out_of_a_step_is_written_and_nothing_beside_it(name, dtype, form):
    p = problem(CELLS[name], 1, B, I, H, 1, dtype)

    def step(out):
        state = p.cell.state([part.copy() for part in p.state])
        return p.cell.run(F, "step", p.x[0], state, [p.weights], out=out)

    check_out(form, step(None), step)


def arrays_of(p):
    found = [p.x, p.dy, *p.state, *p.dstate, p.lengths, p.reset, *itertools.chain(*p.weights)]
    return [a for a in found if a is not None]


@each_dtype
@each_D
@each_cell
def test_arguments_and_tape_stay_as_they_are(name, D, dtype):
    p = odd_problem(name, D, dtype)
    before = [a.tobytes() for a in arrays_of(p)]
    _, _, tape = p.forward(F)
    kept = [tape.kept, tape.x, tape.lengths, tape.reset]
    on_tape = [a.tobytes() for a in kept]
    once = p.backward(F, tape)
    assert [a.tobytes() for a in arrays_of(p)] == before
    assert [a.tobytes() for a in kept] == on_tape
    assert_same_bytes(p.backward(F, tape), once)


@each_dtype
@each_D
@each_cell
def test_a_tape_keeps_copies(name, D, dtype):
    p = odd_problem(name, D, dtype)
    y, _, tape = p.forward(F)
    expected = p.backward(F, tape)
    dy, dstate = p.dy, p.dstate
    for a in (*arrays_of(dataclasses.replace(p, dy=None, dstate=[])), y):
        a[...] = 1
    assert_same_bytes(dataclasses.replace(p, dy=dy, dstate=dstate).backward(F, tape), expected)


@each_D
@each_cell
def test_results_share_no_memory(name, D):
    p = odd_problem(name, D, "float32")
    arrays = list(p.results(F).values()) + arrays_of(p)
    assert not any(np.shares_memory(a, b) for a, b in itertools.combinations(arrays, 2))


# ----------------------------------------------------------------------------------------------------- NaN and infinity


@pytest.mark.parametrize("masks", ["plain", "lengths+reset"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf], ids=str)
@each_dtype
@each_D
@each_cell
def test_nan_and_infinity_in_x_travel_as_in_the_reference(isa, name, D, dtype, value, masks):
    p = odd_problem(name, D, dtype) if masks != "plain" else problem(CELLS[name], T, B, I, H, D, dtype)
    p.x[2, 4, 1] = value
    p.x[1, 2, 0] = value
    assert not np.isfinite(p.results(F)["dweight_ih[0]"]).all()
    assert check(p)


@each_dtype
@each_D
@each_cell
def test_nothing_past_the_end_matters(isa, name, D, dtype):
    p = odd_problem(name, D, dtype)
    assert np.isnan(p.x).any() and np.isnan(p.dy).any()
    clean = dataclasses.replace(p, x=np.where(p.inside, p.x, 0), dy=np.where(p.inside, p.dy, 0))
    results = p.results(F)
    assert_same_bytes(results, clean.results(F))
    outside = ~p.inside[:, :, 0]
    assert not results["y"][outside].any() and not results["dx"][outside].any()


@each_dtype
@each_cell
def test_a_reset_at_the_start_kills_nan_in_the_state(isa, name, dtype):
    p = problem(CELLS[name], T, B, I, H, 1, dtype, reset=np.arange(T)[:, None] == np.zeros(B))
    zero = dataclasses.replace(p, state=[np.zeros_like(part) for part in p.state])
    p.state = [np.full_like(part, np.nan) for part in p.state]
    results = p.results(F)
    assert_same_bytes(results, zero.results(F))
    assert all(not results[f"d{part}0"].any() for part in p.cell.parts)


@each_dtype
@each_D
@each_cell
def test_a_reset_stops_nan_in_both_directions(isa, name, D, dtype):
    """A NaN initial state lives until the reset; what the loss says beyond the reset does not come back through it."""
    p = problem(CELLS[name], T, B, I, H, D, dtype, reset=np.arange(T)[:, None] == np.full(B, 3))
    p.state = [np.full_like(part, np.nan) for part in p.state]
    y, _, _ = p.forward(F)
    assert np.isnan(y[:3, :, :H]).all() and np.isfinite(y[3:, :, :H]).all()
    assert np.isfinite(y[:3, :, H:]).all() and np.isnan(y[3:, :, H:]).all()
    assert check(p)
    p = dataclasses.replace(p, state=[np.zeros_like(part) for part in p.state])
    p.dy[4] = np.nan
    if name != "rnn-relu":  # of a NaN that meets a closed relu, reference and kernel disagree: NaN * 0 and 0
        assert check(p)
    gradients = p.backward(F, p.forward(F)[2])
    assert np.isfinite(gradients["x"][:3]).all() and np.isfinite(gradients["h0"][0]).all()


# ------------------------------------------------------------------------------------ a wrong result raises an error

BUGS = [  # what is wrong, cell, function of elman.reference, the right source, the wrong one
    ("sign of a gate", "lstm", "_lstm_step", "f * c + i * g", "f * c - i * g"),
    ("swapped gates", "lstm", "_lstm_step", "a_i, a_f, a_g, a_o", "a_f, a_i, a_g, a_o"),
    ("swapped gates", "gru-after", "_gru_after_step", "(1 - z) * n + z * h", "(1 - z) * h + z * n"),
    ("swapped gates", "gru-before", "_gru_before_step", "ax_r, ax_z, ax_n", "ax_z, ax_r, ax_n"),
    ("reset gate in the wrong place", "gru-after", "_gru", "_GRU_AFTER if", "_GRU_BEFORE if"),
    ("reset gate in the wrong place", "gru-before", "_gru", "_GRU_BEFORE if", "_GRU_AFTER if"),
    ("wrong activation", "rnn-tanh", "_rnn", "_RNN[", "_RNN['sigmoid'] or _RNN["),
    ("no bias", "rnn-tanh", "_linear", "x @ W.T + b", "x @ W.T"),
    ("no recurrent bias", "lstm", "_filled", "if a is None and", 'if a is None or name == "bias_hh" and'),
    ("initial state ignored", "rnn-sigmoid", "_forward", "else part.copy()", "else 0 * part"),
    ("x of t - 1", "rnn-tanh", "_forward", "x_t = x[t, rows]", "x_t = x[t - 1, rows]"),
    ("one step past the end", "rnn-relu", "_forward", "np.flatnonzero(t < ends)", "np.flatnonzero(t <= ends)"),
    ("reset one step late", "lstm", "_cuts", "return begins\n", "return np.roll(begins, 1, axis=0)\n"),
    ("reset one step late", "gru-after", "_cuts", "begins[1:] &", "begins[:-1] &"),
    ("reset past the end", "gru-before", "_cuts", "begins[1:] & (np.arange(1, T)[:, None] < ends)", "begins[1:]"),
    (
        "gradient through a reset",
        "rnn-tanh",
        "_backward",
        "np.where(cut, 0, _clip(limit, new + beside))",
        "_clip(limit, new + beside)",
    ),
    (
        "dy of t - 1",
        "gru-after",
        "_backward",
        "direct_part[t, rows, columns[i]]",
        "direct_part[t - 1, rows, columns[i]]",
    ),
    ("dy through time lost", "rnn-sigmoid", "_backward", "dafter[i] + direct_part", "direct_part"),
    ("dx of one direction", "lstm", "_backward", "dx[t, rows] += dx_t", "dx[t, rows] = dx_t"),
    ("weight gradient of one step", "lstm", "_backward", "total += addend", "total[...] = addend"),
    ("h of t + 1", "rnn-tanh", "_rnn_cell", "_linear_backward(da, h, W_hh)", "_linear_backward(da, h_t, W_hh)"),
    ("no slope", "rnn-relu", "_rnn_cell", "da = dh_t * slope(h_t)", "da = dh_t"),
    ("slope at h of t - 1", "rnn-sigmoid", "_rnn_cell", "da = dh_t * slope(h_t)", "da = dh_t * slope(h)"),
    ("dc lost", "lstm", "_lstm_step_backward", "dc_t = dc_t + dh_t", "dc_t = dh_t"),
    ("dc without f", "lstm", "_lstm_step_backward", "dc = dc_t * f", "dc = dc_t"),
    ("c of t + 1", "lstm", "_lstm_step_backward", "df = dc_t * c\n", "df = dc_t * c_t\n"),
    ("sign of dg", "lstm", "_lstm_step_backward", "dg = dc_t * i", "dg = -dc_t * i"),
    ("swapped gradients", "lstm", "_lstm_step_backward", "[da_i, da_f, da_g, da_o]", "[da_i, da_f, da_o, da_g]"),
    ("sign of dz", "gru-after", "_gru_after_step_backward", "(h - n)", "(n - h)"),
    ("direct path lost", "gru-after", "_gru_after_step_backward", "dh = dh + dh_t * z", "dh = dh"),
    ("r forgotten", "gru-after", "_gru_after_step_backward", "dah_n = da_n * r", "dah_n = da_n"),
    ("r forgotten", "gru-before", "_gru_before_step_backward", "drh * r", "drh"),
    ("h for r * h", "gru-before", "_gru_before_step_backward", "(da_n, r * h, W_hn)", "(da_n, h, W_hn)"),
    ("no clip", "rnn-any", "_clip", "a if limit is None else np.clip(a, -limit, limit)", "a"),
    ("gradient through a clip", "rnn-any", "_clip_backward", "np.where(np.abs(a) < limit, da, 0)", "da"),
    ("peephole of o at the old c", "lstm-any", "_lstm_any", "peep(p_o, c_t)", "peep(p_o, c)"),
    ("peephole of o forgotten in dc", "lstm-any", "_lstm_any", " + peep(p_o, da_o)", ""),
    ("peephole of f forgotten in dc", "lstm-any", "_lstm_any", " + peep(p_f, da_f)", ""),
    ("swapped peepholes", "lstm-any", "_lstm_any", "((da_i, c), (da_f, c)", "((da_f, c), (da_i, c)"),
    ("r forgotten", "gru-after-any", "_gru_after_any", "da_n * r]", "da_n]"),
    ("h for r * h", "gru-before-any", "_gru_before_any", "(da_n, r * h, W_hn)", "(da_n, h, W_hn)"),
]


@each_dtype
@pytest.mark.parametrize("what, name, function, right, wrong", BUGS, ids=[f"{bug[1]}: {bug[0]}" for bug in BUGS])
def test_a_planted_bug_is_seen(what, name, function, right, wrong, dtype):
    p = odd_problem(name, 2, dtype)
    assert check(p)
    with pytest.raises(AssertionError, match="times the tolerance"):
        check(p, mutant(reference, function, right, wrong))


@each_dtype
@each_cell
def test_an_array_that_is_wrong_by_a_little_is_seen(name, dtype):
    """By 1e-4 of its size in float32, by 1e-10 in float64: all of it, or its largest element alone."""
    little = {"float32": 1e-4, "float64": 1e-10}[dtype]
    p = odd_problem(name, 2, dtype)
    expected, right = wide(p).results(reference), p.results(F)
    assert_close(right, expected)
    for array, a in right.items():
        alone = a.copy()
        alone[np.unravel_index(np.abs(a).argmax(), a.shape)] *= 1 + little
        for wrong in (a * a.dtype.type(1 + little), alone):
            with pytest.raises(AssertionError, match="times the tolerance"):
                assert_close(right | {array: wrong}, expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1.0], ids=str)
@pytest.mark.parametrize("operation, dtype", TABLE, ids="-".join)
def test_nan_and_infinities_are_close_to_themselves_alone(operation, dtype, value):
    name = {"forward": "y", "backward": "dx", "weights": "dbias_ih[0]"}[operation]
    assert operation_of(name) == operation
    assert_close({name: np.array([value, 2], dtype)}, {name: np.array([value, 2])})
    for other in {np.nan, np.inf, -np.inf, 0.0, 1.0} - {value}:
        if not np.isnan([other, value]).all():
            with pytest.raises(AssertionError, match="times the tolerance"):
                assert_close({name: np.array([other, 2], dtype)}, {name: np.array([value, 2])})


def test_names_and_shapes_are_compared():
    with pytest.raises(AssertionError):
        assert_close({"y": np.zeros(2)}, {"y": np.zeros(2), "h": np.zeros(2)})
    with pytest.raises(AssertionError, match="shape"):
        assert_close({"y": np.zeros(2)}, {"y": np.zeros((2, 1))})
