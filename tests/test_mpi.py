"""fit over real MPI ranks is fit in one process, and an error on one rank ends all of them.

The ranks run tests/mpi_ranks.py.
"""

import json
import os
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
TOLERANCE = {"float32": 2e-6, "float64": 1e-12}


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
            os.killpg(process.pid, 9)
            process.communicate()
            pytest.fail(f"{n} ranks still run {arguments} after {SECONDS} s")
        return process.returncode, out, err

    return run


@pytest.fixture(scope="module", params=[2, 3])
def found(request, run, tmp_path_factory):
    """What each rank has found: for each case a list with the arrays of every rank."""
    n, directory = request.param, tmp_path_factory.mktemp("ranks")
    code, out, err = run(n, HERE / "mpi_ranks.py", directory, "cases")
    assert code == 0, f"exit {code}\n{out}\n{err}"
    assert len(list(directory.glob("arrays-*.npz"))) == n, "mpiexec and mpi4py are not of one MPI"

    def of(case):
        return [dict(np.load(directory / f"{case}-{rank}.npz")) for rank in range(n)]

    return of


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
def test_n_ranks_are_one_process_with_n_times_the_batch(found, case):
    expected = mpi_ranks.EQUAL[case](None, 1)
    first, *others = found(case)
    assert all(np.isfinite(a).all() for a in expected.values())
    assert difference(first, expected) < 1
    for other in others:
        assert all(np.array_equal(other[name], a) for name, a in first.items())


def test_a_planted_bug_is_seen(found):
    bugs = {}
    for name, a in found("planted")[0].items():
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


def test_one_rank_is_no_mpi_at_all(found):
    expected = mpi_ranks.arrays(None, 1)
    for got in found("alone"):
        assert all(np.array_equal(got[name], a) for name, a in expected.items())


def test_dropout_and_chance_are_the_same_on_all_ranks(found):
    alone = mpi_ranks.dropped_out(None, 1)
    first, *others = found("dropped_out")
    free, *free_others = found("without_a_seed")
    for name, a in first.items():
        assert all(np.array_equal(other[name], a) for other in (*others, *found("again")))
        assert all(np.array_equal(other[name], free[name]) for other in free_others)
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
        "a shard": [("ValueError", f"{same} x, y: 18 sequences, checksum")] * 2,
        "a shard of y": [("ValueError", f"{same} x, y: 36 sequences, checksum")] * 2,
        "another model": [("ValueError", f"{same} weight 0.weight_ih_l0: float32 (20, 3) on rank 0 and float32 (15")] * 2,
        "another optimizer": [("ValueError", f"{same} optimizer: SGD with step")] * 2,
        "an optimizer": [("RuntimeError", "rank 1 of 2 failed: KeyError: 'moments'"), ("KeyError", "'moments'")],
        "a callback at first": [("OSError", "the disk is full"), ("RuntimeError", f"rank 0 of 2 failed: {full}")],
        "a callback": [("OSError", "the disk is full"), ("RuntimeError", f"rank 0 of 2 failed: {full}")],
        "a callback at last": [("OSError", "the disk is full"), ("RuntimeError", f"rank 0 of 2 failed: {full}")],
        "a monitor": [
            ("ValueError", "monitor: expected one of loss"),
            ("ValueError", "rank 0 of 2 failed: ValueError: monitor: expected one of loss"),
        ],
        "a schedule": [
            ("RuntimeError", "rank 1 of 2 failed: ZeroDivisionError: division by zero"),
            ("ZeroDivisionError", "division by zero"),
        ],
        "validation": [("ValueError", f"{same} validation_data: 36 sequences")] * 2,
        "a metric": None,
        "comm": [("TypeError", f"comm: expected None or a communicator of mpi4py, MPI.COMM_WORLD for one, got {world}")] * 2,
    }
    assert told[0].keys() == told[1].keys() == expected.keys()
    for name, pair in expected.items():
        for rank, wanted in enumerate(pair or (None, None)):
            got = told[rank][name]
            assert (got is None) == (wanted is None), f"{name}, rank {rank}: {got}"
            if wanted:
                assert got[0] == wanted[0] and got[1].startswith(wanted[1]), f"{name}, rank {rank}: {got}"
    assert told[0]["nan in x"] == told[1]["nan in x"] and "infinity that is in x" in told[0]["nan in x"][1]
