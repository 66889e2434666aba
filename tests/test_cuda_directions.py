"""Both directions of a layer side by side in one launch of the resident kernel: the bits of each alone."""

import pytest
import torch
from cuda_helpers import GATES, MARKS
from helpers import GRADIENTS, MODES, draw

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS

T, B, INPUTS = 4, 11, 8
KINDS = {
    "block": (40, torch.bfloat16),
    "cluster": (130, torch.float16),
    "cluster of TF32": (70, torch.float32),
}


class Layer:
    """A layer of both directions, and each of them as a layer of its own, whose time goes forward."""

    def __init__(self, mode, H, dtype):
        self.mode, self.H = mode, H

        def numbers(*shape, seed):
            return draw(*shape, seed=seed).mul(0.3).to(dtype)

        self.x, self.dy = numbers(T, B, INPUTS, seed=1), numbers(T, B, 2 * H, seed=2)
        self.h0 = numbers(2, B, H, seed=3)
        self.c0 = numbers(2, B, H, seed=4) if MODES[mode]["has_cell"] else None
        rows = GATES[mode] * H
        self.weights = [
            [numbers(rows, INPUTS, seed=5 + d), numbers(rows, H, seed=7 + d), numbers(rows, seed=9 + d)]
            for d in range(2)
        ]

    def of_both(self):
        return self.x, self.dy, self.h0, self.c0, self.weights

    def of(self, d):
        c0 = None if self.c0 is None else self.c0[d : d + 1]
        return self.turned(self.x, d), self.y_of(self.dy, d), self.h0[d : d + 1], c0, self.weights[d : d + 1]

    def turned(self, t, d):
        return t.flip(0) if d else t

    def y_of(self, t, d):
        """Direction d of y, or of what has its shape, in the order of its walk."""
        return self.turned(t[..., d * self.H : (d + 1) * self.H], d).contiguous()


def run(on_gpu, mode, x, dy, h0, c0, weights):
    """y, h_n and c_n, the gradients; each is one launch."""

    def once(name, *arguments):
        before = torch.ops.rnnfast_emulated.launches() if on_gpu.emulated else 0
        results = on_gpu(name, *arguments)
        ran = on_gpu.last_run()
        assert (ran["kernel"], ran["directions"]) == ("resident", len(weights))
        if on_gpu.emulated:
            assert torch.ops.rnnfast_emulated.launches() - before == 1
        return results

    # the second bias and the projection are not there
    given = [[w_ih, w_hh, bias, bias, None] for w_ih, w_hh, bias in weights] + [[None] * 5]
    layer = [mode, x, h0, c0, *given[0], *given[1], None, False]
    y, hn, cn, gates, cells, _ = once("recurrent", *layer, True)
    gradients = once("recurrent_backward", dy, None, None, *layer, y, gates, cells, [True] * GRADIENTS)
    return y, hn, cn, gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", list(GATES))
def test_directions_side_by_side_give_the_bits_of_each_alone(on_gpu, mode, kind):
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    on_gpu.set_kernel("resident")
    layer = Layer(mode, *KINDS[kind])
    y, hn, cn, gradients = run(on_gpu, mode, *layer.of_both())
    assert on_gpu.last_run()["team"] == kind.split()[0]
    dx = torch.zeros_like(gradients[0])
    for d in range(2):
        y_alone, hn_alone, cn_alone, alone = run(on_gpu, mode, *layer.of(d))
        assert torch.equal(layer.y_of(y, d), y_alone)
        assert torch.equal(hn[d], hn_alone[0])
        assert torch.equal(gradients[1][d], alone[1][0])  # of h0
        if layer.c0 is not None:
            assert torch.equal(cn[d], cn_alone[0])
            assert torch.equal(gradients[2][d], alone[2][0])
        dx += layer.turned(alone[0], d)
        for i in range(4):  # sums over steps in another order
            torch.testing.assert_close(gradients[3 + 5 * d + i], alone[3 + i], rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(gradients[0], dx, rtol=2e-2, atol=2e-2)
