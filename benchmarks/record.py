"""What the scripts of this folder share: options, what a result says of its run, tables, new processes.

Nothing heavy is imported here: the processes that are started to be measured import this too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

RESULTS, PART = Path("benchmarks/results"), Path("results/bench")  # of a full run, of a part of one


def parser(name: str, doc: str) -> argparse.ArgumentParser:
    """The options that every script takes, so that make can hand the same ones to all."""
    result = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0])
    result.add_argument("--quick", action="store_true", help="little of it, in seconds")
    result.add_argument("--out", type=Path, help=f"folder (default: {RESULTS}; {PART} for a part)")
    result.add_argument("--threads", type=int, default=torch.get_num_threads())
    return result


def command(name: str, arguments: list[str] | None) -> str:
    """The command line that gives this result."""
    given = sys.argv[1:] if arguments is None else arguments
    return " ".join([f"python -m benchmarks.{name}", *given])


def meta(threads: int, command: str) -> dict:
    """Without these a number does not exist."""
    import rnnfast.info

    try:
        import onnxruntime
    except ImportError:  # no script but `run` needs it
        onnxruntime = None

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
            )
        except FileNotFoundError:  # a borrowed machine may have no git
            return ""
        return result.stdout.strip() if result.returncode == 0 else ""

    def cpu() -> str:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        return models[0] if models else platform.processor()

    # what an earlier part of the same bench has just written is no change
    status = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)results")
    changed = "+changes" if status else ""
    commit = git("rev-parse", "--short", "HEAD") or os.environ.get("RNNFAST_COMMIT") or "none"
    return {
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "cpu": cpu(),
        "isa": rnnfast.info.isa(),
        "float32": rnnfast.info.PRODUCTS[rnnfast.info.products()],
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, onnxruntime, rnnfast) if module},
        "commit": commit + changed,
        "threads": threads,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
    }


def machine(result: dict) -> str:
    """One line of `meta`: the machine, the versions, the command."""
    m = result["meta"]
    products = f", float32 by {m['float32']}" if m.get("float32", "multiply-adds") != "multiply-adds" else ""
    return (
        f"{m['cpu']} ({m['machine']}), {m['isa']}{products}, threads: {m['threads']}; Python {m['python']}, "
        f"torch {m['torch']}, onnxruntime {m['onnxruntime']}, rnnfast {m['rnnfast']} at {m['commit']}; "
        f"{m['date']}; `{m['command']}`."
    )


def save(result: dict, folder: Path, name: str) -> None:
    """Whoever is killed while saving leaves what was saved before."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    unfinished = target.with_suffix(".json.part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(target)


Table = tuple[list[str], list[list[str]]]  # column names, and a line of cells for each row


def aligned(table: Table, texts: int) -> str:
    """A table for the terminal; the first `texts` columns stand left, numbers right."""
    columns, lines = table
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < texts else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [columns, *lines]
    )


def pipes(table: Table, texts: int) -> str:
    """The same in Markdown."""
    columns, lines = table
    rule = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *lines])


def turn(call: Callable, seconds: float) -> list[float]:
    """Seconds of each call, for so long; one call before finds the caches as others left them, untimed."""
    call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times


def in_process(function: Callable, *arguments: object, start: str = "spawn") -> object:
    """`function(*arguments)` of a process that nothing has run in before."""
    return in_processes(1, function, arguments, start=start)[0]


def in_processes(
    count: int,
    function: Callable,
    arguments: Sequence = (),
    prepare: Callable | None = None,
    given: Sequence = (),
    start: str = "forkserver",
) -> list:
    """The results of `count` new processes at once, each of which has called `prepare(*given)` before.

    "spawn" starts Python anew. "forkserver" copies one that has imported torch and run nothing: no thread
    pool is there yet, and it takes milliseconds.
    """
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        context.set_forkserver_preload(["torch", "torch.utils.data", "rnnfast"])
    with ProcessPoolExecutor(count, context, prepare, tuple(given)) as pool:
        return [task.result() for task in [pool.submit(function, *arguments) for _ in range(count)]]
