"""One shape of a layer that is to be measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

import torch

BOTH = ("inference", "training")


@contextmanager
def asking(precision: str) -> Iterator[None]:
    """Within it layers of float32 are asked for so much: "ieee", "tf32", "bf16", or, for "none", as they are.

    torch tells what a setting comes to, not whether it was made: one that is as the one above it is unmade.
    """
    if precision == "none":
        yield
        return
    setting, above = torch.backends.mkldnn.rnn, torch.backends.mkldnn
    before = setting.fp32_precision
    setting.fp32_precision = precision
    try:
        yield
    finally:
        setting.fp32_precision = "none" if before == above.fp32_precision else before


@dataclass(frozen=True)
class Case:
    """One shape: `cell` is a class name of rnnfast, sizes as in torch.nn; `inputs` None means I = H."""

    name: str
    reason: str
    cell: str
    batch: int
    hidden: int
    steps: int = 100
    inputs: int | None = None
    layers: int = 1
    directions: int = 1
    nonlinearity: str = "tanh"  # of the RNN
    dtype: str = "float32"
    precision: str = "none"  # of float32: see `asking`
    lengths: tuple[int, ...] | None = None  # [B], falling; None: all rows have `steps` steps
    modes: tuple[str, ...] = BOTH
    fresh_weights: bool = False  # every peer changes a weight in place before each call
    frozen: bool = False  # rnnfast.freeze: weights packed beforehand, as a session of onnxruntime has them
    required: bool = False  # counts in the geometric means
    quick: bool = False

    @property
    def input_size(self) -> int:
        return self.inputs or self.hidden

    @cached_property
    def batch_sizes(self) -> tuple[int, ...]:
        """Rows alive at each step, [T]."""
        lengths = self.lengths or (self.steps,) * self.batch
        return tuple(sum(length > step for length in lengths) for step in range(self.steps))

    @property
    def shape(self) -> str:
        parts = [f"T={self.steps} B={self.batch}"]
        parts += [f"H={self.hidden}" if self.inputs is None else f"I={self.inputs} H={self.hidden}"]
        parts += ["relu"] * (self.nonlinearity == "relu")
        parts += [f"{self.layers} layers"] * (self.layers > 1) + ["both directions"] * (self.directions > 1)
        if self.lengths:
            parts.append(f"packed {min(self.lengths)} to {max(self.lengths)}")
        if self.fresh_weights:
            parts.append("new weights")
        if self.frozen:
            parts.append("frozen")
        if self.precision != "none":
            parts.append(f"asked for {self.precision}")
        return " ".join([*parts, self.dtype if self.dtype != "float32" else ""]).strip()
