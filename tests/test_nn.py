"""What rnnfast.nn makes of a cell that torch lacks, and where its names are found."""

import pickle
import warnings

import pytest
import torch

import rnnfast
from rnnfast import _paths
from rnnfast.nn import layers


class Minimal(layers._Layers):
    def __init__(self, *args, **kwargs):
        super().__init__("minimal", *args, **kwargs)


@pytest.fixture(autouse=True)
def minimal(monkeypatch):
    """A cell of two gates and no c; no kernel has it."""
    monkeypatch.setitem(_paths.CELLS, "minimal", {"gates": 2, "slots": 2, "has_cell": False})


@pytest.mark.parametrize("bias", [True, False])
def test_a_layer_of_two_gates_has_their_weights_by_torchs_names(bias):
    options = {"num_layers": 2, "bidirectional": True, "bias": bias}
    torch.manual_seed(0)
    ours, theirs = Minimal(3, 5, **options), torch.nn.GRU(3, 5, **options)
    assert ours.mode == "MINIMAL"
    assert repr(ours) == repr(theirs).replace("GRU", "Minimal")
    assert ours._all_weights == theirs._all_weights
    expected = {name: (10, *p.shape[1:]) for name, p in theirs.named_parameters()}
    assert {name: p.shape for name, p in ours.named_parameters()} == expected
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(a is b for a, b in zip(ours._flat_weights, ours.parameters(), strict=True))
    torch.manual_seed(0)
    for p in ours.parameters():
        assert torch.equal(p, torch.empty_like(p).uniform_(-(5**-0.5), 5**-0.5))


def test_only_a_cell_with_c_is_projected():
    for make in (
        lambda: Minimal(3, 5, proj_size=2),
        lambda: rnnfast.GRU(3, 5, 1, True, False, 0.0, False, 2),
        lambda: rnnfast.RNN(3, 5, proj_size=0, nonlinearity="gelu"),
    ):
        with pytest.raises(ValueError, match="proj_size argument is only supported for LSTM, not RNN or GRU"):
            make()


@pytest.mark.parametrize("layer", [rnnfast.RNN, rnnfast.LSTM, rnnfast.GRU, Minimal])
def test_a_warning_names_the_line_that_makes_the_layer(layer):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layer(3, 5, dropout=0.5)
    assert [w.filename for w in caught] == [__file__]


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_trace_of_a_cell_that_torch_lacks_says_so():
    weights = [[p.detach() for p in Minimal(3, 5).parameters()]]

    def run(x):
        return _paths.layers("minimal", x, None, None, weights, _paths.Options(), None)[0]

    with pytest.raises(RuntimeError, match="torch has no operator for the cell 'minimal', so a trace or"):
        torch.jit.trace(run, torch.zeros(2, 1, 3))


@pytest.mark.parametrize("name", rnnfast.nn.__all__)
def test_a_pickle_finds_every_name_in_the_package(name):
    assert pickle.loads(f"crnnfast.nn\n{name}\n.".encode()) is getattr(rnnfast, name)
