"""RNNClassifier and RNNRegressor: a recurrent network as an estimator of scikit-learn, for sequences.

An extra: pip install "elman[sklearn]". The network is `Sequential([GRU, Pooling, Dense])`, trained by its `fit`; here
is only what turns scikit-learn's data, labels and random states into what elman takes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _checks as check
from .activation import softmax
from .callbacks import EarlyStopping
from .dense import Dense
from .dropout import Dropout
from .layers import GRU, LSTM, RNN
from .optimizers import AdamW
from .pooling import Pooling
from .sequential import Sequential
from .training import Data

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, MultiOutputMixin, RegressorMixin
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_array, check_random_state, column_or_1d
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import assert_all_finite, check_is_fitted
except ImportError as error:
    raise ImportError('elman.sklearn needs scikit-learn: pip install "elman[sklearn]"') from error

__all__ = ["RNNClassifier", "RNNRegressor"]

CELLS = {"gru": GRU, "lstm": LSTM, "rnn": RNN}
PREDICTED_AT_ONCE = 256  # sequences


class _RNNEstimator(BaseEstimator):
    """What both estimators share: the arguments, the network and its training."""

    _loss: str
    _metrics: tuple[str, ...] = ()

    model_: Sequential
    n_features_in_: int
    n_iter_: int
    history_: dict[str, list[float]]

    def __init__(
        self,
        cell: str = "gru",
        hidden_size: int = 64,
        *,
        num_layers: int = 1,
        bidirectional: bool = False,
        pooling: str = "last",
        dropout: float = 0.0,
        epochs: int = 50,
        batch_size: int = 32,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        clip_norm: float | None = 1.0,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        patience: int = 10,
        dtype: DTypeLike = "float32",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ):
        self.cell = cell
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bidirectional = bidirectional
        self.pooling = pooling
        self.dropout = dropout
        self.epochs = epochs
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.patience = patience
        self.dtype = dtype
        self.random_state = random_state
        self.verbose = verbose

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    def _train(self, X, y, outputs, partial):
        """A new network for the epochs of `fit`; or with `partial` one epoch more of the network there is.

        X and y are checked. All attributes are set at the end, so that after an error the estimator is as before.
        """
        self._check_arguments(partial)
        callbacks, held_out = [], None
        if partial and hasattr(self, "model_"):
            kept = (self.model_, self._optimizer, self.history_)
            model, optimizer, history = copy.deepcopy(kept)  # together: the optimiser is one over this model
            done, seed = self.n_iter_, self._seed
        else:
            random = check_random_state(self.random_state)
            recurrent_seed, dense_seed, split_seed, seed = random.randint(np.iinfo(np.int32).max, size=4).tolist()
            model = self._network(X[0].shape[1], outputs, recurrent_seed, dense_seed)
            optimizer = AdamW(model, lr=self.learning_rate, weight_decay=self.weight_decay)
            done, history = 0, {}
            if self.early_stopping:
                X, y, held_out = self._split(X, y, split_seed)
                callbacks.append(EarlyStopping(self.patience))
        result = model.fit(
            X,
            y,
            loss=self._loss,
            optimizer=optimizer,
            epochs=done + 1 if partial else self.epochs,
            batch_size=self.batch_size,
            validation_data=held_out,
            metrics=self._metrics,
            callbacks=callbacks,
            lr=self.learning_rate,
            clip_norm=self.clip_norm,
            seed=seed,
            initial_epoch=done,
            verbose=self.verbose,
        )
        for name, values in result.history.items():
            history.setdefault(name, []).extend(values)
        self.model_, self._optimizer, self._seed = model, optimizer, seed
        self.n_features_in_ = X[0].shape[1]
        self.n_iter_ = done + len(result.epoch)
        self.history_ = history

    def _check_arguments(self, partial):
        """Those that what follows would call by another name, or not check before it begins."""
        check.choice("cell", self.cell, tuple(CELLS))
        check.choice("pooling", self.pooling, ("last", "mean", "max"))
        check.boolean("bidirectional", self.bidirectional)
        check.integer("num_layers", self.num_layers, 1)
        check.number("dropout", self.dropout, 0.0, 1.0)
        check.integer("epochs", self.epochs, 1)
        check.number_below("learning_rate", self.learning_rate, 0)
        check.number_below("validation_fraction", self.validation_fraction, 0, 1, open_below=True)
        if check.boolean("early_stopping", self.early_stopping) and partial:
            raise ValueError("early_stopping: expected False for partial_fit, which runs one epoch, got True")

    def _network(self, inputs, outputs, recurrent_seed, dense_seed):
        recurrent = CELLS[self.cell](
            inputs,
            self.hidden_size,
            self.num_layers,
            bidirectional=self.bidirectional,
            dropout=self.dropout if self.num_layers > 1 else 0.0,
            dtype=self.dtype,
            seed=recurrent_seed,
        )
        width = self.hidden_size * (2 if self.bidirectional else 1)
        masks = [Dropout(self.dropout)] if self.dropout else []
        head = Dense(width, outputs, dtype=self.dtype, seed=dense_seed)
        pooling = Pooling(self.pooling, bidirectional=self.bidirectional and self.pooling == "last")
        return Sequential([recurrent, pooling, *masks, head])

    def _split(self, X, y, seed):
        """(X, y, (X, y) held out)"""
        try:
            kept, held_out = train_test_split(
                np.arange(len(X)),
                test_size=self.validation_fraction,
                random_state=seed,
                stratify=y if isinstance(self, ClassifierMixin) else None,
            )
        except ValueError as error:
            share = f"validation_fraction: expected a share that can be held out, got {self.validation_fraction}"
            raise ValueError(f"{share} ({error})") from None
        return _rows(X, kept), y[kept], (_rows(X, held_out), y[held_out])

    def _network_dtype(self, fitted):
        return self.model_.dtype if fitted else check.dtype_of("dtype", self.dtype)

    def _sequences(self, X, fitted):
        """X in the network's dtype: (N, T, I), or a list of N arrays (T_i, I) where the lengths differ.

        fitted : whether it is for the network there is, which knows its dtype and I, or for a new one.
        """
        dtype, features = self._network_dtype(fitted), self.n_features_in_ if fitted else None
        if isinstance(X, (list, tuple)) or (isinstance(X, np.ndarray) and X.dtype == object and X.ndim == 1):
            any_shape = {"ensure_2d": False, "allow_nd": True, "ensure_min_samples": 0, "ensure_min_features": 0}
            items = [check_array(a, dtype=dtype, input_name=f"X[{i}]", **any_shape) for i, a in enumerate(X)]
            if items and all(a.ndim for a in items):
                return self._of_items(items, features)
        X = check_array(X, dtype=dtype, allow_nd=True, input_name="X", estimator=self)
        if X.ndim > 3:
            wanted = "(N, T, I), (N, T) for one feature per step, or a list of N arrays (T_i, I)"
            raise ValueError(f"X: expected shape {wanted}, got {X.shape}")
        X = X[:, :, None] if X.ndim == 2 else X
        self._check_features("X", X.shape[2], features)
        return X

    def _of_items(self, items, features):
        items = [a[:, None] if a.ndim == 1 else a for a in items]
        for i, a in enumerate(items):
            if a.ndim != 2:
                raise ValueError(f"X[{i}]: expected shape (T, I), or (T,) for one feature per step, got {a.shape}")
            self._check_features(f"X[{i}]", a.shape[1], features or items[0].shape[1])
        return np.stack(items) if len({len(a) for a in items}) == 1 else items

    def _check_features(self, name, found, wanted):
        if found < 1 or found != (wanted or found):
            raise ValueError(f"{name}: expected {wanted or 'at least 1'} features per step, got {found}")

    def _check_number(self, X, y):
        if len(y) != len(X):
            raise ValueError(f"y: expected {len(X)} targets, one for each sequence of X, got {len(y)}")

    def _predicted(self, X):
        check_is_fitted(self, "model_")
        return self.model_.predict(self._sequences(X, fitted=True), batch_size=PREDICTED_AT_ONCE)


class RNNClassifier(ClassifierMixin, _RNNEstimator):
    """Classifies sequences by a recurrent network: one label for each sequence.

    X, everywhere: (N, T, I); or a list of N arrays (T_i, I), of any lengths; or (N, T) and lists of (T_i,), read as one
    feature per step. Any numbers, converted to `dtype`; NaN and infinity are refused.

    Args:
        cell: "gru", "lstm" or "rnn" (tanh).
        hidden_size, num_layers, bidirectional: as in `elman.GRU`.
        pooling: "last", "mean" or "max" over the true steps; "last" with bidirectional=True is where each direction
            ends, the reverse one at the first step.
        dropout: between the recurrent layers and before the output, in training.
        epochs, batch_size: how often all sequences are seen, and how many make one step of the optimiser.
        learning_rate, weight_decay: of `elman.AdamW`.
        clip_norm: the largest norm of the gradient; None: no limit.
        early_stopping: hold out `validation_fraction` of the sequences (stratified by class), stop when their loss has
            not improved for `patience` epochs, and keep the weights of the best epoch.
        dtype: float32 or float64, of the network, predict_proba, and the regressor's predictions.
        random_state: an int, a `numpy.random.RandomState` or None; with an int every fit gives the same bits.
        verbose: 1: a line per epoch; 0: silent.

    Attributes after `fit`: `classes_` (C,), sorted; `model_`, the Sequential, whose outputs are logits (C,) (keep it
    with `elman.save`); `n_features_in_`, I; `n_iter_`, the epochs run; `history_`, a dict of lists with one number per
    epoch: "loss", "accuracy", "grad_norm", "lr", with early stopping "val_loss" and "val_accuracy".

    Arguments are checked by `fit` and `partial_fit`, as in scikit-learn; after an error the estimator is as before.

    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import train_test_split
    >>> from elman.sklearn import RNNClassifier
    >>> digits = load_digits()                               # images (1797, 8, 8): 8 steps of 8 pixels
    >>> X_train, X_test, y_train, y_test = train_test_split(
    ...     digits.images / 16, digits.target, stratify=digits.target, random_state=0
    ... )
    >>> classifier = RNNClassifier(epochs=15, learning_rate=5e-3, random_state=0).fit(X_train, y_train)
    >>> bool(classifier.score(X_test, y_test) > 0.95)
    True
    >>> classifier.predict_proba([X_test[0], X_test[1][:5]]).shape  # any lengths
    (2, 10)
    """

    _loss = "softmax_cross_entropy"
    _metrics = ("accuracy",)

    classes_: np.ndarray

    def fit(self, X: Data, y: ArrayLike) -> RNNClassifier:
        """A new network, trained for `epochs`.

        y : (N,) labels of any type that can be sorted, at least two different ones.

        TypeError, ValueError: a wrong argument. FloatingPointError: the loss became NaN or infinite.
        """
        X = self._sequences(X, fitted=False)
        classes, targets = np.unique(self._labels(X, y), return_inverse=True)
        self._check_classes("y", classes)
        self._train(X, targets, len(classes), partial=False)
        self.classes_ = classes
        return self

    def partial_fit(self, X: Data, y: ArrayLike, classes: ArrayLike | None = None) -> RNNClassifier:
        """One epoch over X and y, of a new network or the one there is, with the state of its optimiser.

        `epochs` calls on the same data give the bits of `fit` without early stopping.

        y : (N,) labels out of `classes`.
        classes : all labels, needed at the first call; then the same ones or None.

        The arguments of the network, weight_decay and random_state are those of the first call, the others (such as
        learning_rate) those of now. `model_` is a new object each time.

        TypeError, ValueError: a wrong argument. FloatingPointError: the loss became NaN or infinite.
        """
        first = not hasattr(self, "model_")
        if first and classes is None:
            raise ValueError("classes: expected all labels at the first call of partial_fit, got None")
        given = self.classes_ if classes is None else np.unique(np.asarray(classes))
        known = given if first else self.classes_
        if not np.array_equal(given, known):
            raise ValueError(f"classes: expected those of the first call, {known}, got {given}")
        self._check_classes("classes", known)
        X = self._sequences(X, fitted=not first)
        labels = self._labels(X, y)
        unknown = np.setdiff1d(labels, known)
        if len(unknown):
            raise ValueError(f"y: expected labels of {known}, got {unknown}")
        self._train(X, np.searchsorted(known, labels), len(known), partial=True)
        self.classes_ = known
        return self

    def predict(self, X: Data) -> np.ndarray:
        """(N,) labels: those of the largest probability."""
        best = self._predicted(X).argmax(axis=1)
        return self.classes_[best]

    def predict_proba(self, X: Data) -> np.ndarray:
        """(N, C) probabilities, in the order of `classes_`."""
        return softmax(self._predicted(X))

    def _labels(self, X, y):
        y = column_or_1d(y, warn=True)
        self._check_number(X, y)
        assert_all_finite(y, input_name="y")
        check_classification_targets(y)
        return y

    def _check_classes(self, name, classes):
        if len(classes) < 2:
            raise ValueError(f"{name}: expected at least 2 classes, got {len(classes)} class: {classes}")


class RNNRegressor(MultiOutputMixin, RegressorMixin, _RNNEstimator):
    """Predicts one number, or K numbers, for each sequence by a recurrent network, trained on the mean squared error.

    The arguments, X and the attributes are those of `RNNClassifier`, but for `classes_`, "accuracy" and the
    stratification. The network starts near 0: targets far from variance 1 are learnt slowly, so scale them, for example
    by scikit-learn's `TransformedTargetRegressor`.

    >>> import numpy as np
    >>> from elman.sklearn import RNNRegressor
    >>> X = [np.random.default_rng(n).uniform(-1, 1, (n % 9 + 1, 1)) for n in range(300)]  # 1 to 9 steps
    >>> y = np.array([x.sum() for x in X])
    >>> regressor = RNNRegressor("gru", 16, epochs=30, learning_rate=1e-2, random_state=0).fit(X[:250], y[:250])
    >>> bool(regressor.score(X[250:], y[250:]) > 0.95)
    True
    """

    _loss = "mean_squared_error"

    def fit(self, X: Data, y: ArrayLike) -> RNNRegressor:
        """A new network, trained for `epochs`.

        y : (N,) or (N, K) numbers, converted to `dtype`.

        TypeError, ValueError: a wrong argument. FloatingPointError: the loss became NaN or infinite.
        """
        X = self._sequences(X, fitted=False)
        y = self._numbers(X, y, fitted=False)
        self._train(X, y, y.shape[1] if y.ndim == 2 else 1, partial=False)
        self._target_shape = y.shape[1:]
        return self

    def partial_fit(self, X: Data, y: ArrayLike) -> RNNRegressor:
        """One epoch over X and y, as that of `RNNClassifier`. y : as in the first call, (N,) or (N, K)."""
        fitted = hasattr(self, "model_")
        X = self._sequences(X, fitted)
        y = self._numbers(X, y, fitted)
        if fitted and y.shape[1:] != self._target_shape:
            wanted = (len(X), *self._target_shape)
            raise ValueError(f"y: expected shape {wanted} as in the first call, got {y.shape}")
        self._train(X, y, y.shape[1] if y.ndim == 2 else 1, partial=True)
        self._target_shape = y.shape[1:]
        return self

    def predict(self, X: Data) -> np.ndarray:
        """(N,) or (N, K), as y was in `fit`."""
        y = self._predicted(X)
        return y.reshape(len(y), *self._target_shape)

    def _numbers(self, X, y, fitted):
        if y is None:
            raise ValueError("RNNRegressor requires y to be passed, but the target y is None")
        y = check_array(y, dtype=self._network_dtype(fitted), ensure_2d=False, allow_nd=True, input_name="y")
        if y.ndim not in (1, 2):
            raise ValueError(f"y: expected shape (N,) or (N, K), got {y.shape}")
        self._check_number(X, y)
        return y


def _rows(X, indices):
    return [X[i] for i in indices] if isinstance(X, list) else X[indices]
