"""`resets=` and `reset_state=`: states that begin anew within a sequence, beside a loop over each row."""

import episode_helpers as episodes
import pytest
import torch
from helpers import CELLS, LAYERS, draw, pair, same, tensors

import rnnfast
from rnnfast import info

RATES = {"some": 0.3, "none": 0.0, "all": 1.0}


def case(kind, T=7, B=5, features=4, rate=0.3, **options):
    """-> the layer, x [T, B, I], its states, resets [T, B]."""
    module = episodes.layer(kind, features, **options)
    x = draw(T, B, features, dtype=module.weight_hh_l0.dtype).requires_grad_()
    resets = torch.rand(T, B, generator=torch.Generator().manual_seed(5)) < rate
    return module, x, episodes.states(module, B), resets


def call(module, x, state, resets, anew=None, **more):
    """With x [T, B, I], whatever the layer's own layout; y comes back as [T, B, .]."""
    if module.batch_first:
        x, resets = x.transpose(0, 1), resets.transpose(0, 1)
    anew = None if anew is None else episodes.as_argument(anew)
    y, *rest = module(x, episodes.as_argument(state), resets=resets, reset_state=anew, **more)
    return y.transpose(0, 1) if module.batch_first else y, *rest


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("anew", [None, 1, 5])
@pytest.mark.parametrize("rate", RATES.values(), ids=RATES)
@pytest.mark.parametrize("stack", episodes.STACKS.values(), ids=episodes.STACKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_values_and_gradients_are_those_of_a_loop(kind, stack, rate, anew, batch_first):
    module, x, state, resets = case(kind, rate=rate, batch_first=batch_first, **stack)
    anew = None if anew is None else episodes.states(module, anew, seed=70)
    inputs = [x, *state, *(anew or ()), *module.parameters()]
    actual = call(module, x, state, resets, anew)
    expected = episodes.by_loop(module, x, state, resets=resets, anew=anew)[:2]
    same(actual, expected)
    same(episodes.gradients(actual, inputs), episodes.gradients(expected, inputs))


@pytest.mark.parametrize("split", ["serial", "units", "rows"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("size", [(1, 300), (15, 33), (16, 64), (17, 1)], ids=str)
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_relu"])
def test_every_plan_and_dtype_is_near_the_loop_in_float64(kind, size, dtype, split):
    B, H = size
    torch.set_num_threads(2)
    info.set_split(split)
    module, x, state, resets = case(kind, 9, B, rate=0.2, hidden_size=H, dtype=dtype)
    anew = episodes.states(module, B, seed=70)
    inputs = [x, *state, *anew, *module.parameters()]
    actual = call(module, x, state, resets, anew)
    grads = episodes.gradients(actual, inputs)
    exact = episodes.layer(kind, 4, hidden_size=H)
    exact.load_state_dict(module.state_dict())
    wide = [t.detach().double().requires_grad_() for t in (x, *state, *anew)]
    n = len(state)
    exact_state, exact_anew = wide[1 : 1 + n], wide[1 + n :]
    expected = call(exact, wide[0], exact_state, resets, exact_anew)
    of_exact = episodes.gradients(expected, [*wide, *exact.parameters()])
    tolerance = {torch.float64: 1e-9, torch.float32: 2e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}[dtype]
    for a, e in zip([*tensors(actual), *grads], [*tensors(expected), *of_exact], strict=True):
        same(a.double(), e, rtol=0, atol=tolerance * max(1, e.abs().max().item()))


@pytest.mark.parametrize("isa", info.isas())
@pytest.mark.parametrize("kind", LAYERS)
def test_every_instruction_set_is_near_plain_torch(kind, isa):
    info.set_isa(isa)
    module, x, state, resets = case(kind, 6, 9, hidden_size=19, dtype=torch.float32)
    lengths = torch.tensor([6, 0, 3, 6, 1, 2, 5, 4, 6])
    anew = episodes.states(module, 1, seed=70)
    inputs = [x, *state, *anew, *module.parameters()]
    actual = call(module, x, state, resets, anew, lengths=lengths)
    with torch.autograd.forward_ad.dual_level():  # takes plain torch
        expected = call(module, x, state, resets, anew, lengths=lengths)
    same(actual, expected, rtol=1e-4, atol=1e-5)
    same(episodes.gradients(actual, inputs), episodes.gradients(expected, inputs), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stack", episodes.STACKS.values(), ids=episodes.STACKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_together_with_lengths(kind, stack):
    module, x, state, resets = case(kind, **stack)
    anew = episodes.states(module, 5, seed=70)
    lengths = torch.tensor([7, 0, 3, 7, 1])
    inputs = [x, *state, *anew, *module.parameters()]
    actual = call(module, x, state, resets, anew, lengths=lengths, return_all_states=True)
    expected = episodes.by_loop(module, x, state, lengths, resets, anew)
    same(actual, expected)
    same(episodes.gradients(actual, inputs), episodes.gradients(expected, inputs))


@pytest.mark.parametrize("kind", LAYERS)
def test_what_was_before_a_reset_gets_no_gradient(kind):
    module, x, state, _ = case(kind)
    resets = torch.zeros(7, 5, dtype=torch.bool)
    resets[4] = True
    y = call(module, x, state, resets)[0]
    dx, *dstate = torch.autograd.grad(y[4:].sum(), [x, *state])
    assert (dx[:4] == 0).all() and (dx[4:] != 0).any()
    assert all((d == 0).all() for d in dstate)


@pytest.mark.parametrize("kind", LAYERS)
def test_a_stream_of_single_steps_is_the_sequence(kind):
    module, x, state, resets = case(kind, dtype=torch.float32)
    expected = call(module, x, state, resets)
    s, ys = state, []
    for t in range(7):
        y, s = call(module, x[t : t + 1], s if isinstance(s, tuple) else (s,), resets[t : t + 1])
        ys.append(y)
    same((torch.cat(ys), s), expected, rtol=0, atol=0)


def test_an_unbatched_sequence_takes_one_dimension():
    module, x, state, resets = case("lstm")
    one = [s[:, 0] for s in state]
    anew = [s[:, 1] for s in state]
    actual = module(x[:, 0], tuple(one), resets=resets[:, 0], reset_state=tuple(anew))
    y, (h, c) = call(module, x[:, :1], [s[:, :1] for s in state], resets[:, :1], [s[:, 1:2] for s in state])
    same(actual, (y[:, 0], (h[:, 0], c[:, 0])), rtol=0, atol=0)


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("kind", CELLS)
def test_a_cell_begins_anew_where_it_is_told(kind, given):
    cell = pair(kind, 4, 6)[0].double()
    n = 1 + (kind == "lstm_cell")
    x, resets = draw(3, 4), torch.tensor([True, False, True])
    state = tuple(draw(3, 6, seed=s).requires_grad_() for s in range(n))
    anew = tuple(draw(1, 6, seed=10 + s).requires_grad_() for s in range(n)) if given else None
    expected = tuple(
        torch.where(resets.unsqueeze(1), anew[i] if given else 0.0, s) for i, s in enumerate(state)
    )
    inputs = [*state, *(anew or ())]
    actual = cell(
        x, episodes.as_argument(state), resets=resets, reset_state=anew and episodes.as_argument(anew)
    )
    by_hand = cell(x, episodes.as_argument(expected))
    same(actual, by_hand, rtol=0, atol=0)
    same(episodes.gradients(actual, inputs), episodes.gradients(by_hand, inputs))
    one = tuple(s[0] for s in state)
    same(
        cell(x[0], episodes.as_argument(one), resets=torch.tensor(False)),
        cell(x[0], episodes.as_argument(one)),
    )


@pytest.mark.parametrize("kind", LAYERS)
def test_second_derivatives_are_right(kind):
    module, x, state, resets = case(kind, T=3, B=2, features=1, hidden_size=4)
    anew = episodes.states(module, 1, seed=70)
    n = len(state)

    def f(x, *states):
        return tensors(call(module, x, states[:n], resets, states[n:], return_all_states=True))

    assert resets.any() and not resets.all()
    assert torch.autograd.gradcheck(f, (x, *state, *anew))
    assert torch.autograd.gradgradcheck(f, (x, *state, *anew))


def test_the_function_takes_them_too():
    module, x, state, resets = case("lstm", num_layers=2)
    anew = episodes.states(module, 1, seed=70)
    actual = rnnfast.functional.lstm(x, state, module.all_weights, resets=resets, reset_state=anew)
    same(actual, call(module, x, state, resets, anew), rtol=0, atol=0)
