"""What "drop-in" means: arguments, options and outputs are those of torch.nn, and explain says what runs."""

import platform
import warnings

import pytest
import torch
from contract_helpers import F64, MARKS, each_cell, each_kind, each_layer, failure, input_for, is_cell
from helpers import CELLS, LAYERS, draw, packed, pair, same, tensors, total
from torch import nn

import rnnfast
from rnnfast import info

pytestmark = MARKS


def warned(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [(w.category, str(w.message)) for w in caught]


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


@each_layer
def test_autocast_takes_input_of_another_dtype(kind):
    ours, theirs = pair(kind, 4, 6)
    x = draw(7, 5, 4, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same(ours(x), theirs(x), rtol=0.05, atol=0.02, check_dtype=False)


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
    lines = dict(line.split(None, 1) for line in text.splitlines())
    assert all(isa in text for isa in info.isas())
    # of a set that this processor lacks, too: the wheel for x86-64 has all
    built = {"x86_64": ["generic", "avx2", "avx512", "avx512_bf16", "amx_bf16"]}.get(platform.machine())
    if built:
        assert f"isas {built}" in lines["built"]
