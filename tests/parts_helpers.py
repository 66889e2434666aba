"""What the tests of float32's products by a matrix unit share: switches, layers and what they give."""

import pytest
import torch
from helpers import LAYERS, tensors, total

import rnnfast
from rnnfast import _C, info

MARKS = [
    pytest.mark.skipif("amx_bf16" not in _C.isas(), reason="this processor has no matrix unit"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
]
each_layer = pytest.mark.parametrize("kind", LAYERS)
PRODUCTS = {"ieee": 6, "tf32": 3, "bf16": 1}
each_precision = pytest.mark.parametrize("precision", PRODUCTS, indirect=True)
BOUND = {"ieee": 2**-21, "tf32": 2**-14, "bf16": 2**-7}  # of the error of one product, measured in its scale


def use(precision):
    torch.backends.mkldnn.rnn.fp32_precision = precision
    info.set_batch_invariant(False if precision == "ieee" else None)  # it is nothing less that is asked for


def use_asked(request):
    """For a fixture `precision`: products of parts, six where the test does not say otherwise."""
    asked = getattr(request, "param", "ieee")
    use(asked)  # conftest puts the switches back
    return asked


def layer(kind, inputs, units, **options):
    name, fixed = LAYERS[kind]
    fixed = {**fixed, "proj_size": 64} if "proj_size" in fixed else fixed
    torch.manual_seed(0)
    return getattr(rnnfast, name)(inputs, units, **fixed, **options)


def results(module, x, hx=None):
    """Outputs and all gradients."""
    x = x.detach().requires_grad_()
    output = module(x, hx)
    gradients = torch.autograd.grad(total(output), [x, *module.parameters()])
    return [*(t.detach() for t in tensors(output)), *gradients]


def by_multiply_adds(f, *args):
    info.set_batch_invariant(True)
    try:
        return f(*args)
    finally:
        use(torch.backends.mkldnn.rnn.fp32_precision)


def error(actual, exact):
    """Root mean square of the error over that of the exact numbers."""
    return ((actual.double() - exact).square().mean() / exact.square().mean()).sqrt().item()
