"""Straight to the kernel or the op: the same bits, and it steps aside wherever there is more in the way."""

import pytest
import torch
from direct_helpers import cells, inputs, kinds, layers, ran
from helpers import CELLS, LAYERS, draw, of_torch, packed, pair, same, tensors
from torch.autograd import forward_ad
from torch.nn.utils import parametrize, prune
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import rnnfast
from rnnfast import _paths

SEVERAL = [
    {"bidirectional": True},
    {"num_layers": 2},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
]


@kinds
@pytest.mark.parametrize("B", [None, 1, 3, 4, 40])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("state", [True, False])
def test_straight_to_the_kernel_gives_the_bits_of_the_op(kind, B, bias, dtype, state):
    ours, theirs = pair(kind, 5, 19, bias=bias, dtype=dtype)
    x, hx = inputs(kind, B, dtype)
    args = (x, hx) if state else (x,)
    by_op = ours(*args)
    assert ran() == "recurrent"
    with torch.no_grad():
        direct = ours(*args)
    assert ran() == "direct"
    same(direct, by_op, rtol=0, atol=0)
    same(direct, theirs(*args))


@kinds
@pytest.mark.parametrize("B", [None, 1, 3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("state", [True, False])
def test_a_graph_made_straight_is_the_one_made_through_python(kind, B, bias, state, monkeypatch):
    ours, _ = pair(kind, 5, 19, bias=bias)
    x, hx = inputs(kind, B)
    leaves = [x, *tensors(hx)] if state else [x]

    def run():
        for leaf in (*leaves, *ours.parameters()):
            leaf.requires_grad_().grad = None
        outputs = tensors(ours(x, hx) if state else ours(x))
        sum(output.square().sum() for output in outputs).backward()
        return [*outputs, *(leaf.grad for leaf in (*leaves, *ours.parameters()))]

    direct = run()
    name = "try_cell" if kind in CELLS else "try_layers"
    made = []
    monkeypatch.setattr(_paths, name, lambda *args: made.append(args))
    same(direct, run(), rtol=0, atol=0)
    assert made  # and then came Python's turn


class Doubled(torch.nn.Module):
    def forward(self, weight):
        return 2 * weight


def by_attribute(module, name):
    weight = getattr(module, name).detach().clone().requires_grad_()
    delattr(module, name)
    setattr(module, name, weight)
    return weight


REPLACED = {
    "tensors": by_attribute,
    "parametrized": lambda module, name: parametrize.register_parametrization(module, name, Doubled()),
    "pruned": prune.identity,
}


@kinds
@pytest.mark.parametrize("how", list(REPLACED))
@pytest.mark.parametrize("which", [("bias_ih", "bias_hh"), ("bias_hh",), ("weight_hh",)], ids="+".join)
def test_weights_that_are_no_parameters_count_too(kind, how, which):
    modules = pair(kind, 5, 19)
    x, hx = inputs(kind)
    leaves = []
    for module in modules:
        names = [name if kind in CELLS else f"{name}_l0" for name in which]
        made = [REPLACED[how](module, name) for name in names]
        leaves.append([*module.parameters(), *(made if how == "tensors" else [])])
    ours, theirs = modules
    with torch.no_grad():
        same(ours(x, hx), theirs(x, hx))
    grads = []
    for module, of in zip(modules, leaves, strict=True):
        y = tensors(module(x, hx))[0]
        grads.append(torch.autograd.grad(y.square().sum(), of))
    same(*grads)


@layers
def test_batch_first_and_one_step_go_straight_too(kind):
    ours, theirs = pair(kind, 5, 19, batch_first=True)
    x, hx = inputs(kind)
    x = x.transpose(0, 1).contiguous()
    with torch.no_grad():
        for steps in (4, 1):
            same(ours(x[:, :steps].contiguous(), hx), theirs(x[:, :steps], hx))
            assert ran() == "direct"


@layers
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("state", [True, False])
@pytest.mark.parametrize("B", [None, 1, 3])
@pytest.mark.parametrize("options", SEVERAL, ids=str)
def test_several_layers_and_both_directions_go_straight_too(kind, options, B, state, bias, monkeypatch):
    ours, theirs = pair(kind, 5, 19, bias=bias, **options)
    x, hx = inputs(kind, B)
    if B and options.get("batch_first"):
        x = x.transpose(0, 1).contiguous()
    D = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    hx = tree_map(lambda t: torch.cat([t + k for k in range(D)]) if B else draw(D, 19, seed=8), hx)
    hx = tree_map(lambda t: t.float().detach(), hx)
    leaves = [x, *tensors(hx)] if state else [x]

    def run():
        for leaf in (*leaves, *ours.parameters()):
            leaf.requires_grad_().grad = None
        args = (x, hx) if state else (x,)
        with torch.no_grad():
            plain = tensors(ours(*args))
        way = ran()
        outputs = tensors(ours(*args))
        sum(output.square().sum() for output in outputs).backward()
        return way, [*plain, *outputs, *(leaf.grad for leaf in (*leaves, *ours.parameters()))]

    way, direct = run()
    assert way == "direct"
    with torch.no_grad():
        same(ours(x, hx), theirs(x, hx))
    monkeypatch.setattr(_paths, "try_layers", lambda *args: None)
    way, by_op = run()
    assert way == "recurrent"
    same(direct, by_op, rtol=0, atol=0)


def not_contiguous(weight):
    return torch.nn.Parameter(weight.detach().t().contiguous().t())


class OtherParameter(torch.nn.Parameter):
    pass


@layers
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("change", [not_contiguous, OtherParameter])
@pytest.mark.parametrize("name", ["weight_hh_l1", "weight_ih_l1_reverse"])
def test_no_layer_runs_in_vain_because_a_later_one_has_other_weights(kind, name, change, grad):
    ours, theirs = pair(kind, 5, 19, num_layers=2, bidirectional=True)
    for module in ours, theirs:
        setattr(module, name, change(getattr(module, name)))
    x, _ = inputs(kind)
    with torch.set_grad_enabled(grad), torch.profiler.profile() as profile:
        found = ours(x)
    same(found, theirs(x))
    names = [event.name for event in profile.events()]
    assert names.count("rnnfast::recurrent") == 2 and "rnnfast::layers" not in names


@pytest.mark.parametrize("kind", sorted(of_torch(LAYERS).keys() - {"lstm_proj"}))
@pytest.mark.parametrize(
    "suffix, message", [("", "has shape .*, expected None"), ("_reverse", "is None, expected")]
)
def test_biases_in_one_direction_only_are_an_error_with_a_graph_and_without(kind, suffix, message):
    modules = pair(kind, 5, 19, bidirectional=True)
    for module in modules:
        setattr(module, f"bias_ih_l0{suffix}", None), setattr(module, f"bias_hh_l0{suffix}", None)
    ours, theirs = modules
    x, _ = inputs(kind)
    for grad in True, False:
        with torch.set_grad_enabled(grad):
            with pytest.raises(TypeError):
                theirs(x)
            with pytest.raises(RuntimeError, match=f"b_ih_r {message}"):
                ours(x)


@layers
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("B", [None, 2])
@pytest.mark.parametrize("more", [1, -1])
@pytest.mark.parametrize("options", SEVERAL, ids=str)
def test_a_state_of_more_or_fewer_layers_is_torchs_error(kind, options, more, B, grad):
    modules = pair(kind, 5, 19, **{**options, "batch_first": False})
    n = options.get("num_layers", 1) * (2 if options.get("bidirectional") else 1)
    x, rows = draw(4, *([B] if B else []), 5, dtype=torch.float32), [B] if B else []
    right, wrong = (draw(k, *rows, 19, dtype=torch.float32) for k in (n, n + more))
    states = [(wrong, wrong), (right, wrong), (wrong, right)] if kind == "lstm" else [wrong]
    for hx in states:
        errors = []
        for module in modules:
            with torch.set_grad_enabled(grad), pytest.raises(RuntimeError) as error:
                module(x, hx)
            errors.append(str(error.value))
        assert errors[0] == errors[1]


@layers
def test_packed_input_is_the_ops(kind):
    with torch.no_grad():
        ours, theirs = pair(kind, 4, 19)
        rows = packed(3, 2, 2, dtype=torch.float32)
        same(ours(rows)[0].data, theirs(rows)[0].data)
        assert ran() == "recurrent"


@cells
@pytest.mark.parametrize("size", [(7, 33), (33, 7), (64, 128), (130, 1), (1, 16), (1100, 17)], ids=str)
def test_a_row_alone_and_in_a_batch_gives_the_same_bits_at_every_size(kind, size):
    ours, _ = pair(kind, *size)
    x, hx = inputs(kind, 9, I=size[0], H=size[1])
    with torch.no_grad():
        together = tensors(ours(x, hx))
        for k in (0, 8):
            alone = tuple(t[k : k + 1] for t in hx) if isinstance(hx, tuple) else hx[k : k + 1]
            same(ours(x[k : k + 1], alone), [t[k : k + 1] for t in together], rtol=0, atol=0)


@kinds
def test_inference_mode_and_frozen_weights_go_straight(kind):
    ours, _ = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.inference_mode():
        first = ours(x, hx)
    assert ran() == "direct"
    assert all(t.is_inference() for t in tensors(first))
    ours.requires_grad_(False)
    ours(x, hx)
    assert ran() == "direct"


class Watch(TorchDispatchMode):
    seen = ()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen = (*self.seen, str(func))
        return func(*args, **(kwargs or {}))


class WatchFunctions(TorchFunctionMode):
    seen = ()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen = (*self.seen, str(func))
        return func(*args, **(kwargs or {}))


@kinds
@pytest.mark.parametrize("mode", [Watch, WatchFunctions])
def test_a_mode_sees_the_op(kind, mode):
    ours, _ = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.no_grad(), mode() as watch:
        ours(x, hx)
    assert any("rnnfast" in name and "recurrent" in name for name in watch.seen)


class Marked(torch.Tensor):
    pass


def parametrized(cell, x, hx):
    torch.nn.utils.parametrizations.weight_norm(cell, next(n for n in cell._parameters if "weight_hh" in n))
    return cell, x, hx


def of_input(change):
    return lambda cell, x, hx: (cell, change(x), hx)


ASIDE = {
    "graph": lambda cell, x, hx: (cell, x.requires_grad_(), hx),
    "subclass": of_input(lambda x: x.as_subclass(Marked)),
    "strided": of_input(lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2)),
    "negative": of_input(lambda x: torch.complex(x, -x).conj().imag),
    "parametrized": parametrized,
}


@kinds
@pytest.mark.parametrize("case", list(ASIDE))
def test_what_a_kernel_cannot_read_as_it_is_goes_by_the_op(kind, case):
    ours, theirs = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.no_grad():
        expected = theirs(x, hx)
    ours, x, hx = ASIDE[case](ours, x, hx)
    with torch.set_grad_enabled(case == "graph"):
        got = ours(x, hx)
    assert ran() == "recurrent"
    same([t.as_subclass(torch.Tensor) for t in tensors(got)], expected)
    if case == "graph":
        assert all(t.requires_grad for t in tensors(got))


@pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated:DeprecationWarning")
@kinds
def test_transforms_tangents_and_tracing_are_not_stepped_over(kind):
    ours, _ = pair(kind, 5, 19)
    x, hx = inputs(kind)
    with torch.no_grad():
        expected = ours(x, hx)
        batched = torch.vmap(lambda row: ours(row, hx))(torch.stack([x, x]))
        same([t[1] for t in tensors(batched)], expected)
        with forward_ad.dual_level():
            dual = ours(forward_ad.make_dual(x, torch.ones_like(x)), hx)
            tangents = [forward_ad.unpack_dual(t).tangent for t in tensors(dual)]
        assert all(t is not None and t.abs().sum() > 0 for t in tangents)
        compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
        same(compiled(x, hx), expected)


def test_a_call_with_a_wrong_number_of_arguments_says_so():
    call = torch.zeros(1, 1), None, None
    with pytest.raises(RuntimeError, match="try_cell: expected mode, parameters, input, hx, cx, frozen and"):
        rnnfast.ops.try_cell("gru", {}, torch.zeros(1, 1), None)
    with pytest.raises(
        RuntimeError,
        match=r"try_layers: expected mode, parameters, input, hx, cx, \(bias, batch_first",
    ):
        rnnfast.ops.try_layers("gru", {}, torch.zeros(1, 1), None)
    with pytest.raises(RuntimeError, match="try_layers: expected mode, a str, and parameters, a dict"):
        rnnfast.ops.try_layers("gru", [], *call, (True, False, 1, False), None, {}, None)
    with pytest.raises(RuntimeError, match="try_layers: expected 1 to 65536 layers, got 0"):
        rnnfast.ops.try_layers("gru", {}, *call, (True, False, 0, False), None, {}, None)
    with pytest.raises(RuntimeError, match="mode is 'gro', expected one of lstm, gru"):
        cell, _ = pair("gru_cell", 5, 19)
        _paths.try_cell("gro", cell._parameters, torch.zeros(1, 5), None, None)
