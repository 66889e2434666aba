"""What torch.utils.flop_counter.FlopCounterMode counts for the ops: their products, as torch counts its own.

A row times a matrix is two operations for each number of the matrix; the rest of a cell counts nothing.
"""

from math import prod

import torch
from torch.utils.flop_counter import register_flop_formula

from . import ops

MATRICES = [name for name in ops.INPUTS if name.startswith("w_")]

# The formulas get the shape of each tensor in its place. Rows are those of all steps: T·B, or packed N.


@register_flop_formula(torch.ops.rnnfast.recurrent)
def _(*values, out_shape=None):
    a = ops.RECURRENT.bind(values)
    return _products(a, dict.fromkeys(MATRICES, 1))


@register_flop_formula(torch.ops.rnnfast.recurrent_backward)
def _(*values, out_shape=None):
    a = ops.RECURRENT_BACKWARD.bind(values)
    needs = dict(zip(ops.INPUTS, a.needs, strict=True))
    # a matrix's own gradient, and that of what it multiplied: a state's leads to the step before
    return _products(a, {w: needs[w] + (needs["x"] or not w.startswith("w_ih")) for w in MATRICES})


def _products(a, times):
    """Of a layer whose matrices, each with its rows, make a product so many times."""
    shapes = [(getattr(a, name), n) for name, n in times.items()]
    return 2 * prod(a.x[:-1]) * sum(n * prod(shape) for shape, n in shapes if shape is not None)


@register_flop_formula(torch.ops.rnnfast.deep_transition)
def _(*values, out_shape=None):
    a = ops.DEEP_TRANSITION.bind(values)
    return 2 * prod(a.x[:-1]) * sum(map(prod, a.weights))


@register_flop_formula(torch.ops.rnnfast.deep_transition_backward)
def _(*values, out_shape=None):
    a = ops.DEEP_TRANSITION_BACKWARD.bind(values)
    # as above; of x and the state, which the first matrix multiplied, x's may not be asked for
    input_gradient = 0 if a.need_dx else a.weights[0][0] * a.x[-1]
    return 2 * prod(a.x[:-1]) * (2 * sum(map(prod, a.weights)) - input_gradient)
