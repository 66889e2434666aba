"""`return_all_states=True` and `learn_initial_state=True`."""

import copy
import io
import pickle

import episode_helpers as episodes
import pytest
import torch
from helpers import LAYERS, draw, packed, same

import rnnfast

STACKS = episodes.STACKS | episodes.TWO_WAYS


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_all_states_are_those_of_a_loop_with_their_gradients(kind, stack, batch_first):
    module = episodes.layer(kind, batch_first=batch_first, **stack)
    x, state = draw(6, 3, 4).requires_grad_(), episodes.states(module, 3)
    inputs = [x, *state, *module.parameters()]
    given = x.transpose(0, 1) if batch_first else x
    y, last, every = module(given, episodes.as_argument(state), return_all_states=True)
    if batch_first:
        y = y.transpose(0, 1)
        every = tuple(s.transpose(1, 2) for s in every) if len(state) == 2 else every.transpose(1, 2)
    expected = episodes.by_loop(module, x, state)
    same((y, last, every), expected)
    # of the states alone: what they get does not pass y
    same(episodes.gradients(every, inputs), episodes.gradients(expected[2], inputs))


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_all_states_of_an_unbatched_and_of_a_packed_sequence(kind):
    module = episodes.layer(kind, num_layers=2)
    x = draw(6, 4)
    _, _, every = module(x.unsqueeze(1), return_all_states=True)
    same(
        module(x, return_all_states=True)[2],
        [s.squeeze(2) for s in every] if kind == "lstm" else every.squeeze(2),
    )
    rows = packed(3, 5)
    y, _, every = module(rows, return_all_states=True)
    h = every[0] if kind == "lstm" else every
    assert h.shape == (2, 8, 6)
    same(h[-1], y.data)


def test_dropout_between_layers_is_after_the_states():
    module = episodes.layer("lstm", num_layers=2, dropout=0.9, batch_first=True)
    x = draw(3, 6, 4)
    _, _, (h, c) = module(x, return_all_states=True)
    _, _, (h_eval, c_eval) = module.eval()(x, return_all_states=True)
    assert h.shape == (2, 3, 6, 6)
    same((h[0], c[0]), (h_eval[0], c_eval[0]), rtol=0, atol=0)
    assert not torch.equal(h[1], h_eval[1])


@pytest.mark.parametrize("stack", STACKS.values(), ids=STACKS)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_learned_state_is_where_rows_without_hx_begin(kind, stack):
    module = episodes.layer(kind, learn_initial_state=True, **stack)
    learned = [p for name, p in module.named_parameters() if name in ("h_0", "c_0")]
    n = module.num_layers * (1 + module.bidirectional)
    assert [tuple(p.shape[:2]) for p in learned] == [(n, 1)] * len(learned)
    assert len(learned) == (2 if module.mode == "LSTM" else 1)
    assert all((p == 0).all() for p in learned)
    with torch.no_grad():
        for i, p in enumerate(learned):
            p.copy_(draw(*p.shape, seed=i))
    x = draw(5, 3, 4)
    rows = [p.detach().repeat(1, 3, 1).requires_grad_() for p in learned]
    actual, expected = module(x), module(x, episodes.as_argument(tuple(rows)))
    same(actual, expected, rtol=0, atol=0)
    grads = episodes.gradients(expected, rows)
    same(episodes.gradients(actual, learned), [g.sum(1, keepdim=True) for g in grads])
    same(module(x[:, 0])[0], expected[0][:, 0])  # unbatched


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_learned_state_is_what_a_reset_begins_from(kind):
    module = episodes.layer(kind, learn_initial_state=True)
    with torch.no_grad():
        for p in module.h_0, getattr(module, "c_0", module.h_0):
            p.copy_(draw(*p.shape))
    x = draw(6, 2, 4)
    resets = torch.zeros(6, 2, dtype=torch.bool)
    resets[3] = True
    y, last = module(x, resets=resets)
    same(y[3:], module(x[3:])[0])
    assert episodes.gradients(y, [module.h_0])[0].abs().max() > 0
    zeros = tuple(torch.zeros(1, 1, 6, dtype=x.dtype) for _ in range(1 + (kind == "lstm")))
    plain = module(x, resets=resets, reset_state=episodes.as_argument(zeros))[0]
    same(plain[3:], module(x[3:], episodes.as_argument(tuple(z.expand(-1, 2, -1) for z in zeros)))[0])


def test_packed_rows_begin_from_a_learned_state():
    module = episodes.layer("lstm", learn_initial_state=True)
    with torch.no_grad():
        module.h_0.copy_(draw(1, 1, 6))
    rows = packed(3, 5, 1)
    state = tuple(p.detach().expand(-1, 3, -1) for p in (module.h_0, module.c_0))
    same(module(rows)[0].data, module(rows, state)[0].data, rtol=0, atol=0)


def test_state_dicts_without_a_learned_state_load_and_keep_it():
    module = episodes.layer("lstm", learn_initial_state=True)
    with torch.no_grad():
        module.h_0.fill_(3)
    other = torch.nn.LSTM(4, 6, dtype=torch.float64)
    model = torch.nn.Sequential(module)
    assert model.load_state_dict({f"0.{k}": v for k, v in other.state_dict().items()}).missing_keys == []
    assert (module.h_0 == 3).all() and torch.equal(module.weight_hh_l0, other.weight_hh_l0)
    again = episodes.layer("lstm", learn_initial_state=True)
    again.load_state_dict(module.state_dict())
    assert (again.h_0 == 3).all()
    with pytest.raises(RuntimeError, match="Unexpected key.*h_0"):
        episodes.layer("lstm").load_state_dict(module.state_dict())


def test_a_learned_state_goes_along_with_copies_and_files():
    module = episodes.layer("gru", learn_initial_state=True)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(file, weights_only=False),
    ):
        assert other.learn_initial_state and "h_0" in dict(other.named_parameters())
        same(other(draw(2, 3, 4)), module(draw(2, 3, 4)))
    assert "learn_initial_state=True" in repr(module)
    assert "learn_initial_state" not in repr(episodes.layer("gru"))


def test_the_weights_are_drawn_as_without_a_learned_state():
    plain, learning = episodes.layer("lstm"), episodes.layer("lstm", learn_initial_state=True)
    same([learning.get_parameter(n) for n, _ in plain.named_parameters()], list(plain.parameters()))


def test_torchs_layers_cannot_take_its_place():
    module = episodes.layer("gru", learn_initial_state=True)
    with pytest.warns(UserWarning, match="learn no initial state"):
        assert type(rnnfast.revert(module)) is rnnfast.GRU
    with pytest.raises(RuntimeError, match="learn no initial state"):
        module.__prepare_scriptable__()
