"""What really runs: our ops, forward and backward, and never one of torch's own recurrences."""

import re

import pytest
import torch
from helpers import CELLS, LAYERS, draw, packed, pair, total
from torch.profiler import ProfilerActivity, profile

import rnnfast

# aten::lstm, aten::rnn_tanh, aten::mkldnn_rnn_layer_backward, aten::_cudnn_rnn, aten::gru_cell, ...
RECURRENCE = re.compile(
    r"(^|::)(quantized_)?(lstm|gru|rnn_tanh|rnn_relu)(\.|$)|mkldnn_rnn|cudnn_rnn|miopen_rnn|_mps|_cell|_thnn_fused"
)

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FORMS = {
    "plain": {},
    "bidirectional": {"bidirectional": True, "num_layers": 2},
    "batch_first_no_bias": {"batch_first": True, "bias": False},
    "packed": {},
    "one_step": {},
    "unbatched": {},
}


def names_run_by(call):
    """The names of all operators that run in a call and in the backward of its output."""
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        output = call()
        total(output).backward()
    return {event.name for event in recorded.events()}


def input_of(form, dtype):
    if form == "packed":
        return packed(3, 5, dtype=dtype)
    shape = {"one_step": (1, 1, 4), "unbatched": (5, 4)}.get(form, (5, 3, 4))
    return draw(*shape, dtype=dtype)


def recurrences(names):
    return sorted(name for name in names if RECURRENCE.search(name))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_run_our_ops_and_no_recurrence_of_torch(kind, form, dtype):
    ours, _ = pair(kind, 4, 6, dtype=dtype, **FORMS[form])
    names = names_run_by(lambda: ours(input_of(form, dtype)))
    assert recurrences(names) == []
    assert {"rnnfast::recurrent", "rnnfast::recurrent_backward"} <= names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", CELLS)
def test_cells_run_our_ops_and_no_cell_of_torch(kind, dtype):
    ours, _ = pair(kind, 4, 6, dtype=dtype)
    names = names_run_by(lambda: ours(draw(3, 4, dtype=dtype)))
    assert recurrences(names) == []
    assert {"rnnfast::recurrent", "rnnfast::recurrent_backward"} <= names


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_deep_transition_runs_our_ops(dtype):
    model = rnnfast.DeepTransitionRNN(4, 6, dtype=dtype)
    names = names_run_by(lambda: model(draw(3, 5, 4, dtype=dtype)))
    assert recurrences(names) == []
    assert {"rnnfast::deep_transition", "rnnfast::deep_transition_backward"} <= names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_the_same_check_finds_the_recurrence_in_torchs_own_modules(kind, dtype):
    _, theirs = pair(kind, 4, 6, dtype=dtype)
    x = draw(3, 4, dtype=dtype) if kind in CELLS else draw(5, 3, 4, dtype=dtype)
    assert recurrences(names_run_by(lambda: theirs(x))) != []
