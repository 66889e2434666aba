"""The arithmetic seen through the layers: tanh and sigmoid, tiny and huge numbers, NaN and infinity,
gradcheck in float64."""

import math

import helpers
import pytest
import torch
from helpers import peer_of
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast
from rnnfast import info

ISAS = info.isas()
isas = pytest.mark.parametrize("isa", ISAS)


def tanh_through_rnn(x):
    """tanh of every number of x [N], as one step of an RNN whose weights are one and zero."""
    layer = rnnfast.RNN(1, 1, bias=False, dtype=x.dtype)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_hh_l0.zero_()
        return layer(x.reshape(1, -1, 1))[1].flatten()


def sigmoid_through_gru(x):
    """sigmoid of every number of x [N]: a GRU from h = 1 whose update gate reads x, candidate 0."""
    layer = rnnfast.GRU(1, 1, bias=False, dtype=x.dtype)
    with torch.no_grad():
        for weight in layer.parameters():
            weight.zero_()
        layer.weight_ih_l0[1] = 1
        return layer(x.reshape(1, -1, 1), torch.ones(1, len(x), 1, dtype=x.dtype))[1].flatten()


def grid(dtype, largest):
    """Magnitudes from 1e-30 to the largest, both signs, and zero, in rising order."""
    positive = torch.logspace(-30, math.log10(largest), 4001, dtype=torch.float64).to(dtype)
    return torch.cat([-positive.flip(0), torch.zeros(1, dtype=dtype), positive])


@isas
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_tanh_has_a_small_relative_error_from_tiny_to_huge(isa, dtype, bound):
    info.set_isa(isa)
    x = grid(dtype, 1e4)
    exact = torch.tanh(x.double())
    got = tanh_through_rnn(x).double()
    error = (got - exact).abs() / exact.abs().clamp_min(1e-300)
    worst = error.argmax()
    assert error[worst] <= bound, f"tanh({x[worst].item()!r}) = {got[worst].item()!r}"


@isas
@pytest.mark.parametrize("dtype,bound", [(torch.float32, 2e-7), (torch.float64, 1e-15)])
def test_sigmoid_has_a_small_error_everywhere(isa, dtype, bound):
    info.set_isa(isa)
    x = grid(dtype, 1e4)
    got = sigmoid_through_gru(x).double()
    error = (got - torch.sigmoid(x.double())).abs()
    worst = error.argmax()
    assert error[worst] <= bound, f"sigmoid({x[worst].item()!r}) = {got[worst].item()!r}"


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function,low", [(tanh_through_rnn, -1.0), (sigmoid_through_gru, 0.0)])
def test_squashing_rises_and_saturates_exactly(isa, dtype, function, low):
    info.set_isa(isa)
    x = torch.cat([torch.linspace(-60, 60, 12001, dtype=dtype), grid(dtype, 3e4)]).sort().values
    y = function(x)
    assert y.min() >= low
    assert y.max() <= 1
    # Neighbours may swap by rounding, by two units in the last place, and no more.
    last_place = torch.finfo(dtype).eps * y.abs().clamp_min(torch.finfo(dtype).tiny)
    assert (y[1:] - y[:-1] >= -2 * last_place[1:]).all()
    assert (y[x >= 45] == 1).all()
    torch.testing.assert_close(y[x <= -45], torch.full_like(y[x <= -45], low), rtol=0, atol=1e-19)


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tanh_is_odd_bit_for_bit(isa, dtype):
    info.set_isa(isa)
    x = grid(dtype, 100.0)
    assert torch.equal(tanh_through_rnn(-x), -tanh_through_rnn(x))


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_relu_passes_every_positive_number_on_unchanged(isa, dtype):
    info.set_isa(isa)
    x = grid(dtype, 1e30)
    layer = rnnfast.RNN(1, 1, bias=False, nonlinearity="relu", dtype=dtype)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1)
        layer.weight_hh_l0.zero_()
        assert torch.equal(layer(x.reshape(-1, 1, 1))[0].flatten(), torch.relu(x))


@pytest.mark.parametrize("threads", [1, 2])
def test_denormal_numbers_of_the_caller_survive_a_call(threads):
    # The kernels may flush denormals to zero on torch's own threads: they must give the mode back.
    torch.set_num_threads(threads)
    tiny = torch.full((1 << 20,), 1e-39)
    assert (tiny * 0.5 > 0).all()
    for _ in range(3):
        layer = rnnfast.LSTM(64, 128)
        layer(torch.randn(20, 32, 64))[0].sum().backward()
        assert (tiny * 0.5 > 0).all()


LAYERS = helpers.LAYERS | {"lstm_proj": ("LSTM", {"proj_size": 2})}


def checked(cell, bidirectional, form):
    """A function of x, the states and the weights, and such inputs in float64, for gradcheck."""
    name, extra = LAYERS[cell]
    features, H, T, B = 2, 3, 3, 2
    layer = getattr(rnnfast, name)(features, H, bidirectional=bidirectional, dtype=torch.float64, **extra)
    rows = 1 + bidirectional
    states = [torch.randn(rows, B, extra.get("proj_size", H), dtype=torch.float64)]
    if name == "LSTM":
        states.append(torch.randn(rows, B, H, dtype=torch.float64))
    names = [key for key, _ in layer.named_parameters()]
    weights = [p.detach().clone() for p in layer.parameters()]

    def function(x, *rest):
        hx, given = rest[: len(states)], x
        if form == "packed":
            given = pack_padded_sequence(x, [2, 3], enforce_sorted=False)
        parameters = dict(zip(names, rest[len(states) :], strict=True))
        hx = tuple(hx) if name == "LSTM" else hx[0]
        y, hn = torch.func.functional_call(layer, parameters, (given, hx))
        y = y.data if form == "packed" else y
        return (y, *(hn if isinstance(hn, tuple) else (hn,)))

    x = torch.randn(T, B, features, dtype=torch.float64)
    return function, [t.requires_grad_() for t in (x, *states, *weights)]


every_layer = pytest.mark.parametrize("cell", list(LAYERS))
every_direction = pytest.mark.parametrize("bidirectional", [False, True], ids=["one", "both"])
every_form = pytest.mark.parametrize("form", ["dense", "packed"])


@every_layer
@every_direction
@every_form
def test_gradients_are_the_differences_of_the_outputs(cell, bidirectional, form):
    function, inputs = checked(cell, bidirectional, form)
    assert torch.autograd.gradcheck(function, inputs)


@every_layer
@every_direction
@every_form
def test_second_gradients_are_the_differences_of_the_gradients(cell, bidirectional, form):
    function, inputs = checked(cell, bidirectional, form)
    assert torch.autograd.gradgradcheck(function, inputs)


@every_layer
@isas
def test_gradients_are_right_on_every_instruction_set(cell, isa):
    info.set_isa(isa)
    function, inputs = checked(cell, True, "packed")
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("cell", ["LSTMCell", "GRUCell", "RNNCell"])
def test_gradients_of_cells_are_the_differences_of_the_outputs(cell):
    layer = getattr(rnnfast, cell)(2, 3, dtype=torch.float64)
    count = 2 if cell == "LSTMCell" else 1
    states = [torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    x = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def function(x, *states):
        return layer(x, tuple(states) if count == 2 else states[0])

    assert torch.autograd.gradcheck(function, [x, *states])
    assert torch.autograd.gradgradcheck(function, [x, *states])


@pytest.mark.parametrize("name", sorted({name for name, _ in LAYERS.values()}))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_inputs_up_to_ten_thousand_saturate_without_nan(name, dtype):
    features, H = 13, 21
    oracle = peer_of(name)(features, H, num_layers=2, bidirectional=True).to(dtype).double()
    layer = getattr(rnnfast, name)(features, H, num_layers=2, bidirectional=True, dtype=dtype)
    layer.load_state_dict(oracle.state_dict())
    x = ((torch.rand(7, 5, features) * 2 - 1) * 1e4).to(dtype)
    x[0] = 1e4
    x[1] = -1e4
    y, hn = layer(x)
    expected, _ = oracle(x.double())
    assert torch.isfinite(y).all()
    assert y.abs().max() <= 1
    # Rounding x·W may move a sum near zero; it cannot move a saturated one.
    allowed = {torch.float64: 1e-9, torch.float32: 5e-3}.get(dtype, 1.0)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=allowed)
    for state in hn if isinstance(hn, tuple) else (hn,):
        assert torch.isfinite(state).all()
    y.sum().backward()
    for parameter in layer.parameters():
        assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_relu_of_inputs_up_to_ten_thousand_is_torchs(scale):
    theirs = nn.RNN(13, 21, nonlinearity="relu", dtype=torch.float64)
    layer = rnnfast.RNN(13, 21, nonlinearity="relu")
    layer.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(layer.state_dict())
    x = (torch.rand(6, 5, 13) * 2 - 1) * scale
    expected, _ = theirs(x.double())
    torch.testing.assert_close(layer(x)[0].double(), expected, rtol=1e-5, atol=1e-6 * scale)


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@every_layer
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")], ids=["nan", "inf", "-inf"])
@pytest.mark.parametrize("place", ["x", "h0", "c0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0"])
def test_nan_and_infinity_flow_as_in_torch(isa, dtype, cell, value, place):
    name, extra = LAYERS[cell]
    if place == "c0" and not cell.startswith("lstm"):
        place = "h0"
    steps, batch, inputs, hidden = 5, 7, 9, 19
    theirs = peer_of(name)(inputs, hidden, bidirectional=True, dtype=torch.float64, **extra)
    ours = getattr(rnnfast, name)(inputs, hidden, bidirectional=True, dtype=dtype, **extra)
    ours.load_state_dict(theirs.state_dict())
    data = {
        "x": torch.randn(steps, batch, inputs, dtype=dtype),
        "h0": torch.randn(2, batch, extra.get("proj_size", hidden), dtype=dtype),
        "c0": torch.randn(2, batch, hidden, dtype=dtype),
    }
    if place in data:
        # The last row of a tile, the last feature: where padding to whole packs begins.
        data[place][1, batch - 1, -1] = value
    for layer in (theirs, ours):
        with torch.no_grad():
            if place not in data:
                getattr(layer, place)[hidden - 1] = value
    theirs.load_state_dict(ours.state_dict())
    info.set_isa(isa)
    found = []
    for layer, kind in ((theirs, torch.float64), (ours, dtype)):
        x, h0, c0 = (data[key].to(kind, copy=True).requires_grad_() for key in ("x", "h0", "c0"))
        y, hn = layer(x, (h0, c0) if cell.startswith("lstm") else h0)
        outputs = [y, *(hn if isinstance(hn, tuple) else [hn])]
        # Infinities may meet as inf - inf or inf * 0 in another order going back; NaN has one way to go.
        grads = list(torch.autograd.grad(y.sum(), [x, h0])) if value != value else []
        found.append([t.detach().double() for t in outputs + grads])
    near = {"rtol": 1e-4, "atol": 1e-5} if dtype != torch.bfloat16 else {"rtol": 0.1, "atol": 0.1}
    for a, b in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(a, b, **near, equal_nan=True)


@every_layer
@pytest.mark.parametrize("split", ["serial", "units", "rows", "directions"])
def test_nan_in_one_row_stays_in_that_row(cell, split):
    name, extra = LAYERS[cell]
    layer = getattr(rnnfast, name)(5, 9, num_layers=2, bidirectional=True, **extra)
    lengths = [3, 6, 6, 1, 4, 2, 5]
    clean = torch.randn(6, 7, 5)
    dirty = clean.clone()
    dirty[2, 2] = float("nan")
    torch.set_num_threads(2)
    info.set_split(split)
    rows = [0, 1, 3, 4, 5, 6]
    for pack in (False, True):
        results = []
        for x in (clean, dirty):
            leaf = x.clone().requires_grad_()
            given = pack_padded_sequence(leaf, lengths, enforce_sorted=False) if pack else leaf
            y, _ = layer(given)
            y = nn.utils.rnn.pad_packed_sequence(y)[0] if pack else y
            y[:, rows].sum().backward()
            results.append((y.detach(), leaf.grad))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a[:, rows], b[:, rows])
        assert results[1][0][:, 2].isnan().all()
