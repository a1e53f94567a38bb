"""The fastest way to run and train recurrent neural networks on a CPU. NumPy arrays in, NumPy arrays out."""

from . import diagnostics, functional, gate_orders, initializers, losses, metrics, reference, schedules
from ._config import __version__, config, get_num_threads, set_num_threads, show_config, threads
from ._state import LSTMState, SLSTMState
from .activation import Activation, log_softmax, softmax
from .attention import AdditiveAttention, DotAttention
from .callbacks import Callback, Checkpoint, EarlyStopping
from .cells import AUGRU, MGU, QRNN, SLSTM, SRU, CfC, IndRNN, Jordan, MinGRU, MinLSTM
from .custom import Custom
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding
from .esn import ESN
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
from .optimizers import SGD, Adam, AdamW, RMSprop, clip_grad_norm, clip_grad_value
from .pooling import Pooling
from .saving import load, load_checkpoint, read_params, save, save_checkpoint, save_params
from .seq2seq import Seq2Seq
from .sequential import Sequential
from .tdnn import TDNN
from .training import History

__all__ = [
    "AUGRU",
    "ESN",
    "SRU",
    "IndRNN",
    "Jordan",
    "MGU",
    "QRNN",
    "CfC",
    "MinGRU",
    "MinLSTM",
    "GRU",
    "LSTM",
    "RNN",
    "SGD",
    "SLSTM",
    "SLSTMState",
    "TDNN",
    "Activation",
    "Adam",
    "AdamW",
    "AdditiveAttention",
    "Callback",
    "Checkpoint",
    "Custom",
    "Dense",
    "DotAttention",
    "Dropout",
    "EarlyStopping",
    "Embedding",
    "History",
    "LSTMState",
    "Pooling",
    "RMSprop",
    "Seq2Seq",
    "Sequential",
    "__version__",
    "binary_cross_entropy",
    "clip_grad_norm",
    "clip_grad_value",
    "config",
    "ctc",
    "diagnostics",
    "functional",
    "gate_orders",
    "get_num_threads",
    "huber",
    "initialize",
    "initializers",
    "load",
    "load_checkpoint",
    "log_softmax",
    "losses",
    "mean_absolute_error",
    "mean_squared_error",
    "metrics",
    "read_params",
    "reference",
    "save",
    "save_checkpoint",
    "save_params",
    "schedules",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_cross_entropy",
    "threads",
]
