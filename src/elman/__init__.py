"""The fastest way to run and train recurrent neural networks on a CPU. NumPy arrays in, NumPy arrays out."""

from . import functional, initializers, losses, metrics, reference
from ._config import __version__, config, get_num_threads, set_num_threads, show_config, threads
from ._state import LSTMState
from .dense import Dense
from .initializers import initialize
from .layers import GRU, LSTM, RNN
from .losses import (
    binary_cross_entropy,
    ctc,
    huber,
    mean_absolute_error,
    mean_squared_error,
    softmax_cross_entropy,
)
from .optimizers import Adam, clip_grad_norm, clip_grad_value

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Adam",
    "Dense",
    "LSTMState",
    "__version__",
    "binary_cross_entropy",
    "clip_grad_norm",
    "clip_grad_value",
    "config",
    "ctc",
    "functional",
    "get_num_threads",
    "huber",
    "initialize",
    "initializers",
    "losses",
    "mean_absolute_error",
    "mean_squared_error",
    "metrics",
    "reference",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "threads",
]
