"""`pytest --benchmark-only`: each case of elman.benchmark by each contestant, one group per case, one thread.

The short run takes less than five minutes; `--bench-all` adds what takes a second or more a call. Each result is
checked against the reference before it is timed. `pytest` alone runs the checks of those checks. `elman bench` gives
ratios.
"""

from dataclasses import replace

import numpy as np
import pytest

import elman
from elman.benchmark import peers
from elman.benchmark.cases import CASES, Case, inputs


def pairs(cases):
    return [pytest.param(c, name, id=f"{c.name}-{name}") for c in cases for name in peers.contestants(c)]


@pytest.fixture(autouse=True)
def one_thread():
    with elman.threads(1):
        yield


@pytest.mark.benchmark(min_rounds=3, max_time=0.2)
@pytest.mark.parametrize("case, name", pairs(CASES))
def test_bench(benchmark, request, case, name):
    skip_without(name)
    if peers.is_slow(case, name) and not request.config.getoption("--bench-all"):
        pytest.skip("slow: only with --bench-all")
    call = peers.ready(case, name)
    benchmark.group = case.name
    benchmark.extra_info.update(contestant=name, operations=case.operations, isa=elman.config()["isa"])
    benchmark(call)


# The checks themselves, on small shapes: they pass what is right, and stop each of these planted bugs.

SMALL = [
    Case(work, cell, 1 if work.startswith("step") else 9, 3, 5, 7, lengths=lengths)
    for cell in ("rnn", "lstm", "gru")
    for work, lengths in (
        ("step", None),
        ("step_many", None),
        ("forward", None),
        ("train", None),
        ("forward", (1, 9)),
        ("train", (1, 9)),
    )  # fmt: skip
]
SMALL += [
    Case(work, cell, 1 if work == "step" else 9, 3, 5, 7, 2, bidirectional, lengths=lengths)
    for cell in ("rnn", "lstm", "gru")
    for work, bidirectional, lengths in (
        ("step", False, None),
        ("forward", False, None),
        ("forward", True, None),
        ("train", True, None),
        ("forward", True, (1, 9)),
        ("train", True, (1, 9)),
    )
]
SMALL += [Case("train", cell, 9, 3, 5, 7, dtype="float64") for cell in ("rnn", "lstm", "gru")]


@pytest.mark.parametrize("case, name", pairs(SMALL))
def test_right_results_pass(case, name):
    skip_without(name)
    peers.ready(case, name)


@pytest.mark.parametrize("case, name", pairs(SMALL))
def test_wrong_order_of_gates_is_caught(case, name, monkeypatch):
    skip_without(name)
    peers.truth(case)
    right = inputs(case)
    by = 1 if case.cell == "rnn" else case.H  # without gates, the units
    wrong = replace(right, params={key: np.roll(a, by, axis=0) for key, a in right.params.items()})
    monkeypatch.setattr(peers, "inputs", lambda case: wrong)
    with pytest.raises(AssertionError, match="off by"):
        peers.ready(case, name)


@pytest.mark.parametrize("case", [c for c in SMALL if c.cell != "rnn" and c.work != "train"], ids=lambda c: c.name)
def test_wrong_onnx_model_is_caught(case, monkeypatch):
    skip_without("onnxruntime")
    orders = {"lstm": (0, 1, 2, 3), "gru": (0, 1, 2)}  # PyTorch's
    monkeypatch.setitem(peers.ONNX_GATES, case.cell, orders[case.cell])
    with pytest.raises(AssertionError, match="off by"):
        peers.ready(case, "onnxruntime")
    monkeypatch.undo()
    if case.cell == "gru":
        monkeypatch.setitem(peers.ONNX_OPTIONS, "gru", {"linear_before_reset": 0})
        with pytest.raises(AssertionError, match="off by"):
            peers.ready(case, "onnxruntime")


@pytest.mark.parametrize("case", [c for c in SMALL if c.work != "train"], ids=lambda c: c.name)
def test_wrong_chain_of_onnx_layers_is_caught(case, monkeypatch):
    """Swapped directions; where there is one, swapped layers; where there is one of them too, a transposed matrix."""
    skip_without("onnxruntime")
    right = peers._onnx_weights

    def wrong(case, data, k):
        weights = right(case, data, k)
        if case.bidirectional:
            return {name: a[::-1] for name, a in weights.items()}
        if case.layers > 1:
            return weights | {"R": right(case, data, case.layers - 1 - k)["R"]}
        return weights | {"R": weights["R"].transpose(0, 2, 1).reshape(weights["R"].shape)}

    monkeypatch.setattr(peers, "_onnx_weights", wrong)
    with pytest.raises(AssertionError, match="off by"):
        peers.ready(case, "onnxruntime")


@pytest.mark.parametrize("case", SMALL, ids=lambda c: c.name)
def test_every_array_of_a_result_is_looked_at(case):
    for key, value in peers.truth(case).items():
        result = {k: a.astype(case.dtype) for k, a in peers.truth(case).items()}
        peers.check(case, "elman", result)
        result[key].flat[-1] += 3 * peers.TOLERANCE[case.dtype] * np.abs(value).max()
        with pytest.raises(AssertionError, match=f"elman: {key} is off by"):
            peers.check(case, "elman", result)
        del result[key]
        with pytest.raises(AssertionError, match="gave no"):
            peers.check(case, "elman", result)


def skip_without(name):
    if module := peers.missing(name):
        pytest.skip(f"{module} is not installed")
