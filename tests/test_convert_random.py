"""`convert` and `revert` of random models: nested, shared, hooked, changed; trained beside torch.nn's."""

import warnings
from types import SimpleNamespace

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import rnnfast
from tests.helpers import draw, tensors

FEATURES = 6
KINDS = ("LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell")


class WeightDrop(nn.Module):
    """Drops weights of a layer as language models do: the weight is no parameter of the layer any more."""

    def __init__(self, module, name):
        super().__init__()
        self.module, self.name = module, name
        self.raw = nn.Parameter(getattr(module, name).detach().clone())
        del module._parameters[name]
        self._set()
        module.flatten_parameters = lambda: None

    def _set(self):
        setattr(self.module, self.name, nn.functional.dropout(self.raw, 0.3, self.training))

    def forward(self, *args):
        self._set()
        return self.module(*args)


class Block(nn.Module):
    """A recurrent module, and a projection of its output to the features of the next block."""

    def __init__(self, made):
        super().__init__()
        self.made = made
        self.out = nn.LazyLinear(FEATURES, dtype=torch.float64)

    def forward(self, x):
        inner = getattr(self.made, "module", self.made)
        if isinstance(inner, nn.modules.rnn.RNNCellBase):
            state, states = None, []
            for x_t in x.unbind(1):
                state = self.made(x_t, state)
                states.append(state[0] if isinstance(state, tuple) else state)
            return self.out(torch.stack(states, 1))
        return (
            self.out(self.made(x)[0])
            if inner.batch_first
            else self.out(self.made(x.transpose(0, 1))[0]).transpose(0, 1)
        )


class Nested(nn.Module):
    def __init__(self, block):
        super().__init__()
        self.inner = nn.ModuleDict({"block": block})

    def forward(self, x):
        return x + self.inner["block"](x)


@st.composite
def specs(draw):
    kind = draw(st.sampled_from(KINDS))
    options = {"hidden_size": draw(st.integers(1, 9)), "bias": draw(st.booleans())}
    if not kind.endswith("Cell"):
        options |= {"num_layers": draw(st.integers(1, 3)), "bidirectional": draw(st.booleans())}
        options |= {"batch_first": draw(st.booleans()), "dropout": draw(st.sampled_from([0.0, 0.4]))}
        if kind == "LSTM" and options["hidden_size"] > 1 and draw(st.booleans()):
            options["proj_size"] = draw(st.integers(1, options["hidden_size"] - 1))
    if kind.startswith("RNN"):
        options["nonlinearity"] = draw(st.sampled_from(["tanh", "relu"]))
    return SimpleNamespace(
        kind=kind,
        options=options,
        change=draw(
            st.sampled_from(["none", "none", "weight_norm", "parametrized", "pruned", "dropped", "frozen"])
        ),
        hooked=draw(st.booleans()),
        nested=draw(st.booleans()),
        shared=draw(st.booleans()),
    )


def make(spec):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # dropout with one layer; weight_norm is old
        module = getattr(nn, spec.kind)(FEATURES, **spec.options, dtype=torch.float64)
        weight = "weight_hh" if spec.kind.endswith("Cell") else "weight_hh_l0"
        if spec.change == "weight_norm":
            nn.utils.weight_norm(module, weight)
        elif spec.change == "parametrized":
            parametrizations.weight_norm(module, weight)
        elif spec.change == "pruned":
            prune.random_unstructured(module, weight, 0.4)
        elif spec.change == "dropped":
            module = WeightDrop(module, weight)
        elif spec.change == "frozen":
            module.get_parameter(weight).requires_grad_(False)
    if spec.hooked:
        module.register_forward_pre_hook(lambda module, args: (args[0] * 2, *args[1:]))
        module.register_forward_hook(lambda module, args, out: out)
    block = Block(module)
    return Nested(block) if spec.nested else block


def build(chosen, train):
    torch.manual_seed(3)
    blocks = []
    for spec in chosen:
        block = make(spec)
        blocks += [block, block] if spec.shared else [block]
    model = nn.Sequential(*blocks).train(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lazy modules are new
        model(torch.zeros(1, 1, FEATURES, dtype=torch.float64))
    return model


def classes(model):
    """The class of every module by its name; of a parametrized one, what it is made of."""
    return {name: parametrize.type_before_parametrizations(m) for name, m in model.named_modules()}


def trained(model, x, steps):
    """Outputs and gradients of the first step, and all parameters after the last."""
    torch.manual_seed(5)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    first = None
    for _ in range(steps):
        y = model(x)
        optimizer.zero_grad()
        y.square().mean().backward()
        if first is None:
            first = [y.detach(), *[p.grad.clone() for p in model.parameters() if p.grad is not None]]
        optimizer.step()
    return [*first, *tensors(model.state_dict())]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(specs(), min_size=1, max_size=3), st.booleans())
def test_a_converted_model_trains_as_it_did_and_reverts_to_what_it_was(chosen, train):
    theirs, ours, back = (build(chosen, train) for _ in range(3))
    before, keys = classes(ours), list(ours.state_dict())
    parameters, stream = [id(p) for p in ours.parameters()], torch.get_rng_state()

    assert rnnfast.convert(ours) is ours
    assert torch.equal(torch.get_rng_state(), stream)
    assert list(ours.state_dict()) == keys
    assert [id(p) for p in ours.parameters()] == parameters
    converted = classes(ours)
    for name, cls in before.items():
        expected = getattr(rnnfast, cls.__name__) if cls.__name__ in KINDS else cls
        assert converted[name] is expected, name
    assert classes(rnnfast.revert(rnnfast.convert(back))) == before

    x = draw(2, 4, FEATURES)
    expected = trained(theirs, x, 10)
    for model in (ours, back):
        torch.testing.assert_close(trained(model, x, 10), expected, rtol=1e-6, atol=1e-8)
    assert classes(ours) == converted
    assert classes(rnnfast.revert(ours)) == before
