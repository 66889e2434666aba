"""The layers by torch's own operators, for whoever knows no other: a trace, ONNX, gradients of single rows.

Nothing is read back from a tensor, so a graph that is recorded here serves any number of rows and steps.
"""

import contextlib
import functools
import sys
import types
import warnings

import torch
from torch import Tensor

from . import reference
from .ops import CELLS


def operator(mode):
    """torch's operator for layers of this kind, or None."""
    return getattr(torch._VF, mode, None)


def can_be_exported(mode, steps, batch_sizes, w_hr):
    """Whether an exported program can hold torch's operator.

    torch unrolls it for an unknown number of steps, without a word, and for packed rows it reads batch_sizes
    back; its LSTM with a projection becomes a wrong one in ONNX.
    """
    return operator(mode) is not None and isinstance(steps, int) and batch_sizes is None and w_hr is None


def layers(mode, x, h0, c0, weights, options, batch_sizes):
    """All layers of one kind -> y, h_n, c_n: `_paths.layers` with every state given, five weights a layer."""
    op = operator(mode)
    if op is None:
        raise RuntimeError(
            f"torch has no operator for the cell {mode!r}, so a trace or an export to ONNX cannot record it; "
            "torch.compile and torch.export can"
        )
    bidirectional, batch_first, dropout, training = options
    flat = [w for direction in weights for w in direction if w is not None]
    hx = (h0, c0) if CELLS[mode]["has_cell"] else h0
    L = len(weights) // (1 + bidirectional)
    how = (weights[0][2] is not None, L, float(dropout), training, bidirectional)
    # without oneDNN's, which expanded weights do not know, an LSTM is made of products, as the others are
    with _without_onednn() if are_expanded(weights) else contextlib.nullcontext():
        if batch_sizes is not None:
            y, h, *c = op(x, batch_sizes, hx, flat, *how)
        else:
            y, h, *c = op(x, hx, flat, *how, batch_first)
            y = y.contiguous()  # as ours: torch's batch_first output is a transposed view
    return y, h, c[0] if c else x.new_empty(0)


def are_expanded(weights):
    """Whether call_for_per_sample_grads asks for the gradients of each row; it knows torch's operators."""
    module = sys.modules.get("torch.nn.utils._expanded_weights")  # of which nobody has one before
    return module is not None and any(isinstance(w, module.ExpandedWeight) for d in weights for w in d)


@contextlib.contextmanager
def _without_onednn():
    """As torch.backends.mkldnn.flags(enabled=False), which also sets TF32 and then warns."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def deep_transition(x, h0, weights, biases, negative_slope):
    """`reference.deep_transition` in a trace: its loop over time is recorded as a loop."""
    loop = _scripted(len(weights), bool(biases))
    return reference.deep_transition(x, h0, weights, biases, negative_slope, loop)


@functools.cache
def _scripted(depth, bias):
    """`reference.transitions` in TorchScript, for a perceptron of so many layers.

    Its lists become tuples, of a known length: what goes through the layers is then no loop within the loop,
    of which torch's export to ONNX would make a wrong graph.
    """
    source = reference.transitions
    known = {"Weights": tuple[(Tensor,) * depth], "Biases": tuple[(Tensor if bias else None,) * depth]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # whoever traces has been told so
        return torch.jit.script(types.FunctionType(source.__code__, {**source.__globals__, **known}))
