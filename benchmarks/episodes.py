"""Rows that end early and states that begin anew: one call beside what people write for it.

python -m benchmarks.episodes [--quick] [--out FOLDER] [--threads N]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from tqdm import tqdm

import rnnfast
from benchmarks import record
from benchmarks.cases import LENGTHS

ROUNDS, SECONDS = 9, 0.3  # of a contender's turn in a round, at least one call
RATE = 0.02  # resets per row and step
SIZES = {(128, 4, 64): "T=128 B=4 H=64", (128, 16, 64): "T=128 B=16 H=64", (128, 16, 128): "T=128 B=16 H=128",
         (128, 64, 256): "T=128 B=64 H=256"}  # fmt: skip


OTHERS = (
    "torch.nn",
    "torch.nn, split",
    "torch.nn, steps",
    "ours, packed",
    "ours, packed before",
    "ours, no resets",
)
OF_ANOTHER_FORM = OTHERS[-2:]  # what they return is not compared


@dataclass
class Row:
    """Calls of the same result, the first of which is ours."""

    name: str
    calls: dict[str, Callable[[], Tensor]]
    parameters: list[Tensor]


def of_lengths(cell: str) -> Row:
    """Rows of 100 to 400 steps, 0.65 of them real, in no order: by `lengths`, and packed and padded again."""
    torch.manual_seed(0)
    theirs = getattr(nn, cell)(128, 128)
    ours = getattr(rnnfast, cell)(128, 128)
    ours.load_state_dict(theirs.state_dict())
    lengths = torch.tensor(LENGTHS)[torch.randperm(len(LENGTHS))]
    x = torch.randn(max(LENGTHS), len(LENGTHS), 128)
    rows = pack_padded_sequence(x, lengths, enforce_sorted=False)

    def packed(layer: nn.Module) -> Callable:
        def call() -> Tensor:
            made = pack_padded_sequence(x, lengths, enforce_sorted=False)
            return pad_packed_sequence(layer(made)[0])[0]

        return call

    calls = {
        "ours": lambda: ours(x, lengths=lengths)[0],
        "torch.nn": packed(theirs),
        "ours, packed": packed(ours),
        "ours, packed before": lambda: ours(rows)[0].data,
    }
    return Row(f"{cell} lengths, T=400 B=64 H=128", calls, [*ours.parameters(), *theirs.parameters()])


def of_resets(cell: str, T: int, B: int, H: int) -> Row:
    """Episodes that end inside: by `resets`, a loop over the parts between resets, and one over the steps."""
    torch.manual_seed(0)
    theirs = getattr(nn, cell)(H, H)
    ours = getattr(rnnfast, cell)(H, H)
    ours.load_state_dict(theirs.state_dict())
    x, resets = torch.randn(T, B, H), torch.rand(T, B) < RATE
    keep = ~resets[:, None, :, None]  # [T, 1, B, 1]
    begins = [0, *(t for t in range(1, T) if resets[t].any()), T]

    def kept(state, t: int):
        if state is None:
            return None
        return tuple(s * keep[t] for s in state) if isinstance(state, tuple) else state * keep[t]

    def parts(ends: list[int]) -> Callable:
        def call() -> Tensor:
            ys, state = [], None
            for begin, end in zip(ends[:-1], ends[1:], strict=True):
                y, state = theirs(x[begin:end], kept(state, begin))
                ys.append(y)
            return torch.cat(ys)

        return call

    calls = {
        "ours": lambda: ours(x, resets=resets)[0],
        "torch.nn, split": parts(begins),
        "torch.nn, steps": parts(list(range(T + 1))),
        "ours, no resets": lambda: ours(x)[0],
    }
    return Row(f"{cell} resets, {SIZES[T, B, H]}", calls, [*ours.parameters(), *theirs.parameters()])


def timed(row: Row, training: bool, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each call, in turns; a training call is forward and backward to the weights."""

    def once(call: Callable) -> None:
        y = call()
        if training:
            y.sum().backward()

    found: dict[str, list[float]] = {name: [] for name in row.calls}
    with torch.set_grad_enabled(training):
        first, *others = row.calls
        for name in others:
            if name not in OF_ANOTHER_FORM:
                torch.testing.assert_close(row.calls[first](), row.calls[name](), rtol=1e-4, atol=1e-5)
        for index in range(rounds + 1):
            for name, call in row.calls.items():
                start, n = time.perf_counter(), 0
                while n == 0 or time.perf_counter() - start < seconds:
                    once(call)
                    n += 1
                if index:  # the first round is to warm up
                    found[name].append((time.perf_counter() - start) / n * 1e3)
            for parameter in row.parameters:
                parameter.grad = None
    return found


def run(threads: int, quick: bool, command: str) -> dict:
    torch.set_num_threads(threads)
    sizes = list(SIZES)[:1] if quick else list(SIZES)
    rows = [of_lengths(cell) for cell in ("LSTM", "GRU") if not quick]
    rows += [of_resets(cell, *size) for cell in ("LSTM", "GRU") for size in sizes]
    times = {}
    for row in tqdm(rows):
        for mode in "inference", "training":
            each = (1, 0.0) if quick else (ROUNDS, SECONDS)
            times[f"{row.name}, {mode}"] = timed(row, mode == "training", *each)
    return {"kind": "episodes", "meta": record.meta(threads, command), "times": times}


def ratio(times: dict[str, list[float]], name: str) -> str:
    """Median of the rounds' ratios to ours."""
    if name not in times:
        return ""
    return f"{statistics.median(a / b for a, b in zip(times[name], times['ours'], strict=True)):.2f}×"


def table(result: dict) -> record.Table:
    lines = [
        [name, f"{statistics.median(times['ours']):.2f}", *(ratio(times, other) for other in OTHERS)]
        for name, times in result["times"].items()
    ]
    return ["", "ms", *(f"{other}" for other in OTHERS)], lines


def markdown(result: dict) -> str:
    """What docs/results.md says."""
    note = (
        "Times are of one call with `lengths=` or `resets=`; the other columns are how many times as long it "
        "takes otherwise: packed and padded by torch (64 rows, 0.65 full), split wherever a row is reset, "
        f"step by step, by ours of packed rows, with the packing or without it, or without resets. Resets "
        f"at a rate of {RATE} per row and step."
    )
    return f"{record.pipes(table(result), 1)}\n\n{note} {record.machine(result)}"


def main(arguments: list[str] | None = None) -> int:
    options = record.parser("episodes", __doc__).parse_args(arguments)
    result = run(options.threads, options.quick, record.command("episodes", arguments))
    folder = options.out or (record.PART if options.quick else record.RESULTS)
    record.save(result, folder, "episodes")
    print(record.aligned(table(result), 1))
    print(f"\nWritten to {folder}: episodes.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
