"""Every loss against literal values, central differences and PyTorch; CTC against the sum over all paths too."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest

from elman import _kernels, _positions
from elman.losses import (
    binary_cross_entropy,
    ctc,
    huber,
    mean_absolute_error,
    mean_squared_error,
    softmax_cross_entropy,
    softmax_terms,
)


def case(shape, classes, dtype=np.float64, seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((*shape, classes)) * spread).astype(dtype), rng.integers(0, classes, shape)


def test_literal_values():
    """By hand: softmax of (log 1, log 2, log 5) is (1, 2, 5) / 8."""
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 2.0, 5.0]])
    loss, dlogits = softmax_cross_entropy(logits, [2, 0], reduction="sum")
    assert type(loss) is float
    assert loss == pytest.approx(math.log(8 / 5) + math.log(8), rel=1e-14)
    np.testing.assert_allclose(dlogits, [[1 / 8, 2 / 8, -3 / 8], [-7 / 8, 2 / 8, 5 / 8]], rtol=1e-13)
    mean, dmean = softmax_cross_entropy(logits, [2, 0])
    assert mean == pytest.approx(loss / 2, rel=1e-15)
    np.testing.assert_allclose(dmean, dlogits / 2, rtol=1e-15)


def test_equal_logits_cost_log_of_the_classes():
    loss, dlogits = softmax_cross_entropy(np.full((5, 3, 7), 4.0, np.float32), np.zeros((5, 3), int))
    assert loss == pytest.approx(math.log(7), rel=1e-7)
    assert dlogits.shape == (5, 3, 7) and dlogits.dtype == np.float32


def check_gradient(loss, x):
    """The gradient that loss(x) returns, against central differences in float64."""
    gradient = loss(x)[1]
    assert gradient.shape == x.shape and gradient.dtype == x.dtype == np.float64
    numeric, step = np.empty_like(x), 1e-5
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        numeric[i] = (loss(high)[0] - loss(low)[0]) / (2 * step)
    assert np.abs(numeric).max() > 1e-3  # the differences carry something to compare
    np.testing.assert_allclose(gradient, numeric, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("shape", [(), (4,), (3, 2), (2, 3, 2)])
def test_gradient_by_central_differences(shape, reduction):
    logits, targets = case(shape, 5, seed=len(shape))
    check_gradient(lambda x: softmax_cross_entropy(x, targets, reduction=reduction), logits)


@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1, "class_weights": np.arange(70) / 35}])
def test_gradient_with_many_classes(options):
    """They are not turned to the front, as few are (losses.FEW)."""
    logits, targets = case((3,), 70, seed=1)
    check_gradient(lambda x: softmax_cross_entropy(x, targets, **options), logits)


@pytest.mark.parametrize("dtype, rtol", [(np.float32, 2e-6), (np.float64, 1e-13)])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_against_pytorch(dtype, rtol, reduction):
    torch = pytest.importorskip("torch")
    logits, targets = case((7, 6), 11, dtype, seed=3)
    x = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(x.reshape(-1, 11), torch.tensor(targets.ravel()), reduction=reduction)
    expected.backward()
    loss, dlogits = softmax_cross_entropy(logits, targets, reduction=reduction)
    assert loss == pytest.approx(expected.item(), rel=rtol)
    np.testing.assert_allclose(dlogits, x.grad.numpy(), rtol=rtol, atol=rtol * np.abs(dlogits).max())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_logits_are_stable(dtype):
    big = np.finfo(dtype).max
    logits = np.array([[1e4, 1e4 - 1], [-1e4, 1e4], [big, -big]], dtype)
    loss, dlogits = softmax_cross_entropy(logits, [1, 0, 0], reduction="sum")
    assert loss == pytest.approx(math.log1p(math.e) + 2e4, rel=1e-6)
    np.testing.assert_allclose(dlogits[1:], [[-1, 1], [0, 0]])
    if dtype == np.float32:  # a loss that float32 cannot hold
        assert softmax_cross_entropy(np.array([big, -big], dtype), 1)[0] == pytest.approx(2 * float(big))


def test_infinities_and_nan_travel_without_warnings(recwarn):
    loss, dlogits = softmax_cross_entropy([[0.0, -np.inf, 0.0]], [2])
    assert loss == pytest.approx(math.log(2))
    np.testing.assert_allclose(dlogits, [[0.5, 0, -0.5]])
    assert softmax_cross_entropy([[0.0, -np.inf]], [1])[0] == np.inf
    assert math.isnan(softmax_cross_entropy([[0.0, np.nan]], [0])[0])
    assert math.isnan(softmax_cross_entropy([[0.0, np.inf]], [0])[0])
    assert not recwarn.list


def test_the_sum_is_accumulated_in_float64():
    """2**20 equal float32 losses: their mean is one of them to float64 accuracy."""
    logits = np.tile(np.array([0.3, -1.2, 0.7], np.float32), (2**20, 1))
    one = softmax_cross_entropy(logits[:1], [1])[0]
    assert softmax_cross_entropy(logits, np.ones(2**20, int))[0] == pytest.approx(one, rel=1e-12)


def test_inputs_are_not_changed_and_may_be_read_only_or_strided():
    logits, targets = case((6, 4), 5)
    plain = softmax_cross_entropy(logits, targets)
    backwards = np.asfortranarray(logits)[::-1]
    backwards.flags.writeable = False
    before = logits.copy()
    loss, dlogits = softmax_cross_entropy(backwards, targets[::-1])
    assert loss == pytest.approx(plain[0], rel=1e-14)
    np.testing.assert_allclose(dlogits[::-1], plain[1], rtol=1e-14)
    assert np.array_equal(logits, before) and not np.shares_memory(dlogits, logits)


def test_nothing_to_predict():
    for shape in [(0, 3), (4, 0)]:
        loss, dlogits = softmax_cross_entropy(np.zeros((*shape, 5), np.float32), np.zeros(shape, int))
        assert math.isnan(loss) and dlogits.shape == (*shape, 5)
        assert softmax_cross_entropy(np.zeros((*shape, 5)), np.zeros(shape, int), reduction="sum")[0] == 0.0


def test_one_class_costs_nothing():
    loss, dlogits = softmax_cross_entropy(np.array([[7.0], [-3.0]]), [0, 0])
    assert loss == 0 and not dlogits.any()


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.uint64])
def test_any_integer_type_of_targets(kind):
    logits, targets = case((6,), 5)
    assert softmax_cross_entropy(logits, targets.astype(kind))[0] == softmax_cross_entropy(logits, targets)[0]


LOGITS = np.zeros((4, 3), np.float32)


@pytest.mark.parametrize(
    "logits, targets, options, error, words",
    [
        (LOGITS, [0, 1, 2, 3], {}, ValueError, r"targets: expected 0 to 2 .*got 3 at \(3,\)"),
        (LOGITS, [0, -1, 2, 0], {}, ValueError, r"targets: expected 0 to 2 .*got -1 at \(1,\)"),
        (LOGITS[0], 3, {}, ValueError, r"targets: expected 0 to 2 .*got 3$"),
        (LOGITS, [0, 1, 2], {}, ValueError, r"targets: expected shape \(4,\).*got \(3,\)"),
        (LOGITS, np.zeros((4, 1), int), {}, ValueError, r"targets: expected shape"),
        (LOGITS, np.zeros(4), {}, TypeError, "targets: expected integers, got float64"),
        (LOGITS, np.zeros(4, bool), {}, TypeError, "targets: expected integers, got bool"),
        (LOGITS, None, {}, TypeError, "targets: expected integers"),
        (LOGITS, [[0], [0, 1]], {}, ValueError, "targets: expected an array"),
        (LOGITS.astype(np.float16), [0] * 4, {}, TypeError, "logits: expected float32 or float64, got float16"),
        (LOGITS.astype(complex), [0] * 4, {}, TypeError, "logits"),
        (LOGITS > 0, [0] * 4, {}, TypeError, "logits"),
        ("text", 0, {}, ValueError, "logits: expected shape"),
        (["a", "b"], 0, {}, TypeError, "logits: expected float32 or float64"),
        (np.float32(3), 0, {}, ValueError, "logits: expected shape"),
        (np.zeros((4, 0)), [0] * 4, {}, ValueError, "logits: expected shape"),
        ([[1.0], [1.0, 2.0]], [0, 0], {}, ValueError, "logits: expected an array"),
        (LOGITS, [0] * 4, {"reduction": "none"}, ValueError, "reduction: expected one of 'mean', 'sum'"),
        (LOGITS, [0] * 4, {"reduction": None}, ValueError, "reduction"),
    ],
)
def test_errors_name_the_argument(logits, targets, options, error, words):
    with pytest.raises(error, match=words):
        softmax_cross_entropy(logits, targets, **options)


# ------------------------------------------------------------------------------------------------------- all losses


RNG = np.random.default_rng(7)
T, B, C = 4, 3, 5
LENGTHS = np.array([4, 0, 2])
INSIDE = np.arange(T)[:, None] < LENGTHS
CLASSES = RNG.integers(0, C, (T, B))
DISTRIBUTIONS = RNG.dirichlet(np.ones(C), (T, B))
LABELS = RNG.integers(0, 2, (T, B, C))
CLASSES[1, 2] = LABELS[1, 2, 3] = 0  # where a test puts -inf
WEIGHTS = np.array([0.5, 2.0, 0.0, 1.25, 3.0])

# name: the loss, its targets for predictions (T, B, C), its options; and the same in PyTorch's words
LOSSES = {
    "mse": (mean_squared_error, DISTRIBUTIONS, {}),
    "mae": (mean_absolute_error, DISTRIBUTIONS, {}),
    "huber": (huber, DISTRIBUTIONS, {}),
    "huber-2.5": (huber, DISTRIBUTIONS, {"delta": 2.5}),
    "binary": (binary_cross_entropy, LABELS, {}),
    "binary-soft": (binary_cross_entropy, DISTRIBUTIONS, {}),
    "binary-weight": (binary_cross_entropy, LABELS, {"pos_weight": 2.5}),
    "binary-smooth": (binary_cross_entropy, LABELS, {"pos_weight": 2.5, "label_smoothing": 0.2}),
    "binary-weights": (binary_cross_entropy, DISTRIBUTIONS, {"pos_weight": WEIGHTS}),
    "softmax": (softmax_cross_entropy, CLASSES, {}),
    "softmax-weights": (softmax_cross_entropy, CLASSES, {"class_weights": WEIGHTS}),
    "softmax-smooth": (softmax_cross_entropy, CLASSES, {"label_smoothing": 0.2}),
    "softmax-smooth-weights": (softmax_cross_entropy, CLASSES, {"label_smoothing": 0.2, "class_weights": WEIGHTS}),
    "softmax-one-hot": (softmax_cross_entropy, np.eye(C, dtype=int)[CLASSES], {}),
    "softmax-soft": (softmax_cross_entropy, DISTRIBUTIONS, {}),
    "softmax-soft-weights": (softmax_cross_entropy, DISTRIBUTIONS, {"class_weights": WEIGHTS}),
    "softmax-soft-all": (softmax_cross_entropy, DISTRIBUTIONS, {"label_smoothing": 0.3, "class_weights": WEIGHTS}),
    "ctc": (ctc, [[1, 1], [2, 4, 3], [3]], {}),
}
each_loss = pytest.mark.parametrize("name", LOSSES)
each_reduction = pytest.mark.parametrize("reduction", ["mean", "sum"])
SIX = [name for name in LOSSES if name in ("mse", "mae", "huber", "binary", "softmax", "ctc")]


def predictions(dtype=np.float64, seed=11):
    x = (np.random.default_rng(seed).standard_normal((T, B, C)) * 2).astype(dtype)
    distance = np.abs(x - DISTRIBUTIONS)
    for kink in (0, 1, 2.5):  # of mean_absolute_error and huber
        assert np.abs(distance - kink).min() > 1e-3
    return x


def in_dtype(targets, dtype):
    return targets.astype(dtype) if isinstance(targets, np.ndarray) and targets.dtype.kind == "f" else targets


def in_torch(torch, name, x, reduction):
    """The same loss by PyTorch on the tensor x: (T, B, C), or (N, C) with the targets of the true positions."""
    functional = torch.nn.functional
    _, targets, options = LOSSES[name]
    targets = targets[INSIDE] if x.ndim == 2 else targets
    weights = torch.tensor(WEIGHTS, dtype=x.dtype)
    if name.startswith("softmax"):
        x = x.reshape(-1, C)
        targets = targets.reshape(len(x), -1)
        targets = torch.tensor(targets[:, 0]) if targets.shape[1] == 1 else torch.tensor(targets, dtype=x.dtype)
        smoothing = options.get("label_smoothing", 0.0)
        weights = weights if "class_weights" in options else None
        return functional.cross_entropy(x, targets, weights, label_smoothing=smoothing, reduction=reduction)
    y = torch.tensor(targets, dtype=x.dtype)
    if name.startswith("binary"):
        number = torch.tensor(2.5, dtype=x.dtype)
        w = {"binary-weight": number, "binary-smooth": number, "binary-weights": weights}.get(name)
        smoothing = options.get("label_smoothing", 0)
        y = y * (1 - smoothing) + smoothing * 0.5
        return functional.binary_cross_entropy_with_logits(x, y, pos_weight=w, reduction=reduction)
    if name.startswith("huber"):
        return functional.huber_loss(x, y, delta=options.get("delta", 1.0), reduction=reduction)
    return {"mse": functional.mse_loss, "mae": functional.l1_loss}[name](x, y, reduction=reduction)


@each_loss
@each_reduction
def test_every_gradient_by_central_differences(name, reduction):
    loss, targets, options = LOSSES[name]
    check_gradient(lambda x: loss(x, targets, reduction=reduction, **options), predictions())


@each_reduction
@pytest.mark.parametrize("name", [name for name in LOSSES if name != "ctc"])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-13)], ids=["float32", "float64"])
@pytest.mark.parametrize("ragged", [False, True], ids=["whole", "lengths"])
def test_every_loss_against_pytorch(name, dtype, tolerance, reduction, ragged):
    """With lengths: PyTorch gets the true positions alone, this gets NaN and nonsense in the others."""
    torch = pytest.importorskip("torch")
    loss, targets, options = LOSSES[name]
    x = predictions(dtype)
    witness = torch.tensor(x[INSIDE] if ragged else x, requires_grad=True)
    expected = in_torch(torch, name, witness, reduction)
    expected.backward()
    targets = in_dtype(targets, dtype)
    if ragged:
        x[~INSIDE] = np.nan
        targets = targets.copy()
        targets[~INSIDE] = np.nan if targets.dtype.kind == "f" else -99
        options = options | {"lengths": LENGTHS}
    got, gradient = loss(x, targets, reduction=reduction, **options)
    assert got == pytest.approx(expected.item(), rel=tolerance)
    scale = np.abs(witness.grad.numpy()).max()
    assert scale > 1e-3
    true = gradient[INSIDE] if ragged else gradient
    np.testing.assert_allclose(true, witness.grad.numpy(), rtol=tolerance, atol=tolerance * scale)
    assert not ragged or np.array_equal(gradient[~INSIDE], np.zeros_like(gradient[~INSIDE]))


@each_loss
@each_reduction
def test_lengths_that_leave_nothing_out(name, reduction):
    """The same bits as without them; and they are checked as any others."""
    loss, targets, options = LOSSES[name]
    x = predictions()
    (a, da), (b, db) = (
        loss(x, targets, lengths=lengths, reduction=reduction, **options) for lengths in (None, [T] * x.shape[1])
    )
    assert a == b and np.array_equal(da, db)
    with pytest.raises(ValueError, match="lengths: expected "):
        loss(x, targets, lengths=[T] * (x.shape[1] + 1), reduction=reduction, **options)


@each_loss
@each_reduction
def test_what_is_past_the_end_is_never_read(name, reduction):
    """The gradient where a sequence is true is that of central differences; NaN elsewhere changes nothing."""
    loss, targets, options = LOSSES[name]
    lengths = LENGTHS if name != "ctc" else np.array([4, 3, 2])
    true = np.arange(T)[:, None] < lengths
    x = predictions()
    clean, gradient = loss(x, targets, lengths=lengths, reduction=reduction, **options)
    assert math.isfinite(clean) and np.abs(gradient[true]).max() > 1e-3
    if name != "softmax-weights":  # one class has weight 0
        assert (np.abs(gradient[true]).max(axis=-1) > 1e-6).all()
    x[~true] = np.nan
    dirty, dirty_gradient = loss(x, targets, lengths=lengths, reduction=reduction, **options)
    assert dirty == clean and np.array_equal(dirty_gradient, gradient)
    assert np.array_equal(gradient[~true], np.zeros_like(gradient[~true]))

    def at_the_true_positions(rows):
        x[true] = rows
        value, d = loss(x, targets, lengths=lengths, reduction=reduction, **options)
        return value, d[true]

    check_gradient(at_the_true_positions, predictions()[true])


@pytest.mark.parametrize("name", SIX)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_contract_of_every_loss(name, dtype):
    """A float, a new array like the predictions, which stay; full lengths change no bit; a copy in any layout does."""
    loss, targets, options = LOSSES[name]
    x, targets = predictions(dtype), in_dtype(targets, dtype)
    before = x.copy()
    value, gradient = loss(x, targets, **options)
    assert type(value) is float and gradient.dtype == dtype and gradient.shape == x.shape
    assert gradient.flags.c_contiguous and gradient.flags.writeable and not np.shares_memory(gradient, x)
    assert np.array_equal(x, before)
    other = np.asfortranarray(x)
    other.flags.writeable = False
    for again in (loss(other, targets, **options), loss(x, targets, lengths=[T] * B, **options)):
        assert again[0] == value and np.array_equal(again[1], gradient)
    total, dtotal = loss(x, targets, reduction="sum", **options)
    if name != "ctc":  # which divides each sequence's loss by its target's length too
        count = x.size if name not in ("softmax",) else T * B
        assert value == pytest.approx(total / count, rel=1e-14)
        np.testing.assert_allclose(gradient * count, dtotal, rtol=1e-6 if dtype == np.float32 else 1e-14)


@pytest.mark.parametrize("name", SIX)
def test_nothing_at_all(name):
    loss, _, options = LOSSES[name]
    for shape in [(0, 3, 2), (4, 0, 2)]:
        targets = np.zeros(shape[:2], int) if name == "softmax" else np.zeros(shape)
        lengths = [0] * shape[1]
        if name == "ctc":
            targets = np.zeros((shape[1], 0), int)
            if shape[1]:  # no step spells no symbol: the mean of three zeros
                assert loss(np.zeros(shape), targets)[0] == 0
                continue
        for extra in ({}, {"lengths": lengths}):
            value, gradient = loss(np.zeros(shape), targets, **options, **extra)
            assert math.isnan(value) and gradient.shape == shape and not gradient.any()
            assert loss(np.zeros(shape), targets, reduction="sum", **options, **extra)[0] == 0.0
    if name not in ("softmax", "ctc"):
        value, gradient = loss(np.zeros((5, 3)), np.ones((5, 3)), lengths=[0, 0, 0])
        assert math.isnan(value) and np.array_equal(gradient, np.zeros((5, 3)))


@pytest.mark.parametrize("name", SIX)
def test_nan_and_infinity_travel_in_every_loss(name, recwarn):
    loss, targets, options = LOSSES[name]
    for poison in (np.nan, np.inf, -np.inf):
        x = predictions()
        x[1, 2, 3] = poison
        value, gradient = loss(x, targets, **options)
        harmless = poison == -np.inf and name in ("softmax", "ctc", "binary")  # a class masked; a sure and right 0
        assert math.isfinite(value) == harmless
        assert np.isnan(gradient[1, 2, 3]) == (math.isnan(poison) or (poison == np.inf and name in ("softmax", "ctc")))
        assert np.isfinite(gradient[:, :2]).all()  # the other sequences
    assert not recwarn.list


# ------------------------------------------------------------------------------------------------------ the kernel


def by_numpy(logits, targets, inside, weights, is_mean):
    """softmax_terms in float64, as the loss and its gradient."""
    rows = logits[inside].astype(np.float64)
    costs, drows, count = softmax_terms(rows, targets[inside], weights, 0.0)
    gradient = np.zeros(logits.shape)
    gradient[inside] = drows / count if is_mean else drows
    return costs.sum() / (count if is_mean else 1), gradient


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 2e-14)], ids=["float32", "float64"])
@pytest.mark.parametrize("classes", [1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 100, 5000])
def test_kernel_against_numpy(classes, dtype, tolerance, isa):
    """Rows of every remainder of every vector, several blocks of them, and a row that is longer than a block."""
    steps = max(2, 5000 // 7 // classes)
    logits, targets = case((steps, 7), classes, dtype, seed=classes, spread=4.0)
    lengths = np.random.default_rng(classes).integers(0, steps + 1, 7)
    weights = np.random.default_rng(classes).random(classes) + 0.5
    weights[1:2] = 0
    ragged = np.arange(steps)[:, None] < lengths
    assert 0 < ragged.sum() < ragged.size
    whole = np.full((steps, 7), True)
    for (inside, ends), w, is_mean in itertools.product([(whole, None), (ragged, lengths)], [None, weights], [0, 1]):
        x, y = logits.copy(), targets.copy()
        x[~inside], y[~inside] = np.nan, -99
        loss, gradient = _kernels.softmax_cross_entropy(x, y, ends, w, is_mean)
        expected, dexpected = by_numpy(x, y, inside, w, is_mean)
        assert loss == pytest.approx(expected, rel=tolerance, abs=tolerance)
        assert gradient.dtype == dtype and not gradient[~inside].any()
        scale = 1 if classes == 1 else np.abs(dexpected).max()
        np.testing.assert_allclose(gradient, dexpected, rtol=4 * tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_logit_is_found_wherever_it_stands(dtype, isa):
    """Without it the exponential of 2000 is infinite."""
    for classes in range(1, 70):
        loss, gradient = softmax_cross_entropy(2000 * np.eye(classes, dtype=dtype), np.arange(classes))
        assert loss == 0 and not gradient.any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("classes", [3, 10, 16, 40])
def test_a_row_has_the_same_bits_wherever_it_stands(classes, dtype, isa):
    """And NaN, infinity or an impossible target of another row change nothing in it."""
    logits, targets = case((9,), classes, dtype)
    _, together = softmax_cross_entropy(logits, targets, reduction="sum")
    for row in range(9):
        alone = softmax_cross_entropy(logits[row : row + 1], targets[row : row + 1], reduction="sum")[1]
        assert np.array_equal(alone[0], together[row])
    for poison, finite in ((np.nan, False), (np.inf, False), (-np.inf, True)):
        x = logits.copy()
        x[4, targets[4] - 1] = poison
        loss, gradient = softmax_cross_entropy(x, targets, reduction="sum")
        assert math.isfinite(loss) == finite == bool(np.isfinite(gradient[4]).all())
        assert np.array_equal(np.delete(gradient, 4, 0), np.delete(together, 4, 0))
    x[4] = -np.inf
    assert math.isnan(softmax_cross_entropy(x, targets)[0])


def test_what_the_kernel_leaves_to_numpy():
    """All but dense floats and integers in range is refused, so that the general way can say what it is."""
    x, y, n = np.zeros((4, 3, 5), np.float32), np.zeros((4, 3), int), np.full(3, 4)
    quick = _kernels.softmax_cross_entropy
    for targets, lengths, weights in ((y, n, None), (y.astype(np.uint8), [1, 2, 3], np.ones(5))):
        assert quick(x, targets, lengths, weights, True) is not None
    for logits in (x.tolist(), x.astype(np.float16), x.astype(">f4"), x[:, ::-1], x.astype(int), x[..., :0], x[0]):
        assert quick(logits, y, None, None, True) is None
    for targets in (y.astype(float), y.astype(bool), y[None], y[:3], y - 1, y + 5, [[0], [0, 1]], None, "abc"):
        assert quick(x, targets, None, None, True) is None
    for lengths in (n[:2], n + 1, n - 5, n.astype(float), 4, "abc"):
        assert quick(x, y, lengths, None, True) is None
    assert quick(x, y, None, np.ones(4), True) is None and quick(x, y, None, np.ones(5, np.float32), True) is None
    assert quick(x[0], y[0], n, None, True) is None


# ------------------------------------------------------------------------------------------------- squares and sizes


def test_literal_errors():
    """By hand, for x - y = (3, -0.5, 0, -4)."""
    x, y = np.array([4.0, 0.5, 1.0, -5.0]), np.array([1.0, 1.0, 1.0, -1.0])
    value, gradient = mean_squared_error(x, y, reduction="sum")
    assert value == 25.25 and gradient.tolist() == [6, -1, 0, -8]
    value, gradient = mean_squared_error(x, y)
    assert value == 25.25 / 4 and gradient.tolist() == [1.5, -0.25, 0, -2]
    value, gradient = mean_absolute_error(x, y)
    assert value == 7.5 / 4 and gradient.tolist() == [0.25, -0.25, 0, -0.25]
    value, gradient = huber(x, y, delta=2.0, reduction="sum")
    assert value == 2 * (3 - 1) + 0.125 + 0 + 2 * (4 - 1) and gradient.tolist() == [2, -0.5, 0, -2]
    assert huber(x, y, reduction="sum")[0] == 2.5 + 0.125 + 3.5  # delta is 1


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 2, 2, 2)])
def test_any_rank(shape):
    x = np.linspace(-1, 1, math.prod(shape)).reshape(shape) + 2
    for loss, expected in [(mean_squared_error, x * x), (mean_absolute_error, x), (binary_cross_entropy, None)]:
        value, gradient = loss(x, np.zeros(shape))
        expected = np.log1p(np.exp(x)) if expected is None else expected
        assert value == pytest.approx(expected.mean(), rel=1e-14) and gradient.shape == shape


def test_float32_errors_are_summed_in_float64():
    x = np.full(2**20, 0.1, np.float32)
    assert mean_absolute_error(x, np.zeros_like(x))[0] == pytest.approx(float(np.float32(0.1)), rel=1e-14)
    assert mean_squared_error(np.float32([3e38]), np.float32([-3e38]))[0] == pytest.approx(3.6e77, rel=1e-6)


# --------------------------------------------------------------------------------------------------- binary, softmax


def test_binary_literals():
    """A logit of log 3 is a probability of 3/4."""
    x = np.full(3, math.log(3))
    value, gradient = binary_cross_entropy(x, [1.0, 0.0, 0.5], reduction="sum")
    assert value == pytest.approx(math.log(4 / 3) + math.log(4) + (math.log(4 / 3) + math.log(4)) / 2, rel=1e-15)
    np.testing.assert_allclose(gradient, [-0.25, 0.75, 0.25], rtol=1e-14)
    value, gradient = binary_cross_entropy(x, [1.0, 0.0, 0.5], pos_weight=3, reduction="sum")
    assert value == pytest.approx(3 * math.log(4 / 3) + math.log(4) + 1.5 * math.log(4 / 3) + math.log(4) / 2)
    np.testing.assert_allclose(gradient, [-0.75, 0.75, 0.375 - 0.375], atol=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_and_infinite_binary_logits(dtype):
    big = np.finfo(dtype).max
    for x, y, loss, gradient in [
        (1e4, 1, 0, 0),
        (1e4, 0, 1e4, 1),
        (-1e4, 0, 0, 0),
        (-1e4, 1, 1e4, -1),
        (big, 0, float(big), 1),
        (-big, 1, float(big), -1),
        (np.inf, 1, 0, 0),
        (-np.inf, 0, 0, 0),
        (np.inf, 0, np.inf, 1),
        (-np.inf, 1, np.inf, -1),
        (-40, 0, math.exp(-40), math.exp(-40)),
    ]:
        value, d = binary_cross_entropy(np.array([x], dtype), [y])
        assert value == pytest.approx(loss, rel=1e-6) and d.tolist() == pytest.approx([gradient], rel=1e-6)


def test_binary_targets_may_be_bool_or_integers():
    x, y = predictions(), LABELS
    expected = binary_cross_entropy(x, y.astype(float))
    for targets in (y, y.astype(bool), y.astype(np.uint8), y.tolist()):
        value, gradient = binary_cross_entropy(x, targets)
        assert value == expected[0] and np.array_equal(gradient, expected[1])


@pytest.mark.parametrize("smoothing", [0.0, 0.3, 1.0])
def test_one_hot_is_the_same_as_integers(smoothing):
    x, one_hot = predictions(), np.eye(C)[CLASSES]
    expected = softmax_cross_entropy(x, CLASSES, label_smoothing=smoothing)
    for targets in (one_hot, one_hot.astype(int), one_hot.astype(bool), one_hot.tolist()):
        value, gradient = softmax_cross_entropy(x, targets, label_smoothing=smoothing)
        assert value == pytest.approx(expected[0], rel=1e-14)
        np.testing.assert_allclose(gradient, expected[1], atol=1e-16)


def test_a_masked_class_costs_nothing_where_it_is_not_the_target():
    x = np.array([[0.0, -np.inf, 0.0]])
    for targets in ([2], [[0, 0, 1]]):
        loss, dlogits = softmax_cross_entropy(x, targets)
        assert loss == pytest.approx(math.log(2))
        np.testing.assert_allclose(dlogits, [[0.5, 0, -0.5]])
    assert softmax_cross_entropy(x, [[0, 1, 0]])[0] == np.inf


def test_the_weighted_mean_of_pytorch():
    """Integers: divided by the targets' weights; probabilities: by the positions. All weights 0: no mean."""
    x, w = np.log([[1.0, 3.0], [1.0, 3.0]]), [2.0, 6.0]
    weighted = 2 * math.log(4) + 6 * math.log(4 / 3)
    assert softmax_cross_entropy(x, [0, 1], class_weights=w)[0] == pytest.approx(weighted / 8)
    assert softmax_cross_entropy(x, np.eye(2), class_weights=w)[0] == pytest.approx(weighted / 2)
    assert softmax_cross_entropy(x, [0, 1], class_weights=w, reduction="sum")[0] == pytest.approx(weighted)
    assert math.isnan(softmax_cross_entropy(x, [0, 0], class_weights=[0, 1])[0])
    assert softmax_cross_entropy(x, [0, 0], class_weights=[0, 1], reduction="sum")[0] == 0
    small = softmax_cross_entropy(x, [0, 1], class_weights=[0.002, 0.006])  # only ratios count, below 1 too
    np.testing.assert_allclose(small[1], softmax_cross_entropy(x, [0, 1], class_weights=w)[1], rtol=1e-14)


def test_a_large_vocabulary_with_smoothing_needs_no_square_matrix():
    classes = 50_000  # squared: 20 GB
    loss, dlogits = softmax_cross_entropy(np.zeros((2, classes), np.float32), [1, classes - 1], label_smoothing=0.1)
    assert loss == pytest.approx(math.log(classes)) and dlogits[1, -1] == pytest.approx((1 / classes - 0.900002) / 2)


# --------------------------------------------------------------------------------------------------------------- CTC


def spelled(path, blank):
    return [symbol for symbol, _ in itertools.groupby(path) if symbol != blank]


def sum_over_all_paths(logits, target, blank):
    """-log of the summed probability of all C**T paths, from the definition (eq. 3 of the paper)."""
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    steps, classes = p.shape
    paths = itertools.product(range(classes), repeat=steps)
    total = sum(math.prod(p[range(steps), path]) for path in map(list, paths) if spelled(path, blank) == target)
    return -math.log(total) if total else math.inf


@pytest.mark.parametrize("blank", [0, 2])
@pytest.mark.parametrize("steps", [0, 1, 3, 5])
def test_ctc_is_the_sum_over_all_paths(steps, blank):
    a, b = [c for c in range(3) if c != blank]
    targets = [[], [a], [b, a], [a, a], [a, b, a], [b, b, b], [a, a, b]]
    logits = np.random.default_rng(steps).standard_normal((steps, len(targets), 3))
    expected = [sum_over_all_paths(logits[:, i], target, blank) for i, target in enumerate(targets)]
    assert sum(map(math.isfinite, expected)) == {0: 1, 1: 2, 3: 5, 5: 7}[steps]
    for i, target in enumerate(targets):
        assert ctc(logits[:, i : i + 1], [target], blank=blank, reduction="sum")[0] == pytest.approx(
            expected[i], rel=1e-12, abs=1e-15
        )
    values, gradient = ctc(logits, targets, blank=blank, reduction="sum", zero_infinity=True)
    assert values == pytest.approx(sum(filter(math.isfinite, expected)), rel=1e-12, abs=1e-15)
    assert gradient.shape == logits.shape


@each_reduction
@pytest.mark.parametrize("blank", [0, 3])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-6), (np.float64, 1e-12)], ids=["float32", "float64"])
def test_ctc_against_pytorch(dtype, tolerance, blank, reduction):
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal((20, 7, 5)) * 2).astype(dtype)
    lengths, counts = np.array([20, 0, 15, 12, 7, 20, 9]), np.array([6, 0, 3, 0, 2, 5, 4])
    targets = (blank + rng.integers(1, 5, (7, 6))) % 5
    targets[5] = targets[5, 0]  # repeated symbols need blanks between them
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    expected = torch.nn.functional.ctc_loss(
        x.log_softmax(-1),
        torch.tensor(targets),
        torch.tensor(lengths),
        torch.tensor(counts),
        blank=blank,
        reduction=reduction,
    )
    expected.backward()
    inside = np.arange(20)[:, None] < lengths
    logits[~inside] = np.nan
    targets[np.arange(6) >= counts[:, None]] = -1
    padded = ctc(logits, targets, lengths=lengths, target_lengths=counts, blank=blank, reduction=reduction)
    listed = ctc(
        logits,
        [row[:n] for row, n in zip(targets, counts, strict=True)],
        lengths=lengths,
        blank=blank,
        reduction=reduction,
    )
    for value, gradient in (padded, listed):
        assert value == pytest.approx(expected.item(), rel=tolerance)
        assert gradient.dtype == dtype and np.abs(gradient).max() > 1e-2
        np.testing.assert_allclose(gradient, x.grad.numpy(), rtol=tolerance, atol=tolerance)


def test_ctc_where_there_is_no_path():
    """Too short for its target: infinite, or 0 if asked, with gradient 0; the others as without it."""
    logits = np.random.default_rng(2).standard_normal((3, 3, 4))
    targets = [[1, 2], [1, 1, 1], [3]]
    alone, dalone = ctc(logits[:, [0, 2]], [[1, 2], [3]], reduction="sum")
    value, gradient = ctc(logits, targets, reduction="sum")
    assert value == math.inf and np.array_equal(gradient[:, 1], np.zeros((3, 4)))
    finite, same = ctc(logits, targets, reduction="sum", zero_infinity=True)
    assert finite == pytest.approx(alone, rel=1e-14) and np.array_equal(same, gradient)
    np.testing.assert_allclose(gradient[:, [0, 2]], dalone, rtol=1e-14)
    assert ctc(logits, targets, zero_infinity=True)[0] == pytest.approx(
        (ctc(logits[:, :1], [[1, 2]])[0] + ctc(logits[:, 2:], [[3]])[0]) / 3, rel=1e-14
    )  # as PyTorch: it counts in the mean


def test_ctc_reads_its_targets_once(monkeypatch):
    """What another thread writes into them behind the check is not what the kernel sees."""
    logits, targets = np.random.default_rng(0).standard_normal((6, 2, 4)), np.array([[1, 2], [3, 1]])
    clean, check = ctc(logits, targets.copy())[0], _positions._check_range

    def checked(name, *arguments):
        check(name, *arguments)
        targets[:] = 2

    monkeypatch.setattr(_positions, "_check_range", checked)
    assert ctc(logits, targets)[0] == clean and (targets == 2).all()


def test_ctc_over_many_steps_stays_in_range():
    """2000 steps: probabilities below the smallest float64. Uniform logits: all paths are equally likely."""
    logits = np.full((2000, 1, 30), 7.0, np.float32)
    value, gradient = ctc(logits, [[]], reduction="sum")
    assert value == pytest.approx(2000 * math.log(30), rel=1e-12)
    value, gradient = ctc(logits, [[5]], reduction="sum")  # T (T + 1) / 2 places for one run of the symbol
    assert value == pytest.approx(2000 * math.log(30) - math.log(2000 * 2001 / 2), rel=1e-12)
    assert np.isfinite(gradient).all()


def test_ctc_takes_a_masked_class():
    logits = np.random.default_rng(3).standard_normal((6, 1, 4))
    logits[2, 0, 3] = -np.inf
    lower = logits.copy()
    lower[2, 0, 3] = -1e3
    (value, gradient), (nearly, dnearly) = ctc(logits, [[3, 1]]), ctc(lower, [[3, 1]])
    assert value == pytest.approx(nearly, rel=1e-12)
    np.testing.assert_allclose(gradient, dnearly, atol=1e-14)


# -------------------------------------------------------------------------------------------------- what is refused

X = np.zeros((4, 2, 3), np.float32)
Y = np.zeros((4, 2, 3), np.float32)
N = np.zeros((4, 2), int)


@pytest.mark.parametrize(
    "loss, x, y, options, error, words",
    [
        (mean_squared_error, X, Y[:3], {}, ValueError, r"targets: expected shape \(4, 2, 3\), got \(3, 2, 3\)"),
        (mean_squared_error, X, Y[..., :1], {}, ValueError, "targets: expected shape"),
        (mean_squared_error, X, Y.astype(float), {}, TypeError, "targets: expected dtype float32, got float64"),
        (mean_squared_error, X, Y > 0, {}, TypeError, "targets: expected dtype float32, got bool"),
        (mean_squared_error, X > 0, Y, {}, TypeError, "predictions: expected float32 or float64, got bool"),
        (mean_absolute_error, "text", Y, {}, TypeError, "predictions: expected float32 or float64"),
        (mean_absolute_error, X, Y, {"reduction": "none"}, ValueError, "reduction: expected one of 'mean', 'sum'"),
        (mean_absolute_error, X, Y, {"lengths": [1]}, ValueError, r"lengths: expected shape \(2,\), got \(1,\)"),
        (mean_absolute_error, X, Y, {"lengths": [1, 5]}, ValueError, "lengths: expected 0 to 4 .*got 5"),
        (mean_absolute_error, X, Y, {"lengths": [1.0, 2.0]}, TypeError, "lengths: expected integers"),
        (mean_absolute_error, X[0, 0], Y[0, 0], {"lengths": [1]}, ValueError, "lengths: expected None"),
        (huber, X, Y, {"delta": 0}, ValueError, "delta: expected above 0"),
        (huber, X, Y, {"delta": -1.0}, ValueError, "delta: expected 0 to"),
        (huber, X, Y, {"delta": np.inf}, ValueError, "delta"),
        (huber, X, Y, {"delta": np.nan}, ValueError, "delta"),
        (huber, X, Y, {"delta": "1"}, TypeError, "delta: expected a number"),
        (binary_cross_entropy, X, Y + 2, {}, ValueError, r"targets: expected 0 to 1 .*got 2.0 at \(0, 0, 0\)"),
        (binary_cross_entropy, X, Y + np.nan, {}, ValueError, "targets: expected 0 to 1 .*got nan"),
        (binary_cross_entropy, X, N, {}, ValueError, "targets: expected shape"),
        (binary_cross_entropy, X, Y, {"label_smoothing": 1.5}, ValueError, "label_smoothing: expected 0 to 1, got 1.5"),
        (binary_cross_entropy, X, Y, {"pos_weight": -1}, ValueError, "pos_weight: expected finite numbers, 0 or above"),
        (binary_cross_entropy, X, Y, {"pos_weight": [1, 2]}, ValueError, r"pos_weight: expected shape \(\) or \(3,\)"),
        (binary_cross_entropy, X, Y, {"pos_weight": True}, TypeError, "pos_weight: expected numbers"),
        (softmax_cross_entropy, X, Y, {}, ValueError, "targets: expected probabilities with sum 1, got a sum of 0"),
        (softmax_cross_entropy, X, Y + 1, {}, ValueError, "targets: .*sum 1, got a sum of 3"),
        (softmax_cross_entropy, X, Y - 1, {}, ValueError, "targets: expected 0 to 1"),
        (softmax_cross_entropy, X, Y.astype(float) + 1 / 3, {}, TypeError, "targets: expected dtype float32"),
        (softmax_cross_entropy, X, N + 3, {"lengths": [0, 1]}, ValueError, r"targets: expected 0 to 2 .*at \(0, 1\)"),
        (softmax_cross_entropy, X, N + 2**32, {}, ValueError, "targets: expected 0 to 2 .*got 429496729"),
        (softmax_cross_entropy, X[0], N[0], {"lengths": [1, 1]}, ValueError, "lengths: expected None"),
        (softmax_cross_entropy, X, N, {"class_weights": [1, 2]}, ValueError, r"class_weights: expected shape \(3,\)"),
        (softmax_cross_entropy, X, N, {"class_weights": [1, 2, -1]}, ValueError, "class_weights: expected finite"),
        (softmax_cross_entropy, X, N, {"class_weights": [1, 2, np.nan]}, ValueError, "class_weights: expected finite"),
        (softmax_cross_entropy, X, N, {"class_weights": "abc"}, TypeError, "class_weights: expected numbers"),
        (softmax_cross_entropy, X, N, {"label_smoothing": 1.1}, ValueError, "label_smoothing: expected 0 to 1"),
        (softmax_cross_entropy, X, N, {"label_smoothing": True}, TypeError, "label_smoothing: expected a number"),
        (ctc, X[0], [[1], [1]], {}, ValueError, r"logits: expected shape \(T, B, C\), got \(2, 3\)"),
        (ctc, X, [[1]], {}, ValueError, "targets: expected 2 targets, one for each sequence, got 1"),
        (ctc, X, [[1], [0]], {}, ValueError, "targets: expected no blank .*got one for sequence 1 at 0"),
        (ctc, X, [[1], [2, 3]], {}, ValueError, r"targets: expected 0 to 2 .*got 3 at \(1, 1\)"),
        (ctc, X, [[1], [2**32 + 1]], {}, ValueError, "targets: expected 0 to 2 .*got 4294967297"),
        (ctc, X, [[1], [1.0]], {}, TypeError, r"targets\[1\]: expected integers"),
        (ctc, X, [[1], [[1]]], {}, ValueError, r"targets\[1\]: expected shape"),
        (ctc, X, [[1], 1], {}, ValueError, r"targets\[1\]: expected shape"),
        (ctc, X, [[1], [[1], [1, 2]]], {}, ValueError, r"targets\[1\]: expected an array"),
        (ctc, X, np.ones((3, 2), int), {}, ValueError, r"targets: expected shape \(2, 2\), got \(3, 2\)"),
        (ctc, X, np.ones(4, int), {}, ValueError, "targets: expected shape"),
        (ctc, X, np.ones((2, 2)), {}, TypeError, "targets: expected integers, got float64"),
        (ctc, X, np.ones((2, 2), int), {"target_lengths": [1, 3]}, ValueError, "target_lengths: expected 0 to 2"),
        (ctc, X, np.ones((2, 2), int), {"target_lengths": [1]}, ValueError, "target_lengths: expected shape"),
        (ctc, X, np.ones((2, 2), int), {"target_lengths": [1.0, 1.0]}, TypeError, "target_lengths: expected integers"),
        (ctc, X, [[1], [1, 2]], {"target_lengths": [1, 2]}, ValueError, "targets: expected an array"),
        (ctc, X, [[1], [1]], {"blank": 3}, ValueError, "blank: expected 0 to 2, got 3"),
        (ctc, X, [[1], [1]], {"zero_infinity": 1}, TypeError, "zero_infinity: expected True or False"),
        (ctc, X, [[1], [1]], {"lengths": [5, 1]}, ValueError, "lengths: expected 0 to 4"),
        (ctc, X, [[1], [1]], {"reduction": "none"}, ValueError, "reduction"),
    ],
)
def test_every_error_names_the_argument(loss, x, y, options, error, words):
    with pytest.raises(error, match=words):
        loss(x, y, **options)


@pytest.mark.parametrize("options", [{"label_smoothing": 0.1}, {}], ids=["smoothed", "probabilities"])
def test_cross_entropy_with_probabilities_takes_little_memory(options):
    """New memory costs more time here than arithmetic: beside float64 targets one array of their size, and float32."""
    logits, targets = case((2000,), 64, np.float32)
    targets = targets if options else np.eye(64, dtype=np.float32)[targets]
    softmax_cross_entropy(logits, targets, **options)
    tracemalloc.start()
    try:
        softmax_cross_entropy(logits, targets, **options)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 3.5 * logits.size * 8
