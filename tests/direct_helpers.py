"""What the tests of the straight way to a kernel share: layers and cells, inputs, and how a call went."""

from unittest import mock

import pytest
import torch
from helpers import CELLS, LAYERS, draw

from rnnfast import _paths, info

KINDS = [*CELLS, *LAYERS.keys() - {"lstm_proj"}]
cells = pytest.mark.parametrize("kind", list(CELLS))
layers = pytest.mark.parametrize("kind", sorted(LAYERS.keys() - {"lstm_proj"}))
kinds = pytest.mark.parametrize("kind", sorted(KINDS))


def inputs(kind, B=3, dtype=torch.float32, I=5, H=19, T=4):  # noqa: E741
    rows = (B,) if B else ()
    x, state = (rows, rows) if kind in CELLS else ((T, *rows), (1, *rows))
    x, h, c = (
        draw(*lead, n, seed=k, dtype=dtype) for k, (lead, n) in enumerate([(x, I), (state, H), (state, H)])
    )
    return x, ((h, c) if "lstm" in kind else h)


def by_the_op():
    """Within it no call goes straight: each takes the way through Python."""
    nothing = {name: lambda *args: None for name in ("try_cell", "try_layers")}
    return mock.patch.multiple(_paths, **nothing)


def ran():
    return info.last_run()["op"]
