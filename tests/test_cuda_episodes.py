"""Lengths, resets and all states on a GPU: the stepwise kernel beside the CPU, the resident one beside it."""

import random

import pytest
import torch
from cuda_helpers import MARKS, assert_near, device_of, layer_case, resident_case, resident_near
from helpers import GRADIENTS, MODES

from rnnfast import ops

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


class Case:
    """A layer whose rows end early and begin anew, of layer_case's or resident_case's arguments.

    layer: up to `save`, of padded x. episodes: lengths, resets, reset_h, reset_c. beyond: of each row of x,
    whether it comes after its sequence's end. what: "lengths", "resets" (of one direction) or "both", with a
    state of its own for each row that is reset; drawn if it is not said.
    """

    def __init__(self, seed, arguments, dtype, numbers, what=None):
        rng = random.Random(seed)
        self.dtype, self.numbers = dtype, numbers
        self.layer, self.has_cell = list(arguments), MODES[arguments[0]]["has_cell"]
        (D, B, P), batch_first = arguments[2].shape, arguments[-1]
        if arguments[-2] is not None:  # packed
            batch_first = rng.random() < 0.5
            T = len(arguments[-2])
            self.layer[1] = numbers(*((B, T) if batch_first else (T, B)), arguments[1].size(-1))
            self.layer[-2:] = [None, batch_first]
        shape = self.layer[1].shape[:2]
        T = shape[batch_first]
        drawn = rng.choice(["lengths", "resets", "both"]) if D == 1 else "lengths"
        said, what = what, what or drawn
        lengths = resets = reset_h = reset_c = None
        self.beyond = torch.zeros(shape, dtype=torch.bool)
        if what != "resets":
            lengths = torch.tensor([rng.choice([0, T, rng.randint(0, T)]) for _ in range(B)])
            times = torch.arange(T).view((1, T) if batch_first else (T, 1))
            self.beyond = times >= (lengths.unsqueeze(1) if batch_first else lengths)
        if what != "lengths":
            rate = 0.3 if said else rng.choice([0, 0.2, 0.2, 1])
            resets = torch.tensor([[rng.random() < rate for _ in range(shape[1])] for _ in range(shape[0])])
            rows = B if said else rng.choice([None, 1, B])
            if rows:
                reset_h = numbers(1, rows, P)
                reset_c = numbers(1, rows, arguments[3].size(2)) if self.has_cell else None
        self.episodes = [lengths, resets, reset_h, reset_c]

    def without(self, t, value):
        """t with `value` beyond the end; None stays None."""
        return t if t is None else t.masked_fill(self.beyond.unsqueeze(2), value)

    def forward(self, op, beyond):
        """y, hn, cn, cs and what is saved, where x is `beyond` after its sequences' ends."""
        x = self.without(self.layer[1], beyond)
        y, hn, cn, gates, cells, cs = op(self.layer[0], x, *self.layer[2:], True, *self.episodes, True)
        return [y, hn, cn, cs], [y, gates, cells]

    def backward(self, op, beyond, cotangents, saved, needs):
        dy, dhn, dcn, dcs = cotangents
        x, dy, dcs = (self.without(t, beyond) for t in (self.layer[1], dy, dcs))
        return op(dy, dhn, dcn, self.layer[0], x, *self.layer[2:], *saved, needs, *self.episodes, dcs)


def both_ways(case, seed, expected_by, found_by, near):
    """Forward and backward, found with NaN beyond the end, are near what is expected with zeros there."""
    rng = random.Random(seed)
    expected, saved = case.forward(expected_by["recurrent"], 0)
    found, found_saved = case.forward(found_by["recurrent"], torch.nan)
    near(found, expected)
    for t in (found[0], found[3])[: 1 + case.has_cell]:
        assert (t[case.beyond] == 0).all()
    kinds = [True, True, case.has_cell, case.has_cell]
    cotangents = [
        case.numbers(*t.shape) if given and (i == 0 or rng.random() < 0.8) else None
        for i, (t, given) in enumerate(zip(expected, kinds, strict=True))
    ]
    needs = [rng.random() < 0.9 for _ in range(GRADIENTS)]
    expected = case.backward(expected_by["recurrent_backward"], 0, cotangents, saved, needs)
    found = case.backward(found_by["recurrent_backward"], torch.nan, cotangents, found_saved, needs)
    near(found, expected)
    assert not needs[0] or (found[0][case.beyond] == 0).all()


def by(on_gpu, kernel, device=None):
    """The ops of a GPU with one of its kernels, planned as for this device if one is said."""

    def op(name):
        def call(*arguments):
            on_gpu.set_kernel(kernel)
            if device:
                on_gpu.set_device(*device)
            results = on_gpu(name, *arguments)
            assert on_gpu.last_run()["kernel"] == kernel
            return results

        return call

    return {name: op(name) for name in ("recurrent", "recurrent_backward")}


ON_THE_CPU = {"recurrent": ops.recurrent, "recurrent_backward": ops.recurrent_backward}


@pytest.mark.parametrize("seed", range(128))
def test_a_layer_on_the_gpu_equals_the_cpu(on_gpu, seed):
    arguments, dtype, _, numbers = layer_case(seed)
    case = Case(seed, arguments, dtype, numbers)
    both_ways(case, seed, ON_THE_CPU, by(on_gpu, "stepwise"), lambda a, b: assert_near(a, b, dtype))


@pytest.mark.parametrize("seed", range(78))
def test_the_resident_kernel_equals_the_stepwise_one(on_gpu, seed):
    """With every team of blocks; of some the input comes in chunks, so that a launch begins with a reset."""
    arguments, dtype, numbers = resident_case(seed)
    case = Case(seed, arguments, dtype, numbers)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    on_gpu.set_device(*device_of(seed))
    in_chunks = on_gpu.emulated and seed % 2
    if in_chunks:  # of two steps
        rows, B = arguments[4].size(0), arguments[2].size(1)
        torch.ops.rnnfast_emulated.set_chunk_bytes(2 * 4 * rows * B)
    both_ways(case, seed, by(on_gpu, "stepwise"), by(on_gpu, "resident"), resident_near(dtype))
    if in_chunks:
        torch.ops.rnnfast_emulated.set_chunk_bytes(64 << 20)
