"""The ops in torch's own operators, for programs that are to hold no others.

torch.onnx.export asks for them by itself, of a program that torch.export has made; whoever else wants them
calls `decompositions`. torch.compile and torch.export do not: they keep the ops.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch._decomp import register_decomposition
from torch._higher_order_ops.scan import scan_op
from torch._ops import OpOverload

from . import _by_torch, ops, reference


def decompositions() -> dict[OpOverload, Callable[..., Any]]:
    """For `torch.export.ExportedProgram.run_decompositions`: a program of torch's core operators only.

    Examples:
        >>> import torch, rnnfast
        >>> program = torch.export.export(rnnfast.GRU(10, 20), (torch.randn(5, 3, 10),))
        >>> program = program.run_decompositions(rnnfast.decompositions())

    It can be saved, and be loaded where there is no rnnfast. Where the number of steps is dynamic the loop
    over time is torch's scan, else it is unrolled.

    Returns:
        `torch.export.default_decompositions()` and those of rnnfast's ops.
    """
    return torch.export.default_decompositions() | _TABLE


def _recurrent(*values):
    a = ops.RECURRENT.bind(values)
    w = [getattr(a, name) for name in ops.WEIGHTS]
    more = {name: getattr(a, name) for name in ops.EPISODES}
    packed = a.batch_sizes is not None
    T = (a.batch_sizes if packed else a.x).size(1 if a.batch_first and not packed else 0)
    by_torch = _by_torch.can_be_exported(a.mode, T, a.batch_sizes, a.w_hr)
    if by_torch and not a.all_states and all(t is None for t in more.values()):
        directions = [d for d in (w[:5], w[5:]) if d[0] is not None]
        options = (len(directions) == 2, a.batch_first, 0.0, False)
        y, hn, cn = _by_torch.layers(a.mode, a.x, a.h0, a.c0, directions, options, None)
        if torch.__version__ < (2, 13) and a.c0 is not None:
            # in a program that is decomposed once more, as for ONNX, torch 2.11 gives the states of all its
            # LSTMs but the first a dimension more
            hn, cn = hn.view(a.h0.shape), cn.view(a.c0.shape)
        cs = y.new_empty(0)
    else:
        walk = reference.walk if isinstance(T, int) else _scan
        how = {"batch_sizes": a.batch_sizes, "batch_first": a.batch_first, "all_states": a.all_states}
        y, hn, cn, cs = reference.recurrent(a.mode, a.x, a.h0, a.c0, *w, **how, **more, walk=walk)
    return y, hn, cn, *_unsaved(ops.fake_recurrent(*values)[3:5]), cs


def _deep_transition(*values):
    a = ops.DEEP_TRANSITION.bind(values)
    loop = reference.transitions if isinstance(a.x.size(1), int) else _scan_transitions
    results = reference.deep_transition(a.x, a.h0, a.weights, a.biases, a.negative_slope, loop)
    return *results, *_unsaved(ops.fake_deep_transition(*values)[2:])


def _scan(step, state, rows, weights, reverse=False, kept=1):
    """`reference.walk` for a number of steps that is not known: one operator, the loop in it."""
    n, m = len(state), len(rows)

    def body(*values):
        given = iter(values[n + m :])
        w = [None if w is None else next(given) for w in weights]
        new = step(values[:n], values[n : n + m], w)
        return [*new, *(s.clone() for s in new[:kept])]

    rows = [r.flip(0) if reverse else r for r in rows]
    results = scan_op(body, list(state), rows, [w for w in weights if w is not None])
    return [y.flip(0) if reverse else y for y in results[n:]], results[:n]


def _scan_transitions(x, h, weights, biases, negative_slope):
    """`reference.transitions`, likewise."""
    L = len(weights)

    def step(state, rows, w):
        return reference.transitions(rows[0].unsqueeze(1), *state, w[:L], w[L:], negative_slope)[1:]

    (y,), (h,) = _scan(step, (h,), (x.transpose(0, 1),), (*weights, *biases))
    return y.transpose(0, 1), h


def _unsaved(saved):
    """In place of what the ops save for backward, which cannot be had: a gradient made of it shows."""
    return [torch.full_like(t, torch.nan) for t in saved]


_TABLE = {ops.recurrent: _recurrent, ops.deep_transition: _deep_transition}
_FAKES = {ops.recurrent: ops.fake_recurrent, ops.deep_transition: ops.fake_deep_transition}

for _op in _TABLE:
    register_decomposition(_op)(_TABLE[_op])
    # else torch would run these instead of the fake kernels where a size is unknown, and freeze the steps
    register_decomposition(_op, type="meta")(_FAKES[_op])
