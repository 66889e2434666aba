"""What `convert` and `revert` leave as it is, and say so; what they do not leave half done."""

import pickle

import pytest
import torch
from torch import nn

import rnnfast
from rnnfast.nn import _twins
from tests.helpers import draw, same


class OnlyOutput(nn.GRU):
    def forward(self, input, hx=None):
        return super().forward(input, hx)[0]


class Lenient(nn.LSTM):
    def check_forward_args(self, input, hidden, batch_sizes):
        pass


class Clashing(nn.GRU):
    def explain(self):
        return "mine"


class Kind(nn.modules.rnn.RNNBase):
    pass


class Pickled(nn.GRU):
    def __reduce_ex__(self, protocol):
        return type(self), (4, 6), {}


class Register:
    """Whoever derives a class from this one is entered, once for each name."""

    names = {}

    def __init_subclass__(cls, *, name):
        if name in Register.names:
            raise ValueError(f"{name} is there already")
        Register.names[name] = cls


class Registered(Register, nn.GRU, name="registered"):
    pass


class Plain(nn.GRU):
    pass


def with_attribute(module, name, value):
    setattr(module, name, value)
    return module


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: OnlyOutput(4, 6), "OnlyOutput (a torch.nn.GRU): it has forward of its own"),
        (lambda: Lenient(4, 6), "Lenient (a torch.nn.LSTM): it has check_forward_args of its own"),
        (lambda: Clashing(4, 6), "Clashing (a torch.nn.GRU): it has explain of its own"),
        (lambda: Pickled(4, 6), "Pickled (a torch.nn.GRU): it has __reduce_ex__ of its own"),
        (lambda: with_attribute(nn.GRU(4, 6), "_weights", []), "torch.nn.GRU: it has _weights of its own"),
        (
            lambda: with_attribute(nn.LSTM(4, 6), "explain", nn.Linear(6, 6)),
            "torch.nn.LSTM: it has explain of its own",
        ),
        (
            lambda: with_attribute(nn.LSTM(4, 6), "check_forward_args", print),
            "torch.nn.LSTM: it has check_forward_args of its own",
        ),
        (lambda: Kind("GRU", 4, 6), "test_convert_stays.Kind: it is a recurrent module of its own kind"),
        (lambda: torch.jit.script(nn.LSTM(4, 6)), "LSTM in TorchScript; convert what it was made from"),
        (
            lambda: torch.ao.nn.quantizable.LSTM(4, 6),
            "torch.ao.nn.quantizable.modules.rnn.LSTM: made for quantization",
        ),
    ],
    ids=[
        "forward",
        "check",
        "clash",
        "pickled",
        "attribute",
        "child",
        "lenient",
        "kind",
        "scripted",
        "quantizable",
    ],  # fmt: skip
)
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_what_stays_is_named_with_the_reason_and_the_rest_is_converted(make, reason):
    model = nn.ModuleList([make(), nn.GRU(4, 6)])
    cls = type(model[0])
    with pytest.warns(UserWarning) as caught:
        rnnfast.convert(model)
    (message,) = [str(w.message) for w in caught]
    assert message.startswith("rnnfast.convert: left as it is: 0, ") and reason in message
    assert type(model[0]) is cls and type(model[1]) is rnnfast.GRU
    assert caught[0].filename == __file__


def test_a_forward_that_was_replaced_is_kept():
    module = nn.GRU(4, 6).double()
    inner = module.forward
    module.forward = lambda x: inner(x)[0] * 2
    x = draw(5, 3, 4)
    expected = module(x)
    with pytest.warns(UserWarning, match="its forward was replaced by another"):
        rnnfast.convert(module)
    assert type(module) is nn.GRU
    same(module(x), expected)


def test_a_forward_that_a_class_gets_after_a_conversion_is_kept(monkeypatch):
    first, later = rnnfast.convert(Plain(4, 6)), Plain(4, 6)
    saved = pickle.dumps(first)
    monkeypatch.setattr(Plain, "forward", lambda self, x: 2 * x, raising=False)
    with pytest.warns(UserWarning, match="it has forward of its own"):
        rnnfast.convert(later)
    with pytest.warns(
        UserWarning, match=r"left as it is: Plain \(a torch.nn.GRU\): it has forward of its own"
    ):
        loaded = pickle.loads(saved)
    for module in (later, loaded):
        assert type(module) is Plain and module(draw(5)).equal(2 * draw(5))


def test_a_register_of_classes_does_not_hear_of_a_conversion():
    module = Registered(4, 6).double()
    expected = module(draw(5, 3, 4))
    rnnfast.convert(module)
    assert Register.names == {"registered": Registered}
    assert isinstance(module, rnnfast.GRU) and isinstance(module, Registered)
    same(module(draw(5, 3, 4)), expected)


def test_a_class_that_python_cannot_make_is_named():
    class Meta(type):
        def __init__(cls, name, bases, members):
            if any(base.__module__.startswith("rnnfast") for base in bases):
                raise ValueError("not from there")

    class Guarded(nn.GRU, metaclass=Meta):
        pass

    model = nn.ModuleList([Guarded(4, 6), nn.GRU(4, 6)])
    with pytest.warns(UserWarning, match=r"0, .*: Python makes no class of both \(not from there\)"):
        rnnfast.convert(model)
    assert [type(m) for m in model] == [Guarded, rnnfast.GRU]


def test_what_torch_lacks_is_named_by_revert():
    class Mine(rnnfast.GRU):
        pass

    model = nn.ModuleList([rnnfast.DeepTransitionRNN(4, 6), Mine(4, 6), rnnfast.GRU(4, 6)])
    with pytest.warns(
        UserWarning, match="left as it is: 0, .*DeepTransitionRNN: torch.nn has no such class; 1, "
    ):
        rnnfast.revert(model)
    assert [type(m) for m in model] == [rnnfast.DeepTransitionRNN, Mine, nn.GRU]


def test_nothing_is_converted_where_python_refuses_one_of_them(monkeypatch):
    class Larger(rnnfast.RNN):
        __slots__ = ("extra",)

    monkeypatch.setitem(_twins.FROM_TORCH, nn.RNN, Larger)
    model = nn.ModuleList([nn.LSTM(4, 6), nn.RNN(4, 6), nn.GRU(4, 6)])
    with pytest.raises(
        RuntimeError, match="^rnnfast.convert: the class of 1, .* cannot be changed .*nothing was$"
    ):
        rnnfast.convert(model)
    assert [type(m) for m in model] == [nn.LSTM, nn.RNN, nn.GRU]
