"""What the tests of the CUDA ops share: the ops, on a GPU where there is one and everywhere emulated by the
host, and layers for them. Its fixtures are for those whose `pytest_plugins` name it.

Emulated means: the same glue and the same kernel sources, compiled by the host's compiler against
tests/native/emulation, on CPU tensors. That proves indices, meeting points, lengths and tails, not the
hardware.
"""

import random

import compiling
import device_check
import pytest
import torch
from helpers import COMPILER, EMULATION, GPU, GRADIENTS, MODES, ROOT, draw
from torch.utils.cpp_extension import include_paths, library_paths

from rnnfast import _C, info

FLAGS = ["-O1", "-fPIC", "-ffp-contract=off", "-Wno-unknown-pragmas"]
OF_OPS = [f"csrc/ops/{name}.cpp" for name in ("cuda_layer", "cuda_deep", "layer", "checks", "autograd")]
SOURCES = ["tests/native/emulated_ops.cpp", *OF_OPS, "csrc/cuda/plan.cpp"]
OPS = ("recurrent", "recurrent_backward", "deep_transition", "deep_transition_backward")

# Of every test of the ops and modules. torch warns of its own LSTM, which runs here as the peer, and of an op
# that is replaced on purpose.
MARKS = [
    pytest.mark.usefixtures("ieee"),
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
ROUNDED = [pytest.param(getattr(torch, name), id=name) for name in ("bfloat16", "float16", "float32")]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 0.1, torch.float16: 1e-2}


@pytest.fixture(scope="session")
def emulated(programs):
    """The ops of a GPU, emulated: name -> an op on CPU tensors."""
    library = "-DRNNFAST_LIBRARY=rnnfast_emulated"
    command = [
        *COMPILER,
        "-std=c++20",
        *FLAGS,
        library,
        *EMULATION,
        *(f"-isystem{path}" for path in include_paths()),
    ]
    made = compiling.compile_all(programs, [ROOT / source for source in SOURCES], *command)
    objects = compiling.files(made) + device_check.emulated_kernels(programs)
    links = [*(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10"]
    made = compiling.make(programs, "emulated.so", [*COMPILER, "-shared", *objects, *links])
    torch.ops.load_library(str(*compiling.files([made])))
    return {name: getattr(torch.ops.rnnfast_emulated, name).default for name in OPS}


def emulated_run():
    """What info.last_run()["cuda"] is on a GPU, of the emulated one."""
    op, kernel, *rest = torch.ops.rnnfast_emulated.last_run()
    plan = zip((*PLAN, "directions", "units"), [rest[0], *rest[1]], strict=True)
    return {"op": op, "kernel": kernel} | dict(plan)


@pytest.fixture
def losing(emulated):
    """lose(each, block): every so many-th store to another block never arrives, or none of a block's."""
    ops_of = torch.ops.rnnfast_emulated
    yield ops_of.lose
    ops_of.lose(0, -1)
    ops_of.set_kernel("")
    ops_of.set_device(0, 0)
    ops_of.take_failure()


@pytest.fixture
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
        # batch_sizes stay on the CPU, as torch keeps them, and lengths may
        stays = not isinstance(value, torch.Tensor) or value.dtype == torch.int64
        return value if stays else value.to(device)

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


def assert_a_graph_replays(step, x):
    """step() -> tensors, captured on a GPU after a warm-up: the same bits, also of an x that has changed."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # another stream than the default one
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
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


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
    mode = list(GATES)[seed % len(GATES)]
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
    c0 = numbers(D, B, H) if MODES[mode]["has_cell"] else None
    return [mode, x, numbers(D, B, P), c0, *weights, sizes, form == "batch"], dtype, rng, numbers


def resident_case(seed, H=None, rows=None):
    """A layer that the resident kernel takes: of H units and so many rows, or sizes around its tiles, warps
    and cluster.
    """
    rng = random.Random(seed)
    mode = list(GATES)[seed % len(GATES)]
    dtype = [torch.bfloat16, torch.float16, torch.float32][seed // 4 % 3]
    T, B = rng.randint(1, 5), rng.choice([1, 7, 8, 9, 17])
    inputs, D = rng.choice([1, 8]), rng.choice([1, 2])
    B = rows or B
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
    c0 = numbers(D, B, H) if MODES[mode]["has_cell"] else None
    return [mode, x, numbers(D, B, H), c0, *weights, sizes, form == "batch"], dtype, numbers


def resident_near(dtype):
    """near(found, expected): results of the resident kernel beside the stepwise one's, which differ by how h
    is rounded for the products."""
    tolerance = {torch.bfloat16: 0.03, torch.float16: 4e-3, torch.float32: 4e-3}[dtype]

    def near(found, expected):
        assert [(t.dtype, t.shape) for t in found] == [(t.dtype, t.shape) for t in expected]
        for i, (a, b) in enumerate(zip(found, expected, strict=True)):
            if b.numel():
                apart = (a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-2)
                assert apart <= tolerance, i

    return near


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


def errors_of(on_gpu, mode, dtype, T, B, H):
    """A function that runs a layer and gives the root mean square errors, against float64, of y and dx."""
    inputs, rows = 3, MODES[mode]["gates"] * H
    shapes = (T, B, inputs), (1, B, H), (1, B, H), (rows, inputs), (rows, H), (rows,), (rows,), (T, B, H)
    scales = 1, 0.5, 0.5, 0.5, 0.9 / H**0.5, 0.2, 0.2, 1  # W_hh's: errors do not grow from step to step
    drawn = [
        draw(*shape, seed=seed) * scale
        for seed, (shape, scale) in enumerate(zip(shapes, scales, strict=True))
    ]
    x, h0, c0, *weights, dy = (t.to(dtype) for t in drawn)

    def run(op, of):
        c = of(c0) if MODES[mode]["has_cell"] else None
        layer = [mode, of(x), of(h0), c, *map(of, weights), None, *[None] * 5, None, False]
        out = op("recurrent", *layer, True)
        given = [of(dy), None, None, *layer, out[0], *out[3:5]]
        return out[0], op("recurrent_backward", *given, [True] * GRADIENTS)[0]

    exact = run(lambda name, *given: getattr(torch.ops.rnnfast, name).default(*given), torch.Tensor.double)

    def errors():
        found = run(on_gpu, lambda t: t)
        return [(a.double() - b).pow(2).mean().sqrt().item() for a, b in zip(found, exact, strict=True)]

    return errors
