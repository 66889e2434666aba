"""What torch must know of the ops beside their C++ kernels: shapes without data, and double backward.

The forward ops have their autograd in C++. Here the two backward ops get a fake kernel and a derivative:
the vector-Jacobian product is taken again through ``reference`` and differentiated there.
"""

from pathlib import Path

import torch

from . import reference

try:
    from . import _C as _C  # registers torch.ops.rnnfast.*; info reads it from here
except ImportError as error:
    folder = Path(__file__).parents[1]
    if (folder / "setup.py").exists() and not list(Path(__file__).parent.glob("_C.*")):
        hint = (
            f"this is the source folder {folder}, in which nothing is built: change to another folder to use "
            "the rnnfast that is installed, or build here with `make`."
        )
    else:
        hint = (
            f"{error}: build it against the torch that is installed with "
            "`pip install --no-build-isolation .` in rnnfast's source folder."
        )
    raise ImportError(f"rnnfast's compiled extension did not load: {hint}") from error


recurrent = torch.ops.rnnfast.recurrent.default
recurrent_backward = torch.ops.rnnfast.recurrent_backward.default
deep_transition = torch.ops.rnnfast.deep_transition.default
deep_transition_backward = torch.ops.rnnfast.deep_transition_backward.default

try_cell = _C.try_cell
try_layers = _C.try_layers
freeze = _C.freeze

CELLS = {
    "lstm": {"gates": 4, "slots": 4, "has_cell": True},
    "gru": {"gates": 3, "slots": 4, "has_cell": False},
    "rnn_tanh": {"gates": 1, "slots": 1, "has_cell": False},
    "rnn_relu": {"gates": 1, "slots": 1, "has_cell": False},
}
SLOTS = {"lstm": 4, "gru": 4, "rnn_tanh": 1, "rnn_relu": 1}  # values saved for each unit and step
LANES = 16  # saved buffers are padded to whole vectors


def _padded(n):
    return (n + LANES - 1) // LANES * LANES


def _saved(mode, x, D, N, H):
    """Shapes of the gates and cells that a layer saves for backward."""
    values = SLOTS[mode]
    if x.device.type != "cpu":
        return (D, N, values, _padded(H)), (D, N, _padded(H))
    # a row of the biases more; and an RNN's only value is y, where that is not rounded
    if values == 1 and reference.compute_dtype(x.dtype) == x.dtype:
        values = 0
    return D * (N + 1) * values * _padded(H), D * N * _padded(H)


WEIGHTS = ("w_ih", "w_hh", "b_ih", "b_hh", "w_hr")
INPUTS = ("x", "h0", "c0", *WEIGHTS, *(f"{name}_r" for name in WEIGHTS))
REQUIRED = ("x", "h0", "w_ih", "w_hh", "y", "gates", "cells", "acts")


def _check_devices(op, named):
    """All of a call on the device of x: a tensor with data beside one without would be left unread."""
    for name, t in named.items():
        if t is None and (name in REQUIRED or "[" in name):
            raise RuntimeError(f"rnnfast::{op}: {name} is an undefined tensor")
        expected = named["x"].device
        if t is not None and t.device != expected:
            raise RuntimeError(f"rnnfast::{op}: {name} is on {t.device}, expected {expected}, as x")


def _numbered(name, tensors):
    return {f"{name}[{i}]": t for i, t in enumerate(tensors)}


def _check_batch_sizes(op, batch_sizes):
    if batch_sizes is not None and batch_sizes.device.type != "cpu":
        raise RuntimeError(f"rnnfast::{op}: batch_sizes is on {batch_sizes.device}, expected cpu")


@torch.library.register_fake("rnnfast::recurrent")
def _(
    mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r, batch_sizes,
    batch_first, save, lengths=None, resets=None, h_mask=None, zoneout_mask=None,
):  # fmt: skip
    inputs = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r)
    _check_devices("recurrent", dict(zip(INPUTS, inputs, strict=True)))
    _check_batch_sizes("recurrent", batch_sizes)
    D, B, P = h0.shape
    H = P if w_hr is None else w_hr.size(1)
    N = x.size(0) if batch_sizes is not None else x.size(0) * x.size(1)
    saved = x.new_empty(0, dtype=reference.compute_dtype(x.dtype))
    y = x.new_empty((*x.shape[:-1], D * P))
    hn = x.new_empty((D, B, P))
    cn = x.new_empty((D, B, H) if mode == "lstm" else 0)
    gates, cells = _saved(mode, x, D, N, H)
    gates = saved.new_empty(gates if save else 0)
    cells = saved.new_empty(cells if save and mode == "lstm" else 0)
    return y, hn, cn, gates, cells


@torch.library.register_fake("rnnfast::recurrent_backward")
def _(
    dy, dhn, dcn, mode, x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r,
    batch_sizes, batch_first, y, gates, cells, needs,
):  # fmt: skip
    inputs = (x, h0, c0, w_ih, w_hh, b_ih, b_hh, w_hr, w_ih_r, w_hh_r, b_ih_r, b_hh_r, w_hr_r)
    saved = {"y": y, "gates": gates, "cells": cells, "dy": dy, "dhn": dhn, "dcn": dcn}
    _check_devices("recurrent_backward", dict(zip(INPUTS, inputs, strict=True)) | saved)
    _check_batch_sizes("recurrent_backward", batch_sizes)
    return tuple(
        x.new_empty(t.shape if need and t is not None else 0) for t, need in zip(inputs, needs, strict=True)
    )


@torch.library.register_fake("rnnfast::deep_transition")
def _(x, h0, weights, biases, negative_slope, save):
    lists = _numbered("weights", weights) | _numbered("biases", biases)
    _check_devices("deep_transition", {"x": x, "h0": h0} | lists)
    B, T, _ = x.shape
    H = h0.size(1)
    inner = sum(_padded(w.size(0)) for w in weights[:-1]) if save else 0
    acts = x.new_empty(B * T * inner, dtype=reference.compute_dtype(x.dtype))
    return x.new_empty((B, T, H)), x.new_empty((B, H)), acts


@torch.library.register_fake("rnnfast::deep_transition_backward")
def _(dy, dhn, x, h0, weights, biases, negative_slope, y, acts, need_dx, need_dh0):
    lists = _numbered("weights", weights) | _numbered("biases", biases)
    tensors = {"x": x, "h0": h0, "y": y, "acts": acts, "dy": dy, "dhn": dhn}
    _check_devices("deep_transition_backward", tensors | lists)
    return (
        x.new_empty(x.shape if need_dx else 0),
        x.new_empty(h0.shape if need_dh0 else 0),
        [x.new_empty(w.shape) for w in weights],
        [x.new_empty(b.shape) for b in biases],
    )


def _double_backward(forward, cotangents, inputs, wanted, grads):
    """Derivative of the vector-Jacobian product of `forward`, in the order [*cotangents, *inputs].

    forward(*inputs) -> outputs, one for each cotangent; a cotangent or an input may be None. `wanted` says
    of each whether its gradient is asked for; `grads` are those of the product's results, one for each
    input, None where nothing flows. What was saved for the first backward gets no gradient: here it is
    recomputed from the inputs, so everything flows through these.
    """
    slots = [*cotangents, *inputs]
    n = len(cotangents)
    free = [i for i, t in enumerate(slots) if t is not None and wanted[i]]
    used = [i for i, g in enumerate(grads) if g is not None and inputs[i] is not None]
    result = [None] * len(slots)
    if not free or not used or all(d is None for d in cotangents):
        return result

    def product(*values):
        v = list(slots)
        for i, value in zip(free, values, strict=True):
            v[i] = value

        def outputs(*some):
            args = list(v[n:])
            for i, value in zip(used, some, strict=True):
                args[i] = value
            return tuple(o for o, d in zip(forward(*args), cotangents, strict=True) if d is not None)

        _, pull = torch.func.vjp(outputs, *(v[n + i] for i in used))
        return pull(tuple(d for d in v[:n] if d is not None))

    _, pull = torch.func.vjp(product, *(slots[i] for i in free))
    for i, g in zip(free, pull(tuple(grads[i] for i in used)), strict=True):
        result[i] = g
    return result


def _save_recurrent(ctx, inputs, output):
    *cotangents, mode, x, h0, c0 = inputs[:7]
    weights, (batch_sizes, batch_first), needs = inputs[7:17], inputs[17:19], inputs[22]
    ctx.save_for_backward(*cotangents, x, h0, c0, *weights, batch_sizes)
    ctx.set_materialize_grads(False)
    ctx.mode, ctx.batch_first, ctx.needs = mode, batch_first, needs


def _differentiate_recurrent(ctx, *grads):
    *slots, batch_sizes = ctx.saved_tensors
    cotangents, inputs = slots[:3], slots[3:]

    def forward(*inputs):
        return reference.recurrent(ctx.mode, *inputs, batch_sizes, ctx.batch_first)

    wanted = [*ctx.needs_input_grad[:3], *ctx.needs_input_grad[4:17]]
    grads = [g if need else None for g, need in zip(grads, ctx.needs, strict=True)]
    found = _double_backward(forward, cotangents, inputs, wanted, grads)
    return (*found[:3], None, *found[3:], *[None] * 6)


def _save_deep_transition(ctx, inputs, output):
    dy, dhn, x, h0, weights, biases, ctx.negative_slope, _, _, *ctx.needs = inputs
    ctx.save_for_backward(dy, dhn, x, h0, *weights, *biases)
    ctx.set_materialize_grads(False)
    ctx.depth, ctx.n_biases = len(weights), len(biases)


def _differentiate_deep_transition(ctx, *grads):
    slots = ctx.saved_tensors
    cotangents, inputs = slots[:2], slots[2:]
    depth = ctx.depth

    def forward(x, h0, *w):
        return reference.deep_transition(x, h0, list(w[:depth]), list(w[depth:]), ctx.negative_slope)

    need = ctx.needs_input_grad
    wanted = [*need[:4], *need[4], *need[5]]
    state = [g if n else None for g, n in zip(grads[:2], ctx.needs, strict=True)]
    found = _double_backward(forward, cotangents, inputs, wanted, [*state, *grads[2], *grads[3]])
    return (*found[:4], found[4 : 4 + depth], found[4 + depth :], *[None] * 5)


torch.library.register_autograd(
    "rnnfast::recurrent_backward", _differentiate_recurrent, setup_context=_save_recurrent
)
torch.library.register_autograd(
    "rnnfast::deep_transition_backward", _differentiate_deep_transition, setup_context=_save_deep_transition
)
