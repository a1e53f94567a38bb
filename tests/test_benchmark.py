"""`elman bench`: its arguments, its table and files, the workers it starts, the machine's limits and the bounds."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from processes import output_of
from test_demo import posix, terminal  # noqa: F401  a fixture

from elman import _kernels
from elman.__main__ import main
from elman.benchmark import command, measure, peers, roofline, table
from elman.benchmark.cases import CASES, GATES, LAYERS, Case, inputs
from elman.benchmark.worker import Worker, WorkerDied, case_of, environment, fields_of

LIMITS = roofline.Limits(
    {"float32": 100e9, "float64": 50e9},
    (
        roofline.Memory("L1", 32e3, 200e9),
        roofline.Memory("L2", 1e6, 100e9),
        roofline.Memory("L3", 8e6, 20e9),
        roofline.Memory("DRAM", math.inf, 10e9),
    ),
)


# ------------------------------------------------------------------------------------------------------------- cases


def test_names_are_unique_and_short_enough():
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert max(map(len, names)) <= table.WORK


@pytest.mark.parametrize(
    "work, cell, B, H, dtype, ragged",
    [("step", cell, 1, H, "float32", False) for cell in LAYERS for H in (32, 128, 512)]
    + [("forward", cell, 1, H, "float32", False) for cell in LAYERS for H in (32, 128, 256)]
    + [("forward", cell, B, H, "float32", False) for cell in LAYERS for B, H in ((8, 128), (32, 64), (32, 256))]
    + [("train", cell, B, H, "float32", False) for cell in LAYERS for B, H in ((1, 128), (8, 128), (32, 64))]
    + [("train", cell, 16, 64, "float64", False) for cell in ("lstm", "gru")]
    + [(work, "lstm", 32, 128, "float32", True) for work in ("forward", "train")],
)
def test_every_kind_of_work_has_a_case_with_a_target(work, cell, B, H, dtype, ragged):
    wanted = (work, cell, B, H, dtype, ragged)
    found = [c for c in CASES if (c.work, c.cell, c.B, c.H, c.dtype, c.lengths is not None) == wanted]
    assert any(c.target is not None and c.target > 1 for c in found)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_case_survives_json(case):
    assert case_of(json.loads(json.dumps(fields_of(case)))) == case


@pytest.mark.parametrize("layers, bidirectional", [(1, False), (2, False), (2, True)])
def test_operations_are_counted_from_the_weights_that_there_are(layers, bidirectional):
    case = Case("forward", "gru", 9, 3, 5, 7, layers, bidirectional, lengths=(1, 9))
    data = inputs(case)
    matrices = [a.size for name, a in data.params.items() if name.startswith("weight")]
    assert sorted(matrices) == sorted(number for pair in case.weights for number in pair)
    assert case.rows == data.lengths.sum() and data.lengths.max() == case.T
    assert case.operations == 2 * case.rows * sum(matrices)


def test_every_case_has_elman_the_reference_and_a_peer():
    for case in CASES:
        names = peers.contestants(case)
        assert {"elman", "numpy"} < names.keys() and {peers.peer_of(name) for name in names} & peers.MODULES.keys()


# ---------------------------------------------------------------------------------------------- limits of the machine


@pytest.mark.parametrize("isa", _kernels.isa_built())
@pytest.mark.parametrize("dtype, c_type", roofline.C_TYPES.items())
def test_limit_kernels_do_what_they_say(isa, dtype, c_type):
    if isa not in _kernels.isa_usable():
        pytest.skip(f"this machine cannot run {isa}")
    before = _kernels.isa()
    _kernels.select_isa(isa)
    try:
        lanes = _kernels.Packed(0, dtype == "float64", 1, 1, 1, 1).lanes
        total, a = np.ones(64, dtype), np.ones(4096, dtype)
        assert _kernels.read[c_type](3, a, total) == 3 * a.nbytes
        np.testing.assert_array_equal(total[:lanes], 3 * a.size / lanes)
        np.testing.assert_array_equal(total[lanes:], 1)
        total[:] = 1
        operations = _kernels.multiply_add[c_type](1000, total)
        chains = operations / 2000 / lanes
        np.testing.assert_array_equal(total[:lanes], chains * (chains - 1) / 2 + 1000 * chains)
        np.testing.assert_array_equal(total[lanes:], 1)
    finally:
        _kernels.select_isa(before)


def test_limits_are_positive_and_in_order():
    limits = roofline.measure_limits()
    assert set(limits.operations) == {"float32", "float64"}
    rates = [*limits.operations.values(), *(memory.rate for memory in limits.memories)]
    assert all(math.isfinite(rate) and rate > 1e7 for rate in rates), limits
    sizes = [memory.size for memory in limits.memories]
    assert sizes == sorted(sizes) and sizes[-1] == math.inf and limits.memories[-1].name == "DRAM"
    assert roofline.Limits.of_report(json.loads(json.dumps(limits.report()))).report() == limits.report()


@pytest.mark.parametrize("files, sysconf", [(False, True), (False, False)])
def test_sizes_of_caches_without_files(files, sysconf, monkeypatch):
    monkeypatch.setattr(os.path, "isdir", lambda path: files)
    if not sysconf:
        monkeypatch.delattr(os, "sysconf", raising=False)
    sizes = roofline.cache_sizes()
    assert "L1" in sizes and all(size > 1000 for size in sizes.values())


# -------------------------------------------------------------------------------------------------------------- bounds


def test_bound_of_a_step_reads_all_weights():
    case = Case("step", "lstm", 1, 1, 128, 128, layers=2)
    found = roofline.bound(case, LIMITS)
    assert found.seconds["weights"] == pytest.approx(2 * 4 * 128 * 256 * 4 / 20e9)  # 1 MiB, more than L2 has
    assert found.seconds["compute"] == pytest.approx(2 * 2 * 4 * 128 * 256 / 100e9)
    assert found.name == found.weights_in == "L3" and found.least == found.seconds["weights"]


def test_bound_of_a_sequence_reads_recurrent_weights_every_step():
    case = Case("forward", "gru", 100, 1, 64, 128)
    found = roofline.bound(case, LIMITS)
    recurrent, once = 3 * 128 * 128 * 4, 3 * 128 * 64 * 4
    assert found.seconds["weights"] == pytest.approx((100 * recurrent + once) / 100e9)
    assert found.name == "L2"
    backward_too = roofline.bound(Case("train", "gru", 100, 1, 64, 128), LIMITS)
    assert backward_too.seconds["weights"] == pytest.approx((200 * recurrent + once) / 100e9)
    assert backward_too.seconds["compute"] == pytest.approx(3 * found.seconds["compute"])


def test_bound_of_a_batch_is_compute_and_doubles_with_threads_and_float64():
    case = Case("forward", "lstm", 100, 32, 256, 256)
    found = roofline.bound(case, LIMITS)
    assert found.name == "FMA" and found.least == pytest.approx(case.operations / 100e9)
    assert roofline.bound(case, LIMITS, threads=2).least == pytest.approx(found.least / 2)
    double = Case("forward", "lstm", 100, 32, 256, 256, dtype="float64")
    assert roofline.bound(double, LIMITS).seconds["compute"] == pytest.approx(2 * found.least)


def test_bound_of_a_small_network_on_much_data_is_its_stream():
    case = Case("forward", "rnn", 1000, 1000, 8, 2)
    found = roofline.bound(case, LIMITS)
    assert found.name == "stream" and found.least == pytest.approx(1000 * 1000 * 10 * 4 / 10e9)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_case_has_a_bound(case):
    found = roofline.bound(case, LIMITS)
    assert all(0 < seconds < 100 for seconds in found.seconds.values())
    assert found.seconds["compute"] >= 2 * case.rows * GATES[case.cell] * case.H**2 / 100e9


# ------------------------------------------------------------------------------------------------------------- workers


def test_a_worker_times_what_is_right_and_stays_alive_after_what_is_not():
    fields = fields_of(Case("forward", "lstm", 3, 2, 4, 5))
    with Worker(1) as worker:
        assert worker.ask(do="ready", name="elman", case=fields)["seconds"] > 0
        assert worker.ask(do="time", name="elman", repeats=3, cpu=False)["seconds"] > 0
        assert worker.ask(do="time", name="elman", repeats=3, cpu=True)["seconds"] > 0
        assert "KeyError" in worker.ask(do="ready", name="nobody", case=fields)["error"]
        assert worker.ask(do="drop") is None
        assert worker.ask(do="limits")["gflops"]["float32"] > 0


def test_a_worker_that_dies_says_why():
    with Worker(1) as worker:
        with pytest.raises(WorkerDied, match="ended with code .*KeyError"):
            worker.ask(do="time", name="never made ready", repeats=1, cpu=False)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs sched_setaffinity")
def test_a_worker_of_one_thread_has_one_core():
    code = """
        import os, threading
        from elman.benchmark import worker
        worker.take_cores(1)
        print(len(os.sched_getaffinity(0)))
    """
    assert output_of(code) == "1"


def test_pools_are_limited_before_they_start():
    assert environment(1)["OPENBLAS_NUM_THREADS"] == "1" and "intra_op" in environment(1)["XLA_FLAGS"]
    assert environment(2)["OMP_NUM_THREADS"] == "2" and "XLA_FLAGS" not in environment(2)


def test_a_peer_that_crashes_or_is_wrong_is_named_and_the_others_are_timed(monkeypatch):
    def ask(self, **request):
        if request["do"] == "ready" and request["name"] == "torch":
            raise WorkerDied("its process ended with code -9")
        if request["do"] == "ready" and request["name"] == "onnxruntime":
            return {"error": "AssertionError: y is off by 1"}
        return original(self, **request)

    original = Worker.ask
    monkeypatch.setattr(Worker, "ask", ask)
    case = Case("forward", "rnn", 3, 2, 4, 5, target=2)
    with measure.Bench(rounds=2) as bench:
        row = bench.row(case, ["elman", "torch", "numpy", "onnxruntime"])
    assert row["us"].keys() == {"elman", "numpy"} and row["ratio"] is None and row["best"] is None
    assert row["errors"] == {"torch": "its process ended with code -9", "onnxruntime": "AssertionError: y is off by 1"}
    assert "torch: its process" in table.line(row, ["elman", "torch"])


# --------------------------------------------------------------------------------------------------------- the command

CASE = Case("forward", "rnn", 3, 2, 4, 5, label="small", target=2)


@pytest.fixture
def one_case(monkeypatch):
    monkeypatch.setattr("elman.benchmark.cases.CASES", [CASE, Case("train", "lstm", 3, 2, 4, 5, slow=True)])
    monkeypatch.setattr(measure.Bench, "contestants", lambda self, case, alone=False: ["elman", "numpy"])


def test_table_and_json(one_case, tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert main(["bench", "--rounds", "2", "--json", str(path)]) == 0
    out, err = capsys.readouterr()
    assert err == "" and CASE.name in out and "GFLOP/s" in out and "train" not in out
    report = json.loads(path.read_text())
    assert {"date", "cpu", "elman", "others", "time"} == report["machine"].keys() and report["threads"] == 1
    assert report["limits"]["memories"][-1]["name"] == "DRAM"
    (row,) = report["rows"]
    assert row["target"] == 2 and row["us"].keys() == {"elman", "numpy"} and case_of(row["case"]) == CASE
    assert all(0 < row["least_us"][name] <= us for name, us in row["us"].items())
    assert row["reached"] == pytest.approx(row["bound_us"] / row["us"]["elman"]) and row["errors"] == {}


def test_all_has_the_slow_cases_and_match_chooses(one_case, capsys):
    assert main(["bench", "--rounds", "1", "--all", "--match", "train"]) == 0
    out = capsys.readouterr().out
    assert "train LSTM" in out and CASE.name not in out


def test_what_is_wrong_makes_exit_1(one_case, capsys, monkeypatch):
    def ask(self, **request):
        return {"error": "AssertionError: off"} if request.get("name") == "numpy" else original(self, **request)

    original = Worker.ask
    monkeypatch.setattr(Worker, "ask", ask)
    assert main(["bench", "--rounds", "1"]) == 1
    assert "numpy: AssertionError: off" in capsys.readouterr().out


def row(us, ratio=None, target=None):
    best = None if ratio is None else "torch cell"
    return {
        "work": "step LSTM B1 1->2", "case": fields_of(Case("step", "lstm", 1, 1, 1, 2)), "us": us, "best": best,
        "ratio": ratio, "target": target, "bound_us": 0.5, "bound_by": "L1", "reached": 0.5, "errors": {},
    }  # fmt: skip


def test_line_shows_the_best_of_each_library_and_whether_the_target_is_met():
    us = {"elman": 1.0, "torch": 9.0, "torch cell": 3.0, "numpy": 200.0}
    libraries = ["elman", "torch", "onnxruntime", "numpy"]
    assert table.line(row(us, 3.0, 2), libraries).split()[4:] == [
        "1.00", "3.00", "-", "200", "3.00", ">2", "0.50", "L1", "0.50",
    ]  # fmt: skip
    assert "<4" in table.line(row(us, 3.0, 4), libraries)
    assert "!7" in table.line(row(us, 3.0, 7), libraries), "3.00 is less than 7 times the bound of 0.5"
    assert table.line(row(us, target=4), libraries).split()[8:] == ["-", "0.50", "L1", "0.50"]
    assert len(table.head(libraries, 1)) == len(table.line(row(us, 3.0, 2), libraries))


def test_summary():
    us = {"torch cell": 2.0}
    lines = table.summary([row(us, 2.0, 3), row(us, 8.0, 3), row({}, 1.0), row({})])
    assert "geometric mean 2.52 over 3 cases" in lines[0]
    assert "worst: 1.00" in lines[1] and lines[2] == "targets: 1 of 2 met"
    assert table.summary([row(us, 2.0, 5)])[2].endswith("0 of 1 met; 1 would be missed at the machine's bound too")
    assert table.summary([row({})]) == []


def test_picture(tmp_path):
    pytest.importorskip("matplotlib")
    from elman.benchmark import plot

    us = {"elman": 1.0, "torch": 9.0, "torch cell": 3.0, "numpy": 200.0}
    machine = {"elman": "0", "date": "today", "cpu": "one"}
    for name in ("a.png", "a.svg"):
        plot.draw([row(us, 3.0, 2), row({"elman": 2.0}), row({})], machine, 1, str(tmp_path / name))
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = (tmp_path / "a.svg").read_text()
    assert drawn.count("<!-- limit of the machine -->") == 1 and "<!-- torch -->" in drawn and "3.0x" in drawn


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["extra"], "unrecognized arguments: extra"),
        (["--threads", "0"], "expected a whole number"),
        (["--threads", "two"], "expected a whole number"),
        (["--threads", "99999"], "--threads: 99999 on"),
        (["--rounds", "-1"], "expected a whole number"),
        (["--threads", "2", "--cpu"], "--cpu"),
        (["--match", "no such case"], "no case has 'no such case' in its name"),
        (["--json", "/no/such/folder/file"], "cannot write '/no/such/folder/file'"),
        (["--json", ""], "cannot write ''"),
        (["--json", "."], "cannot write '.'"),
        (["--plot", "/no/such/folder/file.png"], "cannot write"),
    ],
)
def test_wrong_arguments(arguments, words, capsys, monkeypatch):
    monkeypatch.setattr(measure, "Bench", None)  # nothing is started
    try:
        code = main(["bench", *arguments])
    except SystemExit as end:
        code = end.code
    out, err = capsys.readouterr()
    assert code == 2 and out == "" and words in err


def test_plot_without_matplotlib(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    assert main(["bench", "--plot", str(tmp_path / "a.png")]) == 2
    assert 'pip install "elman[plot]"' in capsys.readouterr().err


def test_plot_of_an_unknown_kind(capsys, tmp_path):
    pytest.importorskip("matplotlib")
    assert main(["bench", "--plot", str(tmp_path / "a.txt")]) == 2
    assert "ends in .png" in capsys.readouterr().err


def test_import_elman_does_not_import_the_benchmark():
    code = "import sys, elman; print([name for name in sys.modules if name.startswith('elman.benchmark')])"
    assert output_of(code) == "[]"


@posix
@pytest.mark.parametrize("how, code", [("ctrl-c", 130), (signal.SIGTERM, 143)])
def test_interrupt(how, code, terminal):  # noqa: F811
    run = terminal("bench", "--match", "RNN")
    run.read_until(r"\r  \[[#-]+\] +\d+%  step RNN")
    workers = children(run.process.pid)
    if how == "ctrl-c":
        os.write(run.master, b"\x03")
    else:
        run.process.send_signal(how)
    run.read_until(None)
    assert run.process.returncode == code
    assert "%" not in run.is_clean()
    assert workers and not any(map(alive, workers))


def children(pid):
    try:
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout
    except FileNotFoundError:
        pytest.skip("no ps here")
    return [int(word) for word in listed.split()]


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_python_m_elman_bench():
    result = subprocess.run(
        [sys.executable, "-m", "elman", "bench", "--alone", "--rounds", "1", "--match", "step RNN B1 32"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0 and result.stderr == "", result
    assert "step RNN B1 32->32" in result.stdout and "torch" not in result.stdout.splitlines()[-2]
