"""The fastest way to run and train recurrent neural networks on a CPU. NumPy arrays in, NumPy arrays out."""

from . import functional, reference
from ._config import __version__, config, get_num_threads, set_num_threads, show_config, threads
from .layers import GRU, LSTM, RNN

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "__version__",
    "config",
    "functional",
    "get_num_threads",
    "reference",
    "set_num_threads",
    "show_config",
    "threads",
]
