"""The only step of a call on a GPU, which takes one launch and backward two: beside the CPU's and the
stepwise kernels."""

import random

import pytest
import torch
from cuda_helpers import GATES, MARKS, TOLERANCE, assert_near
from helpers import GRADIENTS, MODES, draw

from rnnfast import ops

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS

MOST_ROWS = {torch.float64: 8, torch.float32: 8, torch.bfloat16: 32, torch.float16: 32}


def anywhere(t, rng):
    """t, beginning at a multiple of 16 bytes or not."""
    shift = rng.choice([0, 0, 1, 3])
    return torch.cat([t.new_zeros(shift), t.flatten()])[shift:].view(t.shape)


class Case:
    """A call of one step: every cell, dtype and form, sizes around tiles and 16 bytes, all resets; B: of more
    rows than forward takes at once, if need be."""

    def __init__(self, seed, dtype=None, H=None, B=None):
        rng = self.rng = random.Random(seed)
        mode = list(GATES)[seed % len(GATES)]
        self.dtype = dtype = dtype or list(TOLERANCE)[seed // 4 % 4]
        most = MOST_ROWS[dtype]
        self.B = B = B or rng.choice([1, 2, most - 1, most, rng.randint(1, most)])
        inputs, H = rng.choice([0, 1, 3, 8, 16, 64, 130]), H or rng.choice([1, 5, 8, 16, 17, 32, 40, 65])
        self.D = D = rng.choice([1, 1, 2])

        def numbers(*shape):
            return anywhere(draw(*shape, seed=rng.randrange(10**6)).mul(0.5).to(dtype), rng)

        self.numbers = numbers
        form, biases = rng.choice(["time", "batch", "packed"]), rng.choice([(1, 1), (1, 1), (0, 0)])
        rows = {"time": (1, B), "batch": (B, 1), "packed": (B,)}[form]
        weights = []
        for d in range(2):
            one = [numbers(GATES[mode] * H, inputs), numbers(GATES[mode] * H, H)]
            one += [numbers(GATES[mode] * H) if given else None for given in biases]
            weights += [*one, None] if d < D else [None] * 5
        has_cell = MODES[mode]["has_cell"]
        c0 = numbers(D, B, H) if has_cell else None
        sizes = torch.tensor([B]) if form == "packed" else None
        self.layer = [mode, numbers(*rows, inputs), numbers(D, B, H), c0, *weights, sizes, form == "batch"]
        self.episodes = [None] * 4
        if form != "packed" and D == 1 and rng.random() < 0.6:
            resets = torch.tensor([rng.random() < 0.5 for _ in range(B)]).view(rows)
            given = rng.random() < 0.7
            reset_h, reset_c = (numbers(D, rng.choice([1, B]), H) if given else None for _ in range(2))
            self.episodes = [None, resets, reset_h, reset_c if has_cell else None]

    def forward(self, op, save=True):
        return op(*self.layer, save, *self.episodes, True)

    def backward(self, op, cotangents, saved, needs):
        dy, dhn, dcn, dcs = cotangents
        return op(dy, dhn, dcn, *self.layer, *saved, needs, *self.episodes, dcs)

    def cotangents(self, results):
        y, hn, cn, _, _, cs = results
        has_cell = self.layer[3] is not None
        kinds = [(y, True), (hn, True), (cn, has_cell), (cs, has_cell)]
        return [self.numbers(*t.shape) if given else None for t, given in kinds]


def run(on_gpu, kernel, case, save=True):
    on_gpu.set_kernel("stepwise" if kernel == "stepwise" else "")
    results = case.forward(lambda *arguments: on_gpu("recurrent", *arguments), save)
    assert on_gpu.last_run()["kernel"] == kernel
    return results


def gradients(on_gpu, kernel, case, results, cotangents, needs):
    """By this kernel, of what a forward saved."""
    on_gpu.set_kernel("stepwise" if kernel == "stepwise" else "")
    saved = results[0], *results[3:5]
    found = case.backward(lambda *given: on_gpu("recurrent_backward", *given), cotangents, saved, needs)
    assert on_gpu.last_run()["kernel"] == kernel
    return found


def in_double(values):
    """The same numbers, in lists of lists, as float64."""
    if isinstance(values, (list, tuple)):
        return [in_double(value) for value in values]
    return values.double() if isinstance(values, torch.Tensor) and values.is_floating_point() else values


def compare_backward(on_gpu, case, found):
    """To the last bits of the dtype, beside a launch a step in float64 of what the GPU has saved."""
    cotangents, needs = case.cotangents(found), [case.rng.random() < 0.9 for _ in range(GRADIENTS)]
    single = gradients(on_gpu, "single", case, found, cotangents, needs)
    arguments = case.backward(lambda *given: given, cotangents, (found[0], *found[3:5]), needs)
    on_gpu.set_kernel("stepwise")
    eps = torch.finfo(case.dtype).eps
    for i, (a, b) in enumerate(zip(single, on_gpu("recurrent_backward", *in_double(arguments)), strict=True)):
        # the second direction adds to what the first has rounded
        rounded = eps * b.abs().max() if i == 0 and case.D == 2 and b.numel() else 0
        torch.testing.assert_close(a, b.to(case.dtype), rtol=4 * eps, atol=4e-6 + rounded)


def compare(on_gpu, case):
    expected = case.forward(ops.recurrent)
    found = run(on_gpu, "single", case)
    cs = [5] if case.layer[3] is not None else []
    assert_near([found[i] for i in (0, 1, 2, *cs)], [expected[i] for i in (0, 1, 2, *cs)], case.dtype)
    stepwise = run(on_gpu, "stepwise", case)
    assert_near(found, stepwise, case.dtype)
    inference = run(on_gpu, "single", case, save=False)
    assert [t.shape for t in inference[3:5]] == [(0,)] * 2
    for i in (0, 1, 2, 5):
        assert torch.equal(inference[i], found[i])
    compare_backward(on_gpu, case, found)


@pytest.mark.parametrize("seed", range(160))
def test_one_step_in_one_launch_equals_the_cpu_and_the_stepwise_kernel(on_gpu, seed):
    compare(on_gpu, Case(seed))


@pytest.mark.parametrize("seed", range(16))
def test_one_step_of_tf32_takes_one_launch(on_gpu, seed):
    case = Case(seed, torch.float32)
    exact = run(on_gpu, "single", case)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    found = run(on_gpu, "single", case)
    for a, b in zip(found[:3], exact[:3], strict=True):
        torch.testing.assert_close(a, b, rtol=5e-3, atol=5e-3)
    if exact[0].numel() > 8 and case.layer[1].size(-1) > 8:  # numbers of 10 bits are not those of 23
        assert not torch.equal(found[0], exact[0])


@pytest.mark.parametrize("seed", range(32))
def test_backward_of_more_rows_than_forward_takes_at_once(on_gpu, seed):
    case = Case(seed, B=[9, 16, 33, 64][seed // 16 * 2 + seed % 2], H=[5, 8, 40][seed % 3])
    on_gpu.set_kernel("")
    compare_backward(on_gpu, case, case.forward(lambda *given: on_gpu("recurrent", *given)))


def asked_of_the_device(call):
    """Launches of our own kernels, and the names of what torch was asked for."""
    launches = torch.ops.rnnfast_emulated.launches
    before = launches()
    with torch.profiler.profile() as profile:
        call()
    others = {event.key for event in profile.key_averages() if event.key.startswith("aten::")}
    # without a copy `to` does nothing
    return launches() - before, others - {"aten::empty", "aten::to"}


ON_THE_HOST = {"aten::item", "aten::_local_scalar_dense", "aten::select", "aten::as_strided"}


@pytest.mark.parametrize("seed", range(32))
def test_nothing_but_one_launch_for_each_direction_is_asked_of_the_device(emulated, seed):
    case = Case(seed)
    launches, others = asked_of_the_device(lambda: case.forward(emulated["recurrent"], save=False))
    assert launches == case.D
    sizes = ON_THE_HOST if case.layer[-2] is not None else set()  # batch_sizes of packed rows
    assert others <= sizes


@pytest.mark.parametrize("seed", range(32))
def test_backward_asks_for_two_launches_for_each_direction(emulated, seed):
    case = Case(seed)
    results = case.forward(emulated["recurrent"])
    cotangents, saved = case.cotangents(results), (results[0], *results[3:5])
    launches, others = asked_of_the_device(
        lambda: case.backward(emulated["recurrent_backward"], cotangents, saved, [True] * GRADIENTS)
    )
    assert launches == 2 * case.D
    of_states = {"aten::sum", "aten::fill_", "aten::_to_copy", "aten::copy_", "aten::empty_strided"}
    assert others <= ON_THE_HOST | (of_states if case.episodes[2] is not None else set())


@pytest.mark.parametrize("seed", range(32))
def test_infinity_and_nan_spread_backward_as_by_a_launch_a_step(on_gpu, seed):
    case = Case(seed)
    found = run(on_gpu, "single", case)
    cotangents = case.cotangents(found)
    for t, value in ((cotangents[0], torch.nan), (cotangents[1], torch.inf), (case.layer[1], -torch.inf)):
        if t is not None and t.numel() and case.rng.random() < 0.7:
            t.view(-1)[case.rng.randrange(t.numel())] = value
    single, stepwise = (
        gradients(on_gpu, kernel, case, found, cotangents, [True] * GRADIENTS)
        for kernel in ("single", "stepwise")
    )
    for a, b in zip(single, stepwise, strict=True):
        assert torch.equal(a.isfinite(), b.isfinite())


@pytest.mark.parametrize("seed", range(32))
def test_infinity_and_nan_spread_in_one_step_as_on_the_cpu(on_gpu, seed):
    case = Case(seed)
    x, h0 = case.layer[1], case.layer[2]
    for t, value in ((x, torch.inf), (h0, torch.nan), (case.layer[5], -torch.inf)):
        if t.numel() and case.rng.random() < 0.7:
            t.view(-1)[case.rng.randrange(t.numel())] = value
    expected, found = case.forward(ops.recurrent), run(on_gpu, "single", case)
    for a, b in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(a.isnan(), b.isnan())
        assert torch.equal(a.isinf(), b.isinf())


@pytest.mark.parametrize("dtype, most", MOST_ROWS.items(), ids=str)
def test_more_rows_than_a_tile_take_another_kernel(on_gpu, dtype, most):
    weights = [draw(64, 3).to(dtype), draw(64, 16).to(dtype), None, None, None]
    for B, kernels in (most, {"single"}), (most + 1, {"stepwise", "resident"}):
        x, h0, c0 = (draw(1, B, n).to(dtype) for n in (3, 16, 16))
        on_gpu("recurrent", "lstm", x, h0, c0, *weights, *[None] * 5, None, False, False)
        assert on_gpu.last_run()["kernel"] in kernels
