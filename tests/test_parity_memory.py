"""Where tensors lie in memory does not count, and nobody else's memory is written or kept."""

import copy

import pytest
import torch
from parity_helpers import MARKS, flat, make, plain, problem, projected

import rnnfast

pytestmark = MARKS


def strided(tensor):
    """The same values over strides that are neither contiguous nor merely permuted."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] * 2 + 1), float("nan"), dtype=tensor.dtype)
    view = wide.transpose(0, -1).contiguous().transpose(0, -1)[..., 1::2]
    view.copy_(tensor)
    return view


@projected
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides_of_input_states_and_gradients_do_not_count(cell, P, batch_first):
    case = plain(cell, P=P, batch_first=batch_first)
    layer = make(rnnfast, case)
    data = problem(case)
    both = []
    for change in (torch.Tensor.contiguous, strided):
        x, h0, c0 = (change(data[name]).detach().requires_grad_() for name in ("x", "h0", "c0"))
        tensors = flat(layer(x, (h0, c0) if cell == "lstm" else h0))
        torch.manual_seed(3)
        seeds = [change(torch.randn(t.shape, dtype=torch.float64)) for t in tensors.values()]
        leaves = [x, h0, *([c0] if cell == "lstm" else []), *layer.parameters()]
        both.append([*tensors.values(), *torch.autograd.grad(list(tensors.values()), leaves, seeds)])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@projected
def test_expanded_states_inputs_and_gradients_are_as_their_copies(cell, P):
    case = plain(cell, P=P)
    layer = make(rnnfast, case)
    x = torch.randn(case["T"], 1, case["I"], dtype=torch.float64).expand(-1, case["B"], -1)
    h0 = torch.randn(1, 1, P or case["H"], dtype=torch.float64).expand(4, case["B"], -1)
    c0 = torch.randn(1, 1, case["H"], dtype=torch.float64).expand(4, case["B"], -1)
    both = []
    for change in (torch.Tensor.contiguous, torch.Tensor.detach):
        given, h, c = change(x), change(h0), change(c0)
        y, _ = layer(given, (h, c) if cell == "lstm" else h)
        seed = change(torch.ones((), dtype=torch.float64).expand(y.shape))
        both.append([y, *torch.autograd.grad(y, list(layer.parameters()), seed)])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@projected
def test_strided_weights_are_as_contiguous_ones(cell, P):
    case = plain(cell, P=P)
    layer = make(rnnfast, case)
    data = problem(case)
    state = {name: p.detach() for name, p in layer.named_parameters()}
    hx = (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]
    both = []
    for change in (torch.Tensor.clone, strided):
        weights = {name: change(value).requires_grad_() for name, value in state.items()}
        y, _ = torch.func.functional_call(layer, weights, (data["x"], hx))
        both.append([y, *torch.autograd.grad(y.square().sum(), list(weights.values()))])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@projected
def test_forward_and_backward_leave_inputs_and_weights_alone(cell, P):
    case = plain(cell, P=P)
    layer = make(rnnfast, case)
    data = problem(case)
    before = copy.deepcopy((data, layer.state_dict()))
    hx = (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]
    layer(data["x"], hx)[0].sum().backward()
    for name in ("x", "h0", "c0"):
        assert torch.equal(data[name], before[0][name]), name
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[1][name]), name


@projected
def test_results_share_no_memory_with_each_other_or_the_inputs(cell, P):
    case = plain(cell, P=P, layers=1, T=1)
    layer = make(rnnfast, case)
    data = problem(case)
    with torch.no_grad():
        tensors = flat(layer(data["x"], (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]))
    owners = {tensor.untyped_storage().data_ptr() for tensor in (data["x"], data["h0"], data["c0"])}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        assert pointer not in owners, name
        owners.add(pointer)
