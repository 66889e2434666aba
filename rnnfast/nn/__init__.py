"""Drop-in recurrent modules: torch.nn's constructors, parameters, errors and outputs on fused kernels."""

from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert, revert
from .deep_transition import DeepTransitionRNN
from .freeze import freeze, unfreeze
from .layers import GRU, LSTM, RNN

__all__ = [
    "GRU", "LSTM", "RNN", "DeepTransitionRNN", "GRUCell", "LSTMCell", "RNNCell", "convert", "freeze",
    "revert", "unfreeze",
]  # fmt: skip
