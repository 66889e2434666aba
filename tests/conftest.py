"""Fixtures every test shares, and the guard that nothing can pass without the compiled extension."""

from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader

import pytest
import torch

OPS = ("recurrent", "recurrent_backward", "deep_transition", "deep_transition_backward")


def _why_not_compiled():
    """None when rnnfast._C is a compiled extension with its CPU kernels registered, else one sentence."""
    try:
        from rnnfast import _C
    except Exception as error:
        return f"rnnfast does not import: {error!r}"
    loader = getattr(_C.__spec__, "loader", None)
    file = getattr(_C, "__file__", None) or ""
    if not isinstance(loader, ExtensionFileLoader) or not file.endswith(tuple(EXTENSION_SUFFIXES)):
        return f"rnnfast._C is not a compiled extension but {file or _C!r}"
    for op in OPS:
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"rnnfast::{op}", "CPU"):
            return f"rnnfast::{op} has no CPU kernel"
    return None


def pytest_sessionstart(session):
    """Fail the whole run, rather than skip, when there is nothing compiled to test."""
    reason = _why_not_compiled()
    if reason is not None:
        pytest.exit(f"{reason}. Build it first: pip install --no-build-isolation -e .", returncode=1)


@pytest.fixture(autouse=True)
def settings_restored():
    """Seed every test alike, start it on one thread, and undo what it forced.

    One thread, for torch's own products of a few numbers crawl on several threads of a busy machine; a test
    about threads says how many it wants.
    """
    from rnnfast import info

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    products = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn]
    precisions = [of.fp32_precision for of in products]
    torch.manual_seed(20)
    torch.set_num_threads(1)
    yield
    info.set_isa(None)
    info.set_split(None)
    info.set_cuda_kernel(None)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    for of, precision in zip(products, precisions, strict=True):
        of.fp32_precision = precision


@pytest.fixture(params=[1, 2], ids=lambda count: f"threads{count}")
def threads(request):
    """Run the test with one and with two torch threads."""
    torch.set_num_threads(request.param)
    return request.param
