"""What the tests of bad input share: valid arguments of each raw op, by name, and a call of it."""

import helpers
import torch

OPS = torch.ops.rnnfast
MODES = list(helpers.MODES)
WEIGHTS = ["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"]
EVERY_WEIGHT = [*WEIGHTS, *(name + "_r" for name in WEIGHTS)]
DIFFERENTIABLE = ["x", "h0", "c0", *EVERY_WEIGHT, "reset_h", "reset_c"]
EPISODES = ["lengths", "resets", "reset_h", "reset_c"]
ROOM = ["h_mask", "zoneout_mask"]
# All different, so that a number in a message can only be the size that is meant.
T, B, features, H, P = 4, 3, 5, 7, 6


def recurrent_arguments(mode="lstm", both=True, proj=False, packed=False, batch_first=False, episodes=False):
    """Valid arguments of `recurrent` by name, in the order of its schema."""
    G, D, out = helpers.MODES[mode]["gates"], 1 + both, P if proj else H
    args = {"mode": mode}
    batch_sizes = torch.tensor([3, 3, 2, 1]) if packed else None
    shape = (9, features) if packed else (B, T, features) if batch_first else (T, B, features)
    args["x"] = torch.randn(shape)
    args["h0"] = torch.randn(D, B, out)
    args["c0"] = torch.randn(D, B, H) if helpers.MODES[mode]["has_cell"] else None
    for suffix in ("", "_r"):
        there = both or not suffix
        sizes = {
            "w_ih": (G * H, features),
            "w_hh": (G * H, out),
            "b_ih": (G * H,),
            "b_hh": (G * H,),
            "w_hr": (P, H),
        }
        for name, size in sizes.items():
            wanted = there and (name != "w_hr" or proj)
            args[name + suffix] = torch.randn(size) * 0.3 if wanted else None
    args.update(batch_sizes=batch_sizes, batch_first=batch_first, save=True)
    args.update(dict.fromkeys(EPISODES), all_states=episodes, **dict.fromkeys(ROOM))
    if episodes and not packed:
        args["lengths"] = torch.tensor([2, 0, 4])
    if episodes and not packed and not both:
        args["resets"] = torch.rand((B, T) if batch_first else (T, B)) < 0.3
        args["reset_h"] = torch.randn(1, 1, out)
        args["reset_c"] = torch.randn(1, 1, H) if args["c0"] is not None else None
    return args


def recurrent_backward_arguments(**options):
    """Valid arguments of `recurrent_backward`: gradients for what `recurrent` returned."""
    args = recurrent_arguments(**options)
    y, hn, cn, gates, cells, cs = OPS.recurrent(*args.values())
    for name in ("save", "all_states", *ROOM):
        del args[name]
    episodes = {name: args.pop(name) for name in EPISODES}
    episodes["dcs"] = torch.randn_like(cs) if cs.numel() else None
    has_cell = helpers.MODES[args["mode"]]["has_cell"]
    cotangents = {
        "dy": torch.randn_like(y),
        "dhn": torch.randn_like(hn),
        "dcn": torch.randn_like(cn) if has_cell else None,
    }
    return {
        **cotangents,
        **args,
        "y": y,
        "gates": gates,
        "cells": cells,
        "needs": [True] * helpers.GRADIENTS,
        **episodes,
    }


def deep_transition_arguments(depth=3, bias=True):
    """Valid arguments of `deep_transition`: inner widths 8 and 9 (depth 3)."""
    widths = [features + H, *range(8, 7 + depth), H]
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    return {
        "x": torch.randn(B, T, features),
        "h0": torch.randn(B, H),
        "weights": [torch.randn(pair) * 0.3 for pair in pairs],
        "biases": [torch.randn(rows) for rows, _ in pairs] if bias else [],
        "negative_slope": 0.01,
        "save": True,
    }


def deep_transition_backward_arguments(**options):
    """Valid arguments of `deep_transition_backward`."""
    args = deep_transition_arguments(**options)
    y, hn, acts = OPS.deep_transition(*args.values())
    del args["save"]
    cotangents = {"dy": torch.randn_like(y), "dhn": torch.randn_like(hn)}
    return {**cotangents, **args, "y": y, "acts": acts, "need_dx": True, "need_dh0": True}


BUILDERS = {
    "recurrent": recurrent_arguments,
    "recurrent_backward": recurrent_backward_arguments,
    "deep_transition": deep_transition_arguments,
    "deep_transition_backward": deep_transition_backward_arguments,
}


def call(op, args):
    return getattr(OPS, op)(*args.values())
