"""The examples run, learn, and compare themselves with baselines that are right."""

import contextlib
import datetime
import functools
import importlib.util
import io
import math
import sys
from pathlib import Path

import numpy as np
import pytest

import elman

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def quick(name):
    """What main(["--quick"]) returns and prints, and, with matplotlib, the figures it saves with the options. Each
    example is run once for all tests."""
    arguments, drawn = ["--quick"], []
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        if importlib.util.find_spec("matplotlib"):
            from matplotlib.figure import Figure

            patch.setattr(Figure, "savefig", lambda self, *args, **options: drawn.append((self, options)))
            arguments += ["--plot", "picture.png"]
        results = load(name).main(arguments)
    assert results and all(math.isfinite(value) for value in results.values())
    assert "nan" not in printed.getvalue().split()
    return results, printed.getvalue(), drawn


def test_one_to_many():
    results, printed, _ = quick("one_to_many")
    assert results["perplexity"] < 0.9 * results["bigram_perplexity"] < 0.9 * 28  # 28: of a guess
    for line in printed.splitlines():
        if "->" in line:  # "  g -> get, getter"
            first, names = line.strip().split(" -> ")
            assert all(name.startswith(first) and name.isidentifier() for name in names.split(", "))


def test_one_to_many_is_the_same_with_one_thread_and_without_a_picture(capsys):
    with elman.threads(1):
        alone = load("one_to_many").main(["--quick"])
    results, printed, _ = quick("one_to_many")
    assert results == alone
    assert printed.splitlines()[:-1] == capsys.readouterr().out.splitlines()[:-1]  # the last one has the seconds


def test_letter_pairs_are_counted():
    one_to_many = load("one_to_many")
    name = np.array([one_to_many.LETTERS.index(letter) for letter in "ab\n"])
    assert one_to_many.bigram_perplexity([], [name]) == pytest.approx(28)
    # After "a" and after "b" one of 1 + 28 counts became 2, in each case for what comes.
    assert one_to_many.bigram_perplexity([name], [name]) == pytest.approx(29 / 2)


def test_one_to_one():
    pytest.importorskip("sklearn")
    results, printed, _ = quick("one_to_one")
    assert 0.8 < results["linear"] < results["accuracy"] <= 1
    assert printed.startswith(f"{results['accuracy']:.1%} of 450 digits ")


def test_many_to_one():
    pytest.importorskip("sklearn")
    results, _, _ = quick("many_to_one")
    assert 0.8 < results["accuracy"] <= 1


def test_many_to_many():
    results, _, _ = quick("many_to_many")
    assert results["majority"] < 0.5 and 0.8 < results["accuracy"] <= 1


def test_characters_are_tagged(tmp_path):
    many_to_many = load("many_to_many")
    source = '"""Two\nlines."""\nif x == "a":  # why, ä?\n\x0c\n    y = f"b{x}"\n'
    path = tmp_path / "source.py"
    path.write_text(source + "#" * many_to_many.PIECE, encoding="utf-8")
    x, y = many_to_many.read_modules([path])
    assert x.shape == y.shape == (1, many_to_many.PIECE) and x.max() == 127
    tags = [many_to_many.TAGS[tag] for tag in y[0]]
    found = {tag: "".join(c for c, t in zip(source, tags) if t == tag) for tag in many_to_many.TAGS}
    assert found["comment"] == "# why, ä?" and found["keyword"] == "if"
    assert found["string"].startswith('"""Two\nlines.""""a"f"b')
    assert found["name"][:2] == "xy" and "==" in found["other"]
    assert set(tags[len(source) :]) == {"comment"}


def test_encoder_decoder():
    results, printed, _ = quick("encoder_decoder")
    assert 0.9 < results["exact"] <= 1
    printed = printed.splitlines()
    assert len(printed) == 10 and printed[0].startswith("learned from 4000 dates; of 300 others ")


def test_dates_are_written_as_people_do():
    dates = load("encoder_decoder")
    day = datetime.date(1999, 5, 3)
    assert [dates.write(day, way) for way in dates.WAYS] == [
        "3 May 1999", "3 May 99", "May 3rd, 99", "May 3, 1999", "May 3, 1999", "the 3rd of May 1999",
        "Monday, 03.05.1999", "Monday, 3 May 1999", "Mon 3 May 1999", "3.5.99", "5/3/1999", "05/03/99", "3-May-1999",
        "1999, May 3",
    ]  # fmt: skip
    ends = {n: dates.write(datetime.date(2007, 12, n), dates.WAYS[2]) for n in (1, 2, 11, 12, 13, 21, 22, 23, 30)}
    assert [ends[n][len(f"December {n}") :] for n in ends] == [
        f"{th}, 07" for th in "st nd th th th st nd rd th".split()
    ]
    assert dates.write(datetime.date(2007, 12, 1), dates.WAYS[1]) == "1 Dec 07"
    x, y = dates.make_dates(3000, True, np.random.default_rng(0))
    others = dates.make_dates(3000, False, np.random.default_rng(0))[1]
    assert not set(y) & set(others) and len(set(y)) > 2000
    assert {"1930", "2029"} < {date[:4] for date in y} and all(dates.text(dates.tokens(date)) == date for date in y)
    assert all(0 <= dates.read(text).min() and dates.read(text).max() < 95 for text in x)


def test_forecasting():
    pytest.importorskip("statsmodels")
    results, _, _ = quick("forecasting")
    assert 5 < results["network"] < 0.9 * results["seasonal naive"] < results["naive"]


def test_the_forecasts_without_a_model_are_what_they_say():
    pytest.importorskip("statsmodels")
    results, _, _ = quick("forecasting")
    years, sunspots = load("forecasting").read_sunspots()
    number = dict(zip(years, sunspots))
    naive, seasonal = [], []
    for first in range(1957, 2005):  # of five years, until 2008
        for year in range(first, first + 5):
            naive.append(abs(number[year] - number[first - 1]))
            seasonal.append(abs(number[year] - number[year - 11]))
    assert results["naive"] == pytest.approx(np.mean(naive))
    assert results["seasonal naive"] == pytest.approx(np.mean(seasonal))


def test_beginners():
    pytest.importorskip("sklearn")
    results, _, _ = quick("beginners")
    assert set(results) == {"SimpleRNN(64, relu)", "LSTM(64, relu)"}
    assert all(0.75 < accuracy <= 1 for accuracy in results.values())


def test_japanese_vowels():
    pytest.importorskip("sktime")
    results, _, _ = quick("japanese_vowels")
    assert 1 / 9 < results["first_step"] < 0.8 < results["accuracy"] <= 1


def test_the_utterances_are_ragged():
    pytest.importorskip("sktime")
    x, speakers = load("japanese_vowels").read_utterances("train")
    assert len(x) == len(speakers) == 270 and set(speakers) == set(range(1, 10))
    assert {a.shape[1] for a in x} == {12} and min(map(len, x)) == 7 and max(map(len, x)) == 26
    assert all(np.isfinite(a).all() for a in x)


@pytest.mark.parametrize(
    "name, package, axes",
    [
        ("one_to_one", "sklearn", 19),
        ("one_to_many", None, 2),
        ("many_to_one", "sklearn", 7),
        ("japanese_vowels", "sktime", 2),
        ("many_to_many", None, 1),
        ("forecasting", "statsmodels", 2),
        ("beginners", "sklearn", 2),
        ("encoder_decoder", None, 1),
    ],
)
def test_pictures(name, package, axes):
    """The picture has something in it and is small."""
    pytest.importorskip("matplotlib")
    if package:
        pytest.importorskip(package)
    ((picture, options),) = quick(name)[2]
    assert picture.get_figwidth() * options["dpi"] == 800 and picture.get_figheight() * options["dpi"] <= 450
    assert len(picture.axes) == axes and any(ax.lines or ax.texts or ax.images for ax in picture.axes)


def test_a_picture_is_a_small_file(tmp_path):
    pytest.importorskip("matplotlib")
    ((picture, options),) = quick("encoder_decoder")[2]
    picture.savefig(tmp_path / "attention.png", **options)
    assert 5000 < (tmp_path / "attention.png").stat().st_size < 60_000


@pytest.mark.parametrize(
    "name, package",
    [
        ("one_to_one", "sklearn.datasets"),
        ("many_to_one", "sklearn.datasets"),
        ("beginners", "sklearn.datasets"),
        ("forecasting", "statsmodels.datasets"),
        ("japanese_vowels", "sktime.datasets"),
    ],
)
def test_a_missing_package_is_named(name, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package.split(".")[0], None)
    monkeypatch.setitem(sys.modules, package, None)
    install = {"sklearn": "scikit-learn"}.get(package.split(".")[0], package.split(".")[0])
    with pytest.raises(SystemExit, match=f"{name}.py needs {install} for its data: pip install {install}"):
        load(name).main(["--quick"])
