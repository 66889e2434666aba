"""Shared by the tests: the layers and cells under test, each beside torch's own with the same weights; and
what native programs are compiled with."""

import functools
import os
import platform
import shlex
from pathlib import Path
from unittest import mock

import torch
from torch.nn.utils.rnn import pack_sequence
from torch.utils._pytree import tree_leaves

import rnnfast
from rnnfast import _C, _paths, ops

ROOT = Path(__file__).resolve().parent.parent
COMPILER = shlex.split(os.environ.get("CXX", "")) or ["g++"]
# What csrc/cpu has for a processor: its instruction sets beside "generic", and the macro that asks for them
X86_SETS, ARM_SETS = ("avx2", "avx512", "avx512_bf16", "amx_bf16"), ("neon", "neon_bf16")
PROCESSORS = {
    "x86": (("generic", *X86_SETS), "-DRNNFAST_X86=1"),
    "arm": (("generic", *ARM_SETS), "-DRNNFAST_ARM=1"),
}
PROCESSOR = {"x86_64": "x86", "amd64": "x86", "aarch64": "arm", "arm64": "arm"}.get(
    platform.machine().lower()
)
ISAS, ISA_FLAG = PROCESSORS.get(PROCESSOR, (("generic",), "-DRNNFAST_PLAIN=1"))
# for kernels of a GPU that run on the host
EMULATION = [f"-I{ROOT / 'tests/native/emulation'}", f"-I{ROOT / 'csrc'}"]
GPU = torch.cuda.is_available() and bool(_C.build_info()["cuda"])

# Every kind of layer and cell: a readable id, the class (of one name in rnnfast and torch.nn), its arguments.
# One that torch.nn lacks is judged by rnnfast.reference, see `peer_of`.
LAYERS = {
    "rnn_tanh": ("RNN", {}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
    "gru": ("GRU", {}),
    "lstm": ("LSTM", {}),
    "lstm_proj": ("LSTM", {"proj_size": 3}),
}
CELLS = {
    "rnn_tanh_cell": ("RNNCell", {}),
    "rnn_relu_cell": ("RNNCell", {"nonlinearity": "relu"}),
    "gru_cell": ("GRUCell", {}),
    "lstm_cell": ("LSTMCell", {}),
}


GRADIENTS = len(ops.INPUTS)  # of the layer op: those that `needs` tells of
MODES = _C.cells()  # of each mode of the ops its gates, slots (saved for each unit and step) and has_cell


def of_torch(kinds):
    """Those of LAYERS or CELLS that torch.nn has, for what is said of torch.nn's contract."""
    return {kind: value for kind, value in kinds.items() if hasattr(torch.nn, value[0])}


class _ThroughReference:
    """A module of ours whose forward takes the way through plain torch, `rnnfast.reference`."""

    def forward(self, *args):
        with (
            mock.patch.object(_paths, "try_layers", lambda *args: None),
            mock.patch.object(_paths, "try_cell", lambda *args: None),
            mock.patch.object(_paths, "_transformed", lambda: True),
        ):
            return super().forward(*args)


@functools.cache
def peer_of(name):
    """The class that judges ours of this name: torch.nn's, or ours in plain torch where torch.nn lacks it."""
    if hasattr(torch.nn, name):
        return getattr(torch.nn, name)
    return type(name, (_ThroughReference, getattr(rnnfast, name)), {})


def pair(kind, *args, seed=0, **kwargs):
    """Our module of this kind and its peer, made from the same seed, so with the same weights."""
    name, extra = (LAYERS | CELLS)[kind]
    modules = []
    for maker in (getattr(rnnfast, name), peer_of(name)):
        torch.manual_seed(seed)
        modules.append(maker(*args, **{**extra, **kwargs}))
    return modules


def draw(*shape, seed=1, **kwargs):
    """A seeded normal tensor."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, **{"dtype": torch.float64, **kwargs})


def packed(*lengths, features=4, seed=1, **kwargs):
    """A PackedSequence of seeded rows in the order given, longest first or not."""
    rows = [draw(length, features, seed=seed + i, **kwargs) for i, length in enumerate(lengths)]
    return pack_sequence(rows, enforce_sorted=False)


def tensors(tree):
    """All floating point tensors in an output or input: [tensor, ...]."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]


def same(actual, expected, **tolerance):
    """Every tensor of one output beside every tensor of the other."""
    torch.testing.assert_close(tensors(actual), tensors(expected), **tolerance)


def total(output):
    """A scalar that depends on every element of an output unevenly, so that no gradient cancels."""
    return sum(
        (torch.linspace(-1, 2, t.numel(), dtype=t.dtype).view(t.shape) * t).sum() for t in tensors(output)
    )


# Every form of the layer op: a readable id, what `op_inputs` takes.
FORMS = {
    "dense": {},
    "bidirectional_batch_first_no_bias": {"bidirectional": True, "batch_first": True, "bias": False},
    "packed": {"packed": True},
    "packed_bidirectional": {"packed": True, "bidirectional": True},
}
OP_CASES = {f"{mode}_{form}": (mode, FORMS[form]) for mode in MODES for form in FORMS}
OP_CASES["lstm_proj"] = ("lstm", {"proj": 3})
OP_CASES["lstm_proj_packed_bidirectional"] = (
    "lstm",
    {"proj": 3, "bidirectional": True, "packed": True},
)


def op_inputs(
    mode, proj=0, bias=True, bidirectional=False, batch_first=False, packed=False, steps=5, **options
):
    """Arguments of torch.ops.rnnfast.recurrent up to batch_first: T = steps, B = 3, I = 4, H = 6."""
    leaf = leaf_maker(**options)
    T, B, I, H = steps, 3, 4, 6  # noqa: E741
    D, P, GH = 1 + bidirectional, proj or H, MODES[mode]["gates"] * H
    lengths = (T, T - 1, 1)
    batch_sizes = torch.tensor([sum(length > t for length in lengths) for t in range(T)]) if packed else None
    x = leaf(sum(lengths), I) if packed else leaf(B, T, I) if batch_first else leaf(T, B, I)
    weights = []
    for present in (True, bidirectional):
        weights += [leaf(GH, I), leaf(GH, P)] if present else [None, None]
        weights += [leaf(GH), leaf(GH)] if present and bias else [None, None]
        weights += [leaf(P, H) if present and proj else None]
    c0 = leaf(D, B, H) if MODES[mode]["has_cell"] else None
    return (mode, x, leaf(D, B, P), c0, *weights, batch_sizes, batch_first)


def leaf_maker(grad=True, dtype=torch.float64):
    """A function of a shape that gives a new seeded tensor at each call."""
    seeds = iter(range(100))
    return lambda *shape: (0.6 * draw(*shape, seed=next(seeds), dtype=dtype)).requires_grad_(grad)


def deep_transition_inputs(bias=True, depth=3, steps=5, **options):
    """Arguments of torch.ops.rnnfast.deep_transition up to negative_slope: T = steps, I = 4, H = 6, W = 7."""
    leaf = leaf_maker(**options)
    widths = [4 + 6, *[7] * (depth - 1), 6]
    weights = [leaf(n, m) for m, n in zip(widths[:-1], widths[1:], strict=True)]
    biases = [leaf(n) for n in widths[1:]] if bias else []
    return leaf(3, steps, 4), leaf(3, 6), weights, biases, 0.01
