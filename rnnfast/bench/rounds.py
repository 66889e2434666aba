"""Contenders timed in turns, and their results compared."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from statistics import median, quantiles

import torch
from torch import Tensor

from ..testing import TOLERANCE, error

# The tests' rule: at most twice the baseline's error, and some of the scale. Ours may add 4 of the table's
# tolerances, for sums are long here; a peer, which only has to compute the same thing, 16.
OURS, OTHERS = 4, 16
# what rounds a number as the products do that are asked for (see `case.asking`): TF32 has float16's places
ROUNDED = {"tf32": torch.float16, "bf16": torch.bfloat16}


def settle() -> None:
    """Wait until the threads of the peer before have stopped spinning (onnxruntime's do for 30 ms).

    They would take a core from whoever comes next.
    """
    for _ in range(40):
        before = time.process_time()
        time.sleep(5e-3)
        if time.process_time() - before < 1e-3:
            return


@contextmanager
def undisturbed() -> Iterator[None]:
    """No garbage is collected within."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def interleave(
    calls: dict[str, Callable],
    seconds: float,
    least: int,
    most: int = 50,
    min_time: float = 10e-3,
    slow: Container[str] = (),
    brief: Container[str] = (),
    within: Mapping[str, Callable[[], AbstractContextManager]] | None = None,
    sync: Callable[[], None] = lambda: None,
    tick: Callable[[float], None] = lambda part: None,
) -> dict[str, list[float]]:
    """Seconds per call in rounds A B C A B C ..., one figure a round and peer.

    One call of a peer in `slow` is known to be enough of a turn. Those in `brief` are timed in three rounds
    only, and three are enough of all when they took five times `seconds`.

    within: what surrounds the turns of a peer, entered and left untimed.
    sync: called before the clock is read, for devices that run on their own.
    tick: told how much of it is done, 0 to 1, before each round.
    """
    within = within or {}

    def turn(name: str, repeats: int) -> float:
        call = calls[name]
        with within.get(name, nullcontext)():
            sync()
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            sync()
            return (time.perf_counter() - start) / repeats

    # the fastest of three: after a call whose second thread came late turns would be too short to be warm
    repeats = {
        name: 1 if name in slow else max(1, min(1000, int(min_time / min(turn(name, 1) for _ in range(3)))))
        for name in calls
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    start = time.perf_counter()
    for done in range(most):
        spent = time.perf_counter() - start
        if done >= least and spent > seconds or done >= 3 and spent > 5 * seconds:
            break
        tick(min(1.0, max(spent / seconds if seconds else 1.0, done / most)))
        for name in calls:
            if name in brief and done >= 3:
                continue
            settle()
            if not times[name] or times[name][-1] < 20e-3:
                turn(name, repeats[name])  # wakes this peer's threads, fills the caches
            times[name].append(turn(name, repeats[name]))
    return times


def compare(
    results: dict[str, tuple[Tensor, ...]],
    exact: tuple[Tensor, ...],
    base: str,
    precisions: Mapping[str, str] | None = None,
) -> tuple[dict[str, float], list[str]]:
    """Each peer's largest error as a share of the scale of the tensor it is in, and who is too far off.

    precisions: of those peers whose products are of less than their tensors' type.
    """
    scales = [e.abs().max().item() for e in exact]
    errors = {
        name: [error(r, e) / scale for r, e, scale in zip(result, exact, scales, strict=True)]
        for name, result in results.items()
    }
    wrong = []
    for name, found in errors.items():
        rounded = ROUNDED.get((precisions or {}).get(name), results[name][0].dtype)
        tolerance = TOLERANCE[rounded] * (OURS if name == "rnnfast" else OTHERS)
        if any(
            not f <= 2 * (b if name != base else 0) + tolerance
            for f, b in zip(found, errors[base], strict=True)
        ):
            wrong.append(f"{name} differs by {max(found):.1e}")
    return {name: max(found) for name, found in errors.items()}, wrong


def pairs(times: dict[str, list[float]]) -> dict[str, list[float]]:
    """How many times as long as rnnfast each took, in each of the rounds that both were in."""
    return {
        name: [other / ours for other, ours in zip(values, times["rnnfast"], strict=False)]
        for name, values in times.items()
    }


def figures(
    times: dict[str, list[float]], first: dict[str, float], differences: dict[str, float]
) -> dict[str, dict[str, float]]:
    """What is told of each peer."""
    ratios = pairs(times)
    return {
        name: {
            **{f"{key}_ms": value * 1e3 for key, value in spread(values).items()},
            "first_ms": first[name] * 1e3,
            "difference": differences[name],
            "ratio": median(ratios[name]),
        }
        for name, values in times.items()
    }


def spread(values: list[float]) -> dict[str, float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return {"median": median(values), "q1": low, "q3": high}
