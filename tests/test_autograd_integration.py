"""Modules inside torch's autograd: second gradients, parts of them, checkpoints, hooks, anomaly mode."""

import pytest
import torch
from autograd_helpers import F64, MARKS, each_kind, input_for, states_of
from helpers import LAYERS, draw, packed, pair, same, tensors, total
from torch._dynamo import compiled_autograd
from torch.nn.utils.rnn import PackedSequence
from torch.utils.checkpoint import checkpoint

import rnnfast

pytestmark = MARKS


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_second_gradients_equal_torchs_composite(kind):
    results = []
    for module in pair(kind, 4, 6, num_layers=2, bidirectional=True, **F64):
        x = input_for(kind).requires_grad_()
        (dx,) = torch.autograd.grad(total(module(x)), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x, *module.parameters()]))
    same(*results)


@each_kind
def test_backward_works_in_eval_mode(kind):
    results = []
    for module in pair(kind, 4, 6, **F64):
        module.eval()
        results.append(torch.autograd.grad(total(module(input_for(kind))), list(module.parameters())))
    same(*results)


@each_kind
def test_backward_twice_gives_the_same_gradients(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x = input_for(kind).requires_grad_()
    loss = total(ours(x))
    wanted = [x, *ours.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    torch.autograd.grad(total(ours(input_for(kind, seed=2))), list(ours.parameters()))  # another call between
    same(torch.autograd.grad(loss, wanted), first, rtol=0, atol=0)


@each_kind
def test_gradients_of_each_input_alone_equal_those_of_all(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    for number in range(len(list(theirs.parameters())) + len(tensors(states_of(kind))) + 1):
        results = []
        for module in (ours, theirs):
            x, hx = input_for(kind), states_of(kind)
            everything = [x, *tensors(hx), *module.parameters()]
            for i, t in enumerate(everything):
                t.requires_grad_(i == number)
            results.append(torch.autograd.grad(total(module(x, hx)), everything[number]))
        same(*results)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("used", ["output", "state"])
def test_gradients_of_one_output_alone_equal_torchs(kind, used):
    results = []
    for module in pair(kind, 4, 6, num_layers=2, bidirectional=True, **F64):
        output = module(input_for(kind))[0 if used == "output" else 1]
        results.append(
            torch.autograd.grad(total(tensors(output)[-1]), list(module.parameters()), allow_unused=True)
        )
    same(*results)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_equal_plain_ones(kind, reentrant):
    ours, _ = pair(kind, 4, 6, num_layers=2, dropout=0.3, **F64)
    results = []

    def flat(x):  # the reentrant form follows no gradient into a nested tuple
        return tuple(tensors(ours(x)))

    for run in (flat, lambda x: checkpoint(flat, x, use_reentrant=reentrant)):
        torch.manual_seed(4)
        ours.zero_grad()
        x = input_for(kind).requires_grad_()
        total(run(x)).backward()
        results.append([x.grad, *(p.grad.clone() for p in ours.parameters())])
    same(*results)


@each_kind
def test_hooks_see_what_they_see_in_torch(kind):
    seen = {}
    for name, module in zip(("ours", "torch"), pair(kind, 4, 6, **F64), strict=True):
        calls = seen[name] = []
        module.register_forward_pre_hook(lambda m, args, calls=calls: calls.append(("pre", args)))
        module.register_forward_hook(lambda m, args, out, calls=calls: calls.append(("forward", out)))
        module.register_full_backward_hook(lambda m, gi, go, calls=calls: calls.append(("backward", gi, go)))
        next(module.parameters()).register_hook(lambda g, calls=calls: calls.append(("weight", g)))
        total(module(input_for(kind).requires_grad_())).backward()
    assert [call[0] for call in seen["ours"]] == [call[0] for call in seen["torch"]]
    same(seen["ours"], seen["torch"])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Error detected in")
def test_anomaly_mode_passes_good_gradients_and_names_nan(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    results = []
    for module in (ours, theirs):
        with torch.autograd.detect_anomaly():
            results.append(torch.autograd.grad(total(module(input_for(kind))), list(module.parameters())))
    same(*results)
    x = input_for(kind).requires_grad_()
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="returned nan values"):
        (ours(x)[0].sum() * float("nan")).backward()


def gradients_of_changed_output(module, x, change):
    y = module(x)[0]
    y = change(y.data if isinstance(y, PackedSequence) else y)
    return torch.autograd.grad(y.square().sum(), list(module.parameters()))


@pytest.mark.parametrize("form", ["plain", "batch first", "unbatched", "packed"])
@pytest.mark.parametrize("kind", LAYERS)
def test_an_output_may_be_changed_in_place_before_backward(kind, form):
    ours, theirs = pair(
        kind, 4, 6, num_layers=2, bidirectional=True, batch_first=form == "batch first", **F64
    )
    x = packed(5, 3, 2) if form == "packed" else draw(5, 4) if form == "unbatched" else draw(5, 3, 4)
    expected = gradients_of_changed_output(ours, x, lambda y: (2 * y).relu())
    same(gradients_of_changed_output(ours, x, lambda y: y.mul_(2).relu_()), expected, rtol=0, atol=0)
    same(expected, gradients_of_changed_output(theirs, x, lambda y: (2 * y).relu()))


def test_an_output_of_a_deep_transition_may_be_changed_in_place_before_backward():
    module, x = rnnfast.DeepTransitionRNN(4, 6, **F64), draw(5, 3, 4)
    expected = gradients_of_changed_output(module, x, lambda y: 2 * y)
    same(gradients_of_changed_output(module, x, lambda y: y.mul_(2)), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_second_gradients_through_an_output_changed_in_place_equal_plain_ones(dtype):
    results = []
    module, x = rnnfast.GRU(4, 6, dtype=dtype), draw(5, 3, 4).to(dtype).requires_grad_()
    for change in (lambda y: y.mul_(2), lambda y: 2 * y):
        (dx,) = torch.autograd.grad(change(module(x)[0]).square().sum(), x, create_graph=True)
        results.append([dx, *torch.autograd.grad(dx.square().sum(), list(module.parameters()))])
    same(*results, rtol=0, atol=0)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
)  # torch's own
@pytest.mark.parametrize("change", [lambda y: 2 * y, lambda y: y.mul_(2)], ids=["kept", "changed"])
@pytest.mark.parametrize("kind", LAYERS)
def test_compiled_autograd_gives_the_same_gradients(kind, change):
    module, _ = pair(kind, 4, 6, **F64)
    change(module(draw(5, 3, 4))[0]).square().sum().backward()
    expected = [w.grad for w in module.parameters()]
    module.zero_grad()
    loss = change(module(draw(5, 3, 4))[0]).square().sum()
    with compiled_autograd._enable(lambda graph: graph):
        loss.backward()
    same([w.grad for w in module.parameters()], expected, rtol=0, atol=0)
