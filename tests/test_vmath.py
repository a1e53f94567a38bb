"""exp, sigmoid and tanh of the kernels: at most 4 units in the last place from the truth, on every instruction set.

The truth is NumPy in the next wider float type, and mpmath. Subnormal arguments and results may be taken as zero.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest

import elman
from elman import _kernels
from elman import functional as F

FUNCTIONS = ("exp", "sigmoid", "tanh")
DTYPES = ("float32", "float64")
LIMIT = 4.0  # units in the last place

# Where the functions change their behaviour: 1 and its neighbours, signs, the ends of the range of exp.
BORDERS = [0.0, 0.25, 0.5, 1.0, 2.0, 9.0, 19.1, 20.0, 36.7, 44.36, 87.33654, 88.02969, 88.72283, 88.72284, 89.0]
BORDERS += [103.97208, 104.0, 127.0, 354.9, 372.5, 708.3964, 709.0895, 709.78271289, 710.0, 745.13, 746.0, 1e3, 1e30]


@pytest.fixture(params=FUNCTIONS)
def name(request):
    return request.param


@pytest.fixture(params=DTYPES)
def dtype(request):
    return np.dtype(request.param)


class Truth(NamedTuple):
    """What f(x) should be, in a wider type: `value`, and one unit in the last place of the narrow type there."""

    value: np.ndarray
    ulp: np.ndarray
    may_be: np.ndarray  # another right answer: what a subnormal argument or result gives when it is taken as zero


def sigmoid(x):
    return 1 / (1 + np.exp(-x))  # accurate in the wide type, where e^-x overflows only past the narrow type's range


WIDE_FUNCTIONS = {"exp": np.exp, "sigmoid": sigmoid, "tanh": np.tanh}


def truth_of(name, x, wide_function=None):
    """The truth of float32 in float64, of float64 in long double."""
    wide = np.float64 if x.dtype == np.float32 else np.longdouble
    with np.errstate(all="ignore"):
        value = (wide_function or WIDE_FUNCTIONS[name])(x.astype(wide))
    return described(name, x, value)


def described(name, x, value):
    info = np.finfo(x.dtype)
    exponent = np.frexp(bounded(value, x.dtype))[1]
    exponent[value == 0] = info.minexp
    ulp = np.ldexp(value.dtype.type(1), np.maximum(exponent, info.minexp + 1) - 1 - info.nmant)
    at_zero = {"exp": 1.0, "sigmoid": 0.5, "tanh": 0.0}[name]
    may_be = np.where(np.abs(value) < info.tiny, 0.0, np.where(np.abs(x) < info.tiny, at_zero, np.nan))
    return Truth(value, ulp, may_be)


def bounded(value, dtype):
    """Infinity as the number that would come after the largest of `dtype`."""
    beyond = 2 * value.dtype.type(2) ** (np.finfo(dtype).maxexp - 1)
    return np.clip(value, -beyond, beyond)


def errors(got, truth):
    """The distance from the truth in units in the last place; infinite where just one of both is NaN."""
    wide = got.astype(truth.value.dtype)
    error = np.abs(bounded(wide, got.dtype) - bounded(truth.value, got.dtype)) / truth.ulp
    error[got == truth.may_be] = 0
    nan, truly_nan = np.isnan(got), np.isnan(truth.value)
    error[nan & truly_nan] = 0
    error[nan != truly_nan] = np.inf
    return error


def assert_close(name, x, got, truth, limit=LIMIT):
    error = errors(got, truth)
    worst = int(np.argmax(error))
    where = f"{name}({x[worst]!r}) = {got[worst]!r}, truth {truth.value[worst]!r}"
    assert error[worst] <= limit, f"{error[worst]:.2f} ulp: {where}"
    return error[worst]


def bits(a):
    return a.view(f"u{a.dtype.itemsize}")


def borders(dtype):
    """The borders and the values around them, with both signs, and the ends of the type."""
    info = np.finfo(dtype)
    numbers = BORDERS + [info.max, info.tiny, info.tiny * 2, info.tiny / 2, info.smallest_subnormal, info.eps]
    numbers += [n * np.log(2) / 2 for n in range(1, 2200, 7)]
    numbers = np.array([b for b in numbers if b <= float(info.max)], dtype)
    near = (bits(numbers)[:, None] + np.arange(-40, 41).astype(bits(numbers).dtype)).reshape(-1).view(dtype)
    near = near[np.isfinite(near)]
    return np.concatenate([near, -near, np.array([0.0, -0.0, np.inf, -np.inf, np.nan], dtype)])


def scattered(dtype, n, seed=0):
    """Random numbers: over all bit patterns, over the range where the functions are neither 0 nor constant, tiny."""
    rng = np.random.default_rng(seed)
    unsigned = f"u{dtype.itemsize}"
    patterns = rng.integers(0, np.iinfo(unsigned).max, n, unsigned, endpoint=True).view(dtype)
    reach = -float(np.log(np.finfo(dtype).tiny)) * 1.06
    wide = rng.uniform(-reach, reach, n).astype(dtype)
    narrow = rng.normal(0, 2, n).astype(dtype)
    small = (rng.choice([-1, 1], n) * 2.0 ** rng.uniform(-70, 1, n)).astype(dtype)
    return np.concatenate([patterns, wide, narrow, small])


def has_wide_long_double():
    return np.finfo(np.longdouble).nmant >= 63


# ---------------------------------------------------------------------------------------------- accuracy


def test_float32_is_within_4_ulp(name, isa):
    patterns = np.arange(0, 2**32, 4093, np.uint64).astype(np.uint32).view(np.float32)
    x = np.concatenate([borders(np.dtype(np.float32)), patterns, scattered(np.dtype(np.float32), 200_000)])
    assert_close(name, x, getattr(F, name)(x), truth_of(name, x))


def test_float64_is_within_4_ulp_of_long_double(name, isa):
    if not has_wide_long_double():
        pytest.skip("long double is no wider than double here")
    x = np.concatenate([borders(np.dtype(np.float64)), scattered(np.dtype(np.float64), 120_000)])
    assert_close(name, x, getattr(F, name)(x), truth_of(name, x))


def mpmath_points():
    x = borders(np.dtype(np.float64))[::37]
    return np.concatenate([x[np.isfinite(x)], [0.0, 1e300, -1e300], scattered(np.dtype(np.float64), 400, seed=1)])


@pytest.fixture(scope="module")
def mpmath_truths():
    """x and the truths of the three functions in 60 digits; a value beyond float64 counts as just beyond."""
    mpmath = pytest.importorskip("mpmath")
    x = mpmath_points()
    x = x[np.isfinite(x)]
    mp = mpmath.mp.clone() if hasattr(mpmath.mp, "clone") else mpmath.mp
    mp.dps = 60
    functions = {
        "exp": mp.exp,
        "sigmoid": lambda v: 1 / (1 + mp.exp(-v)),
        "tanh": lambda v: mp.sign(v) if abs(v) > 1000 else mp.tanh(v),
    }
    exact = {name: [function(mp.mpf(max(-1e4, min(1e4, float(v))))) for v in x] for name, function in functions.items()}
    return mp, x, exact


def test_float64_is_within_4_ulp_of_mpmath(name, isa, mpmath_truths):
    mp, x, exact = mpmath_truths
    info = np.finfo(np.float64)
    assert len(x) > 2000
    worst = 0.0
    for v, got, true in zip(x, getattr(F, name)(x), exact[name]):
        flushed = {"exp": 1.0, "sigmoid": 0.5, "tanh": 0.0}[name]
        if (abs(v) < info.tiny and got == flushed) or (abs(true) < info.tiny and got == 0):
            continue
        beyond = mp.mpf(2) ** 1024
        ulp = mp.mpf(2) ** (max(mp.frexp(min(abs(true), beyond))[1], -1021) - 53)
        value = min(mp.mpf(float(got)), beyond)
        error = abs(value - min(true, beyond)) / ulp
        assert error <= LIMIT, f"{float(error):.2f} ulp: {name}({v!r}) = {got!r}, truth {mp.nstr(true, 25)}"
        worst = max(worst, error)
    assert worst > 0  # something was measured


WRONG = {  # of an array with one element
    "4.5 to 9 ulp too small": lambda good: (bits(good) - 9).view(good.dtype),
    "zero (or 1)": lambda good: np.where(good == 0, 1, 0),
    "nan": lambda good: good * np.nan,
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("at", [-87.0, -2.0, -0.01, 0.0078125, 1.0, 80.0, -1e4, 1e4, np.inf, -np.inf])
def test_a_wrong_value_is_noticed(wrong, at, name, dtype):
    if dtype == np.float64 and not has_wide_long_double():
        pytest.skip("long double is no wider than double here")
    x = np.array([0.5, at, -0.5], dtype)
    truth = truth_of(name, x)
    with np.errstate(over="ignore"):
        good = truth.value.astype(dtype)
    assert_close(name, x, good, truth)
    bad = good.copy()
    with np.errstate(invalid="ignore"):
        bad[1:2] = WRONG[wrong](good[1:2])
    with pytest.raises(AssertionError, match="ulp"):
        assert_close(name, x, bad, truth)


# ---------------------------------------------------------------------------------------------- special values


SPECIAL = {
    "exp": {np.inf: np.inf, -np.inf: 0.0, 0.0: 1.0, 1e4: np.inf, -1e4: 0.0},
    "sigmoid": {np.inf: 1.0, -np.inf: 0.0, 0.0: 0.5, 1e4: 1.0, -1e4: 0.0},
    "tanh": {np.inf: 1.0, -np.inf: -1.0, 0.0: 0.0, 1e4: 1.0, -1e4: -1.0},
}


def test_infinities_and_zero_are_exact(name, dtype, isa):
    for x, expected in SPECIAL[name].items():
        got = getattr(F, name)(np.array([x], dtype))[0]
        assert got == expected and not np.signbit(got) == (expected >= 0), f"{name}({x}) = {got!r}"


def test_minus_zero(name, dtype, isa):
    got = getattr(F, name)(np.array([-0.0], dtype))[0]
    assert got == {"exp": 1.0, "sigmoid": 0.5, "tanh": 0.0}[name]
    assert np.signbit(got) == (name == "tanh")


def test_nan_stays_nan_whatever_its_bits(name, dtype, isa):
    info = np.finfo(dtype)
    payloads = np.array([1, 2, 3, 1 << (info.nmant - 1), (1 << info.nmant) - 1], f"u{dtype.itemsize}")
    nans = bits(np.array([np.inf], dtype)) + payloads
    x = np.concatenate([nans.view(dtype), -nans.view(dtype), np.ones(3, dtype)])
    assert np.isnan(x[:-3]).all()
    np.testing.assert_array_equal(np.isnan(getattr(F, name)(x)), np.isnan(x))


def test_results_stay_in_their_range(name, dtype, isa):
    x = np.concatenate([borders(dtype), scattered(dtype, 50_000)])
    y = getattr(F, name)(x[~np.isnan(x)])
    low, high = {"exp": (0, np.inf), "sigmoid": (0, 1), "tanh": (-1, 1)}[name]
    assert ((y >= low) & (y <= high)).all()
    assert name == "tanh" or not np.signbit(y).any()


def test_tanh_is_exactly_odd(dtype, isa):
    x = np.concatenate([borders(dtype), scattered(dtype, 50_000)])
    x = x[~np.isnan(x)]
    np.testing.assert_array_equal(bits(F.tanh(-x)), bits(-F.tanh(x)))


# ---------------------------------------------------------------------------------------------- arrays


def test_an_element_has_the_same_bits_wherever_it_stands(name, dtype, isa):
    function = getattr(F, name)
    x = np.random.default_rng(5).normal(0, 3, 90).astype(dtype)
    alone = np.array([bits(function(x[i : i + 1]))[0] for i in range(len(x))])
    for n, offset in itertools.product(range(1, 71), (0, 1, 2, 3, 5, 8, 15, 17)):
        got = bits(function(x[offset : offset + n]))
        assert (got == alone[offset : offset + n]).all(), f"length {n}, offset {offset}"


@pytest.mark.parametrize(
    "view",
    {
        "empty": lambda a: a[:0],
        "no rows": lambda a: a[:0].reshape(0, 3),
        "every third": lambda a: a[::3],
        "backwards": lambda a: a[::-1],
        "transposed": lambda a: a.reshape(6, 10).T,
        "three axes": lambda a: a.reshape(3, 4, 5),
        "broadcast": lambda a: np.broadcast_to(a[:4], (5, 4)),
        "unaligned": lambda a: np.frombuffer(b"\0" + a.tobytes(), np.uint8)[1:].view(a.dtype),
        "one number": lambda a: a[0].reshape(()),
    }.items(),
    ids=lambda item: item[0],
)
def test_any_array_gives_a_new_one_of_its_shape(view, name, dtype):
    x = np.random.default_rng(6).normal(0, 3, 60).astype(dtype)
    before = x.copy()
    x.flags.writeable = False
    a = view[1](x)
    got = getattr(F, name)(a)
    expected = [getattr(F, name)(np.array([v]))[0] for v in a.reshape(-1)]
    assert got.shape == a.shape and got.dtype == dtype and got.flags.writeable
    np.testing.assert_array_equal(got, np.array(expected, dtype).reshape(a.shape))
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("wrong", [np.arange(3), np.ones(3, np.float16), np.ones(3, complex), np.array(["a"]), None])
def test_other_types_are_refused(wrong, name):
    with pytest.raises(TypeError, match="^x: expected float32 or float64, got "):
        getattr(F, name)(wrong)


# ---------------------------------------------------------------------------------------------- every float32


def float32_ulp(truth):
    """Units in the last place of float32 at float64 values, from their bits: much faster than frexp and ldexp."""
    exponent = np.minimum(np.abs(truth), 2.0**128).view(np.int64) & 0x7FF0000000000000
    return np.maximum(exponent.view(np.float64), 2.0**-126) * 2.0**-23


def test_the_fast_ulp_equals_the_careful_one(name):
    x = np.concatenate([borders(np.dtype(np.float32)), scattered(np.dtype(np.float32), 10_000)])
    truth = truth_of(name, x)
    known = ~np.isnan(truth.value)
    np.testing.assert_array_equal(float32_ulp(truth.value)[known], truth.ulp[known])


@pytest.mark.slow
@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_float32(name, capsys):
    """All 2^32 bit patterns, some minutes for each function. Prints the largest error and where it is."""
    tiny, chunk = np.float32(np.finfo(np.float32).tiny), 1 << 15
    function, before, usable = getattr(F, name), _kernels.isa(), elman.config()["isa_usable"]
    at_zero = np.float32({"exp": 1.0, "sigmoid": 0.5, "tanh": 0.0}[name])
    worst = {isa: (-1.0, np.float32(0), np.float32(0)) for isa in usable}
    checked = 0
    try:
        for start in range(0, 1 << 32, chunk):
            x = np.arange(start, start + chunk, dtype=np.uint64).astype(np.uint32).view(np.float32)
            nan = np.isnan(x)
            with np.errstate(all="ignore"):
                truth = WIDE_FUNCTIONS[name](x.astype(np.float64))
            bounded = np.minimum(truth, 2.0**128)  # infinity counts as the number after the largest
            per_ulp = 1 / float32_ulp(truth)
            small_x, small_y = np.abs(x) < tiny, np.abs(truth) < tiny
            some_small, some_nan = (small_x | small_y).any(), nan.any()
            for isa in usable:
                _kernels.select_isa(isa)
                y = function(x)
                error = np.abs(np.minimum(y.astype(np.float64), 2.0**128) - bounded) * per_ulp
                if some_nan:
                    np.testing.assert_array_equal(np.isnan(y), nan)
                    error[nan] = 0
                if some_small:
                    error[(small_y & (y == 0)) | (small_x & (y == at_zero))] = 0
                at = int(np.argmax(error))
                if not error[at] <= worst[isa][0]:
                    worst[isa] = float(error[at]), x[at], y[at]
            checked += x.size
    finally:
        _kernels.select_isa(before)
    with capsys.disabled():
        for isa, (error, x, y) in worst.items():
            print(f"\n{name:8} float32 {isa:7} {error:.3f} ulp at x = {float(x).hex()} = {x!r}: {y!r}", end="")
    assert checked == 1 << 32
    assert all(error <= LIMIT for error, _, _ in worst.values()), worst
