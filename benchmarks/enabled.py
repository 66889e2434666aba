"""What `rnnfast.enable` costs and gains: a call of a tiny cell, and streams of single steps.

python -m benchmarks.enabled [--quick] [--out FOLDER] [--threads N]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

import rnnfast
from benchmarks import record

ROUNDS, CALLS = 20, 10_000  # of the tiny cell
STREAM_ROUNDS, STREAM_CALLS = 20, 1_000
UNITS = 64  # of the streams
CONTENDERS = ("torch", "torch, no inputs", "passed on", "taken", "op")


def microseconds(call: Callable, n: int) -> float:
    """A call's time, the mean of n."""
    call()
    start = time.perf_counter()
    for _ in range(n):
        call()
    return (time.perf_counter() - start) / n * 1e6


def tiny_cell(rounds: int, calls: int) -> dict[str, list[float]]:
    """torch._VF.lstm_cell with four units, each way in turns; and the op that a taken call comes down to.

    What is passed on is a call that ours looks at and does not take: of a cell without inputs.
    """
    x, h = torch.randn(1, 4), torch.zeros(1, 4)
    weights = [p.detach() for p in nn.LSTMCell(4, 4).parameters()]
    step, state = x.unsqueeze(0), h.unsqueeze(0)
    nothing, without = torch.zeros(1, 0), [weights[0][:, :0], *weights[1:]]
    op, none = torch.ops.rnnfast.recurrent.default, [None] * 7

    def by_torch():
        torch._VF.lstm_cell(x, (h, h), *weights)

    def without_inputs():
        torch._VF.lstm_cell(nothing, (h, h), *without)

    def by_op():
        op("lstm", step, state, state, *weights, *none, False, False)

    found: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        rnnfast.disable()
        found["torch"].append(microseconds(by_torch, calls))
        found["torch, no inputs"].append(microseconds(without_inputs, calls))
        with rnnfast.enabled():
            found["passed on"].append(microseconds(without_inputs, calls))
            found["taken"].append(microseconds(by_torch, calls))
        found["op"].append(microseconds(by_op, calls))
    return found


def stream(kind: str, rounds: int, calls: int) -> dict[str, list[float]]:
    """A step of one row: torch.nn's module as it is, the same while enabled, and rnnfast's own."""
    theirs, x = getattr(nn, kind)(UNITS, UNITS), torch.randn(1, 1, UNITS)
    ours = getattr(rnnfast, kind)(UNITS, UNITS)
    ours.load_state_dict(theirs.state_dict())
    state = theirs(x)[1]
    found: dict[str, list[float]] = {"torch": [], "enabled": [], "converted": []}
    for _ in range(rounds):
        found["torch"].append(microseconds(lambda: theirs(x, state), calls))
        with rnnfast.enabled():
            torch.testing.assert_close(theirs(x, state), ours(x, state))
            found["enabled"].append(microseconds(lambda: theirs(x, state), calls))
        found["converted"].append(microseconds(lambda: ours(x, state), calls))
    return found


def run(threads: int, quick: bool, command: str) -> dict:
    torch.set_num_threads(threads)
    part = 10 if quick else 1
    with torch.inference_mode():
        cell = tiny_cell(max(ROUNDS // part, 2), CALLS // part)
        streams = {
            kind: stream(kind, max(STREAM_ROUNDS // part, 2), STREAM_CALLS // part)
            for kind in ("LSTM", "GRU", "RNN")
        }
    return {"kind": "enabled", "meta": record.meta(threads, command), "cell": cell, "streams": streams}


def difference(times: dict[str, list[float]], one: str, other: str) -> float:
    """Median of the rounds' differences."""
    return statistics.median(a - b for a, b in zip(times[one], times[other], strict=True))


def ratio(times: dict[str, list[float]], one: str, other: str) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(times[one], times[other], strict=True))


def table(result: dict) -> record.Table:
    lines = []
    for kind, times in result["streams"].items():
        median = {name: statistics.median(values) for name, values in times.items()}
        gains = [f"{ratio(times, 'torch', name):.2f}×" for name in ("enabled", "converted")]
        lines.append([f"{kind} T=1 B=1 H={UNITS}", *(f"{median[name]:.1f}" for name in times), *gains])
    names = ["torch.nn", "enabled", "converted"]
    return ["µs a step", *names, *(f"over torch.nn, {name}" for name in names[1:])], lines


def cost(result: dict) -> str:
    cell = result["cell"]
    by_torch, taken = (statistics.median(cell[name]) for name in ("torch", "taken"))
    passed, beside = difference(cell, "passed on", "torch, no inputs"), difference(cell, "taken", "op")
    return (
        f"A call of `torch._VF.lstm_cell` with four units takes {by_torch:.1f} µs by torch. One that is "
        f"looked at and passed on takes {passed:.2f} µs more; one that is taken {taken:.1f} µs, "
        f"{beside:+.2f} µs beside rnnfast's own operator."
    )


def markdown(result: dict) -> str:
    """What docs/results.md says."""
    rounds = f"Medians of {len(result['cell']['torch'])} rounds in turns."
    return f"{record.pipes(table(result), 1)}\n\n{cost(result)} {rounds} {record.machine(result)}"


def main(arguments: list[str] | None = None) -> int:
    options = record.parser("enabled", __doc__).parse_args(arguments)
    result = run(options.threads, options.quick, record.command("enabled", arguments))
    folder = options.out or (record.PART if options.quick else record.RESULTS)
    record.save(result, folder, "enabled")
    print(record.aligned(table(result), 1), cost(result), sep="\n\n")
    print(f"\nWritten to {folder}: enabled.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
