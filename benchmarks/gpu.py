"""Layers on one GPU against torch.nn, which runs cuDNN: python -m benchmarks.gpu --help.

Every row is measured with and without backward, the input product included, by device events; the two take
turns, the median is kept, and their outputs are compared in the same run. A row that torch.nn wins is printed
as lost. What is measured is saved after every row, the most valuable first, so that a run may be ended at any
time; a row that raises is said to have failed and the others go on.

Exit status: 0, 1 if a row failed, 77 without a GPU.
"""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import geometric_mean, median

import torch
from torch.nn.utils.rnn import pack_padded_sequence
from tqdm import tqdm

import rnnfast
from rnnfast import info

from . import record

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}
# Largest difference of the outputs, of their scale, that two right answers may have after a thousand steps
DIFFERENCE = {"bf16": 0.05, "fp16": 0.01, "tf32": 0.01, "fp32": 1e-4}
MODES = ("forward", "training")
NO_DEVICE = 77


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
    projected: int = 0  # to so many units, where there is a projection

    @property
    def name(self) -> str:
        parts = [self.cell.lower(), f"b{self.batch}", f"h{self.hidden}", self.dtype]
        parts += [f"t{self.steps}"] * (self.steps != 1024) + [f"l{self.layers}"] * (self.layers > 1)
        parts += ["d2"] * (self.directions > 1) + ["packed"] * self.packed
        return "-".join(parts + [f"p{self.projected}"] * (self.projected > 0))

    def standard(self, mode: str) -> bool:
        """Whether torch has cuDNN run this without a persistent kernel (aten/native/cudnn/RNN.cpp)."""
        if self.projected:
            return True
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


# What says most, for a run of half a minute
FIRST = [
    *(Row("LSTM", 16, hidden, "bf16") for hidden in (128, 256, 512, 1024)),
    Row("GRU", 16, 512, "bf16"),
    Row("LSTM", 16, 256, "tf32"),
]


def rows() -> list[Row]:
    """In the order of their value: the core, then one thing varied at a time, then the core with TF32."""

    def core(dtype: str) -> list[Row]:
        return [
            Row(cell, batch, hidden, dtype)
            for batch in (16, 1, 64)
            for cell in ("LSTM", "GRU")
            for hidden in (128, 256, 512, 1024)
        ]

    varied = [
        *(Row(cell, 16, 512, "bf16", layers=3) for cell in ("LSTM", "GRU")),
        *(Row(cell, 16, 512, "bf16", directions=2) for cell in ("LSTM", "GRU")),
        *(Row(cell, 64, 256, "bf16", steps=400, packed=True) for cell in ("LSTM", "GRU")),
        Row("LSTM", 16, 512, "bf16", projected=128),
        *(Row(*size, steps=1) for size in (("LSTM", 1, 256, "fp32"), ("GRU", 8, 256, "bf16"))),
        Row("LSTM", 32, 512, "bf16", steps=1),
        *(Row("LSTM", 16, hidden, "fp16") for hidden in (256, 512)),
        *(Row("LSTM", 256, hidden, "bf16") for hidden in (256, 1024)),
        Row("LSTM", 1024, 512, "bf16", steps=128),
        *(Row("LSTM", 16, hidden, "bf16", steps=128) for hidden in (256, 1024)),
        *(Row("RNN", 16, hidden, "bf16") for hidden in (256, 512)),
        *(Row("LSTM", 16, hidden, "bf16") for hidden in (64, 768, 2048)),
        *(Row("LSTM", 16, hidden, "fp32") for hidden in (256, 512)),
    ]
    return list(dict.fromkeys([*FIRST, *core("bf16"), *varied, *core("tf32")]))


def set_precision(dtype: str) -> None:
    """The same for both: TF32 or IEEE in every float32 product."""
    precision = "tf32" if dtype == "tf32" else "ieee"
    torch.backends.cuda.matmul.fp32_precision = precision
    torch.backends.cudnn.rnn.fp32_precision = precision


def calls_of(row: Row, device: str) -> dict[str, dict[str, Callable]]:
    """mode -> name -> a call that returns (y, and in training the gradients of x and the parameters)."""
    # cuDNN takes bfloat16, but torch's own set of what it takes lacks it: flatten_parameters would do
    # nothing, and torch.nn would copy its weights into one block at every call
    torch.backends.cudnn.CUDNN_TENSOR_DTYPES.add(torch.bfloat16)
    dtype = DTYPES[row.dtype]
    options = {
        "num_layers": row.layers,
        "bidirectional": row.directions == 2,
        "device": device,
        "dtype": dtype,
    }
    if row.projected:
        options["proj_size"] = row.projected
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
    dy = torch.randn(
        *leaf.shape[:-1], (row.projected or row.hidden) * row.directions, device=device, dtype=dtype
    )

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


def measure(row: Row, mode: str, device: str, rounds: int, least: float) -> dict:
    """Times, speed-up, and how far the outputs are apart."""
    set_precision(row.dtype)
    torch.manual_seed(1)
    calls = calls_of(row, device)[mode]
    apart = difference(calls["rnnfast"](), calls["torch.nn"]())
    plan = info.last_run()["cuda"]
    repeats = {
        name: max(1, min(100, int(least / max(1e-6, seconds_of(call, 1, device)))))
        for name, call in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(seconds_of(call, repeats[name], device))
    ratios = sorted(t / o for t, o in zip(times["torch.nn"], times["rnnfast"], strict=True))
    return {
        "plan": plan,
        "us_a_step": {name: median(values) * 1e6 / row.steps for name, values in times.items()},
        "speedup": median(ratios),
        "low": ratios[len(ratios) // 4],
        "high": ratios[-1 - len(ratios) // 4],
        "difference": apart,
        "failed": "" if apart <= DIFFERENCE[row.dtype] else f"outputs differ by {apart:.2g}",
    }


def synchronize(device: str) -> None:
    """Raises what went wrong on the device since the last time."""
    if device != "cpu":
        torch.cuda.synchronize()


def sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or ['nothing said'])[0]}"


def driver() -> str:
    """The version of the GPU's driver, which torch does not tell."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (said.split() or ["unknown"])[0]


def run(
    chosen: list[Row],
    device: str,
    rounds: int,
    least: float,
    command: str,
    limit: float = math.inf,
    save: Callable[[dict], object] = lambda result: None,
) -> dict:
    """A result for each row and mode; `meta` names the GPU. After `limit` seconds no row is begun."""
    end = time.monotonic() + limit
    meta = record.meta(torch.get_num_threads(), command)
    if device != "cpu":
        properties = torch.cuda.get_device_properties(device)
        meta |= {
            "gpu": properties.name,
            "multiprocessors": properties.multi_processor_count,
            "memory_gb": round(properties.total_memory / 1e9, 1),
            "driver": driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
        }
    result = {"kind": "gpu", "meta": meta, "rows": [], "left_out": [row.name for row in chosen], "ended": ""}
    progress = tqdm(chosen, unit="row")
    for row in progress:
        if time.monotonic() > end:
            result["ended"] = f"at its limit of {limit:g} s"
            break
        progress.set_description(row.name)
        result["left_out"].remove(row.name)
        for mode in MODES:
            found = {"name": row.name, "mode": mode, **asdict(row), "standard": row.standard(mode)}
            result["rows"].append(found)
            try:
                found |= measure(row, mode, device, rounds, least)
            except Exception as error:
                found["failed"] = sentence(error)
            try:
                synchronize(device)
                if info.cuda_failure():
                    found["failed"] = "a block waited in vain"
                if found["failed"] and device != "cpu":  # what a row that raised still held
                    gc.collect()
                    torch.cuda.empty_cache()
            except Exception as error:  # of a context that is lost every call raises, whoever makes it
                found["failed"] = found["failed"] or sentence(error)
                result["ended"] = f"because the CUDA context is lost ({sentence(error)})"
            save(result)
            if result["ended"]:
                return result
    save(result)
    return result


def means(result: dict) -> list[str]:
    """Geometric means of the speed-ups: all right rows, and those where cuDNN has no persistent kernel."""
    lines, right = [], [r for r in result["rows"] if not r["failed"]]
    for what, chosen in ("all rows", right), ("cuDNN STANDARD", [r for r in right if r["standard"]]):
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

    def cells(r: dict) -> list[str]:
        begin = [r["name"], r["mode"], "standard" if r["standard"] else "persistent"]
        if "speedup" not in r:
            return [*begin, *["-"] * 4, r["failed"]]
        return [
            *begin,
            f"{r['us_a_step']['torch.nn']:.2f}",
            f"{r['us_a_step']['rnnfast']:.2f}",
            f"{r['speedup']:.2f}x ({r['low']:.2f}-{r['high']:.2f})",
            f"{r['difference']:.0e}",
            r["failed"] or ("lost" if r["speedup"] < 1 else ""),
        ]

    return columns, [cells(r) for r in result["rows"]]


def main(arguments: list[str] | None = None) -> int:
    parser = record.parser("gpu", __doc__)
    parser.add_argument("--rows", nargs="+", metavar="NAME", help="only these")
    parser.add_argument("--first", action="store_true", help=f"only the {len(FIRST)} that say most")
    parser.add_argument(
        "--limit", type=float, default=math.inf, metavar="SECONDS", help="begin no row after that"
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print("no device: torch sees no GPU here", file=sys.stderr)
        return NO_DEVICE
    if not rnnfast._C.build_info()["cuda"]:
        print("benchmarks.gpu: rnnfast was built without CUDA kernels (RNNFAST_CUDA=1)", file=sys.stderr)
        return 1
    part = options.quick or options.rows or options.first or options.limit < math.inf
    chosen = [row for row in (FIRST if options.first else rows()) if row.name in (options.rows or row.name)]
    if options.quick:
        chosen = [row for row in chosen if row.batch == 16][:4]
    rounds, least = (3, 2e-3) if options.quick else (7, 20e-3)
    folder = options.out or (record.PART if part else record.RESULTS)
    result = run(
        chosen,
        "cuda",
        rounds,
        least,
        record.command("gpu", arguments),
        options.limit,
        lambda result: record.save(result, folder, "gpu"),
    )
    return report(result)


def report(result: dict) -> int:
    """Prints it; the exit status."""
    print(record.aligned(table(result), 3))
    print("\n".join(means(result)))
    wrong = [f"{r['name']} {r['mode']}: {r['failed']}" for r in result["rows"] if r["failed"]]
    print("\n".join(wrong), file=sys.stderr)
    if result["ended"]:
        print(f"ended {result['ended']}, not measured: {', '.join(result['left_out'])}", file=sys.stderr)
    return 1 if wrong or not result["rows"] else 0


if __name__ == "__main__":
    sys.exit(main())
