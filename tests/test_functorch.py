"""Modules under torch.func and forward AD: jvp, grad, jacobians and vmap."""

import copy

import pytest
import torch
from autograd_helpers import F64, MARKS, each_kind, input_for
from helpers import LAYERS, draw, pair, same, tensors, total
from torch.autograd import forward_ad
from torch.func import functional_call

pytestmark = MARKS


@each_kind
def test_forward_ad_equals_finite_differences(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x, v, eps = input_for(kind), input_for(kind, seed=2), 1e-6
    up, down = tensors(ours(x + eps * v)), tensors(ours(x - eps * v))
    expected = [(a - b) / (2 * eps) for a, b in zip(up, down, strict=True)]
    _, tangents = torch.func.jvp(ours, (x,), (v,))
    same(tangents, expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        outputs = tensors(ours(forward_ad.make_dual(x, v)))
        same([forward_ad.unpack_dual(t).tangent for t in outputs], expected, rtol=1e-6, atol=1e-8)


@each_kind
def test_forward_ad_of_the_weights_equals_finite_differences(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x, eps = input_for(kind), 1e-6
    weights = {k: p.detach() for k, p in ours.named_parameters()}
    tangent = {k: draw(*p.shape, seed=9 + i) for i, (k, p) in enumerate(weights.items())}

    def at(step):
        return tensors(functional_call(ours, {k: w + step * tangent[k] for k, w in weights.items()}, (x,)))

    expected = [(a - b) / (2 * eps) for a, b in zip(at(eps), at(-eps), strict=True)]
    _, tangents = torch.func.jvp(lambda w: functional_call(ours, w, (x,)), (weights,), (tangent,))
    same(tangents, expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(w, tangent[k]) for k, w in weights.items()}
        outputs = tensors(functional_call(ours, duals, (x,)))
        same([forward_ad.unpack_dual(t).tangent for t in outputs], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_forward_gradient_in_the_cotangent_is_never_dropped(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x = input_for(kind).requires_grad_()
    y = ours(x)[0]
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(draw(*y.shape, seed=2), draw(*y.shape, seed=3))
        try:
            (dx,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
        except RuntimeError as refusal:
            assert "forward" in str(refusal)
            return
        tangent = forward_ad.unpack_dual(dx).tangent
    # the gradient is linear in the cotangent
    same(tangent, torch.autograd.grad(y, x, draw(*y.shape, seed=3))[0])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_forward_over_reverse_equals_torchs_reverse_over_reverse(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x, v = input_for(kind), input_for(kind, seed=2)
    _, product = torch.func.jvp(torch.func.grad(lambda x: total(ours(x))), (x,), (v,))
    _, expected = torch.autograd.functional.vhp(lambda x: total(theirs(x)), x, v)
    same(product, expected)


@each_kind
def test_functorch_gradients_equal_torchs_autograd(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x = input_for(kind)
    y = x.clone().requires_grad_()
    expected = torch.autograd.grad(total(theirs(y)), [y, *theirs.parameters()])
    weights = dict(ours.named_parameters())

    def loss(x, weights):
        return total(functional_call(ours, weights, (x,)))

    dx, dw = torch.func.grad(loss, argnums=(0, 1))(x, weights)
    same((dx, *dw.values()), expected)


@pytest.mark.parametrize("kind", [*LAYERS, "lstm_cell", "gru_cell"])
def test_jacrev_and_jacfwd_equal_torchs_jacobian(kind):
    ours, theirs = pair(kind, 4, 2 if "proj" not in kind else 4, **F64)
    x = input_for(kind)[:2]
    expected = torch.autograd.functional.jacobian(lambda x: tuple(tensors(theirs(x))), x)
    same(torch.func.jacrev(lambda x: tuple(tensors(ours(x))))(x), expected)
    same(torch.func.jacfwd(lambda x: tuple(tensors(ours(x))))(x), expected)


@each_kind
def test_vmap_over_data_equals_a_loop(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x = torch.stack([input_for(kind, seed=s) for s in range(3)])
    looped = [tensors(theirs(row)) for row in x]
    same(torch.func.vmap(ours)(x), [torch.stack(parts) for parts in zip(*looped, strict=True)])


@each_kind
@pytest.mark.parametrize("shared_input", [True, False], ids=["one_input", "own_inputs"])
def test_vmap_over_stacked_weights_equals_a_loop(kind, shared_input):
    models = [pair(kind, 4, 6, seed=s, **F64)[0] for s in range(3)]
    x = input_for(kind) if shared_input else torch.stack([input_for(kind, seed=s) for s in range(3)])
    inputs = [x] * 3 if shared_input else x
    looped = [tensors(m(row)) for m, row in zip(models, inputs, strict=True)]
    weights, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def call(weights, buffers, x):
        return functional_call(base, (weights, buffers), (x,))

    together = torch.func.vmap(call, in_dims=(0, 0, None if shared_input else 0))(weights, buffers, x)
    same(together, [torch.stack(parts) for parts in zip(*looped, strict=True)])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_per_sample_gradients_equal_a_loop(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x = draw(3, 5, 4)
    looped = [torch.autograd.grad(total(theirs(row)), list(theirs.parameters())) for row in x]
    weights = dict(ours.named_parameters())

    def loss(weights, x):
        return total(functional_call(ours, weights, (x,)))

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    same(list(together.values()), [torch.stack(parts) for parts in zip(*looped, strict=True)])
