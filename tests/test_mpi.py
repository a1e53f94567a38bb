"""fit over real MPI ranks is fit in one process, and an error on one rank ends all of them.

The ranks run tests/mpi_ranks.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import mpi_ranks
import numpy as np
import pytest

import elman

HERE = Path(__file__).parent
SECONDS = 60  # of one run, before its processes are killed
TOLERANCE = {"float32": 1e-6, "float64": 1e-13}
THREE = ("arrays", "ragged_steps", "truncated", "class_weights", "resumed")  # the cases that three ranks run too


def mpiexec():
    """The one beside this Python, where pip puts that of the mpich wheel; or the system's."""
    return shutil.which("mpiexec", path=os.path.dirname(sys.executable)) or shutil.which("mpiexec")


@pytest.fixture(scope="module")
def run():
    """A function that runs Python on n ranks: exit code, stdout and stderr."""
    pytest.importorskip("mpi4py", reason="needs mpi4py: pip install 'elman[mpi]'")
    if mpiexec() is None:
        pytest.skip("needs mpiexec: pip install mpich")
    path = os.pathsep.join([os.path.dirname(os.path.dirname(elman.__file__)), str(HERE)])
    environment = os.environ | {"PYTHONPATH": path, "ELMAN_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}

    def run(n, *arguments):
        process = subprocess.Popen(
            [mpiexec(), "-n", str(n), sys.executable, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            if hasattr(os, "killpg"):
                os.killpg(process.pid, 9)
            process.kill()
            process.communicate()
            pytest.fail(f"{n} ranks still run {arguments} after {SECONDS} s")
        return process.returncode, out, err

    return run


def results(run, directory, n, cases):
    """For each case the arrays that every rank has found."""
    code, out, err = run(n, HERE / "mpi_ranks.py", directory, "cases", *cases)
    assert code == 0, f"exit {code}\n{out}\n{err}"
    files = {case: [directory / f"{case}-{rank}.npz" for rank in range(n)] for case in cases}
    assert all(path.exists() for paths in files.values() for path in paths), "mpiexec and mpi4py are not of one MPI"
    return {case: [dict(np.load(path)) for path in paths] for case, paths in files.items()}


@pytest.fixture(scope="module")
def two(run, tmp_path_factory):
    return results(run, tmp_path_factory.mktemp("two"), 2, [*mpi_ranks.CASES, "alone"])


@pytest.fixture(scope="module")
def three(run, tmp_path_factory):
    return results(run, tmp_path_factory.mktemp("three"), 3, THREE)


def difference(got, expected):
    """The largest, where 1 is the tolerance; by the size of each array."""
    assert got.keys() == expected.keys()
    ratios = []
    for name, e in expected.items():
        assert got[name].shape == e.shape, name
        # Losses of float32 models go through the buffer of the weights.
        tolerance = max(TOLERANCE[str(e.dtype)], TOLERANCE[str(next(iter(expected.values())).dtype)])
        ratios.append(np.abs(got[name] - e).max() / (tolerance * (1 + np.abs(e).max())))
    return max(ratios)


@pytest.mark.parametrize("case", mpi_ranks.EQUAL)
def test_two_ranks_are_one_process_with_twice_the_batch(two, case):
    check(two[case], mpi_ranks.EQUAL[case](None, 1))


@pytest.mark.parametrize("case", THREE)
def test_three_ranks_are_one_process_with_three_times_the_batch(three, case):
    check(three[case], mpi_ranks.EQUAL[case](None, 1))


def check(found, expected):
    first, *others = found
    assert all(np.isfinite(a).all() for a in expected.values())
    assert difference(first, expected) < 1
    for other in others:
        assert all(np.array_equal(other[name], a) for name, a in first.items())


def test_a_planted_bug_is_seen(two):
    bugs = {}
    for name, a in two["planted"][0].items():
        case, key = name.split("|")
        bugs.setdefault(case, {})[key] = a
    assert len(bugs) == 6
    for case, got in bugs.items():
        assert difference(got, mpi_ranks.EQUAL[case](None, 1)) > 1000, case


def test_the_cases_train_something():
    """Their weights differ from the first ones by far more than the tolerance."""
    for case in (mpi_ranks.arrays, mpi_ranks.truncated, mpi_ranks.class_weights):
        after = case(None, 1)
        before = (mpi_ranks.classifier if case is mpi_ranks.arrays else mpi_ranks.tagger)().params
        assert max(np.abs(after[name] - a).max() for name, a in before.items()) > 0.05


def test_one_rank_is_no_mpi_at_all(two):
    expected = mpi_ranks.arrays(None, 1)
    for got in two["alone"]:
        assert all(np.array_equal(got[name], a) for name, a in expected.items())


def test_dropout_and_chance(two):
    """The weights are the same on all ranks and in each run; what is dropped is not."""
    alone = mpi_ranks.dropped_out(None, 1)
    drawn, *others_drawn = [found.pop("drawn") for found in two["dropped_out"]]
    assert np.array_equal(drawn, two["again"][0].pop("drawn"))
    assert all(len(other) == len(drawn) > 3 and not (other == drawn).any() for other in others_drawn)
    first, *others = two["dropped_out"]
    free, *others_free = two["without_a_seed"]
    for name, a in first.items():
        assert all(np.array_equal(other[name], a) for other in (*others, two["again"][0]))
        assert all(np.array_equal(other[name], free[name]) for other in others_free)
        assert name == "lr" or not (np.array_equal(alone[name], a) or np.array_equal(free[name], a))


def test_an_error_on_one_rank_ends_all(run, tmp_path):
    code, out, err = run(2, HERE / "mpi_ranks.py", tmp_path, "failures")
    assert code == 0, f"exit {code}\n{out}\n{err}"
    told = [json.loads((tmp_path / f"failures-{rank}.json").read_text()) for rank in (0, 1)]
    nan = "rank 1 of 2: epoch 0, step 1: the loss is nan and the norm of the gradient nan; the weights are those before"
    few = "rank 0 of 2: epoch 0, step 0: the loss is inf"
    target = "targets: expected 0 to 2 (the classes of logits), got 3"
    same, world = "comm: expected the same arguments on all ranks, got", "'MPI.COMM_WORLD'"
    full = "OSError: the disk is full"
    expected = {  # on rank 0, on rank 1
        "nan in x": [("FloatingPointError", nan), ("FloatingPointError", nan)],
        "nan beside no weight": [("FloatingPointError", nan), ("FloatingPointError", nan)],
        "nan of few": [("FloatingPointError", few), ("FloatingPointError", few)],
        "a target": [("ValueError", target), ("ValueError", f"rank 0 of 2 failed: ValueError: {target}")],
        "own loss": [
            ("RuntimeError", "rank 1 of 2 failed: ZeroDivisionError: mine"),
            ("ZeroDivisionError", "mine"),
        ],
        "an argument": [
            ("TypeError", "rank 1 of 2 failed: TypeError: epochs: expected an integer, got 1.5"),
            ("TypeError", "epochs: expected an integer, got 1.5"),
        ],
        "another argument": [("ValueError", f"{same} batch_size: 6 on rank 0 and 7 on rank 1")] * 2,
        "another lr": [("ValueError", f"{same} lr: 0.1 on rank 0 and 1.1 on rank 1")] * 2,
        "another lr_interval": [("ValueError", f"{same} lr_interval: epoch on rank 0 and step on rank 1")] * 2,
        "a shard": [("ValueError", f"{same} x, y: 18 sequences, checksum")] * 2,
        "a shard of y": [("ValueError", f"{same} x, y: 36 sequences, checksum")] * 2,
        "another model": [("ValueError", f"{same} weight 0.weight_ih_l0: float32 (20, 3) on rank 0 and float32 (15")]
        * 2,
        "another optimizer": [("ValueError", f"{same} optimizer: SGD with step")] * 2,
        "an optimizer": [("RuntimeError", "rank 1 of 2 failed: KeyError: 'moments'"), ("KeyError", "'moments'")],
        "a callback at first": [("OSError", "the disk is full"), ("RuntimeError", f"rank 0 of 2 failed: {full}")],
        "a callback": [("OSError", "the disk is full"), ("RuntimeError", f"rank 0 of 2 failed: {full}")],
        "a callback at last": [("OSError", "the disk is full"), ("RuntimeError", f"rank 0 of 2 failed: {full}")],
        "at the very last": [
            ("RuntimeError", "rank 1 of 2 failed: MemoryError: too heavy"),
            ("MemoryError", "too heavy"),
        ],
        "a monitor": [
            ("ValueError", "monitor: expected one of loss"),
            ("ValueError", "rank 0 of 2 failed: ValueError: monitor: expected one of loss"),
        ],
        "a schedule": [
            ("RuntimeError", "rank 1 of 2 failed: ZeroDivisionError: division by zero"),
            ("ZeroDivisionError", "division by zero"),
        ],
        "validation": [("ValueError", f"{same} validation_data: 36 sequences")] * 2,
        "a metric": [
            ("RuntimeError", "rank 1 of 2 failed: ZeroDivisionError: division by zero"),
            ("ZeroDivisionError", "division by zero"),
        ],
        "a metric of validation": [
            ("IndexError", "no more"),
            ("RuntimeError", "rank 0 of 2 failed: IndexError: no more"),
        ],
        "comm": [("TypeError", f"comm: expected None or a communicator of mpi4py, MPI.COMM_WORLD for one, got {world}")]
        * 2,
    }
    assert told[0].keys() == told[1].keys() == expected.keys()
    for name, pair in expected.items():
        for rank, (kind, words) in enumerate(pair):
            got = told[rank][name]
            assert got and got[0] == kind and got[1].startswith(words), f"{name}, rank {rank}: {got}"
    assert told[0]["nan in x"] == told[1]["nan in x"] and "infinity that is in x" in told[0]["nan in x"][1]


def test_files_and_lines_are_those_of_rank_0(run, tmp_path):
    """And `python -m mpi4py` ends all ranks where one of them fails outside fit."""
    code, out, err = run(2, "-m", "mpi4py", HERE / "mpi_ranks.py", tmp_path, "files")
    assert code == 1 and "an error outside fit" in err, f"exit {code}\n{out}\n{err}"
    assert [line.split("  ")[0] for line in out.splitlines() if line.startswith("epoch")] == ["epoch 1/2", "epoch 2/2"]
    assert [path.name for path in tmp_path.glob("best*")] == ["best-0.safetensors"]
    found = [dict(np.load(tmp_path / f"telling-{rank}.npz")) for rank in (0, 1)]
    best = elman.load(tmp_path / "best-0.safetensors").params
    assert found[0]["loss"][1] < found[0]["loss"][0]
    for name, a in found[0].items():
        assert np.array_equal(a, found[1][name]) and np.array_equal(a, best.get(name, a))


def test_the_example(run):
    pytest.importorskip("sklearn")
    script = HERE.parent / "examples" / "train_mpi.py"
    code, out, err = run(2, "-m", "mpi4py", script, "--quick")
    assert code == 0, f"exit {code}\n{out}\n{err}"
    words = re.fullmatch(r"2 ranks: (\d+\.\d)% of 450 digits that they have not seen are right \(.* s\)\n", out)
    assert words and 75 < float(words[1]) <= 100, out


def test_without_mpi4py(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"comm needs mpi4py: pip install 'elman\[mpi\]'"):
        mpi_ranks.arrays(object(), 1)
