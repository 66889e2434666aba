"""A layer in company: in backward nothing large waits for torch's pool, and beside busy processes
calls of several threads go alone."""

import os

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

import rnnfast
from benchmarks.company import busy_processes

T, B, H = 40, 32, 300  # H is no multiple of 16: rows of the gradients are padded
POOLED = 32768  # numbers from which on torch's pool shares a loop
WORK = (
    "copy_",
    "_to_copy",
    "fill_",
    "zero_",
    "sum",
    "cat",
    "index_copy_",
    "mul",
    "add",
    "add_",
    "mm",
    "addmm",
)
LENGTHS = torch.arange(B).remainder(T) + 1


def shares_by_pool(events):
    """torch's operators among them that have as many numbers as its pool shares."""
    large = set()
    for event in events:
        shapes = [shape for shape in event.input_shapes if shape and all(isinstance(n, int) for n in shape)]
        numbers = max((torch.Size(shape).numel() for shape in shapes), default=0)
        if event.name.startswith("aten::") and event.name[6:] in WORK and numbers > POOLED:
            large.add((event.name, numbers))
    return large


CALLS = {
    "a tensor": {},
    "lengths": {"lengths": LENGTHS},
    "resets": {"resets": torch.arange(T * B).remainder(17).eq(0).reshape(T, B)},
    "packed": {},
    "the gradient of a sum": {},
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_backward_leaves_nothing_to_torchs_pool(cell, dtype, call):
    torch.manual_seed(0)
    layer = getattr(rnnfast, cell)(H, H, num_layers=2, dtype=dtype)
    x = torch.randn(T, B, H, dtype=dtype, requires_grad=True)
    given = pack_padded_sequence(x, LENGTHS, enforce_sorted=False) if call == "packed" else x
    y = layer(given, **CALLS[call])[0]
    y = y.data if call == "packed" else y
    dy = torch.ones((), dtype=dtype).expand(y.shape) if "sum" in call else torch.ones_like(y)
    wanted = [*layer.parameters(), *([] if call == "packed" else [x])]
    with torch.profiler.profile(record_shapes=True) as found:
        torch.autograd.grad(y, wanted, dy)
    assert any(event.name == "rnnfast::recurrent_backward" for event in found.events())
    assert shares_by_pool(found.events()) == set()


def test_what_the_pool_would_share_is_seen():
    x = torch.randn(300, 300)
    with torch.profiler.profile(record_shapes=True) as found:
        x.t().contiguous(), x.sum(), x[:10].sum()
    assert {name for name, _ in shares_by_pool(found.events())} == {"aten::copy_", "aten::sum"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda y: torch.ones((), dtype=y.dtype).expand(y.shape),
        lambda y: torch.randn(y.size(1), y.size(2), dtype=y.dtype).expand(y.shape),
        lambda y: torch.randn(y.size(0), 1, y.size(2), dtype=y.dtype).expand(y.shape),
        lambda y: torch.randn(*y.shape[:2], 1, dtype=y.dtype).expand(y.shape),
        lambda y: torch.randn(*y.shape[:2], 2 * y.size(2), dtype=y.dtype)[..., 3 : 3 + y.size(2)],
        lambda y: torch.randn(*y.shape[:2], 2 * y.size(2), dtype=y.dtype)[..., ::2],
        lambda y: torch.randn(y.size(1), y.size(0), y.size(2), dtype=y.dtype).transpose(0, 1),
        lambda y: torch.randn(y.size(2), y.size(1), y.size(0), dtype=y.dtype).permute(2, 1, 0),
    ],
    ids="a number|every step|every row|every unit|a part|every second|turned steps|turned".split("|"),
)
def test_the_gradient_of_y_may_lie_in_memory_in_any_way(view, dtype):
    torch.manual_seed(0)
    layer = rnnfast.GRU(5, 70, dtype=dtype)
    y, _ = layer(torch.randn(64, 33, 5, dtype=dtype))  # 147,840 numbers: worth two threads
    dy = view(y.detach())
    assert not dy.is_contiguous()
    got = torch.autograd.grad(y, list(layer.parameters()), dy, retain_graph=True)
    expected = torch.autograd.grad(y, list(layer.parameters()), dy.contiguous())
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)


def test_calls_of_several_threads_go_alone_beside_busy_processes():
    threads = len(os.sched_getaffinity(0))
    if threads < 2:
        pytest.skip("one processor")
    torch.set_num_threads(threads)
    layer, x = rnnfast.LSTM(64, 200), torch.randn(40, 16, 64)
    members = []
    with busy_processes(2 * threads):
        for _ in range(300):
            layer(x)[0].mean().backward()
            run = rnnfast.info.last_run()
            assert run["wanted"] > 1
            members.append(run["members"])
    assert members.count(1) > len(members) // 2
