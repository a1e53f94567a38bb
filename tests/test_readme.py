"""The README's Python runs, one block after the other, in an empty folder, and does what it says."""

import re
from pathlib import Path

from processes import output_of

README = Path(__file__).parent.parent / "README.md"

CHECKS = """
assert h_n.shape == c_n.shape == (2, 8, 128) and out.shape == (1, 128) and np.abs(out).max() > 0
assert loss < 0.5, loss  # at first ln 2
accuracies = history.history["accuracy"][-1], model.evaluate(sequences, labels, metrics=["accuracy"])["accuracy"]
assert min(accuracies) > 0.7 and probabilities.shape == (3, 2) and epoch == 5 and adam.steps == 8 * 16, accuracies
right = np.mean([np.array_equal(a, source[::-1]) for a, source in zip(reverser.predict(sources), sources)])
assert right > 0.7, right
print("all", "as it should be")
"""


def test_python(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    alone = [block for block in blocks if "mpi4py" not in block]  # the other one is for ranks
    assert len(blocks) == 7 and len(alone) == 6
    alone[0] += "h_n, c_n = h, c\n"  # whose names are those of other things later
    start = f"import os\nos.chdir({str(tmp_path)!r})\n"
    assert output_of("".join([start, *alone, CHECKS])).endswith("all as it should be")
    assert {path.name for path in tmp_path.iterdir()} == {"signs.safetensors", "last.safetensors"}
