"""Running code in a fresh interpreter, for what concerns a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

import elman


def run_code(code, timeout=60, environment=None):
    """Runs Python code that finds elman and the tests; the finished process. A variable given as None is unset.

    A process that hangs is killed with its children, and fails the test.
    """
    path = [os.path.dirname(os.path.dirname(elman.__file__)), os.path.dirname(os.path.abspath(__file__))]
    wanted = os.environ | {"PYTHONPATH": os.pathsep.join(path), "OPENBLAS_NUM_THREADS": "1"} | (environment or {})
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", textwrap.dedent(code)],
        env={name: value for name, value in wanted.items() if value is not None},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        if hasattr(os, "killpg"):
            os.killpg(process.pid, 9)
        process.kill()
        out, err = process.communicate()
        pytest.fail(f"still running after {timeout} s\n{out}\n{err}")
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def output_of(code, timeout=60, environment=None):
    """What the code printed; it must end well."""
    done = run_code(code, timeout, environment)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()
