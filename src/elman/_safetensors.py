"""The safetensors file format: named arrays and a map of strings, written at once and read with suspicion.

8 bytes: the header's length N, little endian. N bytes: the header, UTF-8 JSON, from each name to {"dtype", "shape",
"data_offsets": [begin, end]}; "__metadata__", if there, maps strings to strings. The rest: the arrays, little endian,
rows first, without gaps. (github.com/huggingface/safetensors, README, "Format".)

Nothing here unpickles or executes anything, and no size that a file claims is believed before it was compared with
the file's own.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import stat
from collections.abc import Mapping
from io import BufferedReader
from types import TracebackType
from typing import Any, NamedTuple, NoReturn

import numpy as np
from numpy.typing import ArrayLike

DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

METADATA = "__metadata__"
LONGEST_HEADER = 10_000_000  # bytes, a hundred thousand arrays; the format's own limit is ten times that
MOST_AXES = 32  # what every NumPy can hold
DIGITS = 19  # of a whole number in the header; 2**63 has so many

_short = reprlib.Repr()
_short.maxstring = _short.maxother = 100


def shown(value: Any) -> str:
    """What came out of a file, for a message: never longer than a few lines."""
    return _short.repr(value)


class Entry(NamedTuple):
    """Where one array lies, checked."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int  # of the data, in bytes
    end: int


class Reader:
    """An open file whose header has been checked against its size.

    entries : the arrays by name, in the order of the header.
    metadata : the map of strings, empty if the file has none.

    Raises ValueError, which names the file and what is wrong, for whatever is not a sound safetensors file, and
    OSError where there is none or it cannot be read. Nothing larger than the header is allocated before `read`.

    >>> with Reader("model.safetensors") as file:
    ...     weight = file.read("weight")
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = path_of(path)
        if not stat.S_ISREG(os.stat(self.path).st_mode):  # to open a pipe would wait for ever
            self.refuse("expected a file, got a directory or a device")
        self._file: BufferedReader = open(self.path, "rb")
        try:
            self._start, size, header = self._header()
            self.metadata = self._strings(header.pop(METADATA, {}))
            self.entries = {name: self._entry(name, value) for name, value in header.items()}
            self._check_tiling(size)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def read(self, name: str) -> np.ndarray:
        """One array, in memory of its own, in this machine's byte order."""
        dtype, shape, begin, end = self.entries[name]
        a = np.empty(shape, dtype)
        self._file.seek(self._start + begin)
        raw = a.reshape(-1).view(np.uint8)
        if self._file.readinto(raw.data) != end - begin:
            self.refuse(f"{shown(name)}: the file was cut short while it was read")
        if dtype == np.bool_ and (raw > 1).any():
            self.refuse(f"{shown(name)}: expected bytes 0 and 1 for BOOL, got {raw.max()}")
        return a.astype(dtype.newbyteorder("="), copy=False)

    def refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}: {what}") from None

    def _header(self) -> tuple[int, int, dict[str, Any]]:
        """Where the data begins, how long it is, and the header as JSON has it."""
        size = os.fstat(self._file.fileno()).st_size
        first = self._file.read(8)
        if len(first) < 8:
            self.refuse(f"expected a safetensors file, got {len(first)} bytes")
        length = int.from_bytes(first, "little")
        if length > LONGEST_HEADER:
            self.refuse(f"expected a safetensors header of at most {LONGEST_HEADER} bytes, got a length of {length}")
        if length > size - 8:
            self.refuse(f"expected a header of {length} bytes, got a file of {size}: cut short, or not safetensors")
        raw = self._file.read(length)
        if len(raw) != length:
            self.refuse("the file was cut short while it was read")
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            self.refuse(f"header: expected UTF-8, got {error}")
        if not text.startswith("{"):
            self.refuse(f"header: expected a JSON object, got {shown(text)}")
        return 8 + length, size - 8 - length, self.parsed("header", text)

    def parsed(self, where: str, text: str) -> Any:
        """JSON as RFC 8259 has it: no key twice, no NaN, no numbers beyond what a machine holds."""
        try:
            return json.loads(
                text, object_pairs_hook=_unique, parse_int=_whole, parse_float=_finite, parse_constant=_no_constant
            )
        except RecursionError:
            self.refuse(f"{where}: JSON nested too deeply")
        except ValueError as error:
            self.refuse(f"{where}: not sound JSON: {error}")

    def _strings(self, value: Any) -> dict[str, str]:
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            self.refuse(f"{METADATA}: expected a map from strings to strings, got {shown(value)}")
        return value

    def _entry(self, name: str, value: Any) -> Entry:
        where = shown(name)
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
            self.refuse(f"{where}: expected dtype, shape and data_offsets, got {shown(value)}")
        dtype_name, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
        if not isinstance(dtype_name, str) or dtype_name not in DTYPES:
            self.refuse(f"{where}: dtype: expected one of {', '.join(DTYPES)}, got {shown(dtype_name)}")
        if not _sizes(shape) or len(shape) > MOST_AXES:
            self.refuse(
                f"{where}: shape: expected at most {MOST_AXES} whole numbers, none negative, got {shown(shape)}"
            )
        if not _sizes(offsets) or len(offsets) != 2:
            self.refuse(f"{where}: data_offsets: expected [begin, end], got {shown(offsets)}")
        dtype = DTYPES[dtype_name]
        if math.prod(n for n in shape if n) * dtype.itemsize >= 2**63:
            self.refuse(f"{where}: shape: {shown(shape)} is more than a machine can address")
        begin, end = offsets
        size = math.prod(shape) * dtype.itemsize
        if end - begin != size:
            self.refuse(
                f"{where}: data_offsets: expected {size} bytes for {dtype_name} {shown(shape)}, got {end - begin}"
            )
        return Entry(dtype, tuple(shape), begin, end)

    def _check_tiling(self, size: int) -> None:
        """The arrays lie one behind the other and fill the file, in whatever order the header names them."""
        reached = 0
        for name, entry in sorted(self.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
            if entry.begin != reached:
                fault = "overlaps the array before it" if entry.begin < reached else "leaves a gap before it"
                self.refuse(f"{shown(name)}: data_offsets: expected to begin at {reached}, got {entry.begin}: {fault}")
            reached = entry.end
        if reached != size:
            self.refuse(f"expected {reached} bytes of data, got {size}")


def write(
    path: str | os.PathLike[str], arrays: Mapping[str, ArrayLike], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a file of named arrays, whole or not at all: beside its place first, then moved there.

    The widest elements come first and the header ends on a multiple of 8 bytes, so each array is aligned. The same
    arguments give the same bytes.

    TypeError, ValueError: a name or an array that the format cannot hold. OSError: the file cannot be written.
    After an error the path is as it was.
    """
    checked = _arrays(arrays)
    header: dict[str, Any] = {METADATA: dict(metadata)} if metadata else {}
    in_order = sorted(checked.items(), key=lambda item: -item[1].itemsize)
    offsets, reached = {}, 0
    for name, a in in_order:
        offsets[name] = [reached, reached + a.nbytes]
        reached += a.nbytes
    for name, a in checked.items():
        header[name] = {"dtype": _NAMES[a.dtype], "shape": list(a.shape), "data_offsets": offsets[name]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > LONGEST_HEADER:
        raise ValueError(f"params: expected names that need at most {LONGEST_HEADER} bytes, got {len(text)}")

    target = os.path.realpath(path_of(path))  # a link stays a link
    folder, name = os.path.split(target)
    draft = os.path.join(folder, f".{name}.{os.urandom(4).hex()}.tmp")
    try:
        with open(draft, "xb") as file:
            file.write(len(text).to_bytes(8, "little"))
            file.write(text)
            for _, a in in_order:
                file.write(a.tobytes())
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, target)
    except BaseException:
        if os.path.exists(draft):
            os.unlink(draft)
        raise


def path_of(path: Any) -> str:
    try:
        return os.fsdecode(path)
    except TypeError:
        raise TypeError(f"path: expected a str or os.PathLike, got {type(path).__name__}") from None


def _arrays(arrays: Any) -> dict[str, np.ndarray]:
    """Arrays in the format's byte order, by name."""
    if not isinstance(arrays, Mapping):
        raise TypeError(f"params: expected a mapping from names to arrays, got {type(arrays).__name__}")
    checked = {}
    for name, value in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"params: expected names that are strings, got {name!r}")
        if name == METADATA:
            raise ValueError(f"params: expected another name than {METADATA!r}, which the format keeps for itself")
        a = np.asarray(value)
        dtype = a.dtype.newbyteorder("<")
        if dtype not in _NAMES:
            raise TypeError(f"params: {name}: expected a dtype of {', '.join(DTYPES)}, got {a.dtype}")
        checked[name] = a.astype(dtype, copy=False)
    return checked


def _sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and n >= 0 for n in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for key, value in pairs:
        if key in made:
            raise ValueError(f"the key {shown(key)} is there twice")
        made[key] = value
    return made


def _whole(digits: str) -> int:
    if len(digits.lstrip("-")) > DIGITS:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {shown(digits)} is too large")
    return value


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
