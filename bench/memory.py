"""Peak memory of long sequences: `python bench/memory.py`. Each figure is one process's, beyond what it has with the
input in place (T=10,000, B=8, 64 -> 128, float32); PyTorch beside elman where it is installed.
"""

import importlib.util
import os
import subprocess
import sys

T, B, I, H = 10_000, 8, 64, 128
ELMAN = """
layer = getattr(elman, cell)(I, H, seed=0)
layer(x[:1])
before = peak()
if mode == "call":
    layer(x)
else:
    y, _, tape = layer.forward(x, recompute=mode == "recompute")
    layer.backward(tape, y)
"""
TORCH = """
import torch
torch.set_num_threads(1)
layer, x = getattr(torch.nn, cell)(I, H), torch.from_numpy(x)
x.requires_grad_(mode != "call")
with torch.no_grad():
    layer(x[:1])
before = peak()
with torch.set_grad_enabled(mode != "call"):
    y = layer(x)[0]
if mode != "call":
    y.backward(y.detach())
"""
PROGRAM = """
import resource, sys, numpy as np, elman
elman.set_num_threads(1)
T, B, I, H, cell, mode = {T}, {B}, {I}, {H}, {cell!r}, {mode!r}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 1024)
x = np.random.default_rng(0).standard_normal((T, B, I), np.float32)
{work}
print(peak() - before)
"""


def megabytes(work: str, cell: str, mode: str) -> float:
    code = PROGRAM.format(T=T, B=B, I=I, H=H, cell=cell, mode=mode, work=work)
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return float(run.stdout)


def main() -> None:
    has_torch = importlib.util.find_spec("torch") is not None
    print(
        f"MB beyond the input ({T * B * I * 4 / 2**20:.0f} MB) at the peak; y alone has {T * B * H * 4 / 2**20:.0f} MB"
    )
    print(f"{'T=10,000 B=8 64->128':24}{'call':>10}{'training':>10}{'recompute':>10}")
    for cell in ("LSTM", "GRU", "RNN"):
        print(f"{cell:24}" + "".join(f"{megabytes(ELMAN, cell, m):10.0f}" for m in ("call", "training", "recompute")))
        if has_torch:
            print(
                f"{cell + ' in PyTorch':24}"
                + "".join(f"{megabytes(TORCH, cell, m):10.0f}" for m in ("call", "training"))
            )


if __name__ == "__main__":
    main()
