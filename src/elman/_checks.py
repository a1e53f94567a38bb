"""Turn what a user passes into arrays that the kernels can read, or say what is wrong.

Every function takes the argument's name first and raises before anything has changed: TypeError for a wrong kind
of thing, ValueError for a wrong size or value, both saying what was expected and what came.
"""

from __future__ import annotations

import math
import numbers
import operator

import numpy as np

MOST = 2**24  # of a size that is given as a number; the bytes of a matrix of such sizes still fit 64 bits
FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def dtype_of(name, value):
    """One of the two dtypes that elman computes in."""
    try:
        dtype = np.dtype(value)
    except TypeError:
        dtype = None
    if value is None or dtype is None or dtype not in FLOATS:  # numpy finds None equal to float64
        raise TypeError(f"{name}: expected float32 or float64, got {value!r}")
    return FLOATS[FLOATS.index(dtype)]  # numpy's own object: an unpickled dtype is only equal to it


def integer(name, value, least, most=None):
    """A whole number; bool and float are refused."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {value!r}") from None
    if number < least or (most is not None and number > most):
        wanted = f"at least {least}" if most is None else f"{least} to {most}"
        raise ValueError(f"{name}: expected {wanted}, got {number}")
    return number


def boolean(name, value):
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def _float(name, value):
    """A real number as a float; bool is refused."""
    if type(value) is float:  # as nearly always: to ask for a Real takes ten times as long
        return value
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name}: expected a number that fits a float, got one that is too large") from None


def number(name, value, least, most):
    """A float from `least` to `most`, so not NaN."""
    number = _float(name, value)
    if not least <= number <= most:
        raise ValueError(f"{name}: expected {least:g} to {most:g}, got {value!r}")
    return number


def number_below(name, value, low, high=math.inf, *, open_below=False, infinite=False):
    """A float in [low, high), or in (low, high) with `open_below`; infinity only with `infinite`."""
    number = _float(name, value)
    inside = (low < number if open_below else low <= number) and (number < high or (infinite and number == high))
    if not inside:
        wanted = f"{'above' if open_below else 'at least'} {low}"
        wanted += f" and below {high}" if high < math.inf else "" if infinite else " and finite"
        raise ValueError(f"{name}: expected {wanted}, got {number}")
    return number


def choice(name, value, allowed):
    """One of `allowed`; a NumPy string as a plain one, which a layer shows and a file holds."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return str(value)


def array(name, value, dtype, shape, contiguous=False):
    """`value` as an aligned array of `dtype` and `shape` whose last axis is dense (all axes with `contiguous`).

    `shape` holds numbers, and letters for the axes that may have any size. No float type is cast into another;
    integer arrays and (nested) Python lists are converted. A copy is made only where one is needed.
    """
    if type(value) is np.ndarray and value.dtype is dtype:  # the common case costs one look
        a = value
    else:
        a = _converted(name, value, dtype)
    if a.shape != shape:
        if a.ndim != len(shape) or any(n != m for n, m in zip(a.shape, shape) if type(m) is int):
            raise ValueError(f"{name}: expected shape {_shown(shape)}, got {_shown(a.shape)}")
    flags = a.flags
    if flags.c_contiguous and flags.aligned:
        return a
    if not flags.aligned or contiguous or a.strides[-1] != a.itemsize:
        return np.array(a, order="C")
    return a


def shape_and_dtype(name, value):
    """Those of the array that `value` is, or that NumPy makes of it."""
    if type(value) is np.ndarray:
        return value.shape, value.dtype
    try:
        a = np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name}: expected an array, got {type(value).__name__} ({error})") from None
    return a.shape, a.dtype


def floats(name, value, contiguous=False):
    """An array of either float type, of any shape; integers and lists become float64. Otherwise as `array`."""
    shape, dtype = shape_and_dtype(name, value)
    if dtype in FLOATS:
        dtype = FLOATS[FLOATS.index(dtype)]
    elif dtype.kind in "iu":
        dtype = np.dtype(np.float64)
    else:
        raise TypeError(f"{name}: expected float32 or float64, got {dtype}")
    return array(name, value, dtype, shape, contiguous)


def output(name, value, dtype, shape, apart_from=()):
    """An array to write into: exactly this dtype and shape, writable, its last axis dense, sharing no memory
    with the (name, array) pairs of `apart_from`."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{name}: expected a NumPy array to write into, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected dtype {dtype}, got {value.dtype}")
    if value.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {_shown(shape)}, got {_shown(value.shape)}")
    if not value.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, got a read-only one")
    if not value.flags.aligned or (value.size and value.strides[-1] != value.itemsize and value.shape[-1] > 1):
        raise ValueError(f"{name}: expected an aligned array with a dense last axis, got strides {value.strides}")
    if not value.flags.c_contiguous and _overlaps_itself(value):
        raise ValueError(f"{name}: expected memory of its own for each element, got strides {value.strides}")
    for other_name, other in apart_from:
        if other is not None and overlap(value, other):
            raise ValueError(f"{name}: expected memory of its own, got an array that overlaps {other_name}")
    return value if type(value) is np.ndarray else value.view(np.ndarray)


def overlap(a, b):
    """Whether two arrays share an element, as far as it can be told quickly; else whether their bounds meet."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=1000)
    except RuntimeError:  # TooHardError, which has moved between NumPy's modules
        return True


def _overlaps_itself(a):
    """Whether it cannot be ruled out, axis by axis from the shortest stride on, that two elements are one."""
    reach = a.itemsize
    for stride, n in sorted((abs(stride), n) for stride, n in zip(a.strides, a.shape) if n > 1):
        if stride < reach:
            return True
        reach += stride * (n - 1)
    return False


def lengths(name, value, T, B):
    """None, or B integers from 0 to T as a dense intp array."""
    if value is None:
        return None
    a = np.array(_whole_numbers(name, value, (B,)))  # a copy: what is checked stays what it is
    if a.size and (int(a.min()) < 0 or int(a.max()) > T):
        bad = int(np.flatnonzero((a < 0) | (a > T))[0])
        raise ValueError(f"{name}: expected 0 to {T} (the steps of x), got {int(a[bad])} for sequence {bad}")
    return np.ascontiguousarray(a, dtype=np.intp)


def reset(name, value, shape):
    """None, or a mask of bool (or integers 0 and 1) as a dense uint8 array."""
    if value is None:
        return None
    try:
        a = np.asarray(value)
    except Exception:  # _whole_numbers says what
        a = None
    if a is None or a.dtype != np.bool_:
        a = _whole_numbers(name, value, shape, "bool, or integers 0 and 1")
    if a.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {_shown(shape)}, got {_shown(a.shape)}")
    if a.dtype != np.bool_ and a.size and not ((a == 0) | (a == 1)).all():
        raise ValueError(f"{name}: expected bool, or integers 0 and 1, got {a[(a != 0) & (a != 1)][0]}")
    return np.ascontiguousarray(a, dtype=np.uint8)


def weights(name, value, form):
    """One layer's weights: a sequence of one or two directions, each the arrays of the form (see _options.Form).

    None where the form has no such array, and for biases. Returns a tuple of tuples of dense arrays that agree in
    number, dtype and size, with None where it was given.
    """
    if not isinstance(value, (tuple, list)) or len(value) not in (1, 2):
        raise TypeError(f"{name}: expected a list of one or two directions, got {_kind(value)}")
    names = sizes = dtype = None
    checked = []
    for d, arrays in enumerate(value):
        where = f"{name}[{d}]"
        is_sequence = isinstance(arrays, (tuple, list))
        if names is None and is_sequence:
            names = form.names(len(arrays))
        if names is None or not is_sequence or len(arrays) != len(names):
            raise TypeError(f"{where}: expected ({form.described()}), got {_kind(arrays)}")
        given = dict(zip(names, arrays))
        if sizes is None:
            dtype, sizes = _sizes_of_weights(where, given, form)
        if form.is_recurrent and form.has_bias and (given["bias_ih"] is None) != (given["bias_hh"] is None):
            raise ValueError(f"{where}: expected both biases or neither, got one")
        checked.append(tuple(_weight(f"{where}: {n}", n, a, dtype, form.shape(n, *sizes)) for n, a in given.items()))
    return tuple(checked)


def _sizes_of_weights(where, given, form):
    """dtype and (I, H, R), told by the first direction."""
    main = "weight_hh" if form.is_recurrent else "weight_ih"
    dtype = np.asarray(given[main]).dtype
    if dtype not in FLOATS:
        raise TypeError(f"{where}: {main}: expected float32 or float64, got {dtype}")
    rows, columns = _two(f"{where}: {main}", given[main])
    H, rest = divmod(rows, form.gates)
    is_projected = "weight_hr" in given
    R = columns if is_projected else H
    if rest or H < 1 or R < 1 or (form.is_recurrent and columns != R):
        wanted = ("R" if is_projected else "H") if form.is_recurrent else "I"
        raise ValueError(f"{where}: {main}: expected shape ({form.gates}*H, {wanted}), got {_shown((rows, columns))}")
    I = _two(f"{where}: weight_ih", given["weight_ih"])[1]
    if I < 1:
        raise ValueError(f"{where}: weight_ih: expected at least one input, got shape {_shown((rows, I))}")
    return dtype, (I, H, R)


def _weight(where, name, value, dtype, shape):
    if shape is None:
        if value is not None:
            raise ValueError(f"{where}: expected None, since this cell has none, got {_kind(value)}")
        return None
    if value is None and name.startswith("bias"):
        return None
    return array(where, value, dtype, shape, contiguous=True)


def parts_of(name, value, letters):
    """A state (or its gradient) as a list with one entry per letter: ("h",) is the array itself, ("h", "c") a pair.

    None, whole or in part, stands for zeros and is passed on as None.
    """
    if value is None:
        return [None] * len(letters)
    if len(letters) == 1:
        if isinstance(value, tuple):
            raise TypeError(f"{name}: expected one array {letters[0]}, got {_kind(value)}")
        return [value]
    if isinstance(value, np.ndarray) or not hasattr(value, "__getitem__") or isinstance(value, (str, dict)):
        raise TypeError(f"{name}: expected ({', '.join(letters)}), got {_kind(value)}")
    if len(value) != len(letters):
        raise ValueError(f"{name}: expected ({', '.join(letters)}), got {len(value)} parts")
    return list(value)


def _converted(name, value, dtype):
    from_python = isinstance(value, (list, tuple, int, float)) and not isinstance(value, bool)
    from_python = from_python and all(a.dtype.kind != "f" or a.dtype == dtype for a in _arrays_in(value))
    try:
        a = np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name}: expected an array of {dtype}, got {_kind(value)} ({error})") from None
    if a.dtype.newbyteorder("=") == dtype:  # equal but for the byte order, or a subclass
        return np.asarray(a, dtype)
    if a.dtype.kind in "iu" or (from_python and a.dtype.kind == "f"):
        with np.errstate(all="ignore"):
            return a.astype(dtype)
    raise TypeError(f"{name}: expected dtype {dtype}, got {a.dtype} (no silent casts: use .astype)")


def _arrays_in(value):
    """The NumPy arrays in nested lists."""
    if isinstance(value, np.ndarray):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _arrays_in(item)


def _whole_numbers(name, value, shape, wanted="integers"):
    try:
        a = np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name}: expected {wanted}, got {_kind(value)} ({error})") from None
    if a.dtype.kind not in "iu" and not (a.size == 0 and isinstance(value, (list, tuple))):
        raise TypeError(f"{name}: expected {wanted}, got {a.dtype}")
    if a.shape != tuple(shape):
        raise ValueError(f"{name}: expected shape {_shown(shape)}, got {_shown(a.shape)}")
    return a


def _two(name, value):
    shape = np.shape(value)
    if len(shape) != 2:
        raise ValueError(f"{name}: expected two axes, got shape {_shown(shape)}")
    return shape


def _kind(value):
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} with shape {_shown(value.shape)}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def _shown(shape):
    inside = ", ".join(map(str, shape))
    return f"({inside},)" if len(shape) == 1 else f"({inside})"
