"""What `fit` calls between epochs: early stopping, the checkpoint of the best, and anything of the user's own."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from . import _checks as check
from ._parameters import same_names
from ._safetensors import path_of
from .optimizers import Optimizer
from .schedules import _metric

__all__ = ["Callback", "Checkpoint", "EarlyStopping"]

WEIGHTS = "weights."  # what the names of the best weights begin with in a state


class Callback:
    """What `fit` calls between epochs; override what is needed. With `fit(comm=...)` on rank 0 alone."""

    def on_train_begin(self, model: Any, initial_epoch: int, names: tuple[str, ...]) -> None:
        """Before the first epoch of a call of `fit`. names : what `logs` will hold."""

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> bool | None:
        """After each epoch, validation included; epoch counts from 0. Return True to stop the training."""

    def on_train_end(self, model: Any) -> None:
        """After the last epoch. Not called after an error."""

    def state_dict(self) -> dict[str, Any]:
        """What it remembers from one epoch to the next and a checkpoint keeps: numbers, None and float arrays, by name.
        Override it together with `load_state_dict`."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. TypeError, ValueError: not that; nothing has changed then."""
        same_names("state", state, {})


class _Watching(Callback):
    """Knows the best value of what is monitored, and its epoch."""

    def __init__(self, monitor: str | None, mode: str, min_delta: float):
        self.monitor = monitor
        self.mode = check.choice("mode", mode, ("min", "max"))
        self.min_delta = check.number_below("min_delta", min_delta, 0)
        self.best, self.best_epoch = math.nan, -1
        self._begun = False

    def on_train_begin(self, model: Any, initial_epoch: int, names: tuple[str, ...]) -> None:
        self._name = self.monitor or ("val_loss" if "val_loss" in names else "loss")
        if self._name not in names:
            raise ValueError(f"monitor: expected one of {', '.join(names)}, got {self._name!r}")
        if initial_epoch == 0 or not self._begun:
            self.best, self.best_epoch = math.nan, initial_epoch - 1
        self._begun = True

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: "best" and "best_epoch"."""
        return {"best": self.best, "best_epoch": self.best_epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, in a `fit` with an initial_epoch above 0, where another one made with the same arguments was.

        TypeError, ValueError: not a `state_dict`; nothing has changed then.
        """
        same_names("state", state, {"best": None, "best_epoch": None})
        best, best_epoch = _metric("state: best", state["best"]), state["best_epoch"]
        self.best_epoch = check.integer("state: best_epoch", best_epoch, -1)
        self.best, self._begun = best, True

    def _improved(self, epoch: int, logs: Mapping[str, float]) -> bool:
        value = logs[self._name]
        gain = self.best - value if self.mode == "min" else value - self.best
        better = gain > self.min_delta or (math.isnan(self.best) and not math.isnan(value))
        if better:
            self.best, self.best_epoch = value, epoch
        return better


class EarlyStopping(_Watching):
    """Stops when the monitored value has not improved for `patience` epochs; keeps the best weights in memory.

    patience : epochs without improvement after which the training ends, at least 1.
    monitor : a name in `logs`; None: "val_loss", or "loss" without validation data.
    mode : "min" or "max", what is better.
    min_delta : by how much a value must be better to count, 0 or above.
    restore_best : give the model the weights of its best epoch when `fit` ends, stopped early or not.

    Attributes: `best` and `best_epoch`. A `fit` with initial_epoch=0 starts afresh; a resumed one goes on.

    >>> model.fit(x, y, loss="huber", epochs=500, validation_data=(x_val, y_val), callbacks=[EarlyStopping(10)])
    """

    def __init__(
        self,
        patience: int,
        *,
        monitor: str | None = None,
        mode: str = "min",
        min_delta: float = 0.0,
        restore_best: bool = True,
    ):
        super().__init__(monitor, mode, min_delta)
        self.patience = check.integer("patience", patience, 1)
        self.restore_best = check.boolean("restore_best", restore_best)
        self._weights: Any = None

    def on_train_begin(self, model: Any, initial_epoch: int, names: tuple[str, ...]) -> None:
        super().on_train_begin(model, initial_epoch, names)
        if math.isnan(self.best):
            self._weights = None
        if self._weights is not None:
            params = model.params
            same_names("EarlyStopping: weights", self._weights, params)
            for name, a in params.items():
                check.array(f"EarlyStopping: weights: {name}", self._weights[name], a.dtype, a.shape)

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> bool:
        if self._improved(epoch, logs) and self.restore_best:
            self._weights = model.params  # immutable, so no copy is needed
        return epoch - self.best_epoch >= self.patience

    def on_train_end(self, model: Any) -> None:
        if self.restore_best and self._weights is not None:  # a checkpoint's may come from one that restores
            model.load_params(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: "best", "best_epoch", and the best weights as "weights." + their names."""
        weights = {} if self._weights is None else self._weights
        return super().state_dict() | {WEIGHTS + name: a for name, a in weights.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on, in a `fit` with an initial_epoch above 0, where another one made with the same arguments was.

        TypeError, ValueError: not a `state_dict`; nothing has changed then. Whether the best weights are those of the
        model shows when `fit` begins.
        """
        weights, rest = {}, state
        if isinstance(state, Mapping):
            weights = {name: np.array(a) for name, a in state.items() if name.startswith(WEIGHTS)}
            rest = {name: value for name, value in state.items() if name not in weights}
        for name, a in weights.items():
            if not np.isfinite(check.floats(f"state: {name}", a)).all():
                raise ValueError(f"state: {name}: expected finite values, got NaN or infinity")
        super().load_state_dict(rest)
        self._weights = {name.removeprefix(WEIGHTS): a for name, a in weights.items()} or None


class Checkpoint(_Watching):
    """Saves the model after each epoch that is the best until then, or after every epoch.

    path : of the file, replaced as a whole.
    save_best_only : False: after every epoch.
    optimizer : None: the model alone, by `elman.save`. The optimiser that `fit` is given, made over the model: its
        state too, by `elman.save_checkpoint`, and what a ReduceLROnPlateau and the callbacks of `fit` remember, so that
        `elman.load_checkpoint` can resume the training.
    monitor, mode, min_delta : as in `EarlyStopping`.

    `fit` refuses by a ValueError, before it trains, a path that is a folder or in none that exists, and an optimiser
    that is not its own.

    The best alone, and a training that can be interrupted:

    >>> model.fit(x, y, loss="huber", epochs=50, callbacks=[Checkpoint("best.safetensors", monitor="loss")])
    >>> best = elman.load("best.safetensors")

    >>> adam = elman.Adam(model)
    >>> last = Checkpoint("last.safetensors", save_best_only=False, optimizer=adam)
    >>> model.fit(x, y, loss="huber", optimizer=adam, epochs=50, seed=0, callbacks=[last])

    In another process, with the same bits in the end:

    >>> model, adam, epoch = elman.load_checkpoint("last.safetensors")
    >>> model.fit(x, y, loss="huber", optimizer=adam, epochs=50, initial_epoch=epoch, seed=0)

    If it was `callbacks=[last, EarlyStopping(10)]`, both are made anew and get their memory back:

    >>> callbacks = [last, _] = [Checkpoint("last.safetensors", save_best_only=False), EarlyStopping(10)]
    >>> model, last.optimizer, epoch = elman.load_checkpoint("last.safetensors", callbacks=callbacks)
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        save_best_only: bool = True,
        optimizer: Optimizer | None = None,
        monitor: str | None = None,
        mode: str = "min",
        min_delta: float = 0.0,
    ):
        super().__init__(monitor, mode, min_delta)
        self.path = path_of(path)
        self.save_best_only = check.boolean("save_best_only", save_best_only)
        self.optimizer = optimizer
        self._lr: Any = None
        self._callbacks: Sequence[Callback] = ()
        self._seen: tuple[int, bool] | None = None  # the last epoch, and whether it was the best until then

    def _keeps(self, lr: Any, callbacks: Sequence[Callback]) -> None:
        """From `fit`: its arguments whose memory belongs into a checkpoint of the training."""
        self._lr, self._callbacks = lr, callbacks

    def on_train_begin(self, model: Any, initial_epoch: int, names: tuple[str, ...]) -> None:
        if self.optimizer is not None:
            from .saving import check_optimizer  # which knows the models, as they know this module

            check_optimizer(self.optimizer, model)
        if os.path.isdir(self.path or ".") or not os.path.isdir(os.path.dirname(os.path.abspath(self.path))):
            raise ValueError(f"path: expected a file in a folder that exists, got {self.path!r}")
        self._seen = None
        super().on_train_begin(model, initial_epoch, names)

    def on_epoch_end(self, model: Any, epoch: int, logs: Mapping[str, float]) -> None:
        from .saving import save, save_checkpoint

        for other in self._callbacks:
            if isinstance(other, Checkpoint):
                other._see(epoch, logs)  # before this one keeps what the other remembers
        improved = self._see(epoch, logs)
        if self.save_best_only and not improved:
            return
        if self.optimizer is None:
            save(self.path, model)
        else:
            save_checkpoint(self.path, model, self.optimizer, epoch + 1, lr=self._lr, callbacks=self._callbacks)

    def _see(self, epoch: int, logs: Mapping[str, float]) -> bool:
        """Takes note of an epoch, once; whether it is the best until then."""
        if self._seen is None or self._seen[0] != epoch:
            self._seen = epoch, self._improved(epoch, logs)
        return self._seen[1]
