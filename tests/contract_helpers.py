"""What the tests of the contract share: every kind of layer and cell, inputs, and the error of a call."""

import pytest
import torch
from helpers import CELLS, LAYERS, draw, of_torch

# torch's own LSTM says this of itself, once, when it meets a projection in float32
MARKS = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

each_layer = pytest.mark.parametrize("kind", of_torch(LAYERS))
each_cell = pytest.mark.parametrize("kind", of_torch(CELLS))
each_kind = pytest.mark.parametrize("kind", of_torch(LAYERS | CELLS))

F64 = {"dtype": torch.float64}


def failure(call):
    """The type and the text of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("nothing was raised")


def is_cell(kind):
    return kind in CELLS


def input_for(kind, **kwargs):
    return draw(5, 4, **kwargs) if is_cell(kind) else draw(7, 5, 4, **kwargs)


def zeros(*shape):
    return torch.zeros(*shape)
