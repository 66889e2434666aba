"""The CUDA ops beside the CPU's: every cell, form and dtype, and how exact their products are."""

import random

import pytest
import torch
from cuda_helpers import GATES, MARKS, OPS, TOLERANCE, assert_near, layer_case
from helpers import GRADIENTS, MODES, draw, tensors

from rnnfast import _C, ops

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


def saved_by_rows(arguments, y, gates, cells):
    """Gates [D, N, S, H] and cells [D, N, H] of what the CPU has saved in an order of its own."""
    (D, B, _), H = arguments[2].shape, arguments[5].size(0) // GATES[arguments[0]]
    N, S, blocks = y[..., 0].numel(), MODES[arguments[0]]["slots"], (H + 15) // 16
    if gates.numel() == 0:
        gates = y.reshape(N, D, 1, H).transpose(0, 1)
    elif B == 1:
        gates = gates.view(D, blocks, N + 1, S, 16).permute(0, 2, 3, 1, 4).flatten(3)[:, :N]
    else:
        gates = gates.view(D, N + 1, S, blocks * 16)[:, :N]
    if B == 1:
        cells = cells.view(D, blocks, -1, 16).transpose(1, 2).flatten(2)
    else:
        cells = cells.view(D, -1, blocks * 16)
    return gates[..., :H], cells[..., :H]


@pytest.mark.parametrize("seed", range(64))
def test_a_layer_on_the_gpu_equals_the_cpu(on_gpu, seed):
    arguments, dtype, rng, numbers = layer_case(seed)
    on_gpu.set_kernel("stepwise" if seed % 3 else "")
    H = arguments[5].size(0) // GATES[arguments[0]]
    y, hn, cn, gates, cells, _ = ops.recurrent(*arguments, True)
    found = on_gpu("recurrent", *arguments, True)
    assert_near(found[:3], (y, hn, cn), dtype)
    # what pads the rows is nobody's
    for a, b in zip(found[3:5], saved_by_rows(arguments, y, gates, cells), strict=True):
        assert_near([a[..., :H].reshape(b.shape)], [b], dtype)
    assert [t.shape for t in on_gpu("recurrent", *arguments, False)[3:]] == [(0,)] * 3

    def maybe(t):
        return numbers(*t.shape) if rng.random() < 0.8 else None

    dy, dhn, dcn = maybe(y), maybe(hn), maybe(cn) if arguments[3] is not None else None
    if dy is None and dhn is None and dcn is None:
        dy = numbers(*y.shape)
    needs = [rng.random() < 0.9 for _ in range(GRADIENTS)]
    given = [dy, dhn, dcn, *arguments, y]
    expected = ops.recurrent_backward(*given, gates, cells, needs)
    assert_near(on_gpu("recurrent_backward", *given, *found[3:5], needs), expected, dtype)


@pytest.mark.parametrize("seed", range(32))
def test_infinity_spreads_on_the_gpu_as_on_the_cpu(on_gpu, seed):
    arguments, _, rng, _ = layer_case(seed)
    where = arguments[1 if arguments[1].numel() and seed % 2 else 2]  # x or h0
    where.view(-1, where.size(-1))[rng.randrange(where[..., 0].numel()), -1] = float("inf")
    on_gpu.set_kernel("stepwise" if seed % 3 else "")
    for found, expected in zip(
        on_gpu("recurrent", *arguments, False)[:3], ops.recurrent(*arguments, False)[:3], strict=True
    ):
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("B, device", [(35, (90, 132)), (150, (80, 4)), (150, (90, 4))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", GATES)
def test_tensor_cores_take_a_wide_layer_step_by_step(on_gpu, mode, dtype, B, device):
    """More rows than a block's tile, small or large, and a sum longer than its warps take at once, or its
    stages; float32 as TF32, an LSTM with a projection."""
    inputs, H = 3, 275
    P = 19 if mode == "lstm" else H

    def numbers(*shape, scale=0.5):
        return draw(*shape, seed=sum(shape)).mul(scale).to(dtype)

    rows = GATES[mode] * H
    weights = [numbers(rows, inputs), numbers(rows, P, scale=0.05), numbers(rows), None]
    weights += [numbers(P, H, scale=0.05) if P != H else None, *[None] * 5]
    c0 = numbers(1, B, H) if MODES[mode]["has_cell"] else None
    arguments = [mode, numbers(2, B, inputs), numbers(1, B, P), c0, *weights, None, False]
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    on_gpu.set_kernel("stepwise")
    on_gpu.set_device(*device)
    expected = ops.recurrent(*arguments, True)
    found = on_gpu("recurrent", *arguments, True)

    def near(found, expected):
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if b.numel():
                apart = (a.double() - b.double()).abs().max() / b.double().abs().max()
                assert apart <= {torch.bfloat16: 0.03, torch.float16: 4e-3, torch.float32: 2e-3}[dtype], i

    near(found[:3], expected[:3])
    if dtype == torch.float32:  # that it was TF32
        assert not torch.allclose(found[0], expected[0], rtol=1e-6, atol=1e-6)
    given, needs = (
        [numbers(*expected[0].shape), numbers(1, B, P), c0, *arguments, expected[0]],
        [True] * GRADIENTS,
    )
    padding = (0, -H % 16)
    saved = [
        torch.nn.functional.pad(t, padding) for t in saved_by_rows(arguments, expected[0], *expected[3:5])
    ]
    near(
        on_gpu("recurrent_backward", *given, *saved, needs),
        ops.recurrent_backward(*given, *expected[3:5], needs),
    )


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_the_products_of_a_tf32_layer_are_nearer_than_tf32(emulated, scale):
    """x W_ih^T as a product of bfloat16 pairs, where torch's own products may not be TF32."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    x, w_ih = draw(1, 40, 200).mul(scale).float(), draw(30, 200).div(scale).float()
    nothing = torch.zeros(30, 30)
    arguments = ["rnn_relu", x, torch.zeros(1, 40, 30), None, w_ih, nothing, *[None] * 8, None, False, False]
    exact = (x[0].double() @ w_ih.double().t()).relu()
    apart = (emulated["recurrent"](*arguments)[0][0] - exact).abs().max() / exact.max()
    assert 1e-7 < apart < 3e-5


def test_what_is_not_finite_stays_so_in_the_products_of_a_tf32_layer(emulated):
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    x, w_ih = torch.zeros(1, 3, 2), torch.full((4, 2), 1 / 3)
    x[0, 1, 0], x[0, 2, 0] = float("inf"), float("nan")
    arguments = ["rnn_relu", x, torch.zeros(1, 3, 4), None, w_ih, torch.zeros(4, 4), *[None] * 8]
    y = emulated["recurrent"](*arguments, None, False, False)[0][0]
    assert (y[0] == 0).all()
    assert (y[1] == float("inf")).all()
    assert y[2].isnan().all()


@pytest.mark.parametrize("seed", range(32))
def test_a_deep_transition_on_the_gpu_equals_the_cpu(on_gpu, seed):
    rng = random.Random(seed)
    dtype = list(TOLERANCE)[seed % 4]
    B, T, depth = rng.choice([1, 3, 8, 9]), rng.randint(1, 4), rng.randint(1, 4)
    inputs, H = rng.choice([1, 5]), rng.choice([1, 7, 17])

    def numbers(*shape):
        return draw(*shape, seed=rng.randrange(10**6)).mul(0.5).to(dtype)

    widths = [inputs + H, *(rng.choice([3, 18]) for _ in range(depth - 1)), H]
    weights = [numbers(n, m) for m, n in zip(widths, widths[1:], strict=False)]
    biases = [numbers(n) for n in widths[1:]] if rng.random() < 0.7 else []
    arguments = [numbers(B, T, inputs), numbers(B, H), weights, biases, 0.1]
    y, hn, acts = ops.deep_transition(*arguments, True)
    found = on_gpu("deep_transition", *arguments, True)
    assert_near(found[:2], (y, hn), dtype)
    assert_near(on_gpu("deep_transition", *arguments, False)[:2], (y, hn), dtype)
    dy = numbers(*y.shape) if rng.random() < 0.8 else None
    dhn = numbers(*hn.shape) if dy is None or rng.random() < 0.7 else None
    given = [dy, dhn, *arguments, y]
    expected = ops.deep_transition_backward(*given, acts, True, True)
    found = on_gpu("deep_transition_backward", *given, found[2], True, True)
    assert_near(tensors(found), tensors(expected), dtype)


def test_a_deep_transition_is_tf32_where_products_are(on_gpu):
    weights = [draw(n, m).mul(0.05).float() for n, m in ((300, 7 + 70), (70, 300))]
    arguments = [draw(9, 3, 7).float(), draw(9, 70).float(), weights, [], 0.1]
    y, hn, acts = ops.deep_transition(*arguments, True)
    before, given = torch.backends.cuda.matmul.fp32_precision, [draw(*y.shape).float(), None, *arguments, y]
    expected = tensors(ops.deep_transition_backward(*given, acts, True, True))
    apart = {}
    for precision in "ieee", "tf32":
        torch.backends.cuda.matmul.fp32_precision = precision
        found = on_gpu("deep_transition", *arguments, True)
        gradients = tensors(on_gpu("deep_transition_backward", *given, acts, True, True))
        pairs = zip([*found[:2], *gradients], [y, hn, *expected], strict=True)
        apart[precision] = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    torch.backends.cuda.matmul.fp32_precision = before
    assert max(apart["ieee"]) < 2e-6
    assert 1e-5 < min(apart["tf32"]) and max(apart["tf32"]) < 2e-3


def test_an_empty_batch_needs_no_kernel(on_gpu):
    weights = [draw(12, 2), draw(12, 3), None, None, None, *[None] * 5]
    arguments = ["lstm", draw(4, 0, 2), draw(1, 0, 3), draw(1, 0, 3), *weights, None, False]
    outputs = on_gpu("recurrent", *arguments, True)
    assert [t.shape for t in outputs[:3]] == [(4, 0, 3), (1, 0, 3), (1, 0, 3)]
    y, _, _, gates, cells, _ = outputs
    gradients = on_gpu("recurrent_backward", y, None, None, *arguments, y, gates, cells, [True] * GRADIENTS)
    assert gradients[3].shape == (12, 2)
    assert not gradients[3].any()


@pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels")
@pytest.mark.parametrize("op", OPS)
def test_without_cuda_kernels_the_error_says_how_to_build_them(op):
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    arguments = {
        "recurrent": layer_case(0)[0] + [True],
        "recurrent_backward": [None, None, None, *layer_case(0)[0], *[draw(1)] * 3, [True] * GRADIENTS],
        "deep_transition": [draw(1, 1, 1), draw(1, 1), [], [], 0.1, True],
        "deep_transition_backward": [
            None,
            None,
            draw(1, 1, 1),
            draw(1, 1),
            [],
            [],
            0.1,
            draw(1),
            draw(1),
            True,
            True,
        ],  # fmt: skip
    }
    with pytest.raises(RuntimeError, match=f"rnnfast::{op}: this build .* RNNFAST_CUDA=1 pip install"):
        getattr(ops, op).redispatch(key, *arguments[op])
