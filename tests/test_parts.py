"""Products of float32 by a matrix unit for bfloat16, each number in three parts: how exact they are, what is
small, large or not finite, and that nothing but the size of the layer and a batch of 8 rows decides."""

import pytest
import torch
from helpers import LAYERS, draw, packed, pair, same, tensors, total

import rnnfast
from rnnfast import _C, info

pytestmark = [
    pytest.mark.skipif("amx_bf16" not in _C.isas(), reason="this processor has no matrix unit"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]
each_layer = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture(autouse=True)
def by_parts():
    info.set_batch_invariant(False)
    yield
    info.set_batch_invariant(True)


def layer(kind, inputs, units, **options):
    name, fixed = LAYERS[kind]
    fixed = {**fixed, "proj_size": 64} if "proj_size" in fixed else fixed
    torch.manual_seed(0)
    return getattr(rnnfast, name)(inputs, units, **fixed, **options)


def results(module, x, hx=None):
    """Outputs and all gradients."""
    x = x.detach().requires_grad_()
    output = module(x, hx)
    gradients = torch.autograd.grad(total(output), [x, *module.parameters()])
    return [*(t.detach() for t in tensors(output)), *gradients]


def by_multiply_adds(f, *args):
    info.set_batch_invariant(True)
    try:
        return f(*args)
    finally:
        info.set_batch_invariant(False)


def error(actual, exact):
    """Root mean square of the error over that of the exact numbers."""
    return ((actual.double() - exact).square().mean() / exact.square().mean()).sqrt().item()


@each_layer
@pytest.mark.parametrize(
    ("steps", "rows", "inputs", "units"),
    [(5, 8, 1, 80), (3, 15, 33, 70), (4, 16, 64, 96), (4, 17, 31, 100), (3, 33, 65, 128), (20, 64, 40, 300)],
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


def test_rows_and_columns_of_mixed_sizes_are_as_exact_as_those_of_one():
    scale_x, scale_w = (10 ** draw(n, seed=n).mul(10).clamp(-15, 15) for n in (19, 64))
    x, w = draw(19, 96) * scale_x[:, None], draw(64, 96, seed=2) * scale_w[:, None]
    x, w = x.float(), w.float()
    found, exact = product(x, w), (x.double() @ w.double().T).relu()
    size = scale_x[:, None] * scale_w
    assert error(found / size, exact / size) < 3e-7


def test_a_sum_whose_terms_cancel_is_as_near_as_by_multiply_adds():
    x, w = draw(16, 128).float(), draw(64, 128, seed=2).float()
    x[:, 64:], w[:, 64:] = -x[:, :64] * (1 + 2**-12), w[:, :64]
    exact = (x.double() @ w.double().T).relu()
    assert error(product(x, w), exact) <= 1.05 * error(by_multiply_adds(product, x, w), exact)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan, 3e38])
@pytest.mark.parametrize("where", ["x", "w"])
def test_what_is_not_finite_or_hardly_flows_as_in_torch(value, where):
    x, w = draw(17, 40).float(), draw(70, 40, seed=2).float()
    (x if where == "x" else w)[3, 5] = value
    w[7], x[:, 6] = 0.5, 0  # no lower parts, and nothing beside infinity
    found, expected = product(x, w), (x @ w.T).relu()
    same(found, expected, equal_nan=True, rtol=1e-5, atol=1e-5)
    assert not torch.isfinite(expected).all() or value == 3e38


@each_layer
def test_not_finite_states_flow_as_in_torch(kind):
    ours, theirs = pair(kind, 70, 66, seed=3, dtype=torch.float32)
    x = draw(3, 9, 70).float()
    x[1, 2, 3], x[0, 4, 5] = torch.inf, torch.nan
    same(ours(x), theirs(x), equal_nan=True, rtol=1e-5, atol=1e-5)


@each_layer
@pytest.mark.parametrize("split", ["serial", "units", "rows"])
@pytest.mark.parametrize("threads", [1, 2])
def test_threads_and_plans_change_no_bit(kind, split, threads):
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
def test_a_row_has_the_same_bits_in_every_batch_of_8_rows_or_more(kind):
    module, x = layer(kind, 40, 100), draw(4, 67, 40).float()
    with torch.no_grad():
        whole = module(x)[0]
        for rows in (8, 15, 16, 17, 32, 33):
            same(module(x[:, 5 : 5 + rows])[0], whole[:, 5 : 5 + rows], rtol=0, atol=0)


@each_layer
def test_fewer_rows_or_units_keep_the_bits_of_multiply_adds(kind):
    for rows, units in ((7, 100), (16, 63)):
        projected = kind == "lstm_proj"  # then its outputs count
        module = rnnfast.LSTM(40, 101, proj_size=units) if projected else layer(kind, 40, units)
        x = draw(4, rows, 40).float()
        same(results(module, x), by_multiply_adds(results, module, x), rtol=0, atol=0)


@each_layer
def test_packed_rows_have_the_bits_of_padded_ones_also_where_few_are_left(kind):
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
def test_frozen_weights_give_the_same_bits(rows, steps, dtype):
    for kind in ("lstm", "gru", "rnn_tanh"):
        module, x = layer(kind, 40, 100, dtype=dtype).eval(), draw(steps, rows, 40).to(dtype)
        with torch.inference_mode():
            expected = module(x)
            same(rnnfast.freeze(module)(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize("at_first", [True, False])
def test_what_was_frozen_before_the_switch_is_not_read_after_it(at_first):
    info.set_batch_invariant(at_first)
    module, x = rnnfast.freeze(layer("lstm", 40, 100).eval()), draw(2, 16, 40).float()
    with torch.inference_mode():
        for on in (at_first, not at_first, at_first):
            info.set_batch_invariant(on)
            same(module(x), layer("lstm", 40, 100)(x), rtol=0, atol=0)
            assert info.last_run()["op"] == "direct"
            module(x)
            assert info.last_run()["op"] == ("frozen" if on == at_first else "direct")


@pytest.mark.parametrize("rows", [8, 33])
def test_a_deep_transition_is_as_near_to_float64_as_by_multiply_adds(rows):
    module, x = rnnfast.DeepTransitionRNN(40, 70), draw(rows, 6, 40).float()
    found, multiplied = results(module, x), by_multiply_adds(results, module, x)
    exact = results(module.double(), x.double())
    assert not torch.equal(found[0], multiplied[0])
    for ours, other, e in zip(found, multiplied, exact, strict=True):
        assert error(ours, e) <= max(1.05 * error(other, e), 2**-22)


def test_other_instruction_sets_are_not_concerned():
    module, x = layer("lstm", 40, 100), draw(4, 16, 40).float()
    expected = by_multiply_adds(results, module, x)
    info.set_isa("avx512")
    same(results(module, x), expected, rtol=0, atol=0)
    assert "multiply-adds\n" in info.describe()


def test_describe_says_how_products_are_made():
    assert "six products of bfloat16 parts" in info.describe()
    assert "six products" not in by_multiply_adds(info.describe)
