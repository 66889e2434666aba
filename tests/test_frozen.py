"""Frozen layers: the same bits, from weights packed once that follow every change that torch counts."""

import copy

import pytest
import torch
from direct_helpers import inputs, kinds, layers, ran
from helpers import LAYERS, pair, same, tensors

import rnnfast
from rnnfast import _paths, info


@layers
@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0_reverse", "weight_ih_l1_reverse"])
def test_of_frozen_directions_the_one_that_changed_is_read_anew(kind, name):
    ours, theirs = pair(kind, 5, 19, num_layers=2, bidirectional=True)
    rnnfast.freeze(ours.eval())
    x, hx = inputs(kind)
    with torch.no_grad():
        for module in ours, theirs:
            getattr(module, name).mul_(2)
        same(ours(x), theirs(x))


@kinds
@pytest.mark.parametrize("H", [1, 16, 19, 130, 261])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_layers_give_the_same_bits(kind, H, dtype):
    ours, _ = pair(kind, 5, H, dtype=dtype)
    ours.eval()
    for B, T in (1, 1), (3, 4), (40, 2), (2, 100):
        x, hx = inputs(kind, B, dtype, H=H, T=T)
        with torch.no_grad():
            expected = ours(x, hx)
            assert rnnfast.freeze(ours) is ours
            for split in "serial", "units", "rows", "":
                info.set_split(split)
                same(ours(x, hx), expected, rtol=0, atol=0)
                assert ran() == ("direct" if T == 100 and kind in LAYERS else "frozen")
        leaf = x.clone().requires_grad_()  # with a graph, as ever
        tensors(ours(leaf, hx))[0].sum().backward()
        assert leaf.grad.abs().sum() > 0
        rnnfast.unfreeze(ours)


def test_a_frozen_layer_follows_changes_that_torch_counts():
    ours = rnnfast.freeze(rnnfast.LSTM(5, 19).eval())
    x, hx = inputs("lstm", 2)
    before = {name: t.clone() for name, t in ours.state_dict().items()}
    with torch.no_grad():
        first = ours(x, hx)[0]

    def check(change, read_from="direct"):
        with torch.no_grad():
            change()
            changed = ours(x, hx)[0]
            assert ran() == read_from
            assert not torch.equal(changed, first)
            assert torch.equal(changed, copy.deepcopy(ours)(x, hx)[0])
            ours.load_state_dict(before)
            assert torch.equal(ours(x, hx)[0], first)
            rnnfast.freeze(ours)
            assert torch.equal(ours(x, hx)[0], first)

    check(lambda: ours.weight_ih_l0.mul_(2))
    check(lambda: ours.weight_hh_l0.mul_(2))
    check(lambda: ours.load_state_dict({name: 2 * t for name, t in before.items()}))
    check(lambda: setattr(ours, "weight_hh_l0", torch.nn.Parameter(2 * before["weight_hh_l0"])))
    check(lambda: setattr(ours.weight_ih_l0, "data", 2 * before["weight_ih_l0"]))
    # another tensor of as many changes, at the same place
    again = torch.nn.Parameter(ours.weight_hh_l0.data)
    check(lambda: (setattr(ours, "weight_hh_l0", again), again.mul_(2)))
    check(lambda: ours.bias_ih_l0.mul_(2), "frozen")  # biases are read at every call

    def step():
        optimizer = torch.optim.SGD(ours.parameters(), lr=1.0)
        with torch.enable_grad():
            ours(x, hx)[0].sum().backward()
        optimizer.step()

    check(step)
    # what torch does not count stays unseen, as freeze says, until train() or unfreeze()
    with torch.no_grad():
        ours.weight_hh_l0.data.mul_(2)
        assert torch.equal(ours(x, hx)[0], first)
        changed = rnnfast.unfreeze(ours)(x, hx)[0]
        assert not torch.equal(changed, first)
        rnnfast.freeze(ours).weight_hh_l0.data.div_(2)
        assert torch.equal(ours(x, hx)[0], changed)
        assert torch.equal(ours.train()(x, hx)[0], first)
        assert ran() == "direct"
        assert torch.equal(ours.eval()(x, hx)[0], first)
        assert ran() == "direct"


def test_a_weight_of_another_size_at_the_same_place_is_not_the_frozen_one():
    weights = torch.randn(64, 10), torch.randn(64, 64)
    module, x = rnnfast.RNN(10, 4, bias=False).eval(), torch.randn(1, 1, 10)

    def take(H):
        module.weight_ih_l0 = torch.nn.Parameter(weights[0][:H])
        module.weight_hh_l0 = torch.nn.Parameter(weights[1].flatten()[: H * H].view(H, H))
        module.hidden_size = H

    take(4)
    rnnfast.freeze(module)
    with torch.no_grad():
        for H in 4, 64, 2:
            take(H)
            assert torch.equal(module(x)[0], copy.deepcopy(module)(x)[0])
        module.weight_ih_l0.data, module.weight_hh_l0.data = weights[0][:8], weights[1][:8, :8].contiguous()
        module.hidden_size = 8
        assert module(x)[0].shape == (1, 1, 8)


def test_frozen_weights_are_for_one_instruction_set():
    x, hx = inputs("lstm", 2)
    ours = rnnfast.LSTM(5, 19).eval()
    before = info.isa()
    try:
        for frozen_for in info.isas():
            info.set_isa(frozen_for)
            rnnfast.freeze(ours)
            for isa in info.isas():
                info.set_isa(isa)
                with torch.no_grad():
                    found = ours(x, hx)[0]
                    assert ran() == ("frozen" if frozen_for == isa else "direct")
                    expected = copy.deepcopy(ours)(x, hx)[0]
                assert torch.equal(found, expected), (frozen_for, isa)
    finally:
        info.set_isa("")
    assert info.isa() == before


@layers
@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"dropout": 0.5}, {"bidirectional": True}], ids=str
)
def test_several_frozen_layers_need_no_op(kind, options):
    ours, theirs = pair(kind, 5, 19, num_layers=3, **options)
    x, hx = inputs(kind, 2)
    if options.get("batch_first"):
        x = x.transpose(0, 1).contiguous()
    D = 6 if options.get("bidirectional") else 3
    hx = tuple(t.repeat(D, 1, 1) * 0.5 for t in hx) if isinstance(hx, tuple) else hx.repeat(D, 1, 1)
    theirs.eval(), rnnfast.freeze(ours.eval())
    with torch.no_grad():
        same(ours(x, hx), theirs(x, hx))
        assert ran() == "frozen"
        same(ours(x), theirs(x))
        one = x[0] if options.get("batch_first") else x[:, 0].contiguous()
        same(ours(one), theirs(one))
        assert ran() == "frozen"
        for bad in (lambda t: t[:2]), (lambda t: t.sum()):
            errors = []
            for module in ours, theirs:
                with pytest.raises(RuntimeError) as error:
                    module(x, tuple(bad(t) for t in hx) if isinstance(hx, tuple) else bad(hx))
                errors.append(str(error.value))
            assert errors[0] == errors[1]
    same(ours(x, hx), theirs(x, hx))  # with a graph
    assert ran() == "recurrent"
    with torch.no_grad():
        ours.train()(x, hx)
    assert ran() == ("recurrent" if options.get("dropout") else "direct")


def test_a_frozen_model_is_copied_saved_and_loaded_thawed(tmp_path):
    x, hx = inputs("lstm", 2)
    layers = {"layer": rnnfast.LSTM(5, 19), "cell": rnnfast.GRUCell(19, 2)}
    model = torch.nn.ModuleDict(layers).eval()
    names, explained = list(model.state_dict()), model["layer"].explain(x)
    rnnfast.freeze(model)
    assert list(model.state_dict()) == names
    assert model["layer"].explain(x) == explained + " Its weights are frozen: see rnnfast.freeze."
    with torch.no_grad():
        expected = model["layer"](x, hx)
        assert ran() == "frozen"
        torch.save(model, tmp_path / "model.pt")
        loaded = torch.load(tmp_path / "model.pt", weights_only=False)
        for other in copy.copy(model["layer"]), copy.deepcopy(model)["layer"], loaded["layer"]:
            same(other(x, hx), expected, rtol=0, atol=0)
            assert ran() == "direct"
        same(copy.deepcopy(model)["cell"](expected[0][0]), model["cell"](expected[0][0]))
        assert ran() == "frozen"
        doubled = model["layer"].double()(x.double(), tuple(t.double() for t in hx))
        same([t.float() for t in tensors(doubled)], expected)


def test_what_cannot_be_frozen():
    layer = rnnfast.freeze(rnnfast.LSTM(5, 19, proj_size=3).eval())
    layer(torch.zeros(2, 1, 5))  # as ever
    layer, x = rnnfast.LSTM(5, 19).eval(), torch.zeros(2, 1, 5)
    frozen = _paths.freeze("lstm", *layer._weights()[0][:2])
    for nonsense in (
        1,
        (),
        tuple(range(10)),
        (*frozen[:-1], "0"),
        (None, *frozen[1:]),
        (*frozen[:5], 1, *frozen[6:]),
    ):
        with torch.no_grad():
            for packed_of_layer in nonsense, (nonsense,):
                how = (True, False, 1, False)
                _paths.try_layers("lstm", layer._parameters, x, None, None, how, packed_of_layer)
                assert ran() == "direct"

    def refused(model, match):
        model = torch.nn.Sequential(rnnfast.GRU(4, 5).eval(), model)
        with pytest.raises(RuntimeError, match=match):
            rnnfast.freeze(model)
        assert model[0]._frozen is None

    whole = rnnfast.GRUCell(5, 19).eval()
    whole.weight_ih = torch.nn.Parameter(torch.zeros(57, 5, dtype=torch.int32), requires_grad=False)
    refused(whole, r"float32, float64, bfloat16 or float16 .* got Int .*\(in 1\)")
    refused(rnnfast.GRU(5, 19, device="meta").eval(), "on the CPU, got Float on meta")
    refused(rnnfast.GRU(5, 19), "expected a model in eval mode, got 1 in training mode: call model.eval")
    turned = rnnfast.RNN(5, 19).eval()
    turned.weight_ih_l0 = torch.nn.Parameter(torch.zeros(5, 19).t())
    refused(turned, "contiguous, got one that is not")
    with torch.inference_mode():
        refused(rnnfast.GRU(5, 19).eval(), "made outside of inference mode")
    with pytest.raises(RuntimeError, match=r"expected w_ih \[3 H, I\] and w_hh \[3 H, H\] of one dtype, got"):
        _paths.freeze("gru", torch.zeros(6, 2), torch.zeros(6, 3))


def test_a_layer_of_torchs_is_named_and_the_others_are_frozen():
    model = torch.nn.ModuleDict({"ours": rnnfast.GRU(4, 5), "theirs": torch.nn.LSTM(4, 5)}).eval()
    with pytest.warns(UserWarning, match=r"it is torch.nn's: theirs \(LSTM\); rnnfast.convert"):
        rnnfast.freeze(model)
    assert model["ours"]._frozen is not None
