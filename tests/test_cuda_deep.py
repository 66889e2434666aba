"""The deep transition in one launch, emulated or on a GPU: against the CPU's op, and a launch a layer."""

import random
from functools import partial

import pytest
import torch
from cuda_helpers import MARKS, TOLERANCE, assert_near, emulated_run
from helpers import GPU, draw, tensors

from rnnfast import _C, info

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS
if GPU and torch.cuda.get_device_capability() < (9, 0):
    pytest.skip("clusters of blocks come with Hopper", allow_module_level=True)
ops = torch.ops.rnnfast
HALVES = [torch.bfloat16, torch.float16]


@pytest.fixture
def tf32():
    """Products of float32 may be TF32's."""
    matmul, before = torch.backends.cuda.matmul, torch.backends.cuda.matmul.fp32_precision
    matmul.fp32_precision = "tf32"
    yield
    matmul.fp32_precision = before


def case(seed, dtype, widths=None, batch=None, steps=None):
    """x, h0, weights, biases and slope: layers of unlike widths around a tile of 16 units."""
    rng = random.Random(seed)
    B, T = batch or rng.choice([1, 7, 8, 9, 17]), steps or rng.randint(1, 6)
    depth = rng.randint(1, 5)
    widths = widths or [rng.choice([3, 16, 33, 64, 100, 130]) for _ in range(depth)]
    inputs, H = rng.choice([1, 5, 16]), widths[-1]

    def numbers(*shape, scale=0.5):
        return draw(*shape, seed=rng.randrange(10**6)).mul(scale).to(dtype)

    reads = [inputs + H, *widths[:-1]]
    weights = [numbers(n, m, scale=m**-0.5) for n, m in zip(widths, reads, strict=True)]
    biases = [numbers(n) for n in widths] if rng.random() < 0.7 else []
    return [numbers(B, T, inputs), numbers(B, H), weights, biases, 0.1], numbers, rng


def both_ways(call, arguments, given, saved):
    """y, h_n, and all gradients.

    Backward is of the same y and activations, for a bit decides on which side of its kink LeakyReLU is.
    """
    y, hn, acts = call("deep_transition", *arguments, True)
    assert_near([acts], saved[1:], arguments[0].dtype)
    return [y, hn, *tensors(call("deep_transition_backward", *given, *arguments, *saved, True, True))]


def on_the_cpu(name, *arguments):
    return getattr(ops, name).default(*arguments)


def compare(on_gpu, seed, dtype, **sizes):
    arguments, numbers, rng = case(seed, dtype, **sizes)
    x, h0 = arguments[:2]
    dy = numbers(*x.shape[:2], h0.shape[1]) if rng.random() < 0.8 else None
    dhn = numbers(*h0.shape) if dy is None or rng.random() < 0.7 else None
    y, _, *saved = ops.deep_transition(*arguments, True)
    on_gpu.set_kernel("resident")  # which so few steps would not take
    expected = both_ways(on_the_cpu, arguments, [dy, dhn], [y, *saved])
    found = both_ways(on_gpu, arguments, [dy, dhn], [y, *saved])
    run = on_gpu.last_run()
    assert_near(found, expected, dtype)
    without = on_gpu("deep_transition", *arguments, False)
    for a, b in zip(without[:2], found[:2], strict=True):
        assert torch.equal(a, b)
    on_gpu.set_kernel("stepwise")
    assert_near(both_ways(on_gpu, arguments, [dy, dhn], [y, *saved]), found, dtype)
    assert on_gpu.last_run()["kernel"] == "stepwise"
    on_gpu.set_kernel("")
    return run


@pytest.mark.parametrize("seed", range(30))
def test_layers_of_unlike_widths(on_gpu, seed):
    run = compare(on_gpu, seed, HALVES[seed % 2])
    assert (run["op"], run["kernel"]) == ("deep_transition_backward", "resident")


def test_tensors_that_are_not_contiguous(on_gpu):
    def turned(t):
        return t.transpose(0, -1).contiguous().transpose(0, -1)

    arguments, numbers, _ = case(1, torch.bfloat16, widths=[16, 40], batch=9, steps=6)
    x, h0, weights, biases, slope = arguments
    y, _, acts = ops.deep_transition(*arguments, True)
    dy, dhn = numbers(*y.shape), numbers(*h0.shape)
    strided = [turned(x), turned(h0), [turned(w) for w in weights], biases, slope]
    expected = both_ways(on_gpu, arguments, [dy, dhn], [y, acts])
    assert on_gpu.last_run()["kernel"] == "resident"
    found = both_ways(on_gpu, strided, [turned(dy), turned(dhn)], [turned(y), acts])
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("seed", range(12))
def test_floats_are_tf32_where_products_are(on_gpu, tf32, seed, monkeypatch):
    monkeypatch.setitem(TOLERANCE, torch.float32, 5e-3)
    assert compare(on_gpu, seed, torch.float32)["kernel"] == "resident"


@pytest.mark.parametrize(("widths", "batch"), [([256, 256, 256], 8), ([300, 64, 512], 1), ([512], 17)])
@pytest.mark.parametrize("dtype", HALVES)
def test_clusters(on_gpu, dtype, widths, batch):
    run = compare(on_gpu, 1, dtype, widths=widths, batch=batch, steps=3)
    assert run["kernel"] == "resident"
    assert run["blocks"] > 1
    assert run["team"] == "cluster"


@pytest.mark.parametrize("widths", [[40, 70], [256, 130]], ids=["block", "cluster"])
def test_many_steps_in_which_warps_fall_behind(on_gpu, widths):
    if on_gpu.emulated:
        torch.ops.rnnfast_emulated.let_warps_fall_behind(True)
    assert compare(on_gpu, 3, torch.bfloat16, widths=widths, batch=2, steps=12)["kernel"] == "resident"


@pytest.mark.parametrize("steps", [1, 3])
def test_input_products_in_chunks_change_nothing(emulated, steps):
    ops_of = torch.ops.rnnfast_emulated
    arguments, _, _ = case(2, torch.bfloat16, widths=[16, 40], batch=3, steps=7)
    expected = emulated["deep_transition"](*arguments, True)
    before = ops_of.launches()
    ops_of.set_chunk_bytes(steps * 3 * 16 * 4)
    try:
        found = emulated["deep_transition"](*arguments, True)
    finally:
        ops_of.set_chunk_bytes(64 << 20)
    assert emulated_run()["kernel"] == "resident"
    assert ops_of.launches() - before == -(-7 // steps)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)


def assert_same_where_not_finite(found, expected):
    for where in torch.isposinf, torch.isneginf, torch.isnan:
        assert torch.equal(where(found), where(expected))
    assert_near([found.nan_to_num(0, 0, 0)], [expected.nan_to_num(0, 0, 0)], found.dtype)


@pytest.mark.parametrize("widths", [[64, 3, 40], [256, 3, 130]], ids=["block", "cluster"])
def test_infinity_is_what_it_is_on_the_cpu(on_gpu, widths):
    """A narrower layer has zeros for what the widest one has more: infinity must not make NaN of them."""
    arguments, _, _ = case(0, torch.bfloat16, widths=widths, batch=9, steps=6)
    x, _, weights, *_ = arguments
    for t in weights:
        t.abs_()
    y, hn, acts = ops.deep_transition(*arguments, True)
    x[4, 1] = torch.inf
    expected, found = (
        op(*arguments, False) for op in (ops.deep_transition, partial(on_gpu, "deep_transition"))
    )
    assert (on_gpu.last_run()["kernel"], on_gpu.last_run()["blocks"] > 1) == ("resident", widths[0] > 64)
    for a, b in zip(found[:2], expected[:2], strict=True):
        assert_same_where_not_finite(a, b)
    assert expected[1][4].isposinf().all()

    x[4, 1] = 1
    dy = torch.ones_like(y)
    dy[4, 3, 1] = torch.inf
    given = [dy, None, *arguments, y, acts, True, True]
    expected = ops.deep_transition_backward(*given)[:2]
    found = on_gpu("deep_transition_backward", *given)[:2]
    assert expected[1][4].isposinf().all()
    for a, b in zip(found, expected, strict=True):
        assert_same_where_not_finite(a, b)


LOSSES = {"some_words": (100, -1), "all_words": (1, -1), "a_block": (0, 1)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_a_block_that_waits_in_vain_gives_up_with_nan_and_the_next_call_says_so(
    emulated, losing, loss, backward
):
    arguments, numbers, _ = case(0, torch.bfloat16, widths=[256, 256], batch=9, steps=8)
    y, _, acts = emulated["deep_transition"](*arguments, True)
    assert emulated_run()["team"] == "cluster"
    assert emulated_run()["split"] > 1
    given = [numbers(*y.shape), None, *arguments, y, acts, True, True]
    name, values = (
        ("deep_transition_backward", given) if backward else ("deep_transition", [*arguments, True])
    )

    def call():  # dh0, or y
        return emulated[name](*values)[1 if backward else 0]

    expected = call()
    losing(*LOSSES[loss])
    found = call()
    losing(0, -1)
    lost = found.isnan()
    assert lost.all() if loss == "all_words" else lost.any()
    assert torch.equal(found[~lost], expected[~lost])  # nothing wrong that is a number
    with pytest.raises(RuntimeError, match="waited in vain for blocks that never ran; its output is NaN"):
        call()
    assert torch.equal(call(), expected)


@pytest.mark.parametrize(
    ("arguments", "plan"),  # kernel, blocks, warps, split, held
    [
        (dict(bytes=2, width=64, depth=2), ("resident", 1, 4, 1, 4)),
        (dict(bytes=2, width=128, depth=3), ("resident", 1, 16, 2, 4)),
        (dict(bytes=2, width=256, depth=3), ("resident", 2, 16, 2, 8)),
        (dict(bytes=2, width=256, depth=3, B=256), ("resident", 2, 16, 2, 8)),
        (dict(bytes=2, width=512, depth=3), ("resident", 8, 16, 4, 8)),
        (dict(bytes=4, tf32=True, width=256, depth=3), ("resident", 4, 16, 4, 8)),
        # so many rows that a launch a layer takes less
        (dict(bytes=2, width=512, depth=3, B=512), ("stepwise", 1, 0, 1, 0)),
        # what does not fit: shared memory, the matrix instruction, clusters, the kernel's parameters
        (dict(bytes=2, width=1024, depth=2), ("stepwise", 1, 0, 1, 0)),
        (dict(bytes=4, width=64, depth=2), ("stepwise", 1, 0, 1, 0)),
        (dict(bytes=8, width=64, depth=2), ("stepwise", 1, 0, 1, 0)),
        (dict(bytes=2, width=256, depth=2, capability=80), ("stepwise", 1, 0, 1, 0)),
        (dict(bytes=2, width=64, depth=2, capability=80), ("resident", 1, 4, 1, 4)),
        (dict(bytes=2, width=64, depth=2, capability=75), ("stepwise", 1, 0, 1, 0)),
        (dict(bytes=2, width=64, depth=9), ("stepwise", 1, 0, 1, 0)),
        # so few steps that gathering the weights is not worth it
        (dict(bytes=2, width=64, depth=3, T=3), ("stepwise", 1, 0, 1, 0)),
        (dict(bytes=2, width=64, depth=3, T=5), ("resident", 1, 4, 1, 4)),
    ],
)
def test_the_plan(arguments, plan):
    found = _C.cuda_deep_plan(**arguments)
    assert tuple(found[name] for name in ("kernel", "blocks", "warps", "split", "held")) == plan


@pytest.mark.parametrize("seed", range(40))
def test_a_resident_plan_holds_all_units_and_sums(seed):
    rng = random.Random(seed)
    size, width, depth = rng.choice([2, 4]), rng.randint(1, 600), rng.randint(1, 8)
    found = _C.cuda_deep_plan(size, width, depth, rng.choice([1, 9, 200]), tf32=True)
    blocks, warps, split, held = (found[name] for name in ("blocks", "warps", "split", "held"))
    if found["kernel"] == "stepwise":
        assert width * width * depth * size > 16 * 232448 / 4
        return
    assert blocks * (warps // split) * 16 >= width
    assert held * split * 32 // size >= width
    assert warps % split == held % 2 == 0
    assert warps <= 16
    assert width * width * depth * size // blocks <= found["bytes"] <= 232448


def test_a_kernel_that_is_forced_must_be_able_to():
    info.set_cuda_kernel("resident")
    try:
        assert _C.cuda_deep_plan(2, 512, 3, 512)["kernel"] == "resident"  # it would not be chosen
        with pytest.raises(RuntimeError, match="it takes a deep transition of bfloat16, .* up to 8 layers"):
            _C.cuda_deep_plan(2, 64, 9)
        info.set_cuda_kernel("stepwise")
        assert _C.cuda_deep_plan(2, 64, 2)["kernel"] == "stepwise"
    finally:
        info.set_cuda_kernel(None)
