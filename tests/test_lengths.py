"""`lengths=`: rows that end early, beside a loop over each row and beside packed sequences."""

import episode_helpers as episodes
import pytest
import torch
from helpers import LAYERS, draw, same, tensors
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import info

STACKS = episodes.STACKS | episodes.TWO_WAYS
LENGTHS = {"unsorted": [3, 7, 1, 7, 5], "with_empty": [0, 4, 7, 0, 1], "all_empty": [0, 0], "one": [4]}


def case(kind, lengths, features=4, **options):
    """-> the layer, x [T, B, I], its states, lengths as a tensor."""
    module = episodes.layer(kind, features, **options)
    B, T = len(lengths), 7
    x = draw(T, B, features, dtype=module.weight_hh_l0.dtype).requires_grad_()
    return module, x, episodes.states(module, B), torch.tensor(lengths)


def call(module, x, state, lengths, **more):
    """With x [T, B, I], whatever the layer's own layout; y comes back as [T, B, .]."""
    turn = module.batch_first
    y, *rest = module(x.transpose(0, 1) if turn else x, episodes.as_argument(state), lengths=lengths, **more)
    return y.transpose(0, 1) if turn else y, *rest


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_values_and_gradients_are_those_of_a_loop_over_each_row(kind, stack, lengths, batch_first):
    module, x, state, n = case(kind, lengths, batch_first=batch_first, **stack)
    inputs = [x, *state, *module.parameters()]
    actual, expected = call(module, x, state, n), episodes.by_loop(module, x, state, n)[:2]
    same(actual, expected)
    same(episodes.gradients(actual, inputs), episodes.gradients(expected, inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 3), (15, 33), (17, 64), (64, 20)], ids=str)
@pytest.mark.parametrize("kind", LAYERS)
def test_bit_for_bit_what_packing_gives(kind, size, dtype, threads):
    B, H = size
    module = episodes.layer(kind, 5, max(H, 4), num_layers=2, bidirectional=True, dtype=dtype)
    generator = torch.Generator().manual_seed(3)
    lengths = torch.randint(1, 10, (B,), generator=generator)
    T = int(lengths.max())
    x = draw(T, B, 5, dtype=dtype).requires_grad_()
    state = episodes.states(module, B)
    rows = pack_padded_sequence(x, lengths, enforce_sorted=False)
    packed, last = module(rows, episodes.as_argument(state))
    expected = (pad_packed_sequence(packed)[0], last)
    actual = module(x, episodes.as_argument(state), lengths=lengths)
    same(actual, expected, rtol=0, atol=0)
    inputs = [x, *state, *module.parameters()]
    actual, expected = (episodes.gradients(outputs, inputs) for outputs in (actual, expected))
    n = 1 + len(state)
    same(actual[:n], expected[:n], rtol=0, atol=0)
    # those of the weights add up the same rows, of equal lengths in another order
    for a, e in zip(actual[n:], expected[n:], strict=True):
        eps = torch.finfo(dtype if dtype in (torch.bfloat16, torch.float16) else a.dtype).eps
        same(a, e, rtol=0, atol=16 * eps * e.abs().max().item())


@pytest.mark.parametrize("kind", LAYERS)
def test_without_gradients_and_states_it_is_the_same(kind):
    module, x, _, n = case(kind, LENGTHS["with_empty"], bidirectional=True)
    with torch.inference_mode():
        actual = module(x, lengths=n)
    same(actual, module(x, lengths=n), rtol=0, atol=0)
    zeros = [torch.zeros_like(s) for s in episodes.states(module, 5)]
    same(actual, episodes.by_loop(module, x, zeros, n)[:2])


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_nan_beyond_the_end_reaches_nothing(kind, stack):
    module, x, state, n = case(kind, LENGTHS["with_empty"], **stack)
    inputs = [x, *state, *module.parameters()]
    clean = call(module, x, state, n, return_all_states=True)
    beyond = torch.arange(7).unsqueeze(1) >= n
    x_clean = x
    x = x.detach().clone()
    x[beyond] = torch.nan
    x.requires_grad_()
    dirty = call(module, x, state, n, return_all_states=True)
    same(dirty, clean, rtol=0, atol=0)
    assert (dirty[0][beyond] == 0).all()
    # nor does a gradient that arrives there
    cotangents = [torch.ones_like(t) for t in tensors(dirty)]
    cotangents[0][beyond] = torch.nan
    grads = torch.autograd.grad(tensors(dirty), [x, *inputs[1:]], cotangents)
    ones = [torch.ones_like(t) for t in tensors(clean)]
    same(grads, torch.autograd.grad(tensors(clean), [x_clean, *inputs[1:]], ones))
    assert (grads[0][beyond] == 0).all()


@pytest.mark.parametrize("split", ["serial", "units", "rows", "directions"])
@pytest.mark.parametrize("kind", LAYERS)
def test_every_plan_takes_rows_without_a_step(kind, split):
    torch.set_num_threads(2)
    info.set_split(split)
    module, x, state, n = case(kind, LENGTHS["with_empty"], bidirectional=True)
    inputs = [x, *state, *module.parameters()]
    actual, expected = call(module, x, state, n), episodes.by_loop(module, x, state, n)[:2]
    same(actual, expected)
    same(episodes.gradients(actual, inputs), episodes.gradients(expected, inputs))


def test_an_unbatched_sequence_takes_a_scalar():
    module, x, _, _ = case("lstm", [7], bidirectional=True)
    actual = module(x[:, 0], lengths=torch.tensor(5))
    y, (h, c) = module(x[:, :1], lengths=torch.tensor([5]))
    same(actual, (y[:, 0], (h[:, 0], c[:, 0])), rtol=0, atol=0)
    assert (actual[0][5:] == 0).all()


@pytest.mark.parametrize("kind", LAYERS)
def test_the_function_takes_them_too(kind):
    module, x, state, n = case(kind, LENGTHS["unsorted"], num_layers=2)
    name = "rnn" if kind.startswith("rnn") else module.mode.lower()
    options = {"nonlinearity": kind[4:]} if name == "rnn" else {}
    function = getattr(rnnfast.functional, name)
    actual = function(x, episodes.as_argument(state), module.all_weights, lengths=n, **options)
    same(actual, call(module, x, state, n), rtol=0, atol=0)


def test_dropout_draws_what_it_draws_without_lengths():
    module, x, state, n = case("gru", LENGTHS["unsorted"], num_layers=3, dropout=0.5, batch_first=True)
    full = torch.full((5,), 7)
    torch.manual_seed(1)
    expected = module(x.transpose(0, 1), state[0])
    torch.manual_seed(1)
    same(module(x.transpose(0, 1), state[0], lengths=full), expected, rtol=0, atol=0)
    torch.manual_seed(1)
    y, h = call(module, x, state, n)
    assert (y[torch.arange(7).unsqueeze(1) >= n] == 0).all()


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_are_right(kind, bidirectional):
    module, x, state, n = case(kind, [1, 2], features=1, hidden_size=4, bidirectional=bidirectional)
    x = x[:3].detach().requires_grad_()

    def f(x, *state):
        return tensors(module(x, episodes.as_argument(state), lengths=n, return_all_states=True))

    assert torch.autograd.gradcheck(f, (x, *state))
    assert torch.autograd.gradgradcheck(f, (x, *state))
