"""The flag --bench-all; with --benchmark-only everyone gets one thread on one core, and the tests are left out."""

import os


def pytest_addoption(parser):
    parser.addoption("--bench-all", action="store_true", help="with --benchmark-only: the slow benchmarks too")


def pytest_configure(config):
    if config.getoption("benchmark_only", False):
        os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before elman imports NumPy, which reads it only then
        from elman.benchmark import worker

        os.environ.update(worker.environment(1))
        worker.take_cores(1)


def pytest_collection_modifyitems(config, items):
    if config.getoption("benchmark_only", False):  # instead of two thousand lines about skipped tests
        timed = [item for item in items if "benchmark" in getattr(item, "fixturenames", ())]
        config.hook.pytest_deselected(items=list(set(items).difference(timed)))
        items[:] = timed
