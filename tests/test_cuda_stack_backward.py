"""Backward through a stack, its layers side by side: emulated as in test_cuda_stack.py, by calls of the op
and by autograd."""

import pytest
import torch
from cuda_helpers import MARKS
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
from helpers import GRADIENTS, draw
from torch._dynamo import compiled_autograd

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


def run_backward(emulated, mode, x, stack, outputs, batch_first=False, number=None, between=None, more=()):
    """Gradients of all layers, the last one first, as of a stack of this number or none; between(dx, layer)
    is what happens to dx before it is the dy of that layer."""
    dy, found, before = torch.ones_like(outputs[-1][0]), [], torch.ops.rnnfast_emulated.launches()
    for k in reversed(range(LAYERS_OF_A_STACK)):
        read = outputs[k - 1][0] if k else x
        y, _, _, gates, cells, _ = outputs[k]
        if number is not None:
            torch.ops.rnnfast_emulated.place_in_stack(number, k)
        given = [dy, None, None, mode, read, *stack[k], None, batch_first, y, gates, cells]
        found.append(emulated["recurrent_backward"](*given, [True] * GRADIENTS, *more))
        dy = between(found[-1][0], k - 1) if between else found[-1][0]
    return found, torch.ops.rnnfast_emulated.launches() - before


@pytest.fixture
def record(emulated):
    """An empty record of who waited for whom."""
    torch.ops.rnnfast_emulated.open_stack(LAYERS_OF_A_STACK)
    torch.ops.rnnfast_emulated.close_stack()
    return recorded_waits


@pytest.mark.parametrize("H", [40, 129], ids=["block", "cluster"])
@pytest.mark.parametrize("mode", ["lstm", "gru", "rnn_tanh"])
def test_chunks_of_all_layers_backward_change_nothing(emulated, record, mode, H):
    batch_first = (H == 40) == (mode == "gru")
    x, stack = draw(*(3, STEPS)[:: 1 if batch_first else -1], 5).bfloat16(), layers(mode, H)
    outputs, _ = run(emulated, mode, x, stack, batch_first=batch_first)
    expected, launches = run_backward(emulated, mode, x, stack, outputs, batch_first)
    assert launches == LAYERS_OF_A_STACK and record() == []
    first = torch.ops.rnnfast_emulated.launches()
    found, launches = run_backward(emulated, mode, x, stack, outputs, batch_first, number=7)
    assert launches == LAYERS_OF_A_STACK * CHUNKS
    assert_same(found, expected)
    waits = []
    for done, stream in enumerate(reversed(range(1, LAYERS_OF_A_STACK + 1))):
        asked = first + done * CHUNKS  # launches before those of this layer
        waits.append((stream, 0, first, asked))  # for what was there before the stack's backward began
        for i in range(CHUNKS if done else 0):  # for that chunk of the layer above, before this one
            waits.append((stream, stream + 1, asked - CHUNKS + i + 1, asked + i))
        waits.append((0, stream, asked + CHUNKS, asked + CHUNKS))  # the caller, for the layer
    assert record() == waits


CHANGES = {
    "in place": lambda dx, layer: dx.mul_(2) if layer == 1 else dx,
    "another tensor": lambda dx, layer: dx * 2 if layer == 1 else dx,
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_layer_whose_gradient_has_changed_waits_for_all_of_the_layer_above(emulated, record, change):
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers("lstm", 40)
    outputs, _ = run(emulated, "lstm", x, stack)
    expected, _ = run_backward(emulated, "lstm", x, stack, outputs, between=CHANGES[change])
    found, _ = run_backward(emulated, "lstm", x, stack, outputs, number=8, between=CHANGES[change])
    assert_same(found, expected)
    # the second layer begins when the caller's stream has waited for the third; the first follows the second
    waits = [(stream, of) for stream, of, *_ in record()]
    assert waits == [(3, 0), (0, 3), (2, 0), (0, 2), (1, 0), (1, 2), (1, 2), (0, 1)]
    _, _, moment, when = record()[2]
    assert moment == when


@pytest.mark.parametrize("mode", ["lstm", "gru"])
def test_a_chunk_is_there_when_its_dx_is_and_the_caller_reads_what_a_lane_made(emulated, mode):
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers(mode, 40)
    outputs, _ = run(emulated, mode, x, stack)
    with torch.profiler.profile() as profile:
        run_backward(emulated, mode, x, stack, outputs, number=3)
    events = sorted(profile.events(), key=lambda event: event.time_range.start)
    order = [
        event.name for event in events if event.name in ("aten::mm", "streams::moment", "streams::used_on")
    ]
    # of a layer: where it begins, a product of each chunk before its moment, where it ends; then x, y, h0,
    # dh0, da, dg and dx, and dc0, for the caller's stream, which makes two products for the weights
    chunks = ["aten::mm", "streams::moment"] * CHUNKS
    handed = ["streams::used_on"] * (8 if mode == "lstm" else 7)
    layer = [*chunks, "streams::moment", *handed, *["aten::mm"] * 2]
    assert order == ["streams::moment", *layer * LAYERS_OF_A_STACK]


@pytest.mark.parametrize("given", ["h_n", "h_n, c_n", "h_n changed", "h_n of its own"])
def test_gradients_of_last_states_that_were_there_before_all_layers(emulated, record, given):
    """As autograd hands them out: of h_n of all layers, parts of one tensor."""
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers("lstm", 40)
    outputs, _ = run(emulated, "lstm", x, stack)
    results = []
    for number in None, 4:
        all_h, all_c = (draw(LAYERS_OF_A_STACK, 3, 40, seed=i).bfloat16() for i in (5, 6))
        dy = None
        for k in reversed(range(LAYERS_OF_A_STACK)):
            y, _, _, gates, cells, _ = outputs[k]
            if number is not None:
                torch.ops.rnnfast_emulated.place_in_stack(number, k)
            if given == "h_n changed" and k == 0:
                all_h.mul_(2)
            dhn = all_h[k : k + 1].clone() if given == "h_n of its own" and k == 0 else all_h[k : k + 1]
            dcn = all_c[k : k + 1] if given == "h_n, c_n" else None
            read = outputs[k - 1][0] if k else x
            arguments = [dy, dhn, dcn, "lstm", read, *stack[k], None, False, y, gates, cells]
            results.append(emulated["recurrent_backward"](*arguments, [True] * GRADIENTS))
            dy = results[-1][0]
    assert_same(results[LAYERS_OF_A_STACK:], results[:LAYERS_OF_A_STACK])
    waits = [(stream, of) for stream, of, *_ in record()]
    two = [(3, 0), (0, 3), (2, 0), *[(2, 3)] * CHUNKS, (0, 2)]
    last = [(1, 0), *[(1, 2)] * CHUNKS, (0, 1)] if given in ("h_n", "h_n, c_n") else []
    assert waits == [*two, *last]


def test_inference_mode_goes_backward_layer_by_layer(emulated, record):
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers("gru", 40)
    outputs, _ = run(emulated, "gru", x, stack)
    expected, _ = run_backward(emulated, "gru", x, stack, outputs)
    with torch.inference_mode():
        found, _ = run_backward(emulated, "gru", x, stack, outputs, number=5)
    assert_same(found, expected)
    assert [(stream, of) for stream, of, *_ in record()] == [(3, 0), (0, 3), (2, 0), (0, 2)]


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's own
def test_a_compiled_backward_of_a_stack_is_compiled_no_more_than_twice(emulated):
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers("gru", 40)
    expected = by_autograd(emulated, "gru", x, stack, False)[0]
    graphs = []
    for _ in range(5):
        x.grad = None
        outputs, _ = run_side_by_side(emulated, "gru", x, stack)
        with compiled_autograd._enable(lambda graph: graphs.append(graph) or graph):
            outputs[-1][0].square().sum().backward()
        assert torch.equal(x.grad, expected)
    assert len(graphs) <= 2  # the second one for any number of a stack


WHY_NOT_BACKWARD = [
    "lengths",
    "resets",
    "projection",
    "stepwise",
    "another stack",
    "states",
    "first layer alone",
]


@pytest.mark.parametrize("why", WHY_NOT_BACKWARD)
def test_what_does_not_run_side_by_side_backward(emulated, record, why):
    x, more = draw(STEPS, 3, 5).bfloat16(), [None] * 4
    stack = layers("lstm", 40, P=24 if why == "projection" else None)
    if why == "lengths":
        more[0] = torch.tensor([STEPS, 1, 37])
    if why == "resets":
        more[1] = draw(STEPS, 3, 1).squeeze(2) > 1
    if why == "stepwise":
        torch.ops.rnnfast_emulated.set_kernel("stepwise")
    try:
        outputs, _ = run(emulated, "lstm", x, stack, more=[*more, False])
        results = []
        for number in None, 9:
            dy = torch.ones_like(outputs[-1][0])
            for k in reversed(range(LAYERS_OF_A_STACK)):
                y, _, _, gates, cells, _ = outputs[k]
                dhn = torch.ones_like(stack[k][0]) if why == "states" else None
                if number and not (why == "first layer alone" and k):
                    of = number + (k if why == "another stack" else 0)
                    torch.ops.rnnfast_emulated.place_in_stack(of, k)
                read = outputs[k - 1][0] if k else x
                given = [dy, dhn, None, "lstm", read, *stack[k], None, False, y, gates, cells]
                results.append(emulated["recurrent_backward"](*given, [True] * GRADIENTS, *more))
                dy = results[-1][0]
    finally:
        torch.ops.rnnfast_emulated.set_kernel("")
    assert_same(results[LAYERS_OF_A_STACK:], results[:LAYERS_OF_A_STACK])
    # of another stack, or with a gradient of h_n: a layer goes to a stream of its own, for those below, but
    # after all that the caller has asked for
    waits = [(stream, of) for stream, of, *_ in record()]
    assert waits == ([(3, 0), (0, 3), (2, 0), (0, 2)] if why in ("another stack", "states") else [])


def test_a_stack_backward_that_is_given_up_leaves_nothing_for_the_next_one(emulated, record):
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers("gru", 40)
    outputs, _ = run(emulated, "gru", x, stack)
    expected, _ = run_backward(emulated, "gru", x, stack, outputs)
    for number in 11, 11, 12:

        def stop(dx, layer):
            raise ValueError("a hook")

        with pytest.raises(ValueError, match="a hook"):
            run_backward(emulated, "gru", x, stack, outputs, number=number, between=stop)
    found, _ = run_backward(emulated, "gru", x, stack, outputs, number=12)
    assert_same(found, expected)
    # each time anew, from the caller's stream
    assert [of for stream, of, *_ in record() if stream == 3] == [0] * 4


def by_autograd(emulated, mode, x, stack, side_by_side, hook=None):
    """Gradients of x and all that the layers have, where autograd calls the layers backward. hook(dy) is of
    the first layer's output."""
    leaves = [x, *(t for arguments in stack for t in arguments if t is not None)]
    for leaf in leaves:
        leaf.requires_grad_()
    outputs, _ = (run_side_by_side if side_by_side else run)(emulated, mode, x, stack)
    if hook:
        outputs[0][0].register_hook(hook)
    return torch.autograd.grad(outputs[-1][0].square().sum(), leaves)


@pytest.mark.parametrize("mode", ["lstm", "gru"])
@pytest.mark.parametrize("hook", [None, "reads", "changes"])
def test_autograd_goes_through_a_stack_side_by_side(emulated, record, mode, hook):
    seen = []
    hooks = {None: None, "reads": lambda dy: seen.append(dy.sum()), "changes": lambda dy: dy * 0.5}
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers(mode, 40)
    expected = by_autograd(emulated, mode, x, stack, False, hooks[hook])
    found = by_autograd(emulated, mode, x, stack, True, hooks[hook])
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert torch.equal(a, b), i
    forward = LAYERS_OF_A_STACK * 2 + 2 * CHUNKS
    waits = [(stream, of) for stream, of, *_ in record()[forward:]]
    two = [(3, 0), (0, 3), (2, 0), *[(2, 3)] * CHUNKS, (0, 2)]
    # with none below it, a layer that begins anew need not leave the caller's stream
    assert waits == (two if hook == "changes" else [*two, (1, 0), *[(1, 2)] * CHUNKS, (0, 1)])


def test_a_layer_that_is_computed_again_begins_after_all_that_was_asked_for(emulated, record):
    """As y of the last layer was changed, its backward computes it anew, on the caller's stream."""
    x, stack = draw(STEPS, 3, 5).bfloat16(), layers("gru", 40)
    results = []
    for side_by_side in False, True:
        leaves = [x.detach().requires_grad_(), *(t for layer in stack for t in layer if t is not None)]
        outputs, _ = (run_side_by_side if side_by_side else run)(emulated, "gru", leaves[0], stack)
        loss = outputs[-1][0].sum()
        with torch.no_grad():
            outputs[-1][0].zero_()
        results.append(torch.autograd.grad(loss, leaves[:1])[0])
    assert torch.equal(*results)
    forward = LAYERS_OF_A_STACK * 2 + 2 * CHUNKS
    waits = [(stream, of) for stream, of, *_ in record()[forward:]]
    assert waits == [(2, 0), (0, 2), (1, 0), *[(1, 2)] * CHUNKS, (0, 1)]
