"""Silero VAD: a trained detector of voice that its package ships as TorchScript, with an LSTMCell inside."""

import torch
from silero_vad import load_silero_vad

WHAT = "the packaged TorchScript model: an `LSTMCell` of 128 units; 32 chunks of 512 samples at 16 kHz"
NOT_CONVERTED = "TorchScript holds no modules of Python's; `convert` says so"


def build():
    return load_silero_vad(), torch.randn(32, 1, 512)


def forward(model, chunks):
    model.reset_states()
    return {"voice": torch.cat([model(chunk, 16_000) for chunk in chunks])}


def loss(model, chunks):
    return forward(model, chunks)["voice"].square().mean()
