"""Data-parallel training over MPI: what `fit(comm=...)` does together with the other ranks.

Every rank calls `fit` with the same arguments and takes its share of each batch; `Ranks.mean` makes the gradients of
the shares that of the whole batch. Whatever fails on one rank must end all of them and hang none. Hence one rule: from
`start` on, every meeting of the ranks begins with `_meet`, the same Allreduce of one flat buffer, whose last number
says how many ranks have failed. A rank that fails goes to the next meeting, whichever the others are on the way to, and
says so there (`fail`); nothing that can fail on one rank alone stands between `_meet` and the `_exchange` behind it.
"""

from __future__ import annotations

import functools
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

Fit = TypeVar("Fit", bound=Callable[..., Any])

VALUE, WEIGHT, COUNT, FAILED = range(-4, 0)  # the numbers behind the weights in the flat buffer
SHARED_KINDS = (ValueError, TypeError, FloatingPointError)  # raised on all ranks as the same; others as RuntimeError


def together(fit: Fit) -> Fit:
    """For a function with `comm=`: it gets Ranks in its place, and an error on one rank becomes one on all."""

    @functools.wraps(fit)
    def on_all_ranks(*args: Any, **kwargs: Any) -> Any:
        ranks = Ranks(kwargs.get("comm"))
        try:
            result = fit(*args, **(kwargs | {"comm": ranks}))
            ranks.end()
        except BaseException as error:
            ranks.fail(error)
            raise
        finally:
            ranks.close()
        return result

    return on_all_ranks  # type: ignore[return-value]


class Ranks:
    """The ranks of an mpi4py communicator. None: this process alone, to which every method returns what it gave."""

    def __init__(self, comm: Any = None):
        self.rank, self.size = 0, 1
        self._over = False  # whether all ranks know that it ends
        self._comm: Any = None
        self._flat: Any = None  # all weights or their gradients, then VALUE, WEIGHT, COUNT, FAILED
        self._parts: dict[str, np.ndarray] = {}  # views of it, by name and in the shapes of the weights
        if comm is None:
            return
        try:
            from mpi4py import MPI
        except ImportError:
            raise ImportError("comm needs mpi4py: pip install 'elman[mpi]'") from None
        if not isinstance(comm, MPI.Intracomm) or comm == MPI.COMM_NULL:
            raise TypeError(f"comm: expected None or a communicator of mpi4py, MPI.COMM_WORLD for one, got {comm!r}")
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        self._mpi = MPI
        if self.size > 1:
            self._comm = comm.Dup()  # whose messages are fit's alone

    def share(self, batch: Any) -> Any:
        """This rank's part of a batch, or of a list of batches: every size-th, as neighbours are of like length."""
        return batch[self.rank :: self.size]

    def start(self, model: Any, optimizer: Any, seed: int, arguments: Mapping[str, Any]) -> int:
        """Gives all ranks the weights, the optimiser's state and the seed of rank 0, which it returns.

        ValueError on all ranks: `arguments`, by name, do not read the same on all.
        """
        if self.size == 1:
            return seed
        params = dict(model.params)
        arguments = {name: str(value) for name, value in arguments.items()}
        arguments |= {f"weight {name}": f"{a.dtype} {a.shape}" for name, a in params.items()}
        state = optimizer.state_dict() if hasattr(optimizer, "state_dict") else {}
        arguments["optimizer"] = f"{type(optimizer).__name__} with {', '.join(state)}"
        state = {name: np.array(value) for name, value in state.items()}
        flat = np.zeros(sum(a.size for a in params.values()) + 4, np.result_type(*params.values()))
        everyone = self._exchange({"arguments": arguments, "seed": seed})
        self._raise([found.get("failure") for found in everyone])
        for rank, found in enumerate(everyone):
            other, first = found["arguments"], everyone[0]["arguments"]
            for name in [*first, *other]:
                if other.get(name) != first.get(name):
                    self._over = True
                    got = f"{first.get(name)!s:.200} on rank 0 and {other.get(name)!s:.200} on rank {rank}"
                    raise ValueError(f"comm: expected the same arguments on all ranks, got {name}: {got}")
        for value in state.values():
            self._comm.Bcast(value)
        self._flat, start = flat, 0
        for name, a in params.items():
            self._parts[name] = flat[start : start + a.size].reshape(a.shape)
            start += a.size
        if self.rank and state:
            optimizer.load_state_dict(state)
        self.follow(model, optimizer, False)
        return int(everyone[0]["seed"])

    def mean(self, value: float, weight: float, count: int, grads: Any, averages: bool) -> tuple[float, int, Any]:
        """The loss, the number of positions and the gradient of the whole batch from those of the shares: the mean by
        weight of losses that are averages, else the sum. A share of weight 0 counts nothing, whatever its value."""
        if self.size == 1:
            return value, count, grads
        flat = self._flat
        with np.errstate(all="ignore"):
            if weight:
                factor = weight if averages else 1.0
                for name, part in self._parts.items():
                    np.multiply(grads[name], factor, out=part)
                flat[VALUE:] = value * factor, weight, count, 0
            else:
                flat[:] = 0
                flat[COUNT] = count
            self._meet()
            if averages:
                flat[:WEIGHT] /= flat[WEIGHT]  # the loss too; nan if no position has weight, as in one process
        return float(flat[VALUE]), round(float(flat[COUNT])), self._parts

    def merge(self, means: Sequence[Any]) -> None:
        """Makes means over this rank's batches means over those of all: each has `parts` and `load`."""
        if self.size > 1 and means:
            mine = [mean.parts() for mean in means]
            self._flat[:] = 0
            self._meet()
            for mean, *parts in zip(means, *self._exchange(mine)):
                mean.load([sum(column) for column in zip(*parts)])

    def follow(self, model: Any, optimizer: Any, stop: bool) -> bool:
        """Gives all ranks the weights, the learning rate and a Seq2Seq's teacher_forcing of rank 0, and returns what it
        has decided.

        Between two calls the ranks' weights are the same bits if their machines have one instruction set; if not, they
        differ by rounding.
        """
        if self.size == 1:
            return stop
        mine = [float(optimizer.lr), bool(stop), getattr(model, "teacher_forcing", None)]
        self._flat[:] = 0
        if self.rank == 0:
            for name, a in model.params.items():
                self._parts[name][...] = a
        self._meet()
        lr, stop, teacher_forcing = self._exchange(mine)[0]
        if self.rank:
            with model.edit() as params:
                for name, part in self._parts.items():
                    params[name] = part
            if optimizer.lr != lr:
                optimizer.lr = lr
            if teacher_forcing is not None:
                model.teacher_forcing = teacher_forcing
        return bool(stop)

    def blame(self, report: str, guilty: bool) -> str:
        """One report for all ranks, where all have found that the whole batch's numbers are not finite: that of the
        first rank whose share is to blame."""
        if self.size == 1:
            return report
        self._flat[:] = 0
        self._meet()
        reports = self._exchange([guilty, report])
        self._over = True
        rank = next((rank for rank, (is_guilty, _) in enumerate(reports) if is_guilty), 0)
        return f"rank {rank} of {self.size}: {reports[rank][1]}"

    def end(self) -> None:
        """No rank returns from `fit` where another fails."""
        if self.size > 1:
            self._flat[:] = 0
            self._meet()

    def close(self) -> None:
        if self.size > 1:
            self._comm.Free()

    def fail(self, error: BaseException) -> None:
        """Tells the other ranks, who are on the way to their next meeting, that this one has failed."""
        if self.size == 1 or self._over:
            return
        kind = next((kind for kind in SHARED_KINDS if isinstance(error, kind)), RuntimeError)
        failure = [kind.__name__, f"{type(error).__name__}: {error}"]
        if self._flat is None:
            self._exchange({"failure": failure})
        else:
            self._flat[:] = 0
            self._flat[FAILED] = 1
            self._allreduce()
            self._exchange(failure)

    def _meet(self) -> None:
        """The sum of the flat buffers of all ranks, in place. Raises on every rank if one of them has failed."""
        self._allreduce()
        if self._flat[FAILED]:
            self._raise(self._exchange(None))

    def _allreduce(self) -> None:
        self._comm.Allreduce(self._mpi.IN_PLACE, self._flat)

    def _raise(self, failures: list[Any]) -> None:
        """The error of the first rank that has failed."""
        for rank, failure in enumerate(failures):
            if failure is not None:
                self._over = True
                kinds = {kind.__name__: kind for kind in SHARED_KINDS}
                raise kinds.get(failure[0], RuntimeError)(f"rank {rank} of {self.size} failed: {failure[1]}")

    def _exchange(self, value: Any) -> list[Any]:
        """What each rank gave, as JSON can tell it: numbers exactly, strings, lists and dicts."""
        text = np.frombuffer(json.dumps(value).encode(), np.uint8)
        longest = np.array([len(text)])
        self._comm.Allreduce(self._mpi.IN_PLACE, longest, self._mpi.MAX)
        mine, all_texts = np.zeros(longest, np.uint8), np.empty((self.size, *longest), np.uint8)
        mine[: len(text)] = text
        self._comm.Allgather(mine, all_texts)
        return [json.loads(row.tobytes().rstrip(b"\0")) for row in all_texts]


def checksum(x: Sequence[Any], y: Any, lengths: np.ndarray | None) -> str:
    """Of data, or a part of them if large: what tells a rank's own shard from data that all ranks share."""
    y = y if isinstance(y, (list, tuple)) else np.asarray(y)
    found = 0 if lengths is None else zlib.crc32(lengths.tobytes())
    for i in np.linspace(0, len(x) - 1, min(len(x), 64)).astype(int):
        for item in (x[i], y[i]):
            found = zlib.crc32(np.asarray(item).tobytes(), found)
    return f"{len(x)} sequences, checksum {found:08x}"
