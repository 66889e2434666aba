"""Modules inside torch's autograd: second gradients, parts of them, checkpoints, hooks, anomaly mode."""

import pytest
import torch
from autograd_helpers import F64, MARKS, each_kind, input_for, states_of
from helpers import LAYERS, pair, same, tensors, total
from torch.utils.checkpoint import checkpoint

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
