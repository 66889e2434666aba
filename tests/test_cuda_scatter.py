"""Backward in a cluster whose blocks exchange sums, beside the stepwise kernel; and in one whose blocks
exchange dL/d(pre-activations), as those of wider layers do."""

from typing import NamedTuple

import pytest
import torch
from cuda_helpers import GATES, MARKS, emulated_run, resident_near
from helpers import GRADIENTS, MODES, draw
from test_cuda_episodes import Case, both_ways, by
from test_cuda_resident import assert_resident_equals_stepwise

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


class Shape(NamedTuple):
    mode: str
    dtype: torch.dtype
    H: int
    B: int
    multiprocessors: int
    # of the plan; `units` of a block is 0 where da is exchanged
    blocks: int
    units: int
    batches: int
    held: int

    def __str__(self):
        return f"{self.mode}-{self.dtype}-h{self.H}-b{self.B}".replace("torch.", "")


SUMS = [
    Shape("lstm", torch.bfloat16, 512, 5, 132, 16, 32, 1, 0),
    Shape("lstm", torch.float16, 290, 30, 10, 5, 64, 2, 16),
    Shape("gru", torch.bfloat16, 180, 30, 3, 3, 64, 4, 0),
    Shape("gru", torch.float32, 300, 17, 10, 10, 32, 3, 12),
    Shape("rnn_tanh", torch.bfloat16, 300, 17, 5, 5, 64, 3, 0),
    Shape("rnn_relu", torch.float16, 768, 7, 132, 12, 64, 1, 0),
    Shape("rnn_tanh", torch.bfloat16, 1024, 2, 132, 16, 64, 1, 0),
]
DA = [
    Shape("lstm", torch.bfloat16, 520, 3, 132, 11, 0, 1, 12),
    Shape("gru", torch.float16, 520, 3, 132, 11, 0, 1, 8),
]


def layer(shape, form):
    """The op's arguments up to `save`, of six steps."""
    mode, dtype, H, B = shape[:4]
    T, inputs = 6, 8
    seeds = iter(range(100))

    def numbers(*size, scale=0.5):
        return draw(*size, seed=next(seeds)).mul(scale).to(dtype)

    rows = GATES[mode] * H
    weights = [numbers(rows, inputs), numbers(rows, H, scale=H**-0.5), numbers(rows), numbers(rows), None]
    sizes = None
    if form == "packed":
        lengths = [T - b % 4 for b in range(B)]
        sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
        x = numbers(sum(lengths), inputs)
    else:
        x = numbers(*((B, T) if form == "batch" else (T, B)), inputs)
    c0 = numbers(1, B, H) if MODES[mode]["has_cell"] else None
    return [mode, x, numbers(1, B, H), c0, *weights, *[None] * 5, sizes, form == "batch"], numbers


def assert_plan(ran, shape):
    found = tuple(ran[name] for name in ("team", "blocks", "units", "batches", "held"))
    assert found == ("cluster", *shape[5:])


@pytest.mark.parametrize("form", ["time", "batch", "packed"])
@pytest.mark.parametrize("shape", SUMS, ids=str)
def test_the_gradients_are_those_of_the_stepwise_kernel(on_gpu, shape, form):
    arguments, numbers = layer(shape, form)
    on_gpu.set_device(90, shape.multiprocessors)
    assert_plan(assert_resident_equals_stepwise(on_gpu, 1, arguments, shape.dtype, numbers), shape)


@pytest.mark.parametrize("shape", [*SUMS[1:4], *DA], ids=str)
def test_warps_may_fall_behind(on_gpu, shape):
    arguments, numbers = layer(shape, "time")
    on_gpu.set_device(90, shape.multiprocessors)
    if on_gpu.emulated:
        torch.ops.rnnfast_emulated.let_warps_fall_behind(True)
    assert_plan(assert_resident_equals_stepwise(on_gpu, 1, arguments, shape.dtype, numbers), shape)


@pytest.mark.parametrize("what", ["resets", "both"])
@pytest.mark.parametrize("shape", SUMS, ids=str)
def test_rows_end_and_begin_anew(on_gpu, shape, what):
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    arguments, numbers = layer(shape, "time")
    case = Case(0, arguments, shape.dtype, numbers, what)
    on_gpu.set_device(90, shape.multiprocessors)
    both_ways(case, 0, by(on_gpu, "stepwise"), by(on_gpu, "resident"), resident_near(shape.dtype))
    assert_plan(on_gpu.last_run(), shape)


@pytest.mark.parametrize("mode", GATES)
def test_what_came_before_is_not_taken_for_what_is_lost(emulated, losing, mode):
    """Backward, a cluster that exchanges sums: one of them is lost when all buffers have been used before."""
    ops_of, T, B = torch.ops.rnnfast_emulated, 12, 8
    H = 257 if GATES[mode] == 1 else 130
    rows = GATES[mode] * H
    weights = [draw(rows, 3), draw(rows, H).mul(0.03), None, None, None, *[None] * 5]
    c0 = draw(1, B, H) if MODES[mode]["has_cell"] else None
    arguments = [mode, draw(T, B, 3), draw(1, B, H), c0, *weights, None, False]
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in arguments]
    saved = emulated["recurrent"](*arguments, True)
    given = [saved[0], None, None, *arguments, saved[0], *saved[3:5], [True] * GRADIENTS]
    losing(16000, -1)  # counted from here on
    dh0 = emulated["recurrent_backward"](*given)[1]
    plan = emulated_run()
    blocks, sums = plan["blocks"], plan["blocks"] * plan["units"] // 16
    assert 2 * blocks * sums * 32 < 16000 < (T - 1) * blocks * sums * 32  # stores of 16 bytes
    assert dh0.isnan().all()
    losing(0, -1)
    assert ops_of.take_failure()


@pytest.mark.parametrize("shape", DA, ids=str)
def test_who_loses_da_gives_up_with_nan(emulated, losing, shape):
    arguments, _ = layer(shape, "time")
    saved = emulated["recurrent"](*arguments, True)
    given = [saved[0], None, None, *arguments, saved[0], *saved[3:5], [True] * GRADIENTS]
    losing(100, -1)
    dh0 = emulated["recurrent_backward"](*given)[1]
    assert_plan(emulated_run(), shape)
    assert dh0.isnan().any()
    losing(0, -1)
    assert torch.ops.rnnfast_emulated.take_failure()
