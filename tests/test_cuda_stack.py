"""Layers of a stack side by side, a chunk of steps at a time, forward and backward.

An emulated device does all work when it is asked for it, and keeps a record of the streams: what comes out is
the same, bit for bit, and no launch is asked for before its stream has waited for what it reads. On a GPU
streams and events are real.
"""

import pytest
import torch
from cuda_helpers import GATES, MARKS, assert_a_graph_replays, on_a_gpu
from helpers import GRADIENTS, LAYERS, MODES, draw

import rnnfast
from rnnfast import _paths, ops

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS
LAYERS_OF_A_STACK, STEPS = 3, 200
CHUNKS = 2  # of 96 steps at least


def layers(mode, H, B=3, inputs=5, directions=1, dtype=torch.bfloat16):
    """Of each layer the arguments of the op behind x."""
    found = []
    for k in range(LAYERS_OF_A_STACK):
        rows, reads = GATES[mode] * H, directions * H if k else inputs
        one = [draw(rows, reads, seed=k).mul(reads**-0.5), draw(rows, H, seed=10 + k).mul(H**-0.5)]
        weights = [*one, draw(rows, seed=20 + k), None, None]
        weights += weights if directions == 2 else [None] * 5
        states = [draw(directions, B, H, seed=30 + k), draw(directions, B, H, seed=40 + k)]
        if not MODES[mode]["has_cell"]:
            states[1] = None
        found.append([t if t is None else t.to(dtype) for t in (*states, *weights)])
    return found


def run(emulated, mode, x, stack, sizes=None, batch_first=False, save=True, more=()):
    """What every layer gives, and how many launches it took."""
    before, outputs = torch.ops.rnnfast_emulated.launches(), []
    for arguments in stack:
        outputs.append(emulated["recurrent"](mode, x, *arguments, sizes, batch_first, save, *more))
        x = outputs[-1][0]
    return outputs, torch.ops.rnnfast_emulated.launches() - before


def run_side_by_side(emulated, *arguments, **options):
    torch.ops.rnnfast_emulated.open_stack(LAYERS_OF_A_STACK)
    try:
        return run(emulated, *arguments, **options)
    finally:
        torch.ops.rnnfast_emulated.close_stack()


def assert_same(found, expected):
    for layer, (a, b) in enumerate(zip(found, expected, strict=True)):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert torch.equal(left, right), (layer, i)


def assert_waited(first):
    """Who waits for whom, where `first` launches came before those of the stack."""
    numbers = torch.ops.rnnfast_emulated.waits()
    waits = [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
    expected = []
    for k in range(LAYERS_OF_A_STACK):
        asked = first + k * CHUNKS  # launches before those of this layer
        expected.append((k + 1, 0, asked, asked))  # for what the caller has asked for
        for i in range(CHUNKS if k else 0):  # for that chunk of the layer below, before this one
            expected.append((k + 1, k, asked - CHUNKS + i + 1, asked + i))
    end = first + LAYERS_OF_A_STACK * CHUNKS
    expected += [(0, k + 1, first + (k + 1) * CHUNKS, end) for k in range(LAYERS_OF_A_STACK)]
    assert waits == expected


@pytest.mark.parametrize("H", [40, 129], ids=["block", "cluster"])
@pytest.mark.parametrize("mode", ["lstm", "gru", "rnn_tanh"])
def test_chunks_of_all_layers_change_nothing(emulated, mode, H):
    batch_first = (H == 40) == (mode == "lstm")
    x = draw(*(3, STEPS)[:: 1 if batch_first else -1], 5).bfloat16()
    expected, launches = run(emulated, mode, x, layers(mode, H), batch_first=batch_first)
    assert launches == LAYERS_OF_A_STACK
    before = torch.ops.rnnfast_emulated.launches()
    found, launches = run_side_by_side(emulated, mode, x, layers(mode, H), batch_first=batch_first)
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


def waits_since_a_stack_was_opened():
    numbers = torch.ops.rnnfast_emulated.waits()
    return [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]


@pytest.fixture
def record(emulated):
    """An empty record of who waited for whom."""
    torch.ops.rnnfast_emulated.open_stack(LAYERS_OF_A_STACK)
    torch.ops.rnnfast_emulated.close_stack()
    return waits_since_a_stack_was_opened


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


WHY_NOT_BACKWARD = ["lengths", "resets", "stepwise", "another stack", "states", "first layer alone"]


@pytest.mark.parametrize("why", WHY_NOT_BACKWARD)
def test_what_does_not_run_side_by_side_backward(emulated, record, why):
    x, stack, more = draw(STEPS, 3, 5).bfloat16(), layers("lstm", 40), [None] * 4
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
@pytest.mark.parametrize("kind", ["stack", "deep transition"])
def test_a_graph_captures_them_and_replays_bit_for_bit(kind):
    torch.manual_seed(0)
    if kind == "stack":
        module = rnnfast.LSTM(16, 256, 3, batch_first=True)
    else:
        module = rnnfast.DeepTransitionRNN(16, 256, depth=3)
    module = module.to("cuda", torch.bfloat16)
    x = torch.randn(9, 300, 16, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    assert_a_graph_replays(step, x)
