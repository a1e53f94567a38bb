"""RNNClassifier and RNNRegressor: the rules of scikit-learn's estimators, on 3-D and 2-D arrays and lists of arrays."""

import doctest
import importlib
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest

import elman

sklearn = pytest.importorskip("sklearn", minversion="1.3")

from sklearn.base import clone  # noqa: E402
from sklearn.compose import TransformedTargetRegressor  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from sklearn.exceptions import DataConversionWarning, NotFittedError  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, train_test_split  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.preprocessing import FunctionTransformer, StandardScaler  # noqa: E402
from sklearn.utils.estimator_checks import check_estimator  # noqa: E402

import elman.sklearn  # noqa: E402
from elman.sklearn import RNNClassifier, RNNRegressor  # noqa: E402

BOTH = pytest.mark.parametrize("kind", [RNNClassifier, RNNRegressor])


def ragged(N=60, features=3, least=1, seed=0):
    """Noise of 1 to 8 steps; the class, "down" or "up", is the sign of the sum of the first feature."""
    rng = np.random.default_rng(seed)
    X = [rng.standard_normal((n, features)) for n in rng.integers(least, 9, N)]
    sums = np.array([x[:, 0].sum() for x in X])
    return X, np.where(sums > 0, "up", "down"), sums


def small(kind=RNNClassifier, **options):
    return kind(**{"hidden_size": 8, "epochs": 2, "random_state": 0} | options)


def data(kind, **options):
    """X and what the estimator learns of it."""
    X, labels, sums = ragged(**options)
    return X, labels if kind is RNNClassifier else sums


def same_weights(a, b):
    return all(np.array_equal(w, b.model_.params[name]) for name, w in a.model_.params.items())


# ------------------------------------------------------------------------------------------------------- it learns


def test_digits_read_row_by_row():
    """Ten classes from 8 steps of 8 pixels; logistic regression on the same 64 pixels is right for 0.969 of them."""
    digits = load_digits()
    split = train_test_split(digits.images / 16, digits.target, stratify=digits.target, random_state=0)
    X_train, X_test, y_train, y_test = split
    classifier = RNNClassifier(epochs=15, learning_rate=5e-3, random_state=0).fit(X_train, y_train)
    assert classifier.score(X_test, y_test) > 0.97
    p = classifier.predict_proba(X_test)
    assert p.shape == (450, 10) and p.dtype == np.float32 and (p >= 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(classifier.classes_[p.argmax(axis=1)], classifier.predict(X_test))
    assert classifier.n_features_in_ == 8 and classifier.n_iter_ == 15
    assert {len(values) for values in classifier.history_.values()} == {15}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cell": "lstm"},
        {"cell": "rnn", "pooling": "mean"},
        {"bidirectional": True, "pooling": "max"},
        {"bidirectional": True},
    ],
    ids=["gru", "lstm", "rnn-mean", "bidirectional-max", "bidirectional-last"],
)
def test_ragged_lists_with_strings_as_classes(options):
    X, y, _ = ragged(500)
    more, wanted, _ = ragged(200, seed=1)
    classifier = RNNClassifier(hidden_size=16, epochs=12, learning_rate=2e-2, random_state=0, **options).fit(X, y)
    assert list(classifier.classes_) == ["down", "up"]
    assert classifier.score(more, wanted) > 0.85  # one class alone: about 0.5
    p = classifier.predict_proba(more)
    assert ((p[:, 1] > p[:, 0]) == (classifier.predict(more) == "up")).all()


def test_regressor_of_one_number_and_of_several():
    X, _, y = ragged(400)
    more, _, wanted = ragged(200, seed=1)
    options = {"hidden_size": 16, "epochs": 15, "learning_rate": 2e-2, "random_state": 0}
    one = RNNRegressor(**options).fit(X, y)
    assert one.predict(more).shape == (200,) and one.score(more, wanted) > 0.9
    two = RNNRegressor(**options).fit(X, np.stack([y, -2 * y], axis=1))
    assert two.predict(more).shape == (200, 2) and two.score(more, np.stack([wanted, -2 * wanted], axis=1)) > 0.9
    flat, column = small(RNNRegressor).fit(X, y), small(RNNRegressor).fit(X, y[:, None])
    np.testing.assert_array_equal(column.predict(more), flat.predict(more)[:, None])


def test_early_stopping_holds_out_and_keeps_the_best():
    X, y, _ = ragged(300)
    options = {"epochs": 200, "learning_rate": 3e-2, "early_stopping": True, "validation_fraction": 0.2, "patience": 3}
    classifier = small(**options).fit(X, y)
    losses = classifier.history_["val_loss"]
    assert classifier.n_iter_ == len(losses) < 200 and np.argmin(losses) == len(losses) - 1 - 3
    best = small(**options).set_params(epochs=int(np.argmin(losses)) + 1).fit(X, y)
    assert same_weights(classifier, best)


@BOTH
def test_what_is_held_out(kind):
    """A fifth, none of it trained on; of each class if there are classes."""
    X = [np.full((1 + i % 3, 1), i) for i in range(50)]
    y = np.repeat([0, 1], [40, 10])
    kept, of_kept, (held, of_held) = kind(validation_fraction=0.2)._split(X, y, seed=0)
    indices = [int(x[0, 0]) for x in (*kept, *held)]
    assert len(held) == 10 and sorted(indices) == list(range(50))
    np.testing.assert_array_equal(y[indices], [*of_kept, *of_held])
    assert kind is RNNRegressor or of_held.sum() == 2


def test_the_network():
    X, y, _ = ragged()
    two = small(cell="lstm", num_layers=2, dropout=0.3, bidirectional=True, pooling="mean").fit(X, y).model_
    assert repr(two) == (
        "Sequential([LSTM(3, 8, num_layers=2, bidirectional=True, dropout=0.3), Pooling('mean'), Dropout(0.3), "
        "Dense(16, 2)])"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of dropout that does nothing
        one = small(dropout=0.3).fit(X, y).model_
    assert repr(one) == "Sequential([GRU(3, 8), Pooling('last'), Dropout(0.3), Dense(8, 2)])"
    both = small(bidirectional=True).fit(X, y).model_
    pooling = "Pooling('last', bidirectional=True)"
    assert repr(both) == f"Sequential([GRU(3, 8, bidirectional=True), {pooling}, Dense(16, 2)])"


@pytest.mark.parametrize(
    "options", [{"weight_decay": 0.5}, {"clip_norm": 1e-6}, {"batch_size": 7}, {"learning_rate": 0.1}], ids=str
)
def test_arguments_of_the_training_reach_it(options):
    X, y, _ = ragged()
    wanted = small().fit(X, y).history_["loss"]
    assert small(**options).fit(X, y).history_["loss"][1] != wanted[1]


def test_probabilities_of_huge_logits():
    X, y, _ = ragged()
    classifier = small().fit(X, y)
    with classifier.model_.edit() as p:
        p["2.weight"] *= 1e6
    p = classifier.predict_proba(X)
    assert ((p == 0) | (p == 1)).all() and (p.sum(axis=1) == 1).all() and (p.min(axis=0) == 0).all()


# ---------------------------------------------------------------------------------------------- the forms of the data


@BOTH
def test_the_forms_of_x_agree(kind):
    """float64, float32, lists, (N, T, 1) and (N, T) of the same numbers: the same network, bit for bit."""
    X = np.random.default_rng(0).standard_normal((80, 5)).astype(np.float32)
    y = np.arange(80) % 2
    wanted = small(kind).fit(X[:, :, None], y)
    objects = np.empty(80, object)
    objects[:] = list(X)
    for form in (X, X.astype(np.float64), X.tolist(), list(X), list(X[:, :, None]), tuple(X), objects):
        found = small(kind).fit(form, y)
        assert same_weights(found, wanted) and found.n_features_in_ == 1
        np.testing.assert_array_equal(found.predict(form), wanted.predict(X))


@BOTH
def test_ragged_predictions_do_not_depend_on_the_company(kind):
    X, y = data(kind)
    fitted = small(kind).fit(X, y)
    together = fitted.predict(X)
    alone = np.concatenate([fitted.predict([x]) for x in X])
    if kind is RNNClassifier:
        np.testing.assert_array_equal(alone, together)
    else:
        np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)
    assert fitted.predict([np.zeros((0, 3)), np.ones((2, 3))]).shape == (2,)  # a sequence of length 0


@BOTH
def test_float64(kind):
    X, y = data(kind)
    fitted = small(kind, dtype="float64").fit(X, y)
    assert fitted.model_.dtype == np.float64
    fitted.set_params(dtype="float32").partial_fit(X, y)  # which goes on with the network there is
    assert (fitted.predict_proba if kind is RNNClassifier else fitted.predict)(X).dtype == np.float64


# ----------------------------------------------------------------------------------------------------- scikit-learn


@BOTH
def test_parameters_are_stored_and_cloned(kind):
    estimator = kind("lstm", 7, learning_rate=0.5, random_state=3)
    copied = clone(estimator)
    assert copied.get_params() == estimator.get_params() and copied.learning_rate == 0.5
    assert kind("nonsense", hidden_size=-1).get_params()["cell"] == "nonsense"  # only fit checks
    assert estimator.set_params(hidden_size=9) is estimator and estimator.hidden_size == 9
    with pytest.raises(ValueError, match="Invalid parameter 'size'"):
        estimator.set_params(size=1)


@BOTH
def test_grid_search(kind):
    """The learning rate of 0 learns nothing, so the other one must win; on lists."""
    X, y = data(kind, N=120)
    search = GridSearchCV(small(kind, epochs=8), {"learning_rate": [0.0, 2e-2]}, cv=3).fit(X, y)
    assert search.best_params_ == {"learning_rate": 2e-2}
    assert len(search.predict(X)) == 120 and search.score(X, y) > search.cv_results_["mean_test_score"][0]
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


@pytest.mark.parametrize("form", ["list", "array"])
@BOTH
def test_cross_validation_and_pipelines(kind, form):
    X, y = data(kind, N=60, least=8)
    X = np.stack(X) if form == "array" else X
    scale = FunctionTransformer(lambda X: [10 * np.asarray(x) for x in X])
    pipeline = make_pipeline(scale, small(kind)).fit(X, y)
    direct = small(kind).fit([10 * x for x in X], y)
    np.testing.assert_array_equal(pipeline.predict(X), direct.predict([10 * x for x in X]))
    scores = cross_val_score(pipeline, X, y, cv=3, error_score="raise")
    assert scores.shape == (3,) and np.isfinite(scores).all()
    if kind is RNNClassifier:
        assert cross_val_predict(small(), X, y, cv=3, method="predict_proba").shape == (60, 2)
        assert np.isfinite(cross_val_score(small(), X, y, cv=3, scoring="roc_auc", error_score="raise")).all()


def test_scaled_targets():
    X, _, y = ragged(300)
    plain = RNNRegressor(hidden_size=16, epochs=20, learning_rate=1e-2, random_state=0)
    scaled = TransformedTargetRegressor(plain, transformer=StandardScaler())
    assert scaled.fit(X, 1000 + 50 * y).score(X, 1000 + 50 * y) > 0.9


@BOTH
def test_the_same_seed_gives_the_same_bits(kind):
    X, y = data(kind)
    wanted = small(kind, dropout=0.3, num_layers=2).fit(X, y)
    again = small(kind, dropout=0.3, num_layers=2)
    with elman.threads(2):
        assert same_weights(again.fit(X, y).fit(X, y), wanted)
    state = np.random.RandomState(0)
    drawn = small(kind, random_state=state)
    assert not same_weights(clone(drawn).fit(X, y), small(kind, random_state=1).fit(X, y))
    first = pickle.loads(pickle.dumps(drawn.fit(X, y).model_))
    assert not np.array_equal(first.params["0.weight_hh_l0"], drawn.fit(X, y).model_.params["0.weight_hh_l0"])
    assert not same_weights(small(kind, random_state=None).fit(X, y), small(kind, random_state=None).fit(X, y))


@BOTH
def test_partial_fit_is_fit_in_pieces(kind):
    X, y = data(kind)
    classes = {"classes": ["up", "down"]} if kind is RNNClassifier else {}
    wanted = small(kind, epochs=3, dropout=0.2).fit(X, y)
    pieces = small(kind, dropout=0.2)
    assert pieces.partial_fit(X, y, **classes) is pieces
    pieces.partial_fit(X, y).partial_fit(X, y)
    assert same_weights(pieces, wanted) and pieces.n_iter_ == 3 and pieces.history_ == wanted.history_
    resumed = small(kind, dropout=0.2).fit(X, y)  # 2 epochs
    resumed = pickle.loads(pickle.dumps(resumed)).partial_fit(X, y)
    assert same_weights(resumed, wanted) and resumed.n_iter_ == 3


def test_partial_fit_with_classes_that_come_later():
    X, y, _ = ragged(40)
    classifier = small().partial_fit(X, y, classes=["up", "down", "neither"])
    assert list(classifier.classes_) == ["down", "neither", "up"] and classifier.predict_proba(X).shape == (40, 3)
    classifier.partial_fit(X[:1], ["neither"])
    up = classifier.set_params(learning_rate=0.1)
    for _ in range(5):
        up.partial_fit(X, ["up"] * 40)
    assert (up.predict(X) == "up").all() and up.history_["lr"][-1] == 0.1


@BOTH
def test_a_fitted_estimator_can_be_pickled_and_its_network_saved(kind, tmp_path):
    X, y = data(kind)
    fitted = small(kind, dropout=0.1).fit(X, y)
    copied = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(copied.predict(X), fitted.predict(X))
    elman.save(tmp_path / "network.safetensors", fitted.model_)
    loaded = elman.load(tmp_path / "network.safetensors").predict([x.astype("f4") for x in X], batch_size=256)
    np.testing.assert_array_equal(loaded, fitted.model_.predict([x.astype("f4") for x in X], batch_size=256))


# ------------------------------------------------------------------------------------- scikit-learn's own checks

# Their X is 2-D, here sequences of one feature: n_features_in_ is 1, and sequences of another length are welcome.
LENGTH_IS_FREE = {
    "check_n_features_in": "the columns of a 2-D X are steps, each of one feature",
    "check_n_features_in_after_fitting": "sequences of any length are taken",
    "check_estimators_partial_fit_n_features": "sequences of any length are taken",
    "check_classifiers_train": "sequences of any length are taken",
}
OF_THE_DTYPE = {"check_regressor_multioutput": "predictions have the network's dtype; here float64 is expected"}
TO_CHECK = {"hidden_size": 16, "epochs": 12, "learning_rate": 4e-2}


class OneLength:
    """Refuses sequences of another length than in `fit`, so that nothing stands against scikit-learn's checks."""

    def _sequences(self, X, fitted):
        X = super()._sequences(X, fitted=False)
        if fitted and X.shape[1] != self.n_features_in_:
            wanted = f"{type(self).__name__} is expecting {self.n_features_in_} features as input"
            raise ValueError(f"X has {X.shape[1]} features, but {wanted}")  # in the words that the checks look for
        return X

    def _train(self, X, *args, **options):
        super()._train(X, *args, **options)
        self.n_features_in_ = X.shape[1]


class OneLengthClassifier(OneLength, RNNClassifier):
    pass


class OneLengthRegressor(OneLength, RNNRegressor):
    pass


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "estimator, expected",
    [
        (RNNClassifier(hidden_size=8, epochs=2), LENGTH_IS_FREE),
        (RNNRegressor(**TO_CHECK), LENGTH_IS_FREE | OF_THE_DTYPE),
        (OneLengthClassifier(**TO_CHECK), {}),
        (OneLengthRegressor(**TO_CHECK, dtype="float64"), {}),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else "",
)
def test_checks_of_scikit_learn(estimator, expected):
    pytest.importorskip("sklearn", minversion="1.6")  # which gives a list of results
    results = check_estimator(estimator, on_fail=None, on_skip=None)
    failed = {result["check_name"]: result["exception"] for result in results if result["status"] == "failed"}
    assert len(results) > 50
    assert failed.keys() == expected.keys() - ({"check_classifiers_train"} if "Regressor" in repr(estimator) else set())


# ------------------------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "options, error, words",
    [
        ({"cell": "GRU"}, ValueError, "cell: expected one of 'gru', 'lstm', 'rnn', got 'GRU'"),
        ({"hidden_size": 0}, ValueError, "hidden_size: expected"),
        ({"num_layers": "2"}, TypeError, "num_layers: expected an integer"),
        ({"pooling": "first"}, ValueError, "pooling: expected one of"),
        ({"bidirectional": 1}, TypeError, "bidirectional: expected True or False"),
        ({"dropout": 2}, ValueError, "dropout: expected"),
        ({"epochs": 0}, ValueError, "epochs: expected at least 1"),
        ({"batch_size": 0.5}, TypeError, "batch_size: expected an integer"),
        ({"learning_rate": -1}, ValueError, "learning_rate: expected"),
        ({"weight_decay": -1}, ValueError, "weight_decay: expected"),
        ({"clip_norm": 0}, ValueError, "clip_norm: expected above 0"),
        ({"early_stopping": 1}, TypeError, "early_stopping: expected True or False"),
        ({"validation_fraction": 1}, ValueError, "validation_fraction: expected above 0 and below 1"),
        ({"early_stopping": True, "patience": 0}, ValueError, "patience: expected at least 1"),
        ({"early_stopping": True, "validation_fraction": 0.999}, ValueError, "validation_fraction: expected a share"),
        ({"dtype": "float16"}, TypeError, "dtype: expected float32 or float64"),
        ({"random_state": "x"}, ValueError, "cannot be used to seed"),
        ({"verbose": 2}, ValueError, "verbose: expected 0 to 1"),
        ({"learning_rate": 1e38, "clip_norm": None}, FloatingPointError, "a smaller lr"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
@BOTH
def test_wrong_arguments_leave_the_estimator_as_it_was(kind, options, error, words):
    X, y = data(kind)
    fitted = small(kind).fit(X, y)
    before = {name: value for name, value in vars(fitted).items() if name.endswith("_") or name.startswith("_")}
    wanted = fitted.predict(X)
    with pytest.raises(error, match=words):
        fitted.set_params(**options).fit(X[::-1], y[::-1])
    if error is FloatingPointError:
        with pytest.raises(error, match=words):
            fitted.partial_fit(X[::-1], y[::-1])
    assert all(getattr(fitted, name) is value for name, value in before.items())
    np.testing.assert_array_equal(fitted.predict(X), wanted)


ONES = np.ones((4, 5, 3))


@pytest.mark.parametrize(
    "X, words",
    [
        (np.ones(4), "Expected 2D array, got 1D array"),
        ([1.0, 2.0, 3.0, 4.0], "Expected 2D array, got 1D array"),
        (np.ones((4, 5, 3, 2)), r"X: expected shape \(N, T, I\), .* got \(4, 5, 3, 2\)"),
        (list(np.ones((4, 5, 3, 2))), r"X\[0\]: expected shape \(T, I\), .* got \(5, 3, 2\)"),
        (np.ones((4, 5, 0)), "X: expected .* features per step, got 0"),
        (np.where(np.arange(5)[:, None] == 2, np.nan, ONES), "Input X contains NaN"),
        ([np.ones((2, 3)), np.full((3, 3), np.inf), np.ones((2, 3)), np.ones((2, 3))], r"X\[1\] contains infinity"),
        ([np.ones((2, 3)), np.ones((2, 4)), np.ones((2, 3)), np.ones((2, 3))], r"X\[1\]: expected 3 features .* got 4"),
        (1e300 * ONES, "X contains infinity"),  # in float32
        ([], "Expected 2D array"),
        (np.ones((0, 5, 3)), r"0 sample\(s\)"),
    ],
)
@BOTH
def test_wrong_x(kind, X, words):
    fitted = small(kind).fit(ONES, [0, 1, 0, 1])
    for call in (lambda: small(kind).fit(X, [0, 1, 0, 1]), lambda: fitted.predict(X)):
        with pytest.raises(ValueError, match=words), np.errstate(over="ignore"):
            call()


@BOTH
def test_wrong_y_and_another_number_of_features(kind):
    for y, words in ((None, "y"), ([0, 1, 0], "y: expected 4 targets"), ([0, 1, 0, np.nan], "Input y contains NaN")):
        with pytest.raises(ValueError, match=words):
            small(kind).fit(ONES, y)
    with pytest.raises(NotFittedError):
        small(kind).predict(ONES)
    fitted = small(kind).fit(ONES, [0, 1, 0, 1])
    for call in (lambda: fitted.predict(ONES[:, :, :2]), lambda: fitted.partial_fit(ONES[:, :, :2], [0, 1, 0, 1])):
        with pytest.raises(ValueError, match="X: expected 3 features per step, got 2"):
            call()
    with pytest.raises(ValueError, match="early_stopping: expected False"):
        small(kind, early_stopping=True).fit(np.ones((20, 5, 3)), np.arange(20) % 2).partial_fit(ONES, [0, 1, 0, 1])


def test_wrong_labels():
    with pytest.raises(ValueError, match="y: expected at least 2 classes, got 1 class"):
        small().fit(ONES, ["a"] * 4)
    with pytest.raises(ValueError, match="Unknown label type"):
        small().fit(ONES, [0.5, 1.5, 2.5, 3.5])
    with pytest.raises(ValueError, match="1d array"):
        small().fit(ONES, np.eye(4))
    with pytest.warns(DataConversionWarning):
        small().fit(ONES, [[0], [1], [0], [1]])
    with pytest.raises(ValueError, match="classes: expected all labels at the first call"):
        small().partial_fit(ONES, [0, 1, 0, 1])
    with pytest.raises(ValueError, match="y: expected labels of .*, got .2"):
        small().partial_fit(ONES, [0, 1, 2, 1], classes=[0, 1])
    with pytest.raises(ValueError, match="classes: expected those of the first call"):
        small().fit(ONES, [0, 1, 0, 1]).partial_fit(ONES, [0, 1, 0, 1], classes=[0, 1, 2])


def test_wrong_numbers():
    with pytest.raises(ValueError, match=r"y: expected shape \(N,\) or \(N, K\), got \(4, 1, 1\)"):
        small(RNNRegressor).fit(ONES, np.ones((4, 1, 1)))
    with pytest.raises(ValueError, match=r"y: expected shape \(4,\) as in the first call, got \(4, 1\)"):
        small(RNNRegressor).fit(ONES, np.ones(4)).partial_fit(ONES, np.ones((4, 1)))


# ------------------------------------------------------------------------------------------------------- the module


def test_the_examples_in_the_docstrings_run():
    results = doctest.testmod(elman.sklearn)
    assert results.failed == 0 and results.attempted >= 10


def test_scikit_learn_is_imported_only_when_used():
    program = "import sys, elman; sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_without_scikit_learn(monkeypatch):
    monkeypatch.delitem(sys.modules, "elman.sklearn")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r'pip install "elman\[sklearn\]"'):
        importlib.import_module("elman.sklearn")
