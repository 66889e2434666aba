"""rnnfast.torchrl: TorchRL's modules in one call of the layer, beside TorchRL's own and single steps."""

from unittest import mock

import pytest
import torch
from helpers import draw

pytest.importorskip("torchrl")

import torchrl.modules
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch.nn.functional import one_hot
from torchrl.envs import InitTracker, TransformedEnv
from torchrl.modules import set_recurrent_mode

import rnnfast
import rnnfast.torchrl

I, H, T = 3, 5, 9  # noqa: E741
KINDS = {
    "lstm": ("LSTMModule", {}),
    "lstm_2_layers": ("LSTMModule", {"num_layers": 2}),
    "lstm_proj": ("LSTMModule", {"proj_size": 2}),
    "lstm_bidirectional": ("LSTMModule", {"bidirectional": True}),
    "gru": ("GRUModule", {}),
    "gru_2_layers": ("GRUModule", {"num_layers": 2}),
}
# that TorchRL runs step by step
STEPS = [kind for kind in KINDS if kind not in ("lstm_proj", "lstm_bidirectional")]
every_kind = pytest.mark.parametrize("kind", KINDS)


def make(package, kind, **options):
    name, extra = KINDS[kind]
    torch.manual_seed(0)
    return getattr(package, name)(I, H, in_key="x", out_key="y", **extra, **options).double()


def layer_of(module):
    return module.lstm if hasattr(module, "lstm") else module.gru


def trajectories(*batch, starts=0.3):
    """A tensordict [*batch, T] in which episodes begin anywhere."""
    is_init = draw(*batch, T, 1).sigmoid() < starts
    return TensorDict({"x": draw(*batch, T, I), "is_init": is_init}, [*batch, T])


def with_states(module, data):
    """The same with states at every step, of which those count from which an episode or trajectory begins."""
    layer = layer_of(module)
    for k, key in enumerate(module.in_keys[1:-1]):
        size = layer.proj_size if k == 0 and layer.proj_size else H
        state = draw(*data.shape, layer.num_layers * (1 + layer.bidirectional), size, seed=k)
        data[key] = state.requires_grad_()
    return data


def run(module, data, recurrent=True):
    with set_recurrent_mode(recurrent):
        return module(data.clone())


@every_kind
@pytest.mark.parametrize("given", [False, True], ids=["from_zeros", "from_states"])
def test_outputs_and_gradients_are_torchrls(kind, given):
    theirs, ours = make(torchrl.modules, kind), make(rnnfast.torchrl, kind)
    data = trajectories(4)
    assert data["is_init"][:, 1:].any()
    if given:
        data = with_states(ours, data)
    expected, found = run(theirs, data), run(ours, data)
    torch.testing.assert_close(found["y"], expected["y"])
    ends = torch.ones(4, T, dtype=torch.bool)
    ends[:, :-1] = data["is_init"][:, 1:, 0]
    if kind in STEPS:
        for key in ours.out_keys[1:]:  # elsewhere TorchRL's are zeros
            torch.testing.assert_close(found[key][ends], expected[key][ends])

    cotangent = draw(*expected["y"].shape, seed=9)
    states = [data[key] for key in ours.in_keys[1:-1]] if given else []
    gradients = [
        torch.autograd.grad((done["y"] * cotangent).sum(), [*module.parameters(), *states])
        for module, done in ((theirs, expected), (ours, found))
    ]
    torch.testing.assert_close(*gradients)


def by_single_steps(module, data):
    """What each step of a tensordict [B, T] gives, from the state that the one before left, [B, T, ..]."""
    done = []
    for t in range(T):
        step = data[:, t].clone()
        if done:
            for key, out in zip(module.in_keys[1:-1], module.out_keys[1:], strict=True):
                step[key] = done[-1][out]
        done.append(run(module, step, recurrent=False))
    return [torch.stack([step[key] for step in done], 1) for key in module.out_keys]


@pytest.mark.parametrize("kind", STEPS)
def test_recurrent_mode_is_single_steps_and_writes_the_state_of_each(kind):
    module, data = make(rnnfast.torchrl, kind), trajectories(4)
    expected, found = by_single_steps(module, data), run(module, data)
    for key, value in zip(module.out_keys, expected, strict=True):
        torch.testing.assert_close(found[key], value)


def test_single_steps_are_torchrls():
    theirs, ours = make(torchrl.modules, "lstm"), make(rnnfast.torchrl, "lstm")
    data = with_states(ours, trajectories(4))
    expected, found = run(theirs, data, recurrent=False), run(ours, data, recurrent=False)
    for key in ours.out_keys:
        torch.testing.assert_close(found[key], expected[key])


@pytest.mark.parametrize("batch", [(), (2, 3)], ids=["one_trajectory", "two_dimensions"])
def test_any_number_of_batch_dimensions_is_taken(batch):
    theirs, ours = make(torchrl.modules, "gru"), make(rnnfast.torchrl, "gru")
    data = trajectories(*batch)
    found = run(ours, data)
    torch.testing.assert_close(found["y"], run(theirs, data)["y"])
    assert found[ours.out_keys[1]].shape == (*batch, T, 1, H)


@every_kind
def test_a_batch_of_trajectories_is_one_call_of_the_layer(kind):
    module, data = make(rnnfast.torchrl, kind), trajectories(4)
    with mock.patch.object(layer_of(module), "forward", wraps=layer_of(module).forward) as forward:
        run(module, data)
    assert forward.call_count == 1


def test_convert_changes_the_modules_of_a_model_and_keeps_their_parameters():
    theirs = make(torchrl.modules, "lstm")
    model = torch.nn.ModuleList([theirs, make(torchrl.modules, "gru"), torch.nn.LSTM(2, 2)])
    parameters, expected = list(model.parameters()), run(theirs, trajectories(4))
    assert rnnfast.torchrl.convert(model) is model
    assert [type(module) for module in model] == [
        rnnfast.torchrl.LSTMModule, rnnfast.torchrl.GRUModule, rnnfast.LSTM,
    ]  # fmt: skip
    assert type(theirs.lstm) is rnnfast.LSTM
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    torch.testing.assert_close(run(theirs, trajectories(4))["y"], expected["y"])


def test_torchrls_own_layer_in_python_is_refused_and_left_by_convert():
    with (
        pytest.warns(UserWarning, match="left as it is: lstm"),
        pytest.raises(TypeError, match="got torchrl.*LSTM"),
    ):
        make(rnnfast.torchrl, "lstm", python_based=True)
    model = make(torchrl.modules, "lstm", python_based=True)
    with pytest.warns(UserWarning, match="left as it is: lstm"):
        assert type(rnnfast.torchrl.convert(model)) is torchrl.modules.LSTMModule


def test_a_layer_that_learns_its_initial_state_is_refused():
    layer = rnnfast.GRU(I, H, batch_first=True, learn_initial_state=True)
    with pytest.raises(ValueError, match="learn_initial_state"):
        rnnfast.torchrl.GRUModule(gru=layer, in_key="x", out_key="y")


def test_a_rollout_of_an_environment_is_found_again_in_recurrent_mode():
    pytest.importorskip("gymnasium")
    from torchrl.envs import GymEnv

    torch.manual_seed(0)
    lstm = rnnfast.torchrl.LSTMModule(4, H, in_key="observation", out_key="y")
    act = TensorDictModule(lambda y: one_hot(y[..., :2].argmax(-1), 2), in_keys=["y"], out_keys=["action"])
    env = TransformedEnv(GymEnv("CartPole-v1"), InitTracker())
    env.append_transform(lstm.make_tensordict_primer())
    played = env.rollout(60, TensorDictSequential(lstm, act), break_when_any_done=False)
    assert played["is_init"].sum() > 1
    found = run(lstm, played)
    torch.testing.assert_close(found["y"], played["y"])
    for key in lstm.out_keys[1:]:
        torch.testing.assert_close(found[key], played[key])
