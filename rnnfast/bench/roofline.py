"""The limit that this machine sets to one layer, from what is measured in the same run.

For a layer with G gates, I inputs, H hidden units, B rows, T steps and D directions:

    t_proj  = max(2 G H I B T D / FLOPS, bytes(W_ih) D / BW)
    t_rec   = T (max(2 G H H B D / FLOPS, bytes(W_hh) D / BW) + t_sync + t_cell)
    t_infer = t_proj + t_rec
    t_train = t_infer + t_rec (dh) + dx, dW_ih, dW_hh: three more products

FLOPS is the best of torch's own products and a bare loop of the machine's widest multiply-adds; where
rnnfast makes a product of float32 of several of bfloat16 (`info.products`), also of the rate of those, by
their number. BW is measured at exactly the bytes that are read again and again: W_hh, or W_ih and W_hh where
T = 1. A step takes the better of one thread (which meets nobody) and all; where rows and directions are
enough to give every thread one, t_sync is 0. Packed rows: B falls over time. A deep-transition step: three
products.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from .. import _C
from .case import Case, asking

SLACK = 1.02  # a row may not beat its limit by more: the limit would be wrong
BYTES = {"float32": 4, "bfloat16": 2}


def gates_and_sigmoids(cell: str) -> tuple[int, int]:
    """Of a class's cell, per hidden unit and step: its gates, and the sigmoids (or tanhs) it computes."""
    mode = cell.removesuffix("Cell").lower()
    facts = _C.cells().get(mode) or _C.cells()[f"{mode}_tanh"]
    return facts["gates"], facts["gates"] + facts["has_cell"]  # h' = o tanh(c')


@dataclass(frozen=True)
class Layer:
    """One layer's work: multiply-adds for one row and step, of one direction."""

    projection: int  # G H I
    recurrent: int  # G H H
    sigmoids: int
    meetings: int = 1  # how often threads that split the hidden units meet in a step


def layers(case: Case) -> Iterator[Layer]:
    inputs, hidden = case.input_size, case.hidden
    if case.cell == "DeepTransitionRNN":  # three Linears, the inner width is H
        yield Layer(hidden * inputs, 3 * hidden * hidden, sigmoids=0, meetings=3)
        return
    gates, sigmoids = gates_and_sigmoids(case.cell)
    for layer in range(case.layers):
        width = inputs if layer == 0 else hidden * case.directions
        curved = 0 if case.nonlinearity == "relu" else sigmoids * hidden
        yield Layer(gates * hidden * width, gates * hidden * hidden, curved)


def element(case: Case) -> str:
    """What may be read and multiplied: bfloat16 also where no more is asked of float32."""
    return "bfloat16" if case.precision == "bf16" else case.dtype


def flops(case: Case, team: Team) -> float:
    """Of the case's products, however they are made."""
    most = team.flops(element(case))
    if case.dtype != "float32":
        return most
    with asking(case.precision):
        many = _C.products(case.batch_sizes[0], case.hidden, case.steps)
    return max(most, team.flops("bfloat16") / many) if many else most


def read_seconds(weights: int, layer: Layer, case: Case, team: Team) -> float:
    """So many of a layer's weights read once."""
    of_each = case.directions * BYTES[element(case)]
    held = layer.recurrent + (layer.projection if case.steps == 1 else 0)
    return weights * of_each / team.bandwidth(held * of_each)


def step_seconds(layer: Layer, rows: int, case: Case, team: Team, bare: bool) -> float:
    """One step of the recurrence, `rows` rows in each direction; bare: its product alone."""
    product = 2 * layer.recurrent * rows * case.directions / flops(case, team)
    read = read_seconds(layer.recurrent, layer, case, team)
    if bare:
        return max(product, read)
    alone = team.threads == 1 or rows * case.directions >= team.threads
    sync = 0.0 if alone else layer.meetings * team.barrier()
    return max(product, read) + sync + layer.sigmoids * rows * case.directions / team.sigmoids()


def limit(case: Case, training: bool, teams: list[Team], bare: bool = False) -> float:
    """The least seconds that the formulas above allow; `teams` are one thread and all threads.

    bare: of the products alone, without t_sync and t_cell.
    """
    most = max(flops(case, team) for team in teams)
    rows_steps = sum(case.batch_sizes) * case.directions
    seconds = 0.0
    for layer in layers(case):
        step = {
            n: min(step_seconds(layer, n, case, team, bare) for team in teams) for n in set(case.batch_sizes)
        }
        recurrence = sum(step[n] for n in case.batch_sizes)
        projection = 2 * layer.projection * rows_steps / most
        read = min(read_seconds(layer.projection, layer, case, team) for team in teams)
        seconds += max(projection, read) + recurrence
        if training:
            seconds += recurrence + 2 * projection + 2 * layer.recurrent * rows_steps / most
    return seconds


def bound(case: Case, teams: list[Team]) -> str:
    """What the product of a full step takes its time from: "multiplying", or "reading" the weights."""
    rows = case.batch_sizes[0] * case.directions
    layer = next(layers(case))
    product = min(2 * layer.recurrent * rows / flops(case, team) for team in teams)
    read = min(read_seconds(layer.recurrent, layer, case, team) for team in teams)
    return "reading" if read > product else "multiplying"


def best(measure: Callable[[], float], seconds: float = 0.1) -> float:
    """The highest of at least three measurements: anything else the machine does can only lower a rate."""
    rates, start = [], time.perf_counter()
    while len(rates) < 3 or time.perf_counter() - start < seconds:
        rates.append(measure())
    return max(rates)


class Team:
    """The rates that `threads` threads reach together, measured when first asked for."""

    def __init__(self, threads: int):
        self.threads = threads
        self._rates: dict[object, tuple[Callable[[], float], float]] = {}

    def _rate(self, key: object, measure: Callable[[], float]) -> float:
        if key not in self._rates:
            self._rates[key] = measure, best(measure)
        return self._rates[key][1]

    def measure_again(self) -> None:
        """At the end of a run, so that a busy moment at its start does not lower the limit."""
        self._rates = {key: (measure, max(old, best(measure))) for key, (measure, old) in self._rates.items()}

    def product_flops(self, dtype: str = "float32") -> float:
        """Of torch's own product: how near a well-kept library comes to the limit, operands in memory."""

        def rate(size: int) -> float:
            return self._rate(("mm", dtype, size), lambda: _product_flops(size, dtype, self.threads))

        small = rate(1024)
        # a larger one is quicker where it is quick at all; a plain loop, as torch's for a dtype that the
        # processor does not multiply, takes half a minute for it
        return small if 2 * 2048**3 / small > 1.0 else max(small, rate(2048))

    def flops(self, dtype: str = "float32") -> float:
        """Of bfloat16 those of float32 at least: a processor that does not multiply it may widen it."""
        loop = probe().measure_fma if dtype == "float32" else probe().measure_fma_bfloat16
        most = max(self.product_flops(dtype), self._rate(("fma", dtype), lambda: loop(self.threads)))
        return most if dtype == "float32" else max(most, self.flops())

    def bandwidth(self, bytes: int) -> float:
        return self._rate(("read", bytes), lambda: probe().measure_read(bytes, self.threads))

    def barrier(self) -> float:
        return 1 / self._rate("barrier", lambda: 1 / probe().measure_barrier(self.threads))

    def sigmoids(self) -> float:
        return self._rate("sigmoid", lambda: probe().measure_sigmoid(self.threads))

    def describe(self, dtypes: set[str]) -> dict:
        """What the report shows of the machine."""
        levels = {name: self.bandwidth(size) / 1e9 for name, size in cache_levels(self.threads).items()}
        return {
            "gflops": {dtype: self.flops(dtype) / 1e9 for dtype in sorted(dtypes)},
            "product_gflops": {dtype: self.product_flops(dtype) / 1e9 for dtype in sorted(dtypes)},
            "read_gb_per_s": levels,
            "barrier_us": self.barrier() * 1e6,
            "sigmoid_ns_per_16": 16e9 / self.sigmoids(),
        }


def _product_flops(size: int, dtype: str, threads: int) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    a, b, out = (torch.rand(size, size).to(getattr(torch, dtype)) for _ in range(3))
    start = time.perf_counter()
    torch.mm(a, b, out=out)
    seconds = time.perf_counter() - start
    torch.set_num_threads(before)
    return 2 * size**3 / seconds


def cache_levels(threads: int) -> dict[str, int]:
    """Bytes that lie well inside each cache level of `threads` cores, and far outside all of them."""
    levels = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind, size, cpus = (
            (index / f).read_text().strip() for f in ("level", "type", "size", "shared_cpu_list")
        )
        if kind != "Instruction":
            ends = [[int(cpu) for cpu in part.split("-")] for part in cpus.split(",")]
            sharing = sum(end[-1] - end[0] + 1 for end in ends)
            levels[f"L{level}"] = int(size.rstrip("K")) * 1024 * max(1, threads // sharing) // 2
    return levels | {"memory": max([64 << 20, *(8 * size for size in levels.values())])}


class NoProbe(RuntimeError):
    """Why this machine's rates cannot be measured."""


@cache
def probe() -> ctypes.CDLL:
    """probe.cpp, compiled for this very machine."""
    compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    if shutil.which(compiler[0]) is None:
        raise NoProbe(f"there is no C++ compiler ({compiler[0]}) to measure the machine with")
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "probe.so"
        flags = ["-std=c++17", "-O3", "-march=native", "-shared", "-fPIC", "-pthread"]
        source = Path(__file__).with_name("probe.cpp")
        said = subprocess.run([*compiler, *flags, source, "-o", library], capture_output=True, text=True)
        if said.returncode:
            raise NoProbe(f"{compiler[0]} cannot compile {source.name} ({said.stderr.strip()[:300]})")
        loaded = ctypes.CDLL(str(library))
    for name in ("fma", "fma_bfloat16", "barrier", "sigmoid"):
        function = getattr(loaded, f"measure_{name}")
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_double
    loaded.measure_read.argtypes, loaded.measure_read.restype = (
        [ctypes.c_int64, ctypes.c_int],
        ctypes.c_double,
    )
    return loaded
