"""What elman runs on: environment variables, the defaults, config() and show_config(), and what an import costs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest
from processes import output_of, run_code

import elman
from elman import _config, _kernels

USABLE = elman.config()["isa_usable"]
PRINT_ISA = "import elman; print(elman.config()['isa'])"
PRINT_THREADS = "import elman; print(elman.get_num_threads())"

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux has its own way to do it")


# ---------------------------------------------------------------------------------------------- ELMAN_ISA


@pytest.mark.parametrize("isa", USABLE)
def test_a_usable_isa_is_used(isa):
    code = """
        import numpy as np
        import elman
        lstm = elman.LSTM(3, 5, seed=1)
        lstm(np.ones((2, 1, 3), np.float32))
        packed = elman.functional.rnn_pack([(np.ones((5, 3)), np.ones((5, 5)), None, None)])
        print(elman.config()["isa"], packed.packed.isa)
    """
    assert output_of(code, environment={"ELMAN_ISA": isa}) == f"{isa} {isa}"


@pytest.mark.parametrize("isa", ["", None])
def test_without_a_wish_the_best_isa_is_used(isa):
    assert output_of(PRINT_ISA, environment={"ELMAN_ISA": isa}) == USABLE[-1]


NOT_USABLE = [isa for isa in ("c", "avx2", "avx512", "neon") if isa not in USABLE]


@pytest.mark.parametrize("isa", [*NOT_USABLE, "sse9", "AVX2", "avx2 ", "c,avx2", "0"])
def test_another_isa_is_an_error_at_import_that_lists_the_usable(isa):
    done = run_code(PRINT_ISA, environment={"ELMAN_ISA": isa})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last == f"ImportError: ELMAN_ISA: expected one of {', '.join(USABLE)} on this machine, got {isa!r}"


def test_every_usable_isa_was_built_and_plain_c_is_among_them():
    built = elman.config()["isa_built"]
    assert set(USABLE) <= set(built) and "c" in USABLE
    assert sorted(USABLE, key=built.index) == list(USABLE)


@linux
@pytest.mark.parametrize(
    "isa, flags", {"avx2": {"avx2", "fma"}, "avx512": {"avx512f", "avx512dq"}, "neon": {"asimd"}}.items()
)
def test_an_isa_is_usable_where_the_system_says_so(isa, flags):
    if isa not in elman.config()["isa_built"]:
        pytest.skip(f"{isa} is not in this build")
    with open("/proc/cpuinfo") as file:
        found = re.search(r"^(?:flags|Features)\s*:(.*)$", file.read(), re.M)
    if not found:
        pytest.skip("/proc/cpuinfo lists no flags")
    assert (isa in USABLE) == (flags <= set(found[1].split()))


# ---------------------------------------------------------------------------------------------- ELMAN_NUM_THREADS


@pytest.mark.parametrize("value", ["1", "3", "1024"])
def test_a_valid_number_of_threads_is_used(value):
    assert output_of(PRINT_THREADS, environment={"ELMAN_NUM_THREADS": value}) == value


@pytest.mark.parametrize("value", ["0", "-1", "1025", "abc", "1.5", "1e3", "9" * 30])
def test_another_number_of_threads_is_an_error_at_import(value):
    done = run_code(PRINT_THREADS, environment={"ELMAN_NUM_THREADS": value})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last == f"ImportError: ELMAN_NUM_THREADS: expected a whole number from 1 to 1024, got {value!r}"


@pytest.mark.parametrize("value", ["", None])
def test_without_a_wish_the_usable_cores_are_used(value):
    cores = output_of(PRINT_THREADS, environment={"ELMAN_NUM_THREADS": value})
    assert int(cores) == _config.usable_cores() <= os.cpu_count()


@linux
def test_the_default_respects_the_affinity():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); " + PRINT_THREADS
    assert output_of(code, environment={"ELMAN_NUM_THREADS": None}) == "1"


@pytest.mark.parametrize(
    "quota, cores",
    {"max 100000": 8, "300000 100000": 3, "150000 100000": 1, "50000 100000": 1, "9900000 100000": 8, "": 8}.items(),
)
def test_the_default_respects_the_quota_of_a_container(quota, cores, monkeypatch, tmp_path):
    (tmp_path / "cpu.max").write_text(quota + "\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(_config, "open", lambda path: (tmp_path / "cpu.max").open(), raising=False)
    assert _config.usable_cores() == cores


def test_the_default_without_affinity_and_containers(monkeypatch):
    def missing(*_):
        raise OSError

    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(_config, "open", missing, raising=False)
    assert _config.usable_cores() == os.cpu_count()
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert _config.usable_cores() == 1


# ---------------------------------------------------------------------------------------------- config


def test_config_has_these_keys_and_types():
    config = elman.config()
    types = {"version": str, "compiler": str, "isa_built": tuple, "isa_usable": tuple, "isa": str, "num_threads": int}
    assert {name: type(value) for name, value in config.items()} == types
    assert config["version"] == elman.__version__
    assert config["isa"] in config["isa_usable"]
    assert re.match(r"(gcc|clang|msvc) \d", config["compiler"])
    assert all(type(isa) is str for isa in config["isa_built"])


def test_config_is_a_new_dict_with_the_present_state():
    elman.config()["isa"] = "nonsense"
    assert elman.config()["isa"] in USABLE
    with elman.threads(7):
        assert elman.config()["num_threads"] == 7
    before = _kernels.isa()
    try:
        _kernels.select_isa("c")
        assert elman.config()["isa"] == "c"
    finally:
        _kernels.select_isa(before)


def test_show_config_prints_every_entry(capsys):
    elman.show_config()
    lines = capsys.readouterr().out.splitlines()
    for name, value in elman.config().items():
        shown = ", ".join(value) if isinstance(value, tuple) else str(value)
        assert any(re.fullmatch(rf"{name} +{re.escape(shown)}", line) for line in lines), name


# ---------------------------------------------------------------------------------------------- import


def test_the_import_is_fast(tmp_path):
    """Under 50 ms on top of NumPy, with byte code in place as pip leaves it. The best of some, for a noisy machine."""
    code = """
        import time
        import numpy
        start = time.perf_counter()
        import elman
        print(time.perf_counter() - start)
    """
    environment = {"PYTHONDONTWRITEBYTECODE": None, "PYTHONPYCACHEPREFIX": str(tmp_path)}
    output_of(code, environment=environment)
    best = 1.0
    for _ in range(10):
        best = min(best, float(output_of(code, environment=environment)))
        if best < 0.05:
            break
    assert best < 0.05


def imported_by(name):
    """The top-level modules that an import of `name` adds to those of a fresh interpreter."""
    return set(
        output_of(f"""
            import sys
            before = set(sys.modules)
            import {name}
            print(*{{module.partition(".")[0] for module in set(sys.modules) - before}})
        """).split()
    )


def test_the_import_brings_only_numpy_and_the_standard_library():
    brought = imported_by("elman") - imported_by("numpy") - set(sys.stdlib_module_names)
    helpers_of_cython = {name for name in brought if re.fullmatch(r"_?cython_\w+", name)}
    assert brought - helpers_of_cython == {"elman"}


def test_the_import_brings_nothing_heavy():
    heavy = {"argparse", "asyncio", "ctypes", "inspect", "logging", "multiprocessing", "platform", "subprocess"}
    assert not (imported_by("elman") - imported_by("numpy")) & heavy


def test_a_heavy_import_is_noticed():
    assert "unittest" in imported_by("unittest.mock") and "asyncio" in imported_by("unittest.mock")


@linux
def test_the_import_starts_no_thread():
    code = """
        import os, numpy
        count = lambda: len(os.listdir("/proc/self/task"))
        before = count()
        import elman
        print(count() - before)
    """
    assert output_of(code) == "0"


# ---------------------------------------------------------------------------------------------- the extension


@linux
def test_the_extension_needs_the_c_library_alone():
    """Above all no OpenMP."""
    if not shutil.which("readelf"):
        pytest.skip("readelf is not installed")
    dynamic = subprocess.run(["readelf", "-d", _kernels.__file__], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.+)\]", dynamic)
    assert needed, dynamic
    allowed = r"(lib(c|m|pthread|dl|rt)\.so(\.\d+)?|libc\.musl-.*|ld-(linux|musl).*)"
    assert not [library for library in needed if not re.fullmatch(allowed, library)]


@linux
def test_the_extension_exports_nothing_but_its_module():
    """So that two copies of the kernels in one process cannot get in each other's way."""
    if not shutil.which("readelf"):
        pytest.skip("readelf is not installed")
    symbols = subprocess.run(
        ["readelf", "-W", "--dyn-syms", _kernels.__file__], capture_output=True, text=True, check=True
    ).stdout
    exported = {
        fields[7]
        for fields in map(str.split, symbols.splitlines())
        if len(fields) >= 8 and fields[4] in ("GLOBAL", "WEAK") and fields[5] == "DEFAULT" and fields[6] != "UND"
    }
    assert exported - {"_init", "_fini", "_edata", "_end", "__bss_start"} == {"PyInit__kernels"}


@linux
def test_no_start_up_code_changes_the_floating_point_mode():
    """-ffast-math would link crtfastmath.o, which flushes subnormals in the whole process."""
    code = """
        import numpy as np
        import elman
        tiny = np.finfo(np.float32).tiny
        print((np.array([tiny]) / 2 > 0).all())
    """
    assert output_of(code) == "True"
