"""Modules on a GPU, emulated or real: training, captured graphs, the same bits each time."""

import episode_helpers as episodes
import pytest
import torch
from cuda_helpers import MARKS, ON_A_GPU, TOLERANCE, assert_a_graph_replays, on_a_gpu
from helpers import LAYERS, draw, packed, pair, same, tensors, total

import rnnfast
from rnnfast import info, ops
from rnnfast.testing import assert_close_to_oracle

pytest_plugins = ["cuda_helpers"]
pytestmark = MARKS


@pytest.fixture
def modules_emulated(emulated, monkeypatch):
    """Modules and functions run the emulated ops, autograd and all."""
    library = torch.library.Library("rnnfast", "IMPL")
    ran = []
    for name, op in emulated.items():

        def kernel(*arguments, name=name, op=op):
            ran.append(name)
            return op(*arguments)

        library.impl(name, kernel, "CPU", allow_override=True)
    for name in ("try_cell", "try_layers"):  # the ways around the op
        monkeypatch.setattr(ops, name, lambda *arguments: None)
    yield ran
    library._destroy()


@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_modules_train_on_the_emulated_gpu(modules_emulated, kind, form):
    results = []
    for dtype, module in zip(
        (torch.float32, torch.float32, torch.float64),
        [*pair(kind, 4, 9, 2, bidirectional=True), None],
        strict=True,
    ):
        module = module or pair(kind, 4, 9, 2, bidirectional=True)[1]
        module = module.to(dtype)
        x = packed(3, 5, 1, dtype=torch.float32) if form == "packed" else draw(5, 3, 4, dtype=torch.float32)
        x = x.to(dtype)
        leaf = x.data.requires_grad_() if form == "packed" else x.requires_grad_()
        output = module(x)
        gradients = torch.autograd.grad(total(output), [leaf, *module.parameters()])
        results.append([*tensors(output), *gradients])
    assert modules_emulated.count("recurrent") == modules_emulated.count("recurrent_backward") == 2
    assert_close_to_oracle(*results)


def test_a_deep_transition_module_trains_on_the_emulated_gpu(modules_emulated):
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        module = rnnfast.DeepTransitionRNN(3, 7, depth=3).to(dtype)
        x = draw(4, 5, 3).to(dtype).requires_grad_()
        output = module(x)
        results.append([*tensors(output), *torch.autograd.grad(total(output), [x, *module.parameters()])])
    assert modules_emulated == ["deep_transition", "deep_transition_backward"] * 2
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("what", ["lengths", "resets", "both"])
@pytest.mark.parametrize("kind", list(LAYERS))
def test_modules_whose_rows_end_and_begin_train_on_the_emulated_gpu(modules_emulated, kind, what):
    module = episodes.layer(kind, num_layers=2, bidirectional=what == "lengths")
    x, state = draw(5, 3, 4).requires_grad_(), episodes.states(module, 3)
    lengths = None if what == "resets" else torch.tensor([3, 0, 5])
    resets = anew = None
    if what != "lengths":
        resets, anew = draw(5, 3, 1).squeeze(2) > 0, episodes.states(module, 1, seed=70)
    inputs = [x, *state, *(anew or ()), *module.parameters()]
    actual = module(
        x,
        episodes.as_argument(state),
        lengths=lengths,
        resets=resets,
        reset_state=anew and episodes.as_argument(anew),
        return_all_states=True,
    )
    expected = episodes.by_loop(module, x, state, lengths, resets, anew)
    same(actual, expected)
    same(episodes.gradients(actual, inputs), episodes.gradients(expected, inputs))
    assert modules_emulated.count("recurrent") == modules_emulated.count("recurrent_backward") == 2


@on_a_gpu
@pytest.mark.parametrize("form", ["dense", "packed"])
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("kind", list(LAYERS))
def test_modules_train_on_the_gpu(kind, dtype, form):
    results = []
    ours, theirs = pair(kind, 5, 40, 2, bidirectional=True)
    for module, compute in (ours, dtype), (theirs, dtype), (theirs, torch.float64):
        module = module.to("cuda", dtype).to(compute)
        x = packed(7, 9, 2, features=5) if form == "packed" else draw(9, 3, 5)
        x = x.to(dtype).to("cuda", compute)
        leaf = x.data.requires_grad_() if form == "packed" else x.requires_grad_()
        output = module(x)
        weighted = [t * torch.linspace(-1, 2, t.numel()).to(t).view(t.shape) for t in tensors(output)]
        gradients = torch.autograd.grad(sum(t.sum() for t in weighted), [leaf, *module.parameters()])
        results.append([t.detach().cpu() for t in [*tensors(output), *gradients]])
    assert_close_to_oracle(*results)


# H, dtype, and the team of the kernel that takes it on a Hopper GPU; None: stepwise
CAPTURED = [
    (40, torch.float32, None),
    (40, torch.bfloat16, "block"),
    (256, torch.bfloat16, "cluster"),
    (200, torch.float16, "cluster"),
    (1024, torch.bfloat16, "grid"),
]


@on_a_gpu
@pytest.mark.parametrize("H, dtype, team", CAPTURED)
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_a_graph_captures_forward_and_backward_and_replays_bit_for_bit(cell, H, dtype, team):
    torch.manual_seed(0)
    module = getattr(rnnfast, cell)(8, H).to("cuda", dtype)
    x = torch.randn(6, 3, 8, device="cuda", dtype=dtype, requires_grad=True)

    def step():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    step()
    ran = info.last_run()["cuda"]
    assert ran["op"] == "recurrent_backward"
    if team is None:
        assert ran["kernel"] == "stepwise"
    elif torch.cuda.get_device_capability() >= (9, 0):
        assert (ran["kernel"], ran["team"]) == ("resident", team)
    assert_a_graph_replays(step, x)


@on_a_gpu
@pytest.mark.parametrize("H, dtype", [case[:2] for case in CAPTURED])
def test_a_graph_replays_with_other_lengths_and_resets(H, dtype):
    torch.manual_seed(0)
    module = rnnfast.LSTM(8, H).to("cuda", dtype)
    x = torch.randn(6, 3, 8, device="cuda", dtype=dtype, requires_grad=True)
    lengths = torch.tensor([6, 0, 2], device="cuda")
    resets = torch.rand(6, 3, device="cuda") < 0.3

    def step(lengths=lengths):
        y, _ = module(x, lengths=lengths, resets=resets)
        return y.detach(), *torch.autograd.grad(y.square().sum(), [x, *module.parameters()])

    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    lengths.copy_(torch.tensor([1, 5, 6]))
    resets.logical_not_()
    expected = step()
    on_the_cpu = step(lengths.cpu())
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(on_the_cpu, expected, strict=True))
    with (
        pytest.raises(RuntimeError, match="lengths is on cpu, expected cuda:0 while a CUDA graph"),
        torch.cuda.graph(torch.cuda.CUDAGraph()),
    ):
        step(torch.tensor([6, 0, 2]))


@on_a_gpu
@pytest.mark.parametrize(
    "cell, H, dtype", [("LSTM", 128, "bf16"), ("GRU", 512, "fp16"), ("LSTM", 1024, "bf16")]
)
def test_two_thousand_steps_give_the_same_bits_twenty_times(cell, H, dtype):
    torch.manual_seed(0)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[dtype]
    module = getattr(rnnfast, cell)(8, H).to("cuda", dtype)
    x = torch.randn(2000, 9, 8, device="cuda", dtype=dtype, requires_grad=True)

    def step():
        y, _ = module(x)
        return y.detach(), *torch.autograd.grad(y.float().square().sum(), [x, *module.parameters()])

    expected = step()
    for _ in range(20):
        # what the next outputs may lie in
        rubbish = [torch.full_like(t, float("nan")) for t in (*expected, *expected)]
        del rubbish
        assert all(torch.equal(a, b) for a, b in zip(step(), expected, strict=True))


@on_a_gpu
def test_a_hundred_thousand_steps_on_the_gpu():
    torch.manual_seed(0)
    module, x = rnnfast.LSTM(2, 4), torch.randn(100_000, 1, 2)
    with torch.no_grad():
        expected = module(x)
        found = module.cuda()(x.cuda())
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=ON_A_GPU)])
def test_what_cudnn_refuses_or_does_not_repeat(device):
    torch.manual_seed(0)
    module = rnnfast.LSTM(3, 5, 2, dropout=0.5).to(device, torch.float64)
    x = torch.randn(4, 2, 3, dtype=torch.float64).to(device).requires_grad_()
    leaves = [x, *module.parameters()]

    def dropped():
        torch.manual_seed(1)
        y = module(x)[0]
        return y.detach(), *torch.autograd.grad(y.square().sum(), leaves)

    dropped_y, *_ = once = dropped()
    assert all(torch.equal(a, b) for a, b in zip(once, dropped(), strict=True))
    module.eval()
    y = module(x)[0]
    assert not torch.equal(y, dropped_y)
    gradients = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
    twice = torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)
    oracle = torch.nn.LSTM(3, 5, 2).double()
    oracle.load_state_dict(module.state_dict())
    x_cpu = x.detach().cpu().requires_grad_()
    leaves = [x_cpu, *oracle.parameters()]
    expected = torch.autograd.grad(oracle(x_cpu)[0].square().sum(), leaves, create_graph=True)
    expected_twice = torch.autograd.grad(sum(g.square().sum() for g in expected), leaves)
    for a, b in zip([*gradients, *twice], [*expected, *expected_twice], strict=True):
        torch.testing.assert_close(a.detach().cpu(), b.detach())


@on_a_gpu
def test_mixed_devices_are_refused_on_the_gpu():
    with pytest.raises(RuntimeError, match="not at the same device"):
        rnnfast.LSTM(2, 4).cuda()(torch.randn(3, 1, 2))
