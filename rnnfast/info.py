"""What was built, what this machine will use, and why: `python -m rnnfast.info`.

The instruction set and the way work is split between threads are chosen at run time. Either can be
forced, by RNNFAST_ISA and RNNFAST_SPLIT before import or by `set_isa` and `set_split` at any time;
forcing what cannot run is an error.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from .ops import _C

__all__ = [
    "cache",
    "counts",
    "cuda_failure",
    "cuda_kernel",
    "describe",
    "empty_cache",
    "is_batch_invariant",
    "isa",
    "isas",
    "last_run",
    "products",
    "profile",
    "reset_counts",
    "set_cuda_device",
    "set_cuda_kernel",
    "set_batch_invariant",
    "set_cache_mb",
    "set_isa",
    "set_split",
    "split",
]

# what one of float32 is made of, by its number
PRODUCTS = {
    0: "multiply-adds",
    1: "one product of numbers rounded to bfloat16",
    3: "three products of bfloat16 parts",
    6: "six products of bfloat16 parts",
}
_forced: dict[str, str] = {}  # what set_isa and set_split asked for; "" is automatic


def isas() -> list[str]:
    """Instruction sets that were built and that this machine has."""
    return list(_C.isas())


def isa() -> str:
    """The instruction set the next call will use."""
    return _C.isa()


def set_isa(name: str | None) -> None:
    """Force an instruction set, or with None choose by the machine again.

    Raises:
        RuntimeError: it was not built, or this machine has not got it.
    """
    _C.set_isa(name or "")
    _forced["RNNFAST_ISA"] = name or ""


def split() -> str:
    """How work is split between threads if forced, see `set_split`; "" if chosen call by call."""
    return _C.split()


def set_split(name: str | None) -> None:
    """Force how work is split between threads; None chooses call by call.

    Args:
        name: "serial" (one thread), "units" (of the hidden state), "rows" (of the batch) or "directions" (a
            thread for each, of a layer that has two; one thread for all others).

    Raises:
        RuntimeError: there is no such way.
    """
    _C.set_split(name or "")
    _forced["RNNFAST_SPLIT"] = name or ""


def is_batch_invariant() -> bool:
    """Whether a row's results are now the same, bit for bit, in a batch of any size.

    They are by multiply-adds, and not by a matrix unit, see `set_batch_invariant`.
    """
    return products() == 0


def set_batch_invariant(on: bool | None) -> None:
    """Whether a row's results have to be the same, bit for bit, in a batch of any size.

    Else float32 layers may take a matrix unit for bfloat16, where the processor has one
    (`isa() == "amx_bf16"`): each number is a sum of bfloat16 parts, and some products of such parts are added
    up in float32. How many, says how exact torch wants them: `torch.backends.mkldnn.rnn.fp32_precision`, or,
    where that is "none", those above it, when a layer is called (backward: when that is).

    | fp32_precision | with None | with False | with True |
    |---|---|---|---|
    | "none", "ieee" | six products of three parts, in large calls | six products | multiply-adds |
    | "tf32" | three products of two parts | three products | multiply-adds |
    | "bf16" | one product | one product | multiply-adds |

    Six products come nearer to the exact result than float32's multiply-adds, three nearer than TF32, and one
    is that of the numbers rounded to bfloat16.

    They are made in calls of 8 rows or more (of a PackedSequence: in its first step) of layers of 64 units or
    more; one also with fewer rows, from 8 steps and 128 units on; six, with None, where they are sooner done
    than multiply-adds: from 32 steps, 16 rows and 128 units on, if rows times units are 4096 or more, or from
    32 rows and 256 units on, if rows times steps are 256 or more. A row's results are the same in all batches
    on one side of such a limit.

    Where other programs use the unit at the same time, it may be slower than multiply-adds. What `freeze`
    packs is then larger by 2 bytes for each part of a weight, and serves small calls and the precision of
    that moment; calls that take the unit at another one read the weights themselves.

    Args:
        on: a column of the table. None holds from the start, unless RNNFAST_BATCH_INVARIANT is 0 (False) or
            1 (True).
    """
    _C.set_batch_invariant(None if on is None else bool(on))


def products(batch: int = 1024, units: int = 1024, steps: int = 1024) -> int:
    """How many products of bfloat16 parts one of float32 is made of now; 0: it is a multiply-add.

    Args:
        batch: the rows of the layer's fullest step.
        units: of its state.
        steps: of the call.
    """
    return _C.products(batch, units, steps)


def cuda_kernel() -> str:
    """Which CUDA kernel layers take: "stepwise" or "resident" if forced, "" if chosen call by call."""
    return _C.cuda_kernel()


def set_cuda_kernel(name: str | None) -> None:
    """Force "stepwise" (one launch a step, any layer) or "resident" (one for all steps); None chooses.

    The resident kernel takes layers (with a projection those without lengths and resets) that fit the device,
    on an H100 an LSTM with 8 rows of the batch or fewer of 2112 units (backward: 1760) in bfloat16 or
    float16, and in float32 where TF32 is allowed (`torch.backends.cudnn.rnn.fp32_precision`) of 1152
    (backward: 880); fewer units with more rows.
    It takes a deep transition of up to 8 layers, in one block or a cluster: three layers of 704 units, in
    TF32 (where torch's products are: `torch.backends.cuda.matmul.fp32_precision`) of 512. It is chosen where
    there are more than a few steps, and not so many rows that a launch a layer takes less.
    RNNFAST_CUDA_KERNEL forces from the start. Where nothing is forced, a call of one step and few rows takes
    neither, but "single": one launch that makes the input product, too, and backward two with all gradients.

    Raises:
        RuntimeError: there is no such kernel; at the next call, if the resident one is forced and cannot take
            the layer.
    """
    _C.set_cuda_kernel(name or "")


def set_cuda_device(
    capability: int | None, multiprocessors: int = 132, clusters_of_16: int | None = None
) -> None:
    """Plan layers as for a smaller GPU than the one that runs them; None plans for that one again. For tests.

    Args:
        capability: compute capability, 10 times major plus minor; below 90 there are no clusters of blocks.
        multiprocessors: how many.
        clusters_of_16: how many clusters of 16 blocks run at once; None: one for each 16 multiprocessors.

    Raises:
        RuntimeError: at the next call, if it is more than the GPU has.
    """
    _C.set_cuda_device(capability or 0, multiprocessors, -1 if clusters_of_16 is None else clusters_of_16)


def cuda_failure() -> bool:
    """Whether a CUDA kernel has waited in vain for another of its blocks since this was asked last.

    Its output is NaN then, and the next call of a layer raises RuntimeError, unless this was asked before.
    Kernels that are still running are not waited for: call torch.cuda.synchronize() first.
    """
    return torch.cuda.is_initialized() and _C.cuda_failure()


def last_run() -> dict:
    """The last kernel call of this process.

    On the CPU: `op`, `isa`, `split`, `members` (threads that ran), `wanted`, `parts`, and `products` as of
    that function. `cuda` is the last one on a GPU, or None: `op`, `kernel` ("resident", "stepwise" or
    "single", as of set_cuda_kernel), and how a resident one lies on the device:

    - `team`: "block", "cluster" or "grid", and `blocks` of a team, `warps` of a block; of a launch a step
      with many rows, those that make a tile of the largest step together (0 warps: small tiles);
    - `split`: warps that share a sum;
    - `held`: parts of W in shared memory;
    - `batches`: times 8 rows that a team takes;
    - `directions`: in one launch;
    - `units`: of a block, where the blocks of a cluster exchange sums (backward); else 0.
    """
    return dict(_C.last_run()) | {"cuda": _C.last_cuda_run()}


@contextmanager
def profile() -> Iterator[dict[str, float]]:
    """Where the time goes: seconds within the `with`, filled in when it ends.

        with rnnfast.info.profile() as seconds:
            model(x)
        print(seconds)

    `elapsed` is the sum of the others: `outside` the CPU kernels (Python, torch, allocation); and inside, in
    the proportions in which their threads spent it, on `pack` (bringing weights and gradients into the order
    in which products read them), `product`, `cell`, `wait` (for each other) and `other`. All calls of the
    process count, `outside` at least 0 where they overlap; taking a profile slows small steps down by some
    percent. One at a time.
    """
    seconds: dict[str, float] = {}
    _C.start_profile()
    try:
        yield seconds
    finally:
        found = dict(_C.stop_profile())
        elapsed = found.pop("elapsed")
        kernels = min(found.pop("kernels"), elapsed)  # more, where Python's threads call them side by side
        threads = sum(found.values()) or 1.0
        seconds.update(elapsed=elapsed, outside=elapsed - kernels)
        seconds.update({work: kernels * spent / threads for work, spent in found.items()})


def empty_cache() -> int:
    """Give back the memory that is kept for the next call, see `cache`; returns how many bytes that were.

    Blocks still in use are not touched.
    """
    return _C.empty_cache()


def cache() -> dict[str, int]:
    """The memory of large blocks (128 KiB or more) on the CPU, in bytes.

    `used`: by tensors that are alive; `held`: kept for the next call; `limit`: the most that may be held.

    Large temporaries and outputs are not returned to the system when they end, because the next call would
    spend up to a quarter of its time on fetching fresh pages. What is used and held together stays within
    32 MiB of the most that was used at once in the last seconds of calls, and what nobody has wanted for ten
    seconds goes when the next block ends. A process that makes no calls keeps what it has: `empty_cache`.
    """
    return dict(_C.cache())


def set_cache_mb(mb: float | None) -> None:
    """How many MiB of memory may be kept for the next call, see `cache`; more than that is given back now.

    Args:
        mb: 0 keeps nothing; None is the default, 1024. RNNFAST_CACHE_MB says so from the start.

    Raises:
        RuntimeError: it is negative, or no number of MiB.
    """
    _C.set_cache_limit(mb)


def _why(variable, automatic):
    if variable in _forced:
        return "forced by a call" if _forced[variable] else automatic
    return f"forced by {variable}" if os.environ.get(variable) else automatic


def counts() -> dict[str, dict[str, int]]:
    """Of torch's operators what became of their calls since the process began, or since `reset_counts()`.

        {"aten::lstm.input": {"taken": 12, "a dtype without a kernel": 1}}

    How many were taken, and how many were passed on to torch's own kernel, by the reason. Calls while rnnfast
    is not enabled are not counted.
    """
    return _C.aten.counts()


def reset_counts() -> None:
    """Begins to count anew."""
    _C.aten.reset_counts()


def _enabled() -> str:
    """Whether rnnfast is, and what became of the calls of torch's operators."""
    found: dict[str, int] = {}
    for reasons in counts().values():
        for reason, n in reasons.items():
            found[reason] = found.get(reason, 0) + n
    taken = found.pop("taken", 0)
    passed = "".join(f", {n} passed on ({reason})" for reason, n in sorted(found.items()))
    said = f"; calls of torch's operators: {taken} taken{passed}" if taken or found else ""
    return f"{'yes' if _C.aten.is_active() else 'no'} (rnnfast.enable()){said}"


def _float32_products() -> str:
    """How products of float32 are made now, in words."""
    found = products()
    large = "in large calls" if products(8, 64, 1) == 0 else "from 8 rows and 64 units on"
    large += ", or 8 steps and 128 units," * (products(1, 128, 8) > 0)
    return f"multiply-adds; {large} {PRODUCTS[found]}" if found else PRODUCTS[0]


def describe() -> str:
    """A few lines: what was built, what this machine will use, and why."""
    from . import __version__

    built = ", ".join(f"{k} {v}" for k, v in _C.build_info().items())
    rows = {
        "rnnfast": f"{__version__}, torch {torch.__version__}",
        "built": built,
        "usable here": ", ".join(isas()),
        "will use": f"{isa()} ({_why('RNNFAST_ISA', 'the widest that was built and that this machine has')})",
        "float32": f"by {_float32_products()}",
        "split": f"{split() or 'automatic'} ({_why('RNNFAST_SPLIT', 'by the shape of each call')})",
        "enabled": _enabled(),
        "cache": "{held:.0f} MiB kept for the next call, up to {limit:.0f} (RNNFAST_CACHE_MB)".format(
            **{name: n / 2**20 for name, n in cache().items()}
        ),
        "threads": f"up to {torch.get_num_threads()} (torch.get_num_threads())",
    }
    run = last_run()
    for name, one in ("last on a GPU", run.pop("cuda")), ("last run", run):
        if one and one["op"]:
            rows[name] = ", ".join(f"{k} {v}" for k, v in one.items())
    return "\n".join(f"{name:<13} {value}" for name, value in rows.items())


if __name__ == "__main__":
    print(describe())
