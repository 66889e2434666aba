"""How much memory a call takes beside its input: python -m benchmarks.memory --help.

It is counted as rnnfast.bench.memory says.
"""

from __future__ import annotations

import sys

import torch
from torch import nn
from tqdm import tqdm

import rnnfast
from rnnfast.bench.memory import forget_peak, give_back_what_is_freed, resident

from . import record
from .cases import Case

PEERS = {"torch.nn": nn, "rnnfast": rnnfast}
STEPS = 3  # of training, one after the other: what one leaves may serve the next
WHAT = {
    "inference": "inference, peak",
    "forward": "training, between forward and backward",
    "training": f"training, peak of {STEPS} steps",
    "left": "training, after all results are freed",
}
CASES = [
    Case("lstm-b64-h256", "a training batch", "LSTM", 64, 256, 200),
    Case("gru-b64-h256", "a training batch", "GRU", 64, 256, 200),
    Case("rnn-b64-h256", "a training batch", "RNN", 64, 256, 200),
    Case("lstm-t10000-b1-h64", "one very long sequence", "LSTM", 1, 64, 10000),
    Case("lstm-b16-h300-l3", "three layers, odd H", "LSTM", 16, 300, 400, layers=3),
    Case("lstm-b16-h128-d2", "both directions", "LSTM", 16, 128, 500, directions=2, quick=True),
]


def growth(peer: str, case: Case, training: bool, threads: int) -> dict[str, int]:
    """Bytes by which this process grows with the calls of a layer; to run in a new process.

    A short call comes first: what libraries set up once is not a call's.
    """
    give_back_what_is_freed()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    sizes = (case.input_size, case.hidden, case.layers)
    layer = getattr(PEERS[peer], case.cell)(*sizes, bidirectional=case.directions == 2)
    x = torch.randn(case.steps, case.batch, case.input_size)
    dy = torch.randn(case.steps, case.batch, case.directions * case.hidden)
    found: dict[str, int] = {}

    def infer(steps: int) -> None:
        with torch.inference_mode():
            layer(x[:steps])

    def train(steps: int) -> None:
        leaf = x[:steps].detach().requires_grad_()
        y, _ = layer(leaf)
        found.setdefault("forward", resident("VmRSS") - before)
        torch.autograd.grad(y, [leaf, *layer.parameters()], dy[:steps])

    call = train if training else infer
    before = 0
    call(5)
    rnnfast.info.empty_cache()  # what this call left would serve the next ones uncounted
    found.clear()
    forget_peak()
    before = resident("VmRSS")
    for _ in range(STEPS if training else 1):
        call(case.steps)
    found["training" if training else "inference"] = resident("VmHWM") - before
    if training:
        found["left"] = resident("VmRSS") - before
    return found


def run(cases: list[Case], threads: int, command: str) -> dict:
    """The result as it is written to JSON: bytes for each step and row."""
    rows = []
    for case in tqdm(cases, unit="shape"):
        row = {"name": case.name, "shape": f"{case.cell} {case.shape}", "reason": case.reason}
        row |= {"outputs": case.directions * case.hidden, "peers": {}}
        for peer in PEERS:
            found = {}
            for training in (False, True):
                found |= record.in_process(growth, peer, case, training, threads, start="forkserver")
            row["peers"][peer] = {what: value / (case.steps * case.batch) for what, value in found.items()}
        rows.append(row)
    return {"kind": "memory", "meta": record.meta(threads, command), "rows": rows}


def table(result: dict) -> record.Table:
    lines = []
    for row in result["rows"]:
        for what, words in WHAT.items():
            theirs, ours = (row["peers"][peer][what] for peer in PEERS)
            each = [f"{bytes:,.0f} ({bytes / 4 / row['outputs']:.1f})" for bytes in (theirs, ours)]
            lines.append([row["shape"], words, *each])
    return ["shape", "", *PEERS], lines


def markdown(result: dict) -> str:
    note = (
        "Bytes for each step and row of the batch, beside the input and the parameters; in brackets: float32 "
        "numbers for each output. Backward needs 6 of them for an LSTM, 5 for a GRU and 1 for an RNN, the "
        "output among them. Measured is by how much the resident set of a new process grows, gradients and "
        f"packed weights included. {record.machine(result)}"
    )
    return record.pipes(table(result), 2) + "\n\n" + note


def main(arguments: list[str] | None = None) -> int:
    options = record.parser("memory", __doc__).parse_args(arguments)
    cases = [case for case in CASES if case.quick or not options.quick]
    result = run(cases, options.threads, record.command("memory", arguments))
    folder = options.out or (record.PART if options.quick else record.RESULTS)
    record.save(result, folder, "memory")
    print(record.aligned(table(result), 2))
    print(f"\nWritten to {folder}: memory.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
