"""Fixtures every test shares, the guard that nothing can pass without the compiled extension, and what keeps
one test on a GPU from making others red or green."""

import os
import re
import sys
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader

import compiling
import pytest
import torch

OPS = ("recurrent", "recurrent_backward", "deep_transition", "deep_transition_backward")
# whose warnings are known, and errors as ours are: the Makefile's torch, and Pythons of which it says nothing
KNOWN_TORCH, KNOWN_PYTHONS = (2, 13), [(3, 10), (3, 11), (3, 12)]
NO_DEVICE = 77  # exit status
COMPILED = {"programs", "on_gpu"}  # the fixtures of tests for which something is compiled
FAILED = pytest.StashKey[bool]()  # of a test: whether a part of it has failed

# The asserts of what several files of tests share then say as much as a test's own.
pytest.register_assert_rewrite("helpers", "bench_helpers", "cuda_helpers", "pretended_gpu")


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


def warns_as_known(version, python=sys.version_info):
    """Whether the warnings of this torch in this Python are known; others have more of their own."""
    release = tuple(int(number) for number in version.split(".")[:2])
    return release == KNOWN_TORCH and tuple(python[:2]) in KNOWN_PYTHONS


def pytest_addoption(parser):
    parser.addoption(
        "--own-warnings",
        action="store_true",
        default=not warns_as_known(torch.__version__),
        help="of warnings only rnnfast's are errors, as beside a torch or in a Python that has more",
    )


def pytest_configure(config):
    if config.getoption("--own-warnings"):
        for line in "default", "error:::rnnfast":
            config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(config, items):
    """One of several workers begins with what is compiled, or others would wait for it at the end."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: COMPILED.isdisjoint(item.fixturenames))


def pytest_sessionstart(session):
    """Fail the whole run, rather than skip, when there is nothing compiled to test."""
    reason = _why_not_compiled()
    if reason is not None:
        pytest.exit(f"{reason}. Build it first: pip install --no-build-isolation -e .", returncode=1)
    if asks_for_a_gpu(session.config.getoption("markexpr")):
        _check_gpu()


def asks_for_a_gpu(chosen):
    """Whether `pytest -m chosen` runs tests of a GPU alone, and must not be green where none can run."""
    return bool(re.search(r"\bgpu\b", chosen)) and not re.search(r"\bnot\s+gpu\b", chosen)


def _check_gpu():
    from rnnfast import _C

    if not torch.cuda.is_available():
        pytest.exit("no device: torch sees no GPU here", returncode=NO_DEVICE)
    if not _C.build_info()["cuda"]:
        pytest.exit("rnnfast was built without CUDA kernels (RNNFAST_CUDA=1 builds them)", returncode=1)


def _was_on_a_gpu(item):
    return item.get_closest_marker("gpu") is not None and torch.cuda.is_initialized()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item):
    """Leaves a process whose CUDA context is lost, for there every later test would fail.

    Under pytest-xdist a new worker goes on with the next test: the report of this one has been sent, and
    xdist says of this one, once more, that the worker crashed.
    """
    result = yield
    if _was_on_a_gpu(item) and item.stash.get(FAILED, False):
        try:
            torch.cuda.synchronize()
        except Exception as error:
            if hasattr(item.config, "workerinput"):
                os._exit(1)
            reason = (str(error).splitlines() or [repr(error)])[0]
            pytest.exit(f"the CUDA context is lost: {reason}", returncode=1)
    return result


@pytest.fixture(scope="session")
def programs(tmp_path_factory):
    """The folder of what this run compiles, for `compiling`."""
    return compiling.folder_of(tmp_path_factory)


@pytest.fixture(autouse=True)
def gpu_is_done(request):
    """What a test on a GPU started has ended, and well, before the next test begins."""
    yield
    if _was_on_a_gpu(request.node):
        from rnnfast import info

        torch.cuda.synchronize()
        assert not info.cuda_failure(), "a block of a CUDA kernel waited in vain for another"


@pytest.fixture(autouse=True)
def settings_restored():
    """Seed every test alike, start it on one thread, and undo what it forced.

    One thread, for torch's own products of a few numbers crawl on several threads of a busy machine; a test
    about threads says how many it wants.
    """
    from rnnfast import info

    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    products = [torch.backends.cuda.matmul, torch.backends.cudnn.rnn, torch.backends.mkldnn.rnn]
    precisions = [of.fp32_precision for of in products]
    torch.manual_seed(20)
    torch.set_num_threads(1)
    yield
    info.set_isa(None)
    info.set_split(None)
    info.set_cuda_kernel(None)
    info.set_cuda_device(None)
    info.set_batch_invariant(None)
    info.set_cache_mb(None)
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    for of, precision in zip(products, precisions, strict=True):
        of.fp32_precision = precision


@pytest.fixture(params=[1, 2], ids=lambda count: f"threads{count}")
def threads(request):
    """Run the test with one and with two torch threads."""
    torch.set_num_threads(request.param)
    return request.param
