"""What people who derive from a layer call: torch.nn's helpers, lists of weights and names."""

import pytest
import torch
from torch import nn

import rnnfast
from tests.helpers import LAYERS, draw, of_torch, packed, pair, peer_of, same

KINDS = of_torch(LAYERS)
HELPERS = {
    "hidden size": lambda m, x, h, rows: m.get_expected_hidden_size(x, None),
    "hidden size of packed rows": lambda m, x, h, rows: m.get_expected_hidden_size(
        rows.data, rows.batch_sizes
    ),
    "permuted state": lambda m, x, h, rows: m.permute_hidden(h, torch.tensor([2, 0, 1])),
    "state as it is": lambda m, x, h, rows: m.permute_hidden(h, None),
    "a right input": lambda m, x, h, rows: m.check_forward_args(x, h, None),
    "right packed rows": lambda m, x, h, rows: m.check_forward_args(rows.data, h, rows.batch_sizes),
    "a wrong input": lambda m, x, h, rows: m.check_forward_args(x[..., :3], h, None),
    "a wrong batch": lambda m, x, h, rows: m.check_forward_args(x[:, :2], h, None),
    "a wrong dtype": lambda m, x, h, rows: m.check_forward_args(x.float(), h, None),
    "a wrong number of dimensions": lambda m, x, h, rows: m.check_input(x[0], None),
    "names": lambda m, x, h, rows: (m._flat_weights_names, m._all_weights),
    "weights": lambda m, x, h, rows: m._flat_weights,
    "weights by layer": lambda m, x, h, rows: m.all_weights,
    "flattened": lambda m, x, h, rows: m.flatten_parameters(),
}


@pytest.mark.parametrize("helper", HELPERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_helper_gives_what_torchs_gives(kind, helper):
    found = []
    for module in pair(kind, 4, 6, num_layers=2, bidirectional=True):
        module.double()
        _, state = module(draw(5, 3, 4))
        try:
            found.append(HELPERS[helper](module, draw(5, 3, 4), state, packed(5, 3, 2)))
        except (RuntimeError, ValueError) as error:
            found.append((type(error), str(error)))
    ours, theirs = found
    if helper.startswith(("weights", "permuted", "state")):
        same(ours, theirs)
    else:
        assert ours == theirs


def test_a_cell_size_is_that_of_torchs():
    for options in ({}, {"proj_size": 3}, {"bidirectional": True, "batch_first": True}):
        ours, theirs = pair("lstm", 4, 6, **options)
        rows, x = packed(5, 3, 2), draw(5, 3, 4)
        for data, sizes in ((x, None), (rows.data, rows.batch_sizes)):
            assert ours.get_expected_cell_size(data, sizes) == theirs.get_expected_cell_size(data, sizes)


def test_lists_of_weights_hold_the_parameters_after_a_move_and_a_change():
    module = rnnfast.LSTM(4, 6).double()
    for change in (
        lambda: None,
        module.double,
        lambda: setattr(module, "bias_hh_l0", nn.Parameter(draw(24))),
    ):
        change()
        assert all(a is b for a, b in zip(module._flat_weights, module.parameters(), strict=True))
        assert all(a is b for a, b in zip(module.all_weights[0], module.parameters(), strict=True))


def with_masked_weights(base, operator):
    """Half of the hidden weights are zero; forward is written with torch's helpers and operator."""

    class Masked(base):
        def forward(self, input, hx=None):
            packed_rows = isinstance(input, nn.utils.rnn.PackedSequence)
            x, sizes, order, back = input if packed_rows else (input, None, None, None)
            if hx is None:
                hx = x.new_zeros(self.get_expected_hidden_size(x, sizes))
                if hasattr(self, "get_expected_cell_size"):
                    hx = (hx, x.new_zeros(self.get_expected_cell_size(x, sizes)))
            hx = self.permute_hidden(hx, order)
            self.check_forward_args(x, hx, sizes)
            named = zip(self._flat_weights_names, self._flat_weights, strict=True)
            weights = [w.tril() if "weight_hh" in name else w for name, w in named]
            how = (self.bias, self.num_layers, self.dropout, self.training, self.bidirectional)
            if sizes is None:
                y, *state = operator(x, hx, weights, *how, self.batch_first)
            else:
                y, *state = operator(x, sizes, hx, weights, *how)
            state = tuple(state) if len(state) > 1 else state[0]
            return y, self.permute_hidden(state, back)

    return Masked


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_a_forward_of_ones_own_gives_the_same_on_our_class_as_on_torchs(kind):
    name, operator = LAYERS[kind][0], getattr(torch._VF, kind)
    results = []
    for base in (getattr(rnnfast, name), peer_of(name)):
        torch.manual_seed(0)
        module = with_masked_weights(base, operator)(4, 6, 2).double()
        rows = packed(5, 2, 3)
        _, state = module(draw(5, 3, 4))
        results.append([module(x, h) for x in (draw(5, 3, 4), rows) for h in (None, state)])
    same(*results)


@pytest.mark.parametrize("kind", KINDS)
def test_a_forward_around_ours_is_called_with_its_own_signature(kind):
    name, extra = KINDS[kind]

    class Padded(getattr(rnnfast, name)):
        def forward(self, x, lengths):
            rows = nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False)
            y, state = super().forward(rows)
            return nn.utils.rnn.pad_packed_sequence(y)[0], state

    torch.manual_seed(0)
    module, (_, peer) = Padded(4, 6, **extra).double(), pair(kind, 4, 6)
    x, lengths = draw(5, 3, 4), torch.tensor([2, 5, 3])
    rows, state = peer.double()(nn.utils.rnn.pack_padded_sequence(x, lengths, enforce_sorted=False))
    same(module(x, lengths), (nn.utils.rnn.pad_packed_sequence(rows)[0], state))
