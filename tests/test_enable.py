"""`rnnfast.enable`: calls of torch's own operators, taken or passed on; on and off; values by torch alone."""

import gc
import io
import subprocess
import sys
import threading
import time

import enable_peer
import pytest
import torch
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import _C, _enable
from tests.helpers import ROOT, draw, same

# of the largest number in a result; torch rounds halves at every step, and so do we, but not alike
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(autouse=True)
def off():
    """Every test begins and ends with torch's own operators."""
    rnnfast.disable()
    rnnfast.info.reset_counts()
    yield
    rnnfast.disable()


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory):
    """Random layers by a process that has no rnnfast."""
    path = str(tmp_path_factory.mktemp("peer") / "values")
    program = [sys.executable, "-W", "ignore", str(ROOT / "tests/enable_peer.py"), path]
    found = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    return torch.load(path)


def taken(operator=None):
    counts = rnnfast.info.counts()
    names = counts if operator is None else [operator]
    return sum(counts.get(name, {}).get("taken", 0) for name in names)


def passed():
    return {
        why: n for reasons in rnnfast.info.counts().values() for why, n in reasons.items() if why != "taken"
    }


@pytest.mark.parametrize("on", [True, False], ids=["enabled", "disabled"])
def test_random_layers_give_what_torch_gives_in_a_process_without_rnnfast(by_torch, on):
    (rnnfast.enable if on else rnnfast.disable)()
    found = enable_peer.results(len(by_torch))
    for (name, ours), (of_torch, theirs) in zip(found, by_torch, strict=True):
        assert name == of_torch
        for a, b in zip(ours, theirs, strict=True):
            if on:
                limit = TOLERANCE[a.dtype] * max(1.0, b.abs().max().item() if b.numel() else 0.0)
                assert a.shape == b.shape and a.dtype == b.dtype and (a - b).abs().max() <= limit, name
            else:
                assert torch.equal(a, b), name
    if on:
        assert not passed(), passed()
        assert len(rnnfast.info.counts()) >= 10
    else:
        assert not rnnfast.info.counts()


CALLS = {
    "lstm": (lambda: nn.LSTM(4, 6, 2, bidirectional=True), draw(5, 3, 4, dtype=torch.float32)),
    "gru": (lambda: nn.GRU(4, 6, batch_first=True), draw(3, 5, 4, dtype=torch.float32)),
    "rnn": (lambda: nn.RNN(4, 6, nonlinearity="relu"), draw(5, 4, dtype=torch.float32)),
    "lstm cell": (lambda: nn.LSTMCell(4, 6), draw(3, 4, dtype=torch.float32)),
    "gru cell": (lambda: nn.GRUCell(4, 6, bias=False), draw(4, dtype=torch.float32)),
    "rnn cell": (lambda: nn.RNNCell(4, 6), draw(3, 4, dtype=torch.float32)),
}


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", CALLS)
def test_a_call_is_taken_with_and_without_a_graph(name, grad):
    make, x = CALLS[name]
    module = make()
    with grad():
        expected = module(x)
        with rnnfast.enabled():
            found = module(x)
    assert taken() == 1 and not passed()
    same(found, expected)


def test_a_subclass_a_function_and_a_module_made_before_are_taken():
    class Derived(nn.LSTM):
        def forward(self, x):
            return super().forward(x)[0]

    module, x = Derived(4, 6), draw(5, 3, 4, dtype=torch.float32)
    hx = (torch.zeros(1, 3, 6), torch.zeros(1, 3, 6))
    expected = module(x), torch.lstm(x, hx, module._flat_weights, True, 1, 0.0, False, False, False)
    with rnnfast.enabled():
        found = module(x), torch.lstm(x, hx, module._flat_weights, True, 1, 0.0, False, False, False)
    same(found, expected)
    assert taken("aten::lstm.input") == 2


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_scripts_and_traces_saved_and_loaded_are_taken():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.GRU(4, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.rnn(x)[0]

    model, x = Model(), draw(5, 3, 4, dtype=torch.float32)
    expected = model(x)
    for compiled in (torch.jit.script(model), torch.jit.trace(model, x)):
        buffer = io.BytesIO()
        torch.jit.save(compiled, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        before = taken()
        with rnnfast.enabled():
            same(compiled(x), expected)
            same(loaded(x), expected)
        assert taken("aten::gru.input") == before + 2


def test_what_is_not_taken_is_torchs_bit_for_bit():
    module, x = nn.LSTM(4, 6), draw(5, 3, 4, dtype=torch.float32)
    with torch.no_grad():
        expected = module(x)[0]
        with rnnfast.enabled():
            found = make_fx(lambda t: module(t)[0])(x)(x)
    assert torch.equal(found, expected)
    assert not taken()


OPTIONS = [{}, {"num_layers": 2, "bidirectional": True}, {"proj_size": 3}, {"batch_first": True}]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("given", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_under_autocast_results_and_gradients_have_torchs_dtypes_and_values(kind, given, dtype):
    layer = not kind.endswith("Cell")
    for options in OPTIONS if layer else [{}]:
        if "proj_size" in options and kind != "LSTM":
            continue
        module = getattr(nn, kind)(4, 6, **options, dtype=given)
        inputs = [draw(5, 3, 4, dtype=given) if layer else draw(3, 4, dtype=given)]
        if layer and not options.get("batch_first"):
            inputs.append(pack_sequence([draw(n, 4, dtype=given) for n in (4, 2, 2)]))
        for x in inputs:
            results = []
            for on in (False, True):
                (rnnfast.enable if on else rnnfast.disable)()
                with torch.autocast("cpu", dtype):
                    try:
                        out = enable_peer.floating(enable_peer.leaves(module(x)))
                    except RuntimeError as error:  # oneDNN has no LSTM of float16 on many machines
                        assert not on and "LSTM forward propagation primitive" in str(error)
                        continue
                loss = sum(t.double().square().sum() for t in out)
                results.append([*out, *torch.autograd.grad(loss, list(module.parameters()))])
            for ours, theirs in zip(results[-1], results[0], strict=True):
                assert ours.dtype == theirs.dtype
                limit = TOLERANCE[dtype if given == torch.float32 else given]
                assert (ours - theirs).abs().max() <= limit * max(1.0, theirs.abs().max().item()), options
    assert taken() and not passed()


@pytest.mark.filterwarnings("ignore:Complex modules are a new feature")
def test_numbers_without_a_kernel_are_torchs():
    module, x = nn.GRU(4, 6).to(torch.complex64), draw(5, 3, 4, dtype=torch.complex64)
    expected = module(x)[0]
    with rnnfast.enabled():
        assert torch.equal(module(x)[0], expected)
    assert passed() == {"a dtype without a kernel": 1}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the first forward-mode derivative of a process
def test_forward_mode_derivatives_are_torchs():
    module, x = nn.RNN(4, 6).double(), draw(5, 3, 4)
    module(x)

    def tangent():
        return torch.func.jvp(lambda t: module(t)[0], (x,), (draw(5, 3, 4, seed=2),))[1]

    expected = tangent()
    with rnnfast.enabled():
        same(tangent(), expected)
    assert not taken()


LSTM_OPTIONS = (True, 1, 0.0, False, False, False)  # biases, layers, dropout, train, both, batch_first


def _states(n=2):
    return [torch.zeros(1, 3, 6)] * n


WRONG = {
    "input size": lambda m: m(torch.zeros(5, 3, 3)),
    "no steps": lambda m: m(torch.zeros(0, 3, 4)),
    "state": lambda m: m(torch.zeros(5, 3, 4), (torch.zeros(1, 2, 6), torch.zeros(1, 3, 6))),
    "weights": lambda m: torch.lstm(torch.zeros(5, 3, 4), _states(), m._flat_weights[:3], *LSTM_OPTIONS),
    "one state": lambda m: torch.lstm(torch.zeros(5, 3, 4), _states(1), m._flat_weights, *LSTM_OPTIONS),
    "batch sizes": lambda m: torch.lstm(
        torch.zeros(5, 4), torch.tensor([1, 4]), _states(), m._flat_weights, *LSTM_OPTIONS[:-1]
    ),
    "a cell's input": lambda m: nn.GRUCell(4, 6)(torch.zeros(2, 3)),
    "a cell's state": lambda m: nn.LSTMCell(4, 6)(torch.zeros(2, 4), (torch.zeros(2, 5), torch.zeros(2, 6))),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_is_torchs_error(wrong):
    module, said = nn.LSTM(4, 6), []
    for on in (False, True):
        (rnnfast.enable if on else rnnfast.disable)()
        with pytest.raises((RuntimeError, ValueError)) as error:
            WRONG[wrong](module)
        said.append((error.type, str(error.value)))
    assert said[0] == said[1]
    assert not taken()


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


def tables():
    """The dispatcher's table of each operator, as torch prints it."""
    return {name: torch._C._dispatch_dump_table(name) for name in _C.aten.operators()}


def python_kernels():
    return {op: set(op.py_kernels) for op in _enable._overloads()}


def test_off_is_as_if_it_had_never_been_on():
    before, in_python = tables(), python_kernels()
    rnnfast.enable()
    rnnfast.enable()
    assert tables() != before
    rnnfast.disable()
    assert tables() == before and python_kernels() == in_python
    rnnfast.disable()
    assert not _C.aten.is_installed()


def test_blocks_may_end_out_of_order():
    first, second = rnnfast.enabled(), rnnfast.enabled()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert not _C.aten.is_active()
    second.__exit__(None, None, None)
    rnnfast.enable()
    with rnnfast.enabled():
        pass
    assert _C.aten.is_active()


def test_a_graph_that_was_made_while_on_goes_backward_when_off():
    module, x = nn.LSTM(4, 6), draw(5, 3, 4, dtype=torch.float32)
    expected = torch.autograd.grad(module(x)[0].square().sum(), list(module.parameters()))
    with rnnfast.enabled():
        y = module(x)[0].square().sum()
    assert taken() == 1
    same(torch.autograd.grad(y, list(module.parameters())), expected)


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
    toggle(2000)
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


def test_beside_another_replacement_there_is_one_sentence():
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("gru.input", lambda *args: None, "CPU")
        with pytest.raises(
            RuntimeError, match="^rnnfast.enable: aten::gru.input has a kernel at CPU already"
        ):
            rnnfast.enable()
        assert not _C.aten.is_installed() and not _C.aten.is_active()
    rnnfast.enable()


def test_a_region_passes_on_in_its_thread():
    module, x = nn.GRU(4, 6), draw(5, 3, 4, dtype=torch.float32)
    rnnfast.enable()
    with _enable.passing_on():
        module(x)
    assert not taken() and passed() == {"a region that passes on": 1}
    module(x)
    assert taken() == 1


def test_counts_and_a_line_of_the_description():
    rnnfast.enable()
    nn.GRU(4, 6)(draw(5, 3, 4, dtype=torch.float32))
    assert rnnfast.info.counts() == {"aten::gru.input": {"taken": 1}}
    assert (
        "enabled       yes (rnnfast.enable()); calls of torch's operators: 1 taken" in rnnfast.info.describe()
    )
    rnnfast.info.reset_counts()
    assert rnnfast.info.counts() == {}
    rnnfast.disable()
    assert "enabled       no (rnnfast.enable())" in rnnfast.info.describe()


def test_double_backward_and_packed_rows_in_training():
    module = nn.GRU(3, 4, 2, dropout=0.5).double()
    rows = pack_sequence([draw(n, 3) for n in (4, 2, 2)])
    results = []
    for on in (False, True):
        (rnnfast.enable if on else rnnfast.disable)()
        torch.manual_seed(2)
        y = module(rows)[0].data
        (g,) = torch.autograd.grad(y.square().sum(), module.weight_ih_l0, create_graph=True)
        results.append([y, g, *torch.autograd.grad(g.square().sum(), list(module.parameters()))])
    same(*results)
    assert taken("aten::gru.data") == 1 and not passed()
