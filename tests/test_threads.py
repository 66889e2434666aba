"""The thread team: it never hangs, it really is a team, and its results are those of one thread.

What could hang or leave a process in a bad state runs in a child process with a time limit.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from helpers import LAYERS

import rnnfast
from rnnfast import info

# A child that hangs prints where, and then its parent ends it and whatever it started.
LIMIT = 150
CLASSES = sorted({name for name, _ in LAYERS.values()})
COMMON = f"""
import faulthandler, sys
faulthandler.dump_traceback_later({LIMIT - 20}, exit=True)
import torch, rnnfast
from rnnfast import info

SPLITS = ("serial", "units", "rows", "directions", None)
CELLS = {CLASSES}

def work(cell, seed=0, T=9, B=11, I=33, H=65):
    "Outputs and gradients of one forward and backward, which depend on nothing but the arguments."
    generator = torch.Generator().manual_seed(seed)
    layer = getattr(rnnfast, cell)(I, H, num_layers=2, bidirectional=True)
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    x = torch.randn(T, B, I, generator=generator).requires_grad_()
    y, hn = layer(x)
    y.square().sum().backward()
    return [y.detach(), *[t.detach() for t in (hn if cell == "LSTM" else [hn])]], [
        x.grad, *[p.grad for p in layer.parameters()]]

def alone(cell, **sizes):
    "The same on one thread."
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = work(cell, **sizes)
    torch.set_num_threads(threads)
    return result

def check(got, expected):
    "Outputs bit for bit. The products for the weight gradients are torch's, which may sum in another order."
    for a, b in zip(got[0], expected[0], strict=True):
        assert torch.equal(a, b), (a - b).abs().max()
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
"""


def child(code, **variables):
    """Run COMMON and code in a fresh Python; its standard output. It must end well, and in time."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("RNNFAST_", "OMP_"))}
    root = str(Path(rnnfast.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, "-c", COMMON + code],
        env={**env, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=LIMIT)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        _, err = process.communicate()
        pytest.fail(f"no end in {LIMIT} s\n{err[-3000:]}")
    assert process.returncode == 0, f"code {process.returncode}\n{err[-3000:]}"
    return out


EVERY_SPLIT = """
for cell in CELLS:
    for split in SPLITS:
        info.set_split(split)
        for _ in range(ROUNDS):
            check(work(cell), expected[cell])
print("same")
"""


@pytest.mark.parametrize("count", [2, 3, 8])
def test_more_threads_than_the_process_may_start_do_not_hang(count):
    code = "expected = {cell: alone(cell) for cell in CELLS}\n" + f"torch.set_num_threads({count})\n"
    code += "ROUNDS = 5\n" + EVERY_SPLIT + "assert info.last_run()['members'] == 1, info.last_run()\n"
    assert "same" in child(code, OMP_THREAD_LIMIT="1")


def test_eight_threads_on_fewer_cores_give_the_results_of_one():
    code = "expected = {cell: alone(cell) for cell in CELLS}\ntorch.set_num_threads(8)\nROUNDS = 5\n"
    assert "same" in child(code + EVERY_SPLIT)


def test_a_process_bound_to_one_core_does_not_hang():
    code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "expected = {cell: alone(cell) for cell in CELLS}\ntorch.set_num_threads(2)\nROUNDS = 2\n"
    assert "same" in child(code + EVERY_SPLIT)


# A Python function as the body of a parallel region of the OpenMP that torch itself uses: every member of
# that team calls the layer.
NESTED = """
import ctypes
loaded = {line.split()[-1] for line in open("/proc/self/maps") if "/" in line}
omp = ctypes.CDLL(min(path for path in loaded if "libgomp" in path or "libiomp" in path))
expected = {cell: alone(cell) for cell in CELLS}
torch.set_num_threads(2)
for cell in CELLS:
    work(cell)
entered, problems = [], []

@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def body(_):
    try:
        entered.append(omp.omp_get_thread_num())
        for cell in CELLS:
            for _ in range(3):
                check(work(cell), expected[cell])
    except BaseException as error:
        problems.append(repr(error))

for split in SPLITS:
    info.set_split(split)
    omp.GOMP_parallel(body, None, 2, 0)
assert not problems, problems
assert sorted(entered) == [0] * len(SPLITS) + [1] * len(SPLITS), entered
print("same")
"""


@pytest.mark.parametrize("levels", ["", "1", "2"])
def test_calls_inside_a_parallel_region_do_not_hang(levels):
    assert "same" in child(NESTED, **({"OMP_MAX_ACTIVE_LEVELS": levels} if levels else {}))


TOGETHER = """
import threading
import time
torch.set_num_threads(2)
expected = {(cell, seed): alone(cell, seed=seed) for cell in CELLS for seed in range(THREADS)}
start, problems = threading.Barrier(THREADS), []

def loop(seed):
    try:
        torch.set_num_threads(2)
        start.wait()
        for _ in range(ROUNDS):
            for cell in CELLS:
                check(work(cell, seed=seed), expected[cell, seed])
    except BaseException as error:
        problems.append(repr(error))

for split in SPLITS:
    info.set_split(split)
    threads = [threading.Thread(target=loop, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
assert not problems, problems
print("same")
"""


@pytest.mark.parametrize("count,rounds", [(2, 10), (5, 3)])
def test_several_python_threads_at_once_get_their_own_results(count, rounds):
    assert "same" in child(f"THREADS, ROUNDS = {count}, {rounds}\n" + TOGETHER)


AMONG_CHANGES = """
import threading, time

def beside(change, call, rounds, tolerance=0):
    "Calls while another thread changes something: the result is what it was before."
    expected, over = call(), threading.Event()
    def loop():
        while not over.is_set():
            change()
            time.sleep(1e-5)  # gives Python's lock away
    thread = threading.Thread(target=loop)
    thread.start()
    try:
        for _ in range(rounds):
            for now, before in zip(call(), expected):
                torch.testing.assert_close(now.float(), before.float(), rtol=tolerance, atol=tolerance)
    finally:
        over.set()
        thread.join()
"""

OTHER_WEIGHTS = """
layer, x = rnnfast.LSTM(256, 256, bidirectional=True), torch.randn(200, 4, 256)

def change():  # numbers as before, in other memory
    for name in list(layer._parameters):
        setattr(layer, name, torch.nn.Parameter(getattr(layer, name).detach().clone()))

def infer():
    with torch.no_grad():
        return [layer(x)[0]]

beside(change, infer, 60)
beside(change, lambda: [layer(x)[0].detach()], 60)
print("same")
"""

OTHER_KERNELS = """
layer, x = rnnfast.LSTM(64, 64).bfloat16(), torch.randn(8, 4, 64, dtype=torch.bfloat16)
names = info.isas()

def change():
    for name in names:
        info.set_isa(name)

def train():
    y = layer(x)[0]
    return [y.detach(), *torch.autograd.grad(y.float().square().mean(), list(layer.parameters()))]

beside(change, train, 500, tolerance=0.05)  # some round h to bfloat16, some do not
print("same")
"""


@pytest.mark.parametrize("code", [OTHER_WEIGHTS, OTHER_KERNELS], ids=["weights", "kernels"])
def test_a_call_ends_with_what_it_began_with(code):
    assert "same" in child(AMONG_CHANGES + code)


def test_python_threads_leave_each_other_time_within_one_process():
    # The op gives up Python's lock: another thread counts on while a long call runs.
    layer = rnnfast.LSTM(128, 256)
    x = torch.randn(100, 64, 128)
    torch.set_num_threads(1)
    done = threading.Event()
    ticks = 0

    def call():
        with torch.no_grad():
            layer(x)
        done.set()

    thread = threading.Thread(target=call)
    thread.start()
    while not done.wait(0.001):
        ticks += 1
    thread.join()
    assert ticks > 1


LOADER = """
from torch.utils.data import DataLoader, TensorDataset

torch.set_num_threads(2)
expected = {cell: alone(cell) for cell in CELLS}
for cell in CELLS:
    check(work(cell), expected[cell])

def collate(items):
    seeds = [int(item[0]) for item in items]
    for cell in CELLS:
        check(work(cell), expected[cell])
    return torch.tensor(seeds)

for split in SPLITS:
    info.set_split(split)
    loader = DataLoader(TensorDataset(torch.arange(8)), batch_size=2, num_workers=2, collate_fn=collate,
                        multiprocessing_context="fork")
    assert sorted(torch.cat(list(loader)).tolist()) == list(range(8))
    for cell in CELLS:
        check(work(cell), expected[cell])
print("same")
"""


def test_workers_forked_after_use_can_call_the_layers():
    assert "same" in child(LOADER)


SPAWN_FREE_FORK = """
import os
expected = {cell: alone(cell) for cell in CELLS}
torch.set_num_threads(2)
for cell in CELLS:
    check(work(cell), expected[cell])
pid = os.fork()
if pid == 0:
    code = 1
    try:
        torch.set_num_threads(1)
        for cell in CELLS:
            check(work(cell), expected[cell])
        code = 0
    finally:
        os._exit(code)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
for cell in CELLS:
    check(work(cell), expected[cell])
print("same")
"""


def test_a_forked_child_and_its_parent_both_go_on():
    assert "same" in child(SPAWN_FREE_FORK)


def members_of(function):
    """The largest team in some calls: beside busy processes they go alone, but for a second at a time."""
    largest, end = 0, time.monotonic() + 60
    while largest < torch.get_num_threads() and time.monotonic() < end:
        function()
        largest = max(largest, info.last_run()["members"])
    return largest


@pytest.mark.parametrize("split", ["units", "rows", "directions"])
@pytest.mark.parametrize("name", CLASSES)
def test_two_threads_really_run(name, split):
    torch.set_num_threads(2)
    info.set_split(split)
    layer = getattr(rnnfast, name)(64, 256, bidirectional=split == "directions")
    x = torch.randn(16, 32, 64)
    with torch.no_grad():
        assert members_of(lambda: layer(x)) == 2
    assert info.last_run()["split"] == split
    y, _ = layer(x)
    assert members_of(lambda: torch.autograd.grad(y.sum(), [layer.weight_hh_l0], retain_graph=True)) == 2


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("T,B,H", [(50, 1, 512), (20, 64, 256)])
def test_a_large_layer_is_given_two_threads_unasked(name, T, B, H):
    torch.set_num_threads(2)
    layer = getattr(rnnfast, name)(H, H)
    x = torch.randn(T, B, H)
    with torch.no_grad():
        assert members_of(lambda: layer(x)) == 2
    assert info.last_run()["split"] != "serial"


def test_one_thread_is_a_team_of_one():
    torch.set_num_threads(1)
    layer = rnnfast.LSTM(64, 256)
    for split in ("units", "rows", None):
        info.set_split(split)
        layer(torch.randn(10, 32, 64))[0].sum().backward()
        assert info.last_run()["members"] == 1


def test_set_num_threads_counts_from_the_next_call():
    layer = rnnfast.LSTM(64, 256)
    x = torch.randn(16, 32, 64)
    info.set_split("rows")
    with torch.no_grad():
        for count in (1, 2, 1, 2):
            torch.set_num_threads(count)
            assert members_of(lambda: layer(x)) == count
