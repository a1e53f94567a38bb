"""bench/epochs.py in a tiny form: the peers train the same, one that does not is found out, the table and the file."""

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

import elman

BENCH = Path(__file__).parent.parent / "bench" / "epochs.py"
PACKAGES = {
    "one_to_one": "sklearn",
    "many_to_one": "sklearn",
    "beginners": "sklearn",
    "forecasting": "statsmodels",
    "japanese_vowels": "sktime",
}


@pytest.fixture
def epochs(monkeypatch):
    spec = importlib.util.spec_from_file_location("epochs", BENCH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "LONG_ENOUGH", 0.0)
    return module


@pytest.fixture
def one_torch_thread():
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def small(epochs, **changes):
    x = np.random.default_rng(0).standard_normal((6, 5, 3), dtype=np.float32)

    def make_model():
        return elman.Sequential([elman.LSTM(3, 4, seed=0), elman.Pooling("last"), elman.Dense(4, 2, seed=1)])

    case = epochs.Case("small", make_model, x, np.arange(6) % 2, "softmax_cross_entropy", "Adam", 1e-2, batch_size=4)
    return case._replace(**changes)


@pytest.mark.parametrize(
    "name",
    [
        "one_to_one",
        "one_to_many",
        "many_to_one",
        "japanese_vowels",
        "many_to_many",
        "forecasting",
        "beginners",
        "vanishing_gradients",
        "encoder_decoder",
    ],
)
def test_pytorch_trains_the_same(name, epochs, one_torch_thread):
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    (make,) = (make for make in epochs.CASES if make.__name__ == name)
    for case in make(2):
        assert case.name.startswith(name) and 1 <= len(case.batches()) <= 2
        ours, theirs = epochs.losses_after_an_epoch(case, "torch")
        assert ours == pytest.approx(theirs, rel=epochs.TOLERANCES["torch"])


def test_every_example_has_a_case(epochs):
    scripts = {path.stem for path in (BENCH.parent.parent / "examples").glob("*.py")}
    assert {make.__name__ for make in epochs.CASES} == scripts - {"train_mpi"}


@pytest.mark.parametrize("peer", ["torch", "keras"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_peers_train_small_models_the_same(peer, kind, epochs, one_torch_thread, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    if peer == "keras":
        pytest.importorskip("keras")

    def make_model():
        return elman.Sequential([getattr(elman, kind)(3, 4, seed=0), elman.Dense(4, 2, seed=1)])

    rng = np.random.default_rng(0)
    x = [rng.standard_normal((T, 3), dtype=np.float32) for T in (2, 2, 4, 5, 5)]
    y = [rng.integers(0, 2, len(item)) for item in x]
    case = small(epochs, make_model=make_model, x=x, y=y, optimizer="AdamW", clip_norm=0.5)
    epochs.losses_after_an_epoch(case, peer)


@pytest.mark.parametrize("peer", ["torch", "keras"])
def test_peers_train_a_ragged_translator_the_same(peer, epochs, one_torch_thread, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    if peer == "keras":
        pytest.importorskip("keras")

    def make_model():
        encoder = [elman.Embedding(9, 4, seed=0), elman.GRU(4, 3, bidirectional=True, seed=1)]
        decoder = [elman.Embedding(7, 4, seed=2), elman.GRU(4, 6, seed=3)]
        output = [elman.Dense(12, 5, seed=4), elman.Activation("tanh"), elman.Dense(5, 6, seed=5)]
        return elman.Seq2Seq(encoder, decoder, output, attention=elman.DotAttention(), start=6, end=5)

    rng = np.random.default_rng(0)
    x, y = [rng.integers(0, 9, S) for S in (1, 2, 4, 6, 1, 3)], list(rng.integers(0, 5, (6, 3)))
    case = small(epochs, make_model=make_model, x=x, y=y, clip_norm=0.5)
    epochs.losses_after_an_epoch(case, peer)


@pytest.mark.parametrize(
    "change",
    [{"lr": 0.5}, {"clip_norm": 0.01}, {"optimizer": "Adam"}, {"y": np.zeros(6, int)}],
    ids=lambda change: next(iter(change)),
)
def test_a_peer_that_does_other_work_is_found_out(change, epochs, one_torch_thread, monkeypatch):
    case = small(epochs, optimizer="SGD", lr=1.0)
    epochs.losses_after_an_epoch(case, "torch")
    in_torch = epochs.in_torch
    monkeypatch.setitem(epochs.CONTESTANTS, "torch", lambda case, model: in_torch(case._replace(**change), model))
    with pytest.raises(AssertionError, match="small: the loss after an epoch is"):
        epochs.losses_after_an_epoch(case, "torch")


def test_a_peer_that_starts_elsewhere_is_found_out(epochs, one_torch_thread, monkeypatch):
    case = small(epochs)
    other = elman.Sequential([elman.LSTM(3, 4, seed=5), *case.make_model().layers[1:]])
    monkeypatch.setitem(epochs.CONTESTANTS, "torch", lambda case, model: epochs.in_torch(case, other))
    with pytest.raises(AssertionError, match="small: the loss at first is"):
        epochs.losses_after_an_epoch(case, "torch")


def test_training_that_changes_nothing_is_found_out(epochs, one_torch_thread):
    with pytest.raises(AssertionError, match="before and .* after an epoch"):
        epochs.losses_after_an_epoch(small(epochs, lr=0.0), "torch")


def test_a_change_below_the_tolerance_is_one_and_shows_an_idle_peer(epochs, one_torch_thread, monkeypatch):
    case, in_torch = small(epochs, optimizer="SGD", lr=1e-2), epochs.in_torch
    monkeypatch.setitem(epochs.TOLERANCES, "torch", 1e-3)
    last, _ = epochs.losses_after_an_epoch(case, "torch")
    x, y, _ = epochs.padded(case)[0]
    first = elman.losses.softmax_cross_entropy(case.make_model()(x), y)[0]
    assert 1e-4 < abs(last - first) / first < 1e-3
    monkeypatch.setitem(epochs.CONTESTANTS, "torch", lambda case, model: in_torch(case._replace(lr=0.0), model))
    with pytest.raises(AssertionError, match="small: the loss after an epoch is"):
        epochs.losses_after_an_epoch(case, "torch")


def test_table_and_file(epochs, one_torch_thread, monkeypatch, tmp_path, capsys):
    def tiny(batches):
        return [small(epochs)]

    def missing(batches):
        raise SystemExit("missing needs a package for its data")

    monkeypatch.setattr(epochs, "CASES", [tiny, missing])
    monkeypatch.setattr(epochs, "installed", lambda: ["torch"])
    assert epochs.main(["--rounds", "1", "--json", str(tmp_path / "epochs.json")]) == 0
    head, line, skipped = capsys.readouterr().out.splitlines()
    assert head.split()[-7:] == ["steps", "elman", "torch", "/", "torch", "at", "most"] and "needs a package" in skipped
    report = json.loads((tmp_path / "epochs.json").read_text())
    (row,) = report["rows"]
    assert row["seconds"]["elman"] > 0 and row["ratio"]["torch"] == row["seconds"]["torch"] / row["seconds"]["elman"]
    assert row["losses"]["torch"][0] == pytest.approx(row["losses"]["torch"][1], rel=1e-3) and row["steps"] == 2
    assert line.split() == ["small", "2", *(f"{row['seconds'][name] * 1e3:.2f}" for name in ("elman", "torch")),
                            f"{row['ratio']['torch']:.2f}", f"{row['at_most']:.1f}"]  # fmt: skip
    assert row["at_most"] == row["seconds"]["torch"] / row["bound"] > 0


def test_without_peers_elman_is_timed_alone_and_a_wrong_peer_makes_exit_1(epochs, monkeypatch, capsys):
    monkeypatch.setattr(epochs, "CASES", [lambda batches: [small(epochs)]])
    monkeypatch.setattr(epochs, "installed", lambda: [])
    assert epochs.main(["--rounds", "1", "--match", "lambda"]) == 0
    assert "small" in capsys.readouterr().out
    idle = epochs.Contestant(lambda epochs: None, lambda: np.zeros((4, 2), np.float32))
    monkeypatch.setattr(epochs, "installed", lambda: ["idle"])
    monkeypatch.setitem(epochs.CONTESTANTS, "idle", lambda case, model: idle)
    assert epochs.main(["--rounds", "1"]) == 1
    assert "small: the loss at first is" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        epochs.main(["--match", "nothing"])


def test_operations_are_those_of_the_true_rows(epochs):
    """Two for each multiplication, forward, by the input and by the weights; the first layer's input wants none."""
    ragged = [np.zeros((n, 3), np.float32) for n in (2, 5)]
    many = epochs.Case("many", lambda: None, ragged, None, "", "", 0.0)
    layers = [elman.GRU(3, 4), elman.Pooling("last"), elman.Dense(4, 2)]
    assert epochs.operations(many, elman.Sequential(layers)) == 7 * 12 * (3 * 4 + 4 * 6) + 2 * 8 * 6
    tokens = epochs.Case("tokens", lambda: None, np.zeros((5, 6), int), None, "", "", 0.0)
    tagger = elman.Sequential([elman.Embedding(9, 3), elman.LSTM(3, 4, bidirectional=True), elman.Dense(8, 2)])
    assert epochs.operations(tokens, tagger) == 30 * 6 * (2 * 16 * 7 + 16)
    rows = epochs.Case("rows", lambda: None, np.zeros((5, 6), np.float32), None, "", "", 0.0)
    assert epochs.operations(rows, elman.Sequential([elman.Dense(6, 4), elman.Dense(4, 2)])) == 5 * (24 * 4 + 8 * 6)
