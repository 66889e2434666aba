"""Every instruction set and every split of the work, forced on small odd shapes and read back."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import LAYERS, peer_of
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import rnnfast
from rnnfast import info
from rnnfast.testing import assert_close_to_oracle

# What torch says of its own LSTM, which runs here as the peer.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

SPLITS = ["serial", "units", "rows", "directions"]
ISAS = info.isas()
CELLS = LAYERS | {"lstm_proj": ("LSTM", {"proj_size": 5})}
# T, B, I, H: one row, one tile of rows and a bit, fewer units than lanes, more units than one slice.
SHAPES = [(1, 1, 3, 7), (5, 1, 9, 17), (4, 7, 5, 33), (3, 13, 1, 6)]

isas = pytest.mark.parametrize("isa", ISAS)
splits = pytest.mark.parametrize("split", SPLITS)
cells = pytest.mark.parametrize("cell", list(CELLS))
shapes = pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "T{}B{}I{}H{}".format(*s))


def ours_of(name):
    return getattr(rnnfast, name)


def make(maker, cell, features, H, dtype, **options):
    """maker: `peer_of` or `ours_of`, of the class's name."""
    name, extra = CELLS[cell]
    return maker(name)(features, H, dtype=dtype, **{**extra, **options})


def run(layer, x):
    """Output, final states and all gradients of one pass, and what ran forward and backward."""
    x = x.clone().requires_grad_()
    y, hn = layer(x)
    forward = info.last_run()
    outputs = [y, *(hn if isinstance(hn, tuple) else [hn])]
    torch.manual_seed(3)
    seeds = [torch.randn(t.shape, dtype=torch.float64).to(x.dtype) for t in outputs]
    leaves = [x, *layer.parameters()]
    grads = torch.autograd.grad(outputs, leaves, seeds)
    return [t.detach() for t in outputs], list(grads), forward, info.last_run()


def test_every_machine_has_the_generic_instruction_set_and_no_name_twice():
    assert "generic" in ISAS
    assert len(ISAS) == len(set(ISAS))


def test_the_machine_uses_the_instruction_sets_its_cpu_lists():
    listed = Path("/proc/cpuinfo").read_text().split()
    assert ("avx2" in ISAS) == ({"avx2", "fma", "f16c"} <= set(listed))
    avx512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= set(listed)
    assert ("avx512" in ISAS) == avx512
    bf16 = avx512 and "avx512_bf16" in listed
    assert ("avx512_bf16" in ISAS) == bf16
    assert ("amx_bf16" in ISAS) == (bf16 and {"amx_tile", "amx_bf16"} <= set(listed))


@isas
def test_a_forced_instruction_set_is_the_current_one_until_it_is_given_back(isa):
    before = info.isa()
    info.set_isa(isa)
    assert info.isa() == isa
    info.set_isa(None)
    assert info.isa() == before


@isas
@splits
@cells
@shapes
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_forced_path_runs_and_is_as_exact_as_torch(isa, split, cell, shape, dtype, threads):
    T, B, features, H = shape
    kind = getattr(torch, dtype)
    oracle = make(peer_of, cell, features, H, torch.float64, bidirectional=True)
    theirs, ours = (make(maker, cell, features, H, kind, bidirectional=True) for maker in (peer_of, ours_of))
    oracle.load_state_dict(theirs.state_dict() if kind == torch.float64 else theirs.double().state_dict())
    theirs.to(kind)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, features, dtype=kind)

    torch.set_num_threads(1)
    exact = run(oracle, x.double())
    reference = run(theirs, x)
    torch.set_num_threads(threads)
    info.set_isa(isa)
    info.set_split(split)
    got = run(ours, x)

    assert [ran["op"] for ran in got[2:]] == ["recurrent", "recurrent_backward"]
    for ran in got[2:]:
        assert ran["isa"] == isa
        assert ran["split"] == split
        assert 1 <= ran["members"] <= threads
        assert split != "serial" or ran["members"] == 1
    assert_close_to_oracle(got[0], reference[0], exact[0], [f"output {i}" for i in range(len(got[0]))])
    assert_close_to_oracle(got[1], reference[1], exact[1], [f"gradient {i}" for i in range(len(got[1]))])


@isas
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("cell", list(CELLS))
def test_every_instruction_set_stores_half_precision(isa, dtype, cell):
    kind = getattr(torch, dtype)
    T, B, features, H = 5, 3, 9, 17
    oracle = make(peer_of, cell, features, H, torch.float64)
    theirs, ours = (make(maker, cell, features, H, kind) for maker in (peer_of, ours_of))
    oracle.load_state_dict(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(T, B, features, dtype=kind)
    exact, reference = run(oracle, x.double()), run(theirs, x)
    info.set_isa(isa)
    got = run(ours, x)
    assert got[2]["isa"] == got[3]["isa"] == isa
    assert_close_to_oracle(got[0], reference[0], exact[0], [f"output {i}" for i in range(len(got[0]))])
    assert_close_to_oracle(got[1], reference[1], exact[1], [f"gradient {i}" for i in range(len(got[1]))])


def test_bfloat16_that_begins_at_an_odd_number_is_read_like_any_other():
    # products of pairs read whole words
    layer = rnnfast.GRU(8, 6, dtype=torch.bfloat16)
    x = torch.randn(1 + 5 * 3 * 8).bfloat16()
    odd = x[1:].view(5, 3, 8)
    with torch.no_grad():
        assert torch.equal(layer(odd)[0], layer(odd.clone())[0])


def test_rows_of_a_deep_transition_with_unlike_widths_do_not_meet():
    x, h = torch.randn(8, 6, 4, dtype=torch.float64), torch.zeros(8, 5, dtype=torch.float64)
    weights = [
        torch.randn(n, m, dtype=torch.float64, requires_grad=True) for n, m in [(70, 9), (3, 70), (5, 3)]
    ]
    torch.set_num_threads(2)
    grads = []
    for split in ("serial", "rows"):
        info.set_split(split)
        y, _ = rnnfast.functional.deep_transition(x, h, weights)
        grads.append(torch.autograd.grad(y.square().sum(), weights))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=0)


@isas
@cells
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("shape", [*SHAPES, (6, 37, 21, 75)], ids=lambda s: "T{}B{}I{}H{}".format(*s))
def test_splits_and_thread_counts_give_the_same_bits(isa, cell, dtype, shape):
    T, B, features, H = shape
    kind = getattr(torch, dtype)
    layer = make(ours_of, cell, features, H, kind, bidirectional=True)
    x = torch.randn(T, B, features).to(kind)
    info.set_isa(isa)
    first = None
    for split in [*SPLITS, None]:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            info.set_split(split)
            with torch.no_grad():
                y, hn = layer(x)
            outputs = [y, *(hn if isinstance(hn, tuple) else [hn])]
            first = first or outputs
            for a, b in zip(outputs, first, strict=True):
                assert torch.equal(a, b), (split, count)


@isas
@splits
@cells
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("T,features,H", [(4, 7, 19), (3, 1, 1), (5, 33, 35), (2, 101, 129), (1, 37, 80)])
def test_a_row_alone_and_in_a_batch_gives_the_same_bits(isa, split, cell, dtype, T, features, H):
    if cell == "lstm_proj":
        H = max(H, 7)
    kind = getattr(torch, dtype)
    layer = make(ours_of, cell, features, H, kind, bidirectional=True)
    x = torch.randn(T, 13, features, dtype=kind)
    info.set_isa(isa)
    info.set_split(split)
    with torch.no_grad():
        together, _ = layer(x)
        for rows in ([0], [5], [12], [0, 1, 2], list(range(7))):
            assert torch.equal(layer(x[:, rows])[0], together[:, rows]), rows


@isas
@cells
@pytest.mark.parametrize("H", [19, 261])
def test_so_many_rows_give_the_bits_of_other_numbers_of_rows(isa, cell, H):
    # how panels stand and what a tile takes of them go by the rows: of the batch, and of a step, if packed
    layer = make(ours_of, cell, 270, H, torch.float32)
    x = torch.randn(2, 9, 270)
    info.set_isa(isa)

    def rows_and_gradient(rows):
        some = x[:, :rows].clone().requires_grad_()
        y = layer(some)[0]
        return y.detach(), torch.autograd.grad(y.square().sum(), some)[0]

    y, dx = rows_and_gradient(9)
    for rows in range(1, 9):
        of_some = rows_and_gradient(rows)
        assert torch.equal(of_some[0], y[:, :rows]) and torch.equal(of_some[1], dx[:, :rows]), rows
        with torch.no_grad():
            packed = pack_padded_sequence(x[:, :6], [2] * min(rows, 6) + [1] * (6 - min(rows, 6)))
            last = pad_packed_sequence(layer(packed)[0])[0][1, :rows]
        assert torch.equal(last[:6], y[1, : min(rows, 6)]), rows


@isas
@cells
@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("H", [9, 67])
def test_more_rows_than_a_product_takes_at_once_have_the_bits_of_each_alone(isa, cell, steps, H):
    layer = make(ours_of, cell, 5, H, torch.float32)
    x = torch.randn(steps, 1100, 5, requires_grad=True)
    info.set_isa(isa)
    info.set_split("serial")
    y = layer(x)[0]
    (dx,) = torch.autograd.grad(y.square().sum(), x)
    for row in (0, 511, 512, 1023, 1024, 1099):
        one = x[:, [row]].detach().requires_grad_()
        alone = layer(one)[0]
        assert torch.equal(alone[:, 0], y[:, row]), row
        assert torch.equal(torch.autograd.grad(alone.square().sum(), one)[0][:, 0], dx[:, row]), row


@isas
@pytest.mark.parametrize("form", ["steps first", "batch first", "packed"])
@pytest.mark.parametrize("batch", [16, 33, 49, 64, 261])
def test_a_large_bfloat16_batch_gives_the_bits_of_its_rows(isa, form, batch):
    # a matrix unit takes 32 rows at once, if they stand evenly apart
    layer = rnnfast.LSTM(37, 50, bidirectional=True, dtype=torch.bfloat16)
    lengths = [3] * (batch // 2) + [2] * (batch - batch // 2) if form == "packed" else [3] * batch
    x = torch.randn(3, batch, 37).bfloat16()
    info.set_isa(isa)
    with torch.no_grad():
        if form == "packed":
            together = pad_packed_sequence(layer(pack_padded_sequence(x, lengths))[0])[0]
        else:
            layer.batch_first = form == "batch first"
            together = layer(x.transpose(0, 1).contiguous() if layer.batch_first else x)[0]
            together = together.transpose(0, 1) if layer.batch_first else together
            layer.batch_first = False
        for row in (0, batch // 2 - 1, batch // 2, batch - 1):
            n = lengths[row]
            assert torch.equal(together[:n, row], layer(x[:n, row : row + 1])[0][:, 0]), row


@isas
@cells
def test_one_sequence_in_steps_gives_the_bits_of_one_call(isa, cell):
    # The T = 1 step of a streaming user may run over weights that were not packed.
    layer = make(ours_of, cell, 9, 21, torch.float32)
    x = torch.randn(6, 1, 9)
    info.set_isa(isa)
    with torch.no_grad():
        whole, _ = layer(x)
        hx, steps = None, []
        for t in range(len(x)):
            y, hx = layer(x[t : t + 1], hx)
            steps.append(y)
    assert torch.equal(torch.cat(steps), whole)


@isas
@pytest.mark.parametrize("split", ["serial", "units", "rows"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_deep_transition_runs_every_forced_path_with_the_same_result(isa, split, dtype, threads):
    kind = getattr(torch, dtype)
    layer = rnnfast.DeepTransitionRNN(5, 7, depth=3, width=19, dtype=kind)
    x = torch.randn(3, 6, 5, dtype=kind)

    def both():
        leaf = x.clone().requires_grad_()
        y, _ = layer(leaf)
        forward = info.last_run()
        grads = torch.autograd.grad(y.square().sum(), [leaf, *layer.parameters()])
        return y.detach(), grads, forward, info.last_run()

    info.set_isa("generic")
    info.set_split("serial")
    first = both()
    info.set_isa(isa)
    info.set_split(split)
    got = both()
    assert [ran["op"] for ran in got[2:]] == ["deep_transition", "deep_transition_backward"]
    for ran in got[2:]:
        assert ran["isa"] == isa
        assert ran["split"] == split
    tolerance = 1e-5 if kind == torch.float32 else 1e-12
    torch.testing.assert_close(got[0], first[0], rtol=tolerance, atol=tolerance)
    for a, b in zip(got[1], first[1], strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", [*sorted({"avx2", "avx512", "neon"} - set(ISAS)), "avx9000", "AVX2 "])
def test_an_instruction_set_that_is_unknown_or_missing_is_refused_by_name(name):
    before = info.isa()
    with pytest.raises((RuntimeError, ValueError), match=name):
        info.set_isa(name)
    assert info.isa() == before


@pytest.mark.parametrize("name", ["diagonal", "Rows"])
def test_a_split_that_is_unknown_is_refused_by_name(name):
    with pytest.raises((RuntimeError, ValueError), match=name):
        info.set_split(name)
    rnnfast.GRU(3, 4)(torch.randn(2, 2, 3))
    assert info.last_run()["split"] in SPLITS


REPORT = """
import torch, rnnfast
from rnnfast import info
torch.set_num_threads(2)
rnnfast.LSTM(5, 9, bidirectional=True)(torch.randn(4, 3, 5))[0].sum().backward()
print(info.isa(), info.last_run()["isa"], info.last_run()["split"])
"""


def child(code, **variables):
    """Run code in a fresh Python with these environment variables."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("RNNFAST_")}
    root = str(Path(rnnfast.__file__).parents[1])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [root, env.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, "-c", code], env={**env, **variables}, capture_output=True, text=True, timeout=120
    )


@isas
@splits
def test_the_environment_forces_instruction_set_and_split(isa, split):
    done = child(REPORT, RNNFAST_ISA=isa, RNNFAST_SPLIT=split)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [isa, isa, split]


@pytest.mark.parametrize(
    "variable,value", [("RNNFAST_ISA", "avx9000"), ("RNNFAST_ISA", "sse2"), ("RNNFAST_SPLIT", "diagonal")]
)
def test_an_environment_that_forces_an_unknown_name_is_refused_by_name(variable, value):
    done = child(REPORT, **{variable: value})
    assert done.returncode == 1, "an exception, not a crash and not a silent choice"
    assert value in done.stderr.splitlines()[-1] or f"'{value}'" in done.stderr


def test_a_call_overrules_the_environment():
    code = "from rnnfast import info\ninfo.set_isa('generic')\ninfo.set_split('serial')\n" + REPORT
    done = child(code, RNNFAST_ISA=ISAS[-1], RNNFAST_SPLIT="units")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["generic", "generic", "serial"]
