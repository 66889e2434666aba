"""Time of a step over every size, to see cliffs: python -m benchmarks.smooth --help.

A size that falls between two tiles, slices or plans must not cost much more than its neighbours. Every point
is visited once a round, in a new random order: so a busy moment of the machine is not taken for a cliff.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import median

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from tqdm import tqdm

import rnnfast
from rnnfast.bench.roofline import gates_and_sigmoids

from . import record

PEERS = {"torch.nn": nn, "rnnfast": rnnfast}
TURN = 2e-3  # seconds that a point is timed for at least, in each round
PANELS = [("hidden", 1), ("hidden", 16), ("batch", 128), ("batch", 256)]  # what changes, and the other size


@dataclass(frozen=True)
class Point:
    peer: str
    cell: str
    batch: int
    hidden: int
    steps: int

    @property
    def work(self) -> int:
        """Multiply-adds of a step, I = H."""
        return 2 * gates_and_sigmoids(self.cell)[0] * self.hidden**2 * self.batch


@dataclass(frozen=True)
class Curve:
    """Points of which only one size changes."""

    peer: str
    cell: str
    over: str  # "hidden" or "batch"
    fixed: int  # the other one
    sizes: tuple[int, ...]

    def points(self) -> Iterator[Point]:
        one_row = self.over == "hidden" and self.fixed == 1
        for size in self.sizes:
            batch, hidden = (self.fixed, size) if self.over == "hidden" else (size, self.fixed)
            yield Point(self.peer, self.cell, batch, hidden, steps=100 if one_row else 50)


def curves(quick: bool) -> list[Curve]:
    """rnnfast's LSTM and GRU at every size, torch.nn's LSTM at some."""
    every = {"hidden": range(8, 601, 4), "batch": range(1, 131)}
    some = {"hidden": range(24, 601, 48), "batch": (*range(1, 8, 2), *range(12, 131, 12))}
    if quick:
        every = {over: sizes[::24] for over, sizes in every.items()}
        some = {over: sizes[::4] for over, sizes in some.items()}
    kinds = [("rnnfast", "LSTM", every), ("rnnfast", "GRU", every), ("torch.nn", "LSTM", some)]
    return [
        Curve(peer, cell, over, fixed, tuple(sizes[over]))
        for over, fixed in PANELS
        for peer, cell, sizes in kinds
    ]


class Numbers:
    """Random numbers that the inputs and weights of all layers are cut from: a thousand layers are many."""

    def __init__(self, points: list[Point]):
        torch.manual_seed(0)
        self.inputs = torch.randn(max(p.steps * p.batch * p.hidden for p in points))
        self.weights = 0.05 * torch.randn(2, 4 * max(p.hidden for p in points) ** 2)

    def call(self, point: Point) -> Callable[[], Tensor]:
        """One inference call of a layer of this size."""
        hidden = point.hidden
        layer = getattr(PEERS[point.peer], point.cell)(hidden, hidden, device="meta")
        for name, parameter in list(layer.named_parameters()):
            values = self.weights[int("hh" in name)][: parameter.numel()].view(parameter.shape)
            setattr(layer, name, nn.Parameter(values, requires_grad=False))
        x = self.inputs[: point.steps * point.batch * hidden].view(point.steps, point.batch, hidden)
        return lambda: layer(x)[0]


def measure(points: list[Point], seconds: float, least: int) -> dict[Point, float]:
    """Seconds of a step at each point: the median of at least `least` rounds over all of them."""
    numbers, order = Numbers(points), random.Random(0)
    times: dict[Point, list[float]] = {point: [] for point in points}
    start, rounds = time.perf_counter(), 0
    with tqdm(total=least * len(points), unit="point") as bar, torch.inference_mode():
        for point in points:
            if point.peer != "rnnfast":
                ours = numbers.call(replace(point, peer="rnnfast"))
                torch.testing.assert_close(ours(), numbers.call(point)(), rtol=1e-4, atol=1e-4)
        while rounds < least or (time.perf_counter() - start) * (rounds + 1) / rounds < seconds:
            rounds += 1
            bar.total = max(bar.total, rounds * len(points))
            for point in order.sample(points, len(points)):
                call = numbers.call(point)
                times[point].append(median(record.turn(call, TURN)) / point.steps)
                bar.update()
    return {point: median(values) for point, values in times.items()}


def worst_jump(work: Sequence[float], seconds: Sequence[float]) -> tuple[int, float]:
    """Where the time for a unit of work rises most from a point to the next: index of the next, and ratio."""
    each = [s / w for s, w in zip(seconds, work, strict=True)]
    ratios = [after / before for before, after in pairwise(each)]
    worst = max(range(len(ratios)), key=ratios.__getitem__)
    return worst + 1, ratios[worst]


def run(threads: int, quick: bool, command: str) -> dict:
    """The result as it is written to JSON."""
    torch.set_num_threads(threads)
    chosen = curves(quick)
    seconds, least = (0.0, 2) if quick else (75.0, 5)
    steps = measure([point for curve in chosen for point in curve.points()], seconds, least)
    return {
        "kind": "smooth",
        "meta": record.meta(threads, command),
        "curves": [
            {
                **asdict(curve),
                "work": [point.work for point in curve.points()],
                "step_us": [steps[point] * 1e6 for point in curve.points()],
            }
            for curve in chosen
        ],
    }


def jumps(result: dict) -> list[tuple[float, str]]:
    """rnnfast's worst jump on each curve, the worst of all first: the ratio, and where it is."""
    found = []
    for curve in result["curves"]:
        if curve["peer"] == "rnnfast":
            index, ratio = worst_jump(curve["work"], curve["step_us"])
            size, other = ("H", "B") if curve["over"] == "hidden" else ("B", "H")
            before, after = curve["sizes"][index - 1 : index + 1]
            place = f"{curve['cell']} {other}={curve['fixed']}, {size}={before} to {after}"
            found.append((ratio, place))
    return sorted(found, reverse=True)


def markdown(result: dict) -> str:
    ratio, place = jumps(result)[0]
    return (
        "![Microseconds a step at every size](../benchmarks/results/smooth.png)\n\n"
        "Inference: from one size to the next the time for a unit of work rises by at most "
        f"{ratio:.2f}× ({place}; `{result['meta']['command']}`)."
    )


def chart(result: dict, path: Path) -> Figure:
    """A panel for each fixed size: time of a step; over the batch also for each row, dashed."""
    styles = {
        ("rnnfast", "LSTM"): {"color": "#4c78a8"},
        ("rnnfast", "GRU"): {"color": "#e45756"},
        ("torch.nn", "LSTM"): {
            "color": "grey",
            "linewidth": 0.8,
            "marker": ".",
            "markersize": 3,
            "zorder": 1.5,
        },
    }
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    for (over, fixed), axes in zip(PANELS, figure.subplots(2, 2).flat, strict=True):
        for curve in result["curves"]:
            if (curve["over"], curve["fixed"]) != (over, fixed):
                continue
            style, name = styles[curve["peer"], curve["cell"]], f"{curve['peer']} {curve['cell']}"
            sizes, step = curve["sizes"], curve["step_us"]
            axes.plot(sizes, step, label=name, **{"linewidth": 1.3, **style})
            if over == "batch":
                row = [us / size for us, size in zip(step, sizes, strict=True)]
                axes.plot(sizes, row, **{"linewidth": 1.0, **style, "marker": "", "linestyle": "--"})
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.grid(alpha=0.3, which="both")
        axes.set_title(f"{'B' if over == 'hidden' else 'H'} = {fixed}", fontsize=10)
        axes.set_xlabel("H" if over == "hidden" else "B", fontsize=9)
        axes.set_ylabel("µs a step" + ("" if over == "hidden" else ", dashed: and row"), fontsize=9)
        axes.set_xlim(0, None)
    m = result["meta"]
    figure.suptitle(
        f"Inference, I = H: rnnfast {m['rnnfast']}, {m['cpu']}, threads: {m['threads']}, torch {m['torch']}",
        fontsize=10,
    )
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)
    figure.savefig(path, dpi=130)
    return figure


def main(arguments: list[str] | None = None) -> int:
    options = record.parser("smooth", __doc__).parse_args(arguments)
    result = run(options.threads, options.quick, record.command("smooth", arguments))
    folder = options.out or (record.PART if options.quick else record.RESULTS)
    record.save(result, folder, "smooth")
    chart(result, folder / "smooth.png")
    print("Largest rise of the time for a unit of work, from a point to the next:")
    for ratio, place in jumps(result):
        print(f"  {ratio:.2f}  {place}")
    print(f"\nWritten to {folder}: smooth.json, smooth.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
