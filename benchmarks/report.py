"""What a run of the benchmarks leaves: terminal table, JSON, CSV, chart, and the tables of README and docs.

python -m benchmarks.report JSON ... --readme README.md
puts what each JSON says between its markers in docs/results.md, from the JSON and nothing else; ten rows of a
bench and their picture go into the README, all its rows into docs/benchmarks.md, what conditions says into
docs/conditions.md. Of several benches, of other machines, docs/results.md has the means.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from statistics import geometric_mean

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from rnnfast.bench.peers import ALL_OF_FLOAT32
from rnnfast.bench.roofline import SLACK

from . import conditions, enabled, episodes, headline, memory, record, smooth

# in the order of the columns
OTHERS = ("torch.nn", "Python loop", "onnxruntime", "openvino", "openvino-bf16")
JUDGED = tuple(name for name in OTHERS if name != "Python loop")  # whom no row is to be lost to


def faults(result: dict) -> list[str]:
    """Why this run is no result: outputs that differ, or a peer faster than the machine's limit."""
    found = []
    for row in result["rows"]:
        if row["failed"]:
            found.append(f"{row['name']} {row['mode']}: {row['failed']}")
        for name, peer in row["peers"].items():
            if not peer["fraction"] <= SLACK:
                found.append(
                    f"{row['name']} {row['mode']}: {name} at {peer['fraction']:.2f} of the measured limit"
                )
    return found


def milliseconds(row: dict, name: str) -> str:
    if name not in row["peers"]:
        return "–"
    text, padded = f"{row['peers'][name]['median_ms']:.3g}", f"{name} padded"
    return f"{text} (padded {milliseconds(row, padded)})" if padded in row["peers"] else text


def speedup(row: dict) -> str:
    ratio = row["speedup"]
    return f"{ratio['median']:.2f}× ({ratio['q1']:.2f}–{ratio['q3']:.2f})"


def header(result: dict) -> str:
    lines = [record.machine(result)]
    for threads, rates in result["roofline"].items():
        products = rates.get("product_gflops", {})  # torch.mm's, beside the limit
        flops = ", ".join(
            f"{value:.0f} GFLOP/s {dtype}" + (f" (torch.mm {products[dtype]:.0f})" if products else "")
            for dtype, value in rates["gflops"].items()
        )
        reads = ", ".join(f"{level} {value:.0f}" for level, value in rates["read_gb_per_s"].items())
        lines.append(
            f"Measured in the same run, threads: {threads}: {flops}; reads {reads} GB/s; "
            f"barrier {rates['barrier_us']:.2f} µs; 16 sigmoids {rates['sigmoid_ns_per_16']:.1f} ns."
        )
    return "\n".join(lines)


def spent(row: dict) -> str:
    """What rnnfast's time goes into, the largest first, in percent; the product beside its limit."""

    def text(work: str, part: float) -> str:
        if work != "product":
            return f"{work} {100 * part:.0f}"
        return f"product {100 * part:.0f} ({row['product_limit_ms'] / ours / part:.2f} of {row['bound']})"

    ours = row["peers"]["rnnfast"]["median_ms"]
    works = sorted(row["spent"].items(), key=lambda item: -item[1])
    return ", ".join(text(work, part) for work, part in works if part >= 0.015)


def table(result: dict) -> tuple[list[str], list[list[str]]]:
    """Column names and cells: milliseconds, medians; one line for each row and mode."""
    columns = ["row", "shape", "mode", *OTHERS, "rnnfast", "speed-up (quartiles)", "of limit"]
    columns += ["% of its time", "max diff"]
    lines = []
    for row in result["rows"]:
        ours = row["peers"]["rnnfast"]
        lines.append(
            [
                f"{row['name']}",
                f"{row['cell']} {row['shape']}",
                row["mode"],
                *(milliseconds(row, name) for name in (*OTHERS, "rnnfast")),
                "FAILED" if row["failed"] else speedup(row),
                f"{ours['fraction']:.2f}",
                spent(row),
                f"{ours['difference']:.0e}",
            ]
        )
    return columns, lines


def geometric_means(result: dict) -> dict[tuple[str, str, str], tuple[float, str, float]]:
    """Of the required rows: (peer, mode, cell) -> the mean speed-up, the worst row, its speed-up."""
    ratios: dict[tuple[str, str, str], dict[str, float]] = {}
    for row in result["rows"]:
        for peer in JUDGED:
            if row["required"] and peer in row["peers"]:
                key = peer, row["mode"], row["cell"]
                ratios.setdefault(key, {})[row["name"]] = row["peers"][peer]["ratio"]
    return {
        key: (geometric_mean(of.values()), min(of, key=of.get), min(of.values()))
        for key, of in ratios.items()
    }


def summary(result: dict) -> record.Table:
    """The means and the worst rows: a line for each peer and mode, a column for each cell."""
    means = geometric_means(result)
    cells = list(dict.fromkeys(cell for _, _, cell in means))

    def cell_text(mean: float, name: str, worst: float) -> str:
        return f"{mean:.2f}× (worst {name} {worst:.2f}×)"

    lines = [
        [f"over {peer}, {mode}"]
        + [cell_text(*means[peer, mode, cell]) if (peer, mode, cell) in means else "–" for cell in cells]
        for peer, mode in sorted({key[:2] for key in means}, key=lambda key: (JUDGED.index(key[0]), key[1]))
    ]
    return ["geometric mean of the speed-ups", *cells], lines


def by_shape(result: dict) -> record.Table:
    """The required rows' speed-ups over torch.nn: a line for each shape, a column for each cell and mode."""
    ratios = {
        (row["shape"], row["cell"], row["mode"]): row["speedup"]["median"]
        for row in result["rows"]
        if row["required"]
    }
    kinds = list(dict.fromkeys(key[1:] for key in ratios))
    text = {key: f"{ratio:.2f}×" for key, ratio in ratios.items()}
    lines = [
        [shape, *(text.get((shape, *kind), "–") for kind in kinds)]
        for shape in dict.fromkeys(key[0] for key in ratios)
    ]
    return ["speed-up over torch.nn", *(" ".join(kind) for kind in kinds)], lines


def asked_for_less(result: dict) -> record.Table | None:
    """The mean speed-ups of rows where less than float32 is asked for, from 16 sequences on, or None."""
    peers = {
        ALL_OF_FLOAT32: "over rnnfast's own float32",
        "torch.nn": "over torch.nn, told the same",
        "openvino-bf16": "over OpenVINO in bfloat16",
    }
    kinds: dict[tuple[str, ...], list[dict]] = {}
    for row in result["rows"]:
        if row.get("precision", "none") != "none" and row["batch"] >= 16:
            kinds.setdefault((row["cell"], row["precision"], row["mode"]), []).append(row)

    def mean(rows: list[dict], peer: str) -> str:
        ratios = [row["peers"][peer]["ratio"] for row in rows if peer in row["peers"]]
        return f"{geometric_mean(ratios):.2f}×" if ratios else "–"

    lines = [
        [f"{cell}, {precision}, {mode}", f"{len(rows)}", *(mean(rows, peer) for peer in peers)]
        for (cell, precision, mode), rows in kinds.items()
    ]
    return (["geometric mean of the speed-ups", "rows", *peers.values()], lines) if lines else None


def lost(result: dict) -> str:
    """The rows that are slower than a peer, the slowest first, and those that may be, by their quartiles."""

    def even(one: dict, other: dict) -> bool:
        return any(a["q1_ms"] <= b["median_ms"] <= a["q3_ms"] for a, b in ((one, other), (other, one)))

    def names(peer: str) -> str:
        rows = [row for row in result["rows"] if peer in row["peers"]]
        slower, equal = [], []
        for row in rows:
            theirs = row["peers"][peer]
            entry = theirs["ratio"], f"{row['name']} {row['mode']} {theirs['ratio']:.2f}×"
            if even(theirs, row["peers"]["rnnfast"]):
                equal.append(entry)
            elif theirs["ratio"] < 1:
                slower.append(entry)
        lists = [", ".join(text for _, text in sorted(entries)) for entries in (slower, equal)]
        text = f"to {peer}, of {len(rows)}: {lists[0] or 'none'}"
        return text + (f" (not certain, a median within the other's quartiles: {lists[1]})" if equal else "")

    there = [peer for peer in JUDGED if any(peer in row["peers"] for row in result["rows"])] or JUDGED[:1]
    return f"Rows lost {'; '.join(names(peer) for peer in there)}."


def terminal(result: dict) -> str:
    means = [record.aligned(summary(result), 1)] if geometric_means(result) else []
    parts = [header(result), *means, record.aligned(table(result), 3)]
    return "\n\n".join(parts) + "".join(f"\nFAILED {fault}" for fault in faults(result))


def checked(result: dict) -> dict:
    """A run with faults makes no table."""
    if found := faults(result):
        raise ValueError("this run is no result: " + "; ".join(found))
    return result


def markdown(result: dict, *others: dict) -> str:
    """What docs/results.md says of a run, and of others on other machines."""
    parts = [header(checked(result)).replace("\n", "  \n")]
    if shapes := len({row["shape"] for row in result["rows"] if row["required"]}):
        parts.append(f"Over {shapes} shapes, the same for all three cells (I = H, float32):")
        parts += [record.pipes(summary(result), 1), record.pipes(by_shape(result), 1)]
    if less := asked_for_less(result):
        parts.append("Where torch's `fp32_precision` asks for less than float32, 16 sequences or more:")
        parts.append(record.pipes(less, 1))
    parts.append(lost(result))
    for other in others:
        same = other["meta"]["commit"] == result["meta"]["commit"]
        where = "The same on another machine" if same else "On another machine, at an earlier commit"
        parts.append(f"{where}: {record.machine(checked(other))}")
        parts += [record.pipes(summary(other), 1), lost(other)]
    parts.append("Every row, with times and limits: [benchmarks.md](benchmarks.md).")
    return "\n\n".join(parts)


def page(*results: dict) -> str:
    """docs/benchmarks.md: every row of each run."""
    note = (
        "Milliseconds, medians of interleaved rounds. Speed-up: median of the pairs over torch.nn (deep "
        "transition: over the Python loop). Of limit: the roofline of the row over the time. Of its time: "
        "percent, as rnnfast's threads count it themselves; outside: Python, torch, allocation; beside the "
        "product, how near it comes to the machine's multiplying (torch.mm's own rate stands beside that) or "
        "reading: what keeps a row from its limit is the largest of these. Max diff: rnnfast against "
        "float64, as a share of the largest value; with all gradients when training."
    )
    parts = ["# Benchmarks", "Made from the JSON of `make bench`. " + note]
    for result in results:
        parts += [f"## {result['meta']['cpu']}", header(checked(result)).replace("\n", "  \n")]
        parts.append(record.pipes(table(result), 3))
    parts.append("The first run as a picture:\n\n![Speed-up over torch.nn](../benchmarks/results/bench.png)")
    return "\n\n".join(parts) + "\n"


def markers(kind: str) -> tuple[str, str]:
    return f"<!-- {kind}:begin -->", f"<!-- {kind}:end -->"


def fill(text: str, kind: str, body: str) -> str:
    """`text` with `body` between the markers of its kind."""
    begin, end = markers(kind)
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(end) < text.index(begin):
        raise ValueError(f"there should be {begin} and, after it, {end}, once each")
    return text[: text.index(begin)] + f"{begin}\n{body}\n" + text[text.index(end) :]


def piece(kind: str, results: list[dict]) -> str:
    if len(results) > 1 and kind != "bench":
        raise ValueError(f"{len(results)} results of {kind}, expected one")
    return PIECES[kind](*results)


# What docs/results.md says of a result, by its kind.
PIECES = {
    "bench": markdown,
    "memory": memory.markdown,
    "smooth": smooth.markdown,
    "conditions": conditions.markdown,
    "enabled": enabled.markdown,
    "episodes": episodes.markdown,
}


# What else is made of it, in docs/.
PAGES = {"bench": ("benchmarks.md", page), "conditions": ("conditions.md", conditions.page)}


def write_csv(result: dict, path: Path) -> None:
    """One line for each row, mode and peer. products: of parts, that rnnfast made of one of float32."""
    with path.open("w", newline="") as file:
        keys = ["name", "mode", "cell", "shape", "reason", "limit_ms", "rounds", "failed"]
        values = ["median_ms", "q1_ms", "q3_ms", "first_ms", "difference", "fraction"]
        writer = csv.writer(file)
        writer.writerow([*keys, "products", "peer", *values])
        for row in result["rows"]:
            for name, peer in row["peers"].items():
                of_row = [*(row[key] for key in keys), row["plan"]["products"]]
                writer.writerow([*of_row, name, *(peer[value] for value in values)])


def chart(result: dict, path: Path) -> Figure:
    """Speed-up of each row over its baseline, logarithmic; what loses is red and hatched."""
    colours = {"inference": "#4c78a8", "training": "#72b7b2"}
    losing = "#d62728"
    names = list(dict.fromkeys(row["name"] for row in result["rows"]))
    figure = Figure(figsize=(9, 1.6 + 0.36 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row in result["rows"]:
        ratio, training = row["speedup"], row["mode"] == "training"
        lost = row["failed"] or ratio["median"] < 1
        y = names.index(row["name"]) + (0.2 if training else -0.2)
        style = (
            {"color": losing, "hatch": "////", "edgecolor": "white"}
            if lost
            else {"color": colours[row["mode"]]}
        )
        axes.barh(y, ratio["median"] - 1, 0.38, left=1, **style)  # bars start at 1: equal speed
        axes.plot([ratio["q1"], ratio["q3"]], [y, y], color="black", linewidth=1)
        axes.annotate(
            "FAILED" if row["failed"] else f"{ratio['median']:.2f}×",
            xy=(1, y),
            xycoords=("axes fraction", "data"),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=losing if lost else "black",
        )
        if peer := row["peers"].get("onnxruntime"):
            other = row["peers"][row["baseline"]]["median_ms"] / peer["median_ms"]
            axes.plot(
                other, y, color="black", marker="D", markersize=5, markeredgecolor="white", linestyle=""
            )
    axes.set_xscale("log")
    low = min(row["speedup"]["q1"] for row in result["rows"])
    high = max(row["speedup"]["q3"] for row in result["rows"])
    axes.set_xlim(min(0.8, low * 0.9), max(2.0, high * 1.5))
    ticks = [
        t
        for t in (0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 5, 10, 20, 50, 100, 200)
        if axes.get_xlim()[0] <= t <= axes.get_xlim()[1]
    ]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    m = result["meta"]
    label = "speed-up over torch.nn (deep transition: over the Python loop), median and quartiles"
    axes.set_xlabel(label, fontsize=8)
    axes.set_title(
        f"rnnfast {m['rnnfast']}, {m['cpu']}, threads: {m['threads']}, torch {m['torch']}", fontsize=9
    )
    handles = [Patch(color=colour, label=mode) for mode, colour in colours.items()]
    handles.append(Patch(facecolor=losing, hatch="////", edgecolor="white", label="slower, or wrong"))
    handles.append(Line2D([], [], color="black", marker="D", markersize=4, linestyle="", label="onnxruntime"))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)
    return figure


def write(result: dict, folder: Path) -> None:
    """Prints the table; leaves bench.json, bench.csv and bench.png in `folder`."""
    record.save(result, folder, "bench")
    write_csv(result, folder / "bench.csv")
    chart(result, folder / "bench.png")
    print(terminal(result))
    print(f"\nWritten to {folder}: bench.json, bench.csv, bench.png")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.splitlines()[2])
    parser.add_argument("json", type=Path, nargs="+")
    parser.add_argument("--readme", type=Path, required=True)
    options = parser.parse_args(arguments)
    kinds: dict[str, list[dict]] = {}
    for path in options.json:
        result = json.loads(path.read_text())
        kinds.setdefault(result["kind"], []).append(result)
    docs = options.readme.parent / "docs"
    results = docs / "results.md"
    texts = {options.readme: options.readme.read_text(), results: results.read_text()}
    try:
        for kind, found in kinds.items():
            texts[results] = fill(texts[results], kind, piece(kind, found))
        if "bench" in kinds:
            first = kinds["bench"][0]
            texts[options.readme] = fill(texts[options.readme], "headline", headline.markdown(first))
            headline.chart(first, options.readme.parent / headline.PICTURE)
    except ValueError as error:
        sys.exit(f"benchmarks.report: {error}")
    for path, text in texts.items():
        path.write_text(text)
    for kind in kinds.keys() & PAGES.keys():
        name, make = PAGES[kind]
        (docs / name).write_text(make(*kinds[kind]))


if __name__ == "__main__":
    main()
