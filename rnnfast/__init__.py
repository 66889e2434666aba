"""rnnfast: recurrent layers for PyTorch on fused kernels; drop-in for torch.nn's RNN, LSTM, GRU and cells."""

import importlib

from . import _batching, _flops, functional, reference  # noqa: F401 (the first two register with torch)
from ._decompositions import decompositions
from ._enable import disable, enable, enable_as_asked, enabled
from .nn import (
    GRU,
    LSTM,
    RNN,
    DeepTransitionRNN,
    GRUCell,
    LSTMCell,
    RNNCell,
    convert,
    freeze,
    revert,
    unfreeze,
)

__version__ = "0.1.0"

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "DeepTransitionRNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "convert",
    "decompositions",
    "disable",
    "enable",
    "enabled",
    "freeze",
    "functional",
    "info",
    "reference",
    "revert",
    "testing",
    "unfreeze",
]


def __getattr__(name):
    # Loaded on first use: `python -m rnnfast.info` must be the first to load info, and few need testing.
    if name in ("info", "testing"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


enable_as_asked()
