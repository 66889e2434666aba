"""DeepTransitionRNN against the loop one writes by hand: outputs, gradients, names of the weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import prune

import rnnfast
from tests.helpers import draw


class ByHand(nn.Module):
    """The batched class of a course: a perceptron over [x_t, h] as the step, and one linear head."""

    def __init__(
        self, input_size, hidden_size, output_size, depth=3, width=None, negative_slope=0.01, bias=True
    ):
        super().__init__()
        width = hidden_size if width is None else width
        sizes = [input_size + hidden_size, *[width] * (depth - 1), hidden_size]
        layers = []
        for i in range(depth):
            layers.append(nn.Linear(sizes[i], sizes[i + 1], bias=bias))
            if i + 1 < depth:
                layers.append(nn.LeakyReLU(negative_slope))
        self.hidden_size = hidden_size
        self.rnn = nn.Sequential(*layers)
        if output_size is not None:
            self.ff = nn.Linear(hidden_size, output_size)

    def states(self, x, h=None):
        """x [B, T, I] -> every state [B, T, H]."""
        h = x.new_zeros(len(x), self.hidden_size) if h is None else h
        states = []
        for t in range(x.shape[1]):
            h = self.rnn(torch.cat([x[:, t], h], 1))
            states.append(h)
        return torch.stack(states, 1)


def pair(dtype, *sizes, **options):
    """The hand-written model and ours with its weights, which must load by name."""
    theirs = ByHand(*sizes, **options).to(dtype)
    ours = rnnfast.DeepTransitionRNN(*sizes, **options, dtype=dtype)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs, ours


# Sums in another order, some products deep.
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def assert_same(got, expected, dtype):
    for i, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape, i
        bound = TOLERANCE[dtype] * max(1.0, b.abs().max().item() if b.numel() else 1.0)
        torch.testing.assert_close(a, b, rtol=0, atol=bound, msg=lambda text, i=i: f"tensor {i}: {text}")


def with_gradients(outputs, leaves):
    """The outputs, and the gradients of a seeded weighting of them."""
    torch.manual_seed(8)
    seeds = [torch.randn_like(t) for t in outputs]
    grads = torch.autograd.grad(outputs, leaves, seeds)
    return [*(t.detach() for t in outputs), *grads]


dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])


@dtypes
@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("width", [None, 1, 23])
@pytest.mark.parametrize("negative_slope,bias", [(0.0, True), (0.01, True), (0.2, False)])
@pytest.mark.parametrize("T,B,features,H", [(1, 1, 3, 5), (7, 1, 1, 17), (4, 9, 6, 13), (5, 3, 20, 2)])
def test_states_and_all_gradients_are_those_of_the_loop(
    dtype, depth, width, negative_slope, bias, T, B, features, H
):
    options = {"depth": depth, "width": width, "negative_slope": negative_slope, "bias": bias}
    theirs, ours = pair(dtype, features, H, None, **options)
    x = torch.randn(B, T, features, dtype=dtype)
    h0 = torch.randn(B, H, dtype=dtype)
    for start in (None, h0):
        found = []
        for model in (theirs, ours):
            leaf = x.clone().requires_grad_()
            h = None if start is None else start.clone().requires_grad_()
            if model is theirs:
                states = model.states(leaf, h)
                outputs = [states, states[:, -1]]
            else:
                outputs = list(model(leaf, h))
            leaves = [leaf, *model.parameters(), *([] if h is None else [h])]
            found.append(with_gradients(outputs, leaves))
        assert_same(found[1], found[0], dtype)


@dtypes
@pytest.mark.parametrize("step_output", [False, True])
@pytest.mark.parametrize("batch", [1, 6])
def test_the_batched_class_with_one_linear_head_trains_alike(dtype, step_output, batch):
    theirs, ours = pair(dtype, 3, 30, 4, depth=3)
    ours_stepping = rnnfast.DeepTransitionRNN(3, 30, 4, depth=3, step_output=step_output, dtype=dtype)
    ours_stepping.load_state_dict(ours.state_dict())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (theirs, ours_stepping)]
    x = torch.randn(batch, 11, 3, dtype=dtype)
    labels = torch.randint(4, (batch, 11) if step_output else (batch,))
    for _ in range(4):
        losses = []
        for model, optimizer in zip((theirs, ours_stepping), optimizers, strict=True):
            if model is theirs:
                states = model.states(x)
                scores = model.ff(states if step_output else states[:, -1])
            else:
                scores = model(x)
            assert scores.shape == (*labels.shape, 4)
            loss = F.cross_entropy(scores.flatten(0, -2), labels.flatten())
            optimizer.zero_grad()
            loss.backward()
            losses.append(loss.detach())
            grads = [p.grad.clone() for p in model.parameters()]
            if model is theirs:
                expected = grads
        assert_same([losses[1], *grads], [losses[0], *expected], dtype)
        for optimizer in optimizers:
            optimizer.step()
    assert_same(
        [p.detach() for p in ours_stepping.parameters()], [p.detach() for p in theirs.parameters()], dtype
    )


@dtypes
@pytest.mark.parametrize("loss_at", ["end", "every step"])
def test_the_first_example_of_a_course_is_reproduced(dtype, loss_at):
    # One unbatched sequence, 10 numbers a step, hidden 30: 40 -> 100 -> 100 -> 30, an MLP head.
    rnn = nn.Sequential(
        nn.Linear(40, 100), nn.LeakyReLU(), nn.Linear(100, 100), nn.LeakyReLU(), nn.Linear(100, 30)
    ).to(dtype)
    ff = nn.Sequential(nn.Linear(30, 100), nn.LeakyReLU(), nn.Linear(100, 2)).to(dtype)
    x = torch.randn(15, 10, dtype=dtype)
    target = torch.tensor(1)

    h = torch.zeros(30, dtype=dtype)
    losses = []
    for x_t in x:
        h = rnn(torch.cat([x_t, h]))
        losses.append(F.cross_entropy(ff(h), target))
    loss = losses[-1] if loss_at == "end" else torch.stack(losses).mean()
    expected = [loss.detach(), h.detach(), *torch.autograd.grad(loss, [*rnn.parameters(), *ff.parameters()])]

    ours = rnnfast.DeepTransitionRNN(10, 30, width=100, dtype=dtype)
    ours.load_state_dict({f"rnn.{name}": value for name, value in rnn.state_dict().items()}, strict=True)
    states, last = ours(x)
    assert states.shape == (15, 30)
    assert last.shape == (30,)
    if loss_at == "end":
        loss = F.cross_entropy(ff(last), target)
    else:
        loss = F.cross_entropy(ff(states), target.expand(15))
    grads = torch.autograd.grad(loss, [*ours.parameters(), *ff.parameters()])
    assert_same([loss.detach(), last.detach(), *grads], expected, dtype)


@dtypes
def test_a_hand_written_model_of_width_hidden_size_loads_strictly(dtype):
    theirs, ours = pair(dtype, 12, 300, 2)
    names = [f"rnn.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias")] + ["ff.weight", "ff.bias"]
    assert list(ours.state_dict()) == names
    shapes = [(300, 312), (300,), (300, 300), (300,), (300, 300), (300,), (2, 300), (2,)]
    assert [tuple(p.shape) for p in ours.parameters()] == shapes
    x = torch.randn(2, 5, 12, dtype=dtype)
    assert_same([ours(x).detach()], [theirs.ff(theirs.states(x)[:, -1]).detach()], dtype)


def test_seeded_weights_are_those_of_the_linear_layers():
    torch.manual_seed(3)
    theirs = ByHand(4, 9, 2, width=6)
    torch.manual_seed(3)
    ours = rnnfast.DeepTransitionRNN(4, 9, 2, width=6)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_step_itself_is_a_module_that_runs_in_a_hand_written_loop():
    ours = rnnfast.DeepTransitionRNN(4, 9, dtype=torch.float64)
    x = torch.randn(2, 6, 4, dtype=torch.float64)
    h = torch.zeros(2, 9, dtype=torch.float64)
    for t in range(6):
        h = ours.rnn(torch.cat([x[:, t], h], 1))
    assert_same([ours(x)[1].detach()], [h.detach()], torch.float64)


@pytest.mark.parametrize("output_size,step_output", [(None, False), (3, False), (3, True)])
@pytest.mark.parametrize("with_state", [True, False])
def test_an_unbatched_sequence_is_a_batch_of_one(output_size, step_output, with_state):
    layer = rnnfast.DeepTransitionRNN(5, 8, output_size, step_output=step_output, dtype=torch.float64)
    x = torch.randn(6, 5, dtype=torch.float64)
    h0 = torch.randn(8, dtype=torch.float64) if with_state else None
    alone = layer(x, h0)
    batched = layer(x[None], None if h0 is None else h0[None])
    alone = alone if output_size is None else (alone,)
    batched = batched if output_size is None else (batched,)
    for a, b in zip(alone, batched, strict=True):
        assert torch.equal(a, b[0])


def test_the_last_of_all_states_is_the_last_state_and_shares_no_memory_with_it():
    layer = rnnfast.DeepTransitionRNN(5, 8)
    with torch.no_grad():
        states, last = layer(torch.randn(3, 6, 5))
    assert torch.equal(states[:, -1], last)
    assert states.untyped_storage().data_ptr() != last.untyped_storage().data_ptr()


@dtypes
@pytest.mark.parametrize("which", ["states", "last"])
def test_gradient_through_only_one_output_is_that_of_the_loop(dtype, which):
    theirs, ours = pair(dtype, 4, 7, None, width=5)
    x = torch.randn(3, 6, 4, dtype=dtype)
    found = []
    for model in (theirs, ours):
        states, last = (model.states(x), None) if model is theirs else model(x)
        last = states[:, -1] if last is None else last
        value = states if which == "states" else last
        found.append(torch.autograd.grad(value.square().sum(), list(model.parameters())))
    assert_same(found[1], found[0], dtype)


def test_only_some_inputs_need_gradients():
    layer = rnnfast.DeepTransitionRNN(4, 7, width=5, dtype=torch.float64)
    x, h0 = torch.randn(3, 6, 4, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
    leaves = [x, h0, *layer.parameters()]
    for leaf in leaves:
        leaf.requires_grad_()
    every = torch.autograd.grad(layer(x, h0)[0].square().sum(), leaves)
    for i, leaf in enumerate(leaves):
        for other in leaves:
            other.requires_grad_(other is leaf)
        (only,) = torch.autograd.grad(layer(x, h0)[0].square().sum(), [leaf])
        torch.testing.assert_close(only, every[i], rtol=1e-12, atol=1e-12, msg=f"leaf {i}")


def test_several_backward_passes_give_the_same_gradients():
    layer = rnnfast.DeepTransitionRNN(4, 7, width=5)
    states, _ = layer(torch.randn(3, 6, 4))
    leaves = list(layer.parameters())
    first, second = (torch.autograd.grad(states.sum(), leaves, retain_graph=True) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)


def test_inference_gives_the_bits_of_training():
    layer = rnnfast.DeepTransitionRNN(4, 7, width=5)
    x = torch.randn(3, 6, 4)
    trained = layer(x)
    with torch.inference_mode():
        inferred = layer(x)
    for a, b in zip(trained, inferred, strict=True):
        assert torch.equal(a, b)


def test_strides_of_the_input_do_not_count():
    layer = rnnfast.DeepTransitionRNN(4, 7, width=5, dtype=torch.float64)
    wide = torch.randn(6, 4, 3, 2, dtype=torch.float64)
    x = wide[..., 0].permute(2, 0, 1)  # [B, T, I]
    h0 = torch.randn(1, 1, dtype=torch.float64).expand(3, 7)
    for a, b in zip(layer(x, h0), layer(x.contiguous(), h0.contiguous()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


@pytest.mark.parametrize("dtype,bound", [(torch.bfloat16, 0.03), (torch.float16, 0.004)])
def test_half_precision_stays_near_float64(dtype, bound):
    ours = rnnfast.DeepTransitionRNN(6, 13, 2, width=19, dtype=dtype)
    oracle = ByHand(6, 13, 2, width=19).double()
    oracle.load_state_dict(ours.state_dict())
    x = torch.randn(4, 8, 6).to(dtype)
    expected = oracle.ff(oracle.states(x.double())[:, -1])
    got = ours(x)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=bound * expected.abs().max().item())
    got.sum().backward()
    expected.sum().backward()
    for (name, a), b in zip(ours.named_parameters(), oracle.parameters(), strict=True):
        scale = b.grad.abs().max().item()
        torch.testing.assert_close(a.grad.double(), b.grad, rtol=0, atol=2 * bound * scale, msg=name)


def test_an_empty_batch_runs_forward_and_backward():
    layer = rnnfast.DeepTransitionRNN(4, 7, width=5)
    states, last = layer(torch.randn(0, 6, 4))
    assert states.shape == (0, 6, 7)
    assert last.shape == (0, 7)
    (states.sum() + last.sum()).backward()
    for parameter in layer.parameters():
        assert not parameter.grad.any()


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_and_second_gradients_are_the_differences(depth, bias):
    options = {"depth": depth, "width": 4, "negative_slope": 0.2, "bias": bias}
    layer = rnnfast.DeepTransitionRNN(2, 3, **options, dtype=torch.float64)
    names = [name for name, _ in layer.named_parameters()]

    def function(x, h0, *weights):
        return torch.func.functional_call(layer, dict(zip(names, weights, strict=True)), (x, h0))

    inputs = [torch.randn(2, 3, 2), torch.randn(2, 3), *(p.detach() for p in layer.parameters())]
    inputs = [t.double().clone().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("wrong", [{"depth": 0}, {"depth": -1}, {"width": 0}, {"hidden_size": 0}])
def test_sizes_that_are_not_positive_are_refused_by_name(wrong):
    sizes = {"input_size": 3, "hidden_size": 4, **wrong}
    with pytest.raises(ValueError, match=next(iter(wrong))):
        rnnfast.DeepTransitionRNN(**sizes)


@pytest.mark.parametrize(
    "shape,h0,words",
    [
        ((2, 6, 5), None, ("4", "5")),
        ((2, 2, 6, 4), None, ("4D", "2D or 3D")),
        ((4,), None, ("1D", "2D or 3D")),
        ((2, 6, 4), (3, 7), ("2, 7", "3, 7")),
        ((2, 6, 4), (2, 8), ("2, 7", "2, 8")),
        ((2, 6, 4), (7,), ("(2, 7)", "[7]")),
        ((6, 4), (1, 7), ("(7,)", "[1, 7]")),
    ],
)
def test_wrong_inputs_are_refused_with_both_sizes(shape, h0, words):
    layer = rnnfast.DeepTransitionRNN(4, 7)
    with pytest.raises((RuntimeError, ValueError)) as caught:
        layer(torch.randn(shape), None if h0 is None else torch.randn(h0))
    for word in words:
        assert word in str(caught.value), str(caught.value)


def test_an_empty_sequence_is_refused():
    with pytest.raises(RuntimeError, match="sequence length"):
        rnnfast.DeepTransitionRNN(4, 7)(torch.randn(2, 0, 4))


def test_an_input_of_another_dtype_is_refused_with_both_dtypes():
    with pytest.raises((RuntimeError, ValueError), match="float64.*float32|float32.*float64"):
        rnnfast.DeepTransitionRNN(4, 7)(torch.randn(2, 6, 4, dtype=torch.float64))


CHANGES = {
    "pruned": lambda m: prune.l1_unstructured(m, "weight", 0.5),
    "weight_norm": torch.nn.utils.weight_norm,
    "spectral_norm": torch.nn.utils.spectral_norm,
    "parametrized": torch.nn.utils.parametrizations.weight_norm,
}


@pytest.mark.filterwarnings("ignore:.torch.nn.utils.weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("change", CHANGES)
def test_pruned_and_normalised_weights_are_made_anew_at_every_step(change):
    def hand_written(x):
        h = x.new_zeros(len(x), 6)
        for x_t in x.unbind(1):
            h = model.rnn(torch.cat([x_t, h], -1))
        return h

    torch.manual_seed(0)
    model, x = rnnfast.DeepTransitionRNN(4, 6).double().eval(), draw(2, 5, 4)
    CHANGES[change](model.rnn[2])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        torch.testing.assert_close(model(x)[1], hand_written(x))
        model(x)[1].square().sum().backward()
        optimizer.step()


def test_explain_changes_no_estimate_of_a_norm():
    model = rnnfast.DeepTransitionRNN(4, 6)
    torch.nn.utils.spectral_norm(model.rnn[2])
    before = model.rnn[2].weight_u.clone()
    model.explain(draw(2, 5, 4, dtype=torch.float32))
    assert torch.equal(model.rnn[2].weight_u, before)
    model(draw(2, 5, 4, dtype=torch.float32))
    assert not torch.equal(model.rnn[2].weight_u, before)
