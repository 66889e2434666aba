"""Shared by tests and benchmarks: devices, dtypes, the tolerance table, the oracle comparison, the timer."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["DEVICES", "DTYPES", "TOLERANCE", "Timing", "assert_close_to_oracle", "error", "interleave"]

Results = Tensor | Sequence[Tensor | None]

DEVICES = ["cpu"]
"""The devices that the tests of every path run on."""

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
"""The dtypes that have kernels."""

TOLERANCE = {
    torch.float64: 1e-10,  # thousands of roundings of 1e-16, and polynomials good to 1e-15
    torch.float32: 1e-6,  # eight ulp: other orders of summation, where torch's own error happens to be nil
    torch.bfloat16: 2**-7,  # one ulp of 8 significant bits
    torch.float16: 2**-10,  # one ulp of 11 significant bits
}
"""How far a result may lie from the float64 oracle beyond twice the error of torch itself, as a part of the
largest value of the oracle.

Half types are rounded when they are stored (half an ulp), and h once more when it is carried to the next
step: one ulp of a value at the scale. Arithmetic between is float and adds nothing that shows.
"""


def error(result: Tensor, oracle: Tensor) -> float:
    """Largest absolute difference in float64; equal infinities and NaN in the same places count as none.

    Raises:
        AssertionError: the shapes differ.
    """
    a, b = result.detach().double(), oracle.detach().double()
    if a.shape != b.shape:
        raise AssertionError(f"shape {list(a.shape)}, oracle has {list(b.shape)}")
    same = (a == b) | (a.isnan() & b.isnan())
    difference = torch.where(same, 0.0, (a - b).abs())
    return float("inf") if difference.isnan().any() else difference.max().item() if a.numel() else 0.0


def assert_close_to_oracle(
    ours: Results,
    peer: Results,
    oracle: Results,
    names: Sequence[str] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Each tensor lies at most twice as far from the oracle as torch's own, plus TOLERANCE of the scale.

    Args:
        ours: a tensor or several, rnnfast's.
        peer: as many, torch's in the same dtype; for float64 they may be the oracle's.
        oracle: as many, in float64 from the same (rounded) inputs. None is allowed where all three are None.
        names: what to call them in the message.
        dtype: row of the table; that of ours if not given.

    Raises:
        AssertionError: naming the tensor, its error, the limit and torch's error.
    """
    if isinstance(ours, Tensor):
        ours, peer, oracle = [ours], [peer], [oracle]
    names = names or [f"tensor {i}" for i in range(len(ours))]
    failed = []
    for name, a, b, c in zip(names, ours, peer, oracle, strict=True):
        if a is None or b is None or c is None:
            if not (a is None and b is None and c is None):
                failed.append(f"{name}: some are None and some are not")
            continue
        finite = c.detach()[c.detach().isfinite()]
        scale = finite.abs().max().item() if finite.numel() else 0.0
        ours_error, peer_error = error(a, c), error(b, c)
        limit = 2 * peer_error + TOLERANCE[dtype or a.dtype] * scale
        if not ours_error <= limit:
            detail = f"torch's {peer_error:.3g}, scale {scale:.3g}"
            failed.append(f"{name}: error {ours_error:.3g} > {limit:.3g} ({detail})")
    if failed:
        raise AssertionError("; ".join(failed))


@dataclass
class Timing:
    """Seconds per call of each contender, one figure a round; index k of all lists is the same round."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Distance between the quartiles as a part of the median."""
        low, _, high = statistics.quantiles(self.seconds[name], n=4)
        return (high - low) / self.median(name)

    def ratios(self, slow: str, fast: str) -> list[float]:
        """slow / fast of each round: the speed-up, free of drifts slower than a round."""
        return [s / f for s, f in zip(self.seconds[slow], self.seconds[fast], strict=True)]

    def speedup(self, slow: str, fast: str) -> tuple[float, float, float]:
        """Median of the ratios slow / fast, with their lower and upper quartile."""
        low, middle, high = statistics.quantiles(self.ratios(slow, fast), n=4)
        return middle, low, high


def interleave(
    contenders: dict[str, Callable[[], object]],
    rounds: int = 15,
    min_time: float = 0.01,
    warmup: int = 3,
    sync: Callable[[], None] = lambda: None,
) -> Timing:
    """Time contenders A B A B ..., so that a noisy machine meets them alike.

    Examples:
        >>> import torch
        >>> from rnnfast.testing import interleave
        >>> x = torch.randn(8, 8)
        >>> timing = interleave({"mm": lambda: x @ x, "add": lambda: x + x}, rounds=3, min_time=1e-4)
        >>> sorted(timing.seconds), len(timing.ratios("mm", "add"))
        (['add', 'mm'], 3)

    Args:
        contenders: name -> a call without arguments.
        rounds: how often each is timed, at least 2.
        min_time: seconds each timing lasts at least, by repeating the call; repeats are found once.
        warmup: calls of each before anything is timed.
        sync: called before the clock is read, for devices that run on their own.
    """

    def timed(call, n):
        sync()
        start = time.perf_counter()
        for _ in range(n):
            call()
        sync()
        return (time.perf_counter() - start) / n

    repeats = {}
    for name, call in contenders.items():
        for _ in range(warmup):
            call()
        n = 1
        while (t := timed(call, n) * n) < min_time:
            n = max(2 * n, min(100 * n, int(1.2 * n * min_time / max(t, 1e-9))))
        repeats[name] = n
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            seconds[name].append(timed(call, repeats[name]))
    return Timing(seconds)
