"""fit, evaluate, predict: tasks learnt to a stated accuracy, the same bits again, ragged data, callbacks, failures."""

import copy
import functools
import io
import itertools
import re
import sys

import numpy as np
import pytest

import elman
from elman import (
    GRU,
    LSTM,
    TDNN,
    Activation,
    Adam,
    Callback,
    Checkpoint,
    Dense,
    Dropout,
    EarlyStopping,
    Embedding,
    Pooling,
    Sequential,
    _progress,
    losses,
)
from elman.training import _Sequences

QUIET = {"verbose": 0, "seed": 0}
FITTED = {"loss": "softmax_cross_entropy", **QUIET}


def draw(*shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def classifier(seed=0, dropout=0.0, dtype="f4"):
    layers = [LSTM(3, 16, dtype=dtype, seed=seed), Dropout(dropout, seed=0), Pooling("last")]
    return Sequential([*layers, Dense(16, 2, dtype=dtype, seed=seed)])


def same(a, b):
    return all(np.array_equal(w, b.params[name]) for name, w in a.params.items())


def first_decides(N, seed=0):
    """Noise of 5 to 15 steps whose class is the sign of the first entry, 1 or -1: it must be kept to the end."""
    rng = np.random.default_rng(seed)
    x = [rng.standard_normal((n, 3)).astype(np.float32) for n in rng.integers(5, 16, N)]
    for a in x:
        a[0, 0] = np.sign(a[0, 0])
    return x, np.array([int(a[0, 0] > 0) for a in x])


# ------------------------------------------------------------------------------------------------------- it learns


def test_a_ragged_classifier_learns():
    """The untrained model is right half of the time; one that forgets the first step can be no better."""
    x, y = first_decides(800)
    model = classifier()
    options = {"loss": "softmax_cross_entropy", "metrics": ["accuracy"]}
    held_out = first_decides(300, seed=1)
    before = model.evaluate(*held_out, **options)["accuracy"]
    history = model.fit(x, y, optimizer=Adam(model, lr=0.02), epochs=20, validation_data=held_out, **options, **QUIET)
    found = model.evaluate(*held_out, **options)
    assert before < 0.7 and found["accuracy"] > 0.95
    assert found["accuracy"] == history.history["val_accuracy"][-1] and found["loss"] == history.history["val_loss"][-1]
    logits = model.predict(held_out[0])
    assert logits.shape == (300, 2) and (logits.argmax(axis=1) == held_out[1]).mean() == found["accuracy"]
    assert history.history["loss"][-1] < 0.2 < 0.5 < history.history["loss"][0] and history.epoch == list(range(20))


def test_a_tagger_learns_each_step_of_ragged_sequences():
    """Whether the step's integer is the one before: one layer that looks one step back."""
    rng = np.random.default_rng(0)
    x = [rng.integers(0, 3, n) for n in rng.integers(1, 12, 300)]
    y = [np.concatenate([[0], a[1:] == a[:-1]]).astype(int) for a in x]
    model = Sequential([Embedding(3, 8, seed=0), GRU(8, 16, seed=1), Dense(16, 2, seed=2)])
    options = {"loss": "softmax_cross_entropy", "metrics": ["accuracy"]}
    model.fit(x[:250], y[:250], optimizer=Adam(model, lr=0.02), epochs=12, **options, **QUIET)
    assert model.evaluate(x[250:], y[250:], **options)["accuracy"] > 0.98
    tagged = model.predict(x)
    assert [len(a) for a in tagged] == [len(a) for a in x]
    assert np.mean(np.concatenate([a.argmax(axis=1) for a in tagged]) == np.concatenate(y)) > 0.98


def test_truncated_backpropagation_carries_the_state():
    """All 60 targets are told by the first of twelve pieces: what comes later must find it in the state."""
    rng = np.random.default_rng(0)
    x = rng.choice([-1.0, 1.0], (16, 1, 1)).astype(np.float32) * np.ones((1, 60, 1), np.float32)
    x[:, 5:] = 0  # only the first piece says which it is
    y = np.repeat(x[:, :1], 60, axis=1)
    model = Sequential([GRU(1, 8, seed=0), Dense(8, 1, seed=1)])
    history = model.fit(
        x, y, loss="mean_squared_error", optimizer=Adam(model, lr=0.01), epochs=60, batch_size=16, tbptt=5, **QUIET
    )
    assert history.optimizer._steps == 60 * 12
    assert model.evaluate(x, y, loss="mean_squared_error")["loss"] < 0.05
    pieces = model.evaluate(x[:, 5:], y[:, 5:], loss="mean_squared_error")["loss"]  # without what came before
    assert pieces > 0.5


def test_tbptt_takes_targets_without_the_axis_of_one_number():
    x, results = draw(6, 7, 2), []
    for y in (x.sum(axis=2), x.sum(axis=2, keepdims=True)):
        model = Sequential([GRU(2, 4, seed=0), Dense(4, 1, seed=1)])
        results.append((model, model.fit(x, y, loss="huber", tbptt=3, **QUIET).history))
    (model, history), (other, other_history) = results
    assert same(model, other) and history == other_history


def test_without_a_time_axis_and_for_one_number():
    x = draw(200, 3, dtype="f8")
    y = x @ [1.0, -2.0, 0.5] + 3  # (N,), though the model gives (N, 1)
    model = Sequential([Dense(3, 1, dtype="f8", seed=0)])
    model.fit(x, y, loss="mean_squared_error", optimizer=Adam(model, lr=0.05), epochs=120, **QUIET)
    np.testing.assert_allclose(model[0].params["weight"], [[1, -2, 0.5]], atol=1e-3)
    assert model.predict(x).shape == (200, 1)


def test_ctc_learns_labels_that_are_not_aligned():
    rng = np.random.default_rng(0)
    y = [rng.integers(1, 4, n) for n in rng.integers(1, 4, 60)]
    x = [np.repeat(np.eye(4, dtype=np.float32)[np.stack([a, 0 * a], 1).ravel()], 2, axis=0) for a in y]
    model = Sequential([GRU(4, 16, seed=0), Dense(16, 4, seed=1)])
    history = model.fit(x, y, loss="ctc", optimizer=Adam(model, lr=0.02), epochs=25, validation_data=(x, y), **QUIET)
    assert history.history["val_loss"][-1] < 0.1 < 1 < history.history["loss"][0]
    total = np.mean([losses.ctc(model(a)[:, None], [b])[0] for a, b in zip(x, y)])
    assert history.history["val_loss"][-1] == pytest.approx(total, rel=1e-5)


def test_ctc_says_that_a_target_is_too_long_and_which_metrics_it_takes():
    x, y = [draw(4, 3), draw(2, 3)], [[1, 2], [1, 1]]  # two equal ones need a blank between them
    model = Sequential([GRU(3, 4, seed=0), Dense(4, 3, seed=1)])
    with pytest.raises(FloatingPointError, match="the loss is inf .* too short to spell its target; loss=.*zero_inf"):
        model.fit(x, y, loss="ctc", **QUIET)
    model.fit(x, y, loss=functools.partial(losses.ctc, zero_infinity=True), **QUIET)
    with pytest.raises(ValueError, match=r"^metrics: expected functions of .* with ctc, got 'accuracy'"):
        model.fit(x, y, loss="ctc", metrics=["accuracy"], **QUIET)
    assert model.evaluate(x, y, loss="ctc", metrics=[lambda prediction, targets, **_: len(targets)])["<lambda>"] == 2


# -------------------------------------------------------------------------------------------------- the same bits


def train(epochs, model=None, ragged=True, **options):
    x, y = first_decides(90) if ragged else (draw(90, 6, 3), np.arange(90) % 2)
    model = model or classifier(dropout=0.2)
    optimizer = options.pop("optimizer", None) or Adam(model, lr=0.01)
    options = {"loss": "softmax_cross_entropy", "batch_size": 16, "clip_norm": 0.5, **QUIET, **options}
    return model, model.fit(x, y, epochs=epochs, optimizer=optimizer, **options)


@pytest.mark.parametrize("ragged", [True, False])
def test_same_seed_same_bits_whatever_the_threads(ragged):
    with elman.threads(1):
        model, history = train(2, ragged=ragged)
    with elman.threads(4):
        again, history_again = train(2, ragged=ragged)
    assert same(model, again) and history.history == history_again.history
    assert not same(model, train(2, ragged=ragged, seed=1)[0])
    assert not same(train(2, ragged=ragged, seed=None)[0], train(2, ragged=ragged, seed=None)[0])


@pytest.mark.parametrize("ragged", [True, False])
def test_two_fits_are_one(ragged):
    model, history = train(5, ragged=ragged)
    part, first = train(2, ragged=ragged)
    assert not same(model, part)
    _, second = train(5, part, ragged=ragged, optimizer=first.optimizer, initial_epoch=2)
    assert same(model, part) and first.epoch + second.epoch == history.epoch == [0, 1, 2, 3, 4]
    for name, values in history.history.items():
        assert first.history[name] + second.history[name] == values
    lost, _ = train(2, ragged=ragged)
    train(5, lost, ragged=ragged, initial_epoch=2)  # without the optimiser's moments
    assert not same(model, lost)


def test_fit_is_the_loop_that_one_would_write():
    """Not shuffled, no dropout: the same bits as by hand."""
    x, y = draw(50, 6, 3), np.arange(50) % 2
    model, by_hand = classifier(), classifier()
    model.fit(x, y, loss="softmax_cross_entropy", optimizer="adam", epochs=2, batch_size=20, shuffle=False, **QUIET)
    optimizer = Adam(by_hand)
    for _ in range(2):
        for start in (0, 20, 40):
            logits, tape = by_hand.forward(x[start : start + 20].swapaxes(0, 1))
            _, dlogits = losses.softmax_cross_entropy(logits, y[start : start + 20])
            optimizer.step(by_hand.backward(tape, dlogits)[1])
    assert same(model, by_hand)


def test_tbptt_of_ragged_series_is_the_loop_that_one_would_write():
    x = [draw(n, 2, seed=n) for n in (7, 3, 0, 5)]
    y = [a.sum(axis=1, keepdims=True) for a in x]
    model = Sequential([GRU(2, 4, seed=0), Dense(4, 1, seed=1)])
    by_hand = copy.deepcopy(model)
    options = {"optimizer": "adam", "tbptt": 3, "shuffle": False, "batch_size": 4}
    history = model.fit(x, y, loss="mean_squared_error", **options, **QUIET)
    X, Y = np.zeros((7, 4, 2), np.float32), np.zeros((7, 4, 1), np.float32)
    for b in range(4):
        X[: len(x[b]), b], Y[: len(x[b]), b] = x[b], y[b]
    optimizer, state, total = Adam(by_hand), None, 0.0
    for start, n in ((0, [3, 3, 0, 3]), (3, [3, 0, 0, 2]), (6, [1, 0, 0, 0])):
        prediction, tape = by_hand.forward(X[start : start + 3], state, lengths=n)
        loss, d = losses.mean_squared_error(prediction, Y[start : start + 3], lengths=n)
        optimizer.step(by_hand.backward(tape, d)[1])
        state, total = tape.state, total + loss * sum(n)
    assert same(model, by_hand) and history.history["loss"] == [pytest.approx(total / 15)]


# ------------------------------------------------------------------------------------------------------- the data


def test_batches_hold_every_sequence_once_and_like_lengths_together():
    lengths = np.random.default_rng(0).integers(1, 500, 1000)
    data = _Sequences(classifier(), [np.zeros((n, 3), np.float32) for n in lengths])
    batches = data.shuffled(32, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(1000)) and len(batches) == 32
    padding = sum(lengths[b].max() * len(b) for b in batches) / lengths.sum()
    at_random = np.random.default_rng(1).permutation(1000)
    random_padding = (
        sum(lengths[b].max() * len(b) for b in np.split(at_random[:992], 31)) / lengths[at_random[:992]].sum()
    )
    assert padding < 1.1 and random_padding > 1.7
    assert [len(b) for b in data.in_order(300)] == [300, 300, 300, 100]
    others = data.shuffled(32, np.random.default_rng(2))
    assert not all(np.array_equal(a, b) for a, b in zip(batches, others))


def test_each_epoch_has_an_order_of_its_own():
    seen = []

    def loss(prediction, target):
        seen.extend(target[:, 0])
        return 0.0, np.zeros_like(prediction)

    model = Sequential([Dense(3, 1, seed=0)])
    model.fit(draw(50, 3), np.arange(50), loss=loss, epochs=2, **QUIET)
    assert sorted(seen[:50]) == sorted(seen[50:]) == list(range(50)) and seen[:50] != seen[50:]
    seen.clear()
    model.fit(draw(50, 3), np.arange(50), loss=loss, shuffle=False, **QUIET)
    assert seen == list(range(50))


def test_predictions_come_in_the_callers_order():
    x, _ = first_decides(50)
    x.insert(7, np.zeros((0, 3), np.float32))
    pooled, stepwise = classifier(), Sequential([TDNN(3, 4, 3, seed=0), GRU(4, 5, seed=0), Dense(5, 2, seed=1)])
    for a, alone in zip(pooled.predict(x, batch_size=8), x, strict=True):
        np.testing.assert_allclose(a, pooled(alone), rtol=0, atol=1e-6)
    for a, alone in zip(stepwise.predict(x, batch_size=8), x, strict=True):
        np.testing.assert_allclose(a, stepwise(alone), rtol=0, atol=1e-6)
    array = draw(9, 4, 3)
    np.testing.assert_allclose(
        stepwise.predict(array, batch_size=2), stepwise(array.swapaxes(0, 1)).swapaxes(0, 1), atol=1e-6
    )
    ids = [[0, 1, 2], [2]]
    model = Sequential([Embedding(3, 2, seed=0), GRU(2, 2, seed=0)])
    assert [a.shape for a in model.predict(ids)] == [(3, 2), (1, 2)]
    assert model.predict(np.array([[0, 1], [1, 1]])).shape == (2, 2, 2)


def test_losses_and_metrics_over_batches_are_those_over_all():
    x, y = first_decides(70)
    model = classifier()
    options = {"loss": "softmax_cross_entropy", "metrics": ["accuracy", "perplexity", share_of_ones]}
    found, whole = model.evaluate(x, y, batch_size=8, **options), model.evaluate(x, y, batch_size=70, **options)
    assert list(found) == ["loss", "accuracy", "perplexity", "share_of_ones"]
    assert found == pytest.approx(whole, rel=1e-6) and found["share_of_ones"] == pytest.approx(y.mean())
    assert found["perplexity"] == pytest.approx(np.exp(found["loss"]), rel=1e-6)
    tagger = Sequential([GRU(3, 2, seed=0)])
    targets = [np.ones((len(a), 2), np.float32) for a in x]
    rmse = tagger.evaluate(x, targets, loss="mean_squared_error", metrics=["rmse", "mae"], batch_size=16)
    flat = np.concatenate(tagger.predict(x)) - 1
    assert rmse == pytest.approx(
        {"loss": np.mean(flat**2), "rmse": np.mean(flat**2) ** 0.5, "mae": np.abs(flat).mean()}, rel=1e-5
    )


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_evaluate_with_class_weights_is_that_of_all_at_once(batch_size):
    """Not a mean of the batches' means, which divide by their own weights, or by 0."""
    x, y = first_decides(60)
    model, loss = classifier(), functools.partial(losses.softmax_cross_entropy, class_weights=[0.0, 5.0])
    expected, _ = loss(model.predict(x), y)
    assert (y == 0).any() and model.evaluate(x, y, loss=loss, batch_size=batch_size)["loss"] == pytest.approx(expected)
    assert np.isnan(model.evaluate(x, 0 * y, loss=loss, batch_size=batch_size)["loss"])  # as in PyTorch


def test_a_batch_without_weight_is_named():
    x, y = first_decides(20)
    loss = functools.partial(losses.softmax_cross_entropy, class_weights=[0.0, 5.0])
    with pytest.raises(FloatingPointError, match="try: a larger batch_size, since the class weights of all targets"):
        classifier().fit(x, 0 * y, loss=loss, verbose=0)


def test_evaluate_takes_metrics_alone():
    x, y = first_decides(70)
    model = classifier()
    found = model.evaluate(x, y, loss="softmax_cross_entropy", metrics=["accuracy", share_of_ones])
    del found["loss"]
    assert model.evaluate(x, y, metrics=["accuracy", share_of_ones]) == found
    tagger = Sequential([GRU(3, 2, seed=0)])
    assert list(tagger.evaluate(x, [np.ones((len(a), 2), np.float32) for a in x], metrics=["mae"])) == ["mae"]
    for wrong in ({}, {"metrics": []}, {"metrics": ()}):
        with pytest.raises(TypeError, match="loss: expected a loss or metrics, as in fit .*got neither"):
            model.evaluate(x, y, **wrong)
    with pytest.raises(TypeError, match="metrics: expected a list"):
        model.evaluate(x, y, metrics="accuracy")


def test_probabilities_in_every_form_of_predictions():
    x, _ = first_decides(20)
    pooled, stepwise = classifier(), Sequential([GRU(3, 4, seed=0), Dense(4, 3, seed=1)])
    p = pooled.predict_proba(x, batch_size=7)
    assert p.shape == (20, 2) and p.dtype == np.float32
    np.testing.assert_array_equal(p, elman.softmax(pooled.predict(x, batch_size=7)))
    for a, logits in zip(stepwise.predict_proba(x), stepwise.predict(x), strict=True):
        assert a.shape == logits.shape
        np.testing.assert_array_equal(a, elman.softmax(logits))
    array = stepwise.predict_proba(draw(4, 5, 3))
    assert array.shape == (4, 5, 3)
    np.testing.assert_allclose(array.sum(axis=-1), 1, atol=1e-6)
    with pytest.raises(ValueError, match="expected logits of at least 2 classes, got a model with one output"):
        Sequential([GRU(3, 1, seed=0)]).predict_proba(x)


def share_of_ones(prediction, target):
    return float(target.mean())


# --------------------------------------------------------------------------------------- callbacks and schedules


class Tell(Callback):
    def __init__(self):
        self.told = []

    def on_train_begin(self, model, initial_epoch, names):
        self.told.append((initial_epoch, names))

    def on_epoch_end(self, model, epoch, logs):
        self.told.append((epoch, logs, dict(model.params)))

    def on_train_end(self, model):
        self.told.append("end")


class Scripted(Callback):
    """Puts values of our choice into another callback."""

    def __init__(self, callback, values):
        self.callback, self.values = callback, values
        self.on_train_begin, self.on_train_end = callback.on_train_begin, callback.on_train_end

    def on_epoch_end(self, model, epoch, logs):
        return self.callback.on_epoch_end(model, epoch, {**logs, "val_loss": self.values[epoch]})


def test_callbacks_see_every_epoch():
    tell = Tell()
    _, history = train(3, callbacks=[tell], metrics=["accuracy"], validation_data=first_decides(9, 3))
    (begin, names), *epochs, end = tell.told
    assert begin == 0 and end == "end" and [epoch for epoch, _, _ in epochs] == [0, 1, 2]
    assert set(names) == set(epochs[0][1]) == set(history.history)
    assert set(names) == {"loss", "accuracy", "grad_norm", "lr", "val_loss", "val_accuracy"}
    assert [logs["loss"] for _, logs, _ in epochs] == history.history["loss"]


@pytest.mark.parametrize("restore_best", [True, False])
def test_early_stopping(restore_best):
    stopping, tell = EarlyStopping(2, restore_best=restore_best), Tell()
    values = [5.0, 3.0, np.nan, 4.0, 1.0]
    held_out = first_decides(5)
    model, history = train(5, callbacks=[Scripted(stopping, values), tell], validation_data=held_out)
    assert history.epoch == [0, 1, 2, 3] and (stopping.best, stopping.best_epoch) == (3.0, 1)
    weights = tell.told[2 if restore_best else 4][2]
    assert all(np.array_equal(w, weights[name]) for name, w in model.params.items())
    again = EarlyStopping(1, monitor="loss", mode="max", min_delta=10)
    assert len(train(5, callbacks=[again])[1].epoch) == 2 and again.best_epoch == 0
    with pytest.raises(ValueError, match="monitor: expected one of loss, grad_norm, lr, got 'val_loss'"):
        train(1, callbacks=[EarlyStopping(1, monitor="val_loss")])


def test_early_stopping_goes_on_after_a_resume():
    stopping = EarlyStopping(3, restore_best=False)
    script, held_out = Scripted(stopping, [1.0, 2.0, 2.0, 2.0, 2.0]), first_decides(5)
    model, first = train(2, callbacks=[script], validation_data=held_out)
    options = {"optimizer": first.optimizer, "callbacks": [script], "validation_data": held_out}
    _, second = train(5, model, initial_epoch=2, **options)
    assert first.epoch == [0, 1] and second.epoch == [2, 3]
    _, third = train(1, model, **options)
    assert third.epoch == [0] and stopping.best_epoch == 0


def test_checkpoint_keeps_the_best(tmp_path):
    tell, path = Tell(), tmp_path / "best.safetensors"
    checkpoint = Scripted(Checkpoint(path), [5.0, 3.0, 4.0])
    train(3, callbacks=[checkpoint, tell], validation_data=first_decides(5))
    best = elman.load(path)
    assert all(np.array_equal(w, tell.told[2][2][name]) for name, w in best.params.items())


@pytest.mark.parametrize("ragged", [True, False])
def test_training_resumes_from_a_checkpoint_with_the_same_bits(tmp_path, ragged):
    path = tmp_path / "last.safetensors"
    model, history = train(5, ragged=ragged)
    interrupted = classifier(dropout=0.2)
    adam = Adam(interrupted, lr=0.01)
    last = Scripted(Checkpoint(path, save_best_only=False, optimizer=adam), [1.0, 2.0, 3.0])  # no epoch is the best
    train(3, interrupted, ragged=ragged, optimizer=adam, callbacks=[last])
    with pytest.raises(KeyboardInterrupt):  # in the fourth epoch
        train(5, interrupted, ragged=ragged, optimizer=adam, initial_epoch=3, loss=interrupting())
    resumed, optimizer, epoch = elman.load_checkpoint(path)
    assert epoch == 3 and not same(resumed, interrupted)
    _, rest = train(5, resumed, ragged=ragged, optimizer=optimizer, initial_epoch=epoch)
    assert same(resumed, model) and rest.epoch == [3, 4]
    assert all(values == history.history[name][3:] for name, values in rest.history.items())


def interrupting():
    """A loss that is interrupted in the third step."""
    steps = iter((True, True))

    def loss(prediction, target):
        if next(steps, False):
            return losses.softmax_cross_entropy(prediction, target)
        raise KeyboardInterrupt

    return loss


def test_early_stopping_and_a_plateau_resume_with_the_same_bits(tmp_path):
    """The rate falls and the training stops for what was seen before the interruption, and the best weights are from
    before it. EarlyStopping stands behind the checkpoint, which must keep what it has seen of the same epoch."""
    path, held_out = tmp_path / "last.safetensors", first_decides(40, seed=1)

    def memories():
        return elman.schedules.ReduceLROnPlateau(0.2, factor=0.5, patience=1), EarlyStopping(5)

    def run(model, adam, plateau, stopping, epochs=40, first=0, **options):
        last = Checkpoint(path, save_best_only=False, optimizer=adam)
        options |= {"optimizer": adam, "validation_data": held_out, "lr": plateau, "callbacks": [last, stopping]}
        return train(epochs, model, initial_epoch=first, **options)[1]

    model = classifier(dropout=0.2)
    whole, (plateau, stopping) = Adam(model), memories()
    history = run(model, whole, plateau, stopping)
    cut = stopping.best_epoch + 1
    interrupted = classifier(dropout=0.2)
    run(interrupted, Adam(interrupted), *memories(), epochs=cut)
    raw = path.read_bytes()

    plateau_again, stopping_again = memories()
    again, adam, epoch = elman.load_checkpoint(path, lr=plateau_again, callbacks=[stopping_again])
    rest = run(again, adam, plateau_again, stopping_again, first=epoch)
    assert epoch == cut and same(again, model) and plateau_again.state_dict() == plateau.state_dict()
    assert all(values == history.history[name][cut:] for name, values in rest.history.items())
    assert history.epoch[-1] == rest.epoch[-1] == stopping.best_epoch + 5 == stopping_again.best_epoch + 5
    assert history.history["lr"][0] > history.history["lr"][cut] > history.history["lr"][-1]

    for forgotten in ("lr", "callbacks"):  # without either it is another training
        path.write_bytes(raw)
        plateau_again, stopping_again = memories()
        given = {"lr": plateau_again, "callbacks": [stopping_again]}
        del given[forgotten]
        again, adam, epoch = elman.load_checkpoint(path, **given)
        other = run(again, adam, plateau_again, stopping_again, first=epoch)
        assert (other.history["lr"], other.epoch) != (rest.history["lr"], rest.epoch)


def test_a_checkpoint_of_the_best_resumes(tmp_path):
    """Its best from before the interruption is not replaced by what is worse."""
    path, names = tmp_path / "best.safetensors", ("loss",)
    model = classifier()
    adam = Adam(model)
    best = Checkpoint(path, optimizer=adam)
    best._keeps(None, [best])
    best.on_train_begin(model, 0, names)
    best.on_epoch_end(model, 0, {"loss": 2.0})
    raw, resumed = path.read_bytes(), Checkpoint(path)
    model, resumed.optimizer, epoch = elman.load_checkpoint(path, callbacks=[resumed])
    resumed.on_train_begin(model, epoch, names)
    resumed.on_epoch_end(model, epoch, {"loss": 3.0})
    assert path.read_bytes() == raw and resumed.best == 2.0
    resumed.on_epoch_end(model, epoch + 1, {"loss": 1.0})
    assert path.read_bytes() != raw


def test_a_checkpoint_keeps_what_those_behind_it_have_seen(tmp_path):
    """Two checkpoints, the one of every epoch in front: its file must know that the other one's last epoch was the
    best, or the training that is resumed replaces the best by what is worse."""
    last_path, best_path = tmp_path / "last.safetensors", tmp_path / "best.safetensors"
    model = classifier()
    adam = Adam(model)
    last, best = Checkpoint(last_path, save_best_only=False, optimizer=adam), Checkpoint(best_path)
    for _ in range(2):  # the second time with the same callbacks, and with the same numbers of epochs
        train(1, model, optimizer=adam, callbacks=[last, best])
        raw, resumed = best_path.read_bytes(), Checkpoint(best_path)
        elman.load_checkpoint(last_path, callbacks=[Checkpoint(last_path), resumed])
        assert (resumed.best, resumed.best_epoch) == (best.best, best.best_epoch) and best.best_epoch == 0
        assert all(np.array_equal(w, model.params[name]) for name, w in elman.load(best_path).params.items())
    resumed.on_train_begin(model, 1, ("loss",))
    resumed.on_epoch_end(model, 1, {"loss": resumed.best + 0.1})
    assert best_path.read_bytes() == raw


def test_an_optimizer_over_more_than_the_model():
    model = classifier()
    for layers, words in (([model, Dense(2, 2)], "over other layers"), ([model], "over a list of it")):
        with pytest.raises(ValueError, match=f"optimizer: expected one made over this model.*{words}"):
            train(1, model, optimizer=Adam(layers))


def test_best_weights_of_another_model():
    stopping = EarlyStopping(2)
    train(2, callbacks=[stopping])
    shallow = Sequential([Pooling("mean"), Dense(3, 2)])
    wide = Sequential([LSTM(9, 16), Dropout(0.0), Pooling("last"), Dense(16, 2)])
    for other, words in ((shallow, "no 1.weight"), (wide, r"0.weight_ih_l0: expected shape \(64, 9\)")):
        with pytest.raises(ValueError, match=f"EarlyStopping: weights: (expected.* )?{words}"):
            stopping.on_train_begin(other, 1, ("loss",))


def test_states_that_are_none():
    stopping = EarlyStopping(2)
    train(2, callbacks=[stopping])
    state = stopping.state_dict()
    for wrong, words in (
        ([1], "state: expected a mapping"),
        ({**state, "best_epoch": -2}, "state: best_epoch: expected at least -1"),
        ({**state, "best": "low"}, "state: best: expected a number"),
        ({**state, "weights.0.weight_ih_l0": np.full((64, 3), np.nan, "f4")}, "expected finite values"),
        ({**state, "more": 1}, "unexpected 'more'"),
    ):
        other = EarlyStopping(2)
        with pytest.raises((TypeError, ValueError), match=words):
            other.load_state_dict(wrong)
        assert other.state_dict().keys() == {"best", "best_epoch"} and other.best_epoch == -1
    with pytest.raises(ValueError, match="unexpected 'best'"):
        Callback().load_state_dict({"best": 1})


def test_a_checkpoint_of_the_best_and_of_the_last(tmp_path):
    path, tell = tmp_path / "model.safetensors", Tell()
    for options, weights in (({}, 2), ({"save_best_only": False}, 3)):
        checkpoint = Scripted(Checkpoint(path, **options), [5.0, 3.0, 4.0])
        train(3, callbacks=[checkpoint, tell], validation_data=first_decides(5))
        kept = elman.load(path).params
        assert all(np.array_equal(w, kept[name]) for name, w in tell.told[weights][2].items())
    with pytest.raises(ValueError, match="optimizer: expected one made over this model"):
        train(1, callbacks=[Checkpoint(path, optimizer=Adam(classifier()))])
    with pytest.raises(TypeError, match="optimizer: expected one of SGD, RMSprop, Adam, AdamW, got str"):
        train(1, callbacks=[Checkpoint(path, optimizer="adam")])
    with pytest.raises(TypeError, match="save_best_only: expected True or False"):
        Checkpoint(path, save_best_only=1)


@pytest.mark.parametrize("optimizer", ["adam", None])
def test_a_checkpoint_of_an_optimizer_that_fit_does_not_step(tmp_path, optimizer):
    """It would keep an optimiser that has learnt nothing; training would go on from there without an error."""
    model, path = classifier(), tmp_path / "last.safetensors"
    checkpoint = Checkpoint(path, save_best_only=False, optimizer=Adam(model))
    with pytest.raises(ValueError, match=r"Checkpoint: optimizer: expected the one that fit steps.*optimizer=adam"):
        model.fit(*first_decides(9), **{**FITTED, "optimizer": optimizer or Adam(model)}, callbacks=[checkpoint])
    assert same(model, classifier()) and not path.exists()
    model.fit(*first_decides(9), **{**FITTED, "optimizer": checkpoint.optimizer}, callbacks=[checkpoint])
    assert elman.load_checkpoint(path)[1].steps == 1


def test_a_checkpoint_in_a_folder_that_does_not_exist(tmp_path, monkeypatch):
    model = classifier()
    with pytest.raises(ValueError, match=r"path: expected a file in a folder that exists, got '.*absent.*best'"):
        model.fit(*first_decides(9), **FITTED, callbacks=[Checkpoint(tmp_path / "absent" / "best")])
    assert same(model, classifier())
    monkeypatch.chdir(tmp_path)
    model.fit(*first_decides(9), **FITTED, callbacks=[Checkpoint("best")])
    assert same(elman.load(tmp_path / "best"), model)


@pytest.mark.parametrize("path", ["", ".", "folder"])
def test_a_checkpoint_in_place_of_a_folder(tmp_path, monkeypatch, path):
    """It could not be written after the first epoch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    model = classifier()
    with pytest.raises(ValueError, match="^path: expected a file in a folder that exists, got "):
        model.fit(*first_decides(9), **FITTED, callbacks=[Checkpoint(path)])
    assert same(model, classifier())


def test_a_checkpoint_without_a_path():
    with pytest.raises(TypeError, match="^path: expected a str or os.PathLike, got NoneType$"):
        Checkpoint(None)


def test_learning_rates():
    _, history = train(3, lr=lambda epoch: 0.1 / 2**epoch)
    assert history.history["lr"] == [0.1, 0.05, 0.025] and history.optimizer.lr == 0.025
    assert train(1, lr=0.5)[1].history["lr"] == [0.5] and train(1)[1].history["lr"] == [0.01]
    still, _ = train(2, lr=0)
    assert same(still, classifier())


class Watched(Adam):
    """Tells the learning rate of each step."""

    def step(self, grads):
        self.rates = [*getattr(self, "rates", ()), self.lr]
        super().step(grads)


def test_a_schedule_by_step():
    """90 sequences in batches of 16 are six steps."""
    schedule = elman.schedules.LinearWarmup(elman.schedules.StepLR(0.1, 4), total_iters=5, start_factor=0)
    model = classifier(dropout=0.2)
    optimizer = Watched(model)
    _, history = train(2, model, optimizer=optimizer, lr=schedule, lr_interval="step")
    assert optimizer.rates == [schedule(i) for i in range(12)]
    assert optimizer.rates == pytest.approx([0, 0.02, 0.04, 0.06, 0.08, *[0.1] * 4, *[0.01] * 3])
    assert history.history["lr"] == [optimizer.rates[5], optimizer.rates[11]] and optimizer.steps == 12
    by_epoch = Watched(model)
    train(2, model, optimizer=by_epoch, lr=schedule, lr_interval="epoch")
    assert by_epoch.rates == [0] * 6 + [pytest.approx(0.02)] * 6
    constant = Watched(model)
    train(1, model, optimizer=constant, lr=0.5, lr_interval="step")
    assert constant.rates == [0.5] * 6


def test_a_schedule_by_step_goes_on_after_a_resume(tmp_path):
    options = {"lr": elman.schedules.CosineAnnealingLR(0.05, 30), "lr_interval": "step"}
    model, history = train(4, **options)
    part = classifier(dropout=0.2)
    adam = Adam(part)
    path = tmp_path / "last.safetensors"
    train(2, part, optimizer=adam, callbacks=[Checkpoint(path, save_best_only=False, optimizer=adam)], **options)
    train(4, part, optimizer=adam, initial_epoch=2, **options)
    loaded, adam, epoch = elman.load_checkpoint(path)
    _, rest = train(4, loaded, optimizer=adam, initial_epoch=epoch, **options)
    assert same(part, model) and same(loaded, model) and rest.history["lr"] == history.history["lr"][2:]


def test_a_schedule_by_step_counts_the_pieces_of_tbptt():
    model = Sequential([GRU(3, 2, seed=0)])
    optimizer = Watched(model)
    y = np.zeros((4, 7, 2), np.float32)
    options = {"tbptt": 3, "lr": lambda step: 0.1 * step, "lr_interval": "step", "batch_size": 2}
    model.fit(draw(4, 7, 3), y, loss="mean_squared_error", optimizer=optimizer, **options, **QUIET)
    assert optimizer.rates == [0.1 * i for i in range(6)]


def test_the_learning_rate_falls_on_a_plateau():
    plateau = elman.schedules.ReduceLROnPlateau(0.5, patience=0)
    _, history = train(3, lr=plateau, validation_data=first_decides(9), loss=lambda p, t: (1.0, np.zeros_like(p)))
    assert history.history["lr"] == [0.5, 0.5, 0.05] and history.history["val_loss"] == [1, 1, 1]


def test_clipping():
    free, norm, value = (train(1, lr=0.1, **clip)[1] for clip in ({"clip_norm": None}, {}, {"clip_value": 1e-9}))
    assert free.history["grad_norm"] != norm.history["grad_norm"] != value.history["grad_norm"]
    model, optimizer = classifier(), Spy()
    model.fit(*first_decides(64), loss="softmax_cross_entropy", optimizer=optimizer, clip_norm=0.01, **QUIET)
    assert all(n == pytest.approx(0.01, rel=1e-4) for n in optimizer.norms) and len(optimizer.norms) == 2
    optimizer = Spy()
    model.fit(*first_decides(64), loss="softmax_cross_entropy", optimizer=optimizer, clip_value=0.001, **QUIET)
    assert all(0 < n < 0.001 * 1500**0.5 for n in optimizer.norms)


class Spy:
    lr = 0.0

    def __init__(self):
        self.norms = []

    def step(self, grads):
        self.norms.append(np.sqrt(sum((g.astype("f8") ** 2).sum() for g in grads.values())))


# ------------------------------------------------------------------------------------- what is shown, and failures


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("tqdm", [True, False])
def test_progress(capsys, monkeypatch, tqdm, terminal):
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    train(2, verbose=1, validation_data=first_decides(5))
    out, err = capsys.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/2", "epoch 2/2"] and "val_loss" in out
    assert ("epoch 1/2" in err) == ("epoch 2/2" in err) == terminal
    if terminal:
        assert re.search(r"epoch 2/2.* 0/\d+" if tqdm else r"epoch 2/2 \[ {30}\] 0/\d+", err)
        assert err.endswith("\r") and not err.split("\r")[-2].strip()  # and is gone
    train(2, verbose=False)
    assert capsys.readouterr() == ("", "")


class OnlyWrites:
    def write(self, text):
        raise AssertionError("a bar")


@pytest.mark.parametrize("tqdm", [True, False])
def test_no_bar_where_there_is_no_stderr(monkeypatch, tqdm):
    """As in a program without a console, and where a program has put something of its own in its place."""
    if tqdm:
        pytest.importorskip("tqdm")
    else:
        monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    closed = io.StringIO()
    closed.close()
    for stderr in (None, OnlyWrites(), closed):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stderr", stderr)
            found = list(_progress.with_bar("abcd", "epoch 1/1", True))
        assert found == list("abcd")


def test_a_plain_bar_fills(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(_progress, "PAUSE", -1)
    assert list(_progress.with_bar("abcd", "epoch 1/1", True)) == list("abcd")
    shown = [line.count("=") for line in capsys.readouterr().err.split("\r")]
    assert shown == [0, 0, 7, 15, 22, 0, 0]


def test_history_plots():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    history = train(3, metrics=["accuracy"], validation_data=first_decides(5))[1]
    figure = history.plot()
    assert [ax.get_ylabel() for ax in figure.axes] == ["loss", "accuracy"]
    lines = figure.axes[0].get_lines()
    assert [list(line.get_ydata()) for line in lines] == [history.history["loss"], history.history["val_loss"]]
    assert "3 epochs, loss=" in repr(history)


def test_plots_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match="matplotlib"):
        train(1)[1].plot()


def test_nan_is_told_before_the_weights_change():
    x, y = draw(40, 6, 3), np.arange(40) % 2
    x[33, 2, 1] = np.nan
    model = classifier()
    with pytest.raises(
        FloatingPointError, match=r"^epoch 0, step 3: the loss is nan .* gradient nan; .*infinity.* in x"
    ):
        model.fit(x, y, loss="softmax_cross_entropy", batch_size=10, shuffle=False, **QUIET)
    clean = classifier()
    clean.fit(x[:30], y[:30], loss="softmax_cross_entropy", batch_size=10, shuffle=False, **QUIET)
    assert same(model, clean) and not same(model, classifier())


def test_nan_never_reaches_an_optimizer():
    x, y = draw(40, 6, 3), np.arange(40) % 2
    x[33] = np.nan
    spy = Spy()
    with pytest.raises(FloatingPointError, match="epoch 0, step 3"):
        classifier().fit(x, y, loss="softmax_cross_entropy", optimizer=spy, batch_size=10, shuffle=False, **QUIET)
    assert len(spy.norms) == 3 and np.isfinite(spy.norms).all()


@pytest.mark.parametrize("target", [np.nan, 1e30])
def test_a_loss_that_explodes_is_told_before_the_weights_change(target):
    model = Sequential([GRU(1, 4, seed=0), Dense(4, 1, seed=1)])
    before = copy.deepcopy(model)
    y = np.zeros((2, 9, 1), np.float32)
    y[:, 6:] = target
    with pytest.raises(
        FloatingPointError, match=r"epoch 0, step 0, from time step 6: the loss is .*lr than 0.*clip_norm"
    ):
        model.fit(draw(2, 9, 1), y, loss="mean_squared_error", tbptt=3, lr=0.0, **QUIET)
    assert same(model, before)


def test_a_schedule_by_step_needs_an_optimizer_that_counts():
    options = {"optimizer": Spy(), "lr": elman.schedules.StepLR(0.1, 4), "loss": "softmax_cross_entropy"}
    with pytest.raises(TypeError, match="lr_interval: 'step' needs an optimizer with the attribute steps"):
        classifier().fit(*first_decides(9), lr_interval="step", **options, **QUIET)


def good(**changes):
    options = {"x": draw(8, 6, 3), "y": np.arange(8) % 2, "loss": "softmax_cross_entropy", "verbose": 0}
    return options | changes


@pytest.mark.parametrize(
    "changes, error, words",
    [
        ({"loss": "mse"}, ValueError, "loss: expected one of .*'mean_squared_error'"),
        ({"optimizer": "adamm"}, ValueError, "optimizer: expected one of 'sgd', 'adam', 'adamw', 'rmsprop', got"),
        ({"optimizer": 3}, TypeError, "optimizer"),
        ({"optimizer": Adam(classifier())}, ValueError, "optimizer: expected one made over this model"),
        ({"metrics": "accuracy"}, TypeError, "metrics: expected a list"),
        ({"metrics": ["f1"]}, ValueError, r"metrics\[0\]: expected one of 'accuracy'"),
        ({"metrics": ["mae", "mae"]}, ValueError, r"metrics\[1\]: expected different names"),
        ({"callbacks": [print]}, TypeError, "callbacks"),
        ({"epochs": 1.5}, TypeError, "epochs"),
        ({"initial_epoch": -1}, ValueError, "initial_epoch"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"validation_data": draw(8, 6, 3)}, TypeError, "validation_data: expected"),
        ({"validation_data": (draw(8, 6, 3), [1])}, ValueError, "validation_data: y: expected 8 targets"),
        ({"clip_norm": 0}, ValueError, "clip_norm"),
        ({"clip_value": "1"}, TypeError, "clip_value"),
        ({"lr": -1.0}, ValueError, "lr"),
        ({"lr_interval": "batch"}, ValueError, "lr_interval: expected one of 'epoch', 'step', got 'batch'"),
        (
            {"lr_interval": "step", "lr": elman.schedules.ReduceLROnPlateau(0.1)},
            ValueError,
            "lr_interval: expected 'epoch' with a ReduceLROnPlateau",
        ),
        (
            {"lr_interval": "step", "lr": lambda step: -1.0},
            ValueError,
            "lr: expected at least 0",
        ),
        ({"tbptt": 0}, ValueError, "tbptt"),
        ({"tbptt": 2}, ValueError, r"tbptt: layers\[2\], Pooling"),
        ({"shuffle": 1}, TypeError, "shuffle"),
        ({"seed": -1}, ValueError, "seed"),
        ({"verbose": 2}, ValueError, "verbose"),
        ({"x": draw(8, 6, 3, dtype="f8")}, TypeError, "x: expected dtype float32, got float64"),
        ({"x": draw(8, 6, 3, 1)}, ValueError, r"x: expected shape \(N, T, I\)"),
        ({"x": draw(8, 6, 4)}, ValueError, r"layers\[0\], LSTM: x: expected shape"),
        ({"x": [draw(2, 3)] * 7 + [draw(2, 4)]}, ValueError, "x: expected sequences of the same features"),
        ({"x": [draw(2, 3)] * 7 + [draw(2, 3, dtype="f8")]}, TypeError, r"x\[7\]: expected dtype float32"),
        ({"x": [draw(3)] * 8}, ValueError, r"x\[0\]: expected shape \(T, I\)"),
        ({"y": np.zeros(7, int)}, ValueError, "y: expected 8 targets"),
        ({"y": None}, ValueError, "y: expected 8 targets"),
        ({"y": [[1]] * 7 + [[1, 2]]}, ValueError, "y: expected"),
        ({"y": np.arange(8)}, ValueError, "targets: expected 0 to 1"),
    ],
)
def test_errors_come_before_the_weights_change(changes, error, words):
    model = classifier()
    with pytest.raises(error, match=words):
        model.fit(**good(**changes))
    assert same(model, classifier())


def test_targets_of_each_step_are_checked():
    model, x = Sequential([GRU(3, 2, seed=0)]), [draw(4, 3), draw(2, 3)]
    for y, words in (([[0] * 4, [0]], r"y\[1\]: expected 2 steps"), ([0, 1], r"y\[0\]: expected 4 steps")):
        with pytest.raises(ValueError, match=words):
            model.fit(x, y, loss="softmax_cross_entropy", verbose=0)
    with pytest.raises(ValueError, match=r"y: expected shape \(2, 4\)"):
        model.fit(draw(2, 4, 3), np.zeros((2, 3), int), loss="softmax_cross_entropy", verbose=0)


class Half:
    """A layer of one's own, without weights, for numbers and integers."""

    def __call__(self, x):
        return self.forward(x)[0]

    def forward(self, x):
        return (x / 2).astype(np.float32), None

    def backward(self, tape, dy):
        return dy / 2, {}


def timed(*front):
    return Sequential([*front, GRU(2, 4, seed=0), Dense(4, 2, seed=1)])


ONE = draw(100, 2)


@pytest.mark.parametrize(
    "model, x, words",
    [
        (timed(), ONE, r"\(N, T, I\), got \(100, 2\); one sequence alone is x\[None\]"),
        (timed(), np.ones((2, 2), int), r"\(N, T, I\), got \(2, 2\); one"),
        (timed(), np.ones(4, int), r"\(N, T, I\), got \(4,\)$"),
        (timed(Dropout(0.5)), ONE, r"\(N, T, I\), got \(100, 2\); one"),
        (timed(Dense(2, 2)), ONE, r"\(N, T, I\), got \(100, 2\); one"),
        (timed(Half()), ONE, r"\(N, T, I\), got \(100, 2\); one"),
        (timed(Embedding(3, 2)), np.ones(100, int), r"\(N, T\), got \(100,\); one sequence alone is x\[None\]"),
        (Sequential([Dense(2, 4), Pooling("max"), Dense(4, 2)]), ONE, r"\(N, T, I\), got \(100, 2\); one"),
        (Sequential([TDNN(2, 2, 3)]), ONE, r"\(N, T, I\), got \(100, 2\); one"),
    ],
)
def test_one_sequence_alone_is_no_batch(model, x, words):
    """Its steps would be taken for sequences, and each be answered."""
    before, y = copy.deepcopy(model), np.arange(len(x)) % 2
    with pytest.raises(ValueError, match=f"^x: expected {words}"):
        model.fit(x, y, loss="softmax_cross_entropy", **QUIET)
    with pytest.raises(ValueError, match=f"^x: expected {words}"):
        model.evaluate(x, y, loss="softmax_cross_entropy")
    for method in (model.predict, model.predict_proba):
        with pytest.raises(ValueError, match=f"^x: expected {words}"):
            method(x)
    assert same(model, before)
    if "one" in words:
        assert len(model.predict(x[None])) == 1


def test_one_sequence_alone_is_no_validation_data():
    words = r"validation_data: x: expected \(N, T, I\), got \(100, 2\); one sequence alone is x"
    with pytest.raises(ValueError, match=words):
        timed().fit(ONE[None], np.zeros((1, 100), int), loss="huber", validation_data=(ONE, np.zeros(100)), **QUIET)


def test_models_without_time_take_rows_and_embeddings_take_integers():
    assert Sequential([Dense(2, 3), Activation("relu"), Dropout(0.5), Dense(3, 1)]).predict(ONE).shape == (100, 1)
    assert Sequential([Embedding(5, 3), Dense(3, 1)]).predict(np.arange(5)).shape == (5, 1)
    assert timed(Embedding(5, 2)).predict(np.ones((3, 7), int)).shape == (3, 7, 2)


@pytest.mark.parametrize("none", [[], (), np.zeros((0, 5, 2), np.float32), np.zeros((0, 5), int)])
def test_no_data(none):
    is_tokens = getattr(none, "ndim", 3) == 2
    model, some = (timed(Embedding(3, 2)), np.ones((2, 5), int)) if is_tokens else (timed(), draw(2, 5, 2))
    before = copy.deepcopy(model)
    y, words = np.ones((2, 5), int), "^{}x: expected at least one sequence, got none"
    with pytest.raises(ValueError, match=words.format("")):
        model.fit(none, [], loss="softmax_cross_entropy", **QUIET)
    with pytest.raises(ValueError, match=words.format("validation_data: ")):
        model.fit(some, y, validation_data=(none, []), loss="softmax_cross_entropy", **QUIET)
    assert same(model, before)
    with pytest.raises(ValueError, match=words.format("")):
        model.evaluate(none, [], loss="softmax_cross_entropy")
    for method in (model.predict, model.predict_proba):
        with pytest.raises(ValueError, match=words.format("")):
            method(none)


@pytest.mark.parametrize("none", [[np.zeros((0, 2), np.float32)] * 2, np.zeros((2, 0, 2), np.float32)])
def test_sequences_without_steps_have_no_loss(none):
    model, some = timed(), np.ones((2, 5, 2), np.float32)
    before, options = copy.deepcopy(model), {"loss": "softmax_cross_entropy"}
    y, empty, words = np.ones((2, 5), int), np.zeros((2, 0), int), "^{}x: expected at least one step, got sequences of"
    with pytest.raises(ValueError, match=words.format("")):
        model.fit(none, empty, **options, **QUIET)
    with pytest.raises(ValueError, match=words.format("validation_data: ")):
        model.fit(some, y, validation_data=(none, empty), **options, **QUIET)
    assert same(model, before)
    with pytest.raises(ValueError, match=words.format("")):
        model.evaluate(none, empty, **options)
    assert [a.shape for a in model.predict(none)] == [(0, 2)] * 2
    pooled = classifier()
    assert pooled.evaluate([draw(0, 3)] * 2, [0, 1], **options)["loss"] > 0  # the mean over two vectors of zeros
    history = model.fit([*none, some[0]], [*empty, y[0]], **options, **QUIET).history
    assert np.isfinite(history["loss"]).all() and not same(model, before)


def gradient_alone(prediction, target):
    return prediction


def gradient_first(prediction, target):
    return prediction, 0.0


def nothing(prediction, target):
    return None


def absolute(prediction, target):
    return np.abs(prediction)


def words(prediction, target):
    return "1.5"


@pytest.mark.parametrize(
    "options, message",
    [
        (
            {"loss": gradient_alone},
            r"loss: expected gradient_alone to return \(loss, gradient\), got an array of float32",
        ),
        ({"loss": nothing}, r"loss: expected nothing to return \(loss, gradient\), got NoneType"),
        ({"loss": gradient_first}, r"loss: expected gradient_first to return .* a number as the loss, got an array of"),
        ({"metrics": [absolute]}, r"metrics: expected absolute to return a number, got an array of float32"),
        ({"metrics": ["accuracy", nothing]}, "metrics: expected nothing to return a number, got NoneType"),
        ({"metrics": [words]}, "metrics: expected words to return a number, got str"),
    ],
)
def test_what_a_function_of_ones_own_returns_is_checked(options, message):
    model, (x, y) = classifier(), first_decides(4)
    with pytest.raises(TypeError, match=f"^{message}"):
        model.fit(x, y, **{**FITTED, **options})
    assert same(model, classifier())
    with pytest.raises(TypeError, match=f"^{message}"):
        model.evaluate(x, y, **options)


@pytest.mark.parametrize("kind", [float, np.float32, np.array, np.bool_])
def test_any_number_will_do(kind):
    def one(prediction, target):
        return kind(1)

    def loss(prediction, target):
        return kind(1), np.zeros_like(prediction)

    assert classifier().evaluate(*first_decides(4), loss=loss, metrics=[one]) == {"loss": 1.0, "one": 1.0}


# --------------------------------------------------------------------- integers, Python's floats, empty sequences


@pytest.mark.parametrize("front", [[], [Activation("relu")], [Dropout(0.0)]])
@pytest.mark.parametrize("batch_size", [4, 6])
def test_integers_are_numbers_for_a_model_without_tokens(front, batch_size):
    """A batch of as many rows as features, once taken for (N, T) and turned around, would pass unseen."""
    x, y = np.random.default_rng(0).integers(0, 9, (24, 6)), np.arange(24) % 2
    model = Sequential([*front, Dense(6, 2, seed=0)])
    twin = copy.deepcopy(model)
    for each, data in ((model, x.astype(np.uint8)), (twin, x.astype(np.float32))):
        each.fit(data, y, batch_size=batch_size, **FITTED)
    assert same(model, twin)
    assert np.array_equal(model.predict(x, batch_size=batch_size), twin.predict(x.astype(np.float32)))


@pytest.mark.parametrize("model", [Sequential([Dense(3, 2)]), classifier()])
def test_a_list_of_rows_is_no_list_of_sequences(model):
    with pytest.raises(ValueError, match=r"^x\[0\]: expected shape \(T, I\), got an array of int64 with shape \(3,\)$"):
        model.predict([[1, 2, 3]] * 3, batch_size=3)


def steps(outputs):
    return Sequential([LSTM(3, 4, seed=0), Dense(4, outputs, seed=0)])


@pytest.mark.parametrize("empty", [[], np.zeros(0)])
@pytest.mark.parametrize("one_hot", [False, True])
def test_no_targets_for_no_steps(empty, one_hot):
    """NumPy makes float64 of [], which is not the targets' dtype."""
    x = [draw(n, 3) for n in (0, 2, 3)]
    y = [np.eye(2, dtype=np.float32)[a] if one_hot else a for a in (np.array([0, 1]), np.array([1, 0, 1]))]
    model, twin = steps(2), steps(2)
    model.fit(x, [empty, *y], **FITTED)
    twin.fit(x[1:], y, **FITTED)
    assert same(model, twin)


@pytest.mark.parametrize(
    "y", [[[0, 1], [0.5, 0.25, 2]], [np.array([0, 1]), np.float32([0.5, 0.25, 2])], [[0.0, 1.0], [0.5, 0.25, 2.0]]]
)
def test_targets_of_a_batch_are_not_cut_to_the_first_ones_dtype(y):
    x, seen = [draw(2, 3), draw(3, 3)], []

    def loss(prediction, target, lengths):
        seen.append(target[:, :, 0].T.tolist())
        return losses.mean_squared_error(prediction, target, lengths=lengths)

    steps(1).evaluate(x, y, loss=loss)
    assert seen == [[[0, 1, 0], [0.5, 0.25, 2]]]


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        ([[0, 1], [0.9, 0.7, 0]], TypeError, "targets: expected integers, got float32"),
        ([np.float32([0, 1]), np.ones(3)], TypeError, "y: expected targets of one dtype, got float32, float64"),
        ([[0, 1], np.array([True] * 3)], TypeError, "y: expected targets of one dtype, got bool, int64"),
        ([np.eye(2), [0, 1, 1]], ValueError, "y: expected targets of one shape at each step, got "),
    ],
)
def test_targets_of_different_kinds_are_refused(y, error, message):
    with pytest.raises(error, match=f"^{message}"):
        steps(2).fit([draw(2, 3), draw(3, 3)], y, **FITTED)


def test_integers_of_any_two_dtypes_are_classes():
    """NumPy's dtype of int64 beside uint64 is float64."""
    x, wanted = [draw(2, 3), draw(3, 3)], [[0, 1], [1, 0, 1]]
    loss = steps(2).evaluate(x, wanted, loss="softmax_cross_entropy")
    for one, other in itertools.permutations([np.uint64, np.int64, np.int8], 2):
        y = [np.array(wanted[0], one), np.array(wanted[1], other)]
        assert steps(2).evaluate(x, y, loss="softmax_cross_entropy") == loss


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_python_floats_are_targets_in_any_dtype(dtype):
    x, y = draw(4, 5, 3, dtype=dtype), [0.5, 0.25, -1, 2]
    model = Sequential([LSTM(3, 4, dtype=dtype, seed=0), Pooling("last"), Dense(4, 1, dtype=dtype, seed=0)])
    found = model.evaluate(x, y, loss="mean_squared_error", metrics=["mae"])
    assert found == model.evaluate(x, np.array(y, dtype), loss="mean_squared_error", metrics=["mae"])
    if dtype == "f4":
        with pytest.raises(TypeError, match="targets: expected dtype float32, got float64"):
            model.evaluate(x, np.array(y), loss="mean_squared_error")


@pytest.mark.parametrize("name", ["x", "x[1]", "y", "y[1]"])
def test_what_is_no_array_is_named(name):
    uneven = [[1.0, 2.0, 3.0], [1.0]]
    x, y, model = [draw(2, 3)] * 2, [[0, 1]] * 2, steps(2)
    if name == "x":
        x = Refusing()
    elif name == "y":
        model, y = classifier(), [0, [1, 0]]
    else:
        (x if name == "x[1]" else y)[1] = uneven
    with pytest.raises(ValueError, match=rf"^{re.escape(name)}: expected an array, got "):
        model.fit(x, y, **FITTED)


class Refusing:
    """As a tensor of PyTorch that requires a gradient."""

    def __len__(self):
        return 2

    def __array__(self, *arguments, **keywords):
        raise RuntimeError("use detach")
