"""The fastest way to run and train recurrent neural networks on a CPU. NumPy arrays in, NumPy arrays out."""

from . import diagnostics, functional, reference
from ._config import __version__, config, get_num_threads, set_num_threads, show_config, threads
from ._state import LSTMState
from .dense import Dense
from .layers import GRU, LSTM, RNN
from .losses import softmax_cross_entropy
from .optimizers import Adam, clip_grad_norm, clip_grad_value
from .saving import load, read_params, save, save_params

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Adam",
    "Dense",
    "LSTMState",
    "__version__",
    "clip_grad_norm",
    "clip_grad_value",
    "config",
    "diagnostics",
    "functional",
    "get_num_threads",
    "load",
    "read_params",
    "reference",
    "save",
    "save_params",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "threads",
]
