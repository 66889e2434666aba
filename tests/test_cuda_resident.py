"""The resident kernel beside the stepwise one, with every team of blocks that shares a layer."""

import pytest
import torch
from cuda_helpers import (
    MARKS,
    ROUNDED,
    device_of,
    emulated_run,
    errors_of,
    plans_of,
    resident_case,
    resident_near,
)
from helpers import GRADIENTS, MODES

from rnnfast import _C, info

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


def assert_resident_equals_stepwise(on_gpu, seed, arguments, dtype, numbers, backward_on=None):
    """And what ran backward, resident. backward_on: the multiprocessors that it has there, where that is not
    as many as forward has."""
    near = resident_near(dtype)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"

    def run(kernel, name, *given):
        on_gpu.set_kernel(kernel)
        return on_gpu(name, *given)

    H = arguments[5].size(1)
    expected = run("stepwise", "recurrent", *arguments, True)
    assert on_gpu.last_run()["kernel"] == "stepwise"
    found = run("resident", "recurrent", *arguments, True)
    ran = on_gpu.last_run()
    assert (ran["op"], ran["kernel"]) == ("recurrent", "resident")
    near([t[..., :H] for t in found], [t[..., :H] for t in expected])
    near(run("resident", "recurrent", *arguments, False)[:3], expected[:3])
    dy, dhn = numbers(*expected[0].shape), numbers(*expected[1].shape) if seed % 3 else None
    dcn = numbers(*expected[2].shape) if arguments[0] == "lstm" and seed % 5 else None
    given = [dy if seed % 7 or dhn is None else None, dhn, dcn, *arguments, expected[0], *expected[3:5]]
    if backward_on:
        on_gpu.set_device(80, backward_on)
    found = run("resident", "recurrent_backward", *given, [True] * GRADIENTS)
    ran = on_gpu.last_run()
    assert (ran["op"], ran["kernel"]) == ("recurrent_backward", "resident")
    near(found, run("stepwise", "recurrent_backward", *given, [True] * GRADIENTS))
    return ran


@pytest.mark.parametrize("seed", range(78))
def test_the_resident_kernel_equals_the_stepwise_one(on_gpu, seed):
    on_gpu.set_device(*device_of(seed))
    assert_resident_equals_stepwise(on_gpu, seed, *resident_case(seed))


def test_the_seeds_take_every_team_and_more_rows_than_one_tile_in_each():
    taken = set()
    for seed in range(78):
        capability, multiprocessors = device_of(seed)
        plans = plans_of(seed, capability=capability, multiprocessors=multiprocessors)
        taken |= {(plan["team"], plan["batches"] > 1, way) for way, plan in enumerate(plans)}
    expected = {("block", False), *((team, several) for team in ("cluster", "grid") for several in (0, 1))}
    assert taken == {(team, several, way) for team, several in expected for way in (0, 1)}


@pytest.mark.parametrize("capability", [90, 80])
def test_many_steps_in_which_warps_fall_behind(on_gpu, capability):
    """129 units in two blocks of 72: the last warp has none, and nobody waits for what it sends."""
    arguments, dtype, numbers = resident_case(0, 129)
    plan = _C.cuda_plan("lstm", 2, 129, 1, capability=capability)
    assert (plan["blocks"], plan["split"], plan["warps"]) == (2, 1, 9)
    arguments[1], arguments[-2:] = numbers(50, 1, arguments[4].size(1)), [None, False]
    arguments[2] = arguments[3] = numbers(arguments[2].size(0), 1, 129)
    on_gpu.set_device(capability, 132)
    if on_gpu.emulated:
        torch.ops.rnnfast_emulated.let_warps_fall_behind(True)
    assert_resident_equals_stepwise(on_gpu, 1, arguments, dtype, numbers)


# seeds 0 to 3 are bfloat16, 4 to 7 float16, 8 to 11 float32; modulo 4 an LSTM, a GRU, RNNs; units: of a block
# where backward exchanges sums
@pytest.mark.parametrize(
    "seed, H, units",
    [(0, 640, 0), (1, 641, 0), (5, 520, 0), (8, 400, 32), (9, 400, 32), (11, 700, 0), (11, 800, 64)],
)
def test_a_cluster_that_keeps_a_part_of_w_in_shared_memory(on_gpu, seed, H, units):
    arguments, dtype, numbers = resident_case(seed, H)
    mode, B = arguments[0], arguments[2].size(1)
    for backward in False, True:
        plan = _C.cuda_plan(mode, dtype.itemsize, H, B, tf32=True, backward=backward)
        assert plan["team"] == "cluster"
        assert plan["held"] > 0
    ran = assert_resident_equals_stepwise(on_gpu, seed, arguments, dtype, numbers)
    assert (ran["team"], ran["units"]) == ("cluster", units)


@pytest.mark.parametrize("seed, H", [*((seed, 400) for seed in (*range(9), 10, 11)), (5, 1030), (6, 1030)])
def test_the_fewest_blocks_that_hold_a_layer_equal_the_stepwise_kernel(on_gpu, seed, H):
    arguments, dtype, numbers = resident_case(seed, H)
    mode, B = arguments[0], arguments[2].size(1)
    fewest = []
    for backward in False, True:
        for multiprocessors in range(1, 132):  # without clusters
            device = dict(capability=80, multiprocessors=multiprocessors)
            plan = _C.cuda_plan(mode, dtype.itemsize, H, B, tf32=True, backward=backward, **device)
            if plan["tiles"]:
                break
        assert plan["team"] == "grid"
        assert plan["held"] > 0
        fewest.append(multiprocessors)
    forward_on, backward_on = fewest
    on_gpu.set_device(80, forward_on)
    try:
        assert_resident_equals_stepwise(on_gpu, seed, arguments, dtype, numbers, backward_on)
    except RuntimeError as error:
        if on_gpu.emulated or "is forced, but" not in str(error):
            raise
        pytest.skip("this GPU does not hold it")


def test_the_kernel_that_is_forced_runs_or_says_why_not(emulated):
    ops_of = torch.ops.rnnfast_emulated
    arguments, _, _ = resident_case(0)
    for name, expected in ("", "resident"), ("stepwise", "stepwise"), ("resident", "resident"):
        ops_of.set_kernel(name)
        emulated["recurrent"](*arguments, False)
        assert emulated_run()["kernel"] == expected
    arguments[1:13] = [t.float() if isinstance(t, torch.Tensor) else t for t in arguments[1:13]]
    with pytest.raises(
        RuntimeError, match="the resident CUDA kernel is forced, but it takes layers of bfloat16"
    ):
        emulated["recurrent"](*arguments, False)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    emulated["recurrent"](*arguments, False)
    assert emulated_run()["kernel"] == "resident"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    ops_of.set_kernel("")
    emulated["recurrent"](*arguments, False)
    assert emulated_run()["kernel"] == "stepwise"
    with pytest.raises(RuntimeError, match="CUDA kernel 'grid' is unknown, expected stepwise or resident"):
        info.set_cuda_kernel("grid")


def test_a_device_is_planned_for_as_a_smaller_one_and_never_as_a_larger(emulated):
    ops_of = torch.ops.rnnfast_emulated
    arguments, _, _ = resident_case(0, 130)
    for device, team in ((0, 0), "cluster"), ((90, 100, 7), "cluster"), ((80, 100), "grid"):
        ops_of.set_device(*device)
        emulated["recurrent"](*arguments, False)
        assert emulated_run()["team"] == team
    for device, said in (
        ((100, 132), "100 is asked for as the compute capability .*, this GPU has 90"),
        ((90, 133), "133 is asked for as the multiprocessors, this GPU has 132"),
    ):
        ops_of.set_device(*device)
        with pytest.raises(RuntimeError, match=said):
            emulated["recurrent"](*arguments, False)
    ops_of.set_device(0, 0)


@pytest.mark.parametrize("dtype", ROUNDED)
@pytest.mark.parametrize("mode", MODES)
def test_the_devices_own_exp2_and_reciprocal_lose_nothing_in_2000_steps(on_gpu, mode, dtype):
    """Beside the stepwise kernel, whose cells are exact."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    errors = errors_of(on_gpu, mode, dtype, T=2000, B=2, H=20)
    found = {}
    for kernel in ("resident", "stepwise"):
        on_gpu.set_kernel(kernel)
        found[kernel] = errors()
        assert on_gpu.last_run()["kernel"] == kernel
    for rough, exact in zip(found["resident"], found["stepwise"], strict=True):
        assert 0 < rough <= 1.1 * exact
