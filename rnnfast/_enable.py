"""`enable`: torch's own recurrent operators run on rnnfast's kernels, whoever calls them in this process."""

import contextlib
import os
import threading
import warnings
from collections.abc import Iterator

import torch

from .ops import _C

_aten = _C.aten
_KEY = torch._C.DispatchKey
_AUTOGRAD = (_KEY.AutogradCPU, _KEY.AutogradCUDA)  # where our kernels stand, and at BackendSelect
_lock = threading.RLock()
_asked = False  # by enable, and disable has not ended it
_blocks = 0  # `with enabled():` that have begun and not ended
_hidden = []  # operators of whose kernels by us torch's Python dispatcher is not told


def enable() -> None:
    """Runs every recurrent layer and cell of this process on rnnfast's kernels, whoever made it.

    `torch.nn.LSTM`, `GRU`, `RNN` and their cells, what derives from them, `torch.lstm` and its likes,
    TorchScript and traces: all of them call torch's operators `aten::lstm`, `gru`, `rnn_tanh`, `rnn_relu` and
    `*_cell`, and these are what is replaced. Calls that rnnfast cannot take go to torch's own kernels as
    without it: of tensors on a GPU that this build has no kernels for, in `torch.compile`, `torch.export`,
    `make_fx` or another mode, under `torch.func` transforms and forward-mode AD.
    `rnnfast.info.counts()` says how many calls were taken, and why others were not.

    Twice is as once, and `disable` ends it. Call it before other threads run recurrent layers: torch's tables
    are changed, and torch does not wait for those that look into them.

    Examples:
        >>> import torch, rnnfast
        >>> rnnfast.enable()
        >>> y, state = torch.nn.LSTM(10, 20)(torch.randn(5, 3, 10))
        >>> rnnfast.info.counts()["aten::lstm.input"]
        {'taken': 1}
        >>> rnnfast.disable()

    Raises:
        RuntimeError: something else has replaced one of the operators.
    """
    global _asked
    with _lock:
        _on()
        _asked = True


def disable() -> None:
    """Ends `enable`: torch's operators are torch's again, also within a `with enabled():`.

    A call that has begun ends on its way, and so does its backward. While other threads run that have called
    one of the operators, our kernels stay in torch's tables, for those may be looking into them, and pass
    every call on.
    """
    global _asked
    with _lock:
        _asked = False
        _aten.set_active(False)
        if _aten.is_installed() and not _aten.other_callers():
            _uninstall()


def enable_as_asked() -> None:
    """`enable` if RNNFAST_ENABLE is 1. It raises nothing, for it is called as torch is imported."""
    asked = os.environ.get("RNNFAST_ENABLE", "0")
    if asked not in ("0", "1", ""):
        warnings.warn(f"RNNFAST_ENABLE is {asked!r}, expected 1 or 0: rnnfast is not enabled", stacklevel=2)
    elif asked == "1":
        try:
            enable()
        except RuntimeError as error:
            warnings.warn(f"RNNFAST_ENABLE is 1, but {error}", stacklevel=2)


@contextlib.contextmanager
def enabled() -> Iterator[None]:
    """`enable` for the time of a `with` block. Blocks of one process may overlap: the last to end ends it.

    It does not end what `enable` began, before or within the block.
    """
    global _blocks
    with _lock:
        _on()
        _blocks += 1
    try:
        yield
    finally:
        with _lock:
            _blocks -= 1
            if not _blocks and not _asked:
                disable()


@contextlib.contextmanager
def passing_on():
    """In this thread torch's operators are torch's for the time of a `with` block."""
    before = _aten.pass_on(True)
    try:
        yield
    finally:
        _aten.pass_on(before)


def _on():
    if not _aten.is_installed():
        _install()
    _aten.set_active(True)


def _overloads():
    for name in _aten.operators():
        space, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        yield getattr(getattr(getattr(torch.ops, space), packet), overload or "default")


def _install():
    lacking = _aten.lacking()
    if lacking:
        warnings.warn(
            f"rnnfast.enable: this torch has no {', '.join(lacking)}; the others are replaced", stacklevel=3
        )
    in_python = [(op, _kernel_in_python(op)) for op in _overloads()]
    _aten.install(True)
    for op, kernel in in_python:
        _hide(op, kernel)


def _uninstall():
    _aten.install(False)
    while _hidden:
        op = _hidden.pop()
        del op.has_kernel_for_dispatch_key
        op.py_kernels.pop(_KEY.BackendSelect, None)
        op._dispatch_cache.clear()


# torch's Python dispatcher (of torch.compile, torch.export) asks an operator for its kernel at a key. Where
# torch has Python for the operator, that has to come first at our keys too; and torch.export writes other
# Python into `py_kernels` for a while, where nothing stands.


def _kernel_in_python(op):
    """What it runs below autograd, in the place where BackendSelect then comes to ours; or None."""
    return op.py_kernels.get(torch._ops.resolve_key(op, _KEY.CPU))


def _hide(op, kernel):
    asked = op.has_kernel_for_dispatch_key

    def has_kernel_for_dispatch_key(key):
        return key in op.py_kernels if key in _AUTOGRAD else asked(key)

    op.has_kernel_for_dispatch_key = has_kernel_for_dispatch_key
    if kernel is not None:
        op.py_kernels[_KEY.BackendSelect] = kernel
    op._dispatch_cache.clear()
    _hidden.append(op)
