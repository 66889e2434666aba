"""A launch a step of many rows: tiles that are a block's or a cluster's, beside the small ones."""

import pytest
import torch
from cuda_helpers import MARKS, ROUNDED, errors_of, resident_case, resident_near
from helpers import GRADIENTS, MODES
from test_cuda_episodes import Case, both_ways, by

from rnnfast import _C

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS

WHOLE = (80, 132)  # where small tiles of such layers are all there at once, and no clusters


def tiles_of(case, **device):
    """The plans of a launch a step, forward and backward."""
    _C.set_cuda_kernel("stepwise")
    (mode, _, h0, *_), dtype, _ = case
    B, H = h0.shape[1:]
    found = [
        _C.cuda_plan(mode, dtype.itemsize, H, B, tf32=True, backward=backward, **device)
        for backward in (False, True)
    ]
    _C.set_cuda_kernel("")
    return found


def wide_case(seed):
    """A layer around the tiles (32 units or 128, 128 rows), its dtype, numbers, and a device where small ones
    take longer, with clusters or without.
    """
    H, rows = [100, 129, 160][seed // 12 % 3], [33, 70, 130, 200][seed % 5 % 4]
    case, capability = resident_case(seed, H, rows), [80, 90, 90][seed // 4 % 3]
    for multiprocessors in range(16, 0, -1):
        plans = tiles_of(case, capability=capability, multiprocessors=multiprocessors)
        if all(plan["warps"] for plan in plans):
            break
    return *case, (capability, multiprocessors)


@pytest.fixture(autouse=True)
def tf32(ieee, on_gpu):
    if not on_gpu.emulated:
        gpu = torch.cuda.get_device_properties(0)
        if gpu.major < 9 or gpu.multi_processor_count < WHOLE[1]:
            pytest.skip("this GPU is smaller than those that the layers are planned for")
    torch.backends.cudnn.rnn.fp32_precision = "tf32"


def ran_by(on_gpu, backward=False):
    """Which tiles the last run had: warps of a block (0: small tiles), blocks that share a sum."""
    ran = on_gpu.last_run()
    assert ran["kernel"] == "stepwise"
    assert ran["op"] == "recurrent" + "_backward" * backward
    return ran["warps"], ran["blocks"]


@pytest.mark.parametrize("seed", range(60))
def test_tiles_of_blocks_equal_small_ones(on_gpu, seed):
    arguments, dtype, numbers, device = wide_case(seed)
    near = resident_near(dtype)
    on_gpu.set_kernel("stepwise")

    def run(device, name, *given):
        on_gpu.set_device(*device)
        return on_gpu(name, *given)

    expected = run(WHOLE, "recurrent", *arguments, True)
    assert ran_by(on_gpu) == (0, 1)
    found = run(device, "recurrent", *arguments, True)
    warps, split = ran_by(on_gpu)
    assert warps == 8
    assert split == 1 or device[0] == 90
    near(found, expected)
    y, hn, cn, gates, cells, _ = expected
    cotangents = numbers(*y.shape), numbers(*hn.shape), numbers(*cn.shape) if cn.numel() else None
    given = [*cotangents, *arguments, y, gates, cells, [True] * GRADIENTS]
    expected = run(WHOLE, "recurrent_backward", *given)
    assert ran_by(on_gpu, backward=True) == (0, 1)
    found = run(device, "recurrent_backward", *given)
    assert ran_by(on_gpu, backward=True)[0] == 8
    near(found, expected)


@pytest.mark.parametrize("device", [(80, 1), (90, 2)])
@pytest.mark.parametrize("seed", [0, 4, 8])  # LSTMs, of a dtype each
def test_projections_by_tiles_of_blocks_equal_those_of_small_ones(on_gpu, seed, device):
    H, P = 160, 140
    (mode, x, _, c0, *weights, sizes, batch_first), dtype, numbers = resident_case(seed, H, rows=70)
    for d in range(len(c0)):
        weights[5 * d + 1] = numbers(4 * H, P, scale=0.1)
        weights[5 * d + 4] = numbers(P, H, scale=0.1)
    arguments = [mode, x, numbers(len(c0), 70, P), c0, *weights, sizes, batch_first]
    near = resident_near(dtype)
    on_gpu.set_kernel("stepwise")

    def run(device, name, *given):
        before = torch.ops.rnnfast_emulated.copies() if on_gpu.emulated else 0
        on_gpu.set_device(*device)
        results = on_gpu(name, *given)
        if on_gpu.emulated:  # to the shared memory of large tiles
            assert (torch.ops.rnnfast_emulated.copies() > before) == (device != WHOLE)
        return results

    expected = run(WHOLE, "recurrent", *arguments, True)
    near(run(device, "recurrent", *arguments, True), expected)
    y, hn, cn, gates, cells, _ = expected
    given = [numbers(*t.shape) for t in (y, hn, cn)]
    given += [*arguments, y, gates, cells, [True] * GRADIENTS]
    near(run(device, "recurrent_backward", *given), run(WHOLE, "recurrent_backward", *given))


@pytest.mark.parametrize("seed", range(60, 96))
def test_rows_that_end_or_begin_anew_equal_those_of_small_tiles(on_gpu, seed):
    arguments, dtype, numbers, device = wide_case(seed)
    case = Case(seed, arguments, dtype, numbers)
    both_ways(case, seed, by(on_gpu, "stepwise", WHOLE), by(on_gpu, "stepwise", device), resident_near(dtype))
    assert ran_by(on_gpu, backward=True)[0] == 8


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("mode", MODES)
def test_the_devices_own_exp2_and_reciprocal_lose_nothing(on_gpu, mode, dtype):
    """Beside small tiles, whose cells are exact."""
    errors = errors_of(on_gpu, mode, dtype, T=100, B=65, H=64)
    on_gpu.set_kernel("stepwise")
    found = {}
    for device in (WHOLE, (80, 1)):
        on_gpu.set_device(*device)
        found[device] = errors()
        assert (ran_by(on_gpu, backward=True)[0] == 8) == (device != WHOLE)
    for rough, exact in zip(found[80, 1], found[WHOLE], strict=True):
        assert 0 < rough <= 1.1 * exact
