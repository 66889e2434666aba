"""Layers of a stack side by side, a chunk of steps at a time. Backward: test_cuda_stack_backward.py.

An emulated device does all work when it is asked for it, and keeps a record of the streams: what comes out is
the same, bit for bit, and no launch is asked for before its stream has waited for what it reads. On a GPU
streams and events are real.
"""

import pytest
import torch
from cuda_helpers import MARKS, assert_a_graph_replays, on_a_gpu
from cuda_stack_helpers import (
    CHUNKS,
    LAYERS_OF_A_STACK,
    STEPS,
    assert_same,
    layers,
    recorded_waits,
    run,
    run_side_by_side,
)
from helpers import GRADIENTS, LAYERS, draw

import rnnfast
from rnnfast import _paths, ops

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


def assert_waited(first):
    """Who waits for whom, where `first` launches came before those of the stack."""
    expected = []
    for k in range(LAYERS_OF_A_STACK):
        asked = first + k * CHUNKS  # launches before those of this layer
        expected.append((k + 1, 0, asked, asked))  # for what the caller has asked for
        for i in range(CHUNKS if k else 0):  # for that chunk of the layer below, before this one
            expected.append((k + 1, k, asked - CHUNKS + i + 1, asked + i))
    end = first + LAYERS_OF_A_STACK * CHUNKS
    expected += [(0, k + 1, first + (k + 1) * CHUNKS, end) for k in range(LAYERS_OF_A_STACK)]
    assert recorded_waits() == expected


@pytest.mark.parametrize("H", [40, 129], ids=["block", "cluster"])
@pytest.mark.parametrize("mode, P", [("lstm", None), ("lstm", 24), ("gru", None), ("rnn_tanh", None)])
def test_chunks_of_all_layers_change_nothing(emulated, mode, P, H):
    batch_first, stack = (H == 40) == (mode == "lstm"), layers(mode, H, P=P)
    x = draw(*(3, STEPS)[:: 1 if batch_first else -1], 5).bfloat16()
    expected, launches = run(emulated, mode, x, stack, batch_first=batch_first)
    assert launches == LAYERS_OF_A_STACK
    before = torch.ops.rnnfast_emulated.launches()
    found, launches = run_side_by_side(emulated, mode, x, stack, batch_first=batch_first)
    assert launches == LAYERS_OF_A_STACK * CHUNKS
    assert_same(found, expected)
    assert_waited(before)


def test_lengths_resets_and_states_of_all_steps(emulated):
    x, lengths = draw(STEPS, 3, 5).bfloat16(), torch.tensor([STEPS, 0, 37])
    resets = draw(STEPS, 3, 1).squeeze(2) > 1
    anew = [draw(1, 1, 40).bfloat16(), draw(1, 3, 40, seed=3).bfloat16()]
    for more in ([lengths, None, None, None, True], [None, resets, *anew, True]):
        expected, _ = run(emulated, "lstm", x, layers("lstm", 40), more=more)
        found, launches = run_side_by_side(emulated, "lstm", x, layers("lstm", 40), more=more)
        assert launches == LAYERS_OF_A_STACK * CHUNKS
        # what is saved of steps beyond a row's end nobody has written
        assert_same(*([[*layer[:3], layer[5]] for layer in outputs] for outputs in (found, expected)))


WHY_NOT = ["directions", "packed", "float64", "few steps", "small device", "grid", "forced"]


@pytest.mark.parametrize("why", WHY_NOT)
def test_what_does_not_run_side_by_side_is_as_it_was(emulated, why):
    ops_of, options = torch.ops.rnnfast_emulated, {}
    dtype = torch.float64 if why == "float64" else torch.bfloat16
    H = 129 if why == "grid" else 9
    stack = layers("lstm", H, directions=2 if why == "directions" else 1, dtype=dtype)
    x = draw(2 * 96 - 1 if why == "few steps" else STEPS, 3, 5).to(dtype)
    if why == "packed":
        x, options["sizes"] = x.flatten(0, 1), torch.full((STEPS,), 3)
    if why in ("small device", "grid"):
        ops_of.set_device(90 if why == "small device" else 80, 1 if why == "small device" else 132)
    if why == "forced":
        ops_of.set_kernel("stepwise")
    try:
        expected, launches = run(emulated, "lstm", x, stack, **options)
        found, same_launches = run_side_by_side(emulated, "lstm", x, stack, **options)
    finally:
        ops_of.set_device(0, 0)
        ops_of.set_kernel("")
    assert launches == same_launches
    assert ops_of.waits() == []
    assert_same(found, expected)


def test_a_layer_that_takes_the_callers_stream_waits_for_those_before(emulated):
    ops_of, x = torch.ops.rnnfast_emulated, draw(STEPS, 3, 5).bfloat16()
    first, second, _ = layers("lstm", 40)
    expected, _ = run(emulated, "lstm", x, [first, second])
    before = ops_of.launches()
    ops_of.open_stack(LAYERS_OF_A_STACK)
    below, _ = run(emulated, "lstm", x, [first])
    ops_of.set_kernel("stepwise")
    try:
        above, _ = run(emulated, "lstm", below[0][0], [second])
    finally:
        ops_of.set_kernel("")
        waits = ops_of.waits()
        ops_of.close_stack()
    assert waits == [1, 0, before, before, 0, 1, before + CHUNKS, before + CHUNKS]
    assert_same(below, expected[:1])
    torch.testing.assert_close(above[0][0], expected[1][0], rtol=0.02, atol=0.02)


def test_an_error_between_layers_leaves_nothing_open(emulated):
    ops_of, x = torch.ops.rnnfast_emulated, draw(STEPS, 3, 5).bfloat16()
    first, second, _ = layers("lstm", 40)
    with pytest.raises(RuntimeError, match="h0"):
        run_side_by_side(emulated, "lstm", x, [first, [second[0][:, :1], *second[1:]]])
    ended = ops_of.waits()[-4:]
    assert ended[:2] == [0, 1]  # the caller waited for the first layer all the same
    assert run(emulated, "lstm", x, [first])[1] == 1


def test_gradients_are_those_of_layers_one_after_the_other(emulated):
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers("gru", 40)
    gradients = []
    for outputs, _ in (run(emulated, "gru", x, stack), run_side_by_side(emulated, "gru", x, stack)):
        read = outputs[-2][0]
        y, _, _, gates, cells, _ = outputs[-1]
        given = [torch.ones_like(y), None, None, "gru", read, *stack[-1], None, False, y, gates, cells]
        gradients.append(emulated["recurrent_backward"](*given, [True] * GRADIENTS))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


def test_a_stack_is_opened_for_layers_on_a_gpu_alone(monkeypatch):
    assert ops.open_stack(4, [draw(2, 3), None]) is False
    with pytest.raises(RuntimeError, match="no stack is open"):
        ops.close_stack()
    with pytest.raises(RuntimeError, match="the number of layers and a list of tensors"):
        ops.open_stack(4, draw(2, 3))
    closed = []
    monkeypatch.setattr(ops, "open_stack", lambda layers, tensors: True)
    monkeypatch.setattr(ops, "close_stack", lambda: closed.append(True))
    with pytest.raises(ValueError, match="of a layer"), _paths._side_by_side(3, []):
        raise ValueError("of a layer")
    assert closed == [True]


@pytest.fixture
def opened(monkeypatch):
    """Whether each call of layers on a GPU opened a stack."""
    asked, open_stack = [], ops.open_stack

    def asking(*arguments):
        asked.append(open_stack(*arguments))
        return asked[-1]

    monkeypatch.setattr(ops, "open_stack", asking)
    return asked


@on_a_gpu
@pytest.mark.parametrize("enabled", [False, True])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_modules_on_a_gpu_equal_layers_one_after_the_other(kind, enabled, opened):
    torch.manual_seed(0)
    make = getattr(torch.nn if enabled else rnnfast, kind)
    module = make(32, 256, 3).to("cuda", torch.bfloat16)
    x = torch.randn(500, 16, 32, device="cuda", dtype=torch.bfloat16)

    def results():
        module.zero_grad()
        y, _ = module(x)
        y.float().pow(2).sum().backward()
        return [y.detach().clone(), *(p.grad.clone() for p in module.parameters())]

    if enabled:
        rnnfast.enable()
    try:
        together = [results() for _ in range(5)]
        with torch.autograd.graph.save_on_cpu():  # hooks look at each layer
            apart = results()
    finally:
        rnnfast.disable()
    assert enabled or opened == [True] * 5 + [False]
    for result in together:
        for a, b in zip(result, together[0], strict=True):
            assert torch.equal(a, b)
    # torch's products of fewer rows may add up in another order
    for a, b in zip(together[0], apart, strict=True):
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.05 * b.abs().max().item())


@on_a_gpu
def test_what_looks_at_each_layer_keeps_them_one_after_the_other(opened):
    module = rnnfast.LSTM(8, 64, 2).to("cuda", torch.bfloat16)
    x = torch.randn(400, 4, 8, device="cuda", dtype=torch.bfloat16)

    class Looking(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, function, types, arguments=(), options=None):
            return function(*arguments, **(options or {}))

    module(x)
    with Looking():
        module(x)
    assert opened == [True, False]


@on_a_gpu
@pytest.mark.parametrize("kind", ["stack", "projection", "deep transition"])
def test_a_graph_captures_them_and_replays_bit_for_bit(kind):
    torch.manual_seed(0)
    if kind == "stack":
        module = rnnfast.LSTM(16, 256, 3, batch_first=True)
    elif kind == "projection":
        module = rnnfast.LSTM(16, 256, 2, batch_first=True, bidirectional=True, proj_size=64)
    else:
        module = rnnfast.DeepTransitionRNN(16, 256, depth=3)
    module = module.to("cuda", torch.bfloat16)
    x = torch.randn(9, 300, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    assert_a_graph_replays(step, x)
