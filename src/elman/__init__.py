"""The fastest way to run and train recurrent neural networks on a CPU. NumPy arrays in, NumPy arrays out."""

from . import diagnostics, functional, reference, schedules
from ._config import __version__, config, get_num_threads, set_num_threads, show_config, threads
from ._state import LSTMState
from .activation import Activation
from .callbacks import Callback, Checkpoint, EarlyStopping
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding
from .layers import GRU, LSTM, RNN
from .losses import softmax_cross_entropy
from .optimizers import SGD, Adam, AdamW, RMSprop, clip_grad_norm, clip_grad_value
from .pooling import Pooling
from .saving import load, read_params, save, save_params
from .sequential import Sequential
from .tdnn import TDNN
from .training import History

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "TDNN",
    "Activation",
    "Adam",
    "Callback",
    "Checkpoint",
    "SGD",
    "AdamW",
    "Dense",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "History",
    "LSTMState",
    "Pooling",
    "Sequential",
    "RMSprop",
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
    "schedules",
    "save",
    "save_params",
    "set_num_threads",
    "show_config",
    "softmax_cross_entropy",
    "threads",
]
