"""The times of one client: of its outputs and of its training, and of its recurrent layers alone.

`clients/process.py` calls `of_part`; it says what a client is.
"""

import contextlib
import functools
import time

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

import rnnfast
from rnnfast.bench.find import RECURRENT, mapped, tensors
from rnnfast.bench.rounds import interleave, undisturbed

SLOW = 0.1  # seconds of which one turn is enough


@contextlib.contextmanager
def hooked(before, after=None):
    """All recurrent layers tell before(layer, args) and after(layer, args, y) of their calls.

    Hooks of all modules, for TorchScript, which a client may make of its model, would compile a layer's own.
    These are not told of arguments by name.
    """

    def of_recurrent(hook):
        return lambda module, *rest: hook(module, *rest) if isinstance(module, RECURRENT) else None

    handles = [register_module_forward_pre_hook(of_recurrent(before))]
    if after:
        handles.append(register_module_forward_hook(of_recurrent(after)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def heard(run):
    """The calls of recurrent layers in one run: layer, arguments, whether with a graph."""
    calls = []

    def note(layer, args):
        def kept(x):
            return x.detach().clone().requires_grad_(x.requires_grad)

        calls.append((layer, mapped(kept, args), torch.is_grad_enabled()))

    with hooked(note):
        run()
    return calls


def inside(run):
    """Seconds that the recurrent layers' forward takes in one run."""
    began, spent = [], []
    with hooked(
        lambda *_: began.append(time.perf_counter()),
        lambda *_: spent.append(time.perf_counter() - began.pop()),
    ):
        run()
    return sum(spent)


def replay(calls):
    """The same calls again, and backward from all outputs where there was a graph."""
    for layer, arguments, graph in calls:
        with torch.set_grad_enabled(graph):
            ys = [y for y in tensors(layer(*arguments)) if y.requires_grad]
        if ys:
            wanted = [x for x in (*tensors(arguments), *layer.parameters()) if x.requires_grad]
            torch.autograd.grad(ys, wanted, [torch.ones_like(y) for y in ys], allow_unused=True)


def surroundings(way):
    return rnnfast.enabled() if way == "enabled" else contextlib.nullcontext()


def is_slow(call, way):
    with surroundings(way):
        start = time.perf_counter()
        call()
        return time.perf_counter() - start > SLOW


def of_part(part, built, rounds):
    """Seconds of part(model, data), and of its layers' calls again, a figure a round, each way in turns.

    built: the model and its data for each way. `inside` is what the layers' forward takes within the part.
    """
    calls = {("whole", way): functools.partial(part, *given) for way, given in built.items()}
    for way in built:
        run = calls["whole", way]
        with surroundings(way):
            run()  # to warm up
            if again := heard(run):
                calls["layers", way] = functools.partial(replay, again)
    with undisturbed():
        times = interleave(
            calls,
            seconds=float("inf"),
            least=rounds,
            most=rounds,
            slow={key for key, call in calls.items() if is_slow(call, key[1])},
            within={key: functools.partial(surroundings, key[1]) for key in calls},
        )
    found = {"whole": {}, "layers": {}, "inside": {}}
    for (what, way), values in times.items():
        found[what][way] = values
    for _ in range(rounds):
        for way in found["layers"]:
            with surroundings(way):
                for _ in range(2):  # once to wake the threads
                    spent = inside(calls["whole", way])
            found["inside"].setdefault(way, []).append(spent)
    return found
