"""What vmap does with the backward ops: many cotangents at once, as for a Jacobian.

`torch.autograd.grad(..., is_grads_batched=True)`, `jacobian(vectorize=True)` and `torch.vmap` over
`torch.autograd.grad` send K cotangents through the backward of an ordinary forward. The gradients of x, h0
and c0 are made for many of them together, as more rows of the batch.
"""

from types import SimpleNamespace

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from . import ops

ROWS = 128  # in a call; more are hardly faster, and take more memory
FEWEST = 4  # cotangents in a call that pay for its second forward
STATES = {"x", "h0", "c0"}  # have rows of the batch, where a weight serves all


def _recurrent_backward(info, in_dims, *values):
    a, dims = ops.RECURRENT_BACKWARD.bind(values), ops.RECURRENT_BACKWARD.bind(in_dims)
    asked = {name for name, need in zip(ops.INPUTS, a.needs, strict=True) if need}
    batched = {name for name, dim in vars(dims).items() if isinstance(dim, int)}
    at_once = min(ROWS // max(a.h0.size(1), 1), info.batch_size)
    # The op adds up the gradient of a weight over all rows, whatever cotangent they belong to.
    plain = a.lengths is None and a.resets is None  # which are of each row
    if plain and at_once >= FEWEST and asked <= STATES and batched <= set(ops.COTANGENTS):
        return _as_rows(a, dims, info.batch_size, at_once)
    return _one_by_one(ops.recurrent_backward, info, in_dims, values)


def _deep_transition_backward(info, in_dims, *values):
    # The op always makes the weights' gradients: nothing tells whether they are asked for.
    return _one_by_one(ops.deep_transition_backward, info, in_dims, values)


def _as_rows(a, dims, K, at_once):
    """Chunks of k <= at_once cotangents, in which row b of the batch becomes rows b·k to b·k + k - 1."""
    # of each tensor the dimension in which its rows stand
    rows = dict.fromkeys(("h0", "c0", "dhn", "dcn"), 1)
    rows["x"] = rows["dy"] = rows["dcs"] = int(a.batch_sizes is None and not a.batch_first)
    chunks = -(-K // at_once)
    parts = {
        name: getattr(a, name).movedim(dim, 0).tensor_split(chunks)
        for name, dim in vars(dims).items()
        if isinstance(dim, int)
    }
    shared = {name: r for name, r in rows.items() if name not in parts and getattr(a, name) is not None}
    sizes = [part.size(0) for part in next(iter(parts.values()))]
    call, results = None, []
    for i, k in enumerate(sizes):
        if i == 0 or k != sizes[i - 1]:
            call = _repeated(a, shared, k)
        for name, of_chunk in parts.items():  # [k, ..., B, ...] -> [..., B·k, ...]
            r = rows[name]
            call[name] = of_chunk[i].movedim(0, r + 1).flatten(r, r + 1)
        results.append(ops.recurrent_backward(*call.values()))

    outputs, out_dims = [], []
    for name, need, of_chunks in zip(ops.INPUTS, a.needs, zip(*results, strict=True), strict=True):
        if need:
            r = rows[name]
            shapes = [(getattr(a, name).size(r), k) for k in sizes]
            of_chunks = [t.unflatten(r, shape) for t, shape in zip(of_chunks, shapes, strict=True)]
        outputs.append(torch.cat(of_chunks, r + 1) if need else of_chunks[0])
        out_dims.append(r + 1 if need else None)
    return tuple(outputs), tuple(out_dims)


def _repeated(a, rows, k):
    """The arguments of backward with every row of the tensors in `rows` k times; what is saved, too."""
    call = vars(a) | {name: getattr(a, name).repeat_interleave(k, r) for name, r in rows.items()}
    if a.batch_sizes is not None:
        call["batch_sizes"] = a.batch_sizes * k
    # How saved values lie only the kernels know: they are not repeated but made again.
    with torch.no_grad():
        outputs = ops.recurrent(*ops.RECURRENT.in_order(call | {"save": True}))
    saved = zip(ops.RECURRENT.results, outputs, strict=True)
    return call | {name: t for name, t in saved if name in call}


def _one_by_one(op, info, in_dims, values):
    """A call for each of the batch, their results stacked."""
    K = info.batch_size
    calls = zip(*(_of_each(value, dim, K) for value, dim in zip(values, in_dims, strict=True)), strict=True)
    results = [op(*call) for call in calls]
    outputs, out_dims = zip(*(_stacked(of_calls, K) for of_calls in zip(*results, strict=True)), strict=True)
    return outputs, out_dims


def _stacked(of_calls, K):
    """A result of each of K calls -> the batch of them, and its dimension, None of what is not asked for."""
    first = of_calls[0]
    if isinstance(first, list):
        pairs = [_stacked(of_one, K) for of_one in zip(*of_calls, strict=True)]
        return [t for t, _ in pairs], [dim for _, dim in pairs]
    return (first, None) if first.shape == (0,) else (torch.stack(of_calls)[:K], 0)


def _of_each(value, dim, K):
    """An argument in each of K calls; with K = 0 zeros in one call, for the shapes of its results."""
    if isinstance(value, list) and value:
        return [list(t) for t in zip(*map(_of_each, value, dim, [K] * len(value)), strict=True)]
    if dim is None or dim == []:
        return [value] * max(K, 1)
    return value.unbind(dim) or [value.sum(dim)]


def _by_older_vmap(rule):
    """The same rule as a kernel of the vmap that is_grads_batched uses, which has no helper for it."""

    def kernel(*values):
        # out of the level that is dealt with, so that what the rule calls is in the one above
        level = torch._C._vmapmode_decrement_nesting() + 1
        try:
            flat, spec = tree_flatten(values)
            # [K, ...], and [1, ...] of a tensor that this level has no batch of
            full = [torch._remove_batch_dim(t, level, 1, 0) if isinstance(t, Tensor) else None for t in flat]
            K = max(t.size(0) for t in full if t is not None)
            dims = [0 if t is not None and t.size(0) == K else None for t in full]
            flat = [t if dim is None else all_k for t, dim, all_k in zip(flat, dims, full, strict=True)]
            info = SimpleNamespace(batch_size=K)
            outputs, out_dims = rule(info, tree_unflatten(dims, spec), *tree_unflatten(flat, spec))
        finally:
            torch._C._vmapmode_increment_nesting()
        return tree_map(
            lambda t, dim: t if dim is None else torch._add_batch_dim(t, dim, level), outputs, out_dims
        )

    return kernel


_LIBRARY = torch.library.Library("rnnfast", "IMPL")  # its kernels last as long as it does

for _name, _rule in (
    ("recurrent_backward", _recurrent_backward),
    ("deep_transition_backward", _deep_transition_backward),
):
    torch.library.register_vmap(f"rnnfast::{_name}", _rule)
    _LIBRARY.impl(_name, _by_older_vmap(_rule), "Batched")
