"""What "drop-in" means: arguments, errors, weights and copies behave as in torch.nn, bad input included."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from helpers import CELLS, LAYERS, draw, packed, pair, same, tensors, total
from torch import nn

import rnnfast
from rnnfast import info

# torch's own LSTM says this of itself, once, when it meets a projection in float32
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

each_layer = pytest.mark.parametrize("kind", LAYERS)
each_cell = pytest.mark.parametrize("kind", CELLS)
each_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])

F64 = {"dtype": torch.float64}


def failure(call):
    """The type and the text of the error that a call raises."""
    try:
        call()
    except Exception as error:
        return type(error), str(error)
    raise AssertionError("nothing was raised")


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(w.category, str(w.message)) for w in caught]


def is_cell(kind):
    return kind in CELLS


def input_for(kind, **kwargs):
    return draw(5, 4, **kwargs) if is_cell(kind) else draw(7, 5, 4, **kwargs)


def test_classes_are_torchs_bases_and_not_torchs_layers():
    for name in ("RNN", "GRU", "LSTM"):
        assert issubclass(getattr(rnnfast, name), nn.RNNBase)
        assert not issubclass(getattr(rnnfast, name), (nn.RNN, nn.GRU, nn.LSTM))
        assert getattr(rnnfast, name).flatten_parameters is not nn.RNNBase.flatten_parameters
        assert getattr(rnnfast, name)(2, 3).flatten_parameters() is None
    for name in ("RNNCell", "GRUCell", "LSTMCell"):
        assert issubclass(getattr(rnnfast, name), nn.modules.rnn.RNNCellBase)


@each_kind
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no_bias"])
def test_seeded_weights_and_their_order_are_torchs(kind, bias):
    options = {} if is_cell(kind) else {"num_layers": 2, "bidirectional": True}
    ours, theirs = pair(kind, 4, 6, bias=bias, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@each_kind
def test_construction_leaves_the_random_stream_where_torch_does(kind):
    name, extra = (LAYERS | CELLS)[kind]
    following = []
    for library in (rnnfast, nn):
        torch.manual_seed(5)
        getattr(library, name)(4, 6, **extra)
        following.append(torch.rand(3))
    assert torch.equal(*following)


@pytest.mark.parametrize(
    "name, args",
    [
        ("RNN", (4, 6, 2, "relu", False, True, 0.5, True)),
        ("GRU", (4, 6, 2, False, True, 0.5, True)),
        ("LSTM", (4, 6, 2, False, True, 0.5, True, 3)),
        ("LSTM", (4, 6, 1, True, False, 0.0, False, 0, "cpu", torch.float64)),
        ("GRU", (4, 6, 1, True, False, 0.0, False, 0, "cpu", torch.float64)),
        ("RNN", (4, 6, 1, "tanh", True, False, 0.0, False, 0, "cpu", torch.float64)),
        ("RNNCell", (4, 6, False, "relu", "cpu", torch.float64)),
        ("GRUCell", (4, 6, False, "cpu", torch.float64)),
        ("LSTMCell", (4, 6, False, "cpu", torch.float64)),
    ],
)
def test_positional_arguments_stand_in_torchs_order(name, args):
    ours, theirs = getattr(rnnfast, name)(*args), getattr(nn, name)(*args)
    for attribute, value in vars(theirs).items():
        if not attribute.startswith("_"):
            assert getattr(ours, attribute) == value, attribute
    assert [(k, v.shape, v.dtype) for k, v in ours.state_dict().items()] == [
        (k, v.shape, v.dtype) for k, v in theirs.state_dict().items()
    ]


WRONG_TYPES = [(3.0, 5), ("3", 5), (3, 5.0), (3, "5")]
BAD_CONSTRUCTORS = [
    *[
        (name, (3, 5), {"dropout": p})
        for name in ("RNN", "GRU", "LSTM")
        for p in (-0.1, 1.5, True, "a", None)
    ],
    *[(name, (3, 5), {"bias": b}) for name in ("RNN", "GRU", "LSTM") for b in (0, 1, "True", None)],
    *[(name, (3, 5), {"batch_first": b}) for name in ("RNN", "GRU", "LSTM") for b in (0, 1, "False", None)],
    *[
        (name, sizes, {})
        for name in ("RNN", "GRU", "LSTM")
        for sizes in [*WRONG_TYPES, (0, 5), (-1, 5), (3, 0), (3, -1), (3, 5, 0), (3, 5, -2)]
    ],
    *[(name, (3, 5), {"proj_size": p}) for name in ("RNN", "GRU") for p in (0, 2)],
    *[("LSTM", (3, 5), {"proj_size": p}) for p in (-1, 5, 6)],
    ("RNN", (3, 5), {"nonlinearity": "gelu"}),
    ("RNN", (3, 5, 1, "gelu"), {}),
    *[(name, (3,), {}) for name in ("RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell")],
    *[(name, (3, -1), {}) for name in ("RNNCell", "GRUCell", "LSTMCell")],
    *[(name, (3, 5), {"dropout": 0.5}) for name in ("RNNCell", "GRUCell", "LSTMCell")],
]


@pytest.mark.parametrize(
    "name, args, kwargs", BAD_CONSTRUCTORS, ids=lambda value: str(value).replace(" ", "")
)
def test_bad_constructor_arguments_raise_torchs_error(name, args, kwargs):
    ours = failure(lambda: getattr(rnnfast, name)(*args, **kwargs))
    assert ours == failure(lambda: getattr(nn, name)(*args, **kwargs))


@each_layer
def test_dropout_with_one_layer_warns_as_torch_does(kind):
    name, extra = LAYERS[kind]
    ours = warned(lambda: getattr(rnnfast, name)(3, 5, dropout=0.5, **extra))
    assert ours == warned(lambda: getattr(nn, name)(3, 5, dropout=0.5, **extra))
    assert [category for category, _ in ours] == [UserWarning]
    assert warned(lambda: getattr(rnnfast, name)(3, 5, num_layers=2, dropout=0.5, **extra)) == []


@each_cell
def test_cells_accept_a_hidden_size_of_zero(kind):
    ours, theirs = pair(kind, 4, 0)
    assert [p.shape for p in ours.parameters()] == [p.shape for p in theirs.parameters()]


@each_layer
def test_dropout_batch_first_and_training_count_from_the_next_forward(kind):
    ours, theirs = pair(kind, 4, 6, num_layers=2, dropout=0.0, **F64)
    x = draw(7, 5, 4)
    for attribute, value in [
        ("dropout", 0.4),
        ("batch_first", True),
        ("training", False),
        ("training", True),
        ("dropout", 1.0),
    ]:
        outputs = []
        for module in (ours, theirs):
            setattr(module, attribute, value)
            torch.manual_seed(3)
            outputs.append(module(x))
        same(*outputs)


@each_layer
def test_dropout_masks_differ_from_seed_to_seed(kind):
    ours, _ = pair(kind, 4, 16, num_layers=2, dropout=0.3, **F64)
    outputs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        outputs.append(ours(draw(7, 5, 4))[0])
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


@pytest.mark.parametrize("kind", ["lstm", "lstm_proj"])
def test_lstm_state_may_be_a_tuple_or_a_list(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    h, c = draw(1, 5, 3 if "proj" in kind else 6), draw(1, 5, 6, seed=2)
    same(ours(draw(7, 5, 4), [h, c]), ours(draw(7, 5, 4), (h, c)), rtol=0, atol=0)


@each_layer
def test_packed_input_keeps_its_order_and_its_indices(kind):
    ours, theirs = pair(kind, 4, 6, bidirectional=True, **F64)
    x = packed(3, 7, 5)
    h = draw(2, 3, 3 if "proj" in kind else 6)
    hx = (h, draw(2, 3, 6, seed=2)) if "lstm" in kind else h
    (y, state), (expected, expected_state) = ours(x, hx), theirs(x, hx)
    same((y.data, state), (expected.data, expected_state))
    assert torch.equal(y.batch_sizes, x.batch_sizes)
    assert torch.equal(y.sorted_indices, x.sorted_indices)
    assert torch.equal(y.unsorted_indices, x.unsorted_indices)


@each_kind
def test_an_empty_batch_flows_forward_and_backward(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x = torch.zeros((0, 4) if is_cell(kind) else (7, 0, 4), **F64, requires_grad=True)
    outputs, expected = ours(x), theirs(x)
    assert [t.shape for t in tensors(outputs)] == [t.shape for t in tensors(expected)]
    total(outputs).backward()
    assert x.grad.shape == x.shape
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in ours.parameters())


@each_kind
def test_editing_an_output_before_backward_raises(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    output = tensors(ours(input_for(kind)))[0]
    loss = output.square().sum()
    with torch.no_grad():
        output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def zeros(*shape):
    return torch.zeros(*shape)


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


@each_layer
def test_autocast_takes_input_of_another_dtype(kind):
    ours, theirs = pair(kind, 4, 6)
    x = draw(7, 5, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(ours(x), theirs(x), rtol=0.05, atol=0.02, check_dtype=False)


def weight_of(kind, direction="hh"):
    return f"weight_{direction}" + ("" if is_cell(kind) else "_l0")


def outputs_and_gradients(module, x):
    output = module(x)
    return output, torch.autograd.grad(total(output), list(module.parameters()))


@each_kind
def test_weight_norm_flows_through(kind):
    ours, theirs = (
        nn.utils.parametrizations.weight_norm(m, weight_of(kind)) for m in pair(kind, 4, 6, **F64)
    )
    same(outputs_and_gradients(ours, input_for(kind)), outputs_and_gradients(theirs, input_for(kind)))


@each_kind
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
def test_the_older_weight_norm_flows_through(kind):
    ours, theirs = (nn.utils.weight_norm(m, weight_of(kind)) for m in pair(kind, 4, 6, **F64))
    same(outputs_and_gradients(ours, input_for(kind)), outputs_and_gradients(theirs, input_for(kind)))


class Halved(nn.Module):
    def forward(self, weight):
        return weight / 2


@each_kind
def test_a_parametrization_flows_through_and_comes_off(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    before = ours(input_for(kind))
    for module in (ours, theirs):
        nn.utils.parametrize.register_parametrization(module, weight_of(kind), Halved())
    same(outputs_and_gradients(ours, input_for(kind)), outputs_and_gradients(theirs, input_for(kind)))
    nn.utils.parametrize.remove_parametrizations(ours, weight_of(kind), leave_parametrized=False)
    same(ours(input_for(kind)), before, rtol=0, atol=0)


@each_kind
def test_a_weight_replaced_by_a_plain_tensor_is_used_and_trained(kind):
    # weight drop: the parameter is deleted, a tensor computed from another parameter takes its name
    results = []
    for module in pair(kind, 4, 6, **F64):
        raw = nn.Parameter(getattr(module, weight_of(kind)).detach() * 3)
        delattr(module, weight_of(kind))
        setattr(module, weight_of(kind), raw * 0.5)
        output = module(input_for(kind))
        results.append((output, torch.autograd.grad(total(output), [raw, *module.parameters()])))
    same(*results)


@each_layer
def test_tied_layers_share_their_gradient(kind):
    results = []
    for module in pair(kind, 4, 6, num_layers=2, **F64):
        module.weight_hh_l1 = module.weight_hh_l0
        module.bias_ih_l1 = module.bias_ih_l0
        results.append(outputs_and_gradients(module, input_for(kind)))
    same(*results)


@each_kind
def test_an_optimizer_step_and_a_data_edit_count_from_the_next_forward(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    for module in (ours, theirs):
        total(module(input_for(kind))).backward()
        torch.optim.SGD(module.parameters(), lr=0.1).step()
        getattr(module, weight_of(kind)).data.add_(0.25)
    same(ours(input_for(kind)), theirs(input_for(kind)))


@each_kind
def test_functional_call_uses_the_weights_it_is_given(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    before = ours(input_for(kind))
    given = {k: (v.detach() * 2).requires_grad_() for k, v in ours.named_parameters()}
    results = []
    for module in (ours, theirs):
        output = torch.func.functional_call(module, given, (input_for(kind),))
        results.append((output, torch.autograd.grad(total(output), list(given.values()))))
    same(*results)
    same(ours(input_for(kind)), before, rtol=0, atol=0)


def saved_and_loaded(module):
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def pickled(module):
    return pickle.loads(pickle.dumps(module))


@each_kind
@pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved_and_loaded])
def test_a_copy_is_equal_and_independent(kind, copied):
    original, _ = pair(kind, 4, 6, **F64)
    x = input_for(kind)
    expected = original(x)
    duplicate = copied(original.eval())
    assert type(duplicate) is type(original) and not duplicate.training
    with torch.no_grad():
        for p in original.parameters():
            p.zero_()
    same(duplicate(x), expected, rtol=0, atol=0)


@each_kind
def test_state_dicts_load_both_ways(kind):
    ours, _ = pair(kind, 4, 6, seed=1, **F64)
    _, theirs = pair(kind, 4, 6, seed=2, **F64)
    x = input_for(kind)
    ours.load_state_dict(theirs.state_dict())
    same(ours(x), theirs(x))
    ours, _ = pair(kind, 4, 6, seed=3, **F64)
    theirs.load_state_dict(ours.state_dict())
    same(theirs(x), ours(x))


@each_kind
def test_a_wrong_state_dict_raises_torchs_error(kind):
    ours, theirs = pair(kind, 4, 6)
    other, _ = pair(kind, 4, 5)
    wrong = {**other.state_dict(), "extra": zeros(1)}
    assert failure(lambda: ours.load_state_dict(wrong)) == failure(lambda: theirs.load_state_dict(wrong))


@each_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_a_converted_module_computes_in_its_new_dtype(kind, dtype):
    ours, theirs = pair(kind, 4, 6)
    expected = theirs.double()(input_for(kind))
    for _ in range(2):  # the second time after a forward, when caches would be stale
        outputs = ours.to(dtype)(input_for(kind).to(dtype))
        assert {t.dtype for t in tensors(outputs)} == {dtype}
        tolerance = {} if dtype == torch.float64 else {"rtol": 0.05, "atol": 0.03}
        same(outputs, expected, check_dtype=False, **tolerance)


@each_kind
def test_shared_memory_keeps_the_outputs(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    expected = ours(input_for(kind))
    assert all(p.is_shared() for p in ours.share_memory().parameters())
    same(ours(input_for(kind)), expected, rtol=0, atol=0)


def is_one_sentence(text):
    return isinstance(text, str) and text.strip() == text and "\n" not in text and text.endswith(".")


@each_kind
def test_explain_names_the_kernel_that_forward_then_runs(kind):
    ours, _ = pair(kind, 4, 6)
    x = input_for(kind, dtype=torch.float32)
    for isa in info.isas():
        info.set_isa(isa)
        sentence = ours.explain(x)
        assert is_one_sentence(sentence) and isa in sentence.lower()
        ours(x)
        assert info.last_run()["isa"] == isa


@each_kind
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script. is deprecated:DeprecationWarning"
)  # torch.func.jvp does
def test_explain_names_the_reference_path_under_a_transform(kind):
    ours, _ = pair(kind, 4, 6)
    x = input_for(kind, dtype=torch.float32)
    said = []

    def run(x):
        said.append(ours.explain(x))
        return total(ours(x))

    torch.func.jvp(run, (x,), (x,))
    assert is_one_sentence(said[0]) and "reference" in said[0].lower()
    assert "reference" not in ours.explain(x).lower()


def test_info_describes_what_was_built_and_what_will_run():
    text = info.describe()
    assert torch.__version__ in text and info.isa() in text
    assert all(isa in text for isa in info.isas())
