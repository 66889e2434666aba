"""The raw ops given wrong arguments: an error that names the argument and both sizes, and never a crash.

Run as a script it is the fuzz of one op: python tests/test_bad_input.py OP FIRST_SEED COUNT. A test does
that in its own process: a crash is then one failing test, and the last line printed is the seed that did it.
"""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import rnnfast

OPS = torch.ops.rnnfast
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}
MODES = list(GATES)
WEIGHTS = ["w_ih", "w_hh", "b_ih", "b_hh", "w_hr"]
EVERY_WEIGHT = [*WEIGHTS, *(name + "_r" for name in WEIGHTS)]
DIFFERENTIABLE = ["x", "h0", "c0", *EVERY_WEIGHT]
ROOM = ["lengths", "resets", "h_mask", "zoneout_mask"]
# All different, so that a number in a message can only be the size that is meant.
T, B, features, H, P = 4, 3, 5, 7, 6


def recurrent_arguments(mode="lstm", both=True, proj=False, packed=False, batch_first=False):
    """Valid arguments of `recurrent` by name, in the order of its schema."""
    G, D, out = GATES[mode], 1 + both, P if proj else H
    args = {"mode": mode}
    batch_sizes = torch.tensor([3, 3, 2, 1]) if packed else None
    shape = (9, features) if packed else (B, T, features) if batch_first else (T, B, features)
    args["x"] = torch.randn(shape)
    args["h0"] = torch.randn(D, B, out)
    args["c0"] = torch.randn(D, B, H) if mode == "lstm" else None
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
    args.update(dict.fromkeys(ROOM))
    return args


def recurrent_backward_arguments(**options):
    """Valid arguments of `recurrent_backward`: gradients for what `recurrent` returned."""
    args = recurrent_arguments(**options)
    y, hn, cn, gates, cells = OPS.recurrent(*args.values())
    for name in ("save", *ROOM):
        del args[name]
    lstm = args["mode"] == "lstm"
    cotangents = {
        "dy": torch.randn_like(y),
        "dhn": torch.randn_like(hn),
        "dcn": torch.randn_like(cn) if lstm else None,
    }
    return {**cotangents, **args, "y": y, "gates": gates, "cells": cells, "needs": [True] * 13}


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


def refuse(op, args, names, *words):
    """The op raises a RuntimeError that has one of the names and every one of the words, as whole words."""
    with pytest.raises(RuntimeError) as caught:
        call(op, args)
    message = str(caught.value)
    names = [names] if isinstance(names, str) else names
    boundary = r"(?<![\w.]){}(?![\w])"
    assert any(re.search(boundary.format(re.escape(name)), message) for name in names), (names, message)
    for word in words:
        assert re.search(boundary.format(re.escape(str(word))), message), (word, message)


@pytest.mark.parametrize("op", BUILDERS)
def test_the_arguments_the_other_tests_spoil_are_valid(op):
    for value in call(op, BUILDERS[op]()):
        for tensor in value if isinstance(value, list) else [value]:
            assert torch.isfinite(tensor).all()


# What is given, the names that may be blamed, the wrong size and the size it should have.
WRONG_SHAPES = [
    ("h0", (2, 4, H), ["h0"], (2, 3, 7), (2, 4, 7)),
    ("h0", (1, B, H), ["h0"], (2, 3, 7), (1, 3, 7)),
    ("h0", (2, B, 8), ["h0", "w_hh"], (7,), (8,)),
    ("c0", (2, 4, H), ["c0"], (2, 3, 7), (2, 4, 7)),
    ("c0", (1, B, H), ["c0"], (2, 3, 7), (1, 3, 7)),
    ("c0", (2, B, 9), ["c0"], (2, 3, 7), (2, 3, 9)),
    ("x", (T, B, 11), ["x", "w_ih"], (5,), (11,)),
    ("x", (T, 13, features), ["x", "h0"], (13,), (3,)),
    ("w_ih", (28, 6), ["w_ih"], (28, 5), (28, 6)),
    ("w_ih", (27, features), ["w_ih"], (28, 5), (27, 5)),
    ("w_hh", (28, 8), ["w_hh", "h0"], (7,), (8,)),
    ("w_hh", (27, H), ["w_hh"], (4,), (27, 7)),  # four gates
    ("b_ih", (27,), ["b_ih"], (28,), (27,)),
    ("b_hh", (29,), ["b_hh"], (28,), (29,)),
    ("w_ih_r", (28, 6), ["w_ih_r"], (28, 5), (28, 6)),
    ("w_hh_r", (28, 8), ["w_hh_r"], (28, 7), (28, 8)),
    ("b_ih_r", (27,), ["b_ih_r"], (28,), (27,)),
    ("b_hh_r", (29,), ["b_hh_r"], (28,), (29,)),
]


def numbers(*sizes):
    return [n for size in sizes for n in size]


@pytest.mark.parametrize("name,shape,blamed,expected,got", WRONG_SHAPES)
@pytest.mark.parametrize("op", ["recurrent", "recurrent_backward"])
def test_a_wrong_shape_is_refused_with_its_name_and_both_sizes(op, name, shape, blamed, expected, got):
    args = BUILDERS[op]()
    args[name] = torch.randn(shape)
    if op == "recurrent_backward" and name == "x":
        blamed = [*blamed, "y", "dy"]
    refuse(op, args, blamed, *numbers(expected, got))


@pytest.mark.parametrize(
    "name,shape,blamed,expected,got",
    [
        ("w_hr", (8, H), ["w_hr", "h0", "w_hh"], (6,), (8,)),
        ("w_hr", (P, 9), ["w_hr", "w_hh", "c0"], (7,), (9,)),
        ("w_hr_r", (4, H), ["w_hr_r"], (6, 7), (4, 7)),
        ("h0", (2, B, H), ["h0", "w_hr", "w_hh"], (6,), (7,)),
        ("c0", (2, B, P), ["c0"], (2, 3, 7), (2, 3, 6)),
        ("w_hh", (28, H), ["w_hh"], (28, 6), (28, 7)),
    ],
)
def test_a_wrong_shape_beside_a_projection_is_refused_with_both_sizes(name, shape, blamed, expected, got):
    args = recurrent_arguments(proj=True)
    args[name] = torch.randn(shape)
    refuse("recurrent", args, blamed, *numbers(expected, got))


@pytest.mark.parametrize("op", ["recurrent", "recurrent_backward"])
@pytest.mark.parametrize("name", ["x", "h0", "c0", *WEIGHTS[:4], "w_ih_r", "w_hh_r", "b_ih_r", "b_hh_r"])
@pytest.mark.parametrize("change", ["more", "fewer", "none"])
def test_a_wrong_number_of_dimensions_is_refused_by_name(op, name, change):
    args = BUILDERS[op]()
    right = args[name].dim()
    if change == "none":
        args[name] = torch.tensor(1.0)
    elif change == "more":
        args[name] = args[name].unsqueeze(0)
    else:
        args[name] = args[name].flatten(-2) if right > 1 else torch.tensor(1.0)
    sizes = [right, args[name].dim()] if name == "x" else args[name].shape
    refuse(op, args, name, *sizes)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["h0", "c0", *EVERY_WEIGHT])
def test_a_dtype_that_differs_from_the_inputs_is_refused_with_both_dtypes(mode, name):
    args = recurrent_arguments(mode, proj=mode == "lstm")
    if args[name] is None:
        args[name] = torch.randn(2, B, H)  # what this cell does not have is refused all the same
        refuse("recurrent", args, [name, name.removesuffix("_r")])
        return
    args[name] = args[name].double()
    with pytest.raises(RuntimeError, match=rf"\b{name}\b") as caught:
        call("recurrent", args)
    assert re.search("double|float64", str(caught.value), re.IGNORECASE)
    assert re.search(r"float(32|\b)", str(caught.value), re.IGNORECASE)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn])
@pytest.mark.parametrize("op", ["recurrent", "deep_transition"])
def test_a_dtype_that_no_kernel_has_is_refused(op, dtype):
    args = {
        name: value.to(dtype)
        if isinstance(value, torch.Tensor)
        else [t.to(dtype) for t in value]
        if isinstance(value, list)
        else value
        for name, value in BUILDERS[op]().items()
    }
    kind = {"int64": "int64|long", "complex64": "complex"}.get(str(dtype)[6:], str(dtype)[6:])
    with pytest.raises(RuntimeError, match=f"(?i){kind}"):
        call(op, args)


@pytest.mark.parametrize("op", BUILDERS)
def test_a_tensor_on_another_device_is_refused_with_both_devices(op):
    for name, value in BUILDERS[op]().items():
        args = BUILDERS[op]()
        if isinstance(value, torch.Tensor):
            args[name] = value.to("meta")
        elif isinstance(value, list) and isinstance(value[0], torch.Tensor):
            args[name] = [*value[:-1], value[-1].to("meta")]
        else:
            continue
        refuse(op, args, [name, f"{name}[2]"], "meta", "cpu")


def test_batch_sizes_on_another_device_are_refused():
    args = recurrent_arguments(packed=True)
    args["batch_sizes"] = args["batch_sizes"].to("meta")
    refuse("recurrent", args, "batch_sizes", "meta", "cpu")


@pytest.mark.parametrize(
    "sizes,words",
    [
        ([1, 3, 3, 2], (1, 3)),  # it grows
        ([3, 2, 3, 1], (2, 3)),
        ([3, 3, 2, 2], (10, 9)),  # the sum is not the number of rows
        ([3, 3, 2], (8, 9)),
        ([3, 3, 3, 0], (0,)),
        ([3, 3, 4, -1], ()),
        ([3, 3, 3, 1, -1], ()),
        ([2, 2, 2, 2, 1], (2, 3)),  # the first is not the batch of h0
        ([4, 3, 2], (4, 3)),
        ([9], (9, 3)),
        ([], ()),
        ([2**62, 2**62, 2**62, 2**62, 9], ()),  # the sum wraps around to 9
    ],
    ids=str,
)
@pytest.mark.parametrize("op", ["recurrent", "recurrent_backward"])
def test_wrong_batch_sizes_are_refused_by_name(op, sizes, words):
    args = BUILDERS[op](packed=True)
    args["batch_sizes"] = torch.tensor(sizes, dtype=torch.int64)
    refuse(op, args, ["batch_sizes", "h0"], *words)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.bool])
def test_batch_sizes_of_another_dtype_are_refused(dtype):
    args = recurrent_arguments(packed=True)
    args["batch_sizes"] = args["batch_sizes"].to(dtype)
    refuse("recurrent", args, "batch_sizes")


@pytest.mark.parametrize("shape", [(), (2, 2), (4, 1)], ids=str)
def test_batch_sizes_that_are_not_one_dimensional_are_refused(shape):
    args = recurrent_arguments(packed=True)
    args["batch_sizes"] = torch.ones(shape, dtype=torch.int64)
    refuse("recurrent", args, "batch_sizes")


def test_strided_batch_sizes_are_read_where_they_are():
    args = recurrent_arguments(packed=True)
    expected = call("recurrent", args)
    args["batch_sizes"] = torch.stack([args["batch_sizes"], torch.full((4,), -7)], 1)[:, 0]
    for a, b in zip(call("recurrent", args), expected, strict=True):
        assert torch.equal(a, b)


def test_packed_input_of_three_dimensions_is_refused():
    args = recurrent_arguments()
    args["batch_sizes"] = torch.tensor([3, 3, 2, 1])
    refuse("recurrent", args, "x", 3, 2)


@pytest.mark.parametrize("mode", ["gru", "rnn_tanh", "rnn_relu"])
def test_a_cell_state_for_a_cell_without_one_is_refused(mode):
    args = recurrent_arguments(mode)
    args["c0"] = torch.randn(2, B, H)
    refuse("recurrent", args, "c0", "None")


def test_an_lstm_without_a_cell_state_is_refused():
    args = recurrent_arguments("lstm")
    args["c0"] = None
    refuse("recurrent", args, "c0", "lstm")


@pytest.mark.parametrize("mode", ["gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("name", ["w_hr", "w_hr_r"])
def test_a_projection_for_a_cell_without_one_is_refused(mode, name):
    args = recurrent_arguments(mode)
    args[name] = torch.randn(P, H)
    refuse("recurrent", args, ["w_hr", "w_hr_r"])


@pytest.mark.parametrize("name", EVERY_WEIGHT)
def test_a_weight_missing_from_its_set_is_refused(name):
    args = recurrent_arguments("lstm", proj=True)
    args[name] = None
    family = [name, name.removesuffix("_r"), name.removesuffix("_r") + "_r"]
    if name.startswith("b_"):
        family += ["b_ih", "b_hh", "b_ih_r", "b_hh_r"]
    if name == "w_hr":
        family += ["h0", "w_hh"]
    if name == "w_ih_r":
        family += ["w_hh_r", "h0"]
    with pytest.raises((RuntimeError, TypeError)) as caught:
        call("recurrent", args)
    assert any(re.search(rf"\b{one}\b", str(caught.value)) for one in family), str(caught.value)


@pytest.mark.parametrize("name", ROOM)
def test_arguments_kept_for_later_are_refused_by_name(name):
    args = recurrent_arguments()
    args[name] = torch.ones(B, dtype=torch.int64)
    refuse("recurrent", args, name)


@pytest.mark.parametrize("mode", ["", "LSTM", "rnn", "lstm\0", "transformer"])
def test_an_unknown_mode_is_refused_by_name(mode):
    args = {**recurrent_arguments(), "mode": mode}
    with pytest.raises(RuntimeError, match="mode"):
        call("recurrent", args)


@pytest.mark.parametrize(
    "name,shape,expected",
    [
        ("dy", (T, B, 15), (4, 3, 14)),
        ("dy", (T, 4, 14), (4, 3, 14)),
        ("dy", (B, T, 14), (4, 3, 14)),
        ("dhn", (2, B, 8), (2, 3, 7)),
        ("dhn", (1, B, 7), (2, 3, 7)),
        ("dcn", (2, B, 8), (2, 3, 7)),
        ("y", (T, B, 15), (4, 3, 14)),
        ("y", (B, T, 14), (4, 3, 14)),
        ("gates", (0,), (2 * 13 * 4 * 16,)),
        ("gates", (2 * 13 * 3 * 16,), (2 * 13 * 4 * 16,)),
        ("gates", (2 * 12 * 4 * 16,), (2 * 13 * 4 * 16,)),
        ("gates", (2, 13, 4, 16), (2 * 13 * 4 * 16,)),
        ("cells", (0,), (2 * 12 * 16,)),
        ("cells", (2 * 12 * 7,), (2 * 12 * 16,)),
    ],
)
def test_backward_refuses_what_forward_did_not_make(name, shape, expected):
    args = recurrent_backward_arguments()
    args[name] = torch.randn(shape)
    refuse("recurrent_backward", args, name, *shape, *expected)


@pytest.mark.parametrize("name", ["dy", "dhn", "dcn", "y", "gates", "cells"])
def test_backward_refuses_another_dtype(name):
    args = recurrent_backward_arguments()
    args[name] = args[name].double()
    refuse("recurrent_backward", args, name)


@pytest.mark.parametrize("count", [0, 12, 14])
def test_backward_refuses_a_wrong_number_of_needs(count):
    args = {**recurrent_backward_arguments(), "needs": [True] * count}
    with pytest.raises(RuntimeError, match=rf"\b{count} elements .* size 13"):  # torch's, from the schema
        call("recurrent_backward", args)


def test_backward_with_a_cell_state_gradient_for_a_gru_is_refused():
    args = recurrent_backward_arguments(mode="gru")
    args["dcn"] = torch.randn(2, B, H)
    refuse("recurrent_backward", args, "dcn")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("given", [(), ("dy",), ("dhn",)])
def test_backward_takes_missing_gradients_as_zeros(mode, given):
    args = recurrent_backward_arguments(mode=mode)
    zeros = dict(args)
    for name in ("dy", "dhn", "dcn"):
        if name not in given and args[name] is not None:
            args[name], zeros[name] = None, torch.zeros_like(args[name])
    for a, b in zip(call("recurrent_backward", args), call("recurrent_backward", zeros), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("mode", MODES)
def test_backward_returns_size_zero_for_what_is_not_needed(mode):
    args = recurrent_backward_arguments(mode=mode)
    every = call("recurrent_backward", args)
    for i, name in enumerate(DIFFERENTIABLE):
        args["needs"] = [j == i for j in range(13)]
        for j, (a, b) in enumerate(zip(call("recurrent_backward", args), every, strict=True)):
            if i == j and args[name] is not None:
                torch.testing.assert_close(a, b)
            else:
                assert a.shape == (0,), DIFFERENTIABLE[j]


def spoil(args, name, index, shape):
    """Give one tensor, or one tensor of a list, another shape."""
    if index is None:
        args[name] = torch.randn(shape)
    else:
        args[name][index] = torch.randn(shape)


@pytest.mark.parametrize(
    "name,index,shape,blamed,words",
    [
        ("x", None, (B, T, 6), ["x", "weights[0]"], (12, 13)),
        ("x", None, (B, T), ["x"], (2, 3)),
        ("x", None, (1, B, T, features), ["x"], (4, 3)),
        ("h0", None, (4, H), ["h0"], (3, 7, 4)),
        ("h0", None, (B, 6), ["h0", "weights[0]"], (11, 12)),
        ("h0", None, (1, B, H), ["h0"], (1, 3, 7)),
        ("weights", 0, (8, 11), ["weights[0]"], (11, 12)),
        ("weights", 0, (8,), ["weights[0]"], (8,)),
        ("weights", 1, (9, 10), ["weights[1]"], (10, 8)),
        ("weights", 2, (7, 8), ["weights[2]"], (8, 9)),
        ("weights", 2, (6, 9), ["weights[2]", "h0"], (6, 7)),
        ("biases", 0, (9,), ["biases[0]"], (9, 8)),
        ("biases", 2, (1,), ["biases[2]"], (1, 7)),
        ("biases", 1, (9, 1), ["biases[1]"], (9, 1)),
    ],
)
@pytest.mark.parametrize("op", ["deep_transition", "deep_transition_backward"])
def test_deep_transition_refuses_a_wrong_shape_with_both_sizes(op, name, index, shape, blamed, words):
    args = BUILDERS[op]()
    spoil(args, name, index, shape)
    refuse(op, args, blamed, *words)


@pytest.mark.parametrize("op", ["deep_transition", "deep_transition_backward"])
def test_deep_transition_refuses_lists_of_other_lengths(op):
    args = BUILDERS[op]()
    refuse(op, {**args, "weights": [], "biases": []}, "weights")
    refuse(op, {**args, "biases": args["biases"][:2]}, "biases", 2, 3)
    refuse(op, {**args, "biases": args["biases"] + args["biases"][:1]}, "biases", 4, 3)


@pytest.mark.parametrize("op", ["deep_transition", "deep_transition_backward"])
@pytest.mark.parametrize("name,blamed", [("h0", "h0"), ("weights", "weights[1]"), ("biases", "biases[1]")])
def test_deep_transition_refuses_mixed_dtypes(op, name, blamed):
    args = BUILDERS[op]()
    if name == "h0":
        args["h0"] = args["h0"].double()
    else:
        args[name][1] = args[name][1].double()
    refuse(op, args, blamed)


@pytest.mark.parametrize(
    "name,shape,expected",
    [
        ("dy", (B, T, 8), (3, 4, 7)),
        ("dy", (T, B, H), (3, 4, 7)),
        ("dhn", (B, 8), (3, 7)),
        ("y", (B, T, 8), (3, 4, 7)),
        ("acts", (0,), (384,)),
        ("acts", (383,), (384,)),
    ],
)
def test_deep_transition_backward_refuses_what_forward_did_not_make(name, shape, expected):
    args = deep_transition_backward_arguments()
    args[name] = torch.randn(shape)
    refuse("deep_transition_backward", args, name, *shape, *expected)


# --- the fuzz ----------------------------------------------------------------------------------------------


def corrupt_tensor(rng, t):
    """One tensor made wrong, or merely odd, in one seeded way."""
    if t is None:
        return torch.randn([rng.randint(0, 8) for _ in range(rng.randint(0, 4))])
    if t.layout != torch.strided or t.is_meta:
        return t
    dim = rng.randrange(t.dim()) if t.dim() else 0
    shape = list(t.shape)

    def resized(size):
        shape[dim : dim + 1] = [size] if shape else []
        return torch.randn(shape).to(t.dtype) if t.is_floating_point() else torch.ones(shape, dtype=t.dtype)

    def strided():
        wide = torch.stack([t, torch.zeros_like(t)], -1)
        return wide[..., 0]

    ways = [
        lambda: resized(shape[dim] + 1 if shape else 0),
        lambda: resized(max(0, shape[dim] - 1) if shape else 0),
        lambda: resized(0),
        lambda: resized(1),
        lambda: resized(rng.choice([2, 16, 17, 64])),
        lambda: t.unsqueeze(dim),
        lambda: t.flatten(),
        lambda: t.transpose(0, -1) if t.dim() else t,
        lambda: torch.tensor(0.5),
        lambda: torch.empty(0),
        lambda: None,
        lambda: t.double(),
        lambda: t.to(rng.choice([torch.bfloat16, torch.int64, torch.int32, torch.bool, torch.complex64])),
        lambda: t.to("meta"),
        lambda: t[:1].expand(t.shape) if t.dim() and t.shape[0] else t,
        lambda: t.flip(dim) if t.dim() else t,
        lambda: t[..., :0] if t.dim() else t,
        strided,
        lambda: t.to_sparse() if t.dim() else t,
    ]
    return rng.choice(ways)()


def corrupt(rng, args):
    """Change one argument in place."""
    name = rng.choice(list(args))
    value = args[name]
    if name == "mode":
        args[name] = rng.choice([*MODES, "", "nothing"])
    elif name == "batch_sizes":
        sizes = [rng.randint(-1, 4) for _ in range(rng.randint(0, 5))]
        args[name] = rng.choice([None, torch.tensor(sizes, dtype=torch.int64), corrupt_tensor(rng, value)])
    elif isinstance(value, bool):
        args[name] = not value
    elif isinstance(value, float):
        args[name] = rng.choice([0.0, -1.0, 0.5, 1.0])
    elif name == "needs":
        args[name] = [rng.random() < 0.5 for _ in range(rng.choice([13, 13, 13, 0, 12, 14, 40]))]
    elif isinstance(value, list):
        value = list(value)
        where = rng.randrange(len(value)) if value else 0
        way = rng.randrange(4)
        if way == 0 and value:
            value[where] = corrupt_tensor(rng, value[where])
        elif way == 1 and value:
            del value[where]
        elif way == 2:
            value.insert(where, torch.randn(H, H))
        else:
            value.reverse()
        args[name] = value
    else:
        args[name] = corrupt_tensor(rng, value)
    return name


def expected_shapes(op, args):
    """The shapes of what the op returned, from the arguments it accepted. None where any shape is right."""
    x, h0 = args["x"], args["h0"]
    if op == "recurrent":
        D, P, lstm = h0.shape[0], h0.shape[2], args["mode"] == "lstm"
        N = x[..., 0].numel() if x.shape[-1] else x.shape[:-1].numel()
        H = args["w_hh"].shape[0] // GATES[args["mode"]]
        padded, slots = (H + 15) // 16 * 16, 4 if args["mode"] in ("lstm", "gru") else 1
        if slots == 1 and x.dtype in (torch.float32, torch.float64):
            slots = 0  # y is all that backward needs
        yield (*x.shape[:-1], D * P)
        yield tuple(h0.shape)
        yield tuple(args["c0"].shape) if lstm else (0,)
        yield (D * (N + 1) * slots * padded if args["save"] else 0,)
        yield (D * N * padded if args["save"] and lstm else 0,)
    elif op == "recurrent_backward":
        for name, need in zip(DIFFERENTIABLE, args["needs"], strict=True):
            yield tuple(args[name].shape) if need and args[name] is not None else (0,)
    elif op == "deep_transition":
        inner = sum((w.shape[0] + 15) // 16 * 16 for w in args["weights"][:-1])
        yield (*x.shape[:-1], h0.shape[-1])
        yield tuple(h0.shape)
        yield (x.shape[:-1].numel() * inner if args["save"] and inner else 0,)
    else:
        yield tuple(x.shape) if args["need_dx"] else (0,)
        yield tuple(h0.shape) if args["need_dh0"] else (0,)
        yield from (tuple(t.shape) for t in [*args["weights"], *args["biases"]])


def contiguous(value):
    """A fresh, contiguous copy of a tensor or of the tensors of a list."""
    if isinstance(value, torch.Tensor):
        return value.clone(memory_format=torch.contiguous_format)
    if isinstance(value, list):
        return [contiguous(v) if isinstance(v, torch.Tensor) else v for v in value]
    return value


def leaves_of(result):
    return [t for value in result for t in (value if isinstance(value, list) else [value])]


def fuzz_one(op, seed):
    """Corrupt valid arguments once to three times. Returns whether the op refused them."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    if op.startswith("recurrent"):
        mode = rng.choice(MODES)
        options = {
            "mode": mode,
            "both": rng.random() < 0.5,
            "proj": mode == "lstm" and rng.random() < 0.5,
            "packed": rng.random() < 0.5,
        }
        options["batch_first"] = not options["packed"] and rng.random() < 0.5
    else:
        options = {"depth": rng.randint(1, 4), "bias": rng.random() < 0.7}
    args = BUILDERS[op](**options)
    changed = [corrupt(rng, args) for _ in range(rng.choice([1, 1, 1, 2, 3]))]
    try:
        result = call(op, args)
    except (RuntimeError, ValueError, TypeError):
        return True
    assert not any(isinstance(t, torch.Tensor) and t.is_meta for t in leaves_of(args.values())), changed
    found = leaves_of(result)
    shapes = list(expected_shapes(op, args))
    if op.startswith("deep") and not args["biases"]:
        shapes = shapes[: len(found)]
    assert [tuple(t.shape) for t in found] == shapes, (changed, [tuple(t.shape) for t in found], shapes)
    assert all(t.device.type == "cpu" for t in found), changed
    again = leaves_of(call(op, {name: contiguous(value) for name, value in args.items()}))
    for a, b in zip(found, again, strict=True):
        # Also true of what pads the saved buffers: every byte of a result is written.
        assert torch.isfinite(a).all(), changed
        torch.testing.assert_close(a, b, msg=lambda text: f"{changed}: strides count: {text}")
    return False


def fuzz(op, first, count):
    refused = 0
    for seed in range(first, first + count):
        print("seed", seed, flush=True)
        refused += fuzz_one(op, seed)
    print(f"refused {refused} accepted {count - refused}")


@pytest.mark.parametrize("op", BUILDERS)
def test_corrupted_arguments_are_refused_or_computed_and_never_crash(op):
    root = str(Path(rnnfast.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", __file__, op, "0", "600"],
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    last = done.stdout.splitlines()[-1:]
    assert done.returncode == 0, f"{op}: code {done.returncode} after {last}\n{done.stderr[-3000:]}"
    refused, accepted = (int(n) for n in re.findall(r"\d+", last[0]))
    assert refused > 200 and accepted > 20, "the fuzz must meet both ends"


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
