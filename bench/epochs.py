"""An epoch of each example in elman, PyTorch and Keras: `python bench/epochs.py [--json FILE]`; --help says more.

The same model, data, batches, loss and optimiser, each library on one thread, as far as they are installed. Before
anything is timed all start from the same weights and train for an epoch; the losses must agree then. Contestants take
turns; figures are medians. elman makes its batches in every epoch, as `fit` does; the peers are given theirs ready
made. `/ torch` is PyTorch's time in units of elman's; `at most`, in units of what the layers' multiplications take at
this core's rate, with nothing else to do: no program could be more times as fast.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import elman
from elman.benchmark import measure, roofline

EXAMPLES = Path(__file__).parent.parent / "examples"
TOLERANCES = {"torch": 1e-5, "keras": 1e-3}  # of the losses after an epoch, relative; Keras' Adam is a little other
ROUNDING = 1e-5  # of float32 losses, relative: less is no change
LONG_ENOUGH = 0.1  # seconds of training between two looks at the clock
PATIENCE = 10.0  # seconds for one contestant of a case
TITLE = "milliseconds an epoch, one thread"
Model: TypeAlias = "elman.Sequential | elman.Seq2Seq"


class Case(NamedTuple):
    """What is trained: x and y as `fit` takes them, and its arguments."""

    name: str
    make_model: Callable[[], Model]
    x: Any
    y: Any
    loss: str
    optimizer: str
    lr: float
    batch_size: int = 32
    clip_norm: float | None = None

    def batches(self) -> list[slice]:
        return [slice(start, start + self.batch_size) for start in range(0, len(self.x), self.batch_size)]


# -------------------------------------------------------------------------------------------------------- the cases


def example(name: str) -> Any:
    """The module examples/<name>.py."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def one_to_one(batches: int) -> list[Case]:
    module = example("one_to_one")
    x, y = (a[: 32 * min(batches, 42)] for a in module.read_digits())
    return [Case("one_to_one", module.make_model, x, y, "softmax_cross_entropy", "Adam", 5e-3)]


def one_to_many(batches: int) -> list[Case]:
    module = example("one_to_many")
    names = sorted(module.read_names()[: 32 * batches], key=len)  # batches of like length, as `fit` makes them
    x, y = [name[:-1] for name in names], [name[1:] for name in names]
    return [Case("one_to_many", module.make_model, x, y, "softmax_cross_entropy", "Adam", 3e-3)]


def many_to_one(batches: int) -> list[Case]:
    module = example("many_to_one")
    x, y = (a[: 32 * min(batches, 42)] for a in module.read_digits())
    return [Case("many_to_one", module.make_model, x, y, "softmax_cross_entropy", "Adam", 5e-3)]


def many_to_many(batches: int) -> list[Case]:
    module = example("many_to_many")
    x, y = module.read_modules(sorted(Path(os.__file__).parent.glob("*.py"))[1:25:4])
    x, y = x[: 32 * batches], y[: 32 * batches]
    return [Case("many_to_many", module.make_model, x, y, "softmax_cross_entropy", "Adam", 3e-3)]


def forecasting(batches: int) -> list[Case]:
    module = example("forecasting")
    years, sunspots = module.read_sunspots()
    roots = np.sqrt(sunspots[years < 1957])
    x, y = (a[: 32 * batches] for a in module.make_windows((roots - roots.mean()) / roots.std()))
    return [Case("forecasting", module.make_model, x, y, "mean_squared_error", "AdamW", 5e-3, clip_norm=1.0)]


def beginners(batches: int) -> list[Case]:
    module = example("beginners")
    x, y = (a[: min(1000, 64 * batches)] for a in module.read_digits())
    return [
        Case(f"beginners: {name}", lambda name=name: module.make_models()[name], x, y, "softmax_cross_entropy", "Adam",
             1e-3, batch_size=64)
        for name in module.make_models()
    ]  # fmt: skip


def japanese_vowels(batches: int) -> list[Case]:
    module = example("japanese_vowels")
    x, speakers = module.read_utterances("train")
    order = np.argsort([len(utterance) for utterance in x], kind="stable")[: 32 * batches]

    def make_model() -> elman.Sequential:  # that of RNNClassifier
        return elman.Sequential([elman.GRU(12, 64, seed=0), elman.Pooling("last"), elman.Dense(64, 9, seed=1)])

    x, y = [x[i] for i in order], speakers[order] - 1
    return [Case("japanese_vowels", make_model, x, y, "softmax_cross_entropy", "AdamW", 3e-3, clip_norm=1.0)]


def vanishing_gradients(batches: int) -> list[Case]:
    module = example("vanishing_gradients")
    pulse = module.pulse(0)

    def make_model() -> elman.Sequential:
        head = elman.Dense(module.HIDDEN, 1, dtype=np.float64, seed=0)
        return elman.Sequential([module.tanh_rnn(1.15, 0), elman.Pooling("last"), head])

    x, y = pulse.swapaxes(0, 1), np.sign(pulse[0, :, :1])
    return [Case("vanishing_gradients", make_model, x, y, "mean_squared_error", "SGD", 5e-3, clip_norm=1.0)]


def encoder_decoder(batches: int) -> list[Case]:
    module = example("encoder_decoder")
    pairs = zip(*module.make_dates(32 * batches, False, np.random.default_rng(0)))
    pairs = sorted(pairs, key=lambda pair: len(pair[0]))  # batches of like length, as `fit` makes them
    x, y = [module.read(source) for source, _ in pairs], [module.tokens(date) for _, date in pairs]
    return [Case("encoder_decoder", module.make_model, x, y, "softmax_cross_entropy", "Adam", 3e-3, clip_norm=1.0)]


# An example is added here, by a function that gives its cases with so many batches at most. train_mpi has none: it is
# many_to_one's model, for more than one process.
CASES: list[Callable[[int], list[Case]]] = [
    one_to_one,
    one_to_many,
    many_to_one,
    japanese_vowels,
    many_to_many,
    forecasting,
    beginners,
    vanishing_gradients,
    encoder_decoder,
]


# -------------------------------------------------------------------------------------------------- the contestants
#
# Each is a function of a case and the model to start from, and gives two functions: train(epochs), and outputs(), what
# the model says of the first batch, in the shape in which elman says it.


class Contestant(NamedTuple):
    train: Callable[[int], None]
    outputs: Callable[[], np.ndarray]


def in_elman(case: Case, model: Model) -> Contestant:
    optimizer = getattr(elman, case.optimizer)(model, lr=case.lr)

    def train(epochs: int) -> None:
        model.fit(
            case.x,
            case.y,
            loss=case.loss,
            optimizer=optimizer,
            epochs=epochs,
            batch_size=case.batch_size,
            clip_norm=case.clip_norm,
            shuffle=False,
            seed=0,
            verbose=0,
        )

    def outputs() -> np.ndarray:
        x, y, lengths = padded(case)[0]
        if isinstance(model, elman.Seq2Seq):
            return model(x, y, source_lengths=lengths)
        return model(x, lengths=lengths)

    return Contestant(train, outputs)


def in_torch(case: Case, model: Model) -> Contestant:
    """As one who knows PyTorch writes it: tensors made once, time first, the optimiser fused, no packing where padding
    behind the end gives the same result."""
    import torch
    from torch import nn

    torch.set_num_threads(1)

    class ReluLSTM(nn.Module):
        """torch.nn.LSTM has tanh only: the loop that its users write instead."""

        def __init__(self, inputs: int, hidden: int):
            super().__init__()
            for name, tensor in nn.LSTM(inputs, hidden).named_parameters():
                self.register_parameter(name, tensor)

        def forward(self, x):
            x = nn.functional.linear(x, self.weight_ih_l0, self.bias_ih_l0 + self.bias_hh_l0)
            h = c = x.new_zeros(x.shape[1], self.weight_hh_l0.shape[1])
            y = []
            for x_t in x:
                i, f, g, o = torch.addmm(x_t, h, self.weight_hh_l0.T).chunk(4, 1)
                c = f.sigmoid() * c + i.sigmoid() * g.relu()
                h = o.sigmoid() * c.relu()
                y.append(h)
            return torch.stack(y), None

    def twin(layer: Any) -> nn.Module:
        if isinstance(layer, elman.Embedding):
            other: nn.Module = nn.Embedding(layer.num_embeddings, layer.embedding_dim)
        elif isinstance(layer, elman.Dense):
            other = nn.Linear(layer.in_features, layer.out_features)
        elif isinstance(layer, elman.Dropout):
            return nn.Dropout(layer.p)
        elif isinstance(layer, elman.Pooling):
            return nn.Identity()  # the network takes the last step
        elif isinstance(layer, elman.Activation):
            return {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}[layer.kind]()
        elif isinstance(layer, elman.LSTM) and has_relu(layer):
            other = ReluLSTM(layer.input_size, layer.hidden_size)
        else:
            options = {"nonlinearity": layer.nonlinearity} if isinstance(layer, elman.RNN) else {}
            kind = getattr(nn, type(layer).__name__)
            sizes = layer.input_size, layer.hidden_size
            other = kind(*sizes, bidirectional=layer.bidirectional, bias=layer.bias, **options)
        other = other.to(torch.float64 if layer.dtype == np.float64 else torch.float32)
        other.load_state_dict({name: torch.tensor(a) for name, a in layer.params.items()})
        return other

    class Network(nn.Module):
        """Of a Sequential."""

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(map(twin, model.layers))
            self.recurrent = [isinstance(layer, (elman.LSTM, elman.GRU, elman.RNN)) for layer in model.layers]

        def forward(self, x, ends):
            for layer, recurrent in zip(self.layers, self.recurrent):
                x = layer(x)[0] if recurrent else layer(x)
                if isinstance(layer, nn.Identity):
                    x = x[-1] if ends is None else x[ends, torch.arange(x.shape[1])]
            return x

    class Translator(nn.Module):
        """Of a Seq2Seq: Embedding and a bidirectional GRU, Embedding and a GRU, and dot attention."""

        def __init__(self):
            super().__init__()
            parts = (model.encoder, model.decoder, model.output)
            self.encoder, self.decoder, self.output = (nn.Sequential(*map(twin, part.layers)) for part in parts)

        def forward(self, source, lengths, inside, fed):
            embedding, gru = self.encoder
            packed = nn.utils.rnn.pack_padded_sequence(embedding(source), lengths, enforce_sorted=False)
            memory, h = gru(packed)
            memory = nn.utils.rnn.pad_packed_sequence(memory)[0].transpose(0, 1)
            embedding, gru = self.decoder
            features = gru(embedding(fed), torch.cat([*h], 1)[None])[0]
            scores = torch.bmm(features.transpose(0, 1), memory.transpose(1, 2)).masked_fill(~inside, -math.inf)
            context = torch.bmm(scores.softmax(2), memory).transpose(0, 1)
            return self.output(torch.cat([context, features], 2))

    batches = []
    for x, y, lengths in padded(case):
        if isinstance(model, elman.Seq2Seq):
            fed = np.concatenate([np.full_like(y[:1], model.start), y])
            inside = np.arange(len(x)) < lengths[:, None, None]  # (B, 1, S)
            inputs, y = (x, lengths, inside, fed), model.labels(y)[0]
        else:
            inputs = x, None if lengths is None else lengths - 1
            if lengths is not None and y.ndim == 2:
                y = np.where(np.arange(len(y))[:, None] < lengths, y, -100)  # what cross_entropy leaves out
        batches.append(([a if a is None else torch.tensor(a) for a in inputs], torch.tensor(y)))
    network = Translator() if isinstance(model, elman.Seq2Seq) else Network()
    options = {"weight_decay": 1e-2} if case.optimizer == "AdamW" else {}
    optimizer = getattr(torch.optim, case.optimizer)(network.parameters(), lr=case.lr, fused=True, **options)

    def loss_of(inputs, y):
        outputs = network(*inputs)
        if case.loss == "mean_squared_error":
            return nn.functional.mse_loss(outputs, y)
        return nn.functional.cross_entropy(outputs.flatten(0, -2), y.flatten())

    def train(epochs: int) -> None:
        network.train()
        for _ in range(epochs):
            total = torch.zeros((), dtype=torch.float64)
            for inputs, y in batches:
                optimizer.zero_grad()
                loss = loss_of(inputs, y)
                loss.backward()
                if case.clip_norm:
                    nn.utils.clip_grad_norm_(network.parameters(), case.clip_norm)
                optimizer.step()
                total += loss.detach()
            total.item()  # the loss of the epoch

    def outputs() -> np.ndarray:
        network.eval()
        with torch.no_grad():
            return network(*batches[0][0]).numpy()

    return Contestant(train, outputs)


def keras_backend() -> str:
    return os.environ.get("KERAS_BACKEND", "torch")


def prepare_keras() -> None:
    """One thread for Keras' backend."""
    os.environ["KERAS_BACKEND"] = keras_backend()
    if keras_backend() == "jax":  # it reads these when it is imported
        os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    else:
        import torch

        torch.set_num_threads(1)


def in_keras(case: Case, model: Model) -> Contestant:
    prepare_keras()
    import keras

    if keras.backend.backend() != keras_backend():
        raise RuntimeError("Keras was imported before with another backend")
    layers = keras.layers
    translates = isinstance(model, elman.Seq2Seq)
    parts = (model.encoder, model.decoder, model.output) if translates else (model,)
    pools = any(isinstance(layer, elman.Pooling) for part in parts for layer in part.layers)
    per_step = timed(case.x) and not pools
    ragged = isinstance(case.x, list)

    def twin(layer: Any) -> Any:
        if isinstance(layer, elman.Embedding):
            return layers.Embedding(layer.num_embeddings, layer.embedding_dim)
        if isinstance(layer, elman.Dense):
            return layers.Dense(layer.out_features)
        if isinstance(layer, elman.Dropout):
            return layers.Dropout(layer.p)
        if isinstance(layer, elman.Activation):
            return layers.Activation(layer.kind)
        options = {"use_bias": layer.bias, "return_sequences": not pools, "return_state": translates}
        if isinstance(layer, elman.GRU):
            other = layers.GRU(layer.hidden_size, **options)
        elif isinstance(layer, elman.LSTM):
            other = layers.LSTM(layer.hidden_size, activation="relu" if has_relu(layer) else "tanh", **options)
        else:
            other = layers.SimpleRNN(layer.hidden_size, activation=layer.nonlinearity, **options)
        return layers.Bidirectional(other) if layer.bidirectional else other

    def weights(layer: Any) -> list[np.ndarray]:
        p = layer.params
        if isinstance(layer, elman.Embedding):
            return [p["weight"]]
        if isinstance(layer, elman.Dense):
            return [p["weight"].T, p["bias"]]
        found = []
        for end in ("l0", "l0_reverse") if layer.bidirectional else ("l0",):
            blocks = [keras_order(layer, p[f"weight_{part}_{end}"]).T for part in ("ih", "hh")]
            found += blocks
            if layer.bias:
                biases = [keras_order(layer, p[f"bias_{part}_{end}"]) for part in ("ih", "hh")]
                found.append(np.stack(biases) if isinstance(layer, elman.GRU) else sum(biases))
        return found

    def translator(encoder: list[Any], decoder: list[Any], output: list[Any]) -> Any:
        """The network of a Seq2Seq, as PyTorch's above. Keras' dot attention is Luong's too."""
        source, inside, fed = (keras.Input((None,), dtype=kind) for kind in ("int32", "bool", "int32"))
        embedding, gru = encoder
        memory, *h = gru(embedding(source), mask=inside)
        embedding, gru = decoder
        features = gru(embedding(fed), initial_state=layers.concatenate(h))[0]
        context = layers.Attention()([features, memory], mask=[None, inside])
        return keras.Model([source, inside, fed], keras.Sequential(output)(layers.concatenate([context, features])))

    # Keras has one loss over padded steps: weights leave them out. A ragged x that is pooled is masked by its zeros.
    batches = []
    for x, y, lengths in padded(case):
        given = np.ones(y.shape[:1], "float32")
        if timed(case.x):
            x = np.ascontiguousarray(x.swapaxes(0, 1))
        if translates:
            fed = np.concatenate([np.full_like(y[:1], model.start), y])
            x = x, np.arange(x.shape[1]) < lengths[:, None], np.ascontiguousarray(fed.T)
            y, lengths = model.labels(y)[0], None
        if per_step:
            y = y.swapaxes(0, 1)
            inside = np.ones(y.shape) if lengths is None else np.arange(y.shape[1]) < np.array(lengths)[:, None]
            given = (inside * (inside.size / inside.sum())).astype("float32")
        batches.append((x, y, given))

    class Batches(keras.utils.PyDataset):
        def __len__(self):
            return len(batches)

        def __getitem__(self, i):
            return batches[i]

    kept = [[layer for layer in part.layers if not isinstance(layer, elman.Pooling)] for part in parts]
    with_float64 = any(getattr(layer, "dtype", None) == np.float64 for part in kept for layer in part)
    keras.config.set_dtype_policy("float64" if with_float64 else "float32")
    twins = [[twin(layer) for layer in part] for part in kept]
    if translates:
        network = translator(*twins)
    else:
        network = keras.Sequential([layers.Masking()] * (ragged and pools) + twins[0])
        network.build(batches[0][0].shape)
    for layer, other in zip(sum(kept, []), sum(twins, [])):
        if hasattr(layer, "params"):
            other.set_weights(weights(layer))
    # Keras adds epsilon before the bias of the moments is corrected: this is nearest to 1e-8 in the first epoch.
    options = {} if case.optimizer == "SGD" else {"epsilon": 1e-9}
    if case.optimizer == "AdamW":
        options["weight_decay"] = 1e-2
    if case.clip_norm:
        options["global_clipnorm"] = case.clip_norm
    if case.loss == "mean_squared_error":
        loss = keras.losses.MeanSquaredError()
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    network.compile(optimizer=getattr(keras.optimizers, case.optimizer)(case.lr, **options), loss=loss)

    def train(epochs: int) -> None:
        network.fit(Batches(), epochs=epochs, shuffle=False, verbose=0)

    def outputs() -> np.ndarray:
        y = network.predict_on_batch(batches[0][0])
        return y.swapaxes(0, 1) if per_step else y

    return Contestant(train, outputs)


def keras_order(layer: Any, a: np.ndarray) -> np.ndarray:
    """The blocks of a GRU as Keras has them: z, r, n for r, z, n."""
    if not isinstance(layer, elman.GRU):
        return a
    r, z, n = np.split(a, 3)
    return np.concatenate([z, r, n])


def has_relu(lstm: elman.LSTM) -> bool:
    """Whether it is LSTM(activation="relu"), and not the plain one."""
    return tuple(lstm.activations) == ("sigmoid", "relu", "relu")


CONTESTANTS: dict[str, Callable[[Case, Any], Contestant]] = {
    "elman": in_elman,
    "torch": in_torch,
    "keras": in_keras,
}


def timed(x: Any) -> bool:
    """Whether it has steps: x (N, I) of floats has none, as `fit` sees it."""
    return isinstance(x, list) or x.ndim == 3 or x.dtype.kind in "iu"


def padded(case: Case) -> list[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
    """The batches, time first: x, y and the lengths, or None."""
    found = []
    for batch in case.batches():
        x, y = case.x[batch], case.y[batch]
        if not timed(x):
            found.append((x, y, None))
            continue
        if not isinstance(x, list):
            per_step = y.shape[:2] == x.shape[:2]
            found.append((x.swapaxes(0, 1), y.swapaxes(0, 1) if per_step else y, None))
            continue
        lengths = np.array([len(item) for item in x])

        def together(items: list[np.ndarray]) -> np.ndarray:
            T = max(map(len, items))
            ends = [[(0, T - len(item))] + [(0, 0)] * (item.ndim - 1) for item in items]
            return np.stack([np.pad(item, end) for item, end in zip(items, ends)], axis=1)

        found.append((together(x), together(y) if isinstance(y, list) else y, lengths))
    return found


# ------------------------------------------------------------------------------------------------ check and measure


def comparable(model: Model, peer: str) -> Model:
    """The model without what cannot be equal: dropout, which is random; for Keras also an LSTM's and an RNN's biases,
    of which it has one where elman and PyTorch have two, so that Adam moves their sum twice as fast."""
    if isinstance(model, elman.Seq2Seq):
        return model
    layers = []
    for layer in model.layers:
        if isinstance(layer, (elman.LSTM, elman.RNN)) and layer.bias and peer == "keras":
            state = layer.__getstate__()
            without = {name: a for name, a in state["params"].items() if not name.startswith("bias")}
            layer = object.__new__(type(layer))
            layer.__setstate__(state | {"bias": False, "params": without})
        if not isinstance(layer, elman.Dropout):
            layers.append(layer)
    return elman.Sequential(layers)


def losses_after_an_epoch(case: Case, peer: str) -> tuple[float, float]:
    """Of the first batch, by elman and by the peer. AssertionError: they do not agree, at first or after training, or
    nothing has changed. Training may change little, in few batches, so they must also agree to a tenth of the change:
    a peer that does not train is then found out below the tolerance too."""
    tolerance = TOLERANCES.get(peer, 1e-3)
    _, y, lengths = padded(case)[0]
    options = {} if lengths is None or y.ndim == 1 else {"lengths": lengths}
    contestants = [CONTESTANTS[name](case, comparable(case.make_model(), peer)) for name in ("elman", peer)]
    if isinstance(model := case.make_model(), elman.Seq2Seq):
        y, options = model.labels(y)[0], {}
    losses = []
    for epochs in (0, 1):
        for contestant in contestants:
            if epochs:
                contestant.train(epochs)
            losses.append(getattr(elman.losses, case.loss)(contestant.outputs(), y, **options)[0])
    first, first_of_peer, last, last_of_peer = losses
    change = abs(last - first)
    for ours, theirs, when, most in (
        (first, first_of_peer, "at first", math.inf),
        (last, last_of_peer, "after an epoch", max(change / 10, ROUNDING * last)),
    ):
        if not math.isclose(ours, theirs, rel_tol=tolerance) or abs(ours - theirs) > most:
            raise AssertionError(f"{case.name}: the loss {when} is {ours:.6g} in elman and {theirs:.6g} in {peer}")
    if change <= ROUNDING * first:
        raise AssertionError(f"{case.name}: the loss is {first:.6g} before and {last:.6g} after an epoch")
    return last, last_of_peer


def seconds_an_epoch(contestants: dict[str, Contestant], rounds: int, clock: Callable[[], float]) -> dict[str, float]:
    """Medians. They take turns, so that a noisy machine disturbs all alike; the slow ones have fewer."""
    epochs, times = {}, {name: [] for name in contestants}
    for name, contestant in contestants.items():
        contestant.train(1)
        start = clock()
        contestant.train(1)
        epochs[name] = max(1, round(LONG_ENOUGH / (clock() - start)))
    for done in range(rounds):
        for name, contestant in contestants.items():
            if done < 3 or sum(times[name]) * epochs[name] < PATIENCE:
                start = clock()
                contestant.train(epochs[name])
                times[name].append((clock() - start) / epochs[name])
    return {name: statistics.median(each) for name, each in times.items()}


def operations(case: Case, model: Model) -> float | None:
    """Of the products of an epoch, forward and back; None for a Seq2Seq. The first layer's input wants no gradient."""
    if not isinstance(model, elman.Sequential):
        return None
    total, has_input = 0, True
    rows = sum(map(len, case.x)) if isinstance(case.x, list) else len(case.x)
    if not isinstance(case.x, list) and model._timed_axes(case.x.dtype.kind in "iu"):
        rows *= case.x.shape[1]
    for layer in model.layers:
        if isinstance(layer, elman.Pooling):
            rows = len(case.x)
        for name, weight in getattr(layer, "params", {}).items():
            if weight.ndim == 2 and not isinstance(layer, elman.Embedding):
                total += rows * weight.size * (4 if has_input and "_hh" not in name else 6)
        has_input = has_input and not hasattr(layer, "params")
    return total


def row(
    case: Case, peers: list[str], rounds: int, clock: Callable[[], float], limits: roofline.Limits
) -> dict[str, Any]:
    """What a case has come to, for the table and the file."""
    model = case.make_model()
    count = operations(case, model)
    bound = None if count is None else count / limits.operations[str(model.dtype)]
    losses = {peer: losses_after_an_epoch(case, peer) for peer in peers}
    contestants = {name: CONTESTANTS[name](case, case.make_model()) for name in ("elman", *peers)}
    seconds = seconds_an_epoch(contestants, rounds, clock)
    return {
        "name": case.name,
        "model": repr(case.make_model()),
        "optimizer": f"{case.optimizer}, lr {case.lr}, batches of {case.batch_size}, clip_norm {case.clip_norm}",
        "steps": len(case.batches()),
        "losses": losses,  # of the first batch after an epoch: elman's, and the peer's
        "seconds": seconds,
        "ratio": {peer: seconds[peer] / seconds["elman"] for peer in peers},
        "bound": bound,
        "at_most": seconds["torch"] / bound if bound and "torch" in seconds else None,
    }


def installed() -> list[str]:
    """The peers that are there; Keras needs its backend under it."""
    found = [name for name in ("torch", "keras") if importlib.util.find_spec(name) is not None]
    return [name for name in found if name != "keras" or importlib.util.find_spec(keras_backend()) is not None]


def is_able(peer: str, case: Case) -> bool:
    """Keras' recurrent layers fail on JAX in float64."""
    return peer != "keras" or keras_backend() != "jax" or case.make_model().dtype == np.float32


def line(row: dict[str, Any], peers: list[str]) -> str:
    seconds, ratio = row["seconds"], row["ratio"]
    times = "".join(f"{seconds[name] * 1e3:10.2f}" if name in seconds else " " * 10 for name in ("elman", *peers))
    ratios = "".join(f"{ratio[peer]:9.2f}" if peer in ratio else " " * 9 for peer in peers)
    at_most = "" if row["at_most"] is None else f"{row['at_most']:9.1f}"
    return f"{row['name']:32}{row['steps']:6}{times}{ratios}{at_most}".rstrip()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--match", default="", metavar="TEXT", help="only examples with TEXT in their name")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each contestant (default 7)")
    parser.add_argument("--batches", type=int, default=50, metavar="N", help="of an epoch, at most (default 50)")
    parser.add_argument(
        "--keras",
        choices=("torch", "jax"),
        default=keras_backend(),
        help="Keras' backend (default: that of the environment)",
    )
    parser.add_argument("--cpu", action="store_true", help="CPU time, not wall time: for a machine with other work")
    parser.add_argument("--json", metavar="FILE", help="write the figures there")
    options = parser.parse_args(arguments)
    if options.rounds < 1 or options.batches < 1:
        parser.error("--rounds, --batches: expected 1 or more")
    makers = [make for make in CASES if options.match in make.__name__]
    if not makers:
        parser.error(f"--match: no example has {options.match!r} in its name")
    os.environ["KERAS_BACKEND"] = options.keras
    clock = time.process_time if options.cpu else time.perf_counter
    peers, rows, code = installed(), [], 0
    with elman.threads(1):
        if "keras" in peers:
            print(f"keras: on {options.keras}")
        title = f"{TITLE:32}{'steps':>6}" + "".join(f"{name:>10}" for name in ("elman", *peers))
        print(title + "".join(f"{'/ ' + peer:>9}" for peer in peers) + f"{'at most':>9}")
        limits = roofline.measure_limits()
        for make in makers:
            try:
                cases = make(options.batches)
            except SystemExit as missing:  # an example without the package that has its data
                print(f"{make.__name__:32}{missing}")
                continue
            for case in cases:
                try:
                    able = [peer for peer in peers if is_able(peer, case)]
                    rows.append(row(case, able, options.rounds, clock, limits))
                    print(line(rows[-1], peers), flush=True)
                except AssertionError as wrong:
                    print(wrong)
                    code = 1
    if options.json:
        machine = measure.machine() | {"time": "CPU" if options.cpu else "wall"}
        report = {"machine": machine, "threads": 1, "keras": options.keras, "rounds": options.rounds, "rows": rows}
        Path(options.json).write_text(json.dumps(report, indent=1), encoding="utf-8")
    return code


if __name__ == "__main__":
    sys.exit(main())
