"""Lengths, resets and all states through torch's tools, and given wrongly."""

import episode_helpers as episodes
import pytest
import torch
from helpers import LAYERS, draw, packed, same, tensors
from torch import fx, nn
from torch.utils.checkpoint import checkpoint

import rnnfast

pytestmark = pytest.mark.filterwarnings("ignore")  # what torch's tools say of themselves
LENGTHS = torch.tensor([3, 0, 5, 1])


def case(kind, **options):
    """-> a layer, x [5, 4, 4], lengths [4] and resets [5, 4]."""
    module = episodes.layer(kind, **options)
    resets = torch.rand(5, 4, generator=torch.Generator().manual_seed(1)) < 0.3
    return module, draw(5, 4, 4, dtype=module.weight_hh_l0.dtype), resets


class Model(nn.Module):
    """The layer with everything that it can be told."""

    def __init__(self, kind, **options):
        super().__init__()
        self.layer = episodes.layer(kind, learn_initial_state=True, **options)

    def forward(self, x, lengths, resets):
        return self.layer(x, lengths=lengths, resets=resets, return_all_states=True)


@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
def test_compiled_whole_with_its_gradients_for_lengths_that_change(kind):
    model = Model(kind, num_layers=2)
    _, x, resets = case(kind)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    for lengths in LENGTHS, torch.tensor([5, 5, 5, 5]), torch.tensor([0, 0, 0, 0]):
        actual, expected = compiled(x, lengths, resets), model(x, lengths, resets)
        same(actual, expected)
        weights = list(model.parameters())
        same(episodes.gradients(actual, weights), episodes.gradients(expected, weights))


@pytest.mark.parametrize("kind", ["gru", "lstm_proj"])
def test_exported_for_any_batch_and_number_of_steps(kind):
    model = Model(kind).eval()
    _, x, resets = case(kind)
    T, B = torch.export.Dim("T", min=2), torch.export.Dim("B", min=2)
    shapes = {"x": {0: T, 1: B}, "lengths": {0: B}, "resets": {0: T, 1: B}}
    program = torch.export.export(model, (x, LENGTHS, resets), dynamic_shapes=shapes)
    again = draw(7, 3, 4), torch.tensor([7, 0, 2]), torch.rand(7, 3) < 0.3
    same(program.module()(*again), model(*again))
    plain = program.run_decompositions(rnnfast.decompositions())
    assert not any("rnnfast" in str(node.target) for node in plain.graph.nodes)
    same(plain.module()(*again), model(*again))


@pytest.mark.parametrize("kind", LAYERS)
def test_vmap_and_jacobians_follow(kind):
    module, x, resets = case(kind)
    xs = draw(3, 5, 4, 4)

    def call(x, resets):
        return tensors(module(x, lengths=LENGTHS, resets=resets, return_all_states=True))

    flags = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(2)) < 0.3
    expected = [
        torch.stack(t) for t in zip(*(call(a, r) for a, r in zip(xs, flags, strict=True)), strict=True)
    ]
    same(torch.func.vmap(call)(xs, flags), expected)
    forward, reverse = torch.func.jacfwd(call)(x, resets), torch.func.jacrev(call)(x, resets)
    same(forward, reverse)


def test_many_cotangents_at_once_equal_one_after_the_other():
    module, x, resets = case("lstm")
    x.requires_grad_()
    y = module(x, lengths=LENGTHS, resets=resets)[0]
    v = draw(6, *y.shape)
    at_once = torch.autograd.grad(y, x, v, is_grads_batched=True, retain_graph=True)[0]
    same(at_once, torch.stack([torch.autograd.grad(y, x, one, retain_graph=True)[0] for one in v]))


def test_checkpointed():
    module, x, resets = case("gru")
    x.requires_grad_()

    def call(x):
        return module(x, lengths=LENGTHS, resets=resets)[0]

    again = checkpoint(call, x, use_reentrant=False)
    same(episodes.gradients(again, [x]), episodes.gradients(call(x), [x]), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_autocast_rounds_them_as_the_states(kind):
    module, x, resets = case(kind, dtype=torch.float32)
    anew = tuple(draw(1, 1, 6, dtype=torch.float32) for _ in range(1 + (kind == "lstm")))
    with torch.autocast("cpu", torch.bfloat16):
        y, *_ = module(x, lengths=LENGTHS, resets=resets, reset_state=episodes.as_argument(anew))
    expected, *_ = module(x, lengths=LENGTHS, resets=resets, reset_state=episodes.as_argument(anew))
    same(y.float(), expected, rtol=0, atol=0.05)


def test_fx_records_them_as_a_part_of_the_call():
    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = episodes.layer("gru")

        def forward(self, x, lengths):
            return self.layer(x, lengths=lengths)[0]

    model = Tagger()
    traced = fx.symbolic_trace(model)
    _, x, _ = case("gru")
    same(traced(x, LENGTHS), model(x, LENGTHS), rtol=0, atol=0)
    assert [n.op for n in traced.graph.nodes].count("call_module") == 1


def test_a_trace_says_that_it_cannot_have_them():
    module, x, _ = case("gru")
    with pytest.raises(RuntimeError, match="lengths, resets and return_all_states: a trace"):
        torch.jit.trace(lambda x: module(x, lengths=LENGTHS)[0], (x,))


WRONG = {
    "lengths beyond T": ({"lengths": torch.tensor([3, 6, 5, 1])}, r"lengths\[1\] is 6, expected 0 to 5"),
    "lengths below 0": ({"lengths": torch.tensor([3, -1, 5, 1])}, r"lengths\[1\] is -1, expected 0 to 5"),
    "lengths of T": ({"lengths": torch.ones(5, dtype=torch.int64)}, r"lengths: .*\[4\].* got .*\[5\]"),
    "lengths int32": ({"lengths": LENGTHS.int()}, "lengths: expected torch.int64 .* got torch.int32"),
    "lengths a list": ({"lengths": [3, 0, 5, 1]}, "lengths: expected a tensor, got list"),
    "lengths elsewhere": ({"lengths": LENGTHS.to("meta")}, "lengths: .* on cpu or cpu.* meta"),
    "resets turned": (
        {"resets": torch.zeros(4, 5, dtype=torch.bool)},
        r"resets: .*\[5, 4\].* got .*\[4, 5\]",
    ),
    "resets of numbers": ({"resets": torch.zeros(5, 4)}, "resets: expected torch.bool .* got torch.float32"),
    "resets elsewhere": ({"resets": torch.zeros(5, 4, dtype=torch.bool, device="meta")}, "resets: .* meta"),
    "a state alone": ({"reset_state": torch.zeros(1, 1, 6)}, "reset_state: expected None without resets"),
    "another name": ({"length": LENGTHS}, "unexpected keyword argument 'length'"),
}
RESETS = torch.zeros(5, 4, dtype=torch.bool)
WRONG_STATES = {
    "wide": (torch.zeros(1, 4, 7), r"reset_state: expected shape \[1, 4, 6\] .* got \[1, 4, 7\]"),
    "rows": (torch.zeros(1, 3, 6), r"reset_state: expected shape \[1, 4, 6\] .* got \[1, 3, 6\]"),
    "flat": (torch.zeros(4, 6), r"reset_state: .* got \[4, 6\]"),
    "double": (torch.zeros(1, 4, 6).double(), "reset_state: expected torch.float32.* got torch.float64"),
    "pair": ((torch.zeros(1, 4, 6),) * 2, "reset_state: expected a tensor, got tuple"),
}


@pytest.mark.parametrize("given, message", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_named(given, message):
    module, x, _ = case("gru", dtype=torch.float32)
    with pytest.raises((RuntimeError, TypeError), match=message):
        module(x, **given)
    name = next(iter(given))
    if name in ("lengths", "resets") and isinstance(given[name], torch.Tensor):  # the op by itself
        w = module.all_weights[0]
        args = ("gru", x, torch.zeros(1, 4, 6), None, *w, *[None] * 6, None, False, True)
        with pytest.raises(RuntimeError, match=name):
            torch.ops.rnnfast.recurrent(*args, **given)


@pytest.mark.parametrize("state, message", WRONG_STATES.values(), ids=WRONG_STATES)
def test_a_reset_state_that_does_not_fit_is_named(state, message):
    module, x, _ = case("gru", dtype=torch.float32)
    with pytest.raises((RuntimeError, TypeError), match=message):
        module(x, resets=RESETS, reset_state=state)


def test_a_pair_of_reset_states_that_does_not_fit_is_named():
    module, x, _ = case("lstm_proj", dtype=torch.float32)
    h, c = torch.zeros(1, 4, 3), torch.zeros(1, 4, 6)
    module(x, resets=RESETS, reset_state=(h, c))
    with pytest.raises(RuntimeError, match=r"reset_state\[1\]: expected shape \[1, 4, 6\]"):
        module(x, resets=RESETS, reset_state=(h, h))
    for wrong in h, (h,), (h, c, c):
        with pytest.raises(TypeError, match="reset_state: expected a pair of tensors"):
            module(x, resets=RESETS, reset_state=wrong)


@pytest.mark.parametrize("name, given", {"lengths": LENGTHS, "resets": RESETS}.items())
def test_packed_rows_take_none_of_them(name, given):
    with pytest.raises(RuntimeError, match=f"{name}: expected None for a PackedSequence"):
        episodes.layer("gru")(packed(3, 5), **{name: given})


def test_both_directions_take_no_resets():
    with pytest.raises(RuntimeError, match="resets: expected None for a layer in both directions"):
        episodes.layer("gru", bidirectional=True)(draw(5, 4, 4), resets=RESETS)


CELL_WRONG = {
    "shape": ({"resets": torch.zeros(5, dtype=torch.bool)}, r"resets: .*\[4\].* got .*\[5\]"),
    "dtype": ({"resets": torch.zeros(4)}, "resets: expected torch.bool"),
    "alone": ({"reset_state": torch.zeros(4, 6)}, "reset_state: expected None without resets"),
    "name": ({"reset": torch.zeros(4, 6)}, "unexpected keyword argument 'reset'"),
    "double": (
        {"resets": torch.zeros(4, dtype=torch.bool), "reset_state": torch.zeros(4, 6).double()},
        "reset_state: expected torch.float32",
    ),
}


@pytest.mark.parametrize("given, message", CELL_WRONG.values(), ids=CELL_WRONG)
def test_what_a_cell_is_given_wrongly_is_named(given, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        rnnfast.GRUCell(4, 6)(torch.zeros(4, 4), torch.zeros(4, 6), **given)
