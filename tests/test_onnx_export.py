"""Exports to ONNX, run by onnxruntime at other sizes than those they were made with; and programs of torch's
operators only."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from helpers import CELLS, LAYERS, draw, of_torch, packed, pair, same, tensors
from torch.utils._pytree import tree_leaves
from traced_helpers import RECORDED, REPLAYED, cell_inputs, inputs_for, model_for

import rnnfast

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch's exporters say of themselves

SIZE = torch.export.Dim.DYNAMIC
BOTH = {0: SIZE, 1: SIZE}
given_or_not = pytest.mark.parametrize("given", [False, True], ids=["zeros", "given"])


def exported(model, inputs, path, **how):
    """(operators, a function of inputs that runs them in onnxruntime) of a model or program."""
    names = [f"x{k}" for k in range(len(tree_leaves(inputs)))]
    torch.onnx.export(model, inputs, str(path), input_names=names, external_data=False, verbose=False, **how)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(inputs):
        found = session.run(None, {n: t.numpy() for n, t in zip(names, tree_leaves(inputs), strict=True)})
        return [torch.from_numpy(array) for array in found if np.issubdtype(array.dtype, np.floating)]

    return [node.op_type for node in onnx.load(path).graph.node], run


def check(run, model, inputs):
    for given in inputs:
        with torch.no_grad():
            same(run(given), tensors(model(*given)), rtol=1e-4, atol=2e-6)


TRACED = [
    {},
    {"num_layers": 2, "bidirectional": True, "dropout": 0.5},
    {"num_layers": 2, "batch_first": True, "bias": False},
]


# torch.nn's LSTM with proj_size: SymbolicValueError, "LSTMs with projections"
@given_or_not
@pytest.mark.parametrize("form", ["batched", "packed", "packed_unsorted"])
@pytest.mark.parametrize("options", TRACED, ids=str)
@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu", "gru", "lstm"])
def test_a_traced_export_serves_other_sizes(kind, options, form, given, tmp_path):
    layer = pair(kind, 4, 6, **options)[0]
    model = model_for(form, layer).eval()  # an export puts the mode of the whole back
    recorded, *replayed = [inputs_for(form, layer, sizes, given) for sizes in (RECORDED, *REPLAYED)]
    axes = {f"x{k}": list(range(t.dim())) for k, t in enumerate(tree_leaves(recorded))}
    axes = {name: [d for d in dims if d < 2] for name, dims in axes.items()}
    operators, run = exported(model, recorded, tmp_path / "model.onnx", dynamic_axes=axes, dynamo=False)
    check(run, model, replayed)
    name = "RNN" if kind.startswith("rnn") else kind.upper()
    assert operators.count(name) == layer.num_layers


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "exported"])
def test_an_export_of_a_deep_transition_loops_over_any_number_of_steps(bias, dynamo, tmp_path):
    model = rnnfast.DeepTransitionRNN(4, 6, bias=bias, width=7).eval()
    recorded, *replayed = [(draw(B, T, 4, dtype=torch.float32),) for T, B in (RECORDED, *REPLAYED)]
    how = {"dynamic_shapes": (BOTH,)} if dynamo else {"dynamic_axes": {"x0": [0, 1]}}
    operators, run = exported(model, recorded, tmp_path / "model.onnx", dynamo=dynamo, **how)
    check(run, model, replayed)
    assert ("Scan" if dynamo else "Loop") in operators


# torch.nn's: "Constraints violated", its operator is unrolled over the steps; with proj_size a graph that
# onnxruntime refuses
@pytest.mark.parametrize("program", [False, True], ids=["module", "program"])
@pytest.mark.parametrize(
    "kind, options",
    [("rnn_relu", {}), ("gru", TRACED[2]), ("lstm", TRACED[1]), ("lstm_proj", {})],
    ids=lambda v: str(v),
)
def test_an_export_serves_any_number_of_rows_and_steps(kind, options, program, tmp_path):
    layer = pair(kind, 4, 6, **options)[0].eval()
    recorded, *replayed = [inputs_for("batched", layer, sizes) for sizes in (RECORDED, *REPLAYED)]
    model = torch.export.export(layer, recorded, dynamic_shapes=(BOTH,)) if program else layer
    how = {} if program else {"dynamic_shapes": (BOTH,)}
    _, run = exported(model, recorded, tmp_path / "model.onnx", dynamo=True, **how)
    check(run, layer, replayed)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_a_program_with_known_steps_has_onnxs_own_layers_as_torchs_does(kind, tmp_path):
    counts = []
    for layer in pair(kind, 4, 6, num_layers=2, bidirectional=True):
        recorded, other = [inputs_for("batched", layer.eval(), (5, B)) for B in (3, 2)]
        program = torch.export.export(layer, recorded, dynamic_shapes=({1: SIZE},))
        operators, run = exported(program, recorded, tmp_path / "model.onnx", dynamo=True)
        check(run, layer, [other])
        counts.append(operators.count(kind.upper()))
    assert counts == [2, 2]


@pytest.mark.parametrize("kind", ["gru_cell", "lstm_cell", "rnn_tanh_cell"])
def test_a_program_of_a_cell_serves_any_number_of_rows(kind, tmp_path):
    cell = pair(kind, 4, 6)[0]
    recorded, *replayed = [cell_inputs(cell, (B,)) for B in (3, 2, 5)]
    program = torch.export.export(cell, recorded, dynamic_shapes=({0: SIZE},))
    _, run = exported(program, recorded, tmp_path / "model.onnx", dynamo=True)
    check(run, cell, replayed)


def test_a_program_of_packed_rows_serves_any_number_of_rows(tmp_path):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = pair("gru", 4, 6, bidirectional=True)[0]

        def forward(self, data, batch_sizes):
            y, state = self.layer(torch.nn.utils.rnn.PackedSequence(data, batch_sizes))
            return y.data, state

    model = Model().eval()
    recorded, *replayed = [
        packed(*lengths, dtype=torch.float32)[:2] for lengths in ((4, 3, 1), (4, 2), (4, 4, 3, 2))
    ]
    program = torch.export.export(model, recorded, dynamic_shapes=({0: SIZE}, None))
    _, run = exported(program, recorded, tmp_path / "model.onnx", dynamo=True)
    check(run, model, replayed)


def in_torch(model, inputs, dynamic_shapes=None):
    """The program of a model after `rnnfast.decompositions`."""
    program = torch.export.export(model, inputs, dynamic_shapes=dynamic_shapes)
    program = program.run_decompositions(rnnfast.decompositions())
    assert "rnnfast" not in str(program.graph)
    return program


@pytest.mark.parametrize("dynamic", [False, True], ids=["known_sizes", "any_sizes"])
@pytest.mark.parametrize("kind", [*LAYERS, *of_torch(CELLS), "deep_transition"])
def test_a_decomposed_program_equals_eager(kind, dynamic):
    if kind == "deep_transition":
        model = rnnfast.DeepTransitionRNN(4, 6).eval()
    else:
        options = {} if kind in CELLS else {"num_layers": 2, "bidirectional": True, "batch_first": True}
        model = pair(kind, 4, 6, **options)[0].eval()
    inputs = [
        (draw(*((B,) if kind in CELLS else (B, T)), 4, dtype=torch.float32),)
        for T, B in (RECORDED, *REPLAYED)
    ]
    shapes = ({0: SIZE} if kind in CELLS else BOTH,)
    program = in_torch(model, inputs[0], shapes if dynamic else None).module()
    for x in inputs if dynamic else inputs[:1]:
        same(program(*x), model(*x))


def test_a_decomposed_program_is_loaded_where_there_is_no_rnnfast(tmp_path):
    model, x = pair("lstm", 4, 6)[0].eval(), draw(5, 3, 4, dtype=torch.float32)
    torch.export.save(in_torch(model, (x,)), tmp_path / "program.pt2")
    torch.save(x, tmp_path / "x.pt")
    code = """
import sys, torch
folder = sys.argv[1]
y, (h, c) = torch.export.load(folder + "/program.pt2").module()(torch.load(folder + "/x.pt"))
assert "rnnfast" not in sys.modules
torch.save([y, h, c], folder + "/y.pt")
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=tmp_path)
    same(torch.load(tmp_path / "y.pt"), tensors(model(x)))


def test_decompositions_leave_torchs_own_as_they_are():
    ours, theirs = rnnfast.decompositions(), torch.export.default_decompositions()
    added = {str(op) for op in ours.keys() - theirs.keys()}
    assert added == {"rnnfast.recurrent.default", "rnnfast.deep_transition.default"}


OPTIONS = [{}, {"num_layers": 2, "batch_first": True}]


@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", ["rnn_tanh", "gru", "lstm"])
def test_an_export_has_the_operators_of_torchs_own(kind, options, dynamo, tmp_path):
    x, operators = draw(3, 3, 4, dtype=torch.float32), []
    for module in pair(kind, 4, 5, **options):
        names, run = exported(module.eval(), (x,), tmp_path / "model.onnx", dynamo=dynamo)
        check(run, module, [(x,)])
        operators.append(names)
    ours, theirs = operators
    assert ours == theirs
    if kind in ("lstm", "gru"):  # an RNN that is exported torch makes of single products
        assert ours.count(kind.upper()) == options.get("num_layers", 1)
