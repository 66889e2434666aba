"""What torch must know of the ops beside their C++ kernels: shapes without data, and double backward.

The forward ops have their autograd in C++. Here the two backward ops get a fake kernel and a derivative:
the vector-Jacobian product is taken again through ``reference`` and differentiated there.
"""

import itertools
from types import SimpleNamespace

import torch

from . import reference
from ._load import load

_C = load()  # registers torch.ops.rnnfast.*; info reads it from here

recurrent = torch.ops.rnnfast.recurrent.default
recurrent_backward = torch.ops.rnnfast.recurrent_backward.default
deep_transition = torch.ops.rnnfast.deep_transition.default
deep_transition_backward = torch.ops.rnnfast.deep_transition_backward.default

try_cell = _C.try_cell
try_layers = _C.try_layers
freeze = _C.freeze
open_stack, close_stack = _C.open_stack, _C.close_stack

# of each mode what its cell has: gates, slots (values saved for each unit and step), has_cell (c)
CELLS = _C.cells()
if CELLS.keys() != reference.CELLS.keys():
    raise ImportError(
        f"rnnfast.reference.CELLS has {', '.join(reference.CELLS)}; the compiled extension has "
        f"{', '.join(CELLS)}: expected the same cells"
    )

LANES = 16  # saved buffers are padded to whole vectors


def _padded(n):
    return (n + LANES - 1) // LANES * LANES


def _saved(mode, x, D, N, H):
    """Shapes of the gates and cells that a layer saves for backward."""
    values = CELLS[mode]["slots"]
    if x.device.type != "cpu":
        return (D, N, values, _padded(H)), (D, N, _padded(H))
    # a row of the biases more; and an RNN's only value is y, where that is not rounded
    if values == 1 and reference.compute_dtype(x.dtype) == x.dtype:
        values = 0
    return D * (N + 1) * values * _padded(H), D * N * _padded(H)


class _Schema:
    """What the fake kernels and the derivatives read of an op's schema: names and kinds, in its order."""

    def __init__(self, op):
        self.op = op._schema.name
        self.kinds = {argument.name: str(argument.type) for argument in op._schema.arguments}
        self.results = [result.name for result in op._schema.returns]

    def bind(self, values):
        """The arguments of a call by name; a default that is not given is None."""
        return SimpleNamespace(**dict(itertools.zip_longest(self.kinds, values)))

    def bind_on_one_device(self, values):
        """The same, of tensors without data: one with data beside them would be left unread."""
        call = self.bind(values)
        for name, kind in self.kinds.items():
            value = getattr(call, name)
            if kind == "List[Tensor]":
                for i, t in enumerate(value):
                    self._check(f"{name}[{i}]", t, call.x.device)
            elif kind == "Tensor" or (kind == "Optional[Tensor]" and value is not None):
                self._check(name, value, call.x.device)
        return call

    def _check(self, name, t, device):
        if t is None:
            raise RuntimeError(f"{self.op}: {name} is an undefined tensor")
        if name == "batch_sizes" and t.device.type != "cpu":
            raise RuntimeError(f"{self.op}: batch_sizes is on {t.device}, expected cpu")
        on_the_cpu = name in ("batch_sizes", "lengths") and t.device.type == "cpu"
        if not on_the_cpu and t.device != device:
            raise RuntimeError(f"{self.op}: {name} is on {t.device}, expected {device}, as x")

    def in_order(self, found):
        """One value for each argument: found[name], or None."""
        return tuple(found.get(name) for name in self.kinds)


RECURRENT = _Schema(recurrent)
RECURRENT_BACKWARD = _Schema(recurrent_backward)
DEEP_TRANSITION = _Schema(deep_transition)
DEEP_TRANSITION_BACKWARD = _Schema(deep_transition_backward)

INPUTS = [result[1:] for result in RECURRENT_BACKWARD.results]  # what gets a gradient: x, h0, ...
WEIGHTS = INPUTS[3:13]
COTANGENTS = ("dy", "dhn", "dcn", "dcs")
EPISODES = ("lengths", "resets", "reset_h", "reset_c")


@torch.library.register_fake("rnnfast::recurrent")
def fake_recurrent(*values):
    a = RECURRENT.bind_on_one_device(values)
    x, has_cell = a.x, CELLS[a.mode]["has_cell"]
    D, B, P = a.h0.shape
    H = P if a.w_hr is None else a.w_hr.size(1)
    N = x.size(0) if a.batch_sizes is not None else x.size(0) * x.size(1)
    saved = x.new_empty(0, dtype=reference.compute_dtype(x.dtype))
    y = x.new_empty((*x.shape[:-1], D * P))
    hn = x.new_empty((D, B, P))
    cn = x.new_empty((D, B, H) if has_cell else 0)
    gates, cells = _saved(a.mode, x, D, N, H)
    gates = saved.new_empty(gates if a.save else 0)
    cells = saved.new_empty(cells if a.save and has_cell else 0)
    cs = x.new_empty((*x.shape[:-1], D * H) if a.all_states and has_cell else 0)
    return y, hn, cn, gates, cells, cs


@torch.library.register_fake("rnnfast::recurrent_backward")
def _(*values):
    a = RECURRENT_BACKWARD.bind_on_one_device(values)
    inputs = [getattr(a, name) for name in INPUTS]
    return tuple(
        a.x.new_empty(t.shape if need and t is not None else 0)
        for t, need in zip(inputs, a.needs, strict=True)
    )


@torch.library.register_fake("rnnfast::deep_transition")
def fake_deep_transition(*values):
    a = DEEP_TRANSITION.bind_on_one_device(values)
    B, T, _ = a.x.shape
    H = a.h0.size(1)
    inner = sum(_padded(w.size(0)) for w in a.weights[:-1]) if a.save else 0
    acts = a.x.new_empty(B * T * inner, dtype=reference.compute_dtype(a.x.dtype))
    return a.x.new_empty((B, T, H)), a.x.new_empty((B, H)), acts


@torch.library.register_fake("rnnfast::deep_transition_backward")
def _(*values):
    a = DEEP_TRANSITION_BACKWARD.bind_on_one_device(values)
    return (
        a.x.new_empty(a.x.shape if a.need_dx else 0),
        a.x.new_empty(a.h0.shape if a.need_dh0 else 0),
        [a.x.new_empty(w.shape) for w in a.weights],
        [a.x.new_empty(b.shape) for b in a.biases],
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
    a = RECURRENT_BACKWARD.bind(inputs)
    names = (*COTANGENTS, *INPUTS, "batch_sizes", "lengths", "resets")
    ctx.save_for_backward(*(getattr(a, name) for name in names))
    ctx.set_materialize_grads(False)
    ctx.mode, ctx.batch_first, ctx.needs = a.mode, a.batch_first, a.needs


def _differentiate_recurrent(ctx, *grads):
    *slots, batch_sizes, lengths, resets = ctx.saved_tensors
    cotangents, inputs = slots[: len(COTANGENTS)], slots[len(COTANGENTS) :]

    def forward(*inputs):
        *inputs, reset_h, reset_c = inputs
        return reference.recurrent(
            ctx.mode,
            *inputs,
            batch_sizes=batch_sizes,
            batch_first=ctx.batch_first,
            lengths=lengths,
            resets=resets,
            reset_h=reset_h,
            reset_c=reset_c,
            all_states=cotangents[-1] is not None,
        )

    names = [*COTANGENTS, *INPUTS]
    asked = vars(RECURRENT_BACKWARD.bind(ctx.needs_input_grad))
    grads = [g if need else None for g, need in zip(grads, ctx.needs, strict=True)]
    found = _double_backward(forward, cotangents, inputs, [asked[name] for name in names], grads)
    return RECURRENT_BACKWARD.in_order(dict(zip(names, found, strict=True)))


def _save_deep_transition(ctx, inputs, output):
    a = DEEP_TRANSITION_BACKWARD.bind(inputs)
    ctx.save_for_backward(a.dy, a.dhn, a.x, a.h0, *a.weights, *a.biases)
    ctx.set_materialize_grads(False)
    ctx.negative_slope, ctx.needs = a.negative_slope, (a.need_dx, a.need_dh0)
    ctx.depth = len(a.weights)


def _differentiate_deep_transition(ctx, *grads):
    slots = ctx.saved_tensors
    cotangents, inputs = slots[:2], slots[2:]
    depth = ctx.depth

    def forward(x, h0, *w):
        return reference.deep_transition(x, h0, list(w[:depth]), list(w[depth:]), ctx.negative_slope)

    asked = DEEP_TRANSITION_BACKWARD.bind(ctx.needs_input_grad)
    wanted = [asked.dy, asked.dhn, asked.x, asked.h0, *asked.weights, *asked.biases]
    dx, dh0, dweights, dbiases = grads
    state = [g if need else None for g, need in zip((dx, dh0), ctx.needs, strict=True)]
    found = _double_backward(forward, cotangents, inputs, wanted, [*state, *dweights, *dbiases])
    named = dict(zip(("dy", "dhn", "x", "h0"), found, strict=False))
    named |= {"weights": found[4 : 4 + depth], "biases": found[4 + depth :]}
    return DEEP_TRANSITION_BACKWARD.in_order(named)


torch.library.register_autograd(
    "rnnfast::recurrent_backward", _differentiate_recurrent, setup_context=_save_recurrent
)
torch.library.register_autograd(
    "rnnfast::deep_transition_backward", _differentiate_deep_transition, setup_context=_save_deep_transition
)
