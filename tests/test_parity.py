"""Our layers against torch.nn: outputs and every gradient, judged by torch.nn in float64."""

import itertools
import random

import pytest
import torch
from helpers import peer_of
from parity_helpers import CELLS, MARKS, cell_modules, flat, make, plain, problem, projected, run, three
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast
from rnnfast.testing import assert_close_to_oracle, error

pytestmark = MARKS

FACTORS = {
    "cell": list(CELLS),
    "layers": [1, 2, 3],
    "bidirectional": [False, True],
    "bias": [True, False],
    "batch_first": [False, True],
    "proj": [False, True],
    "form": ["dense", "packed", "packed_unsorted", "unbatched"],
    "dtype": ["float32", "float64", "bfloat16", "float16"],
    "threads": [1, 2],
    "hx": [False, True],
}
# Sizes around the 16 lanes of a pack of the kernels, mixed with sizes drawn from the whole range.
EDGES = [1, 2, 3, 7, 15, 16, 17, 31, 32, 33]


def allowed(case):
    """Only an LSTM has projections. A case may still lack factors."""
    return not case.get("proj") or case.get("cell", "lstm") == "lstm"


def pairs_of(case):
    """Every pair of (factor, value) that a case holds."""
    return set(itertools.combinations(sorted(case.items(), key=lambda item: item[0]), 2))


def all_pairs():
    """Every pair of values that some allowed case can hold."""
    pairs = set()
    for one, two in itertools.combinations(sorted(FACTORS), 2):
        for a, b in itertools.product(FACTORS[one], FACTORS[two]):
            if allowed({one: a, two: b}):
                pairs.add(((one, a), (two, b)))
    return pairs


def pairwise_cases():
    """A greedy covering set: start at an uncovered pair, then give each factor the value that covers most."""
    rng = random.Random(1)
    missing = all_pairs()
    cases = []
    while missing:
        case = dict(min(missing, key=repr))
        factors = [factor for factor in FACTORS if factor not in case]
        rng.shuffle(factors)
        for factor in factors:
            choices = [{**case, factor: value} for value in FACTORS[factor]]
            case = max(filter(allowed, choices), key=lambda choice: len(pairs_of(choice) & missing))
        missing -= pairs_of(case)
        cases.append(case)
    return cases


def random_cases(count):
    """Seeded random cases."""
    rng = random.Random(2)
    cases = []
    while len(cases) < count:
        case = {factor: rng.choice(values) for factor, values in FACTORS.items()}
        if allowed(case):
            cases.append(case)
    return cases


def with_sizes(cases):
    """Small odd sizes for each case: T 1..9, B 1..7, I 1..20, H 1..40, P below H."""
    sized = []
    for seed, case in enumerate(cases):
        rng = random.Random(1000 + seed)
        hidden = rng.choice(EDGES) if rng.random() < 0.4 else rng.randint(1, 40)
        hidden = max(hidden, 2) if case["proj"] else hidden
        sizes = {
            "T": rng.randint(1, 9),
            "B": rng.randint(1, 7),
            "I": rng.randint(1, 20),
            "H": hidden,
            "P": rng.randint(1, hidden - 1) if case["proj"] else 0,
            "seed": seed,
        }
        sized.append({**case, **sizes})
    return sized


def name_of(case):
    words = [
        case["cell"],
        f"L{case['layers']}",
        "both" if case["bidirectional"] else "one",
        "bias" if case["bias"] else "nobias",
        "BT" if case["batch_first"] else "TB",
        case["form"],
        case["dtype"],
        f"threads{case['threads']}",
        "hx" if case["hx"] else "nohx",
        "T{T}B{B}I{I}H{H}P{P}".format(**case),
    ]
    return "-".join(words)


def nudged(x, seed):
    """x with every number moved by one unit in the last place, up, down or not."""
    torch.manual_seed(seed)
    up = torch.randint(-1, 2, x.shape).to(x.dtype)
    return x * (1 + up * torch.finfo(x.dtype).eps)


def worst(candidates, exact):
    """Of several results of torch, by name the tensor that lies furthest from the oracle."""
    return {name: max((c[name] for c in candidates), key=lambda t: error(t, exact[name])) for name in exact}


def assert_parity(case):
    """Outputs and gradients of one case within the tolerance of its dtype, and packed the way torch packs."""
    oracle, theirs, ours = three(case)
    data = problem(case)
    torch.set_num_threads(1)
    dtype = getattr(torch, case["dtype"])
    _, exact = run(oracle, case, data, torch.float64)
    reference_result, reference = run(theirs, case, data, dtype)
    if case["cell"] == "rnn_relu" and dtype.itemsize == 2 or case["P"] and dtype == torch.float32:
        # A sum that rounds to the other side of relu's kink changes gradients by far more than its rounding,
        # and a projection to a few numbers may cancel all but the rounding. Which sums do is chance, so
        # torch's own error is its worst over inputs that differ by a rounding.
        others = [run(theirs, case, {**data, "x": nudged(data["x"], k)}, dtype)[1] for k in range(40)]
        reference = worst([reference, *others], exact)
    torch.set_num_threads(case.get("threads", 1))
    result, got = run(ours, case, data, dtype)
    assert got.keys() == exact.keys()
    assert {name: t.dtype for name, t in got.items()} == {name: t.dtype for name, t in reference.items()}
    assert_close_to_oracle(list(got.values()), list(reference.values()), list(exact.values()), list(got))
    if isinstance(reference_result[0], PackedSequence):
        for field in ("batch_sizes", "sorted_indices", "unsorted_indices"):
            a, b = getattr(result[0], field), getattr(reference_result[0], field)
            assert (a is None) == (b is None), field
            assert a is None or torch.equal(a, b), field


PAIRWISE = with_sizes(pairwise_cases())
RANDOM = with_sizes(random_cases(200))


def test_the_pairwise_cases_hold_every_pair_of_values():
    covered = set().union(*({pair for pair in pairs_of({f: c[f] for f in FACTORS})} for c in PAIRWISE))
    assert covered == all_pairs()


@pytest.mark.parametrize("case", PAIRWISE, ids=name_of)
def test_every_pair_of_options_is_as_exact_as_torch(case):
    assert_parity(case)


@pytest.mark.parametrize("case", RANDOM, ids=name_of)
def test_random_options_are_as_exact_as_torch(case):
    assert_parity(case)


# A length of one, a batch beyond a tile of rows, and more hidden units than one slice of a thread.
@projected
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("T,B,features,H", [(1, 1, 5, 9), (3, 29, 21, 70), (40, 2, 3, 5)])
def test_longer_wider_and_single_steps_are_as_exact_as_torch(cell, P, dtype, T, B, features, H):
    for threads in (1, 2):
        assert_parity(plain(cell, P=P, dtype=dtype, T=T, B=B, I=features, H=H, threads=threads, layers=1))


@projected
@pytest.mark.parametrize("batch_first", [False, True])
def test_an_empty_batch_runs_forward_and_backward(cell, P, batch_first):
    case = plain(cell, P=P, batch_first=batch_first, B=0)
    layer, theirs = make(rnnfast, case), make(nn, case)
    shape = (0, case["T"], case["I"]) if batch_first else (case["T"], 0, case["I"])
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    expected, got = flat(theirs(x)), flat(layer(x))
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
    grads = torch.autograd.grad(got["output"].sum() + got["h_n"].sum(), [x, *layer.parameters()])
    for grad, leaf in zip(grads, [x, *layer.parameters()], strict=True):
        assert grad.shape == leaf.shape
        assert not grad.any()


@projected
def test_packed_rows_are_the_rows_run_alone(cell, P):
    case = plain(cell, P=P, form="packed_unsorted", B=6, T=9)
    layer = make(rnnfast, case)
    data = problem(case)
    padded, hn = layer(pack_padded_sequence(data["x"], data["lengths"], enforce_sorted=False))
    padded, lengths = nn.utils.rnn.pad_packed_sequence(padded)
    for row, length in enumerate(lengths.tolist()):
        alone, alone_hn = layer(data["x"][:length, row : row + 1])
        torch.testing.assert_close(padded[:length, row], alone[:, 0], rtol=0, atol=1e-13)
        states, alone_states = (hn, alone_hn) if cell == "lstm" else ([hn], [alone_hn])
        for a, b in zip(states, alone_states, strict=True):
            torch.testing.assert_close(a[:, row], b[:, 0], rtol=0, atol=1e-13)


@cell_modules
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("batch", [None, 0, 1, 6])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("with_state", [True, False])
def test_cells_are_as_exact_as_torchs(name, extra, dtype, batch, bias, with_state):
    kind = getattr(torch, dtype)
    features, H = 7, 19
    theirs = peer_of(name)(features, H, bias=bias, dtype=kind, **extra)
    oracle = peer_of(name)(features, H, bias=bias, dtype=torch.float64, **extra)
    ours = getattr(rnnfast, name)(features, H, bias=bias, dtype=kind, **extra)
    oracle.load_state_dict(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    lead = () if batch is None else (batch,)
    x, h, c = (torch.randn(*lead, size, dtype=torch.float64).to(kind) for size in (features, H, H))
    found = []
    for layer, to in ((oracle, torch.float64), (theirs, kind), (ours, kind)):
        leaves = {"x": x.to(to, copy=True).requires_grad_()}
        hx = None
        if with_state:
            hx = leaves["h"] = h.to(to, copy=True).requires_grad_()
            if name == "LSTMCell":
                leaves["c"] = c.to(to, copy=True).requires_grad_()
                hx = (hx, leaves["c"])
        result = layer(leaves["x"], hx)
        outputs = list(result) if name == "LSTMCell" else [result]
        leaves.update(layer.named_parameters())
        torch.manual_seed(4)
        seeds = [torch.randn(t.shape, dtype=torch.float64).to(kind).to(to) for t in outputs]
        grads = torch.autograd.grad(outputs, list(leaves.values()), seeds)
        names = [f"output {i}" for i in range(len(outputs))] + [f"grad of {key}" for key in leaves]
        found.append(dict(zip(names, [*outputs, *grads], strict=True)))
    exact, reference, got = found
    assert {t.dtype for t in got.values()} == {kind}
    assert_close_to_oracle(list(got.values()), list(reference.values()), list(exact.values()), list(got))


@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("method", ["double", "bfloat16", "half"])
def test_a_converted_layer_computes_in_its_new_dtype(name, method):
    layer = getattr(getattr(rnnfast, name)(5, 9), method)()
    dtype = next(layer.parameters()).dtype
    y, hn = layer(torch.randn(3, 2, 5).to(dtype))
    assert y.dtype == dtype
    assert (hn[0] if name == "LSTM" else hn).dtype == dtype
    y.sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {dtype}
