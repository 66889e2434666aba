"""`rnnfast.enable` on a GPU; and what can be shown of it without one: where our kernels stand, what torch's
tools see of fake CUDA tensors, and torch.nn's layers on the emulated kernels."""

import enable_peer
import pytest
import torch
from cuda_helpers import MARKS, on_a_gpu
from enable_helpers import off, passed, taken  # noqa: F401 (a fixture)
from enable_peer import floating, leaves
from test_cuda_modules import modules_emulated  # noqa: F401 (a fixture)
from test_enable import TOLERANCE
from test_enable_tools import nodes
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import _C
from tests.helpers import draw, packed

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS
KINDS = ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"]
DROPOUT, AUTOCAST = "dropout between layers on a GPU", "autocast of a layer on a GPU"
# torch has no fake kernel of its fused cells, and then tries a real one
NO_FUSED = ("attempted to run this operator with Meta tensors", "Torch not compiled with CUDA enabled")


def fake_cuda(*shape):
    return torch.empty(*shape, device="cuda")


def fake_call(kind, call):
    """What `call` makes of a layer or cell's operator and fake CUDA arguments, or torch's error."""
    gates = {"lstm": 4, "gru": 3}.get(kind.split("_")[0], 1)
    cell = kind.endswith("_cell")
    with FakeTensorMode():
        state = fake_cuda(3, 6) if cell else fake_cuda(1, 3, 6)
        weights = [
            fake_cuda(gates * 6, 4),
            fake_cuda(gates * 6, 6),
            fake_cuda(gates * 6),
            fake_cuda(gates * 6),
        ]
        x = fake_cuda(3, 4) if cell else fake_cuda(5, 3, 4)
        hx = [state, state] if kind.startswith("lstm") else state
        rest = weights if cell else [weights, True, 1, 0.0, False, False, False]
        try:
            return call(lambda x: leaves(getattr(torch, kind)(x, hx, *rest))[0], x)
        except (NotImplementedError, AssertionError) as error:
            assert any(why in str(error) for why in NO_FUSED)
            return str(error)


OPERATORS = [cell + form for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu") for form in ("", "_cell")]


fakes_alone = pytest.mark.skipif(
    torch.version.cuda is not None, reason="a torch with CUDA looks for a driver, for fake tensors too"
)


@fakes_alone
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", OPERATORS)
def test_tools_see_the_same_of_cuda_tensors_and_none_is_taken(kind, mode):
    def seen():
        with mode():
            traced = fake_call(kind, lambda f, x: nodes(make_fx(f)(x)))
            direct = fake_call(kind, lambda f, x: (f(x).shape, f(x).device, f(x).dtype))
        return traced, direct

    expected = seen()
    with rnnfast.enabled():
        assert seen() == expected
    # in inference mode a fake tensor's Python comes first, and takes the operator apart
    reached = set() if mode is torch.inference_mode else {"a mode, a transform or a trace"}
    assert not taken() and set(passed()) == reached
    assert seen() == expected


@fakes_alone
def test_a_gpu_without_kernels_is_a_reason_of_its_own():
    with FakeTensorMode():  # which is over when the layer is called
        x, h = fake_cuda(5, 3, 4), fake_cuda(1, 3, 6)
        weights = [fake_cuda(*w.shape) for w in nn.RNN(4, 6).parameters()]
    with rnnfast.enabled():
        y, _ = torch.rnn_tanh(x, h, weights, True, 1, 0.0, False, False, False)
    assert y.shape == (5, 3, 6) and y.device.type == "cuda"
    plain = "tensors that are not plain ones of one dtype and device, or of a size that does not fit"
    lacking = "a GPU, for which this build has no kernels"
    assert passed() == {plain if _C.build_info()["cuda"] else lacking: 1}


def test_our_kernels_stand_at_the_gpus_key_of_what_can_be_taken_and_no_longer():
    key = "AutogradCUDA"

    def replaced():
        return {
            name for name in _C.aten.operators() if torch._C._dispatch_has_kernel_for_dispatch_key(name, key)
        }

    assert not replaced()
    with rnnfast.enabled():
        assert replaced() >= {f"aten::{cell}.{form}" for cell in OPERATORS[::2] for form in ("input", "data")}
        assert replaced() >= {f"aten::{cell}" for cell in OPERATORS[1::2]}
    assert not replaced()


FORMS = [(kind, form) for kind in KINDS[:3] for form in ("dense", "batch first", "packed")]


@pytest.mark.parametrize("kind, form", [*FORMS, *((kind, "dense") for kind in KINDS[3:])])
def test_torchs_layers_train_on_the_emulated_gpu(modules_emulated, kind, form):  # noqa: F811
    cell = kind.endswith("Cell")
    options = {} if cell else {"num_layers": 2, "bidirectional": True, "batch_first": form == "batch first"}
    results = []
    for on in (True, False):
        torch.manual_seed(0)
        module = getattr(nn, kind)(4, 9, **options)
        x = packed(3, 5, 1, dtype=torch.float32) if form == "packed" else draw(5, 3, 4, dtype=torch.float32)
        x = x[0] if cell else x
        (rnnfast.enable if on else rnnfast.disable)()
        out = floating(leaves(module(x)))
        loss = sum(t.square().sum() for t in out)
        results.append([*out, *torch.autograd.grad(loss, list(module.parameters()))])
    layers = 1 if cell else 2
    assert modules_emulated.count("recurrent") == modules_emulated.count("recurrent_backward") == layers
    assert taken() == 1 and not passed()
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def near(ours, theirs, dtype):
    size = theirs.abs().max().item() if theirs.numel() else 0.0
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= TOLERANCE[dtype] * max(1.0, size)


@on_a_gpu
def test_random_layers_on_a_gpu_give_what_torch_gives():
    n = 150
    expected = enable_peer.results(n, "cuda")
    rnnfast.enable()
    found = enable_peer.results(n, "cuda")
    rnnfast.disable()
    for (name, ours), (of_torch, theirs) in zip(found, expected, strict=True):
        assert name == of_torch
        for a, b in zip(ours, theirs, strict=True):
            near(a, b, a.dtype)
    assert set(passed()) <= {DROPOUT} and len(rnnfast.info.counts()) >= 10
    assert taken() >= 0.9 * sum(sum(reasons.values()) for reasons in rnnfast.info.counts().values())


@on_a_gpu
def test_disabled_a_gpu_gives_torchs_bits_again():
    cases = list(enable_peer.cases(20))

    def outputs():
        found = []
        for _, module, x, *_ in cases:
            torch.manual_seed(5)
            with torch.no_grad():
                found += floating(leaves(module.to("cuda")(x.to("cuda"))))
        return found

    expected = outputs()
    with rnnfast.enabled():
        outputs()
    assert taken() > 10
    assert all(torch.equal(a, b) for a, b in zip(outputs(), expected, strict=True))


@on_a_gpu
@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", KINDS)
def test_calls_on_a_gpu_are_taken_with_and_without_a_graph(kind, grad):
    module = getattr(nn, kind)(4, 6, device="cuda")
    x = draw(*((3, 4) if kind.endswith("Cell") else (5, 3, 4)), dtype=torch.float32).cuda()
    with grad():
        expected = leaves(module(x))
        with rnnfast.enabled():
            found = leaves(module(x))
    assert taken() == 1 and not passed()
    for a, b in zip(found, expected, strict=True):
        near(a, b, a.dtype)


@on_a_gpu
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_dropout_on_a_gpu_is_torchs_bit_for_bit(kind):
    module = getattr(nn, kind)(4, 6, 2, dropout=0.5, device="cuda")
    x, results = draw(5, 3, 4, dtype=torch.float32).cuda(), []
    for on in (False, True):
        (rnnfast.enable if on else rnnfast.disable)()
        torch.manual_seed(3)
        results.append(leaves(module(x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    assert passed() == {DROPOUT: 1} and not taken()


@on_a_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_under_autocast_a_gpu_gives_torchs_dtypes_and_values(kind, dtype):
    module, cell = getattr(nn, kind)(4, 6, device="cuda"), kind.endswith("Cell")
    inputs = [draw(*((3, 4) if cell else (5, 3, 4)), dtype=torch.float32).cuda()]
    if not cell:
        inputs.append(pack_sequence([draw(n, 4, dtype=torch.float32) for n in (4, 2, 2)]).to("cuda"))
    for x in inputs:
        results = []
        for on in (False, True):
            (rnnfast.enable if on else rnnfast.disable)()
            with torch.autocast("cuda", dtype):
                results.append(floating(leaves(module(x))))
        for ours, theirs in zip(*results[::-1], strict=True):
            assert cell or torch.equal(ours, theirs)
            near(ours, theirs, dtype)
    assert (taken(), passed()) == ((1, {}) if cell else (0, {AUTOCAST: len(inputs)}))


@on_a_gpu
def test_weights_on_another_device_are_torchs_error():
    module, x, said = nn.LSTM(4, 6), draw(5, 3, 4, dtype=torch.float32).cuda(), []
    for on in (False, True):
        (rnnfast.enable if on else rnnfast.disable)()
        with pytest.raises(RuntimeError) as error:
            module(x)
        said.append((error.type, str(error.value)))
    assert said[0] == said[1] and not taken()


@on_a_gpu
def test_a_captured_graph_of_a_taken_layer_replays():
    module, x = nn.GRU(8, 40, device="cuda"), draw(6, 3, 8, dtype=torch.float32).cuda()
    rnnfast.enable()
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            expected = module(x)[0]
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = module(x)[0]
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(captured, expected) and taken() == 2 and not passed()
