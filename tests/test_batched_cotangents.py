"""Many cotangents in one backward: is_grads_batched, vectorized Jacobians, vmap over torch.autograd.grad.

Judged by a loop over them, each through the ordinary backward.
"""

from unittest import mock

import pytest
import torch
from autograd_helpers import F64, MARKS, input_for, states_of
from helpers import (
    CELLS,
    LAYERS,
    OP_CASES,
    deep_transition_inputs,
    draw,
    op_inputs,
    packed,
    pair,
    same,
    tensors,
    total,
)
from torch._vmap_internals import _vmap as older_vmap
from torch.autograd.functional import hessian, jacobian
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import rnnfast
from rnnfast import _batching, ops

pytestmark = [
    *MARKS,
    # torch's own operators, for some of which the older vmap has no rule
    pytest.mark.filterwarnings("ignore:.*have not yet implemented the batching rule for aten"),
]

MANY = 90  # cotangents: chunks of 30 for a batch of 3, and one of 42 is full
UNEVEN = 86  # chunks of 29, 29 and 28

LAYER_FORMS = {
    "plain": {},
    "two_layers_bidirectional": {"num_layers": 2, "bidirectional": True},
    "batch_first_no_bias": {"batch_first": True, "bias": False},
    "packed_bidirectional": {"bidirectional": True},
}
MODULES = {f"{kind}_{form}": (kind, form) for kind in LAYERS for form in LAYER_FORMS}
MODULES |= {kind: (kind, "plain") for kind in CELLS} | {"deep_transition": ("deep_transition", "plain")}
each_module = pytest.mark.parametrize("kind, form", MODULES.values(), ids=MODULES)


@pytest.fixture(autouse=True)
def a_fallback_warns():
    """torch says so where a vmap has no rule for an op, the older one too; and warnings are errors."""
    torch._C._debug_only_display_vmap_fallback_warnings(True)
    yield
    torch._C._debug_only_display_vmap_fallback_warnings(False)


def forward(kind, form="plain", dtype=torch.float64):
    """The outputs of a module, what it read but its weights, and its weights: lists of tensors."""
    if kind == "deep_transition":
        module = rnnfast.DeepTransitionRNN(4, 6, depth=3, width=5, dtype=dtype)
        x, hx = draw(3, 5, 4, dtype=dtype), draw(3, 6, dtype=dtype)
    else:
        module, _ = pair(kind, 4, 6, dtype=dtype, **LAYER_FORMS[form])
        x, hx = input_for(kind, dtype=dtype), None
        if form.startswith("packed"):
            x = packed(5, 4, 1, dtype=dtype)
        elif form.startswith("batch_first"):
            x = x.transpose(0, 1).contiguous()
        elif form == "plain":
            hx = tree_map(lambda t: t.to(dtype), states_of(kind))
    inputs = [t.requires_grad_() for t in tensors((x, hx))]
    return tensors(module(x, hx)), inputs, list(module.parameters())


def cotangents_of(outputs, K, seed=1):
    return [draw(K, *t.shape, seed=seed + i, dtype=t.dtype) for i, t in enumerate(outputs)]


def one_by_one(outputs, wanted, cotangents, **options):
    grads = [
        torch.autograd.grad(outputs, wanted, of_one, retain_graph=True, **options)
        for of_one in zip(*cotangents, strict=True)
    ]
    return [torch.stack(parts) for parts in zip(*grads, strict=True)]


def grads_batched(outputs, wanted, cotangents, **options):
    return torch.autograd.grad(
        outputs, wanted, cotangents, retain_graph=True, is_grads_batched=True, **options
    )


def by_vmap(outputs, wanted, cotangents, **options):
    def grads(*of_one):
        return torch.autograd.grad(outputs, wanted, of_one, retain_graph=True, **options)

    return torch.func.vmap(grads)(*cotangents)


each_way = pytest.mark.parametrize("together", [grads_batched, by_vmap])


class Calls(TorchDispatchMode):
    """Counts the calls of one op."""

    def __init__(self, op):
        super().__init__()
        self.op, self.count = op, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is self.op
        return func(*args, **(kwargs or {}))


@each_module
@each_way
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_gradients_of_inputs_equal_those_one_by_one(kind, form, together, dtype):
    outputs, inputs, _ = forward(kind, form, dtype)
    cotangents = cotangents_of(outputs, UNEVEN)
    same(together(outputs, inputs, cotangents), one_by_one(outputs, inputs, cotangents))


@each_module
@each_way
def test_gradients_of_weights_equal_those_one_by_one(kind, form, together):
    outputs, inputs, weights = forward(kind, form)
    cotangents = cotangents_of(outputs, 4)
    wanted = [*inputs, *weights]
    same(together(outputs, wanted, cotangents), one_by_one(outputs, wanted, cotangents))


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS, "deep_transition"])
@each_way
def test_gradients_of_some_inputs_from_some_outputs_equal_those_one_by_one(kind, together):
    outputs, inputs, weights = forward(kind)
    for output in outputs:
        cotangents = cotangents_of([output], 8)
        for wanted in (*inputs, weights[0]):
            same(together(output, wanted, cotangents), one_by_one([output], [wanted], cotangents))


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS, "deep_transition"])
@each_way
def test_second_gradients_equal_those_one_by_one(kind, together):
    outputs, inputs, weights = forward(kind)
    cotangents = [t.requires_grad_() for t in cotangents_of(outputs, 8)]
    for first in (inputs, weights):
        results = []
        for way in (together, one_by_one):
            grads = way(outputs, first, cotangents, create_graph=True)
            wanted = [*inputs, *weights, *cotangents]
            results.append(torch.autograd.grad(total(grads), wanted, retain_graph=True))
        same(*results)


@pytest.mark.parametrize("kind", ["lstm", "deep_transition"])
def test_a_cotangent_that_is_not_batched_serves_all(kind):
    outputs, inputs, _ = forward(kind)
    varying, fixed = cotangents_of(outputs[:1], 8), [draw(*t.shape, seed=9) for t in outputs[1:]]

    def grads(of_one):
        return torch.autograd.grad(outputs, inputs, [of_one, *fixed], retain_graph=True)

    expected = [torch.stack(parts) for parts in zip(*(grads(one) for one in varying[0]), strict=True)]
    same(torch.func.vmap(grads)(varying[0]), expected)


@pytest.mark.parametrize(
    "kind, vmap",
    [
        ("lstm", torch.func.vmap),
        ("deep_transition", torch.func.vmap),
        ("deep_transition", older_vmap),  # within itself it cannot merge dimensions, as chunks of rows do
    ],
)
def test_batches_of_batches_equal_a_loop(kind, vmap):
    (output, *_), (x, *_), _ = forward(kind)
    cotangents = draw(2, 5, *output.shape)

    def grad(cotangent):
        return torch.autograd.grad(output, x, cotangent, retain_graph=True)[0]

    expected = torch.stack([torch.stack([grad(one) for one in some]) for some in cotangents])
    same(vmap(vmap(grad))(cotangents), expected)
    # the other dimension first, so that the batch of the inner vmap is not the tensor's first dimension
    same(vmap(vmap(grad), in_dims=1)(cotangents.transpose(0, 1)), expected)


@pytest.mark.parametrize("kind", [*LAYERS, *CELLS, "deep_transition"])
def test_no_cotangents_give_empty_gradients(kind):
    outputs, inputs, weights = forward(kind)
    wanted = [*inputs, *weights]
    found = by_vmap(outputs, wanted, cotangents_of(outputs, 0))
    assert [t.shape for t in found] == [(0, *t.shape) for t in wanted]


def backward_call(op, inputs, weights):
    """Arguments of op's backward; `weights`: whether their gradients are asked for, where one can say."""
    outputs = op(*inputs, True)
    results = [t for t in outputs[:3] if t.dim() > 1]
    cotangents = [draw(*t.shape, seed=i) for i, t in enumerate(results)]
    if op is ops.recurrent:
        cotangents += [None] * (3 - len(cotangents))
        needs = [t is not None and (i < 3 or weights) for i, t in enumerate(inputs[1:14])]
        return (*cotangents, *inputs, outputs[0], *outputs[3:5], [*needs, False, False])
    return (*cotangents, *inputs, outputs[0], outputs[2], True, weights)


DIRECT = {name: (ops.recurrent, ops.recurrent_backward, case) for name, case in OP_CASES.items()}
DIRECT["deep_transition"] = (ops.deep_transition, ops.deep_transition_backward, None)


@pytest.mark.parametrize("op, backward, case", DIRECT.values(), ids=DIRECT)
@pytest.mark.parametrize("weights", [False, True], ids=["of_inputs", "of_all"])
def test_the_backward_op_with_everything_batched_equals_a_loop(op, backward, case, weights):
    calls = []
    for seed in range(5):
        made = op_inputs(case[0], **case[1], grad=False) if case else deep_transition_inputs(grad=False)
        scaled = tree_map(lambda t, by=1 + seed: t * by if is_floating(t) else t, made)
        calls.append(backward_call(op, scaled, weights))
    stacked = tree_map(lambda *t: torch.stack(t) if is_floating(t[0]) else t[0], *calls)
    in_dims = tree_map(lambda t: 0 if is_floating(t) else None, stacked)
    found = torch.func.vmap(backward, in_dims=in_dims)(*stacked)
    expected = tree_map(lambda *t: torch.stack(t), *(backward(*call) for call in calls))
    same([t for t in tensors(found) if t.numel()], [t for t in tensors(expected) if t.numel()])


def is_floating(t):
    return isinstance(t, torch.Tensor) and t.is_floating_point()


@pytest.mark.parametrize("kind", [*LAYERS, "lstm_cell", "gru_cell", "deep_transition"])
def test_vectorized_jacobian_and_hessian_equal_the_slow_ones(kind):
    if kind == "deep_transition":
        module, x = rnnfast.DeepTransitionRNN(3, 4, depth=2, **F64), draw(2, 3, 3)
    else:
        module, _ = pair(kind, 3, 4, **F64)
        x = draw(2, 3) if kind in CELLS else draw(3, 2, 3)

    def outputs(x):
        return tuple(tensors(module(x)))

    def loss(x):
        return sum(t.square().sum() for t in outputs(x))

    same(jacobian(outputs, x, vectorize=True), jacobian(outputs, x))
    same(hessian(loss, x, vectorize=True), hessian(loss, x))


@each_way
@pytest.mark.parametrize("form", LAYER_FORMS)
def test_gradients_of_inputs_take_a_call_for_each_chunk(together, form):
    outputs, inputs, weights = forward("lstm", form)
    layers = LAYER_FORMS[form].get("num_layers", 1)
    cotangents = cotangents_of(outputs, MANY)
    with Calls(ops.recurrent_backward) as backward, Calls(ops.recurrent) as again:
        together(outputs, inputs, cotangents)
    assert (backward.count, again.count) == (3 * layers, layers)
    with Calls(ops.recurrent_backward) as backward:
        together(outputs, weights[:1], cotangents)
    # the first layer's weight is asked for; what stands above it needs gradients of inputs only
    assert backward.count == MANY + 3 * (layers - 1)


def test_a_chunk_has_a_bounded_number_of_rows():
    outputs, inputs, _ = forward("gru")
    seen = []

    class Rows(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is ops.recurrent_backward:
                seen.append(ops.RECURRENT_BACKWARD.bind(args).h0.size(1))
            return func(*args, **(kwargs or {}))

    with Rows():
        grads_batched(outputs, inputs, cotangents_of(outputs, UNEVEN))
    assert sum(seen) == UNEVEN * 3
    assert max(seen) <= _batching.ROWS


def test_an_error_leaves_vmap_as_it_was():
    outputs, inputs, _ = forward("gru")
    cotangents = cotangents_of(outputs, 8)
    with mock.patch.object(ops, "recurrent_backward", side_effect=RuntimeError("no memory")):
        with pytest.raises(RuntimeError, match="no memory"):
            grads_batched(outputs, inputs, cotangents)
    same(grads_batched(outputs, inputs, cotangents), one_by_one(outputs, inputs, cotangents))
