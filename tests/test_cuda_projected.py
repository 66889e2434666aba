"""LSTMs with a projection in one launch for a whole sequence: beside a launch a step, and float64."""

import random

import pytest
import torch
from cuda_helpers import MARKS, resident_near
from helpers import GRADIENTS, draw

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


class Case:
    """Of every dtype and form, sizes around tiles, blocks and clusters; both directions, packed rows."""

    def __init__(self, seed, T=None):
        rng = self.rng = random.Random(seed)
        self.dtype = dtype = DTYPES[seed % 3]
        form = ["time", "batch", "packed"][seed // 3 % 3]
        T, B = T or rng.randint(1, 9), rng.choice([1, 7, 8, 9, 17])
        inputs, D = rng.choice([1, 8]), rng.choice([1, 2])
        H, P = rng.choice([(16, 3), (33, 16), (64, 40), (100, 17), (130, 64), (200, 33), (257, 40)])

        def numbers(*shape, scale=0.5):
            return draw(*shape, seed=rng.randrange(10**6)).mul(scale).to(dtype)

        weights, bias = [], rng.random() < 0.8
        for d in range(2):
            one = [numbers(4 * H, inputs), numbers(4 * H, P, scale=P**-0.5)]
            one += [numbers(4 * H), numbers(4 * H)] if bias else [None, None]
            weights += [*one, numbers(P, H, scale=H**-0.5)] if d < D else [None] * 5
        sizes, rows = None, (B, T) if form == "batch" else (T, B)
        if form == "packed":
            lengths = [T] + [rng.randint(1, T) for _ in range(B - 1)]
            sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
            rows = (sum(lengths),)
        states = numbers(D, B, P), numbers(D, B, H)
        self.layer = ["lstm", numbers(*rows, inputs), *states, *weights, sizes, form == "batch"]
        given = [rng.random() < 0.8 for _ in range(4)]
        shapes = [(*rows, D * P), (D, B, P), (D, B, H), (*rows, D * H)]
        self.cotangents = [
            numbers(*shape) if is_given else None for shape, is_given in zip(shapes, given, strict=True)
        ]

    def all(self, op, convert=lambda given: given, needs=None):
        """What forward gives, and the gradients."""
        layer, (dy, dhn, dcn, dcs) = convert(self.layer), convert(self.cotangents)
        episodes = [None] * 4
        results = op("recurrent", *layer, True, *episodes, True)
        saved = results[0], *results[3:5]
        needs = needs or [True] * GRADIENTS
        gradients = op("recurrent_backward", dy, dhn, dcn, *layer, *saved, needs, *episodes, dcs)
        return [results[i] for i in (0, 1, 2, 5)], gradients


def in_double(given):
    return [t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in given]


@pytest.fixture
def both_ways(on_gpu):
    """run(case, ...): by one launch, and by a launch a step."""

    def run(case, *arguments):
        results = []
        for kernel in "resident", "stepwise":
            on_gpu.set_kernel(kernel)
            results.append(case.all(on_gpu, *arguments))
            assert on_gpu.last_run()["kernel"] == kernel
        return results

    before, torch.backends.cudnn.rnn.fp32_precision = torch.backends.cudnn.rnn.fp32_precision, "tf32"
    yield run
    torch.backends.cudnn.rnn.fp32_precision = before


def assert_both_near(found, expected, dtype):
    for a, b in zip(found, expected, strict=True):
        resident_near(dtype)(a, b)


@pytest.mark.parametrize("seed", range(54))
def test_one_launch_equals_a_launch_a_step(both_ways, seed):
    case = Case(seed)
    assert_both_near(*both_ways(case), case.dtype)


@pytest.mark.parametrize("seed", range(9))
def test_only_what_is_needed_is_made(both_ways, seed):
    case = Case(seed)
    needs = [case.rng.random() < 0.5 for _ in range(GRADIENTS)]
    assert_both_near(*both_ways(case, lambda given: given, needs), case.dtype)


def test_y_of_the_last_step_is_h_n_and_products_in_chunks_change_nothing(emulated, both_ways):
    ops_of, case = torch.ops.rnnfast_emulated, Case(0, T=9)
    (whole, gradients), _ = both_ways(case)
    y, hn, D = whole[0], whole[1], whole[1].size(0)
    for d in range(D):
        assert torch.equal(y.chunk(D, 2)[d][-1 if d == 0 else 0], hn[d])
    ops_of.set_chunk_bytes(1)  # a step at a time
    try:
        (found, found_gradients), _ = both_ways(case)
    finally:
        ops_of.set_chunk_bytes(64 << 20)
    for a, b in zip([*found, *found_gradients], [*whole, *gradients], strict=True):
        torch.testing.assert_close(a, b, rtol=0.01, atol=0.01)


# W_hh W_hr is rounded, where a launch a step rounds h. (Of weights so large that errors grow from step to
# step, the same one in each step counts for more: not asserted.)
@pytest.mark.parametrize("dtype", range(3), ids=["bf16", "fp16", "tf32"])
def test_it_is_as_exact_as_a_launch_a_step(on_gpu, both_ways, dtype):
    case = Case([18, 19, 20][dtype], T=60)
    found, expected = both_ways(case)
    on_gpu.set_kernel("stepwise")
    exact = case.all(on_gpu, in_double)
    for what, *results in zip(("forward", "gradients"), found, expected, exact, strict=True):
        ratios = []
        for a, b, c in zip(*results, strict=True):
            if c.numel():
                errors = [(t.double() - c).norm() for t in (a, b)]
                ratios.append((errors[0] / errors[1]).log())
        assert torch.stack(ratios).mean().exp() <= 1.1, what


def test_what_float16_cannot_hold_of_the_product_is_its_largest_number(on_gpu):
    """300 times 300, 64 times: 5.8 million. Gates are 0 or 1 then, as by a launch a step."""
    weights = [draw(16, 2), torch.full((16, 64), 300.0), None, None, torch.full((64, 4), 300.0)]
    layer = [draw(9, 1, 2), torch.zeros(1, 1, 64), torch.zeros(1, 1, 4), *weights, *[None] * 5]
    layer = [t if t is None else t.half() for t in layer]
    results = []
    for kernel in "resident", "stepwise":
        on_gpu.set_kernel(kernel)
        results.append(on_gpu("recurrent", "lstm", *layer, None, False, False)[:3])
    assert results[0][0].isfinite().all()
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=0.01, atol=0.01)


@pytest.mark.parametrize("kind", ["lengths", "resets", "few steps"])
def test_what_cannot_be_folded_takes_a_launch_a_step(on_gpu, kind):
    T = 15 if kind == "few steps" else 16
    weights = [draw(64, 5), draw(64, 6), draw(64), draw(64), draw(6, 16), *[None] * 5]
    layer = [
        t if t is None else t.bfloat16() for t in (draw(T, 3, 5), draw(1, 3, 6), draw(1, 3, 16), *weights)
    ]
    lengths = torch.tensor([T, 0, 3]) if kind == "lengths" else None
    resets = draw(T, 3, 1).squeeze(2) > 0 if kind == "resets" else None
    call = ["recurrent", "lstm", *layer, None, False, False, lengths, resets, None, None, False]
    on_gpu.set_kernel("")
    on_gpu(*call)
    assert on_gpu.last_run()["kernel"] == "stepwise"
    on_gpu.set_kernel("resident")
    if kind == "few steps":
        on_gpu(*call)
        assert on_gpu.last_run()["kernel"] == "resident"
    else:
        with pytest.raises(RuntimeError, match="with a projection only without lengths and resets"):
            on_gpu(*call)
    if kind == "few steps":
        on_gpu.set_kernel("")
        call[2] = torch.cat([layer[0], layer[0]])  # long enough
        on_gpu(*call)
        assert on_gpu.last_run()["kernel"] == "resident"
