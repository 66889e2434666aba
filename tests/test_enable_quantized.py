"""torch's quantized layers and cells while rnnfast is enabled: counted, and left as they are."""

import io

import pytest
import torch
from enable_helpers import off, passed, taken  # noqa: F401 (a fixture)
from enable_peer import leaves
from test_enable_tools import nodes
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import _C
from tests.helpers import draw

pytestmark = [
    pytest.mark.filterwarnings("ignore:(?s).*torch.ao.quantization is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:(?s).*torch.jit.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor"),
]
LAYERS = {"LSTM": "aten::quantized_lstm", "GRU": "aten::quantized_gru"}
CELLS = {
    "LSTMCell": ("quantized::quantized_lstm_cell_dynamic", {}),
    "GRUCell": ("quantized::quantized_gru_cell_dynamic", {}),
    "RNNCell": ("quantized::quantized_rnn_tanh_cell_dynamic", {}),
    "RNNCell, relu": ("quantized::quantized_rnn_relu_cell_dynamic", {"nonlinearity": "relu"}),
}
DTYPES = [torch.qint8, torch.float16]


def quantized(kind, dtype, **options):
    module = getattr(nn, kind)(4, 6, **options)
    return quantize_dynamic(nn.Sequential(module), {type(module)}, dtype)[0]


def equal(found, expected):
    pairs = list(zip(leaves(found), leaves(expected), strict=True))
    return bool(pairs) and all(torch.equal(a, b) for a, b in pairs)


def only(operator, calls=1):
    return rnnfast.info.counts() == {operator: {"a quantized operator": calls}}


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.inference_mode])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", LAYERS)
def test_a_quantized_layer_is_counted_and_gives_the_same_bits(kind, dtype, grad):
    module = quantized(kind, dtype, num_layers=2, bidirectional=True)
    x = draw(5, 3, 4, dtype=torch.float32)
    rows = pack_sequence([draw(n, 4, dtype=torch.float32) for n in (4, 2, 2)])
    for given, overload in (x, "input"), (rows, "data"):
        with grad():
            expected = module(given)
            rnnfast.info.reset_counts()
            with rnnfast.enabled():
                assert equal(module(given), expected)
        assert only(f"{LAYERS[kind]}.{overload}")
    assert "passed on (a quantized operator)" in rnnfast.info.describe()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CELLS)
def test_a_quantized_cell_is_counted_and_gives_the_same_bits(name, dtype):
    operator, options = CELLS[name]
    module, x = quantized(name.partition(",")[0], dtype, **options), draw(3, 4, dtype=torch.float32)
    expected = module(x)
    with rnnfast.enabled():
        assert equal(module(x), expected)
    assert only(operator)


def test_a_script_of_a_quantized_layer_is_counted_and_gives_the_same_bits():
    module, x, buffer = quantized("LSTM", torch.qint8), draw(5, 3, 4, dtype=torch.float32), io.BytesIO()
    torch.jit.save(torch.jit.script(nn.Sequential(module)), buffer)
    buffer.seek(0)
    script = torch.jit.load(buffer)
    expected = script(x)
    with rnnfast.enabled():
        assert equal(script(x), expected)
    assert only("aten::quantized_lstm.input")


def test_a_backward_that_quantized_layers_lack_is_torchs_warning():
    module, said = quantized("GRU", torch.qint8), []
    for on in (False, True):
        (rnnfast.enable if on else rnnfast.disable)()
        x = draw(5, 3, 4, dtype=torch.float32).requires_grad_()
        with pytest.warns(UserWarning, match="an autograd kernel was not registered") as warned:
            gradient = torch.autograd.grad(module(x)[0].sum(), x, allow_unused=True)
        said.append((gradient, [str(one.message) for one in warned]))
    assert said[0] == said[1] and said[0][0] == (None,)


@pytest.mark.filterwarnings("ignore:fbgemm_:UserWarning")
@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode])
def test_torchs_old_quantized_cells_are_counted_and_give_the_same_bits(grad):
    cell, x, h = nn.GRUCell(4, 6), draw(3, 4, dtype=torch.float32), draw(3, 6, dtype=torch.float32)
    matrices = []
    for w in (cell.weight_ih, cell.weight_hh):
        q, *offsets_scale_zero = torch.fbgemm_linear_quantize_weight(w.detach())
        matrices.append([q, torch.fbgemm_pack_quantized_matrix(q), *offsets_scale_zero])
    (q_ih, q_hh), *others = zip(*matrices, strict=True)
    weights = [q_ih, q_hh, cell.bias_ih, cell.bias_hh, *(one for pair in others for one in pair)]
    with grad():
        expected = torch.quantized_gru_cell(x, h, *weights)
        with rnnfast.enabled():
            assert torch.equal(torch.quantized_gru_cell(x, h, *weights), expected)
    assert only("aten::quantized_gru_cell")


@pytest.mark.parametrize("tracing", ["real", "pre-dispatch"])
@pytest.mark.parametrize("kind", LAYERS)
def test_make_fx_sees_a_quantized_layer_as_without(kind, tracing):
    module, x = quantized(kind, torch.qint8), draw(5, 3, 4, dtype=torch.float32)

    def seen():
        return nodes(make_fx(lambda t: module(t)[0], pre_dispatch=tracing == "pre-dispatch")(x))

    expected = seen()
    assert any("quantized" in name for name in expected)
    with rnnfast.enabled():
        assert seen() == expected


def test_export_says_of_a_quantized_layer_what_it_says_without():
    module, said = nn.Sequential(quantized("LSTM", torch.qint8)), []
    for on in (False, True):
        (rnnfast.enable if on else rnnfast.disable)()
        try:
            said.append(
                nodes(torch.export.export(module, (draw(5, 3, 4, dtype=torch.float32),)).graph_module)
            )
        except Exception as error:  # torch 2.13 exports none: the weights are of a class it cannot take apart
            said.append((type(error), str(error)))
    assert said[0] == said[1]


def test_every_quantized_recurrent_operator_of_torch_is_replaced():
    of_torch = {
        name
        for name in torch._C._dispatch_get_all_op_names()
        if "::quantized_" in name and any(cell in name for cell in ("lstm", "gru", "rnn"))
    }
    assert of_torch and of_torch == {name for name in _C.aten.operators() if "quantized" in name}
    rnnfast.enable()
    for name in of_torch:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "BackendSelect")
    assert not taken() and not passed()
