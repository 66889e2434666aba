"""What the scripts of this folder share: options, what a result says of its run, tables, new processes.

Much of it is `rnnfast.bench`'s. Nothing heavy is imported here: the processes that are started to be measured
import this too.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from rnnfast.bench import machine as machines
from rnnfast.bench.processes import in_process, in_processes  # noqa: F401
from rnnfast.bench.tables import Table, aligned, pipes  # noqa: F401

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

    def git(*arguments: str) -> str:
        try:
            result = subprocess.run(
                ["git", *arguments], cwd=Path(__file__).parent, capture_output=True, text=True
            )
        except FileNotFoundError:  # a borrowed machine may have no git
            return ""
        return result.stdout.strip() if result.returncode == 0 else ""

    # what an earlier part of the same bench has just written is no change
    status = git("status", "--porcelain", "--untracked-files=no", "--", ":/", ":(exclude)results")
    changed = "+changes" if status else ""
    commit = git("rev-parse", "--short", "HEAD") or os.environ.get("RNNFAST_COMMIT") or "none"
    return {
        **machines.describe(),
        "commit": commit + changed,
        "threads": threads,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "command": command,
    }


def machine(result: dict) -> str:
    """One line of `meta`: the machine, the versions, the command."""
    m = result["meta"]
    return f"{machines.sentence(m)} at {m['commit']}; {m['date']}; `{m['command']}`."


def save(result: dict, folder: Path, name: str) -> None:
    """Whoever is killed while saving leaves what was saved before."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}.json"
    unfinished = target.with_suffix(".json.part")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(target)


def turn(call: Callable, seconds: float) -> list[float]:
    """Seconds of each call, for so long; one call before finds the caches as others left them, untimed."""
    call()
    times, end = [], time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
