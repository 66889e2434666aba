"""Layers on one GPU against torch.nn, which runs cuDNN: python -m benchmarks.gpu --help.

Every row is measured with and without backward, the input product included, by device events; the two take
turns, the median is kept, and their outputs are compared in the same run. A row that torch.nn wins is printed
as lost.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import geometric_mean, median

import torch
from torch.nn.utils.rnn import pack_padded_sequence
from tqdm import tqdm

import rnnfast

from . import record

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
# Largest difference of the outputs, of their scale, that two right answers may have after a thousand steps
DIFFERENCE = {"bf16": 0.05, "fp16": 0.01, "tf32": 0.01, "fp32": 1e-4}
MODES = ("forward", "training")


@dataclass(frozen=True)
class Row:
    """I = H, one layer and one direction unless it says so."""

    cell: str
    batch: int
    hidden: int
    dtype: str
    steps: int = 1024
    layers: int = 1
    directions: int = 1
    packed: bool = False

    @property
    def name(self) -> str:
        parts = [self.cell.lower(), f"b{self.batch}", f"h{self.hidden}", self.dtype]
        parts += [f"t{self.steps}"] * (self.steps != 1024) + [f"l{self.layers}"] * (self.layers > 1)
        return "-".join(parts + ["d2"] * (self.directions > 1) + ["packed"] * self.packed)

    def standard(self, mode: str) -> bool:
        """Whether torch has cuDNN run this without a persistent kernel (aten/native/cudnn/RNN.cpp)."""
        if self.packed or self.layers > 1 or self.directions > 1:
            return self.packed or self.hidden > self.small(mode)
        static = (
            self.dtype == "fp16" and self.hidden <= 1024 and self.hidden % 128 == 0 and self.cell == "LSTM"
        )
        if static and self.batch % 8 == 0 and self.batch <= 128:
            return False
        return self.hidden > self.small(mode)

    def small(self, mode: str) -> int:
        """The widest layer for which cuDNN has the persistent kernel of small ones."""
        wide, narrow = (384, 256) if self.cell == "RNN" else (192, 128)
        return wide if mode == "forward" else narrow


def rows() -> list[Row]:
    """The core, and then one thing varied at a time."""
    core = [
        Row(cell, batch, hidden, dtype)
        for cell in ("LSTM", "GRU")
        for hidden in (128, 256, 512, 1024)
        for batch in (1, 16, 64)
        for dtype in ("bf16", "tf32")
    ]
    varied = [
        *(Row("LSTM", 16, hidden, "bf16") for hidden in (64, 768, 2048)),
        *(Row("LSTM", 256, hidden, "bf16") for hidden in (256, 1024)),
        *(Row("LSTM", 16, hidden, "fp16") for hidden in (256, 512)),
        *(Row("LSTM", 16, hidden, "fp32") for hidden in (256, 512)),
        *(Row("RNN", 16, hidden, "bf16") for hidden in (256, 512)),
        *(Row(cell, 16, 512, "bf16", layers=3) for cell in ("LSTM", "GRU")),
        *(Row(cell, 16, 512, "bf16", directions=2) for cell in ("LSTM", "GRU")),
        *(Row(cell, 64, 256, "bf16", steps=400, packed=True) for cell in ("LSTM", "GRU")),
        *(Row("LSTM", 16, hidden, "bf16", steps=128) for hidden in (256, 1024)),
    ]
    return core + varied


def set_precision(dtype: str) -> None:
    """The same for both: TF32 or IEEE in every float32 product."""
    precision = "tf32" if dtype == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.rnn.fp32_precision = precision


def calls_of(row: Row, device: str) -> dict[str, dict[str, Callable]]:
    """mode -> name -> a call that returns (y, and in training the gradients of x and the parameters)."""
    dtype = DTYPES[row.dtype]
    options = {
        "num_layers": row.layers,
        "bidirectional": row.directions == 2,
        "device": device,
        "dtype": dtype,
    }
    theirs = getattr(torch.nn, row.cell)(row.hidden, row.hidden, **options)
    ours = getattr(rnnfast, row.cell)(row.hidden, row.hidden, **options)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(row.steps, row.batch, row.hidden, device=device, dtype=dtype)
    if row.packed:  # a fill of about 0.65
        lengths = torch.linspace(row.steps, row.steps * 0.3, row.batch).long().clamp(min=1)
        x = pack_padded_sequence(x, lengths).to(device)
        leaf = x.data.requires_grad_()
    else:
        leaf = x.requires_grad_()
    dy = torch.randn(*leaf.shape[:-1], row.hidden * row.directions, device=device, dtype=dtype)

    def data(output):
        return output.data if row.packed else output

    def forward(module):
        def call():
            with torch.no_grad():
                return (data(module(x)[0]),)

        return call

    def training(module):
        wanted = [leaf, *module.parameters()]

        def call():
            y = data(module(x)[0])
            return y.detach(), *torch.autograd.grad(y, wanted, dy)

        return call

    both = {"torch.nn": theirs, "rnnfast": ours}
    return {
        "forward": {name: forward(module) for name, module in both.items()},
        "training": {name: training(module) for name, module in both.items()},
    }


def difference(ours: tuple, theirs: tuple) -> float:
    """The largest of all tensors, each by its own scale; NaN counts as infinite."""
    worst = 0.0
    for a, b in zip(ours, theirs, strict=True):
        apart = ((a.double() - b.double()).abs().max() / b.double().abs().max().clamp(min=1e-6)).item()
        worst = max(worst, apart if apart == apart else float("inf"))
    return worst


def seconds_of(call: Callable, repeats: int, device: str) -> float:
    """Of one call, by the device's own clock."""
    if device == "cpu":
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        return (time.perf_counter() - start) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) * 1e-3 / repeats


def measure(row: Row, device: str, rounds: int, least: float) -> list[dict]:
    """A result for each mode."""
    set_precision(row.dtype)
    torch.manual_seed(1)
    results = []
    for mode, calls in calls_of(row, device).items():
        apart = difference(calls["rnnfast"](), calls["torch.nn"]())
        repeats = {
            name: max(1, min(100, int(least / max(1e-6, seconds_of(call, 1, device)))))
            for name, call in calls.items()
        }
        times: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                times[name].append(seconds_of(call, repeats[name], device))
        ratios = sorted(t / o for t, o in zip(times["torch.nn"], times["rnnfast"], strict=True))
        results.append(
            {
                "name": row.name,
                "mode": mode,
                **asdict(row),
                "standard": row.standard(mode),
                "us_a_step": {name: median(values) * 1e6 / row.steps for name, values in times.items()},
                "speedup": median(ratios),
                "low": ratios[len(ratios) // 4],
                "high": ratios[-1 - len(ratios) // 4],
                "difference": apart,
                "failed": "" if apart <= DIFFERENCE[row.dtype] else f"outputs differ by {apart:.2g}",
            }
        )
    return results


def run(chosen: list[Row], device: str, rounds: int, least: float, command: str) -> dict:
    """All rows; `meta` names the GPU."""
    meta = record.meta(torch.get_num_threads(), command)
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        meta |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    result = {"kind": "gpu", "meta": meta, "rows": []}
    progress = tqdm(chosen, unit="row")
    for row in progress:
        progress.set_description(row.name)
        result["rows"] += measure(row, device, rounds, least)
    return result


def means(result: dict) -> list[str]:
    """Geometric means of the speed-ups: all rows, and those where cuDNN has no persistent kernel."""
    lines = []
    for what, chosen in (
        ("all rows", result["rows"]),
        ("cuDNN STANDARD", [r for r in result["rows"] if r["standard"]]),
    ):
        if chosen:
            worst = min(chosen, key=lambda r: r["speedup"])
            lines.append(
                f"{what}: {geometric_mean(r['speedup'] for r in chosen):.2f}x over torch.nn "
                f"(worst {worst['name']} {worst['mode']} {worst['speedup']:.2f}x; "
                f"lost {sum(r['speedup'] < 1 for r in chosen)} of {len(chosen)})"
            )
    return lines


def table(result: dict) -> record.Table:
    columns = ["row", "mode", "algorithm", "torch.nn us/step", "rnnfast us/step", "speed-up", "max diff", ""]
    return columns, [
        [
            r["name"],
            r["mode"],
            "standard" if r["standard"] else "persistent",
            f"{r['us_a_step']['torch.nn']:.2f}",
            f"{r['us_a_step']['rnnfast']:.2f}",
            f"{r['speedup']:.2f}x ({r['low']:.2f}-{r['high']:.2f})",
            f"{r['difference']:.0e}",
            r["failed"] or ("lost" if r["speedup"] < 1 else ""),
        ]
        for r in result["rows"]
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = record.parser("gpu", __doc__)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("benchmarks.gpu: torch sees no GPU here", file=sys.stderr)
        return 1
    if not rnnfast._C.build_info()["cuda"]:
        print("benchmarks.gpu: rnnfast was built without CUDA kernels (RNNFAST_CUDA=1)", file=sys.stderr)
        return 1
    chosen = [row for row in rows() if not options.rows or row.name in options.rows]
    if options.quick:
        chosen = [row for row in chosen if row.batch == 16][:4]
    rounds, least = (3, 2e-3) if options.quick else (7, 20e-3)
    result = run(chosen, "cuda", rounds, least, record.command("gpu", arguments))
    folder = options.out or (record.PART if options.quick or options.rows else record.RESULTS)
    record.save(result, folder, "gpu")
    print(record.aligned(table(result), 3))
    print("\n".join(means(result)))
    wrong = [f"{r['name']} {r['mode']}: {r['failed']}" for r in result["rows"] if r["failed"]]
    print("\n".join(wrong), file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
