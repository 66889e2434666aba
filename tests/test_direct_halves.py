"""16 bits and autocast, straight to the kernel: the bits and dtypes of the way through the op."""

import contextlib
import math

import pytest
import torch
from direct_helpers import by_the_op, inputs, kinds, layers, ran
from helpers import CELLS, draw, pair, same, tensors
from torch.utils._pytree import tree_map

import rnnfast
from rnnfast import info

HALVES = [torch.bfloat16, torch.float16]
halves = pytest.mark.parametrize("dtype", HALVES, ids=str)
# of the input, the states and the weights under autocast, where they need not be one
MIXED = {
    "float32": (torch.float32, torch.float32, torch.float32),
    "input of 16 bits": (torch.bfloat16, torch.float32, torch.float32),
    "states of 16 bits": (torch.float32, torch.float16, torch.float32),
    "weights of 16 bits": (torch.float32, torch.float32, torch.bfloat16),
    "all of 16 bits": (torch.float16, torch.float16, torch.float16),
}
# rows of 64 inputs and 32 units are whole lines, the others are not; 6 and 48 make pairs
SIZES = [(5, 19), (64, 32), (1, 1), (6, 48)]
OPTIONS = [
    {},
    {"bias": False},
    {"bidirectional": True},
    {"num_layers": 3},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@pytest.fixture(params=info.isas())
def isa(request):
    info.set_isa(request.param)
    yield request.param
    info.set_isa(None)


def autocast(dtype):
    return torch.autocast("cpu", dtype) if dtype else contextlib.nullcontext()


def of_stack(hx, options):
    """A state of each layer and direction, all unlike, from that of one."""
    D = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    return tree_map(lambda t: torch.cat([t * (k + 1) / D for k in range(D)]), hx)


def calls(module, x, hx, asked=None):
    """What a call gives straight and by the op, with states and without, and whether it went straight."""
    for args in (x, hx), (x,):
        with torch.no_grad(), autocast(asked):
            straight = module(*args)
            way = ran()
            with by_the_op():
                expected = module(*args)
                assert ran() == "recurrent"
        yield straight, expected, way


def equal(straight, expected):
    """The same dtypes and bits."""
    same(straight, expected, rtol=0, atol=0)


@kinds
@halves
@pytest.mark.parametrize("B", [None, 1, 3, 40])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_halves_go_straight_with_the_bits_of_the_op(kind, dtype, B, size, bias, isa):
    module, _ = pair(kind, *size, bias=bias, dtype=dtype)
    x, hx = inputs(kind, B, dtype, *size)
    for straight, expected, way in calls(module, x, hx):
        assert way == "direct"
        equal(straight, expected)


@layers
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("asked", [None, *HALVES], ids=str)
@pytest.mark.parametrize("frozen", [False, True])
@halves
def test_several_layers_and_both_directions_do_too(kind, options, asked, frozen, dtype):
    dtype = torch.float32 if asked and dtype != asked else dtype  # under autocast also weights that fit it
    module, _ = pair(kind, 5, 19, dtype=dtype, **options)
    if frozen:
        rnnfast.freeze(module.eval())
    x, hx = inputs(kind, 3, dtype)
    if options.get("batch_first"):
        x = x.transpose(0, 1).contiguous()
    for straight, expected, way in calls(module, x, of_stack(hx, options), asked):
        assert way == ("frozen" if frozen and dtype == (asked or dtype) else "direct")
        equal(straight, expected)


@kinds
@halves
@pytest.mark.parametrize("B", [1, 3])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("given", MIXED)
def test_autocast_goes_straight_with_the_bits_and_dtypes_of_the_way_through_python(
    kind, dtype, B, size, given, isa
):
    of_x, of_state, of_weights = MIXED[given]
    module, _ = pair(kind, *size, dtype=of_weights)
    x, hx = inputs(kind, B, torch.float32, *size, T=1 if B == 1 else 4)
    x, hx = x.to(of_x), tree_map(lambda t: t.to(of_state), hx)
    for straight, expected, way in calls(module, x, hx, dtype):
        assert way == "direct"
        equal(straight, expected)


@halves
@pytest.mark.parametrize("asked", [False, True])
def test_a_step_of_one_row_reads_the_weights_where_they_lie(dtype, asked, isa):
    x = torch.randn(1, 1, 64).to(torch.float32 if asked else dtype)
    module = rnnfast.LSTM(64, 64, dtype=x.dtype)
    with torch.no_grad(), autocast(dtype if asked else None):
        module(x)
        with info.profile() as spent:
            module(x)
    assert spent["product"] > 0 and spent["pack"] == 0


@kinds
@halves
def test_autocast_with_a_graph_or_float64_is_the_ops(kind, dtype):
    module, _ = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with autocast(dtype):
        module(x, hx)
        assert ran() == "recurrent"
        with torch.no_grad():
            module.double()(x.double(), tree_map(torch.Tensor.double, hx))
            assert ran() == "recurrent"


@kinds
@halves
@pytest.mark.parametrize("size", [*SIZES, (130, 130)], ids=str)
def test_frozen_halves_give_the_same_bits(kind, dtype, size, isa):
    module, _ = pair(kind, *size, dtype=dtype)
    rnnfast.freeze(module.eval())
    for B, T in (1, 1), (3, 4), (40, 2), (2, 100):
        x, hx = inputs(kind, B, dtype, *size, T=T)
        for straight, expected, way in calls(module, x, hx):
            assert way == ("direct" if T == 100 and kind not in CELLS else "frozen")
            equal(straight, expected)
    with torch.no_grad():
        for weight in module.parameters():
            weight.mul_(0.5)
        for straight, expected, way in calls(module, x, hx):
            assert way == "direct"
            equal(straight, expected)


@kinds
@halves
def test_a_graph_of_halves_is_the_one_made_through_python(kind, dtype):
    module, _ = pair(kind, 5, 19, dtype=dtype)
    x, hx = inputs(kind, 3, dtype)

    def run():
        outputs = tensors(module(x, hx))
        loss = sum(output.float().square().sum() for output in outputs)
        return [*outputs, *torch.autograd.grad(loss, list(module.parameters()))]

    made = run()
    with by_the_op():
        equal(made, run())


def numbers():
    """float32 numbers of every magnitude that a half of either kind can round to, ties and infinities too."""
    bits = torch.arange(0, 0x7F800000, 104729, dtype=torch.int32)
    every_half = torch.arange(0, 0x7C01, dtype=torch.int32).to(torch.int16).view(torch.float16).float()
    ties = (every_half[:-2] + every_half[1:-1]) / 2
    above = torch.nextafter(ties, torch.tensor(math.inf))
    return torch.cat([bits.view(torch.float32), every_half, ties, above, torch.nextafter(ties, ties * 0)])


def as_read(x):
    """x [n] as a layer reads it under autocast, or of its own dtype: what relu(1 x) gives."""
    layer = rnnfast.RNN(1, 1, nonlinearity="relu", bias=False, dtype=x.dtype)
    with torch.no_grad():
        layer.weight_ih_l0.fill_(1), layer.weight_hh_l0.fill_(0)
        y = layer(x.view(1, -1, 1))[0].flatten()
        assert ran() == "direct"
        # and of numbers below zero
        layer.weight_ih_l0.fill_(-1)
        assert torch.equal(layer(-x.view(1, -1, 1))[0].flatten(), y)
    return y


@halves
def test_numbers_are_rounded_as_torch_rounds_them(dtype, isa):
    x = numbers()
    tiny = torch.finfo(torch.float32).tiny
    x = x[(x == 0) | (x >= tiny)]  # products of bfloat16 take what is less for zero
    for some in x.split(1 << 17):  # torch itself converts what is more
        with autocast(dtype):
            assert torch.equal(as_read(some), some.to(dtype))


@halves
def test_every_half_is_read_as_what_it_is(dtype, isa):
    top = torch.tensor(math.inf, dtype=dtype).view(torch.int16).item()
    x = torch.arange(0, top + 1, dtype=torch.int32).to(torch.int16).view(dtype)
    x = x[(x == 0) | (x.float() >= torch.finfo(torch.float32).tiny)]
    assert torch.equal(as_read(x), x)


def assert_weights_are_read_as(expected, weights, rows, asked):
    """Autocast reads positive float32 weights [n] as those numbers, in a call for so many rows.

    A sum has a number and, with a minus, what it is to be read as: it is 0, and so is what ReLU leaves of
    either sign. A sum of one number alone would be rounded as the output, in any case.
    """
    units, width = 96, 150  # neither makes whole blocks
    layer = rnnfast.RNN(2 * width, units, nonlinearity="relu", bias=False)
    one = torch.eye(width)
    x = torch.cat([one, -one], dim=1).unsqueeze(0)

    def matrix(some):
        padded = torch.zeros(units * width)
        padded[: len(some)] = some
        return padded.view(units, width)

    with torch.no_grad(), autocast(asked):
        layer.weight_hh_l0.fill_(0)
        for some, read in zip(weights.split(units * width), expected.split(units * width), strict=True):
            layer.weight_ih_l0.copy_(torch.cat([matrix(some), matrix(read)], dim=1))
            for sign in 1, -1:
                for of_rows in x.split(rows, dim=1):
                    assert (layer(sign * of_rows)[0] == 0).all()
                    assert ran() == "direct"


ROWS = pytest.mark.parametrize("rows", [1, 3, 150])


@halves
@ROWS
def test_weights_are_rounded_as_torch_rounds_them(dtype, rows, isa):
    weights = numbers()
    tiny = torch.finfo(torch.float32).tiny
    weights = weights[((weights == 0) | (weights >= tiny)) & weights.to(dtype).isfinite()]
    rounded = torch.cat([some.to(dtype).float() for some in weights.split(1 << 17)])
    assert not torch.equal(weights, rounded)
    assert_weights_are_read_as(rounded, weights, rows, dtype)


@halves
@ROWS
def test_every_finite_half_is_read_as_what_it_is_in_weights(dtype, rows, isa):
    top = torch.tensor(math.inf, dtype=dtype).view(torch.int16).item()
    weights = torch.arange(1, top, dtype=torch.int32).to(torch.int16).view(dtype)
    weights = weights[weights.float() >= torch.finfo(torch.float32).tiny]
    units, width = 96, 150
    layer = rnnfast.RNN(width, units, nonlinearity="relu", bias=False, dtype=dtype)
    x = torch.eye(width, dtype=dtype).unsqueeze(0)
    with torch.no_grad():
        layer.weight_hh_l0.fill_(0)
        for some in weights.split(units * width):
            matrix = torch.zeros(units * width, dtype=dtype)
            matrix[: len(some)] = some
            for sign in 1, -1:
                layer.weight_ih_l0.copy_(sign * matrix.view(units, width))
                y = torch.cat([layer(sign * of_rows)[0] for of_rows in x.split(rows, dim=1)], dim=1)
                assert ran() == "direct"
                assert torch.equal(y[0].T.flatten()[: len(some)], some)


@kinds
@halves
@pytest.mark.parametrize("B, T", [(1, 1), (3, 1), (1, 5), (40, 3)])
def test_halves_give_what_their_numbers_give_in_float32_rounded(kind, dtype, B, T, isa):
    if dtype == torch.bfloat16 and "bf16" in isa:
        pytest.skip("this set multiplies bfloat16 itself")
    halves, floats = (pair(kind, 37, 83, dtype=dtype)[0] for _ in range(2))
    floats.float()
    x, hx = inputs(kind, B, dtype, 37, 83, T=T)
    with torch.no_grad():
        found = halves(x, hx)
        assert ran() == "direct"
        expected = floats(x.float(), tree_map(torch.Tensor.float, hx))
    equal(found, tree_map(lambda t: t.to(dtype), expected))


@halves
def test_nan_stays_nan(dtype, isa):
    module = rnnfast.LSTM(3, 5, dtype=dtype)
    x = draw(1, 2, 3, dtype=dtype)
    x[0, 0, 1] = math.nan
    with torch.no_grad():
        y = module(x)[0]
    assert ran() == "direct"
    assert y[0, 0].isnan().all() and not y[0, 1].isnan().any()


@halves
def test_rows_that_do_not_begin_at_a_pair_are_read_right(dtype):
    module, _ = pair("lstm", 32, 32, dtype=dtype)
    with torch.no_grad():
        x = draw(1 + 4 * 3 * 32, dtype=dtype)[1:].view(4, 3, 32)
        assert x.data_ptr() % 4
        _, hx = inputs("lstm", 3, dtype, H=32)
        equal(module(x, hx), module(x.clone(), hx))


@halves
def test_what_is_large_is_converted_as_well(dtype):
    module, _ = pair("gru", 300, 400)
    x, h = inputs("gru", 1, I=300, H=400)
    for straight, expected, way in calls(module, x, h, dtype):
        assert way == "direct"
        equal(straight, expected)
    module.to(dtype)
    for straight, expected, way in calls(module, x.to(dtype), h.to(dtype)):
        assert way == "direct"
        equal(straight, expected)
