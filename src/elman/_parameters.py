"""Named weights: read by anyone at any time, replaced only as a whole.

A layer computes from one immutable `Snapshot`; `load_params` and `edit` check, build another and assign it. No
arithmetic here, and no knowledge of cells.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from ._locks import ForkSafeLock

Self = TypeVar("Self", bound="Parametrised")


class Params(Mapping):
    """The weights at one moment: a read-only mapping from names to read-only arrays.

    Nothing can make the arrays writable, and a later `edit` or `load_params` does not alter them: ask the layer again.
    Pickled or deep-copied it becomes a plain dict.
    """

    __slots__ = ("_arrays",)

    def __init__(self, arrays: dict[str, np.ndarray]):
        self._arrays = arrays

    def __getitem__(self, name: str) -> np.ndarray:
        a = self._arrays[name]
        return np.ndarray(a.shape, a.dtype, a.base)  # another object each time: even its shape is nobody else's

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self):
        return dict, (dict(self),)

    def __repr__(self) -> str:
        inside = ", ".join(f"{name!r}: <{a.dtype} {a.shape}>" for name, a in self.items())
        return f"{{{inside}}}"


class Draft(MutableMapping):
    """What `edit` hands out: the layer's names with writable copies, made when first asked for."""

    __slots__ = ("_params", "_arrays")

    def __init__(self, params: Params):
        self._params = params
        self._arrays: dict[str, np.ndarray] | None = {}

    def __getitem__(self, name: str) -> np.ndarray:
        arrays = self._open()
        if name not in arrays:
            arrays[name] = self._params[name].copy()
        return arrays[name]

    def __setitem__(self, name: str, value: ArrayLike) -> None:
        arrays = self._open()
        if name not in self._params:
            raise ValueError(f"edit: expected one of {', '.join(self._params)}, got {name!r}")
        if name not in arrays or value is not arrays[name]:  # `p[name] *= 2` hands back the array that is already here
            old = self._params[name]
            arrays[name] = check.array(name, value, old.dtype, old.shape, contiguous=True).copy()

    def __delitem__(self, name: str) -> None:
        raise ValueError(f"edit: {name!r} cannot be removed, only changed")

    def __iter__(self) -> Iterator[str]:
        return iter(self._params)

    def __len__(self) -> int:
        return len(self._params)

    def __repr__(self) -> str:
        return f"<edit of {self._params!r}>" if self._arrays is not None else "<edit, ended>"

    def _open(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            raise RuntimeError("edit: the block has ended, so this change would be lost; begin another edit")
        return self._arrays

    def _close(self) -> dict[str, np.ndarray]:
        arrays, self._arrays = self._open(), None
        for name, a in arrays.items():
            if a.dtype != self._params[name].dtype:
                raise TypeError(f"{name}: expected dtype {self._params[name].dtype} as before, got {a.dtype}")
        return arrays


class Snapshot:
    """The weights of one moment and what `_packed` made of them; never changed after it is built."""

    __slots__ = ("params", "packed")

    def __init__(self, params: Params, packed: Any):
        self.params = params
        self.packed = packed


class SoleWriter:
    """`with` it, this thread alone replaces the weights of some layers, none of them made of others. (A class: a
    generator takes twice as long.)"""

    __slots__ = ("_layers", "_who", "_held")

    def __init__(self, layers: Iterable[Parametrised], who: str):
        # One order for all writers: two that share layers would else wait for each other for ever.
        self._layers = [vars(layer) for layer in sorted(layers, key=id)]  # past __setattr__, which costs more
        self._who = who

    def __enter__(self) -> None:
        me = os.getpid(), threading.get_ident()
        self._held: list[tuple[dict[str, Any], threading.Lock]] = []
        try:
            for layer in self._layers:
                if layer["_writer"] == me:
                    raise RuntimeError(f"{self._who}: this thread is inside an edit of this layer; finish that first")
                lock = layer["_writing"].held()
                lock.acquire()
                self._held.append((layer, lock))
                layer["_writer"] = me
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        for layer, lock in self._held:
            layer["_writer"] = None
            lock.release()


class Parametrised:
    """A layer with named weights. The subclass calls `_start` once, reads `self._snapshot` once per call, and
    may override `_packed` (another form of the weights for its kernels) and `_bind` (what cannot be pickled, named in
    `_not_pickled`)."""

    dtype: np.dtype
    _snapshot: Snapshot
    _not_pickled: tuple[str, ...] = ("_snapshot", "_writing", "_writer")

    def _start(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the first weights, of any float type; from here on their names, order and shapes are fixed,
        and so are the public attributes set before."""
        self._bind()
        self._writing = ForkSafeLock()
        self._writer: tuple[int, int] | None = None  # process and thread
        with np.errstate(all="ignore"):  # what is too large for float32 is refused as infinite
            arrays = {name: np.asarray(a, self.dtype) for name, a in arrays.items()}
        self._swap({name: _frozen(name, a, self.dtype, a.shape) for name, a in arrays.items()})
        self.__dict__.setdefault("_fixed", frozenset(name for name in vars(self) if not name.startswith("_")))

    def _bind(self) -> None:
        """Make the attributes of `_not_pickled`: called in a new layer, and in one unpickled or copied."""

    def _packed(self, params: Params) -> Any:
        """What the subclass computes from, made once per change of the weights; may be None."""
        return None

    @property
    def params(self) -> Params:
        """The weights as they are now: a read-only mapping of read-only arrays under PyTorch's names, in PyTorch's
        order.

        Writing into it or into its arrays raises: use `edit` or `load_params`. What was taken before a change keeps
        its values, so it may be saved or compared while others edit; pickled, it is a plain dict of arrays.

        >>> lstm.params["weight_hh_l0"].shape
        (512, 128)
        """
        return self._snapshot.params

    def load_params(self, mapping: Mapping[str, ArrayLike]) -> None:
        """Replace every weight.

        mapping : exactly the names of `params`, each with an array of its shape: of the layer's dtype, or integers,
            lists, or anything `numpy.asarray` reads (a PyTorch `state_dict()`). The values are copied.

        ValueError: a name missing or unexpected, a wrong shape, a value that is not finite. TypeError: another float
        type (no silent casts), or not a mapping. After an error nothing has changed; calls that are running finish
        on the old weights, and tapes made before are refused by `backward`.

        >>> lstm.load_params(torch_lstm.state_dict())
        """
        same_names("mapping", mapping, self.params)
        arrays = {}
        for name, old in self.params.items():
            arrays[name] = check.array(name, mapping[name], self.dtype, old.shape, contiguous=True)
        with SoleWriter(self._parts(), "load_params"):
            self._replace(arrays)

    @contextmanager
    def edit(self) -> Iterator[MutableMapping[str, np.ndarray]]:
        """Change weights in a `with` block, all at once when it ends.

        The block gets a mapping with the names of `params` and writable copies of the arrays; change them in place or
        assign others of the same shape. At the end they are checked as in `load_params`, copied and swapped in. If
        the block or a check raises, nothing has changed. Meanwhile calls of the layer, from the block too, use the
        old weights. Edits from several threads wait for each other.

        ValueError, TypeError: as `load_params`, or a name added or removed. RuntimeError: an edit within an edit of
        the same layer, or use of the mapping after the block.

        >>> with lstm.edit() as p:
        ...     p["weight_hh_l0"] *= 0.9
        ...     p["bias_ih_l0"] = np.zeros(512, np.float32)
        """
        with SoleWriter(self._parts(), "edit"):
            draft = Draft(self.params)
            try:
                yield draft
            finally:
                arrays = draft._close()
            if arrays:
                self._replace(arrays)

    def _parts(self) -> list[Parametrised]:
        """The layers that hold the weights: this one, unless it is made of others."""
        return [self]

    def _replace(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Check, copy and swap in; names that are absent keep their arrays."""
        params = dict(self.params)
        for name, a in arrays.items():
            params[name] = _frozen(name, a, self.dtype, params[name].shape)
        self._swap(params)

    def _swap(self, params: dict[str, np.ndarray]) -> None:
        self._snapshot = self._snapshot_of(params)

    def _snapshot_of(self, params: dict[str, np.ndarray]) -> Snapshot:
        """What the layer would compute from: arrays as `_frozen` makes them, of all names, in order."""
        fixed = Params(params)
        return Snapshot(fixed, self._packed(fixed))

    def _checked_grads(self, grads: Any, apart_from: tuple = ()) -> None:
        """`grads=` of backward: the names of `params`, each with a writable array of its own in its shape."""
        same_names("grads", grads, self.params)
        for name, a in self.params.items():
            check.output(f"grads: {name}", grads[name], self.dtype, a.shape, apart_from)
            apart_from = (*apart_from, (name, grads[name]))

    def _accumulated(self, grads: MutableMapping | None, new: dict[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """What backward returns: `new` in the order of `params`, or `grads` (checked before) with `new` added."""
        if grads is None:
            return {name: new[name] for name in self.params._arrays}
        with np.errstate(all="ignore"):
            for name, a in new.items():
                np.add(grads[name], a, out=grads[name])
        return grads

    def astype(self: Self, dtype: DTypeLike) -> Self:
        """A copy of the layer that works in another dtype, float32 or float64, with the same weights rounded to it.

        ValueError: a weight is too large for float32.

        >>> exact = lstm.astype(np.float64)
        """
        other = object.__new__(type(self))
        other.__setstate__(self.__getstate__() | {"dtype": check.dtype_of("dtype", dtype)})
        return other

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self).get("_fixed", ()):
            raise AttributeError(f"{name}: fixed when the layer was made; make another layer")
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{name}: a layer's attributes cannot be deleted")

    def __getstate__(self) -> dict[str, Any]:
        state = {k: v for k, v in vars(self).items() if k not in self._not_pickled}
        state["params"] = dict(self.params)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        state = dict(state)
        params = state.pop("params")
        self.__dict__.update(state)
        self.__dict__["dtype"] = check.dtype_of("dtype", self.dtype)
        self._start(params)


def same_names(argument: str, mapping: Any, names: Mapping[str, Any]) -> None:
    """Raise unless `mapping` is a mapping with exactly these names, in any order."""
    if not isinstance(mapping, Mapping):
        raise TypeError(f"{argument}: expected a mapping from names to arrays, got {type(mapping).__name__}")
    missing = [name for name in names if name not in mapping]
    extra = [name for name in mapping if name not in names]
    if missing or extra:
        came = [f"no {name}" for name in missing] + [f"unexpected {name!r}" for name in extra]
        raise ValueError(f"{argument}: expected exactly the names of params, got {', '.join(came)}")


def _frozen(name: str, value: np.ndarray, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """A copy in memory that no Python code can make writable: an immutable bytes object owns it."""
    a = check.array(name, value, dtype, shape, contiguous=True)
    if not np.isfinite(a).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(a))[0])
        raise ValueError(f"{name}: expected finite values, got {a[where]} at {where}")
    return np.ndarray(shape, dtype, a.tobytes())
