"""Schedules against literal values and torch.optim.lr_scheduler."""

import copy
import math
import pickle

import numpy as np
import pytest

from elman.dense import Dense
from elman.optimizers import SGD
from elman.schedules import (
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    LinearWarmup,
    ReduceLROnPlateau,
    StepLR,
)


def torch_optimizer(lr):
    torch = pytest.importorskip("torch")
    return torch, torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates_of(optimizer, scheduler, steps):
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def test_literal_values():
    assert [StepLR(8.0, 2, 0.5)(t) for t in range(6)] == [8, 8, 4, 4, 2, 2]
    cosine = CosineAnnealingLR(3.0, 4, eta_min=1.0)
    expected = [3, 2 + math.sqrt(0.5), 2, 2 - math.sqrt(0.5), 1, 2 - math.sqrt(0.5)]
    assert [cosine(t) for t in range(6)] == pytest.approx(expected, rel=1e-15)
    restarts = CosineAnnealingWarmRestarts(2.0, 1, T_mult=2)
    assert [restarts(t) for t in range(8)] == pytest.approx(
        [2, 2, 1, 2, *(1 + math.cos(k * math.pi / 4) for k in range(1, 4)), 2]
    )
    assert [LinearWarmup(8.0, 4, 0.5)(t) for t in range(6)] == [4, 5, 6, 7, 8, 8]
    assert [LinearWarmup(StepLR(8.0, 1, 0.5), 2, 0.0)(t) for t in range(5)] == [0, 4, 8, 4, 2]
    assert LinearWarmup(8.0, 0)(0) == 8


@pytest.mark.parametrize(
    "mine, name, options",
    [
        (StepLR(0.3, 7), "StepLR", {"step_size": 7}),
        (StepLR(0.3, 3, 0.7), "StepLR", {"step_size": 3, "gamma": 0.7}),
        (CosineAnnealingLR(0.3, 20), "CosineAnnealingLR", {"T_max": 20}),
        (CosineAnnealingLR(0.3, 60, 0.01), "CosineAnnealingLR", {"T_max": 60, "eta_min": 0.01}),
        (CosineAnnealingWarmRestarts(0.3, 9), "CosineAnnealingWarmRestarts", {"T_0": 9}),
        (
            CosineAnnealingWarmRestarts(0.3, 4, 3, 0.01),
            "CosineAnnealingWarmRestarts",
            {"T_0": 4, "T_mult": 3, "eta_min": 0.01},
        ),
    ],
)
def test_against_pytorch(mine, name, options):
    torch, optimizer = torch_optimizer(0.3)
    expected = rates_of(optimizer, getattr(torch.optim.lr_scheduler, name)(optimizer, **options), 60)
    assert [mine(t) for t in range(60)] == pytest.approx(expected, rel=1e-10, abs=1e-15)
    assert len(set(np.round(expected, 12))) > 5  # something changes


def test_warmup_against_pytorch():
    torch, optimizer = torch_optimizer(0.3)
    schedulers = torch.optim.lr_scheduler
    parts = [schedulers.LinearLR(optimizer, total_iters=7), schedulers.CosineAnnealingLR(optimizer, 40, 0.01)]
    expected = rates_of(optimizer, schedulers.SequentialLR(optimizer, parts, [7]), 45)
    mine = LinearWarmup(CosineAnnealingLR(0.3, 40, 0.01), 7)
    assert [mine(t) for t in range(45)] == pytest.approx(expected, rel=1e-10)


PLATEAUS = [
    {},
    {"patience": 0, "factor": 0.5},
    {"patience": 3, "cooldown": 2, "factor": 0.5, "min_lr": 0.01},
    {"patience": 2, "mode": "max", "threshold": 0.02},
    {"patience": 2, "threshold": 0.3, "threshold_mode": "abs"},
    {"patience": 1, "threshold": 0.1, "threshold_mode": "abs", "mode": "max", "eps": 1e-3},
]


def metrics(seed):
    rng = np.random.default_rng(seed)
    values = 2 / np.arange(1, 81) ** 0.3 + 0.1 * rng.standard_normal(80)
    values[[5, 33]] = np.nan, np.inf
    return values


@pytest.mark.parametrize("options", PLATEAUS)
@pytest.mark.parametrize("sign", [1, -1])
def test_plateau_against_pytorch(options, sign):
    torch, optimizer = torch_optimizer(0.3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
    mine = ReduceLROnPlateau(0.3, **options)
    assert mine.lr == 0.3
    seen = set()
    for value in metrics(3):
        scheduler.step(float(sign * value))
        seen.add(optimizer.param_groups[0]["lr"])
        assert mine(sign * value) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-14)
    assert len(seen) > 1


def test_plateau_resumes():
    whole, first = (ReduceLROnPlateau(0.3, patience=2, cooldown=1, factor=0.5) for _ in range(2))
    expected = [whole(m) for m in metrics(1)]
    for m in metrics(1)[:40]:
        first(m)
    second = ReduceLROnPlateau(1.0, patience=2, cooldown=1, factor=0.5)
    second.load_state_dict({name: np.array(value) for name, value in first.state_dict().items()})
    assert [second(m) for m in metrics(1)[40:]] == expected[40:]
    assert expected[-1] < expected[39] < 0.3


@pytest.mark.parametrize("bad", [None, {}, {"lr": 1}, [1]])
def test_plateau_refuses_another_state(bad):
    with pytest.raises(ValueError, match="state: expected a mapping with lr, best"):
        ReduceLROnPlateau(0.3).load_state_dict(bad)


def test_plateau_keeps_its_state_when_one_is_wrong():
    plateau = ReduceLROnPlateau(0.3)
    plateau(1.0)
    before = plateau.state_dict()
    for name, value in {"lr": -1, "best": None, "num_bad_epochs": 1.5, "cooldown_counter": -1}.items():
        with pytest.raises((TypeError, ValueError), match=f"state: {name}"):
            plateau.load_state_dict({**before, "lr": 0.1, name: value})
        assert plateau.state_dict() == before


def test_a_schedule_drives_an_optimiser_and_can_be_copied():
    schedule = LinearWarmup(CosineAnnealingLR(0.3, 40), 7)
    optimizer = SGD(Dense(2, 1))
    optimizer.lr = schedule(3)
    assert optimizer.lr == schedule(3) == schedule(np.int64(3))
    assert pickle.loads(pickle.dumps(schedule)) == copy.deepcopy(schedule) == schedule
    assert repr(StepLR(0.1, 3)) == "StepLR(lr=0.1, step_size=3, gamma=0.1)"


@pytest.mark.parametrize(
    "make, error, words",
    [
        (lambda: StepLR(-1, 3), ValueError, "lr: expected at least 0"),
        (lambda: StepLR(1, 0), ValueError, "step_size: expected at least 1"),
        (lambda: StepLR(1, 2.5), TypeError, "step_size: expected an integer"),
        (lambda: StepLR(1, 2, math.nan), ValueError, "gamma"),
        (lambda: CosineAnnealingLR("fast", 2), TypeError, "lr: expected a number"),
        (lambda: CosineAnnealingLR(1, 0), ValueError, "T_max"),
        (lambda: CosineAnnealingLR(1, 3, -1), ValueError, "eta_min"),
        (lambda: CosineAnnealingWarmRestarts(1, 0), ValueError, "T_0"),
        (lambda: CosineAnnealingWarmRestarts(1, 1, 0), ValueError, "T_mult"),
        (lambda: LinearWarmup(None, 3), TypeError, "schedule: expected a number"),
        (lambda: LinearWarmup(1, -1), ValueError, "total_iters"),
        (lambda: LinearWarmup(1, 10**400), ValueError, "total_iters: expected 0 to"),
        (lambda: LinearWarmup(1, 3, 1.5), ValueError, "start_factor: expected 0 to 1, got 1.5"),
        (lambda: ReduceLROnPlateau(1, "least"), ValueError, "mode: expected one of 'min', 'max', got 'least'"),
        (lambda: ReduceLROnPlateau(1, factor=1.0), ValueError, "factor"),
        (lambda: ReduceLROnPlateau(1, patience=-1), ValueError, "patience"),
        (lambda: ReduceLROnPlateau(1, threshold=-1), ValueError, "threshold"),
        (lambda: ReduceLROnPlateau(1, threshold_mode="x"), ValueError, "threshold_mode"),
        (lambda: ReduceLROnPlateau(1, cooldown=0.5), TypeError, "cooldown"),
        (lambda: ReduceLROnPlateau(1, min_lr=-1), ValueError, "min_lr"),
        (lambda: ReduceLROnPlateau(1, eps=-1), ValueError, "eps"),
        (lambda: StepLR(1, 2)(-1), ValueError, "step: expected at least 0, got -1"),
        (lambda: StepLR(1, 2)(0.5), TypeError, "step: expected an integer"),
        (lambda: CosineAnnealingLR(1, 2)(None), TypeError, "step"),
        (lambda: CosineAnnealingWarmRestarts(1, 2)(-1), ValueError, "step"),
        (lambda: LinearWarmup(1, 2)(True), TypeError, "step"),
        (lambda: ReduceLROnPlateau(1)("low"), TypeError, "metric: expected a number, got 'low'"),
        (lambda: ReduceLROnPlateau(1)(None), TypeError, "metric"),
    ],
)
def test_errors(make, error, words):
    with pytest.raises(error, match=words):
        make()
