"""One client in one process: its outputs, steps of training, what became of torch's calls; or its times.

python clients/process.py NAME WAY FILE
WAY is torch (rnnfast is not imported), enabled, converted, or a number: the rounds of timing. The result is
saved to FILE, for `clients/run.py`, which starts this.

A client is a file of `clients/libraries`, named as one imports the library, with
    WHAT                   what it runs, in words
    build()                -> model, data; both are drawn anew in each process from the same seed
    forward(model, data)   -> outputs by name
    loss(model, data)      of three steps of Adam; or, where the library has a loop of its own,
    train(model, data)     -> losses by name
and, where it has to be told,
    convert(model)         in place of rnnfast.convert
    NOT_TAKEN, NOT_CONVERTED   why no call of torch's operators is taken, no layer converted
    NOISE                  parts of names of parameters whose gradient is nothing but rounding: not compared
"""

import functools
import importlib.util
import random
import sys
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy
import torch

LIBRARIES = Path(__file__).parent / "libraries"
STEPS = 3


def load(name):
    """The module of a client; by another name than the library that it imports."""
    spec = importlib.util.spec_from_file_location(f"client_{name}", LIBRARIES / f"{name}.py")
    client = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(client)
    return client


def draw_from(seed):
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)


def build(client, way):
    draw_from(0)
    model, data = client.build()
    if way == "converted":
        import rnnfast

        getattr(client, "convert", rnnfast.convert)(model)
    return model, data


def forward(client, model, data):
    model.eval()
    with torch.no_grad():
        return client.forward(model, data)


def train(client, model, data):
    """-> losses; gradients, of the first step, where the loop is ours."""
    model.train()
    draw_from(1)
    if hasattr(client, "train"):
        return client.train(model, data), {}
    optimizer, losses, gradients = torch.optim.Adam(model.parameters()), [], {}
    for _ in range(STEPS):
        loss = client.loss(model, data)
        optimizer.zero_grad()
        loss.backward()
        if not gradients:
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        losses.append(loss.detach())
    return {"losses": torch.stack(losses)}, gradients


def values(client, way):
    """What the ways are compared by, and what was counted."""
    model, data = build(client, way)
    found = {"outputs": forward(client, model, data)}
    noise = getattr(client, "NOISE", ())
    named = {name: p for name, p in model.named_parameters() if not any(part in name for part in noise)}
    before = {name: p.detach().clone() for name, p in named.items()}
    found["losses"], found["gradients"] = train(client, model, data)
    after = dict(model.named_parameters())
    found["steps"] = {name: after[name].detach() - p for name, p in before.items()}  # of the parameters

    result = {"values": found}
    if way == "torch":
        assert "rnnfast" not in sys.modules
        return result
    import rnnfast

    ours = rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU, rnnfast.RNNCell, rnnfast.LSTMCell, rnnfast.GRUCell
    layers = sum(isinstance(module, ours) for module in model.modules())
    return result | {"counts": rnnfast.info.counts(), "layers": layers, "rnnfast": rnnfast.__version__}


def times(client, rounds):
    """Of outputs and of training, each way in turns."""
    import timing

    ways = ["torch.nn", "enabled"] + ["converted"] * (not hasattr(client, "NOT_CONVERTED"))
    built = {way: build(client, way) for way in ways}
    of_parts = {
        part.__name__: timing.of_part(functools.partial(part, client), built, rounds)
        for part in (forward, train)
    }
    return of_parts | {"threads": torch.get_num_threads()}


def main(name, way, file):
    warnings.simplefilter("ignore")  # these libraries warn of their own affairs
    if way == "enabled":
        import rnnfast

        rnnfast.enable()
    client = load(name)
    result = times(client, int(way)) if way.isdigit() else values(client, way)
    words = {key: getattr(client, key, None) for key in ("WHAT", "NOT_TAKEN", "NOT_CONVERTED")}
    torch.save(result | words | {"version": version(name)}, file)


if __name__ == "__main__":
    main(*sys.argv[1:])
