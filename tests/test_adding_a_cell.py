"""docs/adding_a_cell.md: what it quotes is what is there, and a cell that is new can be added as it says."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
DOCUMENT = (ROOT / "docs" / "adding_a_cell.md").read_text()


def test_every_block_is_a_part_of_its_file():
    blocks = re.findall(r"^`([^`]+)`[^\n]*:\n\n```\w+\n(.*?)\n```$", DOCUMENT, re.MULTILINE | re.DOTALL)
    assert len(blocks) == 11 and DOCUMENT.count("```\n") == len(blocks) + 1  # and the cell in NumPy
    for path, block in blocks:
        assert f"{block}" in (ROOT / path).read_text(), path
    assert dict(blocks)["csrc/cells/indrnn.inc"] + "\n" == (ROOT / "csrc/cells/indrnn.inc").read_text()


def test_the_cell_in_numpy_is_right():
    (code,) = re.findall(r"```python\n(import numpy.*?)```", DOCUMENT, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["errors"].keys() >= {"x", "state", "weight_ih_l0", "bias_l1", "weight_u_l1"}
    assert max(names["errors"].values()) < 1e-7


# A cell that is not there: two gates, a recurrent product, and a weight u of each unit.

TOY_C = """
#define CELL toy
#define GATES 2 /* f g */
#define STATES 1
#define SLOTS 2 /* f g */
#define UNITS 1 /* u */
#define STAGE_GATES {0, 2}

/* h' = sigmoid(a_f) * u * h + tanh(a_g) */
INLINE void FN(unit_forward)(UNIT_FORWARD_ARGUMENTS)
{
    const vec f = v_sigmoid(A(0)), g = v_tanh(A(1));
    KEEP(0, f);
    KEEP(1, g);
    SET_STATE(h, v_fma(v_mul(f, UNIT(0)), v_load(h), g));
}

INLINE void FN(unit_backward)(UNIT_BACKWARD_ARGUMENTS)
{
    const vec one = v_set1(1), f = KEPT(0), g = KEPT(1), dh_new = v_load(dh), dfu = v_mul(dh_new, v_load(h));
    DA(0, v_mul(v_mul(dfu, UNIT(0)), v_mul(f, v_sub(one, f))));
    DA(1, v_mul(dh_new, v_sub(one, v_mul(g, g))));
    DUNIT(0, v_mul(dfu, f));
    v_store(dh, v_mul(dh_new, v_mul(f, UNIT(0))));
}
"""

TOY_FORM = """    "toy": Form(2, units=(("weight_u", 1),)),
"""

TOY_STEPS = """
def _toy(options: _options.Options) -> _Cell:
    def step(x_t, state, weights):
        (h,) = state
        W_ih, W_hh, b_ih, b_hh, u = weights
        a_f, a_g = _gates(_linear(x_t, W_ih, b_ih) + _linear(h, W_hh, b_hh), 2)
        f, g = _sigmoid(a_f), np.tanh(a_g)
        return (f * u * h + g,), (f, g)

    def step_backward(dstate_t, x_t, state, weights, saved):
        (dh_t,), (h,), (f, g) = dstate_t, state, saved
        W_ih, W_hh, _, _, u = weights
        da = np.concatenate([dh_t * u * h * f * (1 - f), dh_t * (1 - g**2)], axis=1)
        dx_t, dW_ih, db_ih = _linear_backward(da, x_t, W_ih)
        dh, dW_hh, db_hh = _linear_backward(da, h, W_hh)
        return dx_t, (dh + dh_t * f * u,), (dW_ih, dW_hh, db_ih, db_hh, (dh_t * f * h).sum(axis=0))

    return _Cell("toy", FORMS["toy"], step, step_backward)


"""

# Reads sizes and arrays as float64, runs the cell forwards and backwards, writes the results.
PROGRAM = r"""
#include <stdio.h>
#include <stdlib.h>
#include "elman.h"

extern const elman_kernels elman_kernels_f64_c;
static double *some(ptrdiff_t n) { return calloc((size_t)n + 64, sizeof(double)); }
static double *given(ptrdiff_t n)
{
    double *a = some(n);
    if (fread(a, sizeof(double), (size_t)n, stdin) != (size_t)n) exit(1);
    return a;
}
static void put(const double *a, ptrdiff_t n) { fwrite(a, sizeof(double), (size_t)n, stdout); }

int main(void)
{
    const elman_cell *cell = &elman_kernels_f64_c.cells[ELMAN_toy];
    const double *sizes = given(4);
    const ptrdiff_t T = sizes[0], B = sizes[1], I = sizes[2], H = sizes[3], G = cell->gates;
    const ptrdiff_t most = G * (H + 8) * (H + I + 8);
    const double *x = given(T * B * I), *h0 = given(B * H), *w_ih = given(G * H * I), *w_hh = given(G * H * H);
    const double *b_ih = given(G * H), *b_hh = given(G * H), *u = given(H);
    const double *dy = given(T * B * H), *dlast = given(B * H);
    const elman_dense dense = {w_ih, w_hh, b_ih, b_hh, u, NULL, NULL};
    const elman_weights w = {some(most), some(most), some(most), some(most), some(most), NULL, NULL,
                             some(most), some(most), NULL};
    const elman_options options = {0};
    elman_layer p = {T, B, I, H, H, 1, 1, &w, &options, x, B * I, I};
    cell->pack(I, H, H, &dense, &w);
    cell->pack_transposed(I, H, H, &dense, &w);
    p.index = calloc((size_t)(2 * B + T + 1), sizeof(ptrdiff_t));
    p.tape = some(cell->tape(&p, T * B));
    p.scratch = some(cell->forward_scratch(&p));
    elman_forward_call f = {.layer = p, .state = {h0}, .last = {some(B * H)}, .y = some(T * B * H), .y_t = B * H,
                            .y_b = H};
    cell->forward(&f);
    p.scratch = some(cell->backward_scratch(&p));
    elman_backward_call b = {.layer = p, .dy = dy, .dy_t = B * H, .dy_b = H, .limit = 1.0 / 0.0, .dlast = {dlast},
                             .dstate = {some(B * H)}, .dx = some(T * B * I), .dw_ih = {some(G * H * I)},
                             .dw_hh = {some(G * H * H)}, .db_ih = {some(G * H)}, .db_hh = {some(G * H)},
                             .dunits = {some(H)}};
    cell->backward(&b);
    put(f.y, T * B * H), put(f.last[0], B * H), put(b.dx, T * B * I), put(b.dstate[0], B * H);
    put(b.dw_ih[0], G * H * I), put(b.dw_hh[0], G * H * H), put(b.db_ih[0], G * H), put(b.db_hh[0], G * H);
    put(b.dunits[0], H);
    return 0;
}
"""


def edit(path, old, new):
    text = path.read_text()
    assert text.count(old) == 1, f"{path.name}: {old!r}"
    path.write_text(text.replace(old, new))


@pytest.fixture(scope="module")
def edited(tmp_path_factory):
    """A copy of what the edits are in, and the edits."""
    folder = tmp_path_factory.mktemp("toy")
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    package = folder / "elman_with_a_toy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    for name in ("_options", "reference", "_checks", "_types"):
        shutil.copy(ROOT / "src" / "elman" / f"{name}.py", package)
    (folder / "csrc/cells/toy.inc").write_text(TOY_C)
    edit(folder / "csrc/elman.h", "X(indrnn)", "X(indrnn) X(toy)")
    pair = '#include "cells/indrnn.inc"\n#include "sequence.inc"\n'
    edit(folder / "csrc/kernels.inc", pair, pair + pair.replace("indrnn", "toy"))
    edit(package / "_options.py", '    "indrnn": Form(', TOY_FORM + '    "indrnn": Form(')
    edit(package / "reference.py", "def _indrnn(", TOY_STEPS.lstrip() + "def _indrnn(")
    edit(package / "reference.py", '    "indrnn": _indrnn,\n', '    "indrnn": _indrnn,\n    "toy": _toy,\n')
    return folder


@pytest.fixture
def reference(edited, monkeypatch):
    monkeypatch.syspath_prepend(str(edited))
    return importlib.import_module("elman_with_a_toy.reference")


T, B, I, H = 4, 3, 2, 5


def problem():
    rng = np.random.default_rng(0)
    shapes = [(T, B, I), (1, B, H), (2 * H, I), (2 * H, H), (2 * H,), (2 * H,), (H,), (T, B, H), (1, B, H)]
    return [rng.standard_normal(shape) for shape in shapes]


def results(reference, arrays):
    x, h0, *weights, dy, dlast = arrays
    y, last, tape = reference.cell_forward("toy", x, h0, [tuple(weights)])
    dx, dstate, (dweights,) = reference.cell_backward(tape, dy, dlast)
    return [y, last, dx, dstate, *dweights]


def test_the_new_cells_gradients(reference):
    arrays = problem()
    _, _, *gradients = results(reference, arrays)
    for a, g in zip(arrays[:7], gradients, strict=True):
        for where in np.ndindex(a.shape):
            old, losses = a[where], []
            for value in (old + 1e-6, old - 1e-6):
                a[where] = value
                y, last, *_ = results(reference, arrays)
                losses.append((y * arrays[-2]).sum() + (last * arrays[-1]).sum())
            a[where] = old
            assert abs((losses[0] - losses[1]) / 2e-6 - g[where]) < 1e-7


@pytest.mark.skipif(sys.platform == "win32" or not shutil.which("gcc"), reason="needs gcc")
def test_the_new_cell_in_c(edited, reference):
    """Of the cells that are there only the new one is compiled, to save time."""
    header, kernels = edited / "csrc/elman.h", edited / "csrc/kernels.inc"
    text = header.read_text()
    header.write_text(re.sub(r"(#define ELMAN_CELLS\(X\)).*?\n\n", r"\1 X(toy)\n\n", text, count=1, flags=re.DOTALL))
    assert "X(toy)" in text
    others = re.compile(r'#include "cells/(?!toy)\w+\.inc"\n#include "sequence\.inc"\n')
    kernels.write_text(others.sub("", kernels.read_text()))
    (edited / "program.c").write_text(PROGRAM)
    sources = ["program.c", *(f"csrc/{name}.c" for name in ("schedule", "pool", "team", "targets/c"))]
    flags = ["-std=c11", "-O1", "-ffp-contract=off", "-DELMAN_F64", "-DELMAN_HAVE_C", "-Icsrc", "-Wall", "-Werror"]
    flags += ["-Wno-unused-function"]  # what only the others need
    subprocess.run(["gcc", *flags, *sources, "-o", "program", "-pthread", "-lm"], cwd=edited, check=True)
    arrays = problem()
    given = b"".join(np.asarray(a, np.float64).tobytes() for a in ((T, B, I, H), *arrays))
    run = subprocess.run([edited / "program"], input=given, capture_output=True, check=True)
    found = np.frombuffer(run.stdout)
    expected = results(reference, arrays)
    assert found.size == sum(a.size for a in expected)
    np.testing.assert_allclose(found, np.concatenate([a.ravel() for a in expected]), rtol=1e-12, atol=1e-12)
