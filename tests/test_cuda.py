"""The CUDA ops and kernels: on a GPU where there is one, and everywhere emulated by the host.

Emulated means: the same glue and the same kernel sources, compiled by the host's compiler against
tests/native/emulation, on CPU tensors. That proves indices, meeting points, lengths and tails, not the
hardware.
"""

import random
import subprocess

import device_check
import pytest
import torch
from helpers import (
    COMPILER,
    EMULATION,
    GPU,
    LAYERS,
    MODES,
    ROOT,
    compile_all,
    draw,
    packed,
    pair,
    tensors,
    total,
)
from torch.utils.cpp_extension import include_paths, library_paths

import rnnfast
from rnnfast import _C, info, ops
from rnnfast.testing import assert_close_to_oracle

FLAGS = ["-O1", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas"]
OF_OPS = [f"csrc/ops/{name}.cpp" for name in ("cuda_layer", "cuda_deep", "layer", "checks")]
SOURCES = ["tests/native/emulated_ops.cpp", *OF_OPS, "csrc/cuda/plan.cpp"]
OPS = ("recurrent", "recurrent_backward", "deep_transition", "deep_transition_backward")

# What torch says of its own LSTM, which runs here as the peer, and of an op that is replaced on purpose
pytestmark = [
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
    pytest.mark.filterwarnings("ignore:RNN module weights are not part of single contiguous chunk"),
    pytest.mark.filterwarnings("ignore:Warning only once for all operators"),
]

ON_A_GPU = [pytest.mark.gpu, pytest.mark.skipif(not GPU, reason="no GPU, or a build without CUDA kernels")]
DEVICES = ["emulated"] + [pytest.param("cuda", marks=ON_A_GPU)][:GPU]


def on_a_gpu(test):
    for mark in ON_A_GPU:
        test = mark(test)
    return test


GATES = {mode: facts["gates"] for mode, facts in MODES.items()}
PLAN = ("team", "blocks", "warps", "split", "held", "batches")
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 1e-2}


@pytest.fixture(scope="session")
def emulated(tmp_path_factory):
    """The ops of a GPU, emulated: name -> an op on CPU tensors."""
    folder = tmp_path_factory.mktemp("emulated")
    includes = [*EMULATION, *(f"-isystem{path}" for path in include_paths())]
    objects = compile_all([ROOT / source for source in SOURCES], folder, *FLAGS, *includes)
    objects += device_check.emulated_kernels(tmp_path_factory.getbasetemp())
    library = folder / "emulated.so"
    links = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
    linked = subprocess.run(
        [*COMPILER, "-shared", *objects, *links, "-o", str(library)], capture_output=True, text=True
    )
    assert linked.returncode == 0, linked.stderr[-6000:]
    torch.ops.load_library(str(library))
    return {name: getattr(torch.ops.rnnfast_emulated, name).default for name in OPS}


def emulated_run():
    """What info.last_run()["cuda"] is on a GPU, of the emulated one."""
    op, kernel, *rest = torch.ops.rnnfast_emulated.last_run()
    return {"op": op, "kernel": kernel} | dict(zip(PLAN, [rest[0], *rest[1]], strict=True))


@pytest.fixture(autouse=True)
def ieee():
    """float32 products are float32 products, unless a test says otherwise."""
    rnn, before = torch.backends.cudnn.rnn, torch.backends.cudnn.rnn.fp32_precision
    rnn.fp32_precision = "ieee"
    yield
    rnn.fp32_precision = before


@pytest.fixture(params=DEVICES)
def on_gpu(request):
    """op(name, *arguments) of CPU tensors on the GPU, real or emulated; the results come back to the CPU.

    set_kernel forces a kernel, set_device plans as for a smaller GPU, last_run says what ran.
    """

    def moved(value, device):
        if isinstance(value, (list, tuple)):
            return [moved(item, device) for item in value]
        # batch_sizes stay on the CPU, as torch keeps them
        return value.to(device) if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    if request.param == "emulated":
        emulated = request.getfixturevalue("emulated")

        def call(name, *arguments):
            return emulated[name](*arguments)

        call.emulated = True
        call.set_kernel = torch.ops.rnnfast_emulated.set_kernel
        call.set_device = torch.ops.rnnfast_emulated.set_device
        call.last_run = emulated_run
        yield call
        call.set_kernel("")
        call.set_device(0, 0)
        torch.ops.rnnfast_emulated.let_warps_fall_behind(False)
        assert not torch.ops.rnnfast_emulated.take_failure()
        return

    def call(name, *arguments):
        return moved(getattr(torch.ops.rnnfast, name).default(*moved(arguments, "cuda")), "cpu")

    call.emulated = False
    call.set_kernel = info.set_cuda_kernel
    call.set_device = info.set_cuda_device
    call.last_run = lambda: info.last_run()["cuda"]
    yield call


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


def assert_near(found, expected, dtype):
    """Within TOLERANCE of the largest number, sizes and dtypes the same."""
    assert [(t.shape, t.dtype) for t in found] == [(t.shape, t.dtype) for t in expected]
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        if a.numel():
            difference = (a.double() - b.double()).abs().max().item()
            assert difference <= TOLERANCE[dtype] * (1e-3 + b.double().abs().max().item()), i


def layer_case(seed):
    """Arguments of rnnfast::recurrent up to `save`: odd sizes around a tile, every cell, form and dtype."""
    rng = random.Random(seed)
    mode = list(GATES)[seed % 4]
    dtype = list(TOLERANCE)[seed // 4 % 4]
    T, B = rng.randint(1, 5), rng.choice([1, 2, 7, 8, 9, 17])
    inputs, H, D = rng.choice([0, 1, 3, 8]), rng.choice([1, 5, 7, 16, 17, 33]), rng.choice([1, 2])
    P = rng.choice([3, 18]) if mode == "lstm" and rng.random() < 0.4 else H
    form, bias = rng.choice(["time", "batch", "packed"]), rng.random() < 0.8

    def numbers(*shape):
        return draw(*shape, seed=rng.randrange(10**6)).mul(0.5).to(dtype)

    sizes = None
    if form == "packed":
        lengths = [T] + [rng.randint(1, T) for _ in range(B - 1)]
        sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
        x = numbers(sum(lengths), inputs)
    else:
        x = numbers(*((B, T) if form == "batch" else (T, B)), inputs)
    weights = []
    for d in range(2):
        rows = GATES[mode] * H
        one = [numbers(rows, inputs), numbers(rows, P)]
        one += [numbers(rows), numbers(rows)] if bias else [None, None]
        weights += [*one, numbers(P, H) if P != H else None] if d < D else [None] * 5
    c0 = numbers(D, B, H) if mode == "lstm" else None
    return [mode, x, numbers(D, B, P), c0, *weights, sizes, form == "batch"], dtype, rng, numbers


def saved_by_rows(arguments, y, gates, cells):
    """Gates [D, N, S, H] and cells [D, N, H] of what the CPU has saved in an order of its own."""
    (D, B, _), H = arguments[2].shape, arguments[5].size(0) // GATES[arguments[0]]
    N, S, blocks = y[..., 0].numel(), 1 if GATES[arguments[0]] == 1 else 4, (H + 15) // 16
    if gates.numel() == 0:
        gates = y.reshape(N, D, 1, H).transpose(0, 1)
    elif B == 1:
        gates = gates.view(D, blocks, N + 1, S, 16).permute(0, 2, 3, 1, 4).flatten(3)[:, :N]
    else:
        gates = gates.view(D, N + 1, S, blocks * 16)[:, :N]
    if B == 1:
        cells = cells.view(D, blocks, -1, 16).transpose(1, 2).flatten(2)
    else:
        cells = cells.view(D, -1, blocks * 16)
    return gates[..., :H], cells[..., :H]


@pytest.mark.parametrize("seed", range(64))
def test_a_layer_on_the_gpu_equals_the_cpu(on_gpu, seed):
    arguments, dtype, rng, numbers = layer_case(seed)
    on_gpu.set_kernel("stepwise" if seed % 3 else "")
    H = arguments[5].size(0) // GATES[arguments[0]]
    y, hn, cn, gates, cells = ops.recurrent(*arguments, True)
    found = on_gpu("recurrent", *arguments, True)
    assert_near(found[:3], (y, hn, cn), dtype)
    # what pads the rows is nobody's
    for a, b in zip(found[3:], saved_by_rows(arguments, y, gates, cells), strict=True):
        assert_near([a[..., :H].reshape(b.shape)], [b], dtype)
    assert [t.shape for t in on_gpu("recurrent", *arguments, False)[3:]] == [(0,), (0,)]

    def maybe(t):
        return numbers(*t.shape) if rng.random() < 0.8 else None

    dy, dhn, dcn = maybe(y), maybe(hn), maybe(cn) if arguments[3] is not None else None
    if dy is None and dhn is None and dcn is None:
        dy = numbers(*y.shape)
    needs = [rng.random() < 0.9 for _ in range(13)]
    given = [dy, dhn, dcn, *arguments, y]
    expected = ops.recurrent_backward(*given, gates, cells, needs)
    assert_near(on_gpu("recurrent_backward", *given, *found[3:], needs), expected, dtype)


@pytest.mark.parametrize("seed", range(32))
def test_infinity_spreads_on_the_gpu_as_on_the_cpu(on_gpu, seed):
    arguments, _, rng, _ = layer_case(seed)
    where = arguments[1 if arguments[1].numel() and seed % 2 else 2]  # x or h0
    where.view(-1, where.size(-1))[rng.randrange(where[..., 0].numel()), -1] = float("inf")
    on_gpu.set_kernel("stepwise" if seed % 3 else "")
    for found, expected in zip(
        on_gpu("recurrent", *arguments, False)[:3], ops.recurrent(*arguments, False)[:3], strict=True
    ):
        assert torch.equal(found.isfinite(), expected.isfinite())
        assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", GATES)
def test_tensor_cores_take_a_wide_layer_step_by_step(on_gpu, mode, dtype):
    """More rows than a block's tile and a sum longer than its warps take at once; float32 as TF32."""
    B, inputs, H = 35, 3, 275
    P = 19 if mode == "lstm" else H

    def numbers(*shape, scale=0.5):
        return draw(*shape, seed=sum(shape)).mul(scale).to(dtype)

    rows = GATES[mode] * H
    weights = [numbers(rows, inputs), numbers(rows, P, scale=0.05), numbers(rows), None]
    weights += [numbers(P, H, scale=0.05) if P != H else None, *[None] * 5]
    c0 = numbers(1, B, H) if mode == "lstm" else None
    arguments = [mode, numbers(2, B, inputs), numbers(1, B, P), c0, *weights, None, False]
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    on_gpu.set_kernel("stepwise")
    expected = ops.recurrent(*arguments, True)
    found = on_gpu("recurrent", *arguments, True)

    def near(found, expected):
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if b.numel():
                apart = (a.double() - b.double()).abs().max() / b.double().abs().max()
                assert apart <= {torch.bfloat16: 0.03, torch.float16: 4e-3, torch.float32: 2e-3}[dtype], i

    near(found[:3], expected[:3])
    if dtype == torch.float32:  # that it was TF32
        assert not torch.allclose(found[0], expected[0], rtol=1e-6, atol=1e-6)
    given, needs = [numbers(*expected[0].shape), numbers(1, B, P), c0, *arguments, expected[0]], [True] * 13
    padding = (0, -H % 16)
    saved = [
        torch.nn.functional.pad(t, padding) for t in saved_by_rows(arguments, expected[0], *expected[3:])
    ]
    near(
        on_gpu("recurrent_backward", *given, *saved, needs),
        ops.recurrent_backward(*given, *expected[3:], needs),
    )


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_the_products_of_a_tf32_layer_are_nearer_than_tf32(emulated, scale):
    """x W_ih^T as a product of bfloat16 pairs, where torch's own products may not be TF32."""
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    x, w_ih = draw(1, 40, 200).mul(scale).float(), draw(30, 200).div(scale).float()
    nothing = torch.zeros(30, 30)
    arguments = ["rnn_relu", x, torch.zeros(1, 40, 30), None, w_ih, nothing, *[None] * 8, None, False, False]
    exact = (x[0].double() @ w_ih.double().t()).relu()
    apart = (emulated["recurrent"](*arguments)[0][0] - exact).abs().max() / exact.max()
    assert 1e-7 < apart < 3e-5


def test_what_is_not_finite_stays_so_in_the_products_of_a_tf32_layer(emulated):
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    x, w_ih = torch.zeros(1, 3, 2), torch.full((4, 2), 1 / 3)
    x[0, 1, 0], x[0, 2, 0] = float("inf"), float("nan")
    arguments = ["rnn_relu", x, torch.zeros(1, 3, 4), None, w_ih, torch.zeros(4, 4), *[None] * 8]
    y = emulated["recurrent"](*arguments, None, False, False)[0][0]
    assert (y[0] == 0).all()
    assert (y[1] == float("inf")).all()
    assert y[2].isnan().all()


def resident_case(seed, H=None):
    """A layer that the resident kernel takes: of H units, or sizes around its tiles, warps and cluster."""
    rng = random.Random(seed)
    mode, dtype = list(GATES)[seed % 4], [torch.bfloat16, torch.float16, torch.float32][seed // 4 % 3]
    T, B = rng.randint(1, 5), rng.choice([1, 7, 8, 9, 17])
    inputs, D = rng.choice([1, 8]), rng.choice([1, 2])
    H = H or [1, 7, 16, 33, 64, 65, 100, 128, 129, 200, 256, 257, 400][seed % 13]

    def numbers(*shape, scale=0.5):
        return draw(*shape, seed=rng.randrange(10**6)).mul(scale).to(dtype)

    form, bias = rng.choice(["time", "batch", "packed"]), rng.random() < 0.8
    weights = []
    for d in range(2):
        rows, scale = GATES[mode] * H, 1 / max(4, H) ** 0.5
        one = [numbers(rows, inputs), numbers(rows, H, scale=scale)]
        one += [numbers(rows), numbers(rows)] if bias else [None, None]
        weights += [*one, None] if d < D else [None] * 5
    sizes = None
    if form == "packed":
        lengths = [T] + [rng.randint(1, T) for _ in range(B - 1)]
        sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)])
        x = numbers(sum(lengths), inputs)
    else:
        x = numbers(*((B, T) if form == "batch" else (T, B)), inputs)
    c0 = numbers(D, B, H) if mode == "lstm" else None
    return [mode, x, numbers(D, B, H), c0, *weights, sizes, form == "batch"], dtype, numbers


def assert_resident_equals_stepwise(on_gpu, seed, arguments, dtype, numbers, backward_on=None):
    """backward_on: the multiprocessors that it has there, where that is not as many as forward has."""
    # of h, rounded for the products
    tolerance = {torch.bfloat16: 0.03, torch.float16: 4e-3, torch.float32: 4e-3}[dtype]
    torch.backends.cudnn.rnn.fp32_precision = "tf32"

    def run(kernel, name, *given):
        on_gpu.set_kernel(kernel)
        return on_gpu(name, *given)

    def near(found, expected):
        assert all(a.dtype == b.dtype for a, b in zip(found, expected, strict=True))
        for a, b in zip(found, expected, strict=True):
            if b.numel():
                apart = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-2)
                assert apart <= tolerance

    H = arguments[5].size(1)
    expected = run("stepwise", "recurrent", *arguments, True)
    assert on_gpu.last_run()["kernel"] == "stepwise"
    found = run("resident", "recurrent", *arguments, True)
    ran = on_gpu.last_run()
    assert (ran["op"], ran["kernel"]) == ("recurrent", "resident")
    near([t[..., :H] for t in found], [t[..., :H] for t in expected])
    near(run("resident", "recurrent", *arguments, False)[:3], expected[:3])
    dy, dhn = numbers(*expected[0].shape), numbers(*expected[1].shape) if seed % 3 else None
    dcn = numbers(*expected[2].shape) if arguments[0] == "lstm" and seed % 5 else None
    given = [dy if seed % 7 or dhn is None else None, dhn, dcn, *arguments, expected[0], *expected[3:]]
    if backward_on:
        on_gpu.set_device(80, backward_on)
    near(
        run("resident", "recurrent_backward", *given, [True] * 13),
        run("stepwise", "recurrent_backward", *given, [True] * 13),
    )


@pytest.mark.parametrize("seed", range(78))
def test_the_resident_kernel_equals_the_stepwise_one(on_gpu, seed):
    on_gpu.set_device(*device_of(seed))
    assert_resident_equals_stepwise(on_gpu, seed, *resident_case(seed))


def plans_of(seed, **device):
    """Forward's and backward's, of a case on a device."""
    (mode, _, h0, *_), dtype, _ = resident_case(seed)
    B, H = h0.shape[1:]
    return [
        _C.cuda_plan(mode, dtype.itemsize, H, B, tf32=True, backward=backward, **device)
        for backward in (False, True)
    ]


def device_of(seed):
    """With and without clusters; large, or just large enough: a team then takes several times eight rows."""
    capability = [90, 80][seed // 13 % 2]
    for multiprocessors in range(1 if seed >= 26 else 132, 133):
        plans = plans_of(seed, capability=capability, multiprocessors=multiprocessors)
        if all(plan["tiles"] for plan in plans):
            break
    return capability, multiprocessors


def test_the_seeds_take_every_team_and_more_rows_than_one_tile_in_each():
    taken = set()
    for seed in range(78):
        capability, multiprocessors = device_of(seed)
        plans = plans_of(seed, capability=capability, multiprocessors=multiprocessors)
        taken |= {(plan["team"], plan["batches"] > 1, way) for way, plan in enumerate(plans)}
    expected = {("block", False), *((team, several) for team in ("cluster", "grid") for several in (0, 1))}
    assert taken == {(team, several, way) for team, several in expected for way in (0, 1)}


@pytest.mark.parametrize("capability", [90, 80])
def test_many_steps_in_which_warps_fall_behind(on_gpu, capability):
    """129 units in two blocks of 72: the last warp has none, and nobody waits for what it sends."""
    arguments, dtype, numbers = resident_case(0, 129)
    plan = _C.cuda_plan("lstm", 2, 129, 1, capability=capability)
    assert (plan["blocks"], plan["split"], plan["warps"]) == (2, 1, 9)
    arguments[1], arguments[-2:] = numbers(50, 1, arguments[4].size(1)), [None, False]
    arguments[2] = arguments[3] = numbers(arguments[2].size(0), 1, 129)
    on_gpu.set_device(capability, 132)
    if on_gpu.emulated:
        torch.ops.rnnfast_emulated.let_warps_fall_behind(True)
    assert_resident_equals_stepwise(on_gpu, 1, arguments, dtype, numbers)


# seeds 0 to 3 are bfloat16, 4 to 7 float16, 8 to 11 float32; modulo 4 an LSTM, a GRU, RNNs
@pytest.mark.parametrize("seed, H", [(0, 640), (1, 641), (2, 1024), (5, 520), (7, 768), (8, 400), (11, 700)])
def test_a_cluster_that_keeps_a_part_of_w_in_shared_memory(on_gpu, seed, H):
    arguments, dtype, numbers = resident_case(seed, H)
    mode, B = arguments[0], arguments[2].size(1)
    for backward in False, True:
        plan = _C.cuda_plan(mode, dtype.itemsize, H, B, tf32=True, backward=backward)
        assert plan["team"] == "cluster"
        assert plan["held"] > 0
    assert_resident_equals_stepwise(on_gpu, seed, arguments, dtype, numbers)


@pytest.mark.parametrize("seed, H", [*((seed, 400) for seed in (*range(9), 10, 11)), (5, 1030), (6, 1030)])
def test_the_fewest_blocks_that_hold_a_layer_equal_the_stepwise_kernel(on_gpu, seed, H):
    arguments, dtype, numbers = resident_case(seed, H)
    mode, B = arguments[0], arguments[2].size(1)
    fewest = []
    for backward in False, True:
        for multiprocessors in range(1, 132):  # without clusters
            device = dict(capability=80, multiprocessors=multiprocessors)
            plan = _C.cuda_plan(mode, dtype.itemsize, H, B, tf32=True, backward=backward, **device)
            if plan["tiles"]:
                break
        assert plan["team"] == "grid"
        assert plan["held"] > 0
        fewest.append(multiprocessors)
    forward_on, backward_on = fewest
    on_gpu.set_device(80, forward_on)
    try:
        assert_resident_equals_stepwise(on_gpu, seed, arguments, dtype, numbers, backward_on)
    except RuntimeError as error:
        if on_gpu.emulated or "is forced, but" not in str(error):
            raise
        pytest.skip("this GPU does not hold it")


def test_the_kernel_that_is_forced_runs_or_says_why_not(emulated):
    ops_of = torch.ops.rnnfast_emulated
    arguments, _, _ = resident_case(0)
    for name, expected in ("", "resident"), ("stepwise", "stepwise"), ("resident", "resident"):
        ops_of.set_kernel(name)
        emulated["recurrent"](*arguments, False)
        assert emulated_run()["kernel"] == expected
    arguments[1:13] = [t.float() if isinstance(t, torch.Tensor) else t for t in arguments[1:13]]
    with pytest.raises(
        RuntimeError, match="the resident CUDA kernel is forced, but it takes layers of bfloat16"
    ):
        emulated["recurrent"](*arguments, False)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    emulated["recurrent"](*arguments, False)
    assert emulated_run()["kernel"] == "resident"
    torch.backends.cudnn.rnn.fp32_precision = "ieee"
    ops_of.set_kernel("")
    emulated["recurrent"](*arguments, False)
    assert emulated_run()["kernel"] == "stepwise"
    with pytest.raises(RuntimeError, match="CUDA kernel 'grid' is unknown, expected stepwise or resident"):
        info.set_cuda_kernel("grid")


@pytest.mark.parametrize("kernel", ["stepwise", "resident"])
@pytest.mark.parametrize("seed", range(13))
def test_input_products_in_chunks_change_nothing(emulated, kernel, seed):
    ops_of = torch.ops.rnnfast_emulated
    arguments, _, _ = resident_case(seed)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"
    ops_of.set_kernel(kernel)
    expected = emulated["recurrent"](*arguments, True)
    ops_of.set_chunk_bytes(
        2 * 4 * arguments[4].size(0) * arguments[2].size(1)
    )  # two steps of the whole batch
    found = emulated["recurrent"](*arguments, True)
    ops_of.set_chunk_bytes(64 << 20)
    ops_of.set_kernel("")
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_a_deep_transition_in_chunks_changes_nothing(emulated, steps):
    ops_of = torch.ops.rnnfast_emulated
    weights = [draw(5, 7).mul(0.3), draw(4, 5).mul(0.3)]
    arguments = [draw(3, 5, 3), draw(3, 4), weights, [], 0.1, True]
    expected = emulated["deep_transition"](*arguments)
    ops_of.set_chunk_bytes(steps * 8 * 5 * 3)
    found = emulated["deep_transition"](*arguments)
    ops_of.set_chunk_bytes(64 << 20)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


def test_a_graph_of_a_packed_sequence_takes_what_it_can_replay(emulated):
    ops_of = torch.ops.rnnfast_emulated
    cases = (arguments for arguments, dtype, _ in map(resident_case, range(78)) if dtype == torch.float32)
    case = next(c for c in cases if c[-2] is not None and len(c[-2]) > 1 and c[5].size(1) >= 64)
    torch.backends.cudnn.rnn.fp32_precision = "tf32"  # so that one can tell the two apart
    ops_of.set_kernel("resident")  # as long as choose_plan is asked
    expected = emulated["recurrent"](*case, False)[0]
    ops_of.set_capturing(True)
    found = emulated["recurrent"](*case, False)[0]
    ops_of.set_capturing(False)
    ops_of.set_kernel("stepwise")
    stepwise = emulated["recurrent"](*case, False)[0]
    ops_of.set_kernel("")
    assert torch.equal(found, stepwise)
    assert not torch.equal(found, expected)


@pytest.mark.parametrize("capability, H, team", [(90, 40, "block"), (90, 130, "cluster"), (80, 130, "grid")])
def test_a_graph_of_equal_lengths_takes_the_resident_kernel(emulated, capability, H, team):
    ops_of = torch.ops.rnnfast_emulated
    ops_of.set_device(capability, 132)
    arguments, _, numbers = resident_case(0, H)
    arguments[1], arguments[-2:] = numbers(2, 1, arguments[4].size(1)), [None, False]
    arguments[2:4] = [state[:, :1] for state in arguments[2:4]]
    expected = emulated["recurrent"](*arguments, False)[0]
    ops_of.set_capturing(True)
    found = emulated["recurrent"](*arguments, False)[0]
    ops_of.set_capturing(False)
    ops_of.set_device(0, 0)
    assert (emulated_run()["kernel"], emulated_run()["team"]) == ("resident", team)
    assert torch.equal(found, expected)


@pytest.fixture
def losing(emulated):
    """lose(each, block): every so many-th store to another block never arrives, or none of a block's."""
    ops_of = torch.ops.rnnfast_emulated
    yield ops_of.lose
    ops_of.lose(0, -1)
    ops_of.set_kernel("")
    ops_of.set_device(0, 0)
    ops_of.take_failure()


LOSSES = {"some_words": (100, -1), "all_words": (1, -1), "a_block": (0, 1)}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("capability", [90, 80], ids=["cluster", "grid"])
@pytest.mark.parametrize("mode", GATES)
def test_who_waits_in_vain_gives_up_with_nan_and_the_next_call_says_so(
    emulated, losing, mode, capability, loss
):
    ops_of, T, B = torch.ops.rnnfast_emulated, 6, 9
    H = 257 if GATES[mode] == 1 else 130  # of several blocks, and of no more than needed
    rows = GATES[mode] * H
    weights = [draw(rows, 3), draw(rows, H).mul(0.03), None, None, None, *[None] * 5]
    c0 = draw(1, B, H) if mode == "lstm" else None
    arguments = [mode, draw(T, B, 3), draw(1, B, H), c0, *weights, None, False]
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in arguments]
    ops_of.set_device(capability, 132)
    expected = emulated["recurrent"](*arguments, True)
    assert emulated_run()["team"] == {90: "cluster", 80: "grid"}[capability]
    assert emulated_run()["blocks"] > 1
    given = [expected[0], None, None, *arguments, expected[0], *expected[3:], [True] * 13]
    gradients = emulated["recurrent_backward"](*given)

    losing(*LOSSES[loss])
    y, hn, cn, *_ = emulated["recurrent"](*arguments, True)
    assert torch.equal(y[0], expected[0][0])  # for which nobody waits
    assert y[-1].isnan().any()
    assert hn.isnan().any()
    if loss == "all_words":
        assert y[1:].isnan().all()
        assert cn.isnan().all()
    losing(0, -1)
    with pytest.raises(RuntimeError, match="waited in vain for blocks that never ran; its output is NaN"):
        emulated["recurrent"](*arguments, True)
    for a, b in zip(emulated["recurrent"](*arguments, True), expected, strict=True):
        assert torch.equal(a, b)

    losing(*LOSSES[loss])
    dh0 = emulated["recurrent_backward"](*given)[1]
    assert dh0.isnan().all() if loss == "all_words" else dh0.isnan().any()
    losing(0, -1)
    assert ops_of.take_failure()  # who asks is told, and the next call is not
    assert not ops_of.take_failure()
    for a, b in zip(emulated["recurrent_backward"](*given), gradients, strict=True):
        assert torch.equal(a, b)


def test_a_lost_row_that_has_not_begun_is_nan_too(emulated, losing):
    """Of a PackedSequence in reverse: rows that wait for their begin pass on h0 as it came."""
    ops_of, H, lengths = torch.ops.rnnfast_emulated, 257, [7, 7, 3]
    weights = [draw(H, 2), draw(H, H).mul(0.03), None, None, None]
    sizes = torch.tensor([sum(length > t for length in lengths) for t in range(7)])
    arguments = ["rnn_tanh", draw(sum(lengths), 2), draw(2, 3, H), None, *weights, *weights, sizes, False]
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) and t is not sizes else t for t in arguments]
    losing(1, -1)
    y = emulated["recurrent"](*arguments, False)[0]
    assert emulated_run()["team"] == "cluster"
    assert y[:6, H:].isnan().all()  # the reverse direction's last steps, and with them the third row's
    assert ops_of.take_failure()


def test_a_mbarrier_of_a_lost_block_counts_on_for_many_steps(emulated, losing):
    """What others go on sending would overflow its count of bytes, which the emulation does not let pass."""
    T, H = 540, 257
    weights = [draw(H, 1), draw(H, H).mul(0.03), None, None, None, *[None] * 5]
    arguments = ["rnn_tanh", draw(T, 1, 1), draw(1, 1, H), None, *weights, None, False]
    arguments = [t.bfloat16() if isinstance(t, torch.Tensor) else t for t in arguments]
    losing(0, 1)
    y = emulated["recurrent"](*arguments, False)[0]
    assert (T - 4) / 2 * 8 * H * 2 > 1 << 20  # bytes of 8 rows, in one of two buffers
    assert y[-1].isnan().any()
    assert torch.ops.rnnfast_emulated.take_failure()


def test_a_device_is_planned_for_as_a_smaller_one_and_never_as_a_larger(emulated):
    ops_of = torch.ops.rnnfast_emulated
    arguments, _, _ = resident_case(0, 130)
    for device, team in ((0, 0), "cluster"), ((90, 100, 7), "cluster"), ((80, 100), "grid"):
        ops_of.set_device(*device)
        emulated["recurrent"](*arguments, False)
        assert emulated_run()["team"] == team
    for device, said in (
        ((100, 132), "100 is asked for as the compute capability .*, this GPU has 90"),
        ((90, 133), "133 is asked for as the multiprocessors, this GPU has 132"),
    ):
        ops_of.set_device(*device)
        with pytest.raises(RuntimeError, match=said):
            emulated["recurrent"](*arguments, False)
    ops_of.set_device(0, 0)


def assert_plan_holds(arguments, found):
    team, blocks, warps, split, held, batches = (found[name] for name in PLAN)
    H, B, backward = arguments["H"], arguments.get("B", 1), arguments.get("backward", False)
    gates = GATES[arguments["mode"]]
    # every unit has its warps, and a sum is as long as h, or backward dL/d(pre-activations)
    units = 16 if backward or gates == 1 else 8
    tile = 32 // arguments["bytes"]
    assert blocks * (warps // split) * units >= H
    registers = -(-gates * found["tiles"] // 2) if backward else found["tiles"]
    assert (registers + held) * tile * split >= H * (gates if backward else 1)
    assert warps % split == 0
    assert found["bytes"] <= 232448
    multiprocessors, teams = arguments.get("multiprocessors", 132), -(-B // (8 * batches))
    if team == "block":
        assert (blocks, held, batches) == (1, 0, 1)
        assert warps <= 16
    else:
        assert warps <= 12
    if team == "cluster":
        assert 2 <= blocks <= min(16, multiprocessors)
    if team == "grid":  # all blocks run at once, and all rows have a team
        assert teams * blocks <= multiprocessors


@pytest.mark.parametrize(
    "arguments, plan",
    [
        # team, blocks, warps, split, held, batches
        (dict(mode="lstm", bytes=2, H=128), ("block", 1, 16, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=128, capability=80), ("block", 1, 16, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=128, backward=True), ("block", 1, 16, 2, 0, 1)),
        (dict(mode="rnn_relu", bytes=2, H=64), ("block", 1, 4, 1, 0, 1)),
        (dict(mode="rnn_relu", bytes=2, H=64, backward=True), ("block", 1, 8, 2, 0, 1)),
        (dict(mode="lstm", bytes=4, H=64, tf32=True), ("block", 1, 8, 1, 0, 1)),
        # what one block would hold; 129 units in two blocks, as many sums as 11 instructions take
        (dict(mode="lstm", bytes=4, H=65, tf32=True), ("cluster", 2, 5, 1, 0, 1)),
        (dict(mode="rnn_tanh", bytes=2, H=129), ("cluster", 2, 5, 1, 0, 1)),
        (dict(mode="rnn_tanh", bytes=2, H=129, capability=80), ("grid", 1, 9, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=129), ("cluster", 2, 9, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=129, capability=80), ("grid", 2, 9, 1, 0, 1)),
        (dict(mode="gru", bytes=2, H=256), ("cluster", 6, 12, 2, 0, 1)),
        (dict(mode="rnn_tanh", bytes=2, H=256), ("cluster", 3, 12, 2, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=64), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=256), ("cluster", 16, 12, 3, 0, 4)),
        (dict(mode="lstm", bytes=2, H=512, backward=True), ("cluster", 16, 12, 6, 0, 1)),
        # more rows than all clusters take at once: some wait
        (dict(mode="lstm", bytes=2, H=512, B=512, backward=True), ("cluster", 16, 12, 6, 0, 2)),
        # a part of W in shared memory
        (dict(mode="lstm", bytes=2, H=640), ("cluster", 14, 12, 2, 9, 1)),
        (dict(mode="lstm", bytes=2, H=640, backward=True), ("cluster", 14, 12, 4, 18, 1)),
        (dict(mode="lstm", bytes=2, H=768), ("cluster", 16, 12, 2, 13, 1)),
        (dict(mode="lstm", bytes=2, H=769), ("grid", 49, 10, 5, 0, 1)),
        (dict(mode="lstm", bytes=4, H=512, tf32=True), ("cluster", 16, 12, 3, 11, 1)),
        (dict(mode="gru", bytes=4, H=512, tf32=True, backward=True), ("cluster", 16, 12, 6, 16, 1)),
        # a slice of a device that has no such clusters
        (dict(mode="lstm", bytes=2, H=512, multiprocessors=16), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, multiprocessors=14), ("cluster", 11, 12, 2, 5, 1)),
        (dict(mode="lstm", bytes=2, H=512, multiprocessors=4), None),
        # seven clusters of 16 at once, where there would be eight: another team where eight are needed
        (dict(mode="lstm", bytes=2, H=512, B=56, clusters_of_16=7), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=64, clusters_of_16=8), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=64, clusters_of_16=7), ("cluster", 11, 12, 2, 5, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=256, clusters_of_16=7), ("cluster", 16, 12, 3, 0, 5)),
        (
            dict(mode="lstm", bytes=2, H=512, backward=True, B=64, clusters_of_16=7),
            ("cluster", 11, 12, 4, 10, 1),
        ),
        (dict(mode="lstm", bytes=2, H=768, B=64, clusters_of_16=7), ("cluster", 16, 12, 2, 13, 2)),
        (dict(mode="lstm", bytes=2, H=768, clusters_of_16=0), ("grid", 48, 10, 5, 0, 1)),
        (dict(mode="lstm", bytes=2, H=1024), ("grid", 64, 12, 6, 0, 1)),
        (dict(mode="lstm", bytes=2, H=1024, B=64), ("grid", 32, 12, 3, 11, 2)),
        (dict(mode="lstm", bytes=2, H=1024, B=32, backward=True), ("grid", 32, 12, 6, 22, 1)),
        (dict(mode="lstm", bytes=2, H=1024, B=64, backward=True), None),  # more than shared memory holds
        (dict(mode="lstm", bytes=2, H=2048, B=16), ("grid", 128, 12, 6, 11, 2)),
        (dict(mode="lstm", bytes=2, H=2049, B=8), ("grid", 129, 12, 6, 11, 1)),
        (dict(mode="lstm", bytes=2, H=2048, B=17), None),
        (dict(mode="lstm", bytes=2, H=2305), None),
        (dict(mode="lstm", bytes=2, H=1536, B=8, backward=True), ("grid", 96, 12, 12, 10, 1)),
        (dict(mode="lstm", bytes=2, H=2048, B=8, backward=True), None),
        (dict(mode="gru", bytes=2, H=2048, B=8, backward=True), ("grid", 128, 12, 12, 16, 1)),
        (dict(mode="lstm", bytes=4, H=1024, B=8, tf32=True), ("grid", 128, 12, 12, 0, 1)),
        (dict(mode="lstm", bytes=4, H=768, B=16, tf32=True, backward=True), ("grid", 48, 12, 12, 10, 1)),
        (dict(mode="lstm", bytes=4, H=1024, tf32=True, backward=True), None),
        (dict(mode="lstm", bytes=4, H=1537, tf32=True), None),
        (dict(mode="lstm", bytes=4, H=64), None),
        (dict(mode="lstm", bytes=8, H=64, tf32=True), None),
        (dict(mode="gru", bytes=2, H=20, capability=75), None),
        (dict(mode="lstm", bytes=2, H=64, projected=True), None),
    ],
)
def test_the_plan_of_a_layer_on_a_gpu(arguments, plan):
    found = _C.cuda_plan(**arguments)
    assert found["kernel"] == ("resident" if plan else "stepwise")
    if not plan:
        assert found["tiles"] == 0
        return
    assert tuple(found[name] for name in PLAN) == plan
    assert_plan_holds(arguments, found)


def test_a_plan_has_room_for_any_layer_or_takes_a_launch_a_step():
    rng = random.Random(0)
    for _ in range(3000):
        mode, H, B = rng.choice(list(GATES)), rng.randint(1, 2500), rng.choice([1, 8, 9, 64, 300])
        arguments = dict(
            mode=mode, bytes=rng.choice([2, 4]), H=H, tf32=True, B=B, backward=rng.random() < 0.5
        )
        arguments.update(capability=rng.choice([80, 90]), multiprocessors=rng.randint(1, 140))
        found = _C.cuda_plan(**arguments)
        if found["tiles"]:
            assert_plan_holds(arguments, found)


@pytest.mark.parametrize("seed", range(32))
def test_a_deep_transition_on_the_gpu_equals_the_cpu(on_gpu, seed):
    rng = random.Random(seed)
    dtype = list(TOLERANCE)[seed % 4]
    B, T, depth = rng.choice([1, 3, 8, 9]), rng.randint(1, 4), rng.randint(1, 4)
    inputs, H = rng.choice([1, 5]), rng.choice([1, 7, 17])

    def numbers(*shape):
        return draw(*shape, seed=rng.randrange(10**6)).mul(0.5).to(dtype)

    widths = [inputs + H, *(rng.choice([3, 18]) for _ in range(depth - 1)), H]
    weights = [numbers(n, m) for m, n in zip(widths, widths[1:], strict=False)]
    biases = [numbers(n) for n in widths[1:]] if rng.random() < 0.7 else []
    arguments = [numbers(B, T, inputs), numbers(B, H), weights, biases, 0.1]
    y, hn, acts = ops.deep_transition(*arguments, True)
    found = on_gpu("deep_transition", *arguments, True)
    assert_near(found[:2], (y, hn), dtype)
    assert_near(on_gpu("deep_transition", *arguments, False)[:2], (y, hn), dtype)
    dy = numbers(*y.shape) if rng.random() < 0.8 else None
    dhn = numbers(*hn.shape) if dy is None or rng.random() < 0.7 else None
    given = [dy, dhn, *arguments, y]
    expected = ops.deep_transition_backward(*given, acts, True, True)
    found = on_gpu("deep_transition_backward", *given, found[2], True, True)
    assert_near(tensors(found), tensors(expected), dtype)


def test_a_deep_transition_is_tf32_where_products_are(on_gpu):
    weights = [draw(n, m).mul(0.05).float() for n, m in ((300, 7 + 70), (70, 300))]
    arguments = [draw(9, 3, 7).float(), draw(9, 70).float(), weights, [], 0.1]
    y, hn, acts = ops.deep_transition(*arguments, True)
    before, given = torch.backends.cuda.matmul.fp32_precision, [draw(*y.shape).float(), None, *arguments, y]
    expected = tensors(ops.deep_transition_backward(*given, acts, True, True))
    apart = {}
    for precision in "ieee", "tf32":
        torch.backends.cuda.matmul.fp32_precision = precision
        found = on_gpu("deep_transition", *arguments, True)
        gradients = tensors(on_gpu("deep_transition_backward", *given, acts, True, True))
        pairs = zip([*found[:2], *gradients], [y, hn, *expected], strict=True)
        apart[precision] = [((a - b).abs().max() / b.abs().max()).item() for a, b in pairs]
    torch.backends.cuda.matmul.fp32_precision = before
    assert max(apart["ieee"]) < 2e-6
    assert 1e-5 < min(apart["tf32"]) and max(apart["tf32"]) < 2e-3


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


def test_an_empty_batch_needs_no_kernel(on_gpu):
    weights = [draw(12, 2), draw(12, 3), None, None, None, *[None] * 5]
    arguments = ["lstm", draw(4, 0, 2), draw(1, 0, 3), draw(1, 0, 3), *weights, None, False]
    outputs = on_gpu("recurrent", *arguments, True)
    assert [t.shape for t in outputs[:3]] == [(4, 0, 3), (1, 0, 3), (1, 0, 3)]
    y, _, _, gates, cells = outputs
    gradients = on_gpu("recurrent_backward", y, None, None, *arguments, y, gates, cells, [True] * 13)
    assert gradients[3].shape == (12, 2)
    assert not gradients[3].any()


@pytest.mark.skipif(bool(_C.build_info()["cuda"]), reason="this build has the CUDA kernels")
@pytest.mark.parametrize("op", OPS)
def test_without_cuda_kernels_the_error_says_how_to_build_them(op):
    key = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    arguments = {
        "recurrent": layer_case(0)[0] + [True],
        "recurrent_backward": [None, None, None, *layer_case(0)[0], *[draw(1)] * 3, [True] * 13],
        "deep_transition": [draw(1, 1, 1), draw(1, 1), [], [], 0.1, True],
        "deep_transition_backward": [
            None,
            None,
            draw(1, 1, 1),
            draw(1, 1),
            [],
            [],
            0.1,
            draw(1),
            draw(1),
            True,
            True,
        ],  # fmt: skip
    }
    with pytest.raises(RuntimeError, match=f"rnnfast::{op}: this build .* RNNFAST_CUDA=1 pip install"):
        getattr(ops, op).redispatch(key, *arguments[op])


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

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    step()
    ran = info.last_run()["cuda"]
    assert ran["op"] == "recurrent_backward"
    if team is None:
        assert ran["kernel"] == "stepwise"
    elif torch.cuda.get_device_capability() >= (9, 0):
        assert (ran["kernel"], ran["team"]) == ("resident", team)
    with torch.cuda.stream(stream):  # another stream than the default one, and the warm-up of a capture
        expected = [t.clone() for t in step()]
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))
    with torch.no_grad():
        x.mul_(2)
    expected = step()
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


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
