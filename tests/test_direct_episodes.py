"""Resets and a learned state on the straight way: what comes of it is, bit for bit, what the op gives."""

import episode_helpers as episodes
import pytest
import torch
from direct_helpers import KINDS, by_the_op, ran
from helpers import CELLS, draw, pair, same, tensors

import rnnfast

layers = pytest.mark.parametrize("kind", sorted(set(KINDS) - set(CELLS)))
rows = pytest.mark.parametrize("B", [None, 1, 3])
STACKS = {"one": {}, "two": {"num_layers": 2}, "two, batch first": {"num_layers": 2, "batch_first": True}}
LEARNED = {"reset_state": False, "learned": True}


def drawn_state(kind, *shape, seed, dtype):
    h, c = (draw(*shape, seed=seed + k, dtype=dtype) for k in (0, 1))
    return (h, c) if "lstm" in kind else h


def case(kind, B, anew, dtype=torch.float32, learned=False, **options):
    """-> the module and its arguments: two of three steps or rows begin anew. anew: rows of reset_state."""
    module = pair(kind, 5, 19, dtype=dtype, **options)[0]
    generator = torch.Generator().manual_seed(3)
    if kind in CELLS:
        leading, state = (B,) * bool(B), (B,) * bool(B)
        one = (1,) * bool(B)
    else:
        first = options.get("batch_first") and B
        leading = (B, 4) if first else (4, B) if B else (4,)
        layers = options.get("num_layers", 1)
        state, one = (layers, B) if B else (layers,), (layers, 1)
        if learned:
            module = type(module)(5, 19, learn_initial_state=True, dtype=dtype, **options)
            for name in {"h_0", "c_0"} & dict(module.named_parameters()).keys():
                torch.nn.init.uniform_(getattr(module, name), generator=generator)
    x = draw(*leading, 5, dtype=dtype)
    resets = torch.rand(leading, generator=generator) < 0.6
    hx = None if learned else drawn_state(kind, *state, 19, seed=20, dtype=dtype)
    shape = {"zeros": None, "one for all": one, "each": state}[anew]
    given = {"resets": resets}
    if shape is not None:
        given["reset_state"] = drawn_state(kind, *shape, 19, seed=40, dtype=dtype)
    return module, x, hx, given


def run(module, x, hx, given):
    """-> how a call without a graph went, and the results and all gradients of calls without and with one."""
    states = [t for state in (hx, given.get("reset_state")) if state is not None for t in tensors(state)]
    leaves = [x, *states, *module.parameters()]
    for leaf in leaves:
        leaf.requires_grad_().grad = None
    with torch.no_grad():
        plain = tensors(module(x, hx, **given))
    way = ran()
    outputs = tensors(module(x, hx, **given))
    grads = torch.autograd.grad(
        sum(y.float().square().sum() for y in outputs), leaves, materialize_grads=True
    )
    return way, [*plain, *outputs, *grads]


def same_by_the_op(*arguments):
    way, direct = run(*arguments)
    assert way == "direct"
    with by_the_op():
        way, by_op = run(*arguments)
    assert way == "recurrent"
    same(direct, by_op, rtol=0, atol=0)


@pytest.mark.parametrize(
    "stack, kind", [(s, k) for s in STACKS for k in sorted(KINDS) if s == "one" or k not in CELLS]
)
@rows
@pytest.mark.parametrize("anew", ["zeros", "one for all", "each"])
def test_resets_are_those_of_the_op(kind, B, anew, stack):
    stack = STACKS[stack]
    same_by_the_op(*case(kind, B, anew, **stack))


@layers
@rows
@pytest.mark.parametrize("anew", ["zeros", "each"])
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
def test_a_learned_state_is_that_of_the_op(kind, B, anew, stack):
    module, x, hx, given = case(kind, B, anew, learned=True, **stack)
    same_by_the_op(module, x, hx, given)
    same_by_the_op(module, x, hx, {})


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "lstm_cell"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_every_dtype(kind, dtype):
    # not one state for all: of a cell torch adds the gradients of its rows, in halves
    same_by_the_op(*case(kind, 3, "each", dtype=dtype))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "lstm_cell", "gru_cell"])
@pytest.mark.parametrize("learned", LEARNED.values(), ids=LEARNED)
def test_autocast_gives_the_dtypes_and_values_of_the_op(kind, learned):
    module, x, hx, given = case(
        kind, 3, "zeros" if learned else "each", learned=learned and kind not in CELLS
    )
    autocast = torch.autocast("cpu", torch.bfloat16)
    with torch.no_grad(), autocast:
        direct = tensors(module(x, hx, **given))
        assert ran() == "direct"
        with by_the_op():
            by_op = tensors(module(x, hx, **given))
    assert [t.dtype for t in direct] == [t.dtype for t in by_op]
    same(direct, by_op, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize(
    "given",
    [
        {"resets": torch.zeros(4, 3)},
        {"resets": torch.zeros(3, 4, dtype=torch.bool)},
        {"resets": [False]},
        {"reset_state": torch.zeros(1, 3, 19)},
        {"resets": torch.zeros(4, 3, dtype=torch.bool), "reset_state": torch.zeros(1, 2, 19)},
        {"resets": torch.zeros(4, 3, dtype=torch.bool), "reset_state": torch.zeros(1, 19)},
        {"resets": torch.zeros(4, 3, dtype=torch.bool), "reset_state": torch.zeros(1, 3, 19).double()},
        {"resets": torch.zeros(4, 3, dtype=torch.bool), "reset_state": (torch.zeros(1, 3, 19), None)},
        {"reset": torch.zeros(4, 3, dtype=torch.bool)},
    ],
    ids=str,
)
def test_an_error_is_that_of_the_way_through_python(given):
    layer, x = rnnfast.GRU(5, 19), torch.zeros(4, 3, 5)
    with pytest.raises((RuntimeError, TypeError)) as direct:
        layer(x, **given)
    with by_the_op(), pytest.raises((RuntimeError, TypeError)) as by_op:
        layer(x, **given)
    assert str(direct.value) == str(by_op.value)


def test_none_is_as_if_not_given():
    layer, x = rnnfast.LSTM(5, 19), torch.randn(4, 3, 5)
    with torch.no_grad():
        same(layer(x, resets=None, reset_state=None), layer(x), rtol=0, atol=0)
        assert ran() == "direct"


@pytest.mark.parametrize("B", [1, 4])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_five_hundred_steps(kind, B):
    module = episodes.layer(kind, 4, hidden_size=33)
    x, state = draw(500, B, 4, dtype=torch.float64).requires_grad_(), episodes.states(module, B)
    anew = episodes.states(module, B, seed=70)
    resets = torch.rand(500, B, generator=torch.Generator().manual_seed(5)) < 0.02
    lengths = torch.tensor([500, 377, 0, 1][:B])
    inputs = [x, *state, *anew, *module.parameters()]
    how = {"resets": resets, "lengths": lengths}
    actual = module(x, episodes.as_argument(state), reset_state=episodes.as_argument(anew), **how)
    expected = episodes.by_loop(module, x, state, anew=anew, **how)[:2]
    same(actual, expected)
    same(episodes.gradients(actual, inputs), episodes.gradients(expected, inputs))
