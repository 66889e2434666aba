"""Shared by the tests of traces and exports: models with every kind of input, and inputs of any size."""

import torch
from helpers import draw
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

# What stands in a graph must serve other numbers of rows and steps than those it was recorded with.
RECORDED, *REPLAYED = [(5, 3), (7, 2), (3, 4)]  # T, B
FORMS = ("batched", "unbatched", "packed", "packed_unsorted")


class Padded(torch.nn.Module):
    """Padded rows and their lengths through a layer as a PackedSequence -> padded output, lengths, states."""

    def __init__(self, layer, enforce_sorted):
        super().__init__()
        self.layer, self.enforce_sorted = layer, enforce_sorted

    def forward(self, x, lengths, hx=None):
        first = self.layer.batch_first
        rows = pack_padded_sequence(x, lengths, batch_first=first, enforce_sorted=self.enforce_sorted)
        y, state = self.layer(rows, hx)
        return *pad_packed_sequence(y, batch_first=first), state


def model_for(form, layer):
    return Padded(layer, form == "packed") if form.startswith("packed") else layer


def inputs_for(form, layer, sizes, given=False):
    """Inputs of a `model_for`: T, B = sizes, with states where given; packed rows differ in length."""
    T, B = sizes
    rows = () if form == "unbatched" else (B,)
    x = draw(*((B, T) if rows and layer.batch_first else (T, *rows)), layer.input_size, dtype=torch.float32)
    inputs = [x]
    if form.startswith("packed"):
        lengths = torch.tensor([max(T - 2 * b, 1) for b in range(B)])
        inputs.append(lengths.flip(0) if form == "packed_unsorted" else lengths)
    if given:
        n = layer.num_layers * (1 + layer.bidirectional)
        h = draw(n, *rows, layer.proj_size or layer.hidden_size, seed=2, dtype=torch.float32)
        c = draw(n, *rows, layer.hidden_size, seed=3, dtype=torch.float32)
        inputs.append((h, c) if layer.mode == "LSTM" else h)
    return tuple(inputs)


def cell_inputs(cell, rows, given=False):
    """Inputs of a cell: rows is (B,), or () for none."""
    x, h, c = (
        draw(*rows, n, seed=n + k, dtype=torch.float32)
        for k, n in enumerate([cell.input_size, cell.hidden_size, cell.hidden_size])
    )
    return (x, (h, c) if "LSTM" in type(cell).__name__ else h) if given else (x,)
