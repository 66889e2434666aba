"""`rnnfast.enable` beside torch's tools, other threads and other replacements; on and off again."""

import gc
import threading
import time

import onnx
import pytest
import torch
from enable_helpers import off, passed, taken  # noqa: F401 (a fixture)
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx

import rnnfast
from rnnfast import _C, _enable
from tests.helpers import draw, same


def nodes(graph_module):
    return [str(node.target) for node in graph_module.graph.nodes if node.op == "call_function"]


def graphs(kind):
    """What torch's tools make of a layer: the operators that each sees."""
    module = getattr(nn, kind)(4, 5)
    x = draw(3, 2, 4, dtype=torch.float32)
    weights = dict(module.named_parameters())

    def call(x):
        return module(x)[0]

    def functional(x, weights):
        return torch.func.functional_call(module, weights, (x,))[0]

    found = {
        "real": nodes(make_fx(call)(x)),
        "fake": nodes(make_fx(functional, tracing_mode="fake")(x, weights)),
        "pre-dispatch": nodes(make_fx(call, pre_dispatch=True)(x)),
    }
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            found[mode.__name__] = nodes(make_fx(call)(x))
    program = torch.export.export(nn.Sequential(module), (x,))
    found["export"] = nodes(program.graph_module)
    found["decomposed"] = nodes(program.run_decompositions().graph_module)
    found["left whole"] = nodes(program.run_decompositions({}).graph_module)
    with torch._dynamo.config.patch(allow_rnn=True), torch.no_grad():
        for name, aot in (("compile", False), ("aot", True)):
            torch._dynamo.reset()
            seen = []

            def backend(graph, _, seen=seen):
                seen.append(nodes(graph))
                return graph.forward

            if aot:
                backend = torch._dynamo.backends.common.aot_autograd(fw_compiler=backend)
            torch.compile(call, backend=backend)(x)
            found[name] = seen
    return found


@pytest.mark.filterwarnings("ignore")  # what torch's tools say of themselves
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_torchs_tools_see_the_same_operators(kind):
    expected = graphs(kind)
    with rnnfast.enabled():
        assert graphs(kind) == expected
    assert graphs(kind) == expected


def onnx_operators(module, x, path, dynamo):
    """The types of the nodes of a module's export in order, those of inner graphs after their own."""
    torch.onnx.export(module, (x,), str(path), external_data=False, verbose=False, dynamo=dynamo)

    def types(graph):
        for node in graph.node:
            yield node.op_type
            for attribute in node.attribute:
                yield from types(attribute.g)

    return list(types(onnx.load(path).graph))


@pytest.mark.filterwarnings("ignore")  # what torch's exporters say of themselves
@pytest.mark.parametrize("dynamo", [False, True], ids=["traced", "exported"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_an_export_to_onnx_has_the_same_nodes(kind, dynamo, tmp_path):
    module = getattr(nn, kind)(4, 5, num_layers=2, bidirectional=True).eval()
    x = draw(3, 2, 4, dtype=torch.float32)
    expected = onnx_operators(module, x, tmp_path / "model.onnx", dynamo)
    assert len(expected) > 1 and (dynamo or expected.count(kind) == 2)
    with rnnfast.enabled():
        assert onnx_operators(module, x, tmp_path / "model.onnx", dynamo) == expected
    # the values beside torch.jit's trace are by rnnfast; what it records is torch's operator
    assert taken() == (0 if dynamo else 1) and not passed()


def tables():
    """The dispatcher's table of each operator, as torch prints it."""
    return {name: torch._C._dispatch_dump_table(name) for name in _C.aten.operators()}


def python_kernels():
    return {op: (set(op.py_kernels), set(vars(op))) for op in _enable._overloads()}


def test_off_is_as_if_it_had_never_been_on():
    before, in_python = tables(), python_kernels()
    rnnfast.enable()
    rnnfast.enable()
    assert tables() != before
    rnnfast.disable()
    assert tables() == before and python_kernels() == in_python
    rnnfast.disable()
    assert not _C.aten.is_installed()


def test_the_last_of_blocks_that_overlap_ends_it():
    first, second = rnnfast.enabled(), rnnfast.enabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _C.aten.is_active()
    second.__exit__(None, None, None)
    assert not _C.aten.is_active() and not _C.aten.is_installed()


def test_a_block_does_not_end_what_enable_began():
    rnnfast.enable()
    with rnnfast.enabled():
        pass
    assert _C.aten.is_active()
    rnnfast.disable()
    with rnnfast.enabled():
        rnnfast.enable()
    assert _C.aten.is_active()


def test_an_error_ends_a_block_and_disable_holds_within_one():
    with pytest.raises(ValueError), rnnfast.enabled():
        raise ValueError
    assert not _C.aten.is_active()
    rnnfast.enable()
    with rnnfast.enabled():
        rnnfast.disable()
        assert not _C.aten.is_active()
    assert not _C.aten.is_active()


def test_a_graph_that_was_made_while_on_goes_backward_when_off():
    module, x = nn.LSTM(4, 6), draw(5, 3, 4, dtype=torch.float32)
    expected = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    with rnnfast.enabled():
        y = module(x)[0].square().sum()
    assert taken() == 1
    same(torch.autograd.grad(y, list(module.parameters())), expected)


def test_an_output_may_be_changed_in_place_before_backward():
    for kind in ("LSTM", "GRU", "RNN"):
        module, x = getattr(nn, kind)(4, 6), draw(5, 3, 4, dtype=torch.float32)
        expected = torch.autograd.grad((module(x)[0] + 1).square().sum(), list(module.parameters()))
        with rnnfast.enabled():
            y = module(x)[0]
        y += 1
        same(torch.autograd.grad(y.square().sum(), list(module.parameters())), expected)
    assert taken() == 3


def test_many_toggles_take_no_memory():
    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    module, x = nn.GRU(4, 6), draw(2, 1, 4, dtype=torch.float32)

    def toggle(n):
        for _ in range(n):
            rnnfast.enable()
            module(x)
            rnnfast.disable()

    toggle(500)
    before = resident()
    toggle(3000)
    assert resident() - before < 4 << 20


def test_threads_call_while_another_toggles():
    module, x = nn.GRU(4, 16), draw(3, 2, 4, dtype=torch.float32)
    expected = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    wrong, stop = [], threading.Event()
    rnnfast.enable()

    def call():
        while not stop.is_set():
            found = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
            try:
                same(found, expected)
            except AssertionError as error:
                wrong.append(error)

    threads = [threading.Thread(target=call) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        rnnfast.disable()
        rnnfast.enable()
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong
    for _ in range(200):  # a thread that was joined may not quite have ended
        rnnfast.disable()
        if not _C.aten.is_installed():
            return
        time.sleep(0.05)
    raise AssertionError("our kernels stay")


OTHERS = ["CPU", "CUDA", "Autograd", "AutogradCPU", "AutogradCUDA", "BackendSelect"]


@pytest.mark.parametrize("key", OTHERS)
def test_beside_another_replacement_there_is_one_sentence(key):
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("gru.input", lambda *args: None, key)
        with pytest.raises(
            RuntimeError, match=f"^rnnfast.enable: aten::gru.input has a kernel at {key} already"
        ):
            rnnfast.enable()
        assert not _C.aten.is_installed() and not _C.aten.is_active()
    rnnfast.enable()


@pytest.mark.filterwarnings("ignore:Warning only once for all operators")  # torch's, at a key of ours
@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("key", ["CPU", "AutogradCPU", "BackendSelect"])
def test_a_replacement_made_later_may_end_before_or_after_ours(key, first):
    module, x, before = nn.GRU(4, 6), draw(5, 3, 4, dtype=torch.float32), tables()
    ran = []

    def theirs(x, hx, *_):
        ran.append(key)
        return x.new_zeros(5, 3, 6), hx

    def call(grad):
        with grad():
            return module(x)[0]

    with torch.no_grad():
        expected = module(x)[0]
    rnnfast.enable()
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("gru.input", theirs, key)
        call(torch.enable_grad), call(torch.inference_mode)
        # of two at one key the later one is called; in front of a backend ours is
        assert len(ran) == (key != "CPU") and taken() == 2 - len(ran)
        if first == "ours":
            rnnfast.disable()
            ran.clear()
            call(torch.enable_grad), call(torch.inference_mode)
            assert ran == [key] * (2 if key == "CPU" else 1)
    if first == "theirs":
        same(call(torch.enable_grad), expected)
        rnnfast.disable()
    ran.clear()
    assert torch.equal(call(torch.enable_grad), expected) and torch.equal(
        call(torch.inference_mode), expected
    )
    assert not ran and tables() == before
