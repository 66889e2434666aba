"""Our layers against torch.nn: outputs and every gradient, judged by torch.nn in float64."""

import copy
import itertools
import random

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnfast
from rnnfast.testing import assert_close_to_oracle, error

# What torch says of its own LSTM, which runs here as the peer.
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

CELLS = {
    "lstm": ("LSTM", {}),
    "gru": ("GRU", {}),
    "rnn_tanh": ("RNN", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", {"nonlinearity": "relu"}),
}
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


def make(package, case, dtype=torch.float64):
    """The layer of one case from torch.nn or from rnnfast."""
    name, extra = CELLS[case["cell"]]
    if case.get("P"):
        extra = {**extra, "proj_size": case["P"]}
    return getattr(package, name)(
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
CELL_MODULES = [
    ("LSTMCell", {}),
    ("GRUCell", {}),
    ("RNNCell", {"nonlinearity": "tanh"}),
    ("RNNCell", {"nonlinearity": "relu"}),
]
cell_modules = pytest.mark.parametrize(
    "name,extra", CELL_MODULES, ids=["LSTMCell", "GRUCell", "RNNCell-tanh", "RNNCell-relu"]
)


# A length of one, a batch beyond a tile of rows, and more hidden units than one slice of a thread.
@projected
@pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
@pytest.mark.parametrize("T,B,features,H", [(1, 1, 5, 9), (3, 29, 21, 70), (40, 2, 3, 5)])
def test_longer_wider_and_single_steps_are_as_exact_as_torch(cell, P, dtype, T, B, features, H):
    for threads in (1, 2):
        assert_parity(plain(cell, P=P, dtype=dtype, T=T, B=B, I=features, H=H, threads=threads, layers=1))


@projected
@pytest.mark.parametrize("bias", [True, False])
def test_seeded_weights_are_torchs_bit_for_bit(cell, P, bias):
    case = plain(cell, bias=bias, P=P, layers=3)
    torch.manual_seed(7)
    theirs = make(nn, case, torch.float32)
    after_theirs = torch.get_rng_state()
    torch.manual_seed(7)
    ours = make(rnnfast, case, torch.float32)
    assert torch.equal(torch.get_rng_state(), after_theirs)
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(a, b), name


@cell_modules
def test_seeded_cell_weights_are_torchs_bit_for_bit(name, extra):
    torch.manual_seed(7)
    theirs = getattr(nn, name)(5, 9, **extra)
    torch.manual_seed(7)
    ours = getattr(rnnfast, name)(5, 9, **extra)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key


@projected
def test_state_dicts_load_both_ways(cell, P):
    case = plain(cell, P=P)
    theirs, ours = make(nn, case), make(rnnfast, case)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    again = make(nn, case)
    again.load_state_dict(ours.state_dict(), strict=True)
    for key, value in theirs.state_dict().items():
        assert torch.equal(again.state_dict()[key], value), key


@cells
@pytest.mark.parametrize("p", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("batch_first", [False, True])
def test_dropout_with_the_same_seed_gives_torchs_result(cell, p, batch_first):
    case = plain(cell, layers=3, batch_first=batch_first)
    theirs, ours = make(nn, case), make(rnnfast, case)
    ours.load_state_dict(theirs.state_dict())
    theirs.dropout = ours.dropout = p
    x = problem(case)["x"]
    for training in (True, False, True):
        theirs.train(training)
        ours.train(training)
        torch.manual_seed(11)
        expected = theirs(x)
        after_theirs = torch.get_rng_state()
        torch.manual_seed(11)
        got = ours(x)
        assert torch.equal(torch.get_rng_state(), after_theirs)
        for name, value in flat(expected).items():
            torch.testing.assert_close(flat(got)[name], value, rtol=0, atol=1e-12, msg=name)


def test_dropout_masks_are_torchs_bit_for_bit():
    # Layer one is all positive, layer two passes its input on: a zero in the output is a zero in the mask.
    features, H, T, B = 3, 13, 6, 5
    masks = []
    for package in (nn, rnnfast):
        layer = package.RNN(features, H, num_layers=2, nonlinearity="relu", dropout=0.4)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
            layer.bias_ih_l0.fill_(1.0)
            layer.weight_ih_l1.copy_(torch.eye(H))
        torch.manual_seed(12)
        masks.append(layer(torch.randn(T, B, features))[0] == 0)
    assert torch.equal(masks[0], masks[1])
    assert 0 < masks[0].sum() < masks[0].numel()


@cells
def test_dropout_gradients_are_torchs(cell):
    case = plain(cell)
    theirs, ours = make(nn, case), make(rnnfast, case)
    ours.load_state_dict(theirs.state_dict())
    theirs.dropout = ours.dropout = 0.5
    x = problem(case)["x"]
    grads = []
    for layer in (theirs, ours):
        torch.manual_seed(13)
        layer(x)[0].square().sum().backward()
        grads.append({name: p.grad for name, p in layer.named_parameters()})
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-10, atol=1e-10, msg=name)


@projected
@pytest.mark.parametrize("form", ["dense", "packed_unsorted"])
def test_gradients_of_only_some_inputs_are_those_of_all(cell, P, form):
    case = plain(cell, P=P, form=form, layers=1)
    layer = make(rnnfast, case)
    data = problem(case)
    _, every = run(layer, case, data, torch.float64)
    torch.manual_seed(case["seed"])
    names = ["x", "h0", *(["c0"] if cell == "lstm" else []), *dict(layer.named_parameters())]
    for wanted in [{name} for name in names] + [set(names[::2]), set(names[1::2])]:
        layer.requires_grad_(False)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name in wanted)
        leaves = {name: data[name].clone().requires_grad_(name in wanted) for name in names if name in data}
        given = leaves["x"]
        if form != "dense":
            given = pack_padded_sequence(given, data["lengths"], enforce_sorted=False)
        hx = (leaves["h0"], leaves["c0"]) if cell == "lstm" else leaves["h0"]
        tensors = flat(layer(given, hx))
        torch.manual_seed(case["seed"])
        seeds = [torch.randn(t.shape, dtype=torch.float64) for t in tensors.values()]
        torch.autograd.backward(list(tensors.values()), seeds)
        leaves.update(layer.named_parameters())
        for name in names:
            if name not in wanted:
                assert leaves[name].grad is None, name
                continue
            torch.testing.assert_close(
                leaves[name].grad, every[f"grad of {name}"], rtol=1e-12, atol=1e-12, msg=f"{name} of {wanted}"
            )
            leaves[name].grad = None


@projected
@pytest.mark.parametrize("which", ["output", "h_n", "last state"])
def test_gradient_through_only_one_output_is_torchs(cell, P, which):
    case = plain(cell, P=P)
    if which == "last state":
        which = "c_n" if cell == "lstm" else "h_n"
    oracle, _, ours = three(case)
    data = problem(case)
    grads = []
    for layer in (oracle, ours):
        x = data["x"].clone().requires_grad_()
        hx = (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]
        value = flat(layer(x, hx))[which]
        leaves = {"x": x, **dict(layer.named_parameters())}
        found = torch.autograd.grad(value.square().sum(), list(leaves.values()))
        grads.append(dict(zip(leaves, found, strict=True)))
    for name, value in grads[0].items():
        torch.testing.assert_close(grads[1][name], value, rtol=1e-10, atol=1e-10, msg=name)


@projected
def test_several_backward_passes_give_the_same_gradients(cell, P):
    case = plain(cell, P=P, dtype="float32")
    layer = make(rnnfast, case, torch.float32)
    x = problem(case)["x"].requires_grad_()
    y, _ = layer(x)
    leaves = [x, *layer.parameters()]
    grads = [torch.autograd.grad(y.square().sum(), leaves, retain_graph=True) for _ in range(3)]
    for later in grads[1:]:
        for a, b in zip(grads[0], later, strict=True):
            assert torch.equal(a, b)


@cells
def test_a_second_backward_without_retain_graph_raises(cell):
    layer = make(rnnfast, plain(cell))
    y, _ = layer(torch.randn(5, 3, 7, dtype=torch.float64))
    y.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.sum().backward()


@cells
@pytest.mark.parametrize("batch_first", [False, True])
def test_editing_the_output_in_place_before_backward_raises(cell, batch_first):
    layer = make(rnnfast, plain(cell, batch_first=batch_first))
    y, _ = layer(torch.randn(5, 3, 7, dtype=torch.float64))
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@cells
def test_editing_a_weight_in_place_before_backward_raises(cell):
    layer = make(rnnfast, plain(cell))
    y, _ = layer(torch.randn(5, 3, 7, dtype=torch.float64))
    with torch.no_grad():
        layer.weight_hh_l0.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def strided(tensor):
    """The same values over strides that are neither contiguous nor merely permuted."""
    wide = torch.full((*tensor.shape[:-1], tensor.shape[-1] * 2 + 1), float("nan"), dtype=tensor.dtype)
    view = wide.transpose(0, -1).contiguous().transpose(0, -1)[..., 1::2]
    view.copy_(tensor)
    return view


@projected
@pytest.mark.parametrize("batch_first", [False, True])
def test_strides_of_input_states_and_gradients_do_not_count(cell, P, batch_first):
    case = plain(cell, P=P, batch_first=batch_first)
    layer = make(rnnfast, case)
    data = problem(case)
    both = []
    for change in (torch.Tensor.contiguous, strided):
        x, h0, c0 = (change(data[name]).detach().requires_grad_() for name in ("x", "h0", "c0"))
        tensors = flat(layer(x, (h0, c0) if cell == "lstm" else h0))
        torch.manual_seed(3)
        seeds = [change(torch.randn(t.shape, dtype=torch.float64)) for t in tensors.values()]
        leaves = [x, h0, *([c0] if cell == "lstm" else []), *layer.parameters()]
        both.append([*tensors.values(), *torch.autograd.grad(list(tensors.values()), leaves, seeds)])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@projected
def test_expanded_states_inputs_and_gradients_are_as_their_copies(cell, P):
    case = plain(cell, P=P)
    layer = make(rnnfast, case)
    x = torch.randn(case["T"], 1, case["I"], dtype=torch.float64).expand(-1, case["B"], -1)
    h0 = torch.randn(1, 1, P or case["H"], dtype=torch.float64).expand(4, case["B"], -1)
    c0 = torch.randn(1, 1, case["H"], dtype=torch.float64).expand(4, case["B"], -1)
    both = []
    for change in (torch.Tensor.contiguous, torch.Tensor.detach):
        given, h, c = change(x), change(h0), change(c0)
        y, _ = layer(given, (h, c) if cell == "lstm" else h)
        seed = change(torch.ones((), dtype=torch.float64).expand(y.shape))
        both.append([y, *torch.autograd.grad(y, list(layer.parameters()), seed)])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


@projected
def test_strided_weights_are_as_contiguous_ones(cell, P):
    case = plain(cell, P=P)
    layer = make(rnnfast, case)
    data = problem(case)
    state = {name: p.detach() for name, p in layer.named_parameters()}
    hx = (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]
    both = []
    for change in (torch.Tensor.clone, strided):
        weights = {name: change(value).requires_grad_() for name, value in state.items()}
        y, _ = torch.func.functional_call(layer, weights, (data["x"], hx))
        both.append([y, *torch.autograd.grad(y.square().sum(), list(weights.values()))])
    for a, b in zip(*both, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


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
def test_inference_gives_the_bits_of_training(cell, P):
    case = plain(cell, P=P, dtype="float32")
    layer = make(rnnfast, case, torch.float32)
    x = problem(case)["x"]
    trained = flat(layer(x))
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            inferred = flat(layer(x))
        for name, value in trained.items():
            assert torch.equal(inferred[name], value), (mode.__name__, name)


@projected
def test_forward_and_backward_leave_inputs_and_weights_alone(cell, P):
    case = plain(cell, P=P)
    layer = make(rnnfast, case)
    data = problem(case)
    before = copy.deepcopy((data, layer.state_dict()))
    hx = (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]
    layer(data["x"], hx)[0].sum().backward()
    for name in ("x", "h0", "c0"):
        assert torch.equal(data[name], before[0][name]), name
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[1][name]), name


@projected
def test_results_share_no_memory_with_each_other_or_the_inputs(cell, P):
    case = plain(cell, P=P, layers=1, T=1)
    layer = make(rnnfast, case)
    data = problem(case)
    with torch.no_grad():
        tensors = flat(layer(data["x"], (data["h0"], data["c0"]) if cell == "lstm" else data["h0"]))
    owners = {tensor.untyped_storage().data_ptr() for tensor in (data["x"], data["h0"], data["c0"])}
    for name, tensor in tensors.items():
        pointer = tensor.untyped_storage().data_ptr()
        assert pointer not in owners, name
        owners.add(pointer)


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
    theirs = getattr(nn, name)(features, H, bias=bias, dtype=kind, **extra)
    oracle = getattr(nn, name)(features, H, bias=bias, dtype=torch.float64, **extra)
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
