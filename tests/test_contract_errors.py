"""Bad input raises torch.nn's error, or one that names the argument where torch's names none."""

import pytest
import torch
from contract_helpers import MARKS, each_cell, each_layer, failure, zeros
from helpers import packed, pair

pytestmark = MARKS


def state_for(kind, *shape):
    return (zeros(*shape), zeros(*shape)) if "lstm" in kind else zeros(*shape)


# What each sees: (options, a function of the kind that makes forward's arguments).
BAD_LAYER_INPUTS = {
    "1d": ({}, lambda kind: (zeros(4),)),
    "4d": ({}, lambda kind: (zeros(2, 7, 5, 4),)),
    "no_steps": ({}, lambda kind: (zeros(0, 5, 4),)),
    "no_steps_batch_first": ({"batch_first": True}, lambda kind: (zeros(5, 0, 4),)),
    "no_steps_unbatched": ({}, lambda kind: (zeros(0, 4),)),
    "dtype": ({}, lambda kind: (zeros(7, 5, 4).double(),)),
    "integers": ({}, lambda kind: (zeros(7, 5, 4).long(),)),
    "features": ({}, lambda kind: (zeros(7, 5, 3),)),
    "features_unbatched": ({}, lambda kind: (zeros(7, 3),)),
    "state_2d_for_batched": ({}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 6))),
    "state_3d_for_unbatched": ({}, lambda kind: (zeros(7, 4), state_for(kind, 1, 5, 6))),
    "state_4d": ({}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 1, 5, 6))),
    "state_width": ({}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 5, 7))),
    "state_batch": ({}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 4, 6))),
    "state_batch_of_one": ({}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 1, 6))),
    "state_batch_first": ({"batch_first": True}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 5, 6))),
    "state_layers": ({"num_layers": 2}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 5, 6))),
    "state_directions": ({"bidirectional": True}, lambda kind: (zeros(7, 5, 4), state_for(kind, 1, 5, 6))),
    "state_unbatched_width": ({}, lambda kind: (zeros(7, 4), state_for(kind, 1, 7))),
    "not_a_tensor": ({}, lambda kind: ([1.0, 2.0],)),
    "nothing": ({}, lambda kind: ()),
}


@pytest.mark.parametrize("case", BAD_LAYER_INPUTS)
@each_layer
def test_bad_layer_input_raises_torchs_error(kind, case):
    options, make = BAD_LAYER_INPUTS[case]
    ours, theirs = pair(kind, 4, 6, **options)
    assert failure(lambda: ours(*make(kind))) == failure(lambda: theirs(*make(kind)))


@pytest.mark.parametrize("kind", ["lstm", "lstm_proj"])
@pytest.mark.parametrize(
    "h, c", [((1, 5, 6), (1, 5, 7)), ((1, 5, 3), (1, 5, 3)), ((1, 5, 3), (5, 6)), ((5, 6), (1, 5, 6))]
)
def test_each_half_of_a_bad_lstm_state_raises_torchs_error(kind, h, c):
    ours, theirs = pair(kind, 4, 6)
    x = zeros(7, 5, 4)
    hx = (zeros(*h), zeros(*c))
    assert failure(lambda: ours(x, hx)) == failure(lambda: theirs(x, hx))


@pytest.mark.parametrize("kind", ["lstm", "lstm_proj"])
@pytest.mark.parametrize("shape", [(1, 5, 6), (2, 1, 5, 6)], ids=["h_0 alone", "stacked"])
def test_an_lstm_state_that_is_one_tensor_is_refused(kind, shape):
    ours, _ = pair(kind, 4, 6)
    with pytest.raises(TypeError, match=r"hx has type Tensor, expected a tuple \(h_0, c_0\)"):
        ours(zeros(7, 5, 4), zeros(*shape))


@pytest.mark.parametrize("kind", ["rnn_tanh", "rnn_relu", "gru"])
@pytest.mark.parametrize("case", ["features", "state", "dtype"])
def test_bad_packed_input_raises_torchs_error(kind, case):
    ours, theirs = pair(kind, 4, 6)
    dtype = torch.float64 if case == "dtype" else torch.float32
    x = packed(3, 5, features=3 if case == "features" else 4, dtype=dtype)
    hx = zeros(1, 2, 7) if case == "state" else None
    assert failure(lambda: ours(x, hx)) == failure(lambda: theirs(x, hx))


@pytest.mark.parametrize("kind", ["lstm", "lstm_proj"])
@pytest.mark.parametrize(
    "features, state, text",
    [(3, None, r"input.size\(-1\) must be equal to input_size. Expected 4"), (4, 7, r"Expected hidden\[0\]")],
    ids=["features", "state"],
)
def test_bad_packed_lstm_input_is_named(kind, features, state, text):
    # torch lets these reach its matrix product, whose message names neither argument
    ours, _ = pair(kind, 4, 6)
    hx = None if state is None else (zeros(1, 2, state), zeros(1, 2, state))
    with pytest.raises(RuntimeError, match=text):
        ours(packed(3, 5, features=features, dtype=torch.float32), hx)


@each_layer
@pytest.mark.parametrize("where", ["input", "weights", "state"])
def test_tensors_on_different_devices_raise_and_both_are_named(kind, where):
    ours, theirs = pair(kind, 4, 6, device="meta" if where == "weights" else "cpu")
    x = zeros(7, 5, 4).to("meta" if where == "input" else "cpu")
    h = zeros(1, 5, 3 if "proj" in kind else 6)
    hx = None
    if where == "state":
        hx = (h.to("meta"), zeros(1, 5, 6).to("meta")) if "lstm" in kind else h.to("meta")
    error, text = failure(lambda: ours(x, hx))
    assert error is failure(lambda: theirs(x, hx))[0] is RuntimeError
    assert "cpu" in text and "meta" in text


@each_layer
def test_a_state_of_another_dtype_raises(kind):
    ours, theirs = pair(kind, 4, 6)
    h = zeros(1, 5, 3 if "proj" in kind else 6).double()
    hx = (h, zeros(1, 5, 6).double()) if "lstm" in kind else h
    for module in (ours, theirs):
        assert failure(lambda: module(zeros(7, 5, 4), hx))[0] is RuntimeError  # noqa: B023


BAD_CELL_INPUTS = {
    "0d": lambda kind: (zeros(()),),
    "3d": lambda kind: (zeros(2, 5, 4),),
    "features": lambda kind: (zeros(5, 3), state_for(kind, 5, 6)),
    "features_unbatched": lambda kind: (zeros(3), state_for(kind, 6)),
    "state_0d": lambda kind: (zeros(5, 4), state_for(kind, ())),
    "state_3d": lambda kind: (zeros(5, 4), state_for(kind, 1, 5, 6)),
    "state_width": lambda kind: (zeros(5, 4), state_for(kind, 5, 7)),
    "state_batch": lambda kind: (zeros(3, 4), state_for(kind, 5, 6)),
    "state_width_unbatched": lambda kind: (zeros(4), state_for(kind, 7)),
    "not_a_tensor": lambda kind: ([1.0],),
}


@pytest.mark.parametrize("case", BAD_CELL_INPUTS)
@each_cell
def test_bad_cell_input_raises_torchs_error(kind, case):
    ours, theirs = pair(kind, 4, 6)
    arguments = BAD_CELL_INPUTS[case](kind)
    assert failure(lambda: ours(*arguments)) == failure(lambda: theirs(*arguments))


def test_an_unknown_nonlinearity_of_a_cell_raises_at_forward_as_in_torch():
    ours, theirs = pair("rnn_tanh_cell", 4, 6, nonlinearity="relu")
    ours.nonlinearity = theirs.nonlinearity = "gelu"
    assert failure(lambda: ours(zeros(5, 4))) == failure(lambda: theirs(zeros(5, 4)))


@each_cell
def test_a_cell_input_of_another_dtype_or_device_raises(kind):
    ours, _ = pair(kind, 4, 6)
    for x in (zeros(5, 4).double(), zeros(5, 4).to("meta")):
        with pytest.raises(RuntimeError):
            ours(x)
