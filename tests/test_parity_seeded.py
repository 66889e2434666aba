"""What a seed or a state dict gives is what it gives torch.nn: weights, dropout and its gradients."""

import pytest
import torch
from helpers import peer_of
from parity_helpers import MARKS, cell_modules, cells, flat, make, plain, problem, projected
from torch import nn

import rnnfast

pytestmark = MARKS


@projected
@pytest.mark.parametrize("bias", [True, False])
def test_seeded_weights_are_torchs_bit_for_bit(cell, P, bias):
    case = plain(cell, bias=bias, P=P, layers=3)
    torch.manual_seed(7)
    theirs = make(nn, case, torch.float32)
    after_theirs = torch.get_rng_state()
    torch.manual_seed(7)
    ours = make(rnnfast, case, torch.float32)
    assert torch.equal(torch.get_rng_state(), after_theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@cell_modules
def test_seeded_cell_weights_are_torchs_bit_for_bit(name, extra):
    torch.manual_seed(7)
    theirs = peer_of(name)(5, 9, **extra)
    torch.manual_seed(7)
    ours = getattr(rnnfast, name)(5, 9, **extra)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


@projected
def test_state_dicts_load_both_ways(cell, P):
    case = plain(cell, P=P)
    theirs, ours = make(nn, case), make(rnnfast, case)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    again = make(nn, case)
    again.load_state_dict(ours.state_dict(), strict=True)
    for key, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@cells
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_with_the_same_seed_gives_torchs_result(cell, p, batch_first):
    case = plain(cell, layers=3, batch_first=batch_first)
    theirs, ours = make(nn, case), make(rnnfast, case)
    ours.load_state_dict(theirs.state_dict())
    theirs.dropout = ours.dropout = p
    x = problem(case)["x"]
    for training in (True, False, True):
        theirs.train(training)
        ours.train(training)
        torch.manual_seed(11)
        expected = theirs(x)
        after_theirs = torch.get_rng_state()
        torch.manual_seed(11)
        got = ours(x)
        assert torch.equal(torch.get_rng_state(), after_theirs)
        for name, value in flat(expected).items():
            torch.testing.assert_close(flat(got)[name], value, rtol=0, atol=1e-12, msg=name)


def test_dropout_masks_are_torchs_bit_for_bit():
    # Layer one is all positive, layer two passes its input on: a zero in the output is a zero in the mask.
    features, H, T, B = 3, 13, 6, 5
    masks = []
    for package in (nn, rnnfast):
        layer = package.RNN(features, H, num_layers=2, nonlinearity="relu", dropout=0.4)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
            layer.bias_ih_l0.fill_(1.0)
            layer.weight_ih_l1.copy_(torch.eye(H))
        torch.manual_seed(12)
        masks.append(layer(torch.randn(T, B, features))[0] == 0)
    assert torch.equal(masks[0], masks[1])
    assert 0 < masks[0].sum() < masks[0].numel()


@cells
def test_dropout_gradients_are_torchs(cell):
    case = plain(cell)
    theirs, ours = make(nn, case), make(rnnfast, case)
    ours.load_state_dict(theirs.state_dict())
    theirs.dropout = ours.dropout = 0.5
    x = problem(case)["x"]
    grads = []
    for layer in (theirs, ours):
        torch.manual_seed(13)
        layer(x)[0].square().sum().backward()
        grads.append({name: p.grad for name, p in layer.named_parameters()})
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-10, atol=1e-10, msg=name)
