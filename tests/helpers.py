"""What the tests share: the list of cells, random problems, and running a problem through one implementation."""

from __future__ import annotations

import importlib
import inspect
import types
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pytest

from elman._options import FORMS, HEAD, PEEPHOLES

IMPLEMENTATIONS = ["reference", "functional"]  # the modules of elman that export lstm_forward and its kin


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request):
    """A module of elman; a test module takes it over by `implementation = helpers.implementation`."""
    return importlib.import_module(f"elman.{request.param}")


class Cell(NamedTuple):
    name: str  # prefix of the functions; "cell" for those that take the family's name first
    options: dict[str, Any]
    gates: int
    parts: tuple[str, ...]  # of the state
    units: tuple[str, ...] = ()  # weights (H,) that each unit has for itself
    family: str = ""  # in elman._options.FORMS, with the prefix "cell"
    outputs: int = 0  # R, where h is projected; 0: it is not

    def run(self, module, what, *arguments, **keywords):
        """module.<name>_<what>(...), with the cell's options wherever they belong."""
        options = {} if what == "backward" else self.options
        family = () if what == "backward" or not self.family else (self.family,)
        return getattr(module, f"{self.name}_{what}")(*family, *arguments, **options, **keywords)

    def state(self, parts):
        """The one form of a state that the functions take: the array h, or the tuple (h, c)."""
        return parts[0] if len(self.parts) == 1 else tuple(parts)

    def parts_of(self, state):
        return [state] if len(self.parts) == 1 else list(state)

    @property
    def form(self):
        return FORMS[self.family]

    def names(self):
        """Of the weights of a direction, in order."""
        if not self.family:
            return ("weight_ih", "weight_hh", "bias_ih", "bias_hh", *self.units)
        units, optional = (tuple(name for name, _ in group) for group in (self.form.units, self.form.optional))
        projection = self.form.projection if self.outputs else ()
        return (*HEAD, *units, *(optional if set(optional) <= set(self.units) else ()), *projection)

    def shape(self, name, I, H):
        """Of a weight; None if there is no such weight."""
        if self.family:
            return self.form.shape(name, I, H, self.outputs or H)
        rows = self.gates * H
        return {"weight_ih": (rows, I), "weight_hh": (rows, H), "bias_ih": (rows,), "bias_hh": (rows,)}.get(name, (H,))


def further(family, options=None, units=(), outputs=0):
    """A cell of those that have no functions of their own."""
    form = FORMS[family]
    return Cell("cell", options or {}, form.gates, form.letters, units, family, outputs)


CELLS = {
    "rnn-tanh": Cell("rnn", {"nonlinearity": "tanh"}, 1, ("h",)),
    "rnn-relu": Cell("rnn", {"nonlinearity": "relu"}, 1, ("h",)),
    "rnn-sigmoid": Cell("rnn", {"nonlinearity": "sigmoid"}, 1, ("h",)),
    "lstm": Cell("lstm", {}, 4, ("h", "c")),
    "gru-after": Cell("gru", {"reset_after": True}, 3, ("h",)),
    "gru-before": Cell("gru", {"reset_after": False}, 3, ("h",)),
    # With options, of each kind that the kernels tell apart; test_options.py goes through all of them.
    "rnn-any": Cell("rnn", {"nonlinearity": ("scaledtanh", 1.25, 0.75), "clip": 0.875}, 1, ("h",)),
    "lstm-any": Cell(
        "lstm",
        {"activations": ("sigmoid", ("scaledtanh", 1.25, 0.75), "softsign"), "clip": 1.5},
        4,
        ("h", "c"),
        ("weight_ci", "weight_cf", "weight_co"),
    ),
    "gru-after-any": Cell("gru", {"activations": (("hardsigmoid", 0.25, 0.5), "softsign"), "clip": 1.5}, 3, ("h",)),
    "gru-before-any": Cell(
        "gru", {"reset_after": False, "activations": ("sigmoid", ("scaledtanh", 0.75, 1.25)), "clip": 1.25}, 3, ("h",)
    ),
}


# The others, which test_cells.py goes through.
FURTHER = {
    "rnn-leaky": further("rnn", {"activations": ("softsign",), "leak": 0.375}),
    "lstm-projected": further("lstm", {"proj_clip": 0.5}, PEEPHOLES, 3),
    "lstm-projected-only": further("lstm", outputs=2),
    "jordan": further("jordan", {"activations": ("tanh", "sigmoid")}, outputs=7),
    "indrnn": further("indrnn", {"clip": 1.5}),
    "sru": further("sru", {"activations": ("tanh",)}),
    "augru-after": further("augru_reset_after"),
    "min-gru": further("min_gru"),
    "min-lstm": further("min_lstm"),
    "qrnn": further("qrnn"),
    "mgu": further("mgu"),
    "mgu-no-reset": further("mgu_no_reset"),
    "cfc": further("cfc_default"),
    "cfc-no-gate": further("cfc_no_gate"),
    "cfc-pure": further("cfc_pure"),
    "slstm": further("slstm"),
    "augru-before": further("augru_reset_before"),
    "lstm-norm-gate": further("lstm_norm_gate"),
    "lstm-norm-gate-any": further(
        "lstm_norm_gate",
        {"activations": ("sigmoid", "softsign", ("scaledtanh", 1.25, 0.75)), "clip": 1.5, "cell_clip": 1.25},
        PEEPHOLES,
        3,
    ),
    "lstm-norm-gate-coupled": further("lstm_norm_gate", {"coupled": "f=1-i"}, PEEPHOLES),
    "lstm-norm-gate-coupled-f": further("lstm_norm_gate", {"coupled": "i=1-f"}),
    "lstm-norm-joint": further("lstm_norm_joint"),
    "lstm-norm-joint-any": further(
        "lstm_norm_joint",
        {"activations": ("sigmoid", "softsign", ("scaledtanh", 1.25, 0.75)), "clip": 1.5, "cell_clip": 1.25},
        outputs=3,
    ),
    "lstm-norm-joint-shift": further("lstm_norm_joint_shift"),
    "gru-norm": further("gru_norm"),
    "gru-norm-any": further("gru_norm", {"activations": (("hardsigmoid", 0.25, 0.5), "softsign"), "clip": 1.5}),
}

COUPLED = CELLS["lstm-any"]._replace(options={"coupled": "f=1-i", "clip": 1.5})  # weights that have no effect


@dataclass
class Problem:
    """The arguments of forward and backward for one layer."""

    cell: Cell
    x: np.ndarray  # (T, B, I)
    state: list[np.ndarray]  # per part (D, B, H)
    weights: list[tuple]  # per direction
    dy: np.ndarray  # (T, B, D*H)
    dstate: list[np.ndarray]  # per part (D, B, H)
    lengths: np.ndarray | None = None  # (B,)
    reset: np.ndarray | None = None  # (T, B)
    row: np.ndarray | None = None  # (T, B), of a cell that takes a number with each row
    noise: dict[str, Any] = field(default_factory=dict)  # zoneout, recurrent_mask

    @property
    def inside(self):
        """(T, B, 1): whether sequence b has a step t."""
        T, B, _ = self.x.shape
        ends = np.full(B, T) if self.lengths is None else self.lengths
        return (np.arange(T)[:, None] < ends)[:, :, None]

    def arguments(self):
        """Everything that has a gradient, by name."""
        named = {"x": self.x}
        named.update({f"{part}0": a for part, a in zip(self.cell.parts, self.state, strict=True)})
        named.update(self._named(self.weights))
        return named if self.row is None else named | {"row": self.row}

    def forward(self, module, **keywords):
        """y, the parts of the state, the tape."""
        state = self.cell.state(self.state)
        masks = {"lengths": self.lengths, "reset": self.reset, **self.noise}
        if self.row is not None:
            masks["row"] = self.row
        y, state, tape = self.cell.run(module, "forward", self.x, state, self.weights, **(masks | keywords))
        return y, self.cell.parts_of(state), tape

    def backward(self, module, tape):
        """The gradients, under the names of `arguments`."""
        dx, dstate, dweights, *drow = self.cell.run(module, "backward", tape, self.dy, self.cell.state(self.dstate))
        dparts = zip(self.cell.parts, self.cell.parts_of(dstate), strict=True)
        gradients = {"x": dx} | {f"{part}0": a for part, a in dparts} | self._named(dweights)
        return gradients | dict(zip(("row",), drow))

    def _named(self, weights):
        return {
            f"{name}[{direction}]": a
            for direction, parts in enumerate(weights)
            for name, a in zip(self.cell.names(), parts, strict=True)
            if a is not None
        }

    def results(self, module):
        """Outputs, states and gradients by name."""
        y, state, tape = self.forward(module)
        results = {"y": y} | dict(zip(self.cell.parts, state, strict=True))
        return results | {f"d{name}": a for name, a in self.backward(module, tape).items()}


SCALES = dict.fromkeys(("bias_ih", "bias_hh", "bias_hr"), 0.3) | dict.fromkeys(
    (name for form in FORMS.values() for name, _ in (*form.units, *form.optional)), 0.5
)


def problem(cell, T, B, I, H, D=1, dtype=np.float64, bias=True, lengths=None, reset=None, seed=0):
    """Random arguments. x and dy are NaN past the end of a sequence, where nobody may look."""
    rng = np.random.default_rng(seed)

    def normal(*shape, scale=1.0):
        return (scale * rng.standard_normal(shape)).astype(dtype)

    R = cell.outputs or H
    widths = [R if part in ("h", "y") else H for part in cell.parts]

    def weight(name):
        shape = cell.shape(name, I, H)
        if shape is None or (name.startswith("bias") and not bias):
            return None
        return normal(*shape, scale=SCALES.get(name) or shape[-1] ** -0.5)

    made = Problem(
        cell=cell,
        x=normal(T, B, I),
        state=[normal(D, B, width, scale=0.7) for width in widths],
        weights=[tuple(map(weight, cell.names())) for _ in range(D)],
        dy=normal(T, B, D * R),
        dstate=[normal(D, B, width) for width in widths],
        lengths=None if lengths is None else np.asarray(lengths),
        reset=None if reset is None else np.asarray(reset, bool),
        row=rng.uniform(0.1, 0.9, (T, B)).astype(dtype) if cell.family and cell.form.row else None,
    )
    for part, a in zip(cell.parts, made.state, strict=True):
        if part == "n":  # of an sLSTM, a sum of gates
            a[...] = np.abs(a) + 0.25
    made.x[:] = np.where(made.inside, made.x, np.nan)
    made.dy[:] = np.where(made.inside, made.dy, np.nan)
    return made


def assert_same(got, expected, tolerance):
    """Equal names, shapes and dtypes, and |difference| <= tolerance * (1 + the largest |expected|), array by array."""
    assert got.keys() == expected.keys()
    for name, e in expected.items():
        g = got[name]
        assert g.shape == e.shape and g.dtype == e.dtype, f"{name}: {g.dtype} {g.shape}, expected {e.dtype} {e.shape}"
        bound = tolerance * (1 + np.abs(e[np.isfinite(e)]).max(initial=0))
        np.testing.assert_allclose(g, e, rtol=0, atol=bound, err_msg=name)


def mutant(module, function, old, new):
    """A copy of a Python module in which `old`, found once in the source of `function`, reads `new`."""
    source = inspect.getsource(module)
    body = inspect.getsource(getattr(module, function))
    assert body.count(old) == 1, f"{old!r} must occur once in {function}: bring the list of planted bugs up to date"
    copy = types.ModuleType(module.__name__)
    copy.__package__ = module.__package__
    exec(
        compile(source.replace(body, body.replace(old, new)), f"{module.__name__} with a planted bug", "exec"),
        copy.__dict__,
    )
    return copy
