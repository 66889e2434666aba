"""torch.jit.trace of modules and functions: torch's own operators, for any number of rows and steps."""

import pytest
import torch
from autograd_helpers import input_for
from helpers import CELLS, LAYERS, draw, of_torch, packed, pair, same, tensors
from traced_helpers import FORMS, RECORDED, REPLAYED, cell_inputs, inputs_for, model_for

import rnnfast

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.trace(_method)?. is :DeprecationWarning"),
    # a size that is compared with another is checked once, when the trace is made, as torch.nn's are
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]
given_or_not = pytest.mark.parametrize("given", [False, True], ids=["zeros", "given"])

OPTIONS = {
    "plain": {},
    "two_layers_both_directions": {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    "batch_first_no_bias": {"num_layers": 2, "batch_first": True, "bias": False},
}


def check_replays(model, inputs):
    """A trace of `model` with the first of `inputs` equals it with each of the others."""
    recorded, *replayed = inputs
    traced = torch.jit.trace(model, recorded)
    assert "rnnfast::" not in str(traced.inlined_graph)
    for x in replayed:
        same(traced(*x), model(*x))


@given_or_not
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("kind", of_torch(LAYERS))
def test_a_trace_of_a_layer_serves_other_sizes(kind, options, form, given):
    layer = pair(kind, 4, 6, **options)[0].eval()
    check_replays(
        model_for(form, layer), [inputs_for(form, layer, sizes, given) for sizes in (RECORDED, *REPLAYED)]
    )


@given_or_not
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("kind", CELLS)
def test_a_trace_of_a_cell_serves_other_batch_sizes(kind, batched, given):
    cell = pair(kind, 4, 6)[0]
    check_replays(cell, [cell_inputs(cell, (B,) if batched else (), given) for B in (3, 2, 5)])


@given_or_not
@pytest.mark.parametrize("batched", [True, False], ids=["batched", "unbatched"])
@pytest.mark.parametrize("depth, bias", [(1, True), (2, False), (3, True)])
def test_a_trace_of_a_deep_transition_serves_other_sizes(depth, bias, batched, given):
    model = rnnfast.DeepTransitionRNN(4, 6, depth=depth, width=7, bias=bias)

    def inputs(T, B):
        rows = (B,) if batched else ()
        x, h = draw(*rows, T, 4, dtype=torch.float32), draw(*rows, 6, dtype=torch.float32)
        return (x, h) if given else (x,)

    check_replays(model, [inputs(*sizes) for sizes in (RECORDED, *REPLAYED)])


def test_a_traced_deep_transition_trains_and_rounds_as_in_eager():
    model = rnnfast.DeepTransitionRNN(4, 6, 2, step_output=True)
    traced = torch.jit.trace(model, (draw(3, 5, 4, dtype=torch.float32),))
    x = draw(2, 7, 4, dtype=torch.float32)
    parameters = list(model.parameters())
    same(*(torch.autograd.grad(m(x).square().sum(), parameters) for m in (traced, model)))
    model.bfloat16()
    x = x.bfloat16()
    traced = torch.jit.trace(model, (x[:, :3],))
    same([traced(x)], [model(x)], rtol=2e-2, atol=1e-2)


def test_a_traced_function_serves_other_sizes():
    layer, deep = rnnfast.LSTM(4, 6, bidirectional=True), rnnfast.DeepTransitionRNN(4, 6)
    layer.requires_grad_(False)  # of a function the weights are constants
    deep.requires_grad_(False)

    def functions(data, batch_sizes, x):
        y, state = rnnfast.functional.lstm(
            data, None, layer.all_weights, bidirectional=True, batch_sizes=batch_sizes
        )
        linears = deep.rnn[::2]
        weights, biases = [m.weight for m in linears], [m.bias for m in linears]
        return y, state, rnnfast.functional.deep_transition(x, None, weights, biases)

    inputs = []
    for lengths in (5, 3, 2), (4, 1), (7, 7, 7, 7):
        rows = packed(*lengths, dtype=torch.float32)
        inputs.append((rows.data, rows.batch_sizes, draw(*lengths[:2], 4, dtype=torch.float32)))
    check_replays(functions, inputs)


@pytest.mark.parametrize("kind", of_torch(LAYERS))
def test_a_batch_first_output_is_contiguous_in_a_trace_too(kind):
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = pair(kind, 4, 6, batch_first=True)[0]

        def forward(self, x):
            return self.layer(x)[0].view(x.size(0), -1)

    check_replays(Flat(), [(draw(B, T, 4, dtype=torch.float32),) for T, B in (RECORDED, *REPLAYED)])


@pytest.mark.parametrize("kind", of_torch(LAYERS))
def test_a_trace_keeps_whether_it_trains_as_torchs_does(kind):
    layers = pair(kind, 4, 6, num_layers=3, dropout=0.5)
    x = input_for(kind, dtype=torch.float32)
    for training in (False, True):
        # dropout gives no two equal results, so there is nothing that torch could check
        traced = [torch.jit.trace(m.train(training), (x,), check_trace=not training) for m in layers]
        outputs = []
        for model in traced:
            model.train(not training)
            torch.manual_seed(3)
            outputs.append(tensors(model(x)))
        same(*outputs)
        if not training:
            same(outputs[0], layers[0].eval()(x))


@pytest.mark.parametrize("kind", of_torch(LAYERS | CELLS))
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_has_torchs_own_operators_and_trains(kind, grad):
    ours, _ = pair(kind, 4, 6)
    x = input_for(kind, dtype=torch.float32)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(ours, (x,))
    assert "rnnfast::" not in str(traced.inlined_graph)
    found, expected = tensors(traced(x)), tensors(ours(x))
    same(found, expected)
    parameters = list(ours.parameters())
    same(*(torch.autograd.grad(outputs[0].square().sum(), parameters) for outputs in (found, expected)))
