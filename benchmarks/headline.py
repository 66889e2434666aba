"""The README's ten rows of a bench, as a table and as a picture.

torch.nn's time is that of its quickest way: the layer itself, a loop over its cells, or a padded batch.
"""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from . import record

# The row of the bench, and what it is to a stranger. Weak rows are among them, or the ten would say too much.
ROWS = {
    ("lstm-b1-h128", "inference"): "LSTM, 1 sequence, 128 units",
    ("lstm-b1-h128", "training"): "LSTM, 1 sequence, 128 units",
    ("gru-b1-h128", "inference"): "GRU, 1 sequence, 128 units",
    ("gru-b16-h256", "training"): "GRU, 16 sequences, 256 units",
    ("rnn-b16-h256", "training"): "RNN, 16 sequences, 256 units",
    ("lstm-stream-h128", "inference"): "LSTM, a stream of single steps, 128 units",
    ("lstm-packed", "training"): "LSTM, 64 packed sequences of 100 to 400 steps, 128 units",
    ("lstm-b64-h256-bf16", "inference"): "LSTM, 64 sequences, 256 units, bfloat16",
    ("lstm-b64-h256", "inference"): "LSTM, 64 sequences, 256 units",
    ("lstm-b128-h1024", "training"): "LSTM, 128 sequences, 1024 units",
}
PICTURE = Path("benchmarks/results/headline.png")  # from where the README lies
WAYS = {"torch.nn": "", "Python loop": " (loop over cells)", "torch.nn padded": " (padded)"}


def chosen(result: dict) -> list[tuple[str, str, dict, str]]:
    """(label, mode, the row of the bench, torch.nn's quickest way) of each of ROWS."""
    rows = {(row["name"], row["mode"]): row for row in result["rows"]}
    if missing := [" ".join(key) for key in ROWS if key not in rows]:
        raise ValueError(f"the README's rows are not all in this bench: {', '.join(missing)} missing")
    return [
        (
            label,
            key[1],
            rows[key],
            min(WAYS.keys() & rows[key]["peers"], key=lambda way: median(rows[key], way)),
        )
        for key, label in ROWS.items()
    ]


def median(row: dict, peer: str) -> float:
    return row["peers"][peer]["median_ms"]


def milliseconds(value: float) -> str:
    """Three digits, none of them an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def run_on(result: dict) -> str:
    m = result["meta"]
    where = f"{m['cpu']} ({m['machine']}, {m['isa']}), threads: {m['threads']}"
    return f"{where}, torch {m['torch']}, {m['date'].split()[0]}"


def markdown(result: dict) -> str:
    """Milliseconds, medians, and the speed-up: the median of the ratios of the rounds."""
    lines = [
        [
            label,
            mode,
            f"{milliseconds(median(row, way))}{WAYS[way]}",
            milliseconds(median(row, "rnnfast")),
            f"{row['peers'][way]['ratio']:.2f}×",
        ]
        for label, mode, row, way in chosen(result)
    ]
    return (
        f"{record.pipes((['ms a call', '', 'torch.nn', 'rnnfast', 'speed-up'], lines), 2)}\n\n"
        f"![How many times as fast as torch.nn]({PICTURE})\n\n"
        f"{run_on(result)}."
    )


def chart(result: dict, path: Path) -> None:
    """A bar for each row: how many times as fast as torch.nn; the line is at equal speed."""
    colours = {"inference": "#4c78a8", "training": "#e0863b"}
    figure = Figure(figsize=(8, 4.4), layout="constrained", facecolor="white")
    axes = figure.subplots()
    rows = chosen(result)
    for y, (_, mode, row, way) in enumerate(rows):
        ratio = row["peers"][way]["ratio"]
        axes.barh(y, ratio, 0.7, color=colours[mode], label=mode if y in (0, 1) else None)
        axes.annotate(
            f"{ratio:.1f}×", (ratio, y), (4, 0), textcoords="offset points", va="center", fontsize=10
        )
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(rows)), [label.replace(" of 100 to 400 steps", "") for label, *_ in rows])
    axes.tick_params(labelsize=10)
    axes.invert_yaxis()
    axes.margins(x=0.08)
    axes.set_xlabel("times as fast as torch.nn at its quickest (line: equal)", fontsize=10)
    figure.suptitle(run_on(result), fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", fontsize=10, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=200)
