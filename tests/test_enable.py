"""`rnnfast.enable`: calls of torch's own operators, taken or passed on; on and off; values by torch alone."""

import io
import os
import subprocess
import sys

import enable_peer
import pytest
import torch
from enable_helpers import off, passed, taken  # noqa: F401 (a fixture)
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_sequence

import rnnfast
from rnnfast import _enable
from tests.helpers import ROOT, draw, same
from tests.test_conformance import INFOS, samples, twin

# of the largest number in a result; torch rounds halves at every step, and so do we, but not alike
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


@pytest.fixture(scope="module")
def by_torch(tmp_path_factory):
    """Random layers by a process that has no rnnfast."""
    path = str(tmp_path_factory.mktemp("peer") / "values")
    program = [sys.executable, "-W", "ignore", str(ROOT / "tests/enable_peer.py"), path]
    found = subprocess.run(program, capture_output=True, text=True, cwd=ROOT)
    assert found.returncode == 0, found.stderr
    return torch.load(path)


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


def test_counts_go_on_until_they_are_reset_and_leave_out_what_is_called_meanwhile():
    module, x = nn.LSTM(4, 6), draw(5, 3, 4, dtype=torch.float32)
    for _ in range(2):
        rnnfast.enable()
        module(x)
        rnnfast.disable()
        module(x)
    assert rnnfast.info.counts() == {"aten::lstm.input": {"taken": 2}}
    rnnfast.info.reset_counts()
    assert rnnfast.info.counts() == {}


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


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
def test_torchs_own_test_inputs_are_taken(info, dtype, training):
    calls = 0
    for ours, args, kwargs, sample in samples(info, dtype, training):
        module = twin(ours, sample)
        expected = module(*args, **kwargs)
        with rnnfast.enabled():
            found = module(*args, **kwargs)
        same(found, expected)
        calls += 1
    assert taken() == calls and not passed()


DISTRIBUTED = """
import os, sys, torch, rnnfast
from torch.nn.parallel import DistributedDataParallel
torch.distributed.init_process_group("gloo")
torch.manual_seed(0)
model = torch.nn.LSTM(4, 6)
wrapped = DistributedDataParallel(model)
losses = []
for step in range(3):
    torch.manual_seed(10 * step + torch.distributed.get_rank())
    loss = wrapped(torch.randn(5, 3, 4))[0].square().sum()
    wrapped.zero_grad()
    loss.backward()
    with torch.no_grad():
        for p in model.parameters():
            p -= 0.1 * p.grad
total = sum(p.double().sum() for p in model.parameters())
if torch.distributed.get_rank() == 0:
    print(f"{total.item():.5f}", rnnfast.info.counts())
torch.distributed.barrier()  # a process that is gone makes the other's connection fail
torch.distributed.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # now and then torch ends the process for a thread of its own that has not ended
"""


def test_two_processes_of_torchrun_train_alike(tmp_path):
    (tmp_path / "program.py").write_text(DISTRIBUTED)
    said = []
    launch = ["-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    for value in ("0", "1"):
        found = subprocess.run(
            [sys.executable, *launch, str(tmp_path / "program.py")],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "RNNFAST_ENABLE": value, "OMP_NUM_THREADS": "1"},
        )
        assert found.returncode == 0, found.stderr
        said.append(found.stdout.split(" ", 1))
    (plain, none), (on, counts) = said
    assert plain == on and none.strip() == "{}" and counts.strip() == "{'aten::lstm.input': {'taken': 3}}"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("asked", [True, False], ids=["autocast", "own"])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN", "LSTMCell", "GRUCell", "RNNCell"])
def test_without_a_graph_halves_and_autocast_go_straight_with_the_bits_of_the_op(kind, asked, dtype):
    layer = not kind.endswith("Cell")
    for options in OPTIONS if layer else [{}]:
        if "proj_size" in options:  # by the op
            continue
        given = torch.float32 if asked else dtype
        module = getattr(nn, kind)(4, 6, **options, dtype=given)
        x = draw(5, 3, 4, dtype=given) if layer else draw(3, 4, dtype=given)
        with rnnfast.enabled(), torch.autocast("cpu", dtype, enabled=asked):
            by_op = module(x)
            assert rnnfast.info.last_run()["op"] == "recurrent"
            for context in torch.no_grad, torch.inference_mode:
                with context():
                    straight = module(x)
                assert rnnfast.info.last_run()["op"] == "direct"
                same(straight, by_op, rtol=0, atol=0)
    assert taken() and not passed()


def test_autocast_keeps_what_it_cast_of_a_weight_until_its_region_ends():
    module, x = nn.GRU(4, 6), draw(5, 3, 4, dtype=torch.float32)
    with torch.no_grad(), rnnfast.enabled():
        with torch.autocast("cpu", torch.bfloat16):
            first = module(x)[0]
            module.weight_hh_l0.mul_(2)
            assert torch.equal(module(x)[0], first)
        with torch.autocast("cpu", torch.bfloat16):
            assert not torch.equal(module(x)[0], first)
