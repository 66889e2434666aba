"""Every class of ours beside torch.nn's of the same name: how a module passes for one of the other kind.

Both kinds keep the same attributes, so a module changes from one to the other by its class alone.
"""

import functools
import sys

from torch.ao.quantization.quantization_mappings import DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS
from torch.nn import Module

TO_TORCH = {}  # our class -> torch.nn's; and a subclass of torch.nn's that was converted -> what it was
FROM_TORCH = {}  # torch.nn's class -> ours


def drop_in_for(theirs):
    """A decorator: the class is ours for torch.nn's `theirs`."""

    def register(ours):
        TO_TORCH[ours], FROM_TORCH[theirs] = theirs, ours
        quantized = DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS.get(theirs)
        if quantized is not None:
            DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS[ours] = _Quantizer(quantized)
        return ours

    return register


def can_be_quantized(cls):
    return cls in DEFAULT_DYNAMIC_QUANT_MODULE_MAPPINGS


class _Quantizer:
    """What `torch.ao.quantization` asks to quantize a module of ours: it goes by torch.nn's classes."""

    def __init__(self, quantized):
        self._quantized = quantized

    def from_float(self, module):
        return self._quantized.from_float(as_torch(module))


def counterpart(cls, find):
    """The class that find(cls) says stands for `cls`, or None.

    Of a class that torch makes as a program runs, for a parametrized module or by fully_shard, the same made
    of what stands for its bases.
    """
    if not cls.__module__.startswith("torch.") or hasattr(sys.modules.get(cls.__module__), cls.__name__):
        return find(cls)
    bases = tuple(counterpart(base, find) or base for base in cls.__bases__)
    if bases == cls.__bases__:
        return None
    own = {name: value for name, value in vars(cls).items() if name not in ("__dict__", "__weakref__")}
    return type(cls)(cls.__name__, bases, own)


def as_torch(module):
    """A module of torch.nn's that has the parameters and everything else of this one of ours."""
    if module.learn_initial_state:
        raise RuntimeError(f"rnnfast.{type(module).__name__}: torch.nn's layers learn no initial state")
    twin = object.__new__(counterpart(type(module), TO_TORCH.get))
    twin.__dict__.update(module.__dict__)
    return twin


class Face(Module):
    """One of ours as torch.jit.script reads it: of another class, with the very attributes of ours.

    torch.jit.script leaves it in the model in the place of ours; with its first call it is one of ours again.
    """

    def __call__(self, *args, **kwargs):
        return _unmask(self)(*args, **kwargs)

    def explain(self, *args, **kwargs):
        return _unmask(self).explain(*args, **kwargs)

    def train(self, mode=True):  # ours takes away what `freeze` has packed
        return _unmask(self).train(mode)

    def __reduce_ex__(self, protocol):  # copies and pickles are of ours
        return _unmask(self).__reduce_ex__(protocol)


def face_of(module, cls):
    """`module` as one of `cls`, a class of faces whose attribute `_behind` is that of the module."""
    face = object.__new__(cls)
    face.__dict__ = module.__dict__
    return face


def _unmask(face):
    cls = type(face)
    # of a face that was parametrized or sharded since, torch has made another class
    face.__class__ = _behind(cls) or counterpart(cls, _behind)
    return face


def _behind(cls):
    return vars(cls).get("_behind")


@functools.cache
def _face_class(ours):
    theirs = counterpart(ours, TO_TORCH.get)
    if theirs is None:
        return None
    if ours in TO_TORCH:  # torch.jit reads no subclass; one that was converted has the forward of its base
        theirs = next(base for base in theirs.__mro__ if base in FROM_TORCH)
    # torch.jit looks for the source of a class by its name, and from Python 3.13 on by its line
    place = {"__module__": theirs.__module__, "__qualname__": theirs.__qualname__}
    if "__firstlineno__" in vars(theirs):
        place["__firstlineno__"] = theirs.__firstlineno__
    return type(theirs.__name__, (Face, theirs), {"_behind": ours, **place})


def as_scriptable(module):
    """What torch.jit.script is to read for this module; itself, where it has a forward of its own."""
    cls = _face_class(type(module))
    return module if cls is None else face_of(module, cls)


def unmask(model):
    """Takes back what torch.jit.script left in a model."""
    for module in model.modules():
        if isinstance(module, Face):
            _unmask(module)
