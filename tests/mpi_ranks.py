"""What tests/test_mpi.py runs on every rank: `mpiexec -n 2 python mpi_ranks.py DIRECTORY WHAT`.

A case is a function of (comm, n): what fit gives for n * (12 / n) sequences a batch, as arrays by name. With comm None
and n = 1 it is what one process makes of the same batches.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np

import elman
from elman import (
    GRU,
    LSTM,
    SGD,
    Adam,
    Dense,
    DotAttention,
    Dropout,
    EarlyStopping,
    Embedding,
    Pooling,
    Seq2Seq,
    Sequential,
    _distributed,
)

BATCH = 12
LENGTHS = [9, 1, 4, 0, 7, 2, 2, 8, 3, 5, 6, 1, 9, 2, 0, 4, 3, 8, 1, 1, 6, 5, 7, 2, 3]  # the last batch is one sequence


def draw(*shape, dtype="f8", seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def ragged(dtype="f8"):
    return [draw(n, 3, dtype=dtype, seed=i) for i, n in enumerate(LENGTHS)]


def classifier(dtype="f8", dropout=0.0, seed=0):
    layers = [
        LSTM(3, 5, dtype=dtype, seed=seed),
        Dropout(dropout),
        Pooling("mean"),
        Dense(5, 3, dtype=dtype, seed=seed),
    ]
    return Sequential(layers)


def tagger(outputs=3, dtype="f8"):
    return Sequential([GRU(3, 5, dtype=dtype, seed=0), Dense(5, outputs, dtype=dtype, seed=1)])


def train(comm, n, model, x, y, loss, **options):
    given = {"optimizer": SGD(model, lr=0.3, momentum=0.5), "epochs": 2, "seed": 3, "verbose": 0, **options}
    history = model.fit(x, y, loss=loss, batch_size=BATCH // n, comm=comm, **given)
    return results(model, history)


def results(model, history):
    return {**model.params, **{name: np.array(values) for name, values in history.history.items()}}


def tags(seed=0):
    return [np.random.default_rng(seed + i).integers(0, 3, n) for i, n in enumerate(LENGTHS)]


def arrays(comm, n, N=29, dtype="f8", **options):
    """29: the last batch has 5 sequences."""
    y = np.arange(N) % 3
    held_out = draw(31, 6, 3, dtype=dtype, seed=1), np.arange(31) % 3
    options = {"metrics": ["accuracy", "perplexity"], "validation_data": held_out, **options}
    return train(comm, n, classifier(dtype), draw(N, 6, 3, dtype=dtype), y, "softmax_cross_entropy", **options)


def adam(comm, n):
    model = classifier()
    options = {
        "optimizer": Adam(model, lr=0.05),
        "clip_norm": 0.2,
        "clip_value": 0.05,
        "lr": lambda epoch: 0.1 / (1 + epoch),
    }
    return train(comm, n, model, draw(29, 6, 3), np.arange(29) % 3, "softmax_cross_entropy", **options)


def ragged_classes(comm, n):
    y = np.arange(25) % 3
    options = {"validation_data": (ragged(), y), "metrics": ["accuracy"]}
    return train(comm, n, classifier(), ragged(), y, "softmax_cross_entropy", **options)


def ragged_steps(comm, n, **options):
    """The ranks have different numbers of true steps, and in the last batch, of one sequence, rank 1 has none."""
    options = {"validation_data": (ragged(), tags(9)), "metrics": ["accuracy", "perplexity"], **options}
    return train(comm, n, tagger(), ragged(), tags(), "softmax_cross_entropy", **options)


def in_the_order_given(comm, n):
    return ragged_steps(comm, n, shuffle=False)


def float32_steps(comm, n):
    y = [a[:, :1] for a in ragged("f4")]
    return train(comm, n, tagger(1, "f4"), ragged("f4"), y, "mean_squared_error", metrics=["rmse", "mae"])


def class_weights(comm, n):
    weights = [0.5, 4.0, 0.0]  # a share where all targets are of class 2 has no weight
    loss = partial(elman.softmax_cross_entropy, class_weights=weights, label_smoothing=0.1)
    options = {"validation_data": (ragged(), tags(9)), "clip_norm": 0.5}
    return train(comm, n, tagger(), ragged(), tags(), loss, **options)


def class_weights_of_sequences(comm, n):
    loss = partial(elman.softmax_cross_entropy, class_weights=[1.0, 5.0, 0.0])
    return train(comm, n, classifier(), draw(25, 6, 3), np.arange(25) // 4 % 3, loss)


def sums(comm, n):
    loss = partial(elman.mean_absolute_error, reduction="sum")
    return train(comm, n, tagger(1), ragged(), [a[:, :1] for a in ragged()], loss, lr=0.003)


def pos_weight(comm, n):
    loss = partial(elman.binary_cross_entropy, pos_weight=[1.0, 3.0])
    y = [(a[:, :2] > 0).astype(int) for a in ragged()]
    return train(comm, n, tagger(2), ragged(), y, loss, metrics=["binary_accuracy"])


def truncated(comm, n):
    return ragged_steps(comm, n, tbptt=2)


def by_step(step):
    return 0.3 / (1 + step)


def truncated_by_step(comm, n):
    return ragged_steps(comm, n, tbptt=2, lr=by_step, lr_interval="step")


def truncated_arrays(comm, n):
    x = draw(14, 7, 3)
    return train(comm, n, tagger(1), x, x.sum(axis=2), "huber", tbptt=3)


def spelling(comm, n):
    y = [[1 + i % 2] * (len(a) > 0) for i, a in enumerate(ragged())]
    return train(comm, n, tagger(), ragged(), y, "ctc", validation_data=(ragged(), y), lr=0.03)


def own_loss(comm, n):
    return train(comm, n, Sequential([Dense(3, 1, dtype="f8", seed=0)]), draw(29, 3), draw(29), quartic, metrics=[bias])


def quartic(prediction, target):
    d = prediction - target
    return float((d**4).mean()), 4 * d**3 / d.size


def bias(prediction, target):
    return float((prediction - target).mean())


def embedded(comm, n):
    x = [np.random.default_rng(i).integers(0, 7, length) for i, length in enumerate(LENGTHS)]
    model = Sequential([Embedding(7, 3, dtype="f8", seed=0), *tagger().layers])
    return train(comm, n, model, x, tags(), "softmax_cross_entropy")


class Unforced(elman.Callback):
    def on_epoch_end(self, model, epoch, logs):
        model.teacher_forcing = 0.0


def translated(comm, n):
    """An encoder-decoder, fed with the true tokens in the first epoch, with its own in the second, by a callback."""
    embedding = Embedding(5, 3, dtype="f8", seed=1)
    parts = (
        [GRU(3, 5, dtype="f8", seed=0)],
        [embedding, GRU(3, 5, dtype="f8", seed=2)],
        [Dense(10, 4, dtype="f8", seed=3)],
    )
    model = Seq2Seq(*parts, attention=DotAttention(), start=4, end=3)
    x = [draw(1 + i % 6, 3, seed=i) for i in range(25)]
    options = {"validation_data": (x, tags(9)), "metrics": ["accuracy"], "callbacks": [Unforced()]}
    return train(comm, n, model, x, tags(), "softmax_cross_entropy", **options)


def stopped_early(comm, n):
    """The best epoch is not the last one, whose weights are given up."""
    model = classifier()
    options = {
        "epochs": 9,
        "callbacks": [EarlyStopping(1)],
        "validation_data": (draw(9, 6, 3, seed=1), np.arange(9) % 3),
    }
    found = train(comm, n, model, draw(29, 6, 3), np.arange(29) % 3, "softmax_cross_entropy", lr=2.0, **options)
    assert 1 < len(found["loss"]) < 9
    return found


def plateau(comm, n):
    schedule = elman.schedules.ReduceLROnPlateau(1.0, patience=0, factor=0.5)
    return arrays(comm, n, epochs=4, lr=schedule)


def empty_sequences(comm, n):
    """All that rank 1 of 2 has are sequences without a step."""
    x = [draw(0 if i % 2 else i % 7, 3, seed=i) for i in range(24)]
    return train(comm, n, classifier(), x, np.arange(24) % 3, "softmax_cross_entropy", shuffle=False)


class Meddler(elman.Callback):
    def __init__(self, optimizer):
        self.optimizer = optimizer

    def on_epoch_end(self, model, epoch, logs):
        self.optimizer.lr = 0.7 * self.optimizer.lr
        with model.edit() as params:
            params["3.bias"] += 0.1


def changed_by_a_callback(comm, n):
    model = classifier()
    optimizer = SGD(model, lr=1 / 3)
    options = {"optimizer": optimizer, "callbacks": [Meddler(optimizer)], "epochs": 3}
    return train(comm, n, model, draw(29, 6, 3), np.arange(29) % 3, "softmax_cross_entropy", **options)


def resumed(comm, n, **options):
    """Weights and the optimiser's state are those of rank 0, as if only it had read them from a file."""
    rank = 0 if comm is None else comm.rank
    model = classifier(seed=rank)
    optimizer = Adam(model, lr=0.01 / (1 + rank))
    x, y = draw(29, 6, 3), np.arange(29) % 3
    if rank == 0:
        train(None, 1, model, x, y, "softmax_cross_entropy", optimizer=optimizer)
    options |= {"optimizer": optimizer, "epochs": 4, "initial_epoch": 2, "seed": 3 + rank}
    return train(comm, n, model, x, y, "softmax_cross_entropy", **options)


def resumed_by_step(comm, n):
    return resumed(comm, n, lr=by_step, lr_interval="step")


EQUAL = {
    case.__name__: case
    for case in (
        arrays,
        adam,
        ragged_classes,
        ragged_steps,
        in_the_order_given,
        float32_steps,
        class_weights,
        class_weights_of_sequences,
        sums,
        pos_weight,
        truncated,
        truncated_by_step,
        truncated_arrays,
        spelling,
        own_loss,
        embedded,
        translated,
        stopped_early,
        plateau,
        empty_sequences,
        changed_by_a_callback,
        resumed,
        resumed_by_step,
    )
}


def dropped_out(comm, n, seed=3):
    """Not what one process draws, but the same weights on all ranks, every time."""
    model, chance = classifier(dropout=0.5), Chance()
    model = Sequential([*model.layers, chance])
    found = train(comm, n, model, draw(29, 6, 3), np.arange(29) % 3, "softmax_cross_entropy", seed=seed)
    return found | {"drawn": np.array(chance.drawn)}


class Chance:
    """A layer that does nothing but draw."""

    def __init__(self):
        self.drawn = []

    def __call__(self, x):
        return x

    def forward(self, x, *, rng):
        self.drawn.append(rng.random())
        return x, None

    def backward(self, tape, dy, grads=None):
        return dy, {}


def without_a_seed(comm, n):
    return dropped_out(comm, n, None)


def planted(comm, n):
    """Results with a bug in the way: by name of the case and the bug."""

    def unweighted(self, value, weight, count, grads, averages):
        return mean(self, value, float(weight > 0), count, grads, averages)

    def counted(self, prediction, target, lengths, count):
        return float(count)

    def blocks(self, batch):
        return batch if n == 1 else batch[self.rank * BATCH // n :][: BATCH // n - 1]

    mean = _distributed.Ranks.mean
    bugs = {
        "ragged_steps": (_distributed.Ranks, "mean", unweighted),
        "arrays": (_distributed.Ranks, "mean", unweighted),
        "truncated": (_distributed.Ranks, "mean", unweighted),
        "class_weights": (elman.training._Objective, "_weight", counted),
        "class_weights_of_sequences": (elman.training._Objective, "_weight", counted),
        "adam": (_distributed.Ranks, "share", blocks),
    }
    found = {}
    for name, (where, attribute, bug) in bugs.items():
        with mock.patch.object(where, attribute, bug):
            found |= {f"{name}|{key}": a for key, a in EQUAL[name](comm, n).items()}
    return found


OTHERS = {"dropped_out": dropped_out, "again": dropped_out, "without_a_seed": without_a_seed, "planted": planted}
CASES = {**EQUAL, **OTHERS}

# --------------------------------------------------------------------------------------------------------- failures


class Failing(elman.Callback):
    """Fails where it is told to."""

    def __init__(self, where):
        setattr(self, where, self.fail)

    def fail(self, *arguments):
        raise OSError("the disk is full")


class Heavy(Sequential):
    """A model whose weights cannot be changed for the third time: behind the last epoch, when all seems done."""

    def __init__(self, layers):
        super().__init__(layers)
        self.edits = []

    def edit(self):
        self.edits.append(1)
        if len(self.edits) == 3:
            raise MemoryError("too heavy")
        return super().edit()


class Stubborn:
    """An optimiser that fails on rank 1 alone, in its second step."""

    lr = 0.1

    def __init__(self, rank):
        self.rank, self.steps = rank, 0

    def step(self, grads):
        self.steps += 1
        if self.rank and self.steps == 2:
            raise KeyError("moments")


def failures(comm):
    """For each way to fail the error on this rank. What one leaves behind would disturb the next."""
    rank, model = comm.rank, classifier("f4")
    x, y = draw(36, 6, 3, dtype="f4"), np.arange(36) % 3
    nan, wrong = x.copy(), y.copy()
    nan[13, 2, 1] = np.nan  # in the second batch of 12, not shuffled, the share of rank 1
    wrong[14] = 3  # that of rank 0
    weightless, uneven = y.copy(), partial(elman.softmax_cross_entropy, class_weights=[0.0, 1.0, 1.0])
    weightless[12:24:2] = 0  # the share of rank 0, whose own mean is 0 / 0
    few = x[:1], y[:1]  # rank 1 has no share

    def on_rank_1(prediction, target):
        if rank and len(calls) == 2:
            raise ZeroDivisionError("mine")
        calls.append(1)
        return elman.softmax_cross_entropy(prediction, target)

    def infinite(prediction, target):
        return np.inf, np.zeros_like(prediction)

    def only_in_training(prediction, target):
        if len(target) == 12:  # the one batch is rank 0's
            raise IndexError("no more")
        return 0.0

    calls: list[int] = []
    ways = {
        "nan in x": {"x": nan, "epochs": 2},
        "nan beside no weight": {"x": nan, "y": weightless, "loss": uneven},
        "nan of few": {"x": few[0], "y": few[1], "loss": infinite},
        "a target": {"y": wrong},
        "own loss": {"loss": on_rank_1},
        "an argument": {"epochs": 1.5} if rank else {},
        "another argument": {"batch_size": 6 + rank},
        "another lr": {"lr": 0.1 + rank},
        "another lr_interval": {"lr_interval": "step" if rank else "epoch"},
        "a shard": {"x": x[rank::2], "y": y[rank::2]},
        "a shard of y": {"y": y[::-1] if rank else y},
        "another model": {"model": tagger(dtype="f4") if rank else model},
        "another optimizer": {"optimizer": "adam" if rank else "sgd"},
        "an optimizer": {"optimizer": Stubborn(rank)},
        "a callback at first": {"callbacks": [Failing("on_train_begin")]},
        "a callback": {"callbacks": [Failing("on_epoch_end")]},
        "a callback at last": {"callbacks": [Failing("on_train_end")]},
        "at the very last": {"model": Heavy(model.layers)},
        "a monitor": {"callbacks": [EarlyStopping(1, monitor="accuracy")]},
        "a schedule": {"lr": (lambda epoch: [1 / 0 if rank else 0.1][0])},
        "validation": {"validation_data": (x, wrong if rank else y)},
        "a metric": {"metrics": [lambda prediction, target: 1 / (1 - rank)]},
        "a metric of validation": {"validation_data": (x[:12], y[:12]), "metrics": [only_in_training]},
        "comm": {"comm": "MPI.COMM_WORLD"},
    }
    told = {}
    for name, changes in ways.items():
        options = {"x": x, "y": y, "loss": "softmax_cross_entropy", "batch_size": 6, "shuffle": False, **changes}
        options = {"model": model, "verbose": 0, "comm": comm, **options}
        try:
            options.pop("model").fit(**options)
        except Exception as error:
            told[name] = [type(error).__name__, str(error)]
        else:
            told[name] = None
    return told


def telling(comm, files):
    """Everything that is to be seen from outside, of data that each rank reads from one file."""
    if comm.rank == 0:
        np.save(files / "x.npy", draw(24, 6, 3))
    comm.Barrier()
    x = np.load(files / "x.npy", mmap_mode="r")
    path = files / f"best-{comm.rank}.safetensors"
    model = classifier()
    options = {"callbacks": [elman.Checkpoint(path)], "verbose": 1, "optimizer": Adam(model, lr=0.1)}
    found = train(comm, comm.size, model, x, np.arange(24) % 3, "softmax_cross_entropy", **options)
    np.savez(files / f"telling-{comm.rank}.npz", **found)
    if comm.rank:
        raise SystemExit("an error outside fit")  # which `python -m mpi4py` makes one of all ranks
    comm.recv()


def main(directory, what, *names):
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    files = Path(directory)
    if what == "failures":
        (files / f"failures-{comm.rank}.json").write_text(json.dumps(failures(comm)))
    elif what == "files":
        telling(comm, files)
    else:
        for name in names:
            result = arrays(MPI.COMM_SELF, 1) if name == "alone" else CASES[name](comm, comm.size)
            np.savez(files / f"{name}-{comm.rank}.npz", **result)


if __name__ == "__main__":
    main(*sys.argv[1:])
