"""What the tests inside torch share: every kind of layer and cell, with inputs and states."""

import pytest
import torch
from helpers import CELLS, LAYERS, draw

MARKS = [
    # torch.func.jvp and inductor load scripted parts of torch itself
    pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated:DeprecationWarning"),
]

F64 = {"dtype": torch.float64}
ops = torch.ops.rnnfast
each_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])


def input_for(kind, **kwargs):
    return draw(3, 4, **kwargs) if kind in CELLS else draw(5, 3, 4, **kwargs)


def states_of(kind):
    rows = (3,) if kind in CELLS else (1, 3)
    h = draw(*rows, 3 if "proj" in kind else 6, seed=5)
    return (h, draw(*rows, 6, seed=6)) if "lstm" in kind else h
