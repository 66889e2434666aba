"""What the tests of stacks of layers on a GPU share: layers, their calls one after the other or side by side,
and the record of an emulated device's streams."""

import torch
from cuda_helpers import GATES
from helpers import MODES, draw

LAYERS_OF_A_STACK, STEPS = 3, 200
CHUNKS = 2  # of 96 steps at least


def layers(mode, H, B=3, inputs=5, directions=1, dtype=torch.bfloat16, P=None):
    """Of each layer the arguments of the op behind x; with a projection to P units."""
    found = []
    for k in range(LAYERS_OF_A_STACK):
        width = P or H
        rows, reads = GATES[mode] * H, directions * width if k else inputs
        one = [draw(rows, reads, seed=k).mul(reads**-0.5), draw(rows, width, seed=10 + k).mul(width**-0.5)]
        weights = [*one, draw(rows, seed=20 + k), None, draw(P, H, seed=50 + k).mul(H**-0.5) if P else None]
        weights += weights if directions == 2 else [None] * 5
        states = [draw(directions, B, width, seed=30 + k), draw(directions, B, H, seed=40 + k)]
        if not MODES[mode]["has_cell"]:
            states[1] = None
        found.append([t if t is None else t.to(dtype) for t in (*states, *weights)])
    return found


def run(emulated, mode, x, stack, sizes=None, batch_first=False, save=True, more=()):
    """What every layer gives, and how many launches it took."""
    before, outputs = torch.ops.rnnfast_emulated.launches(), []
    for arguments in stack:
        outputs.append(emulated["recurrent"](mode, x, *arguments, sizes, batch_first, save, *more))
        x = outputs[-1][0]
    return outputs, torch.ops.rnnfast_emulated.launches() - before


def run_side_by_side(emulated, *arguments, **options):
    torch.ops.rnnfast_emulated.open_stack(LAYERS_OF_A_STACK)
    try:
        return run(emulated, *arguments, **options)
    finally:
        torch.ops.rnnfast_emulated.close_stack()


def assert_same(found, expected):
    for layer, (a, b) in enumerate(zip(found, expected, strict=True)):
        for i, (left, right) in enumerate(zip(a, b, strict=True)):
            assert torch.equal(left, right), (layer, i)


def recorded_waits():
    """(stream, the one that it waited for, launches before that moment, launches before the wait) of each,
    since a stack was opened."""
    numbers = torch.ops.rnnfast_emulated.waits()
    return [tuple(numbers[i : i + 4]) for i in range(0, len(numbers), 4)]
