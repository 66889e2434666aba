"""What the modules share: reading their weights, and checks of an input against them."""

import torch


def read(module, name):
    """A parameter, or what stands in its place: a parametrization, weight_norm's tensor, a plain tensor.

    `_parameters` is looked up first: attribute access costs 0.6 µs, at every call.
    """
    p = module._parameters
    return p[name] if name in p else getattr(module, name)


def check_dtype(input, weight):
    if input.dtype != weight.dtype and not torch._C._is_any_autocast_enabled():
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )


def check_features(input, input_size):
    if input.size(-1) != input_size:
        raise RuntimeError(
            f"input.size(-1) must be equal to input_size. Expected {input_size}, got {input.size(-1)}"
        )
