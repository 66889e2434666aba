"""The kernels' own sigmoid and tanh, for every instruction set, against numpy in a wider type."""

import numpy as np
import pytest

from rnnfast import _C, info

WIDER = {np.float32: np.float64, np.float64: np.longdouble}
ULPS = 4

REFERENCE = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}


@pytest.fixture(params=info.isas())
def isa(request):
    info.set_isa(request.param)
    yield request.param
    info.set_isa(None)


@pytest.fixture(params=[np.float32, np.float64], ids=["float32", "float64"])
def dtype(request):
    return request.param


def numbers(dtype):
    """Numbers of every magnitude and both signs, tiny ones and infinities among them."""
    bits = {np.float32: np.uint32, np.float64: np.uint64}[dtype]
    top = int(np.array(np.inf, dtype).view(bits))
    positive = np.linspace(0, top, 300_001, dtype=np.float64).astype(bits).view(dtype)
    usual = np.random.default_rng(0).normal(0, 8, 300_000).astype(dtype)
    return np.concatenate([positive, -positive, usual])


def apply(function, x):
    return (_C.math if x.dtype == np.float32 else _C.math64)(function, x)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("function", REFERENCE)
def test_error_is_at_most_4_ulp_over_the_whole_range(function, isa, dtype):
    x = numbers(dtype)
    y = apply(function, x)
    exact = REFERENCE[function](x.astype(WIDER[dtype]))
    normal = np.abs(exact) >= np.finfo(dtype).tiny
    finite = normal & (np.abs(exact) <= np.finfo(dtype).max)
    # ulps of the result, as a part of its size: where it is denormal only the absolute error counts
    error = np.abs(y[finite].astype(WIDER[dtype]) - exact[finite]) / np.abs(exact[finite])
    assert error.max() <= ULPS * np.finfo(dtype).eps
    assert np.all(np.abs(y[~normal]) <= np.finfo(dtype).tiny)
    assert np.all(np.isinf(y[exact > np.finfo(dtype).max]))


@pytest.mark.parametrize("function", REFERENCE)
def test_larger_arguments_never_give_smaller_values(function, isa, dtype):
    x = np.sort(numbers(dtype))
    y = apply(function, x)
    overflow = np.argmax(y == np.inf) if np.inf in y else len(y)
    assert np.all(y[overflow:] == np.inf)
    y = y[:overflow]
    tolerance = np.finfo(dtype).eps * np.abs(y[1:])  # neighbours may round apart by one ulp
    assert np.all(y[1:] >= y[:-1] - tolerance)


@pytest.mark.parametrize(
    ("function", "limits"),
    {"sigmoid": (0, 1), "tanh": (-1, 1)}.items(),
    ids=list(REFERENCE),
)
def test_infinities_go_to_the_limits_and_nan_stays(function, limits, isa, dtype):
    x = np.array([-np.inf, np.inf, np.nan, -1e4, 1e4], dtype)
    y = apply(function, x)
    assert tuple(y[:2]) == limits
    assert np.isnan(y[2])
    assert tuple(y[3:]) == limits


def test_tanh_of_tiny_arguments_keeps_its_relative_accuracy(isa, dtype):
    x = np.array([1e-30, 1e-20, 1e-10, 1e-6, 1e-4], dtype)
    np.testing.assert_allclose(
        apply("tanh", x), np.tanh(x.astype(WIDER[dtype])), rtol=4 * np.finfo(dtype).eps
    )


def test_an_unknown_function_is_named():
    with pytest.raises(RuntimeError, match="'sinh'.*sigmoid or tanh"):
        _C.math("sinh", np.zeros(3, np.float32))
