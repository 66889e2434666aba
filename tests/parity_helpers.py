"""What the tests of parity share: a case's layer, torch.nn's and ours, its data, and a run of both passes."""

import random

import helpers
import pytest
import torch
from helpers import LAYERS, MODES, peer_of
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast

# What torch says of its own LSTM, which runs as the peer.
MARKS = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CELLS = {mode: LAYERS[mode] for mode in MODES}


def make(package, case, dtype=torch.float64):
    """The layer of one case from torch.nn (or what judges it, see `peer_of`) or from rnnfast."""
    name, extra = CELLS[case["cell"]]
    if case.get("P"):
        extra = {**extra, "proj_size": case["P"]}
    return (peer_of(name) if package is nn else getattr(package, name))(
        case["I"],
        case["H"],
        num_layers=case["layers"],
        bias=case["bias"],
        batch_first=case["batch_first"],
        bidirectional=case["bidirectional"],
        dtype=dtype,
        **extra,
    )


def problem(case):
    """Data of one case in its dtype: padded x, h0, c0 and the lengths for packing."""
    dtype = getattr(torch, case["dtype"])
    T, B, D = case["T"], case["B"], 1 + case["bidirectional"]
    batch = () if case["form"] == "unbatched" else (B,)
    time_first = (T, *batch, case["I"])
    shape = (B, T, case["I"]) if case["batch_first"] and batch else time_first
    rows = case["layers"] * D
    rng = random.Random(case["seed"])
    lengths = [rng.randint(1, T) for _ in range(B)]
    lengths[rng.randrange(B)] = T  # pack_padded_sequence wants the longest to fill the padding
    if case["form"] == "packed":
        lengths.sort(reverse=True)
    return {
        "x": torch.randn(shape, dtype=torch.float64).to(dtype),
        "h0": torch.randn(rows, *batch, case["P"] or case["H"], dtype=torch.float64).to(dtype),
        "c0": torch.randn(rows, *batch, case["H"], dtype=torch.float64).to(dtype),
        "lengths": lengths,
    }


def flat(result):
    """Name every tensor a layer returned."""
    output, hn = result
    named = {"output": output.data if isinstance(output, PackedSequence) else output}
    if isinstance(hn, tuple):
        named["h_n"], named["c_n"] = hn
    else:
        named["h_n"] = hn
    return named


def run(layer, case, data, dtype):
    """Forward and backward once. Returns the layer's result, and all tensors and gradients by name."""
    leaves = {"x": data["x"].to(dtype, copy=True).requires_grad_()}
    hx = None
    if case["hx"]:
        leaves["h0"] = data["h0"].to(dtype, copy=True).requires_grad_()
        hx = leaves["h0"]
        if case["cell"] == "lstm":
            leaves["c0"] = data["c0"].to(dtype, copy=True).requires_grad_()
            hx = (hx, leaves["c0"])
    given = leaves["x"]
    if case["form"].startswith("packed"):
        given = pack_padded_sequence(
            given, data["lengths"], batch_first=case["batch_first"], enforce_sorted=case["form"] == "packed"
        )
    result = layer(given, hx)
    tensors = flat(result)
    leaves.update(layer.named_parameters())
    torch.manual_seed(case["seed"])
    # The same gradients for all three: drawn in float64, rounded to the case's dtype, then widened.
    seeds = [
        torch.randn(t.shape, dtype=torch.float64).to(getattr(torch, case["dtype"])).to(dtype)
        for t in tensors.values()
    ]
    grads = torch.autograd.grad(list(tensors.values()), list(leaves.values()), seeds)
    named = {name: tensor.detach() for name, tensor in tensors.items()}
    named.update({f"grad of {name}": grad for name, grad in zip(leaves, grads, strict=True)})
    return result, named


def three(case):
    """torch.nn in float64 (the oracle) and in the case's dtype, and ours, all with the same weights."""
    dtype = getattr(torch, case["dtype"])
    torch.manual_seed(case["seed"])
    theirs = make(nn, case, dtype)
    oracle = make(nn, case)
    oracle.load_state_dict(theirs.state_dict())
    ours = make(rnnfast, case, dtype)
    ours.load_state_dict(theirs.state_dict())
    return oracle, theirs, ours


def plain(cell, **changes):
    """A middling case to vary."""
    case = {
        "cell": cell,
        "layers": 2,
        "bidirectional": True,
        "bias": True,
        "batch_first": False,
        "form": "dense",
        "dtype": "float64",
        "hx": True,
        "T": 5,
        "B": 3,
        "I": 7,
        "H": 11,
        "P": 0,
        "seed": 5,
    }
    return {**case, **changes}


cells = pytest.mark.parametrize("cell", list(CELLS))
projected = pytest.mark.parametrize("cell,P", [*((cell, 0) for cell in CELLS), ("lstm", 4)])
cell_modules = pytest.mark.parametrize("name,extra", helpers.CELLS.values(), ids=helpers.CELLS)
