"""Weights packed once, for inference: `freeze`, `unfreeze`, and what a module has that they act on."""

import warnings
from typing import TypeVar

from torch.nn import Module

from ._twins import FROM_TORCH, unmask

M = TypeVar("M", bound=Module)


class Freezable(Module):
    """What `freeze` needs of a layer or cell; the packed weights are neither copied nor saved with it.

    A subclass adds `_packed()`: what its calls take for `_frozen`.
    """

    _frozen = None

    def train(self, mode=True):
        if mode:
            self._frozen = None
        return super().train(mode)

    def _frozen_or_not(self):
        return "" if self._frozen is None else " Its weights are frozen: see rnnfast.freeze."

    def __getstate__(self):
        state = super().__getstate__() if hasattr(super(), "__getstate__") else self.__dict__
        return {name: value for name, value in state.items() if name != "_frozen"}


def freeze(model: M) -> M:
    """Packs the weights of the recurrent layers and cells in `model` once, for inference -> the same model.

    A call packs W_ih and W_hh before it multiplies with them, or, of one step, turns them on the way, which
    takes most of its time. A frozen layer has them packed, so a stream of steps is up to 1.7 times as fast.
    That is for calls of up to a dozen steps that record no graph (`torch.no_grad`, `torch.inference_mode`),
    of RNN, LSTM, GRU (without projections) and their cells, on the CPU; other calls and layers run as ever,
    and so do those under autocast whose weights it casts. The packed copies take as much memory as the
    weights; twice as much in float16, and in bfloat16 where the processor does not multiply it.

    Weights are expected to stay as they are: `model.train()` takes the packed copies away, and so does
    `unfreeze`; a copy of the model, or one that was saved and loaded, has none. Changes of a weight that
    torch counts in its `_version` (`load_state_dict`, `w.mul_()`, most optimizers) or that put another tensor
    in its place make a layer read the weights themselves. Nobody counts those through `w.data`, numpy, a
    tensor or a process that shares the memory, and of an optimizer with fused=True: call `freeze` again.

    A layer or cell of torch.nn's is left as it is, also while rnnfast is enabled, and named in a UserWarning.

    Examples:
        >>> import torch, rnnfast
        >>> model = rnnfast.freeze(rnnfast.LSTM(10, 20).eval())
        >>> with torch.inference_mode():
        ...     y, state = model(torch.randn(1, 1, 10))

    Raises:
        RuntimeError: a model in training mode, or weights of another dtype, not on the CPU, not contiguous,
            or made in inference mode. Then nothing is frozen that was not.
    """
    unmask(model)
    packed, left = [], []
    for name, module in model.named_modules():
        if type(module) in FROM_TORCH:
            left.append(f"{name or 'the model itself'} ({type(module).__name__})")
        if isinstance(module, Freezable):
            if module.training:
                raise RuntimeError(
                    f"rnnfast.freeze: expected a model in eval mode, got {name or type(module).__name__} in "
                    "training mode: call model.eval() first"
                )
            try:
                packed.append((module, module._packed()))
            except RuntimeError as error:
                raise RuntimeError(f"{error} (in {name or type(module).__name__})") from None
    for module, weights in packed:
        module._frozen = weights
    if left:
        warnings.warn(
            f"rnnfast.freeze: left as it is, for it is torch.nn's: {', '.join(left)}; rnnfast.convert(model) "
            "makes it one that can be frozen",
            stacklevel=2,
        )
    return model


def unfreeze(model: M) -> M:
    """Takes back `freeze`: every layer reads its weights at every call -> the same model."""
    unmask(model)
    for module in model.modules():
        if isinstance(module, Freezable):
            module._frozen = None
    return model
