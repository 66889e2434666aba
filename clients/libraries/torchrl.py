"""TorchRL: an LSTM and a GRU that read and write tensordicts."""

import torch
from tensordict import TensorDict
from torchrl.modules import GRUModule, LSTMModule, set_recurrent_mode

WHAT = "`LSTMModule`, `GRUModule`: 128 units as in its DQN tutorial; 4 rollouts of 50 steps, episodes inside"
ROWS, STEPS, FEATURES, UNITS = 4, 50, 64, 128


def build():
    kinds = {"LSTM": LSTMModule, "GRU": GRUModule}
    model = torch.nn.ModuleDict(
        {name: kind(FEATURES, UNITS, in_key="x", out_key="y") for name, kind in kinds.items()}
    )
    starts = torch.rand(ROWS, STEPS, 1) < 0.1
    return model, TensorDict({"x": torch.randn(ROWS, STEPS, FEATURES), "is_init": starts}, [ROWS, STEPS])


def convert(model):
    import rnnfast.torchrl

    rnnfast.torchrl.convert(model)


def forward(model, data):
    with set_recurrent_mode(True):
        return {name: module(data.clone())["y"] for name, module in model.items()}


def loss(model, data):
    return sum(y.square().mean() for y in forward(model, data).values())
