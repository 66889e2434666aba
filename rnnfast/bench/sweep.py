"""One size of a layer doubled from its least to its largest: a table, and a chart."""

from __future__ import annotations

import re
from pathlib import Path

from . import cell
from .progress import Bar
from .tables import Table

STYLES = {"torch.nn": {"color": "grey"}, "rnnfast": {"color": "#d62728", "linewidth": 2}}


def measure(asked, machine: cell.Machine, bar: Bar) -> dict:
    """The rows of all sizes, which share the time."""
    name, sizes = asked.sweep
    seconds = asked.seconds / len(sizes)
    rows = [cell.measure(case, asked, seconds, machine, bar) for case in asked.cases]
    return {"over": name, "sizes": sizes, "rows": rows}


def table(result: dict) -> Table:
    """A line for each size: milliseconds of every peer, and the rest of rnnfast's."""
    names = list(result["rows"][0]["peers"])
    columns = [result["over"], *(f"{name} ms" for name in names)]
    columns += [f"over {name}" for name in names if name != "rnnfast"]
    columns += ["difference", "KiB", "of the limit"]
    lines = []
    for size, row in zip(result["sizes"], result["rows"], strict=True):
        peers = row["peers"]
        ours = peers["rnnfast"]
        ratios = [ours["speedup"] / peers[name]["speedup"] for name in names if name != "rnnfast"]
        times = [f"{peers[name]['median_ms']:.3g}" for name in names]
        rest = cell.cells_of(ours)[3:]
        lines.append([str(size), *times, *(f"{ratio:.2f}×" for ratio in ratios), *rest])
    return columns, lines


def notes(result: dict) -> list[str]:
    """What stands below it."""
    rows = result["rows"]
    none = [f"No limit is given: {row['limit']['none']}." for row in rows[-1:] if "none" in row["limit"]]
    last = f"{result['over']}={result['sizes'][-1]}: {rows[-1]['explain']}"
    faults = [text for row in rows for text in cell.wrong(row)]
    return [cell.columns_mean(rows[-1], min(row["rounds"] for row in rows)), *none, last, *faults]


def title(result: dict) -> str:
    """The shape without the size that changes."""
    letter = {"input": "I", "hidden": "H"}.get(result["over"], result["over"])
    return re.sub(rf" {letter}=\d+|(?<= packed) \d+ to \d+", "", cell.title(result["rows"][0]))


def chart(result: dict, machine: str, path: Path) -> None:
    """A line for each peer, with its quartiles; both axes logarithmic."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    sizes, rows = result["sizes"], result["rows"]
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name in rows[0]["peers"]:
        middle, low, high = (
            [row["peers"][name][key] for row in rows] for key in ("median_ms", "q1_ms", "q3_ms")
        )
        style = {"linewidth": 1.3, **STYLES.get(name, {})}
        (line,) = axes.plot(sizes, middle, marker="o", markersize=4, label=name, **style)
        axes.fill_between(sizes, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    limits = [row["limit"].get("ms") for row in rows]
    if None not in limits:
        axes.plot(sizes, limits, color="black", linestyle=":", linewidth=1, label="this machine's limit")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("")
    axes.grid(alpha=0.3, which="both")
    axes.set_xlabel(result["over"])
    axes.set_ylabel("ms a call, median and quartiles")
    axes.set_title(title(result), fontsize=11)
    axes.legend(frameon=False)
    figure.supxlabel(machine, fontsize=6)
    figure.savefig(path, dpi=130)
