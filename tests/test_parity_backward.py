"""Backward of a part of the inputs or outputs, again and again, after an edit in place, and not at all."""

import pytest
import torch
from parity_helpers import MARKS, cells, flat, make, plain, problem, projected, run, three
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast

pytestmark = MARKS


@projected
@pytest.mark.parametrize("form", ["dense", "packed_unsorted"])
def test_gradients_of_only_some_inputs_are_those_of_all(cell, P, form):
    case = plain(cell, P=P, form=form, layers=1)
    layer = make(rnnfast, case)
    data = problem(case)
    _, every = run(layer, case, data, torch.float64)
    torch.manual_seed(case["seed"])
    names = ["x", "h0", *(["c0"] if cell == "lstm" else []), *dict(layer.named_parameters())]
    for wanted in [{name} for name in names] + [set(names[::2]), set(names[1::2])]:
        layer.requires_grad_(False)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in wanted)
        leaves = {name: data[name].clone().requires_grad_(name in wanted) for name in names if name in data}
        given = leaves["x"]
        if form != "dense":
            given = pack_padded_sequence(given, data["lengths"], enforce_sorted=False)
        hx = (leaves["h0"], leaves["c0"]) if cell == "lstm" else leaves["h0"]
        tensors = flat(layer(given, hx))
        torch.manual_seed(case["seed"])
        seeds = [torch.randn(t.shape, dtype=torch.float64) for t in tensors.values()]
        torch.autograd.backward(list(tensors.values()), seeds)
        leaves.update(layer.named_parameters())
        for name in names:
            if name not in wanted:
                assert leaves[name].grad is None, name
                continue
            torch.testing.assert_close(
                leaves[name].grad, every[f"grad of {name}"], rtol=1e-12, atol=1e-12, msg=f"{name} of {wanted}"
            )
            leaves[name].grad = None


@projected
@pytest.mark.parametrize("which", ["output", "h_n", "last state"])
def test_gradient_through_only_one_output_is_torchs(cell, P, which):
    case = plain(cell, P=P)
    if which == "last state":
        which = "c_n" if cell == "lstm" else "h_n"
    oracle, _, ours = three(case)
    data = problem(case)
    grads = []
    for layer in (oracle, ours):
        x = data["x"].clone().requires_grad_()
        hx = (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]
        value = flat(layer(x, hx))[which]
        leaves = {"x": x, **dict(layer.named_parameters())}
        found = torch.autograd.grad(value.square().sum(), list(leaves.values()))
        grads.append(dict(zip(leaves, found, strict=True)))
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-10, atol=1e-10, msg=name)


@projected
def test_several_backward_passes_give_the_same_gradients(cell, P):
    case = plain(cell, P=P, dtype="float32")
    layer = make(rnnfast, case, torch.float32)
    x = problem(case)["x"].requires_grad_()
    y, _ = layer(x)
    leaves = [x, *layer.parameters()]
    grads = [torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for _ in range(3)]
    for later in grads[1:]:
        for a, b in zip(grads[0], later, strict=True):
            assert torch.equal(a, b)


@cells
def test_a_second_backward_without_retain_graph_raises(cell):
    layer = make(rnnfast, plain(cell))
    y, _ = layer(torch.randn(5, 3, 7, dtype=torch.float64))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


@cells
def test_editing_a_weight_in_place_before_backward_raises(cell):
    layer = make(rnnfast, plain(cell))
    y, _ = layer(torch.randn(5, 3, 7, dtype=torch.float64))
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@projected
def test_inference_gives_the_bits_of_training(cell, P):
    case = plain(cell, P=P, dtype="float32")
    layer = make(rnnfast, case, torch.float32)
    x = problem(case)["x"]
    trained = flat(layer(x))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            inferred = flat(layer(x))
        for name, value in trained.items():
            assert torch.equal(inferred[name], value), (mode.__name__, name)
