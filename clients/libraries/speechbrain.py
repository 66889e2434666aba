"""SpeechBrain: its wrappers of torch.nn's layers, and its Li-GRU, which is a loop in Python."""

import sys
import types

import torch

# speechbrain imports torchaudio, to read files of sound; torchaudio's wheel wants CUDA's libraries
torchaudio = sys.modules.setdefault("torchaudio", types.ModuleType("torchaudio"))
torchaudio.__version__ = "2.0"

from speechbrain.nnet.RNN import GRU, LSTM, RNN, LiGRU  # noqa: E402

WHAT = "`LSTM`, `GRU`, `RNN`, `LiGRU`: 2 layers of 128 units in both directions, 8 rows of 100 steps"
SHAPE = 8, 100, 40  # rows, steps, features


def build():
    options = {"input_shape": SHAPE, "hidden_size": 128, "num_layers": 2, "bidirectional": True}
    model = torch.nn.ModuleDict({kind.__name__: kind(**options) for kind in (LSTM, GRU, RNN, LiGRU)})
    return model, (torch.randn(SHAPE), torch.linspace(0.5, 1, SHAPE[0]))  # lengths: parts of the longest


def forward(model, data):
    x, lengths = data
    lengths = {name: {} if name == "LiGRU" else {"lengths": lengths} for name in model}  # Li-GRU takes none
    return {name: layer(x, **lengths[name])[0] for name, layer in model.items()}


def loss(model, data):
    return sum(y.square().mean() for y in forward(model, data).values())
