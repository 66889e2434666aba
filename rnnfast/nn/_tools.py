"""What torch's tools ask of a module of ours where they know torch.nn's by its class or its package."""

import warnings

from torch.ao.quantization.utils import activation_is_dynamically_quantized
from torch.fx import Proxy
from torch.fx.proxy import TraceError
from torch.nn import Module

from ._twins import as_scriptable, can_be_quantized


def proxy_among(*values):
    """The first that stands for a tensor in a graph that torch.fx makes, or None."""
    for value in values:
        if isinstance(value, Proxy):
            return value
    return None


class ForTools(Module):
    """torch.fx sees a leaf, torch.jit.script a module of torch.nn; quantization that skips it says so."""

    __jit_unused_properties__ = ["all_weights", "qconfig"]  # RNNBase names the first

    def _fx_node(self, proxy, input, hx, more=None):
        """The call forward(input, hx, **more) as a node of a graph of torch.fx; `proxy` is a part of it."""
        forward = self.__dict__.get("forward", type(self).forward)
        if not getattr(forward, "__module__", "").startswith(__package__):
            # the node would call that forward again, which has come here
            raise TraceError(
                f"{type(self).__name__} has a forward of its own: torch.fx can have it as a leaf only, see "
                "torch.fx.Tracer.is_leaf_module"
            )
        if proxy.tracer.root is self:
            raise TraceError(
                f"torch.fx sees {type(self).__name__} as one module, with nothing to trace in it: "
                "trace a model that it is a part of"
            )
        args = (input,) if hx is None else (input, hx)
        return proxy.tracer.create_proxy("call_module", proxy.tracer.path_of_module(self), args, more or {})

    # torch.nn's layers have none, so none of them can take the place of one that has
    learn_initial_state = False

    def __prepare_scriptable__(self):
        if self.learn_initial_state:
            raise RuntimeError(
                f"rnnfast.{type(self).__name__}: torch.jit.script reads torch.nn's layers, which learn no "
                "initial state; torch.compile and torch.export can have this one"
            )
        return as_scriptable(self)

    @property
    def qconfig(self):
        """How `torch.ao.quantization` is to quantize the module; it sets this attribute on every module."""
        if "qconfig" in self.__dict__:
            return self.__dict__["qconfig"]
        raise AttributeError(f"'{type(self).__name__}' object has no attribute 'qconfig'")

    @qconfig.setter
    def qconfig(self, value):
        self.__dict__["qconfig"] = value
        dynamic = value is not None and activation_is_dynamically_quantized(value)
        if can_be_quantized(type(self)) and not dynamic:
            name = type(self).__name__
            warnings.warn(
                f"torch.ao.quantization leaves rnnfast.{name} as it is, for it goes by the class: name "
                f"rnnfast.{name} in qconfig_spec of quantize_dynamic, or call rnnfast.revert(model) before",
                stacklevel=2,
            )

    @qconfig.deleter
    def qconfig(self):
        self.__dict__.pop("qconfig", None)
