"""A cell's step at once: it gives the op's bits, and steps aside wherever more than a kernel is needed."""

import pytest
import torch
from helpers import CELLS, draw, pair, same, tensors
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import rnnfast
from rnnfast import functional, info

cells = pytest.mark.parametrize("kind", list(CELLS))


def inputs(kind, B=3, dtype=torch.float32, I=5, H=19):  # noqa: E741
    x, h, c = (draw(*((B, n) if B else (n,)), seed=n + k, dtype=dtype) for k, n in enumerate((I, H, H)))
    return x, ((h, c) if kind == "lstm_cell" else h)


def ran():
    return info.last_run()["op"]


@cells
@pytest.mark.parametrize("B", [None, 1, 3, 4, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("state", [True, False])
def test_a_step_at_once_gives_the_bits_of_the_op(kind, B, bias, dtype, state):
    ours, theirs = pair(kind, 5, 19, bias=bias, dtype=dtype)
    x, hx = inputs(kind, B, dtype)
    args = (x, hx) if state else (x,)
    by_op = ours(*args)
    assert ran() == "recurrent"
    with torch.no_grad():
        at_once = ours(*args)
    assert ran() == "step"
    same(at_once, by_op, rtol=0, atol=0)
    same(at_once, theirs(*args))


@cells
@pytest.mark.parametrize("size", [(7, 33), (33, 7), (64, 128), (130, 1), (1, 16), (1100, 17)], ids=str)
def test_a_row_alone_and_in_a_batch_gives_the_same_bits_at_every_size(kind, size):
    ours, _ = pair(kind, *size)
    x, hx = inputs(kind, 9, I=size[0], H=size[1])
    with torch.no_grad():
        together = tensors(ours(x, hx))
        for k in (0, 8):
            alone = tuple(t[k : k + 1] for t in hx) if isinstance(hx, tuple) else hx[k : k + 1]
            same(ours(x[k : k + 1], alone), [t[k : k + 1] for t in together], rtol=0, atol=0)


@cells
def test_inference_mode_and_frozen_weights_step_at_once(kind):
    ours, _ = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.inference_mode():
        first = ours(x, hx)
    assert ran() == "step"
    assert all(t.is_inference() for t in tensors(first))
    ours.requires_grad_(False)
    ours(x, hx)
    assert ran() == "step"


class Watch(TorchDispatchMode):
    seen = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen = (*self.seen, str(func))
        return func(*args, **(kwargs or {}))


class WatchFunctions(TorchFunctionMode):
    seen = ()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen = (*self.seen, str(func))
        return func(*args, **(kwargs or {}))


@cells
@pytest.mark.parametrize("mode", [Watch, WatchFunctions])
def test_a_mode_sees_the_op(kind, mode):
    ours, _ = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.no_grad(), mode() as watch:
        ours(x, hx)
    assert any("rnnfast" in name and "recurrent" in name for name in watch.seen)


class Marked(torch.Tensor):
    pass


def parametrized(cell, x, hx):
    torch.nn.utils.parametrizations.weight_norm(cell, "weight_hh")
    return cell, x, hx


def of_input(change):
    return lambda cell, x, hx: (cell, change(x), hx)


ASIDE = {
    "graph": lambda cell, x, hx: (cell, x.requires_grad_(), hx),
    "subclass": of_input(lambda x: x.as_subclass(Marked)),
    "strided": of_input(lambda x: x.t().contiguous().t()),
    "negative": of_input(lambda x: torch.complex(x, -x).conj().imag),
    "parametrized": parametrized,
    "half": lambda cell, x, hx: (
        cell.half(),
        x.half(),
        tuple(t.half() for t in hx) if isinstance(hx, tuple) else hx.half(),
    ),
}


@cells
@pytest.mark.parametrize("case", list(ASIDE))
def test_what_a_kernel_cannot_read_as_it_is_goes_by_the_op(kind, case):
    ours, theirs = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.no_grad():
        expected = theirs(x, hx)
    ours, x, hx = ASIDE[case](ours, x, hx)
    with torch.set_grad_enabled(case == "graph"):
        got = ours(x, hx)
    assert ran() == "recurrent"
    tolerance = {"rtol": 1e-2, "atol": 1e-2} if case == "half" else {}
    same([t.as_subclass(torch.Tensor).float() for t in tensors(got)], expected, **tolerance)
    if case == "graph":
        assert all(t.requires_grad for t in tensors(got))


@pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated:DeprecationWarning")
@cells
def test_autocast_transforms_tangents_and_tracing_are_not_stepped_over(kind):
    ours, _ = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.no_grad():
        expected = ours(x, hx)
        with torch.autocast("cpu", torch.bfloat16):
            ours(x, hx)
        assert ran() == "recurrent"
        batched = torch.vmap(lambda row: ours(row, hx))(torch.stack([x, x]))
        same([t[1] for t in tensors(batched)], expected)
        with forward_ad.dual_level():
            dual = ours(forward_ad.make_dual(x, torch.ones_like(x)), hx)
            tangents = [forward_ad.unpack_dual(t).tangent for t in tensors(dual)]
        assert all(t is not None and t.abs().sum() > 0 for t in tangents)
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        same(compiled(x, hx), expected)


def test_a_call_with_a_wrong_number_of_arguments_says_so():
    with pytest.raises(RuntimeError, match="try_step: expected mode, parameters, input, hx and cx"):
        rnnfast.ops.try_step("gru", {}, torch.zeros(1, 1), None)
    with pytest.raises(RuntimeError, match="mode is 'gro', expected one of lstm, gru"):
        cell, _ = pair("gru_cell", 5, 19)
        functional.try_step("gro", cell._parameters, torch.zeros(1, 5), None, None)
