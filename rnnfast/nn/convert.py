"""`convert` and `revert`: the recurrent modules within a model become rnnfast's, and torch.nn's again."""

import functools
import warnings
from typing import TypeVar

import torch
from torch.nn import Module
from torch.nn.modules.rnn import RNNBase, RNNCellBase

from ._tools import ForTools
from ._twins import FROM_TORCH, TO_TORCH, counterpart, unmask

M = TypeVar("M", bound=Module)

# What torch's forward of a layer or cell goes through: a class or module that has one of these of its own
# would be changed in what it computes.
_FORWARD = {
    "__call__", "__getattr__", "__getattribute__", "_call_impl", "_flat_weights", "_update_flat_weights",
    "_weights_have_changed", "_wrapped_call_impl", "check_forward_args", "check_hidden_size", "check_input",
    "forward", "forward_impl", "get_expected_cell_size", "get_expected_hidden_size", "permute_hidden",
}  # fmt: skip
# How a subclass is pickled: a converted one needs a way of its own.
_PICKLED = {"__reduce__", "__reduce_ex__"}
# What a subclass may have of its own beside ours, which calls it where ours has it too
_HARMLESS = {
    "__annotations__", "__dict__", "__doc__", "__firstlineno__", "__init__", "__module__", "__qualname__",
    "__static_attributes__", "__weakref__", "_load_from_state_dict", "extra_repr", "reset_parameters",
    "train",
}  # fmt: skip
# and a module among its attributes: torch sets the first, and ours is called or set as theirs
_HARMLESS_ATTRIBUTES = _HARMLESS | {"_flat_weights", "flatten_parameters", "qconfig"}


def convert(model: M, *, verbose: bool = False) -> M:
    """Makes the recurrent modules within a model of torch.nn's rnnfast's, where they stand -> the same model.

    Every `torch.nn.RNN`, `LSTM`, `GRU`, `RNNCell`, `LSTMCell` and `GRUCell`, `model` itself among them,
    becomes rnnfast's class of this name and stays the object that it is, with its parameters (an optimizer
    keeps them), names, hooks, `training`, dtype and device, parametrizations, weight norm, pruning masks and
    `state_dict`. Nothing is drawn from a random stream. Models within wrappers (`torch.compile`,
    DistributedDataParallel, FSDP, `AveragedModel`) are reached. A subclass without a forward of its own is
    converted too and remains an instance of its class. Converting twice changes nothing.

    A model that was compiled and called is compiled anew; where torch.nn's layers had broken its graph,
    `torch._dynamo.reset()` lets torch.compile try again to make it one.

    What stays as it is is named in a UserWarning with the reason: a subclass with a forward or a way of
    pickling of its own, a module whose forward was replaced, a name of theirs that rnnfast's class needs,
    what is scripted, traced or quantized.

    Examples:
        >>> import torch, rnnfast
        >>> model = torch.nn.Sequential(torch.nn.LSTM(10, 20))
        >>> rnnfast.convert(model, verbose=True)[0]
        rnnfast.convert: 0: torch.nn.LSTM -> rnnfast.LSTM
        LSTM(10, 20)

    Args:
        model: a module.
        verbose: print what was converted, a line for each module.

    Raises:
        TypeError: `model` is not a torch.nn.Module.
        RuntimeError: Python refuses to change the class of a module; then nothing is converted.
    """
    return _change("convert", model, _to_ours, verbose)


def revert(model: M, *, verbose: bool = False) -> M:
    """Takes back `convert`: rnnfast's modules within a model become torch.nn's -> the same model.

    For tools that know torch.nn's by its class, and to save a whole model for where rnnfast is not installed.
    As with `convert`, everything but the class stays; packed weights of `freeze` go. A `DeepTransitionRNN`
    and subclasses of rnnfast's classes stay, and are named in a UserWarning.

    Examples:
        >>> import torch, rnnfast
        >>> type(rnnfast.revert(rnnfast.GRU(10, 20)))
        <class 'torch.nn.modules.rnn.GRU'>

    Args, Raises: as `convert`.
    """
    return _change("revert", model, _to_torchs, verbose)


class _StaysAsItIs(Exception):
    """Why a recurrent module is not changed."""


def _change(name, model, new_class, verbose):
    """new_class(module) -> the class it is to be of, or None if it is nothing of ours to change."""
    if not isinstance(model, Module):
        raise TypeError(f"rnnfast.{name}: model should be a torch.nn.Module, got {type(model).__name__}")
    unmask(model)
    changes, stays = [], []
    for path, module in model.named_modules():
        path = path or "the model itself"
        try:
            cls = new_class(module)
        except _StaysAsItIs as reason:
            stays.append(f"{path}, {_name(type(module))}: {reason}")
            continue
        if cls is not None:
            changes.append((path, module, type(module), cls))

    for i, (path, module, old, cls) in enumerate(changes):
        try:
            object.__setattr__(module, "__class__", cls)
        except TypeError as error:
            for _, changed, before, _ in changes[:i]:
                object.__setattr__(changed, "__class__", before)
            raise RuntimeError(
                f"rnnfast.{name}: the class of {path}, {_name(old)}, cannot be changed ({error}); nothing was"
            ) from None
    for path, module, old, cls in changes:
        module.__dict__.pop("_frozen", None)
        if verbose:
            print(f"rnnfast.{name}: {path}: {_name(old)} -> {_name(cls)}")
    if verbose and not changes:
        print(f"rnnfast.{name}: nothing to {name} in {type(model).__name__}")
    if stays:
        warnings.warn(f"rnnfast.{name}: left as it is: {'; '.join(stays)}", stacklevel=3)
    return model


def _name(cls):
    """A class as a user knows it: torch.nn.LSTM, rnnfast.LSTM, Encoder (a torch.nn.LSTM)."""
    for base in cls.__mro__:
        package = "torch.nn" if base in FROM_TORCH else "rnnfast" if base in FROM_TORCH.values() else None
        if package is not None:
            name = f"{package}.{base.__name__}"
            return name if base is cls else f"{cls.__qualname__} (a {name})"
    return f"{cls.__module__}.{cls.__qualname__}"


def _check_forward(module):
    if "forward" in module.__dict__:
        raise _StaysAsItIs("its forward was replaced by another")


def _is_torchs(name):
    return any(name == cls.__name__ for cls in FROM_TORCH)


def _to_ours(module):
    cls = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        if _is_torchs(module.original_name):
            raise _StaysAsItIs(f"{module.original_name} in TorchScript; convert what it was made from")
        return None
    if isinstance(module, ForTools):
        return None
    if not isinstance(module, (RNNBase, RNNCellBase)):
        if cls.__module__.startswith("torch.ao.nn.") and _is_torchs(cls.__name__):
            raise _StaysAsItIs("made for quantization, which rnnfast does not do")
        return None
    _check_forward(module)
    ours = counterpart(cls, _ours_for)
    attributes = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    _check_names(attributes - _HARMLESS_ATTRIBUTES, _beside(ours, cls) | _FORWARD)
    return ours


def _to_torchs(module):
    if not isinstance(module, ForTools):
        return None
    theirs = counterpart(type(module), TO_TORCH.get)
    if theirs is None:
        raise _StaysAsItIs("torch.nn has no such class")
    if module.learn_initial_state:
        raise _StaysAsItIs("torch.nn's layers learn no initial state")
    _check_forward(module)
    return theirs


def _ours_for(cls):
    if cls in FROM_TORCH or not issubclass(cls, (RNNBase, RNNCellBase)):
        return FROM_TORCH.get(cls)
    theirs = next((base for base in cls.__mro__ if base in FROM_TORCH), None)
    if theirs is None:
        raise _StaysAsItIs("it is a recurrent module of its own kind")
    ours = FROM_TORCH[theirs]
    _check_names(_beside(cls, theirs) - _HARMLESS, _beside(ours, theirs) | _FORWARD | _PICKLED)
    return _converted_subclass(cls, ours)


def _beside(cls, other):
    """The names that one class has, itself or from its bases, beside the other's."""
    return {name for base in cls.__mro__ if base not in other.__mro__ for name in vars(base)}


def _check_names(own, needed):
    clashes = sorted(own & needed)
    if "forward" in clashes:
        raise _StaysAsItIs("it has forward of its own")
    if clashes:
        raise _StaysAsItIs(f"it has {', '.join(clashes)} of its own")


class _Quiet:
    """The first base of a class made here, so that the user's __init_subclass__ does not hear of it."""

    def __init_subclass__(cls):
        pass


@functools.cache
def _converted_subclass(cls, ours):
    """The class of a module of `cls`, a subclass of one of torch.nn's, that takes the forward of `ours`."""

    def reduce(self):
        return _new_converted, (cls,), self.__getstate__()

    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    functions = {"__init__": cls.__init__, "__reduce__": reduce}
    try:
        made = type(cls.__name__, (_Quiet, ours, cls), names | functions)
    except Exception as error:  # its metaclass, or the order of its bases
        raise _StaysAsItIs(f"Python makes no class of both ({error})") from None
    TO_TORCH[made] = cls
    return made


def _new_converted(cls):
    """What a pickle of a converted subclass is read with."""
    try:
        return object.__new__(_ours_for(cls))
    except _StaysAsItIs as reason:  # the class has changed since
        warnings.warn(f"rnnfast.convert: left as it is: {_name(cls)}: {reason}", stacklevel=2)
        return object.__new__(cls)
