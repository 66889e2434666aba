"""Products of float32 by a matrix unit for bfloat16, each number in one, two or three parts: how exact they
are, what is small, large or not finite, and that threads, plans and other rows of a batch change no bit."""

import pytest
import torch
from helpers import LAYERS, draw, packed, pair, same, tensors
from parts_helpers import (
    BOUND,
    MARKS,
    PRODUCTS,
    by_multiply_adds,
    each_layer,
    each_precision,
    error,
    layer,
    results,
    use,
    use_asked,
)
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast
from rnnfast import info

pytestmark = MARKS


@pytest.fixture(autouse=True)
def precision(request):
    return use_asked(request)


@each_layer
@pytest.mark.parametrize(
    ("steps", "rows", "inputs", "units"),
    [
        (5, 8, 1, 80),
        (3, 15, 33, 70),
        (4, 16, 64, 96),
        (4, 17, 31, 100),
        (3, 33, 65, 128),
        (20, 64, 40, 300),
        # gradients by blocks of other sizes: the second cache would not hold those of the others
        (20, 64, 300, 300),
        (10, 64, 40, 700),
        (10, 64, 500, 700),
    ],
)
def test_results_are_as_near_to_float64_as_multiply_adds(kind, steps, rows, inputs, units):
    module, x = layer(kind, inputs, units), draw(steps, rows, inputs).float()
    found, multiplied = results(module, x), by_multiply_adds(results, module, x)
    exact = results(module.double(), x.double())
    assert any(not torch.equal(a, b) for a, b in zip(found, multiplied, strict=True))
    for ours, other, e in zip(found, multiplied, exact, strict=True):
        assert error(ours, e) <= max(1.05 * error(other, e), 2**-22)


def product(x, w):
    """x w^T by one step of an Elman layer."""
    module = rnnfast.RNN(w.size(1), w.size(0), nonlinearity="relu", bias=False)
    with torch.no_grad():
        module.weight_ih_l0.copy_(w)
    return module(x[None])[0][0].detach()


@pytest.mark.parametrize("of_x", [1e-36, 1e-34, 1e-18, 1e-10, 1.0, 1e10, 1e18, 1e36])
@pytest.mark.parametrize("of_w", [1e-36, 1e-34, 1e-18, 1e-10, 1.0, 1e10, 1e18, 1e36])
def test_numbers_of_any_size_keep_their_bits(of_x, of_w):
    if not 1e-37 < of_x * of_w < 1e36:
        pytest.skip("the products are no float32")
    x, w = draw(16, 96).float() * of_x, draw(64, 96, seed=2).float() * of_w
    exact = (x.double() @ w.double().T).relu()
    # a number of the smallest may be denormal, which is zero by multiply-adds too
    assert error(product(x, w), exact) <= max(3e-7, 1.01 * error(by_multiply_adds(product, x, w), exact))


@each_precision
def test_rows_and_columns_of_mixed_sizes_are_as_exact_as_those_of_one(precision):
    scale_x, scale_w = (10 ** draw(n, seed=n).mul(10).clamp(-15, 15) for n in (19, 64))
    x, w = draw(19, 96) * scale_x[:, None], draw(64, 96, seed=2) * scale_w[:, None]
    x, w = x.float(), w.float()
    found, exact = product(x, w), (x.double() @ w.double().T).relu()
    size = scale_x[:, None] * scale_w
    assert error(found / size, exact / size) < BOUND[precision]


def test_a_sum_whose_terms_cancel_is_as_near_as_by_multiply_adds():
    x, w = draw(16, 128).float(), draw(64, 128, seed=2).float()
    x[:, 64:], w[:, 64:] = -x[:, :64] * (1 + 2**-12), w[:, :64]
    exact = (x.double() @ w.double().T).relu()
    assert error(product(x, w), exact) <= 1.05 * error(by_multiply_adds(product, x, w), exact)


@each_precision
@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38, 3.4e38])
@pytest.mark.parametrize("where", ["x", "w"])
def test_what_is_not_finite_or_hardly_flows_as_in_torch(value, where, precision):
    x, w = draw(17, 40).float(), draw(70, 40, seed=2).float()
    (x if where == "x" else w)[3, 5] = value
    w[7], x[:, 6] = 0.5, 0  # no lower parts, and nothing beside infinity
    if precision != "ieee" and value == 3.4e38:  # of this size all but the bits that are kept is noise
        x, w = x.bfloat16().float().nan_to_num(), w.bfloat16().float().nan_to_num()
    found, expected = product(x, w), (x @ w.T).relu()
    near = {"ieee": 1e-5, "tf32": 1e-4, "bf16": 0.1}[precision]
    same(found, expected, equal_nan=True, rtol=near, atol=near)
    assert not torch.isfinite(expected).all() or value in (3e38, 3.4e38)


@each_layer
@each_precision
def test_not_finite_states_flow_as_in_torch(kind, precision):
    ours, theirs = pair(kind, 70, 66, seed=3, dtype=torch.float32)
    x = draw(3, 9, 70).float()
    x[1, 2, 3], x[0, 4, 5] = torch.inf, torch.nan
    near = {"ieee": 1e-5, "tf32": 1e-4, "bf16": 0.05}[precision]
    same(ours(x), theirs(x), equal_nan=True, rtol=near, atol=near)


@each_layer
@each_precision
@pytest.mark.parametrize("split", ["serial", "units", "rows"])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_plans_change_no_bit(kind, split, threads, precision):
    module, x = layer(kind, 40, 100, bidirectional=True), draw(4, 37, 40).float()
    expected = results(module, x)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        info.set_split(split)
        same(results(module, x), expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


@each_layer
@each_precision
@pytest.mark.parametrize("value", [1.0, 1e-36, 3e38, torch.inf, torch.nan])
@pytest.mark.parametrize("rows", [8, 33, 150])
def test_inference_has_the_bits_of_what_saves_for_gradients(kind, value, rows, precision):
    module = layer(kind, 33, 70, num_layers=2, bidirectional=rows == 33)
    x = draw(6, rows, 33).float()
    x[2, rows // 2, 5] = value
    x[3, 1] *= value
    lengths = [6 - i % 5 for i in range(rows)]
    for given in (x, pack_padded_sequence(x, lengths, enforce_sorted=False)):
        expected = [t.detach() for t in tensors(module(given))]
        with torch.inference_mode():
            same([*tensors(module(given))], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("units", [300, 700])
def test_wide_gradients_have_the_same_bits_on_one_thread_and_two(units):
    module, x, before = layer("lstm", 300, units), draw(10, 64, 300).float(), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(results(module, x))
    finally:
        torch.set_num_threads(before)
    same(found[1], found[0], rtol=0, atol=0)


@each_layer
@each_precision
def test_a_row_has_the_same_bits_in_every_batch_of_8_rows_or_more(kind, precision):
    module, x = layer(kind, 40, 100), draw(4, 67, 40).float()
    with torch.no_grad():
        whole = module(x)[0]
        for rows in (8, 15, 16, 17, 32, 33):
            same(module(x[:, 5 : 5 + rows])[0], whole[:, 5 : 5 + rows], rtol=0, atol=0)


@each_layer
@each_precision
def test_fewer_rows_or_units_keep_the_bits_of_multiply_adds(kind, precision):
    for rows, units in ((7, 100), (16, 63)):
        projected = kind == "lstm_proj"  # then its outputs count
        module = rnnfast.LSTM(40, 101, proj_size=units) if projected else layer(kind, 40, units)
        x = draw(4, rows, 40).float()
        same(results(module, x), by_multiply_adds(results, module, x), rtol=0, atol=0)


@each_layer
@each_precision
def test_packed_rows_have_the_bits_of_padded_ones_also_where_few_are_left(kind, precision):
    module, lengths = layer(kind, 40, 100), (9, 9, 7, 4, 4, 4, 3, 2, 1, 1)
    x = packed(*lengths, features=40, dtype=torch.float32)
    padded, _ = torch.nn.utils.rnn.pad_packed_sequence(x)
    with torch.no_grad():
        found, _ = torch.nn.utils.rnn.pad_packed_sequence(module(x)[0])
        expected = module(padded)[0]
    for row, length in enumerate(lengths):
        same(found[:length, row], expected[:length, row], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 7, 8, 20])
@pytest.mark.parametrize("steps", [1, 5])
@each_precision
def test_frozen_weights_give_the_same_bits(rows, steps, dtype, precision):
    for kind in ("lstm", "gru", "rnn_tanh"):
        module, x = layer(kind, 40, 100, dtype=dtype).eval(), draw(steps, rows, 40).to(dtype)
        with torch.inference_mode():
            expected = module(x)
            same(rnnfast.freeze(module)(x), expected, rtol=0, atol=0)
            assert info.last_run()["op"] == "frozen"


@each_precision
def test_frozen_weights_serve_few_rows_always_and_many_as_it_was_when_they_were_packed(precision):
    module = rnnfast.freeze(layer("lstm", 40, 100).eval())
    with torch.inference_mode():
        for now in (*PRODUCTS, precision):
            use(now)
            for rows, read in (4, "frozen"), (16, "frozen" if now == precision else "direct"):
                x = draw(2, rows, 40).float()
                same(module(x), layer("lstm", 40, 100)(x), rtol=0, atol=0)
                module(x)
                assert info.last_run()["op"] == read
        info.set_batch_invariant(True)
        same(module(x), layer("lstm", 40, 100)(x), rtol=0, atol=0)
        assert module(x) and info.last_run()["op"] == "frozen"


def test_what_was_frozen_without_parts_is_not_read_by_them():
    info.set_batch_invariant(None)
    module, x = rnnfast.freeze(layer("lstm", 40, 100).eval()), draw(2, 16, 40).float()
    with torch.inference_mode():
        for now, read in ("ieee", "frozen"), ("tf32", "direct"), ("none", "frozen"):
            torch.backends.mkldnn.rnn.fp32_precision = now
            same(module(x), layer("lstm", 40, 100)(x), rtol=0, atol=0)
            assert module(x) and info.last_run()["op"] == read


@pytest.mark.parametrize("rows", [8, 33])
def test_a_deep_transition_is_as_near_to_float64_as_by_multiply_adds(rows):
    module, x = rnnfast.DeepTransitionRNN(40, 70), draw(rows, 6, 40).float()
    found, multiplied = results(module, x), by_multiply_adds(results, module, x)
    exact = results(module.double(), x.double())
    assert not torch.equal(found[0], multiplied[0])
    for ours, other, e in zip(found, multiplied, exact, strict=True):
        assert error(ours, e) <= max(1.05 * error(other, e), 2**-22)


@each_precision
def test_a_layer_without_inputs_is_no_exception(precision):
    w = [draw(*size).float() for size in ((300, 0), (300, 100), (300,), (300,))]
    h0 = draw(1, 16, 100).float().requires_grad_()
    y, _ = rnnfast.functional.gru(torch.zeros(4, 16, 0), h0, [w])
    assert info.last_run()["products"] == PRODUCTS[precision]
    exact, _ = rnnfast.functional.gru(torch.zeros(4, 16, 0).double(), h0.double(), [[t.double() for t in w]])
    assert error(y.detach(), exact.detach()) < 8 * BOUND[precision]
    y.sum().backward()
    assert torch.isfinite(h0.grad).all()


@each_precision
def test_other_instruction_sets_are_not_concerned(precision):
    module, x = layer("lstm", 40, 100), draw(4, 16, 40).float()
    expected = by_multiply_adds(results, module, x)
    info.set_isa("avx512")
    same(results(module, x), expected, rtol=0, atol=0)
    assert info.products() == 0 and info.is_batch_invariant()
    assert "multiply-adds\n" in info.describe()


@pytest.mark.parametrize("of", [draw, lambda *shape, seed=1: draw(*shape, seed=seed).abs()])
@pytest.mark.parametrize("inputs", [64, 3000])
def test_a_product_as_tf32_is_nearer_than_that_of_tf32_numbers(of, inputs):
    use("tf32")
    x, w = of(40, inputs).float(), of(64, inputs, seed=2).float()
    exact = x.double() @ w.double().T

    def as_tf32(t):  # of 10 bits behind the first, to the nearest
        bits = (t.view(torch.int32) + 0x0FFF + (t.view(torch.int32) >> 13 & 1)) & ~0x1FFF
        return bits.view(torch.float32).double()

    assert error(product(x, w), exact.relu()) < error((as_tf32(x) @ as_tf32(w).T).relu(), exact.relu())


def test_a_product_as_bfloat16_is_that_of_the_rounded_numbers():
    use("bf16")
    x, w = draw(40, 300).float(), draw(64, 300, seed=2).float()
    of_rounded = (x.bfloat16().double() @ w.bfloat16().double().T).relu()
    assert error(product(x, w), of_rounded) < 3e-7
    assert error(product(x, w), (x.double() @ w.double().T).relu()) > 2**-11


@pytest.mark.parametrize("kind", [*LAYERS, "deep"])
@pytest.mark.parametrize(("steps", "rows", "inputs", "units"), [(3, 15, 33, 70), (20, 64, 40, 300)])
def test_outputs_and_gradients_are_as_near_as_was_asked_for_and_no_nearer(kind, steps, rows, inputs, units):
    deep = kind == "deep"
    module = rnnfast.DeepTransitionRNN(inputs, 70) if deep else layer(kind, inputs, units)
    x, found = draw(steps, rows, inputs).float(), {}
    x = x.transpose(0, 1).contiguous() if deep else x
    for precision, products in PRODUCTS.items():
        use(precision)
        found[precision] = results(module, x)
        assert info.last_run()["products"] == products  # of backward
    exact = results(module.double(), x.double())
    for i, (ieee, tf32, bf16, e) in enumerate(zip(*found.values(), exact, strict=True)):
        if i >= len(tensors(module(x.double()))) and kind in ("rnn_relu", "deep"):
            assert error(bf16, e) < 2**-2  # here and there a gradient is on the other side of a kink
        else:
            assert 2 * error(ieee, e) < error(tf32, e) < 2**-16
            assert 64 * error(tf32, e) < error(bf16, e) < 2**-8
