"""fit, evaluate and predict: from arrays as people have them, batch first or ragged, to batches, steps and a history.

A model is anything with `params`, `edit`, a call, `forward` -> (y, tape with .state) and
`backward` -> (dx, grads), as Sequential. Nothing here knows a layer or computes a gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from . import _checks as check
from . import _positions, losses, optimizers
from . import metrics as metrics_module
from ._distributed import Ranks, checksum, together
from ._progress import with_bar
from .activation import softmax
from .callbacks import Callback, Checkpoint
from .optimizers import clip_grad_norm, clip_grad_value
from .schedules import ReduceLROnPlateau

__all__ = ["History", "evaluate", "fit", "predict", "predict_proba"]

ABSENT = object()  # no y, as None may be a mistake
POOL = 16  # batches' worth of ragged sequences that are sorted by length together

Data: TypeAlias = "ArrayLike | Sequence[ArrayLike]"  # batch first, or one array per sequence
Function: TypeAlias = "str | Callable[..., Any]"  # of a prediction and a target
Logs: TypeAlias = "dict[str, float]"


class History:
    """What `fit` returns.

    history : a dict of lists with one number per epoch: "loss", the metrics, "grad_norm" (the mean norm of the gradient
        before clipping), "lr" (of its last step), and with validation data "val_loss" and "val_" + each metric.
    epoch : the numbers of the epochs, from initial_epoch.
    optimizer : the one that was used: give it to the next `fit` to go on.
    """

    def __init__(self, optimizer: Any):
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []
        self.optimizer = optimizer

    def __repr__(self) -> str:
        last = "".join(f", {name}={values[-1]:.4g}" for name, values in self.history.items())
        return f"<history of {len(self.epoch)} epochs{last}>"

    def plot(self) -> Any:
        """A matplotlib figure: one picture for the loss and each metric, training and validation together.

        ImportError: matplotlib is not installed.
        """
        try:
            import matplotlib.pyplot as plt
        except ImportError:
            raise ImportError("history.plot needs matplotlib: pip install 'elman[plot]'") from None
        names = [name for name in self.history if not name.startswith("val_") and name not in ("lr", "grad_norm")]
        figure, axes = plt.subplots(1, max(1, len(names)), figsize=(5 * max(1, len(names)), 3.5), squeeze=False)
        for name, ax in zip(names, axes[0]):
            ax.plot(self.epoch, self.history[name], label="training")
            if f"val_{name}" in self.history:
                ax.plot(self.epoch, self.history[f"val_{name}"], label="validation")
            ax.set(xlabel="epoch", ylabel=name)
            ax.legend()
        figure.tight_layout()
        return figure

    def _add(self, epoch: int, logs: Logs) -> None:
        self.epoch.append(epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)


@together
def fit(
    model: Any,
    x: Data,
    y: Data,
    *,
    loss: Function,
    optimizer: Any = "adam",
    epochs: int = 1,
    batch_size: int = 32,
    validation_data: tuple[Data, Data] | None = None,
    metrics: Sequence[Function] = (),
    callbacks: Sequence[Callback] = (),
    lr: float | Callable[[int], float] | None = None,
    lr_interval: str = "epoch",
    clip_norm: float | None = None,
    clip_value: float | None = None,
    tbptt: int | None = None,
    shuffle: bool = True,
    seed: int | None = None,
    initial_epoch: int = 0,
    verbose: int | bool = 1,
    comm: Any = None,
) -> History:
    """Trains the model.

    Args:
        x: batch first, in the model's dtype: (N, T, I); (N, T) integers for Embedding; (N, I) without time. Or a list
            of N arrays (T_i, I), or (T_i,) integers: batches are then made of sequences of like length.
        y: what the loss takes as targets, for N sequences: one per sequence, (N, ...), if the model ends with Pooling;
            else one per step, (N, T, ...), with a ragged x a list of N arrays (T_i, ...). The axis of 1 in predictions
            (N, 1) or (N, T, 1) may be left out.
        loss: a name in `elman.losses`, or a function (prediction, target) -> (loss, gradient), both time first; with a
            ragged x and a prediction per step it is also given lengths=.
        optimizer: one made over this model, `elman.Adam(model, lr=2e-3)`; or a name in lower case, "adam", or a class,
            for its defaults. To go on later, keep it: `history.optimizer`.
        epochs, initial_epoch: the epochs initial_epoch, ..., epochs - 1 are run.
        batch_size: sequences per step.
        validation_data: (x, y) to evaluate after each epoch.
        metrics: names in `elman.metrics`, or functions (prediction, target) -> float, given lengths= like the loss.
        callbacks: see `Callback`, `EarlyStopping`. After an epoch a `Checkpoint` has its turn behind all others.
        lr: sets the learning rate: a number; a function of the epoch or step (see `elman.schedules`); or a
            `ReduceLROnPlateau`, which is shown "val_loss", or "loss" without validation data. None leaves it.
        lr_interval: what a function lr counts, from 0: "epoch", or "step", `optimizer.steps`, for a warm-up.
        clip_norm, clip_value: for `clip_grad_norm` and `clip_grad_value`, in this order.
        tbptt: truncated backpropagation through time: each batch is run in pieces of so many steps, with a step of the
            optimiser after each; the state goes from piece to piece, the gradient does not. For long series.
        shuffle: a new order in each epoch; False: as given, also if ragged.
        seed: of the order and of dropout, a whole number; None: random.
        verbose: 1 or True: a line per epoch, and on a terminal a bar while it runs (tqdm's if that is installed); 0 or
            False: silent.
        comm: to train data-parallel, an mpi4py communicator, `MPI.COMM_WORLD`: see below. None: this process alone.

    Returns:
        A History.

    With a seed, the same call gives the same bits, whatever the number of threads. Each epoch's random numbers depend
    on the seed and its number only, so `fit(epochs=2)` and then `fit(epochs=5, initial_epoch=2)` with the same
    optimizer, seed and callbacks is `fit(epochs=5)`, bit for bit, unless a callback restored older weights in between.

    With `comm` every rank calls fit with the same arguments, x and y included (an array of `numpy.load(mmap_mode="r")`
    is read only where it is used). Each batch has batch_size sequences per rank; each rank takes its share, and one
    Allreduce gives all of them the gradient of the whole batch. So n ranks are one process with n * batch_size, to
    rounding: weights, loss and metrics, with ragged lengths, class weights, tbptt and a last batch of any size. What is
    not equal: dropout, whose masks are others (the same ones in each run on n ranks); a loss or metric of one's own
    that is no mean over sequences or true steps, as which the ranks' values are put together (a `functools.partial` of
    one of elman's is known). All ranks start with the weights, the optimiser's state and the seed of rank 0 and end
    with the same weights and history. Bar, lines and callbacks are rank 0's alone: what a callback does to the weights,
    to `optimizer.lr` and to a Seq2Seq's `teacher_forcing`, and whether it stops, all ranks follow. An error on one rank
    is raised on all.

    Raises:
        TypeError, ValueError: a wrong argument. One that only shows in the loss or in a layer is raised in the first
            step, before the weights change.
        FloatingPointError: the loss or the gradient is NaN or infinite, or the optimiser refuses the step for such a
            reason: at once, before the weights change.
        ImportError: `comm` without mpi4py. RuntimeError: another rank has failed with an error of another kind.
    """
    ranks: Ranks = comm  # which `together` has made of it
    data = _sequences(model, x, y)
    held_out = None if validation_data is None else _sequences(model, *_pair(validation_data), "validation_data: ")
    for each in (data, held_out):
        if each is not None and not each.steps(slice(None)):
            raise each.no_steps()
    epochs, initial_epoch = check.integer("epochs", epochs, 0), check.integer("initial_epoch", initial_epoch, 0)
    batch_size = check.integer("batch_size", batch_size, 1)
    objective = _Objective(loss, metrics)
    if not isinstance(callbacks, (list, tuple)) or not all(isinstance(c, Callback) for c in callbacks):
        raise TypeError(f"callbacks: expected a list of Callback, got {callbacks!r}")
    for name, value in (("clip_norm", clip_norm), ("clip_value", clip_value)):
        if value is not None:
            check.number_below(name, value, 0, open_below=True)
    if lr is not None and not callable(lr):
        lr = check.number_below("lr", lr, 0)
    schedule = None  # by step
    if check.choice("lr_interval", lr_interval, ("epoch", "step")) == "step" and callable(lr):
        if isinstance(lr, ReduceLROnPlateau):
            raise ValueError("lr_interval: expected 'epoch' with a ReduceLROnPlateau, got 'step'")
        schedule, lr = lr, None
    if tbptt is not None:
        tbptt = check.integer("tbptt", tbptt, 1)
        model._check_streams("tbptt")
        if not data.timed or not objective.aligned:
            raise ValueError("tbptt: expected an x with a time axis, and a loss with a target for every step")
    check.boolean("shuffle", shuffle)
    seed = np.random.SeedSequence().entropy if seed is None else check.integer("seed", seed, 0)
    verbose = check.integer("verbose", int(verbose) if isinstance(verbose, bool) else verbose, 0, 1)
    optimizer = _optimizer(optimizer, model)
    if schedule is not None and not hasattr(optimizer, "steps"):
        raise TypeError(f"lr_interval: 'step' needs an optimizer with the attribute steps, got {optimizer!r}")
    if ranks.rank:
        verbose, callbacks = 0, ()

    names = (*objective.names, "grad_norm", "lr")
    if held_out is not None:
        names += tuple(f"val_{name}" for name in objective.names)
    for callback in callbacks:
        callback.on_train_begin(model, initial_epoch, names)
        if isinstance(callback, Checkpoint):
            if callback.optimizer not in (None, optimizer):
                raise ValueError(
                    "callbacks: Checkpoint: optimizer: expected the one that fit steps, got another over the same "
                    "model: give one object to both, fit(..., optimizer=adam, callbacks=[Checkpoint(..., "
                    "optimizer=adam)])"
                )
            callback._keeps(lr, callbacks)
    if ranks.size > 1:
        same = {"x, y": data.checksum(), "validation_data": None if held_out is None else held_out.checksum()}
        same |= {"epochs": epochs, "initial_epoch": initial_epoch, "batch_size": batch_size, "shuffle": shuffle}
        same |= {"clip_norm": clip_norm, "clip_value": clip_value, "tbptt": tbptt, "what is measured": names}
        same |= {"lr": None if callable(lr) else lr, "lr_interval": lr_interval}
        same |= {"loss": None if callable(loss) else loss}
        seed = ranks.start(model, optimizer, seed, same)
        batch_size *= ranks.size
    history, clips = History(optimizer), (clip_norm, clip_value)
    # Checkpoints come last: they keep what the others have seen of an epoch.
    by_turns = sorted(callbacks, key=lambda callback: isinstance(callback, Checkpoint))
    for epoch in range(initial_epoch, epochs):
        start = time.perf_counter()
        rng = np.random.default_rng([seed, epoch])
        if lr is not None:
            optimizer.lr = lr.lr if isinstance(lr, ReduceLROnPlateau) else lr(epoch) if callable(lr) else lr
        batches = data.shuffled(batch_size, rng) if shuffle else data.in_order(batch_size)
        if ranks.rank:
            rng = np.random.default_rng([seed, epoch, ranks.rank])  # for dropout
        means = objective.means() | {"grad_norm": _Mean()}
        for step, indices in enumerate(with_bar(batches, f"epoch {epoch + 1}/{epochs}", bool(verbose))):
            where = f"epoch {epoch}, step {step}"
            _train_on(model, optimizer, data, indices, objective, clips, tbptt, rng, where, means, schedule, ranks)
        ranks.merge([means[name] for name in objective.metrics])
        logs = {name: mean.compute() for name, mean in means.items()} | {"lr": float(optimizer.lr)}
        if held_out is not None:
            found = _measure(model, held_out, batch_size, objective, ranks)
            logs.update({f"val_{name}": value for name, value in found.items()})
        if isinstance(lr, ReduceLROnPlateau):
            lr(logs.get("val_loss", logs["loss"]))
        history._add(epoch, logs)
        if verbose:
            shown = "  ".join(f"{name} {value:.4g}" for name, value in logs.items() if name not in ("grad_norm", "lr"))
            print(f"epoch {epoch + 1}/{epochs}  {shown}  {time.perf_counter() - start:.1f} s", flush=True)
        stop = any([callback.on_epoch_end(model, epoch, dict(logs)) for callback in by_turns])
        if ranks.follow(model, optimizer, stop):
            break
    for callback in callbacks:
        callback.on_train_end(model)
    ranks.follow(model, optimizer, True)
    return history


def evaluate(
    model: Any,
    x: Data,
    y: Data,
    *,
    loss: Function | None = None,
    metrics: Sequence[Function] = (),
    batch_size: int = 32,
) -> Logs:
    """The mean loss and the metrics over all sequences, or over all true steps, without dropout.

    The arguments are those of `fit`; a model does not remember them. loss : None: the metrics alone.

    Returns {"loss": ..., and each metric by its name}. TypeError: neither a loss nor metrics, or another wrong
    argument. ValueError: likewise.

    >>> model.evaluate(x, y, metrics=["accuracy"])
    """
    if loss is None and isinstance(metrics, (list, tuple)) and not metrics:
        raise TypeError("loss: expected a loss or metrics, as in fit (a model does not remember them), got neither")
    batch_size = check.integer("batch_size", batch_size, 1)
    objective = _Objective(_no_loss if loss is None else loss, metrics)
    found = _measure(model, _sequences(model, x, y), batch_size, objective, Ranks())
    return found if loss is not None else {name: value for name, value in found.items() if name != "loss"}


def predict(model: Any, x: Data, *, batch_size: int = 32) -> np.ndarray | list[np.ndarray]:
    """What the model gives for each sequence, in the order of x, without dropout.

    x : as in `fit`.

    Returns (N, O) if the model ends with Pooling, (N, T, O) if not; for a ragged x then a list of N arrays (T_i, O).
    """
    data = _Sequences(model, x)
    results: list[Any] = [None] * len(data)
    for indices in data.by_length(check.integer("batch_size", batch_size, 1)):
        inputs, lengths = data.inputs(indices)
        y = model(inputs, lengths=lengths)
        per_step = data.timed and y.ndim == 3
        for b, i in enumerate(indices):
            results[i] = y[b] if not per_step else y[:, b] if lengths is None else y[: lengths[b], b].copy()
    return results if data.lengths is not None and per_step else np.stack(results)


def predict_proba(model: Any, x: Data, *, batch_size: int = 32) -> np.ndarray | list[np.ndarray]:
    """The probabilities of the classes: `softmax` of what `predict` gives, for a model whose outputs are logits.

    x : as in `fit`.

    Returns, as `predict`, (N, C), (N, T, C) or a list of N arrays (T_i, C). ValueError: a model with one output.

    >>> p = model.predict_proba(x)
    >>> p.argmax(axis=-1), p.max(axis=-1)
    """
    logits = predict(model, x, batch_size=batch_size)
    if logits[0].shape[-1] < 2:
        raise ValueError("predict_proba: expected logits of at least 2 classes, got a model with one output")
    return [softmax(a) for a in logits] if isinstance(logits, list) else softmax(logits)


# ------------------------------------------------------------------------------------------------------------ a step


def _train_on(model, optimizer, data, indices, objective, clips, tbptt, rng, where, means, schedule, ranks):
    """One batch: a step of the optimiser, or with `tbptt` one for each piece. schedule : of lr by step, or None. Of
    several ranks each has its share of the batch, and of its pieces."""
    mine = ranks.share(indices)
    inputs, lengths = data.inputs(mine) if len(mine) else (None, None)
    state = targets = None
    T = data.steps(indices)
    for start in range(0, T, tbptt or max(T, 1)):
        if schedule is not None:
            optimizer.lr = schedule(optimizer.steps)
        piece = slice(start, start + tbptt) if tbptt else slice(None)
        found, own_grads = NOTHING, None
        if len(mine):
            ends = np.clip(lengths - start, 0, tbptt) if tbptt and lengths is not None else lengths
            prediction, tape, ends = data.forward(model, mine, inputs[piece], state, ends, rng)
            state = tape.state if tbptt else None
            if targets is None:
                targets = objective.targets(data, mine, prediction)
            found = objective.compare(prediction, targets[piece] if tbptt else targets, ends, means)
            if found.count:
                own_grads = model.backward(tape, found.dy)[1]
        value, count, grads = ranks.mean(found.value, found.weight, found.count, own_grads, objective.averages)
        if not count:
            continue
        means["loss"].add(value, count)
        norm = clip_grad_norm(grads, clips[0] or math.inf)
        where_exactly = f"{where}, from time step {start}" if tbptt else where
        if not (math.isfinite(value) and math.isfinite(norm)):
            weighs = found.weight or not found.count
            spells = objective.aligned or value != math.inf
            report = _diagnosis(value, norm, where_exactly, optimizer.lr, inputs, piece, clips, weighs, spells)
            guilty = found.weight and not math.isfinite(found.value + clip_grad_norm(own_grads, math.inf))
            raise FloatingPointError(ranks.blame(report, bool(guilty)))
        means["grad_norm"].add(norm, 1)
        if clips[1]:
            clip_grad_value(grads, clips[1])
        try:
            optimizer.step(grads)
        except ValueError as error:  # too large a gradient or weight; nothing has changed
            report = _diagnosis(value, norm, where_exactly, optimizer.lr, inputs, piece, clips)
            raise FloatingPointError(f"{report} ({error})") from error


def _measure(model, data, batch_size, objective, ranks):
    """The mean loss and the metrics without training."""
    means = objective.means()
    for indices in ranks.share(data.by_length(batch_size)):
        inputs, lengths = data.inputs(indices)
        prediction, lengths = data.call(model, indices, inputs, lengths)
        found = objective.compare(prediction, objective.targets(data, indices, prediction), lengths, means)
        if found.weight:  # without it, the mean of this batch is nan
            means["loss"].add(found.value, found.weight)
    ranks.merge(list(means.values()))
    if not means["loss"].count and not data.steps(slice(None)):
        raise data.no_steps()
    return {name: mean.compute() for name, mean in means.items()}


class _Found(NamedTuple):
    """The loss of a batch and its gradient by the predictions."""

    value: float
    dy: Any
    weight: float  # what the mean in the loss divides by, up to a factor that is the same for all batches
    count: int  # of sequences or true steps


NOTHING = _Found(0.0, None, 0.0, 0)


class _Objective:
    """The loss and the metrics.

    aligned : whether there is a target for every step or one for a sequence; not so for CTC, which takes a list.
    averages : whether the loss is a mean, not a sum.
    """

    def __init__(self, loss, metrics):
        self.loss = _function("loss", loss, losses)
        self.metrics = _metrics(metrics)
        self.names = ("loss", *self.metrics)
        function, options = getattr(self.loss, "func", self.loss), getattr(self.loss, "keywords", {})  # of a partial
        self.aligned = function is not losses.ctc
        ours = [name for name, make in self.metrics.items() if make.func is _Exact]
        if ours and not self.aligned:
            raise ValueError(f"metrics: expected functions of (prediction, list of targets) with ctc, got {ours[0]!r}")
        self.averages = options.get("reduction") != "sum"
        self._class_weights = options.get("class_weights") if function is losses.softmax_cross_entropy else None

    def means(self):
        return {"loss": _Mean()} | {name: make() for name, make in self.metrics.items()}

    def targets(self, data, indices, prediction):
        if not self.aligned:
            return data.unaligned(indices)
        y = data.targets(indices, per_step=data.timed and prediction.ndim == 3)
        # A prediction of one number may have a target without that axis. (The prediction may be that of a piece.)
        without = y.ndim == prediction.ndim - 1 and y.shape[1:] == prediction.shape[1:-1]
        return y[..., None] if prediction.shape[-1] == 1 and without else y

    def compare(self, prediction, target, lengths, means):
        """Adds to the means of the metrics; what the loss has found."""
        per_step = prediction.ndim == 3
        lengths = lengths if per_step else None
        if not (per_step and self.aligned):
            count = prediction.shape[-2]
        else:
            count = prediction.shape[0] * prediction.shape[1] if lengths is None else int(lengths.sum())
        if not count:
            return NOTHING
        found = _with_lengths(self.loss, prediction, target, lengths)
        if not isinstance(found, (tuple, list)) or len(found) != 2:
            raise TypeError(f"loss: expected {_named(self.loss)} to return (loss, gradient), got {check._kind(found)}")
        value, dy = _number("loss", self.loss, "(loss, gradient) with a number as the loss", found[0]), found[1]
        for name in self.metrics:
            means[name].update(prediction, target, lengths, count)
        return _Found(value, dy, self._weight(prediction, target, lengths, count), count)

    def _weight(self, prediction, target, lengths, count):
        if self._class_weights is None or target.shape == prediction.shape:
            return float(count)
        classes = _positions.true(target, _positions.inside(lengths, target.shape))
        return float(np.asarray(self._class_weights)[classes].sum())


def _no_loss(prediction, target, lengths=None):
    return 0.0, None


def _with_lengths(function, prediction, target, lengths):
    return function(prediction, target) if lengths is None else function(prediction, target, lengths=lengths)


def _named(function):
    return getattr(function, "__name__", repr(function))


def _number(argument, function, wanted, value):
    """What the caller's function has returned, as a float."""
    if type(value) is float:
        return value
    if not hasattr(value, "__float__") or np.ndim(value):
        raise TypeError(f"{argument}: expected {_named(function)} to return {wanted}, got {check._kind(value)}")
    return float(value)


def _diagnosis(value, norm, where, lr, x, piece, clips, weighs=True, spells=True):
    advice = []
    if not spells:
        advice.append("more steps or shorter targets, since a sequence is too short to spell its target")
        advice.append("loss=functools.partial(elman.losses.ctc, zero_infinity=True), which leaves such a sequence out")
    elif not weighs:
        advice.append("a larger batch_size, since the class weights of all targets in this batch are 0")
    elif x is not None and x.dtype.kind == "f" and not np.isfinite(x[piece]).all():
        advice.append("remove the NaN or infinity that is in x, in this batch")
    else:
        advice.append("look for NaN in the targets")
        advice.append(f"a smaller lr than {lr:g}")
        advice.append("clip_norm=1.0" if clips[0] is None else f"a smaller clip_norm than {clips[0]:g}")
        advice.append("scaling x to mean 0 and variance 1")
    return (
        f"{where}: the loss is {value:g} and the norm of the gradient {norm:g}; the weights are those before "
        f"this step. What to try: {'; '.join(advice)}"
    )


class _Mean:
    """A mean over positions or sequences: of given values, or of what a function says of each batch."""

    def __init__(self, function=None):
        self.function, self.total, self.count = function, 0.0, 0

    def add(self, value, count):
        self.total += float(value) * count
        self.count += count

    def update(self, prediction, target, lengths, count):
        value = _with_lengths(self.function, prediction, target, lengths)
        self.add(_number("metrics", self.function, "a number", value), count)

    def compute(self):
        return self.total / self.count if self.count else math.nan

    def parts(self):
        """Numbers whose sums over several means are those of all together, for `load`."""
        return [self.total, self.count]

    def load(self, parts):
        self.total, self.count = parts


class _Exact:
    """A metric of elman, over all batches as if they were one."""

    def __init__(self, metric):
        self.running = metrics_module.Running(metric)

    def update(self, prediction, target, lengths, count):
        self.running.update(prediction, target, lengths)

    def compute(self):
        return self.running.compute()

    def parts(self):
        return [self.running._total, self.running._special, self.running._count]

    def load(self, parts):
        self.running._total, self.running._special, self.running._count = parts


# ----------------------------------------------------------------------------------------------------------- the data


class _Sequences:
    """x and y as the caller has them, handed out as batches that are time first.

    lengths : (N,), or None where all sequences are equally long. timed : whether x has a time axis.
    """

    def __init__(self, model, x, y=ABSENT, where=""):
        self._name, self._dtype = where, model.dtype
        takes_tokens = not (hasattr(model, "_takes_features") and model._takes_features())
        if isinstance(x, (list, tuple)):
            self.x = [self._item(model, f"{where}x[{i}]", item, takes_tokens) for i, item in enumerate(x)]
            shapes = {(a.shape[1:], a.dtype) for a in self.x}
            if len(shapes) > 1:
                raise ValueError(f"{where}x: expected sequences of the same features, got {len(shapes)} kinds")
            self.lengths = np.array([len(a) for a in self.x], np.intp)
            self.timed = True
        else:
            a = _array(f"{where}x", x)
            integers = a.dtype.kind in "iu"
            tokens = integers and takes_tokens
            if a.ndim not in ((1, 2, 3) if integers else (2, 3)):
                wanted = "(N, T, I), (N, T) integers, (N, I), or a list of N arrays (T_i, I)"
                raise ValueError(f"{where}x: expected shape {wanted}, got {check._kind(a)}")
            _check_time(model, where, a)
            self.x = a if tokens and a.ndim < 3 else check.array(f"{where}x", a, model.dtype, a.shape)
            self.lengths = None
            self.timed = a.ndim == 3 or (a.ndim == 2 and tokens)
        if not len(self.x):
            raise ValueError(f"{where}x: expected at least one sequence, got none")
        self._y, self._checked = y, None
        if y is not ABSENT and (not hasattr(y, "__len__") or len(y) != len(self.x)):
            got = len(y) if hasattr(y, "__len__") else check._kind(y)
            raise ValueError(f"{where}y: expected {len(self.x)} targets, one for each sequence of x, got {got}")

    def __len__(self):
        return len(self.x)

    def shuffled(self, size, rng):
        """Batches of indices in random order; ragged sequences share one with others of like length."""
        order = rng.permutation(len(self))
        if self.lengths is None:
            return _cut(order, size)
        pools = [pool[np.argsort(self.lengths[pool], kind="stable")] for pool in _cut(order, POOL * size)]
        batches = [batch for pool in pools for batch in _cut(pool, size)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def in_order(self, size):
        return _cut(np.arange(len(self)), size)

    def by_length(self, size):
        order = np.arange(len(self)) if self.lengths is None else np.argsort(self.lengths, kind="stable")
        return _cut(order, size)

    def steps(self, indices):
        """T of a batch; 1 without time."""
        if self.lengths is not None:
            return int(self.lengths[indices].max(initial=0))
        return self.x.shape[1] if self.timed else 1

    def no_steps(self):
        """The error for data that has sequences but no step to learn from or to measure at."""
        return ValueError(f"{self._name}x: expected at least one step, got sequences of length 0 only")

    def checksum(self):
        return checksum(self.x, self._y, self.lengths)

    def inputs(self, indices):
        """x (T, B, ...), or (B, I) without time, and the lengths or None."""
        if self.lengths is None:
            x = self.x[indices]
            return (x.swapaxes(0, 1) if self.timed else x), None
        return _padded([self.x[i] for i in indices]), self.lengths[indices]

    def forward(self, model, indices, inputs, state, lengths, rng):
        """The model's prediction, its tape, and the prediction's lengths, for these inputs or a piece of them."""
        return *model.forward(inputs, state, lengths=lengths, rng=rng), lengths

    def call(self, model, indices, inputs, lengths):
        """The prediction without training, and its lengths."""
        return model(inputs, lengths=lengths), lengths

    def targets(self, indices, per_step):
        """y (T, B, ...) for predictions per step, else (B, ...)."""
        if self._checked is None:
            self._checked = self._checked_targets(per_step)
        if isinstance(self._checked, list):
            return _padded([self._checked[i] for i in indices])
        y = self._checked[indices]
        return y.swapaxes(0, 1) if per_step else y

    def unaligned(self, indices):
        """The targets as they came, a list of arrays, for CTC."""
        return [self._y[i] for i in indices]

    def _checked_targets(self, per_step):
        name = f"{self._name}y"
        if not per_step or self.lengths is None:
            y = self._target(name, self._y)
            if y.dtype == object:
                raise ValueError(f"{name}: expected an array of numbers, got objects")
            if per_step and y.shape[:2] != self.x.shape[:2]:
                wanted = f"{self.x.shape[:2]} and what the loss takes, since the model predicts every step"
                raise ValueError(f"{name}: expected shape {wanted}, got {y.shape}")
            return y
        items = [self._target(f"{name}[{i}]", item) for i, item in enumerate(self._y)]
        for i, (item, n) in enumerate(zip(items, self.lengths)):
            if item.ndim < 1 or len(item) != n:
                raise ValueError(f"{name}[{i}]: expected {n} steps as in x[{i}], got {check._kind(item)}")
        return self._alike(name, items)

    def _target(self, name, value):
        """An array, in which Python's floats are of the model's dtype: they are in no other."""
        a = _array(name, value)
        if a.dtype.kind == "f" and isinstance(value, (list, tuple)):
            if not any(part.dtype.kind == "f" for part in check._arrays_in(value)):
                a = a.astype(self._dtype)
        return a

    @staticmethod
    def _alike(name, items):
        """The items with one dtype and one shape of a step, that of those which have steps."""
        steps = [item for item in items if len(item)]
        if not steps:
            return items
        shapes, dtypes = list({item.shape[1:] for item in steps}), {item.dtype for item in steps}
        if len(shapes) > 1:
            raise ValueError(f"{name}: expected targets of one shape at each step, got {', '.join(map(str, shapes))}")
        others = [dtype for dtype in dtypes if dtype.kind not in "iu"]  # than integers
        if len(others) > 1 or (others and len(dtypes) > 1 and others[0].kind != "f"):
            raise TypeError(f"{name}: expected targets of one dtype, got {', '.join(sorted(map(str, dtypes)))}")
        dtype = others[0] if others else np.result_type(*dtypes)
        if not others and dtype.kind == "f":  # NumPy's answer to int64 beside uint64
            dtype = np.dtype(np.int64)
        return [item.astype(dtype, copy=False).reshape(len(item), *shapes[0]) for item in items]

    @staticmethod
    def _item(model, name, value, takes_tokens):
        a = _array(name, value)
        if takes_tokens and a.ndim == 1 and (a.dtype.kind in "iu" or a.size == 0):
            return a.astype(np.intp)
        if a.ndim != 2:
            wanted = "(T, I), or (T,) integers" if takes_tokens else "(T, I)"
            raise ValueError(f"{name}: expected shape {wanted}, got {check._kind(a)}")
        return check.array(name, value, model.dtype, a.shape)


def _sequences(model, *arguments):
    """x and y as `_Sequences`, or as the class of that kind which the model brings along: Seq2Seq's pairs."""
    return getattr(model, "_training_data", _Sequences)(model, *arguments)


def _check_time(model, where, x):
    """That x has an axis of time if a layer needs one: a sequence alone would pass for N of them without time."""
    axes = model._timed_axes(x.dtype.kind in "iu") if hasattr(model, "_timed_axes") else 0
    if x.ndim < axes:
        hint = "; one sequence alone is x[None]" if x.ndim == axes - 1 else ""
        raise ValueError(f"{where}x: expected {('(N, T)', '(N, T, I)')[axes - 2]}, got {check._shown(x.shape)}{hint}")


def _array(name, value):
    try:
        return np.asarray(value)
    except Exception as error:
        raise ValueError(f"{name}: expected an array, got {check._kind(value)} ({error})") from None


def _cut(order, size):
    return [order[start : start + size] for start in range(0, len(order), size)]


def _padded(items):
    """Arrays (T_i, ...) as one (T, B, ...), zero past their ends."""
    T = max(map(len, items))
    result = np.zeros((T, len(items), *items[0].shape[1:]), items[0].dtype)
    for b, item in enumerate(items):
        result[: len(item), b] = item
    return result


# ------------------------------------------------------------------------------------------------------ the arguments


def _pair(value):
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise TypeError(f"validation_data: expected (x, y), got {check._kind(value)}")
    return value


def _function(argument, value, module):
    """A function, or the one of that name in a module of elman."""
    if callable(value):
        return value
    return getattr(module, check.choice(argument, value, tuple(module.__all__)))


def _metrics(metrics):
    """For each name a function that begins a mean."""
    if not isinstance(metrics, (list, tuple)):
        raise TypeError(f"metrics: expected a list of names or functions, got {metrics!r}")
    known = {name: getattr(metrics_module, name) for name in metrics_module.__all__ if name != "Running"}
    found = {}
    for i, metric in enumerate(metrics):
        if not callable(metric):
            metric = known[check.choice(f"metrics[{i}]", metric, tuple(known))]
        name = getattr(metric, "__name__", f"metric_{i}")
        if name in found or name in ("loss", "lr", "grad_norm"):
            raise ValueError(f"metrics[{i}]: expected different names, got {name!r} again")
        found[name] = partial(_Exact if metric is known.get(name) else _Mean, metric)
    return found


def _optimizer(value, model):
    if isinstance(value, str):
        known = {name.lower(): name for name in optimizers.__all__ if name[0].isupper() and name != "Optimizer"}
        value = getattr(optimizers, known[check.choice("optimizer", value, tuple(known))])
    if isinstance(value, type):
        return value(model)
    if not hasattr(value, "step") or not hasattr(value, "lr"):
        raise TypeError(f"optimizer: expected an optimiser or its name, got {value!r}")
    layers, got = getattr(value, "_layers", (model,)), None
    if len(layers) != 1 or layers[0] is not model:
        got = "one over other layers"
    elif not getattr(value, "_single", True):
        got = "one over a list of it"
    if got is not None:
        raise ValueError(f"optimizer: expected one made over this model, as elman.Adam(model), got {got}")
    return value
