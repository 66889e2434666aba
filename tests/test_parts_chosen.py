"""Which calls make products of float32 by a matrix unit, and how many: torch's fp32_precision, batch
invariance and the sizes of a call decide, in layers, cells, compiled models and torch's own layers."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import LAYERS, draw, packed, pair, same, tensors, total
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

import rnnfast
from rnnfast import info

pytestmark = MARKS


@pytest.fixture(autouse=True)
def precision(request):
    return use_asked(request)


# torch.backends itself is not to be set where torch's own tests have been imported
ALL, MKLDNN = (torch.backends._FP32Precision(backend, "all") for backend in ("generic", "mkldnn"))
RNN = torch.backends.mkldnn.rnn


@pytest.mark.parametrize(
    ("settings", "products"),
    [
        ([], 6),
        ([(RNN, "ieee")], 6),
        ([(RNN, "tf32")], 3),
        ([(RNN, "bf16")], 1),
        ([(MKLDNN, "tf32")], 3),
        ([(ALL, "bf16")], 1),
        ([(ALL, "bf16"), (MKLDNN, "tf32")], 3),
        ([(ALL, "tf32"), (RNN, "ieee")], 6),
        ([(ALL, "tf32"), (RNN, "bf16")], 1),
        ([(torch.backends.mkldnn.matmul, "tf32"), (torch.backends.cudnn.rnn, "tf32")], 6),
    ],
)
def test_torchs_settings_count_as_they_stand_under_each_other(settings, products):
    use("none")
    info.set_batch_invariant(None)
    before = [of.fp32_precision for of, _ in settings]
    try:
        for of, value in settings:
            of.fp32_precision = value
        assert (info.products(), info.is_batch_invariant()) == (products, False)
        assert info.products(7, 64) == info.products(8, 63) == 0
        layer("lstm", 40, 100)(draw(4, 16, 40).float())
        assert info.last_run()["products"] == products % 6  # six are for larger calls
    finally:
        for (of, _), value in zip(settings, before, strict=True):
            of.fp32_precision = value


# rows, units, steps: what six products are worth, and what they are not
LARGE = [
    (16, 256, 32),
    (32, 128, 32),
    (20, 205, 40),
    (64, 128, 100),
    (32, 256, 8),
    (256, 256, 1),
    (64, 300, 4),
]
SMALL = [(15, 512, 32), (31, 128, 32), (64, 127, 32), (16, 255, 32), (1, 1024, 1000)]
SMALL += [(31, 512, 31), (255, 512, 1), (64, 255, 31), (63, 256, 4)]


@pytest.mark.parametrize("sizes", [*LARGE, *SMALL])
def test_large_calls_take_six_products_from_the_start(sizes):
    use("none")
    info.set_batch_invariant(None)
    rows, units, steps = sizes
    expected = 6 if sizes in LARGE else 0
    assert info.products(*sizes) == expected
    module, x = layer("gru", 8, units), draw(steps, rows, 8).float().requires_grad_()
    said = info.PRODUCTS[6] in module.explain(x)
    y, _ = module(x)
    forward = info.last_run()["products"]
    y.sum().backward()
    assert (forward, info.last_run()["products"], said) == (expected, expected, expected == 6)
    info.set_batch_invariant(False)
    assert info.products(*sizes) == (6 if rows >= 8 else 0)


def test_no_steps_are_few_steps():
    use("none")
    info.set_batch_invariant(None)
    assert info.products(64, 256, 0) == info.products(64, 256, -5) == 0
    for module in rnnfast.GRU(8, 256), rnnfast.DeepTransitionRNN(8, 256):
        assert info.PRODUCTS[6] not in module.explain(torch.zeros(0, 64, 8))


@each_layer
def test_a_row_has_the_same_bits_in_all_large_batches_and_in_all_small_ones(kind):
    use("none")
    info.set_batch_invariant(None)
    projected = kind == "lstm_proj"  # then its outputs count
    module = rnnfast.LSTM(24, 140, proj_size=128) if projected else layer(kind, 24, 128)
    x = draw(33, 70, 24).float()
    with torch.no_grad():
        whole = module(x)[0]
        for rows in (32, 33, 47, 64):
            same(module(x[:, 3 : 3 + rows])[0], whole[:, 3 : 3 + rows], rtol=0, atol=0)
        small = module(x[:, 3:34])[0]
        assert not torch.equal(small, whole[:, 3:34])
        for rows in (1, 8, 30):
            same(module(x[:, 3 : 3 + rows])[0], small[:, :rows], rtol=0, atol=0)


@each_layer
def test_one_product_is_made_with_any_number_of_rows(kind):
    use("bf16")
    assert [info.products(*sizes) for sizes in ((1, 128, 8), (1, 128, 7), (1, 127, 8))] == [1, 0, 0]
    projected = kind == "lstm_proj"  # then its outputs count
    module = rnnfast.LSTM(24, 140, proj_size=128) if projected else layer(kind, 24, 128)
    x = draw(8, 19, 24).float()
    whole = results(module, x)[0]
    for rows in (1, 3, 7):
        some = x[:, 3 : 3 + rows]
        module.float()
        found = results(module, some)
        assert info.last_run()["products"] == 1  # of backward
        same(found[0], whole[:, 3 : 3 + rows], rtol=0, atol=0)
        exact = results(module.double(), some.double())
        several = 1 if kind == "rnn_relu" else len(exact)  # rounding may put an argument on relu's other side
        for ours, e in zip(found[:several], exact[:several], strict=True):
            assert error(ours, e) < BOUND["bf16"]


@each_precision
def test_batch_invariance_that_was_asked_for_wins(precision):
    module, x = layer("lstm", 40, 100), draw(4, 16, 40).float()
    assert info.products() == PRODUCTS[precision] and not info.is_batch_invariant()
    some = results(module, x)
    info.set_batch_invariant(True)
    multiplied = results(module, x)
    assert info.last_run()["products"] == info.products() == 0 and info.is_batch_invariant()
    assert not torch.equal(some[0], multiplied[0])
    info.set_isa("avx512")
    same(results(module, x), multiplied, rtol=0, atol=0)


@pytest.mark.parametrize(("variable", "found"), [("", "6 0 3"), ("1", "0 0 0"), ("0", "6 6 3")])
def test_the_environment_says_from_the_start_whether_batches_count(variable, found):
    code = """
import torch, rnnfast.info
print(rnnfast.info.products(), rnnfast.info.products(8, 64, 1), end=" ")
torch.backends.mkldnn.rnn.fp32_precision = "tf32"
print(rnnfast.info.products())
"""
    env = {**os.environ, "RNNFAST_BATCH_INVARIANT": variable}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert ran.stdout.split() == found.split()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [*LAYERS, "deep"])
def test_layers_of_other_dtypes_are_not_concerned(kind, dtype):
    use("ieee")
    info.set_batch_invariant(None)
    module = rnnfast.DeepTransitionRNN(40, 70) if kind == "deep" else layer(kind, 40, 100)
    module, x = module.to(dtype), draw(9, 16, 40).to(dtype)
    expected = results(module, x)
    use("bf16")
    same(results(module, x), expected, rtol=0, atol=0)


@each_layer
def test_a_compiled_layer_follows_the_setting_without_being_compiled_anew(kind):
    module, x = layer(kind, 40, 100), draw(4, 16, 40).float()
    torch._dynamo.reset()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = {}
        for precision in (*PRODUCTS, "ieee"):
            use(precision)
            found[precision] = results(module, x)
            leaf = x.clone().requires_grad_()
            output = compiled(leaf)
            gradients = torch.autograd.grad(total(output), [leaf, *module.parameters()])
            same([*tensors(output), *gradients], found[precision], rtol=0, atol=0)
    assert not torch.equal(found["tf32"][0], found["bf16"][0])


@each_layer
@each_precision
def test_torchs_own_layers_follow_it_where_rnnfast_takes_them(kind, precision):
    projected = {"proj_size": 64} if kind == "lstm_proj" else {}
    ours, theirs = pair(kind, 70, 66, dtype=torch.float32, **projected)
    x = draw(3, 9, 70).float()
    expected = results(ours, x)
    rnnfast.enable()
    try:
        same(results(theirs, x), expected, rtol=0, atol=0)
        with torch.no_grad():
            theirs(x)
        assert info.last_run()["products"] == PRODUCTS[precision]
    finally:
        rnnfast.disable()


@each_precision
def test_cells_follow_it(precision):
    for kind in rnnfast.LSTMCell, rnnfast.GRUCell, rnnfast.RNNCell:
        cell, x = kind(40, 100), draw(16, 40).float()
        with torch.no_grad():
            found = tensors(cell(x))[0]
            assert info.last_run()["products"] == PRODUCTS[precision]
        exact = tensors(cell.double()(x.double()))[0]
        assert error(found, exact) < BOUND[precision]


@each_precision
def test_it_is_said_how_products_are_made(precision):
    said = info.PRODUCTS[PRODUCTS[precision]]
    assert said in info.describe() and said not in by_multiply_adds(info.describe)
    for module, x, few in (
        (rnnfast.LSTM(40, 100), draw(4, 16, 40), draw(16, 4, 40)),
        (rnnfast.GRU(40, 100, batch_first=True), draw(16, 4, 40), draw(4, 16, 40)),
        (rnnfast.LSTM(40, 100), packed(*[3] * 9, features=40), packed(3, 3, features=40)),
        (rnnfast.GRUCell(40, 100), draw(16, 40), draw(4, 40)),
        (rnnfast.DeepTransitionRNN(40, 70), draw(16, 4, 40), draw(4, 16, 40)),
    ):
        assert said in module.explain(x.float())
        assert said not in module.explain(few.float())
        assert said not in module.double().explain(x.double())
