"""Tools that know torch.nn's layers by their class: torch.fx, torch.jit.script, torch.ao.quantization."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import fx, nn
from torch.ao.quantization import get_default_qconfig, get_default_qconfig_mapping, prepare, quantize_dynamic
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast
from tests.helpers import CELLS, LAYERS, ROOT, draw, of_torch, packed, pair, peer_of, same, tensors

KINDS = of_torch(LAYERS | CELLS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


def float_input(kind, steps=5, batch=3):
    return draw(*((steps, batch, 4) if kind in LAYERS else (batch, 4)), dtype=torch.float32)


class Chain(nn.Module):
    """Two modules of a kind; the second starts from the state of the first, given by position or by name."""

    def __init__(self, cls, by_name=False, **options):
        super().__init__()
        self.first, self.second = cls(4, 6, **options), cls(6, 6, **options)
        self.head = nn.Linear(6, 2)
        self.by_name = by_name

    def forward(self, x):
        out = self.first(x)
        if isinstance(self.first, nn.RNNCellBase):
            y, state = (out[0], out) if isinstance(self.first, rnnfast.LSTMCell | nn.LSTMCell) else (out, out)
        else:
            y, state = out
        out = self.second(y, hx=state) if self.by_name else self.second(y, state)
        is_gate_only = isinstance(self.first, rnnfast.GRUCell | rnnfast.RNNCell | nn.GRUCell | nn.RNNCell)
        return self.head(out if is_gate_only else out[0]), state


def leaves(traced):
    return [node.target for node in traced.graph.nodes if node.op == "call_module"]


@pytest.mark.parametrize("by_name", [False, True], ids=["positional", "by name"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "lstm_proj"])
def test_fx_sees_each_layer_as_one_module_whatever_is_given_for_the_state(kind, by_name):
    name, extra = KINDS[kind]
    model = Chain(getattr(rnnfast, name), by_name, **extra)
    traced = fx.symbolic_trace(model)
    assert leaves(traced) == ["first", "second", "head"]
    for steps, batch in ((5, 3), (2, 7)):
        x = float_input(kind, steps, batch)
        same(traced(x), model(x))
    if not by_name:  # as torch.nn's, but the state is given by position
        assert fx.symbolic_trace(Chain(peer_of(name), **extra)).code == traced.code


def test_fx_takes_a_state_that_is_made_of_inputs_and_packed_rows():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.gru = rnnfast.LSTM(4, 6), rnnfast.GRU(4, 6)

        def forward(self, x, h, c, data):
            rows = packed(5, 3, 2, dtype=torch.float32)._replace(data=data)
            return self.lstm(x, (h, c))[0], self.gru(rows)[1]

    model = Model()
    traced = fx.symbolic_trace(model)
    assert leaves(traced) == ["lstm", "gru"]
    state = draw(2, 1, 3, 6, dtype=torch.float32)
    inputs = (float_input("lstm"), *state, packed(5, 3, 2, dtype=torch.float32, seed=4).data)
    same(traced(*inputs), model(*inputs))


def test_fx_sees_a_deep_transition_as_one_module_too():
    model = nn.Sequential(rnnfast.DeepTransitionRNN(4, 6, 3, step_output=True), nn.ReLU())
    traced = fx.symbolic_trace(model)
    assert leaves(traced) == ["0", "1"]
    for shape in ((2, 5, 4), (1, 9, 4)):
        x = draw(*shape, dtype=torch.float32)
        same(traced(x), model(x))


def test_fx_extracts_what_a_layer_in_the_middle_gives():
    model = Chain(rnnfast.GRU)
    traced = fx.symbolic_trace(model)
    graph = traced.graph
    middle = next(node for node in graph.nodes if node.target == "second")
    for node in list(graph.nodes):
        if node.op == "output":
            graph.erase_node(node)
    graph.output(middle)
    graph.eliminate_dead_code()
    x = float_input("gru")
    same(fx.GraphModule(traced, graph)(x), model.second(*model.first(x)))


def test_fx_names_a_subclass_whose_forward_it_cannot_see_through():
    class Scaled(rnnfast.GRU):
        def forward(self, input, hx=None):
            return super().forward(2 * input, hx)

    model = nn.Sequential(Scaled(4, 6))
    with pytest.raises(fx.proxy.TraceError, match="Scaled has a forward of its own"):
        fx.symbolic_trace(model)

    class Tracer(fx.Tracer):
        def is_leaf_module(self, module, name):
            return isinstance(module, Scaled) or super().is_leaf_module(module, name)

    x = float_input("gru")
    same(fx.GraphModule(model, Tracer().trace(model))(x), model(x))


@pytest.mark.parametrize("kind", LAYERS | CELLS)
def test_fx_has_nothing_to_trace_in_a_layer_by_itself(kind):
    with pytest.raises(fx.proxy.TraceError, match="trace a model that it is a part of"):
        fx.symbolic_trace(pair(kind, 4, 6)[0])


def test_fx_names_a_forward_that_was_replaced():
    model = nn.Sequential(rnnfast.GRU(4, 6))
    inner = model[0].forward
    model[0].forward = lambda x: inner(x)
    with pytest.raises(fx.proxy.TraceError, match="forward of its own"):
        fx.symbolic_trace(model)


def test_fx_quantization_leaves_a_layer_says_so_and_quantizes_the_rest():
    model, x = Chain(rnnfast.LSTM).eval(), float_input("lstm")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.warns(UserWarning, match="leaves rnnfast.LSTM as it is"):
            prepared = prepare_fx(model, get_default_qconfig_mapping(), (x,))
        prepared(x)
        quantized = convert_fx(prepared)
    assert type(quantized.first) is rnnfast.LSTM and "quantized" in type(quantized.head).__module__
    same(quantized(x), model(x), atol=0.1, rtol=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_script_equals_eager_with_and_without_a_state(kind):
    ours, theirs = pair(kind, 4, 6)
    scripted = torch.jit.script(ours)
    assert scripted.original_name == type(theirs).__name__
    if kind in LAYERS:  # a layer by itself has two forwards, for tensors and for packed rows, as torch's
        scripted = scripted.forward__0
    for batch in (3, 1):
        x = float_input(kind, batch=batch)
        out = ours(x)
        same(scripted(x), out)
        state = out[1] if kind in LAYERS else out
        same(scripted(x, state), ours(x, state))
        same(scripted(x, state), theirs(x, state))


class Padded(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.rnn = cls(4, 6, 2, batch_first=True, bidirectional=True)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        rows, _ = self.rnn(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
        return pad_packed_sequence(rows, batch_first=True)[0]


@pytest.mark.parametrize("cls", [rnnfast.LSTM, rnnfast.GRU, rnnfast.RNN])
def test_a_script_with_packed_rows_serves_any_batch(cls):
    model = Padded(cls)
    scripted = torch.jit.script(model)
    for lengths in ([3, 5, 2], [4, 4], [1, 2, 6, 3, 3]):
        x, n = draw(len(lengths), max(lengths), 4, dtype=torch.float32), torch.tensor(lengths)
        same(scripted(x, n), model(x, n))


class Mixed(nn.Module):
    """Layers, a cell and a deep transition, one of the layers twice."""

    def __init__(self):
        super().__init__()
        self.gru = rnnfast.GRU(4, 4, batch_first=True)
        self.again = self.gru
        self.deep = rnnfast.DeepTransitionRNN(4, 5)
        self.cell = rnnfast.LSTMCell(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, h = self.gru(x)
        y, h = self.again(y, h)
        y, h = self.deep(y)
        h, c = self.cell(h)
        return h + c


def test_a_scripted_model_is_saved_and_runs_where_rnnfast_is_not(tmp_path):
    model, x = Mixed(), draw(2, 5, 4, dtype=torch.float32)
    torch.jit.script(model).save(str(tmp_path / "model"))
    torch.save((x, model(x)), tmp_path / "pair")
    code = (
        "import sys, torch; sys.modules['rnnfast'] = None; x, y = torch.load(sys.argv[2]); "
        "torch.testing.assert_close(torch.jit.load(sys.argv[1])(x), y)"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, str(tmp_path / "model"), str(tmp_path / "pair")]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr


USES = {
    "call": lambda model, x: model(x),
    "train": lambda model, x: model.train(),
    "freeze": lambda model, x: rnnfast.freeze(model.eval()),
    "copy": lambda model, x: copy.deepcopy(model),
    "pickle": lambda model, x: pickle.dumps(model),
    "revert and convert": lambda model, x: rnnfast.convert(rnnfast.revert(model)),
}


@pytest.mark.filterwarnings("ignore:rnnfast.revert. left as it is. deep")
@pytest.mark.parametrize("use", USES)
def test_a_model_that_was_scripted_is_what_it_was(use):
    model, x = Mixed(), draw(2, 5, 4, dtype=torch.float32)
    expected, kinds, keys = model(x), [type(m) for m in model.modules()], list(model.state_dict())
    scripted = torch.jit.script(torch.jit.script(model) and model)
    assert list(model.state_dict()) == keys
    USES[use](model, x)
    assert [type(m) for m in model.modules()] == kinds
    assert model.gru is model.again
    same(model(x), expected)
    same(scripted(x), expected)


def test_packed_weights_go_with_train_after_a_script_too():
    model, x = nn.Sequential(rnnfast.GRU(4, 6)).eval(), draw(1, 2, 4, dtype=torch.float32)
    torch.jit.script(rnnfast.freeze(model))
    model.train()
    for p in model.parameters():
        p.data.zero_()  # which nobody counts
    with torch.no_grad():
        assert model.eval()(x)[0].eq(0).all()


def test_a_parametrization_after_a_script_is_kept():
    model, x = nn.Sequential(rnnfast.GRU(4, 6)), float_input("gru")
    expected = model(x)
    torch.jit.script(model)
    nn.utils.parametrizations.weight_norm(model[0], "weight_hh_l0")
    same(model(x), expected)
    assert isinstance(model[0], rnnfast.GRU) and nn.utils.parametrize.is_parametrized(model[0])


def test_a_script_trains_the_parameters_of_the_model():
    model, x = Mixed(), draw(2, 5, 4, dtype=torch.float32)
    gradients = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    torch.jit.script(model)(x).square().sum().backward()
    same([p.grad for p in model.parameters()], gradients)


def test_a_script_reads_a_subclass_with_a_forward_of_its_own():
    class Mean(rnnfast.GRU):
        def forward(self, input: torch.Tensor) -> torch.Tensor:
            return input.mean(0) @ self.weight_ih_l0.mT

    module, x = Mean(4, 6), float_input("gru")
    same(torch.jit.script(module)(x), module(x))


@pytest.mark.parametrize(
    "options", [{}, {"output_size": 2}, {"output_size": 2, "step_output": True}], ids=str
)
def test_a_script_of_a_deep_transition_equals_eager(options):
    module = rnnfast.DeepTransitionRNN(4, 6, **options)
    scripted = torch.jit.script(module)
    for shape in ((2, 5, 4), (3, 1, 4), (7, 4)):
        x, h0 = draw(*shape, dtype=torch.float32), draw(*shape[:-2], 6, dtype=torch.float32)
        same(scripted(x), module(x))
        same(scripted(x, h0), module(x, h0))


QUANTIZED = [kind for kind in KINDS if kind in ("lstm", "gru", "lstm_cell", "gru_cell", "rnn_tanh_cell")]


@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
@pytest.mark.parametrize("kind", QUANTIZED)
def test_quantize_dynamic_quantizes_a_class_that_is_named_as_torchs(kind, dtype):
    ours, theirs = (nn.Sequential(m).eval() for m in pair(kind, 4, 6))
    quantized = quantize_dynamic(ours, {type(ours[0])}, dtype)
    expected = quantize_dynamic(theirs, {type(theirs[0])}, dtype)
    assert type(quantized[0]) is type(expected[0]) and "quantized" in type(quantized[0]).__module__
    x = float_input(kind)
    same(quantized(x), expected(x), rtol=0, atol=0)
    assert type(ours[0]) is getattr(rnnfast, KINDS[kind][0])  # what was copied is what it was


@pytest.mark.parametrize("spec", [None, {nn.LSTM, nn.Linear}], ids=["default", "torch's class"])
def test_quantize_dynamic_that_skips_a_layer_says_so_and_revert_mends_it(spec):
    model, x = Chain(rnnfast.LSTM).eval(), float_input("lstm")
    with pytest.warns(UserWarning, match="leaves rnnfast.LSTM as it is.*rnnfast.revert"):
        quantized = quantize_dynamic(model, spec)
    assert type(quantized.first) is rnnfast.LSTM and "quantized" in type(quantized.head).__module__
    quantized = quantize_dynamic(rnnfast.revert(model), spec)
    assert "quantized" in type(quantized.first).__module__
    same(quantized(x), model(x), atol=0.1, rtol=0.1)


def test_prepare_says_that_it_skips_a_layer():
    model = Chain(rnnfast.LSTM).eval()
    model.qconfig = get_default_qconfig()
    warnings.filterwarnings("ignore", "Please use quant_min and quant_max")
    with pytest.warns(UserWarning, match="leaves rnnfast.LSTM as it is"):
        prepare(model)


@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu"])
def test_nothing_is_said_of_what_torch_does_not_quantize_either(kind):
    quantize_dynamic(nn.Sequential(pair(kind, 4, 6)[0]))


def test_a_qconfig_is_an_attribute_like_others():
    module = rnnfast.LSTM(4, 6)
    assert not hasattr(module, "qconfig")
    module.qconfig = torch.ao.quantization.default_dynamic_qconfig
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    for other in (module, copy.deepcopy(module), torch.load(buffer, weights_only=False)):
        assert other.qconfig.weight is module.qconfig.weight or other.qconfig.weight().dtype == torch.qint8
    del module.qconfig
    assert not hasattr(module, "qconfig")


def test_a_deep_transition_names_what_it_would_not_call():
    model = nn.Sequential(rnnfast.DeepTransitionRNN(4, 6, 2)).eval()
    quantized = quantize_dynamic(model, {nn.Linear})
    with pytest.raises(
        RuntimeError, match=r"rnn.0 and does not call it: expected torch.nn.Linear, got torch.ao"
    ):
        quantized(draw(2, 5, 4, dtype=torch.float32))


def test_hooks_and_tensors_are_those_of_torchs_module_in_a_quantized_one():
    calls, (ours, _) = [], pair("gru", 4, 6)
    ours.register_forward_hook(lambda *args: calls.append("called"))
    quantized = quantize_dynamic(nn.Sequential(ours).eval(), {rnnfast.GRU})
    quantized(float_input("gru"))
    assert calls == ["called"] and tensors(ours.state_dict())
