"""How far a process grows: what a call takes beside its input.

Counted is the resident set of a new process: also what libraries take past torch's allocator, and what is
kept for later calls. The largest growth is the system's own figure (VmHWM), not a sample.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from .. import info
from .case import Case
from .peers import Problem, makers

FORGET = Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes: VmRSS now, VmHWM at most since `forget_peak`."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    return int(found[1]) * 1024


def forget_peak() -> None:
    FORGET.write_text("5")


def give_back_what_is_freed() -> None:
    """Every block of more than 64 KiB that malloc hands out goes back to the system when it is freed.

    So what stays is kept on purpose.
    """
    ctypes.CDLL(None).mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD


def peak(case: Case, training: bool, peer: str, threads: int, others: Iterable[str]) -> int:
    """Bytes by which this process grows at most in the first call of a peer; to run in a new process.

    One of a few steps comes before it: what libraries set up once is not a call's.
    """
    give_back_what_is_freed()
    torch.set_num_threads(threads)

    def call_of(case: Case):
        problem = Problem.make(case)
        return makers(problem, training, threads, others)[peer]().call

    few = min(5, case.steps)
    lengths = case.lengths and tuple(min(few, length) for length in case.lengths)
    with torch.inference_mode(not training):
        call_of(replace(case, steps=few, lengths=lengths))()
        call = call_of(case)
        info.empty_cache()  # what the first left would serve the next one uncounted
        forget_peak()
        before = resident("VmRSS")
        call()
        return resident("VmHWM") - before


def peak_on_gpu(call) -> int:
    """The same of torch's allocator on a GPU, in this process."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before
