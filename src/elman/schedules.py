"""Learning rates that change while a network is trained: `optimizer.lr = schedule(step)`.

    model.fit(x, y, ..., lr=StepLR(0.1, step_size=30))                                          # 30 epochs
    model.fit(x, y, ..., lr=LinearWarmup(1e-3, total_iters=1000), lr_interval="step")           # 1000 steps

A schedule is a function of the number of steps (or epochs: whatever you count) done so far, from 0 on. It keeps nothing
between calls, so that training resumed at any step goes on alike. Only `ReduceLROnPlateau` looks at a metric and
remembers.
Names, defaults and values are those of torch.optim.lr_scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import _checks
from .optimizers import _plain

__all__ = ["CosineAnnealingLR", "CosineAnnealingWarmRestarts", "LinearWarmup", "ReduceLROnPlateau", "StepLR"]


@dataclass(frozen=True)
class StepLR:
    """lr * gamma^(step // step_size): the rate falls by one factor every step_size steps.

    lr : the rate at first, 0 or above. step_size : at least 1. gamma : 0 or above.

    >>> schedule = StepLR(0.1, step_size=30)
    >>> schedule(29), schedule(30)
    (0.1, 0.010000000000000002)
    """

    lr: float
    step_size: int
    gamma: float = 0.1

    def __post_init__(self) -> None:
        _checks.number_below("lr", self.lr, 0)
        _checks.integer("step_size", self.step_size, 1)
        _checks.number_below("gamma", self.gamma, 0)

    def __call__(self, step: int) -> float:
        """The rate after so many steps, an integer from 0 on."""
        return float(self.lr * self.gamma ** (_step(step) // self.step_size))


@dataclass(frozen=True)
class CosineAnnealingLR:
    """eta_min + (lr - eta_min) * (1 + cos(pi * step / T_max)) / 2 (Loshchilov and Hutter 2017, without restarts).

    The rate falls to eta_min at T_max and, as PyTorch's, rises again beyond.

    lr : the rate at first, 0 or above. T_max : at least 1. eta_min : the least rate, 0 or above.
    """

    lr: float
    T_max: int
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        _checks.number_below("lr", self.lr, 0)
        _checks.integer("T_max", self.T_max, 1)
        _checks.number_below("eta_min", self.eta_min, 0)

    def __call__(self, step: int) -> float:
        """The rate after so many steps, an integer from 0 on."""
        return _cosine(self.lr, self.eta_min, _step(step) / self.T_max)


@dataclass(frozen=True)
class CosineAnnealingWarmRestarts:
    """A cosine from lr down to eta_min, begun again after T_0, then T_0 * T_mult, T_0 * T_mult^2, ... steps.

    lr : the rate at first, 0 or above. T_0 : at least 1. T_mult : at least 1. eta_min : the least rate, 0 or above.
    (Loshchilov and Hutter 2017.)
    """

    lr: float
    T_0: int
    T_mult: int = 1
    eta_min: float = 0.0

    def __post_init__(self) -> None:
        _checks.number_below("lr", self.lr, 0)
        _checks.integer("T_0", self.T_0, 1)
        _checks.integer("T_mult", self.T_mult, 1)
        _checks.number_below("eta_min", self.eta_min, 0)

    def __call__(self, step: int) -> float:
        """The rate after so many steps, an integer from 0 on."""
        done, length = _step(step), self.T_0
        if self.T_mult == 1:
            done %= length
        while done >= length:
            done -= length
            length *= self.T_mult
        return _cosine(self.lr, self.eta_min, done / length)


@dataclass(frozen=True)
class LinearWarmup:
    """The rate rises in a straight line for total_iters steps, then another schedule begins at its step 0.

        lr(0) * (start_factor + (1 - start_factor) * step / total_iters)        step < total_iters
        lr(step - total_iters)                                                  else

    As torch.optim.lr_scheduler.SequentialLR of LinearLR and the other.

    schedule : what follows: a schedule, or a number for a constant rate.
    total_iters : steps of the warm-up, 0 or above.
    start_factor : what the rate starts at, as a part of schedule(0), from 0 to 1.

    >>> schedule = LinearWarmup(CosineAnnealingLR(1e-3, 9000), total_iters=1000)
    """

    schedule: Callable[[int], float] | float
    total_iters: int
    start_factor: float = 1 / 3

    def __post_init__(self) -> None:
        if not callable(self.schedule):
            _checks.number_below("schedule", self.schedule, 0)
        _checks.integer("total_iters", self.total_iters, 0, 2**53)
        if _checks.number_below("start_factor", self.start_factor, 0) > 1:
            raise ValueError(f"start_factor: expected 0 to 1, got {self.start_factor}")

    def __call__(self, step: int) -> float:
        """The rate after so many steps, an integer from 0 on."""
        after = _step(step) - self.total_iters
        lr = self.schedule(max(0, after)) if callable(self.schedule) else float(self.schedule)
        if after >= 0:
            return lr
        return lr * (self.start_factor + (1 - self.start_factor) * step / self.total_iters)


class ReduceLROnPlateau:
    """Lowers the rate when a metric has stopped improving: `optimizer.lr = plateau(validation_loss)` after each epoch.

    lr : the rate at first, 0 or above.
    mode : "min" where less of the metric is better, or "max".
    factor : what the rate is multiplied by, at least 0 and below 1.
    patience : so many epochs without improvement pass; the next lowers the rate.
    threshold, threshold_mode : what counts as improvement on the best value so far: by more than this part of it
        ("rel"), or by more than this ("abs"). A metric that is NaN never does.
    cooldown : so many epochs after a reduction are not counted.
    min_lr : the rate stays at or above it.
    eps : a change of the rate of no more than this is not made.

    The attribute `lr` is the rate as it is now. TypeError, ValueError: an argument of the wrong kind or range.
    """

    def __init__(
        self,
        lr: float,
        mode: str = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: str = "rel",
        cooldown: int = 0,
        min_lr: float = 0.0,
        eps: float = 1e-8,
    ):
        self.lr = _checks.number_below("lr", lr, 0)
        self._sign = -1 if _checks.choice("mode", mode, ("min", "max")) == "min" else 1
        self._factor = _checks.number_below("factor", factor, 0, 1)
        self._patience = _checks.integer("patience", patience, 0)
        self._threshold = _checks.number_below("threshold", threshold, 0)
        self._relative = _checks.choice("threshold_mode", threshold_mode, ("rel", "abs")) == "rel"
        self._cooldown = _checks.integer("cooldown", cooldown, 0)
        self._min_lr = _checks.number_below("min_lr", min_lr, 0)
        self._eps = _checks.number_below("eps", eps, 0)
        self._best = -self._sign * math.inf
        self._bad_epochs = self._resting = 0

    def __call__(self, metric: float) -> float:
        """Take note of the metric after an epoch, and return the rate of the next one."""
        metric = _metric("metric", metric)
        margin = self._threshold * (self._best if self._relative else 1)
        limit = self._best if math.isinf(self._best) else self._best + self._sign * margin
        if self._sign * metric > self._sign * limit:
            self._best, self._bad_epochs = metric, 0
        else:
            self._bad_epochs += 1
        if self._resting > 0:
            self._resting -= 1
            self._bad_epochs = 0
        if self._bad_epochs > self._patience:
            lower = max(self.lr * self._factor, self._min_lr)
            if self.lr - lower > self._eps:
                self.lr = lower
            self._bad_epochs, self._resting = 0, self._cooldown
        return self.lr

    def state_dict(self) -> dict[str, float]:
        """What it remembers, as numbers: for `load_state_dict` of another one made with the same arguments."""
        return {
            "lr": self.lr,
            "best": self._best,
            "num_bad_epochs": self._bad_epochs,
            "cooldown_counter": self._resting,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`. TypeError, ValueError: not that; nothing has changed then."""
        wanted = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(wanted):
            came = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
            raise ValueError(f"state: expected a mapping with {', '.join(wanted)}, got {came}")
        given = {name: _plain(value) for name, value in state.items()}
        lr, best = _checks.number_below("state: lr", given["lr"], 0), _metric("state: best", given["best"])
        bad_epochs = _checks.integer("state: num_bad_epochs", given["num_bad_epochs"], 0)
        self._resting = _checks.integer("state: cooldown_counter", given["cooldown_counter"], 0)
        self.lr, self._best, self._bad_epochs = lr, best, bad_epochs


def _cosine(lr, eta_min, part):
    return float(eta_min + (lr - eta_min) * (1 + math.cos(math.pi * part)) / 2)


def _step(value):
    return _checks.integer("step", value, 0)


def _metric(name, value):
    """Any number, NaN and infinity too."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    return float(value)
