"""Functions run in new processes, of which nothing else has been asked."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor


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
