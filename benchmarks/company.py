"""Training steps beside busy processes, and the memory of forked workers: a part of benchmarks.conditions.

What is measured is rnnfast alone in its process, or in several at once; each step is timed by itself. Beside
others two threads should cost no more than one; what eight workers hold should be little more than what their
calls take.
"""

from __future__ import annotations

import multiprocessing
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from tqdm import tqdm

import rnnfast
from rnnfast.bench.memory import forget_peak, resident

from . import record
from .describe import describe

PEERS = {"torch.nn": nn, "rnnfast": rnnfast}
BUSY = [sys.executable, "-S", "-c", "while True: pass"]
TOGETHER = 4  # processes of rnnfast at once
WORKERS, WORKER_STEPS = 8, 12


class Stack(NamedTuple):
    """Layers of 300 units over 12 features and 5 packed sequences of 10 to 20 steps."""

    cell: str
    layers: int = 3
    hidden: int = 300
    batch: int = 5
    steps: int = 20

    @property
    def shape(self) -> str:
        return f"{self.cell} T={self.steps} B={self.batch} H={self.hidden} {self.layers} layers, packed"


class Company(NamedTuple):
    """So many processes of rnnfast at once, with so many threads, beside busy ones."""

    processes: int
    threads: int
    busy: int


# what each is set against, and what its mean and 99th percentile over that one's mean should at most be
ALONE = Company(1, 1, 0)
PAIRS = {
    "alone": (Company(1, 2, 0), ALONE, None, None),
    "beside one busy process": (Company(1, 2, 1), ALONE, 1.2, 2.5),
    "beside three busy processes": (Company(1, 2, 3), Company(1, 1, 3), 1.15, None),
    f"{TOGETHER} processes at once": (Company(TOGETHER, 2, 0), Company(TOGETHER, 1, 0), 1.15, None),
}
STACKS = [Stack("LSTM"), Stack("GRU"), Stack("RNN")]
meeting = None  # where processes that run at once wait for each other


@contextmanager
def busy_processes(count: int) -> Iterator[None]:
    with ExitStack() as stack:
        for _ in range(count):
            process = subprocess.Popen(BUSY)
            stack.callback(process.wait)
            stack.callback(process.kill)
        yield


def meet_at(barrier: threading.Barrier) -> None:
    global meeting
    meeting = barrier


def step_times(peer: str, stack: Stack, threads: int, seconds: float, least: int) -> list[float]:
    """Of training steps in this process, for so many seconds and at least so often."""
    torch.set_num_threads(threads)
    layer = getattr(PEERS[peer], stack.cell)(12, stack.hidden, stack.layers, batch_first=True)
    lengths = torch.linspace(stack.steps, stack.steps // 2, stack.batch).long()
    x = pack_padded_sequence(torch.randn(stack.batch, stack.steps, 12), lengths, batch_first=True)

    def step() -> None:
        y: PackedSequence = layer(x)[0]
        y.data.square().mean().backward()
        layer.zero_grad(set_to_none=True)

    step()
    meeting.wait(300)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while len(times) < least or time.perf_counter() < end:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return times


def steps_in(company: Company, peer: str, stack: Stack, seconds: float, least: int) -> list[float]:
    barrier = multiprocessing.get_context("forkserver").Barrier(company.processes)
    arguments = (peer, stack, company.threads, seconds, least)
    with busy_processes(company.busy):
        found = record.in_processes(company.processes, step_times, arguments, meet_at, [barrier])
    return [time for times in found for time in times]


def private() -> int:
    """Bytes that this process has to itself, of pages that it has written."""
    text = Path("/proc/self/smaps_rollup").read_text()
    return 1024 * sum(int(found) for found in re.findall(r"^Private_Dirty:\s+(\d+) kB$", text, re.MULTILINE))


def worker_memory(steps: int, workers: int, loops: int) -> dict[str, float]:
    """MiB by which each forked worker has grown in a training loop, and what one call takes at most."""
    torch.set_num_threads(1)
    layer = rnnfast.LSTM(64, 256)

    def loop(count: int) -> None:
        for _ in range(count):
            layer(torch.randn(steps, 32, 64))[0].sum().backward()
            layer.zero_grad()

    def work(results: SimpleQueue) -> None:
        before = private()
        loop(loops)
        results.put(private() - before)

    context = multiprocessing.get_context("fork")
    results: SimpleQueue = context.SimpleQueue()
    processes = [context.Process(target=work, args=(results,)) for _ in range(workers)]
    for process in processes:
        process.start()
    grown = [results.get() for _ in processes]
    for process in processes:
        process.join()
    forget_peak()
    before = resident("VmRSS")
    loop(1)
    return {"grown_mb": sum(grown) / workers / 2**20, "call_mb": (resident("VmHWM") - before) / 2**20}


def run(quick: bool) -> dict:
    """The parts of the result of benchmarks.conditions that are made here."""
    seconds, least, rounds = (0.02, 2, 1) if quick else (3.0, 200, 3)
    stacks = STACKS[:1] if quick else STACKS
    companies = [ALONE] if quick else list(dict.fromkeys(one for pair in PAIRS.values() for one in pair[:2]))
    rows, theirs = [], []
    for stack in tqdm(stacks, desc="company"):
        times: dict[Company, list[float]] = {company: [] for company in companies}
        for _ in range(rounds):  # in turns, for the machine is not the same for a minute
            for company, found in times.items():
                found += steps_in(company, "rnnfast", stack, seconds, least)
        rows += [
            {"shape": stack.shape, **company._asdict(), "steps": describe(found)}
            for company, found in times.items()
        ]
        if not quick:
            theirs.append(describe(steps_in(Company(1, 2, 1), "torch.nn", stack, seconds, 2)))
    workers = record.in_process(worker_memory, 100, 2 if quick else WORKERS, 2 if quick else WORKER_STEPS)
    workers |= {"workers": 2 if quick else WORKERS, "shape": "LSTM T=100 B=32 I=64 H=256"}
    return {"company": rows, "torch_beside_one": theirs, "workers": workers}


def table(result: dict) -> record.Table:
    """A line for each stack and pair: two threads, over what they are set against."""
    found = {(row["shape"], Company(row["processes"], row["threads"], row["busy"])): row["steps"]
             for row in result["company"]}  # fmt: skip
    columns = ["training step", "", "two threads: median, mean, p99", "set against: median, mean, p99"]
    columns += ["mean", "asked", "p99", "asked"]
    lines = []
    for shape in dict.fromkeys(shape for shape, _ in found):
        for name, (two, against, mean, p99) in PAIRS.items():
            if (shape, two) not in found:
                continue
            ours, base = found[shape, two], found[shape, against]
            times = [
                " / ".join(f"{one[key]:.3g}" for key in ("median_ms", "mean_ms", "p99_ms"))
                for one in (ours, base)
            ]
            ratios = [f"{ours[key] / base['mean_ms']:.2f}" for key in ("mean_ms", "p99_ms")]
            asked = [f"≤ {one}" if one else "" for one in (mean, p99)]
            lines.append([shape, name, *times, ratios[0], asked[0], ratios[1], asked[1]])
    return columns, lines


def section(result: dict) -> str:
    """What docs/conditions.md says of it."""
    workers = result["workers"]
    theirs = [f"{one['mean_ms']:.0f}" for one in result["torch_beside_one"]]
    beside = f" torch.nn's mean step beside one busy process: {', '.join(theirs)} ms." if theirs else ""
    return f"""## Training beside others

A training step of two threads, set against one thread alone in its process and on the machine (alone, and
beside one busy process) or against one thread in the same company. Each process does nothing else, for 3
seconds and 200 steps at least; all of them three times, in turns; milliseconds.{beside}

{record.pipes(table(result), 2)}

Memory: {workers["workers"]} workers, forked, each in a training loop of {workers["shape"]}, grew by
{workers["grown_mb"]:.0f} MiB each, where one call takes {workers["call_mb"]:.0f} at most
(asked: no more than a call and 64).
"""
