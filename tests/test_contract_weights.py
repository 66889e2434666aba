"""Weights as in torch.nn: replaced, parametrized, tied, trained, copied, saved and converted."""

import copy
import io
import pickle

import pytest
import torch
from contract_helpers import F64, MARKS, each_kind, each_layer, failure, input_for, is_cell, zeros
from helpers import pair, same, tensors, total
from torch import nn

pytestmark = MARKS


def weight_of(kind, direction="hh"):
    return f"weight_{direction}" + ("" if is_cell(kind) else "_l0")


def outputs_and_gradients(module, x):
    output = module(x)
    return output, torch.autograd.grad(total(output), list(module.parameters()))


@each_kind
def test_weight_norm_flows_through(kind):
    ours, theirs = (
        nn.utils.parametrizations.weight_norm(m, weight_of(kind)) for m in pair(kind, 4, 6, **F64)
    )
    same(outputs_and_gradients(ours, input_for(kind)), outputs_and_gradients(theirs, input_for(kind)))


@each_kind
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_the_older_weight_norm_flows_through(kind):
    ours, theirs = (nn.utils.weight_norm(m, weight_of(kind)) for m in pair(kind, 4, 6, **F64))
    same(outputs_and_gradients(ours, input_for(kind)), outputs_and_gradients(theirs, input_for(kind)))


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@each_kind
def test_a_parametrization_flows_through_and_comes_off(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    before = ours(input_for(kind))
    for module in (ours, theirs):
        nn.utils.parametrize.register_parametrization(module, weight_of(kind), Halved())
    same(outputs_and_gradients(ours, input_for(kind)), outputs_and_gradients(theirs, input_for(kind)))
    nn.utils.parametrize.remove_parametrizations(ours, weight_of(kind), leave_parametrized=False)
    same(ours(input_for(kind)), before, rtol=0, atol=0)


@each_kind
def test_a_weight_replaced_by_a_plain_tensor_is_used_and_trained(kind):
    # weight drop: the parameter is deleted, a tensor computed from another parameter takes its name
    results = []
    for module in pair(kind, 4, 6, **F64):
        raw = nn.Parameter(getattr(module, weight_of(kind)).detach() * 3)
        delattr(module, weight_of(kind))
        setattr(module, weight_of(kind), raw * 0.5)
        output = module(input_for(kind))
        results.append((output, torch.autograd.grad(total(output), [raw, *module.parameters()])))
    same(*results)


@each_layer
def test_tied_layers_share_their_gradient(kind):
    results = []
    for module in pair(kind, 4, 6, num_layers=2, **F64):
        module.weight_hh_l1 = module.weight_hh_l0
        module.bias_ih_l1 = module.bias_ih_l0
        results.append(outputs_and_gradients(module, input_for(kind)))
    same(*results)


@each_kind
def test_an_optimizer_step_and_a_data_edit_count_from_the_next_forward(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    for module in (ours, theirs):
        total(module(input_for(kind))).backward()
        torch.optim.SGD(module.parameters(), lr=0.1).step()
        getattr(module, weight_of(kind)).data.add_(0.25)
    same(ours(input_for(kind)), theirs(input_for(kind)))


@each_kind
def test_functional_call_uses_the_weights_it_is_given(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    before = ours(input_for(kind))
    given = {k: (v.detach() * 2).requires_grad_() for k, v in ours.named_parameters()}
    results = []
    for module in (ours, theirs):
        output = torch.func.functional_call(module, given, (input_for(kind),))
        results.append((output, torch.autograd.grad(total(output), list(given.values()))))
    same(*results)
    same(ours(input_for(kind)), before, rtol=0, atol=0)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@each_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_and_loaded])
def test_a_copy_is_equal_and_independent(kind, copied):
    original, _ = pair(kind, 4, 6, **F64)
    x = input_for(kind)
    expected = original(x)
    duplicate = copied(original.eval())
    assert type(duplicate) is type(original) and not duplicate.training
    with torch.no_grad():
        for p in original.parameters():
            p.zero_()
    same(duplicate(x), expected, rtol=0, atol=0)


@each_kind
def test_state_dicts_load_both_ways(kind):
    ours, _ = pair(kind, 4, 6, seed=1, **F64)
    _, theirs = pair(kind, 4, 6, seed=2, **F64)
    x = input_for(kind)
    ours.load_state_dict(theirs.state_dict())
    same(ours(x), theirs(x))
    ours, _ = pair(kind, 4, 6, seed=3, **F64)
    theirs.load_state_dict(ours.state_dict())
    same(theirs(x), ours(x))


@each_kind
def test_a_wrong_state_dict_raises_torchs_error(kind):
    ours, theirs = pair(kind, 4, 6)
    other, _ = pair(kind, 4, 5)
    wrong = {**other.state_dict(), "extra": zeros(1)}
    assert failure(lambda: ours.load_state_dict(wrong)) == failure(lambda: theirs.load_state_dict(wrong))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_converted_module_computes_in_its_new_dtype(kind, dtype):
    ours, theirs = pair(kind, 4, 6)
    expected = theirs.double()(input_for(kind))
    for _ in range(2):  # the second time after a forward, when caches would be stale
        outputs = ours.to(dtype)(input_for(kind).to(dtype))
        assert {t.dtype for t in tensors(outputs)} == {dtype}
        tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.03}
        same(outputs, expected, check_dtype=False, **tolerance)


@each_kind
def test_shared_memory_keeps_the_outputs(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    expected = ours(input_for(kind))
    assert all(p.is_shared() for p in ours.share_memory().parameters())
    same(ours(input_for(kind)), expected, rtol=0, atol=0)
