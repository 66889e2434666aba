"""Transformers: EnCodec, a codec for sound whose encoder and decoder have an LSTM each."""

import torch
from transformers import EncodecConfig, EncodecModel

WHAT = "`EncodecModel(EncodecConfig())`, random weights: two LSTMs, 2 layers of 512 units; a second at 24 kHz"


def build():
    return EncodecModel(EncodecConfig()), torch.randn(1, 1, 24_000)


def forward(model, x):
    return {"embeddings": model.encoder(x), "sound": model.decoder(model.encoder(x))}


def loss(model, x):
    return (forward(model, x)["sound"] - x).abs().mean()
