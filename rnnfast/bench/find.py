"""Somebody's model, by the function that makes it, and the calls of the recurrent layers in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .options import Unusable, first_line

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


def load(where: str) -> tuple[nn.Module, tuple]:
    """package.module:function or path/to/file.py:function -> the model and the inputs that it returns."""
    place, _, name = where.rpartition(":")
    if not place or not name:
        raise Unusable(
            f"--model is package.module:function or path/to/file.py:function, which {where!r} is not"
        )
    function = getattr(module_of(place), name, None)
    if not callable(function):
        raise Unusable(f"{place} has no function {name!r}")
    try:
        found = function()
    except (Exception, SystemExit) as error:
        raise Unusable(f"{name} of {place} raised {first_line(error)}") from None
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], nn.Module)):
        raise Unusable(
            f"{name} of {place} returned a {type(found).__name__}, expected a model and a tuple of its inputs"
        )
    model, inputs = found
    if isinstance(inputs, Tensor | PackedSequence):
        return model, (inputs,)
    if not isinstance(inputs, tuple | list):
        raise Unusable(f"{name} of {place} returned inputs of type {type(inputs).__name__}, expected a tuple")
    return model, tuple(inputs)


def module_of(place: str) -> ModuleType:
    is_file, path = place.endswith(".py"), Path(place)
    if is_file and not path.is_file():
        raise Unusable(f"there is no file {place}")
    folder = str(path.resolve().parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)  # as if it were the program
    try:
        if not is_file:
            return importlib.import_module(place)
        # a name of its own, for the file may have that of a package
        spec = importlib.util.spec_from_file_location(f"rnnfast_bench_{path.stem}", path)
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    except (Exception, SystemExit) as error:
        raise Unusable(f"{place} cannot be imported ({first_line(error)})") from None


def mapped(f: Callable[[Tensor], Tensor], value):
    """The same arguments, with f of every tensor in them."""
    if isinstance(value, Tensor):
        return f(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=f(value.data))
    if isinstance(value, dict):
        return {key: mapped(f, item) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(mapped(f, item) for item in value)
    return value


def tensors(value) -> Iterator[Tensor]:
    """Those in an output, or in arguments; of a PackedSequence its data."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif isinstance(value, dict | tuple | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from tensors(item)


@dataclass
class Layer:
    """A recurrent layer, and the arguments of its calls in one call of the model."""

    name: str  # within the model, "" if it is the model
    module: nn.Module
    calls: list[tuple[tuple, dict]] = field(default_factory=list)

    def note(self, _, args: tuple, kwargs: dict) -> None:
        def kept(x: Tensor) -> Tensor:
            return x.detach().clone().requires_grad_(x.requires_grad)

        self.calls.append(mapped(kept, (args, kwargs)))

    def run(self, module: nn.Module) -> list:
        """The same calls of a module that stands for it."""
        return [module(*args, **kwargs) for args, kwargs in self.calls]

    @property
    def leaves(self) -> list[Tensor]:
        return [x for x in tensors(self.calls) if x.requires_grad]

    @property
    def shape(self) -> str:
        x = next(tensors(self.calls[0]))
        return f"{'×'.join(map(str, x.shape))} {str(x.dtype).removeprefix('torch.')}"


def listen(model: nn.Module, call: Callable) -> list[Layer]:
    """The model's recurrent layers, once they have listened to one call of it."""
    found = [Layer(name, module) for name, module in model.named_modules() if isinstance(module, RECURRENT)]
    handles = [one.module.register_forward_pre_hook(one.note, with_kwargs=True) for one in found]
    try:
        call()
    finally:
        for handle in handles:
            handle.remove()
    return found
