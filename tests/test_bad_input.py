"""The raw ops given wrong arguments: an error that names the argument and both sizes."""

import re

import helpers
import pytest
import torch
from bad_input_helpers import (
    BUILDERS,
    DIFFERENTIABLE,
    EVERY_WEIGHT,
    MODES,
    ROOM,
    WEIGHTS,
    B,
    H,
    P,
    T,
    call,
    deep_transition_backward_arguments,
    features,
    recurrent_arguments,
    recurrent_backward_arguments,
)


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


@pytest.mark.parametrize("mode", [mode for mode in MODES if not helpers.MODES[mode]["has_cell"]])
def test_a_cell_state_for_a_cell_without_one_is_refused(mode):
    args = recurrent_arguments(mode)
    args["c0"] = torch.randn(2, B, H)
    refuse("recurrent", args, "c0", "None")


def test_an_lstm_without_a_cell_state_is_refused():
    args = recurrent_arguments("lstm")
    args["c0"] = None
    refuse("recurrent", args, "c0", "lstm")


@pytest.mark.parametrize("mode", [mode for mode in MODES if not helpers.MODES[mode]["has_cell"]])
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


@pytest.mark.parametrize("count", [0, 13, 16])
def test_backward_refuses_a_wrong_number_of_needs(count):
    args = {**recurrent_backward_arguments(), "needs": [True] * count}
    with pytest.raises(
        RuntimeError, match=rf"\b{count} elements .* size {helpers.GRADIENTS}"
    ):  # torch's, from the schema
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
        args["needs"] = [j == i for j in range(helpers.GRADIENTS)]
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
