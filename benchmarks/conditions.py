"""Times of single calls where a process has company: python -m benchmarks.conditions --help.

One thread and more threads than cores, inside a parallel region, in a forked worker, beside other processes;
and the first call of a process; training steps beside busy processes, and forked workers' memory, are of
benchmarks.company. The slow calls matter as much as the usual one: so every call is timed by
itself, and the mean, the 99th percentile and the maximum stand beside the median.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

import rnnfast

from . import company, record
from .cases import Case
from .describe import describe

PEERS = {"torch.nn": nn, "rnnfast": rnnfast}
SHAPES = [
    Case("lstm-b1-h128", "one sequence: short calls", "LSTM", 1, 128, quick=True),
    Case("lstm-b16-h256", "a small batch", "LSTM", 16, 256),
    Case("gru-b16-h100", "odd H: slices of unlike size", "GRU", 16, 100),
]
FIRST = [
    Case("lstm-b1-h128", "one sequence", "LSTM", 1, 128, quick=True),
    Case("lstm-b64-h256", "a training batch", "LSTM", 64, 256),
]
TOGETHER = 4  # processes at once
Samples = dict[str, list[float]]  # peer -> seconds of each call
barrier = None  # of the processes that run at once


def calls_of(case: Case) -> dict[str, Callable[[], Tensor]]:
    """An inference call of each peer, of the same weights and input."""
    sizes = (case.input_size, case.hidden)
    layers = {peer: getattr(module, case.cell)(*sizes) for peer, module in PEERS.items()}
    layers["rnnfast"].load_state_dict(layers["torch.nn"].state_dict())
    x = torch.randn(case.steps, case.batch, case.input_size)

    def call(layer: nn.Module) -> Tensor:
        with torch.inference_mode():
            return layer(x)[0]

    return {peer: partial(call, layer) for peer, layer in layers.items()}


def sample(case: Case, seconds: float, rounds: int, meet: Callable = lambda: None) -> Samples:
    """Turns of one peer and the other; `meet` comes before each, so that all processes are at the same."""
    calls = calls_of(case)
    torch.testing.assert_close(*(call() for call in calls.values()), rtol=1e-4, atol=1e-4)
    times: Samples = {peer: [] for peer in calls}
    for _ in range(rounds):
        for peer, call in calls.items():
            meet()
            times[peer] += record.turn(call, seconds / rounds)
    return times


def merged(parts: list[Samples]) -> Samples:
    return {peer: [time for part in parts for time in part[peer]] for peer in PEERS}


def with_threads(threads: int, *how) -> Samples:
    torch.set_num_threads(threads)
    return sample(*how)


def in_region(threads: int, *how) -> Samples:
    """As the body of a parallel region of torch's own OpenMP: every member calls, all samples count."""
    torch.set_num_threads(threads)
    torch.ones(1 << 20).add_(1)  # torch's pool is there
    loaded = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/" in line}
    openmp = ctypes.CDLL(min(path for path in loaded if "libgomp" in path or "libiomp" in path))
    times, errors = [], []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def body(_):
        try:
            times.append(sample(*how))
        except BaseException as error:  # ctypes would print it and go on
            errors.append(error)

    openmp.GOMP_parallel(body, None, threads, 0)
    if errors:
        raise errors[0]
    return merged(times)


class Sampling(Dataset):
    """One item: the samples, taken by the process that asks for it."""

    def __init__(self, how: tuple):
        self.how = how

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Samples:
        return sample(*self.how)


def in_worker(threads: int, case: Case, *how) -> Samples:
    """In a DataLoader's worker, forked after this process has used its threads."""
    with_threads(threads, case, 0.0, 1)
    loader = DataLoader(Sampling((case, *how)), None, num_workers=1, multiprocessing_context="fork")
    return next(iter(loader))


def share(one) -> None:
    """Prepares a process to run beside others: `one` barrier for all."""
    global barrier
    barrier = one


def beside_others(threads: int, case: Case, seconds: float, rounds: int) -> Samples:
    """One turn of each peer: where threads wait for processors, a call of torch.nn's may take seconds."""
    torch.set_num_threads(threads)
    return sample(case, seconds, 1, lambda: barrier.wait(300))


def conditions(threads: int) -> list[tuple[str, Callable, int]]:
    """What is tried: a name, what samples then, and with how many threads."""
    counts = {1: "1 thread", **{n: f"{n} threads" for n in (threads, 4, 8) if n > 1}}
    return [
        *((name, with_threads, count) for count, name in counts.items()),
        (f"in a parallel region of {threads}", in_region, threads),
        ("in a forked DataLoader worker", in_worker, threads),
        *((f"{TOGETHER} processes at once, threads: {n}", beside_others, n) for n in (1, 2)),
    ]


def take(function: Callable, *arguments) -> Samples:
    """The samples of a new process, or of several at once."""
    if function is not beside_others:
        return record.in_process(function, *arguments, start="forkserver")
    given = [get_context("forkserver").Barrier(TOGETHER)]
    return merged(record.in_processes(TOGETHER, function, arguments, share, given))


def first_call(peer: str, case: Case, threads: int) -> dict[str, float]:
    """The first call of a process that has used torch before, and the median of the next ones."""
    torch.set_num_threads(threads)
    torch.mm(torch.rand(512, 512), torch.rand(512, 512))
    call = calls_of(case)[peer]
    start = time.perf_counter()
    call()
    first = time.perf_counter() - start
    return {"first_ms": first * 1e3, "warm_ms": median(record.turn(call, 0.1)) * 1e3}


def first_calls(case: Case, threads: int, repeats: int, start: str) -> dict[str, dict[str, float]]:
    """Of each peer the medians over several new processes."""
    found: dict[str, list[dict[str, float]]] = {peer: [] for peer in PEERS}
    for _ in range(repeats):
        for peer, times in found.items():
            times.append(record.in_process(first_call, peer, case, threads, start=start))
    return {
        peer: {key: median(one[key] for one in times) for key in times[0]} for peer, times in found.items()
    }


def run(threads: int, quick: bool, command: str) -> dict:
    """The result as it is written to JSON."""
    seconds, rounds, repeats, start = (0.02, 1, 1, "forkserver") if quick else (0.8, 4, 5, "spawn")
    shapes, first = ([case for case in cases if case.quick or not quick] for cases in (SHAPES, FIRST))
    tried = conditions(threads)
    if quick:  # nothing with more threads than cores: their calls may take seconds
        tried = [one for one in tried if one[2] <= (1 if one[1] is beside_others else threads)]
    result = {"kind": "conditions", "meta": record.meta(threads, command), "rows": [], "first": []}
    for case, (name, function, count) in tqdm([(case, one) for case in shapes for one in tried]):
        samples = take(function, count, case, seconds, rounds)
        peers = {peer: describe(times) for peer, times in samples.items()}
        row = {"condition": name, "shape": f"{case.cell} {case.shape}", "peers": peers}
        result["rows"].append(row)
    for case in tqdm(first, desc="first calls"):
        peers = first_calls(case, threads, repeats, start)
        result["first"].append({"shape": f"{case.cell} {case.shape}", "peers": peers})
    return result | company.run(quick)


def to_one_thread(result: dict, row: dict, peer: str) -> float:
    """The slowest call under a row's condition over the usual one of a single undisturbed thread."""
    (alone,) = (
        r["peers"][peer]["median_ms"]
        for r in result["rows"]
        if (r["condition"], r["shape"]) == ("1 thread", row["shape"])
    )
    return row["peers"][peer]["max_ms"] / alone


def speedup(row: dict, key: str = "median_ms") -> float:
    return row["peers"]["torch.nn"][key] / row["peers"]["rnnfast"][key]


def table(result: dict) -> record.Table:
    columns = ["shape", "condition", *(f"{peer}: median, mean, p99, max" for peer in PEERS)]
    columns += ["speed-up", "of the mean"]
    columns += [f"{peer}: max / 1 thread" for peer in PEERS]
    lines = []
    for row in result["rows"]:
        keys = ("median_ms", "mean_ms", "p99_ms", "max_ms")
        times = [" / ".join(f"{row['peers'][peer][key]:.3g}" for key in keys) for peer in PEERS]
        ratios = [f"{to_one_thread(result, row, peer):.3g}" for peer in PEERS]
        speedups = [f"{speedup(row, key):.2f}×" for key in ("median_ms", "mean_ms")]
        lines.append([row["shape"], row["condition"], *times, *speedups, *ratios])
    return columns, lines


def first_table(result: dict) -> record.Table:
    lines = []
    for row in result["first"]:
        line = [row["shape"]]
        for peer in PEERS:
            first, warm = (row["peers"][peer][key] for key in ("first_ms", "warm_ms"))
            line += [f"{first:.3g} / {warm:.3g}", f"{first / warm:.1f}"]
        lines.append(line)
    return ["shape", *(f"{peer}: {what}" for peer in PEERS for what in ("first, warm", "ratio"))], lines


def markdown(result: dict) -> str:
    """What docs/results.md says."""
    speedups = [speedup(row) for row in result["rows"]]
    slowest = {peer: max(to_one_thread(result, row, peer) for row in result["rows"]) for peer in PEERS}
    firsts = [
        row["peers"]["rnnfast"]["first_ms"] / row["peers"]["rnnfast"]["warm_ms"] for row in result["first"]
    ]
    return (
        "With one thread, more threads than cores, inside a parallel region, in a forked worker and beside "
        f"other processes the median call is {min(speedups):.2f} to {max(speedups):.2f} times as fast as "
        f"torch.nn's, and the slowest of all took {slowest['rnnfast']:.0f} times the median of one thread "
        f"(torch.nn: {slowest['torch.nn']:.0f}). The first call of a process that has multiplied matrices "
        f"before takes as long as {max(firsts):.0f} later ones at most: "
        "[conditions.md](conditions.md)."
    )


def page(result: dict) -> str:
    """docs/conditions.md."""
    return f"""# Calls in company

What a call takes where its process is not alone with a thread for each core. Milliseconds, inference; every
call is timed by itself, torch.nn and rnnfast in turns. Made from `benchmarks/results/conditions.json`.

{record.machine(result)}

{record.pipes(table(result), 2)}

p99 of fewer than 100 calls is their maximum. Speed-up: torch.nn's median over rnnfast's; beside it that of
the means, which is the ratio of the calls done in the same time: where some processes get on at the cost of
the others, as those of torch.nn's that hold the processors while they wait, the median tells only of the
lucky ones. Max / 1 thread: the slowest call over the peer's own median with one thread and nothing beside it;
where a call is short, a single time slice of the system's, some milliseconds, is many of it. In a parallel
region every member calls the layer. Of {TOGETHER} processes at once the calls of all count; with one thread
each they show what sharing the processors costs by itself.

The first call of a process that has multiplied matrices before, and the median of the calls after it (medians
of several processes):

{record.pipes(first_table(result), 1)}

{company.section(result) if "company" in result else ""}"""


def main(arguments: list[str] | None = None) -> int:
    options = record.parser("conditions", __doc__).parse_args(arguments)
    result = run(options.threads, options.quick, record.command("conditions", arguments))
    folder = options.out or (record.PART if options.quick else record.RESULTS)
    record.save(result, folder, "conditions")
    tables = (record.aligned(table(result), 2), record.aligned(first_table(result), 1))
    print(*tables, record.aligned(company.table(result), 2), sep="\n\n")
    print(f"\nWritten to {folder}: conditions.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
