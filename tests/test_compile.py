"""Modules under torch.compile, in one graph, and under torch.export."""

import pytest
import torch
from autograd_helpers import MARKS, input_for, ops, states_of
from helpers import draw, packed, pair, same, tensors, total

import rnnfast

pytestmark = MARKS


class Tagger(torch.nn.Module):
    """A recurrent layer and a head: what people compile."""

    def __init__(self, rnn, features):
        super().__init__()
        self.rnn, self.head = rnn, torch.nn.Linear(features, 3)

    def forward(self, x, hx=None):
        y, state = self.rnn(x, hx)
        return self.head(y).tanh(), state


def compiled_and_eager(model, backend, *inputs, dynamic=None):
    """Outputs and gradients from torch.compile(fullgraph=True) and without it."""
    torch._dynamo.reset()
    results = []
    for run in (torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic), model):
        copies = [torch.utils._pytree.tree_map(lambda t: t.clone().requires_grad_(), i) for i in inputs]
        output = run(*copies)
        results.append((output, torch.autograd.grad(total(output), [*tensors(copies), *model.parameters()])))
    return results


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_model_compiled_by_inductor_equals_eager(name):
    torch.manual_seed(0)
    model = Tagger(getattr(rnnfast, name)(4, 6, num_layers=2, dropout=0.0), 6)
    compiled, eager = compiled_and_eager(model, "inductor", draw(5, 3, 4, dtype=torch.float32))
    same(compiled, eager)


COMPILED = {
    "rnn_bidirectional": lambda: Tagger(rnnfast.RNN(4, 6, bidirectional=True), 12),
    "rnn_relu_no_bias": lambda: Tagger(rnnfast.RNN(4, 6, nonlinearity="relu", bias=False), 6),
    "lstm_proj_batch_first": lambda: Tagger(rnnfast.LSTM(4, 6, proj_size=3, batch_first=True), 3),
    "gru_unbatched": lambda: Tagger(rnnfast.GRU(4, 6), 6),
    "lstm_cell": lambda: rnnfast.LSTMCell(4, 6),
    "gru_cell": lambda: rnnfast.GRUCell(4, 6),
    "rnn_cell": lambda: rnnfast.RNNCell(4, 6),
    "deep_transition": lambda: rnnfast.DeepTransitionRNN(4, 6),
}


@pytest.mark.parametrize("case", COMPILED)
def test_every_module_compiles_in_one_graph_and_equals_eager(case):
    torch.manual_seed(0)
    model = COMPILED[case]().double()
    x = draw(3, 4) if "cell" in case or "unbatched" in case else draw(5, 3, 4)
    same(*compiled_and_eager(model, "aot_eager", x))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_given_state_compiles_and_equals_eager(kind):
    model = Tagger(pair(kind, 4, 6)[0], 6).double()
    same(*compiled_and_eager(model, "aot_eager", input_for(kind), states_of(kind)))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_packed_input_compiles_and_equals_eager(kind):
    module = pair(kind, 4, 6)[0].double()
    x = packed(5, 3, 2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = module

        def forward(self, data):
            y, state = self.rnn(torch.nn.utils.rnn.PackedSequence(data, x.batch_sizes))
            return y.data, state

    same(*compiled_and_eager(Model(), "aot_eager", x.data))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dropout_in_a_compiled_model_draws_the_eager_masks_again_and_again(kind):
    model = Tagger(pair(kind, 4, 6, num_layers=2, dropout=0.5)[0], 6).double()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = []
    for run in (model, compiled, compiled):
        torch.manual_seed(3)
        outputs.append(run(input_for(kind)))
    same(outputs[1], outputs[0])
    same(outputs[2], outputs[0])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd is returning")  # torch's own test backend
def test_one_graph_with_one_node_a_layer_serves_two_lengths(kind):
    model = Tagger(pair(kind, 4, 6, num_layers=2)[0], 6).double()
    torch._dynamo.reset()
    backend = torch._dynamo.testing.AotEagerAndRecordGraphs()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for steps, batch in ((5, 3), (8, 2), (11, 4)):
        x = draw(steps, batch, 4)
        same(compiled(x), model(x))
        gradients = [torch.autograd.grad(total(m(x)), list(model.parameters())) for m in (compiled, model)]
        same(*gradients)
    assert len(backend.fw_graphs) == 1 and len(backend.bw_graphs) == 1
    called = [node.target for node in backend.fw_graphs[0].graph.nodes if node.op == "call_function"]
    assert called.count(ops.recurrent.default) == 2
    called = [node.target for node in backend.bw_graphs[0].graph.nodes if node.op == "call_function"]
    assert called.count(ops.recurrent_backward.default) == 2


def test_an_exported_program_takes_packed_rows_of_any_number():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = pair("lstm", 4, 6)[0].double()

        def forward(self, data, batch_sizes):
            y, state = self.layer(torch.nn.utils.rnn.PackedSequence(data, batch_sizes))
            return y.data, state

    model, size = Model(), torch.export.Dim.DYNAMIC
    recorded, *replayed = [packed(*lengths)[:2] for lengths in ((5, 3, 2), (4, 1), (7, 7, 7, 7))]
    program = torch.export.export(model, recorded, dynamic_shapes=({0: size}, {0: size}))
    for rows in replayed:
        same(program.module()(*rows), model(*rows))
