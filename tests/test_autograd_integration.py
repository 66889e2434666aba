"""The ops and modules inside torch: opcheck, compile, second derivatives, forward AD, functorch, hooks."""

import copy

import pytest
import torch
from helpers import (
    CELLS,
    LAYERS,
    OP_CASES,
    deep_transition_inputs,
    draw,
    op_inputs,
    packed,
    pair,
    same,
    tensors,
    total,
)
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import functional_call
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

import rnnfast

pytestmark = [
    # torch.func.jvp and inductor load scripted parts of torch itself
    pytest.mark.filterwarnings("ignore:.torch.jit.script(_method)?. is deprecated:DeprecationWarning"),
]

F64 = {"dtype": torch.float64}
ops = torch.ops.rnnfast
each_kind = pytest.mark.parametrize("kind", [*LAYERS, *CELLS])
each_op_case = pytest.mark.parametrize("case", OP_CASES)
DEEP_CASES = {"depth_3": {}, "depth_1": {"depth": 1}, "no_bias": {"bias": False}}


@pytest.fixture(autouse=True)
def one_thread():
    """Everything here is a few units wide: a second thread would only wait. conftest.py undoes this."""
    torch.set_num_threads(1)


def input_for(kind, **kwargs):
    return draw(3, 4, **kwargs) if kind in CELLS else draw(5, 3, 4, **kwargs)


def leaves(args):
    return [t for t in tensors(args) if t.requires_grad]


def backward_inputs(case):
    """Arguments of recurrent_backward after a real forward; the incoming gradients ask for gradients too."""
    mode, options = OP_CASES[case]
    mode, x, h0, c0, *weights, batch_sizes, batch_first = op_inputs(mode, steps=2, **options)
    with torch.no_grad():
        y, hn, cn, gates, cells = ops.recurrent(mode, x, h0, c0, *weights, batch_sizes, batch_first, True)
    dy, dhn = (draw(*t.shape, seed=50 + i).requires_grad_() for i, t in enumerate((y, hn)))
    dcn = draw(*cn.shape, seed=60).requires_grad_() if mode == "lstm" else None
    needs = [t is not None for t in (x, h0, c0, *weights)]
    return dy, dhn, dcn, mode, x, h0, c0, *weights, batch_sizes, batch_first, y, gates, cells, needs


def deep_backward_inputs(case):
    args = deep_transition_inputs(steps=2, **DEEP_CASES[case])
    with torch.no_grad():
        y, hn, acts = ops.deep_transition(*args, True)
    dy, dhn = draw(*y.shape, seed=50).requires_grad_(), draw(*hn.shape, seed=51).requires_grad_()
    return dy, dhn, *args, y, acts, True, True


OPCHECKS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")
# For an op whose derivative is torch.func.vjp of the reference: torch 2.11 cannot trace it inside a backward.
OPCHECKS_BACKWARD = OPCHECKS[: 4 if TorchVersion(torch.__version__) >= (2, 13) else 3]


@each_op_case
def test_recurrent_passes_opcheck(case):
    mode, options = OP_CASES[case]
    torch.library.opcheck(ops.recurrent.default, (*op_inputs(mode, **options), True))


@pytest.mark.parametrize("mode", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_recurrent_passes_opcheck_without_saving(mode, dtype):
    torch.library.opcheck(ops.recurrent.default, (*op_inputs(mode, grad=False, dtype=dtype), False))


@each_op_case
def test_recurrent_backward_passes_opcheck(case):
    torch.library.opcheck(ops.recurrent_backward.default, backward_inputs(case), test_utils=OPCHECKS_BACKWARD)


@pytest.mark.parametrize("case", DEEP_CASES)
def test_deep_transition_passes_opcheck(case):
    torch.library.opcheck(ops.deep_transition.default, (*deep_transition_inputs(**DEEP_CASES[case]), True))


@pytest.mark.parametrize("case", DEEP_CASES)
def test_deep_transition_backward_passes_opcheck(case):
    torch.library.opcheck(
        ops.deep_transition_backward.default, deep_backward_inputs(case), test_utils=OPCHECKS_BACKWARD
    )


def run_recurrent(args):
    """The op as a function of the leaves that ask for gradients, and these leaves."""
    places = [i for i, a in enumerate(args) if isinstance(a, torch.Tensor) and a.requires_grad]

    def run(*values):
        full = list(args)
        for place, value in zip(places, values, strict=True):
            full[place] = value
        return ops.recurrent(*full, True)[: 3 if args[0] == "lstm" else 2]

    return run, tuple(args[i] for i in places)


@each_op_case
def test_gradients_of_the_op_equal_finite_differences(case):
    mode, options = OP_CASES[case]
    run, inputs = run_recurrent(op_inputs(mode, **options))
    assert gradcheck(run, inputs)


@each_op_case
def test_second_gradients_of_the_op_equal_finite_differences(case):
    mode, options = OP_CASES[case]
    run, inputs = run_recurrent(op_inputs(mode, **options))
    assert gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("case", DEEP_CASES)
def test_both_gradients_of_deep_transition_equal_finite_differences(case):
    x, h0, weights, biases, slope = deep_transition_inputs(**DEEP_CASES[case])
    depth = len(weights)

    def run(x, h0, *w):
        return ops.deep_transition(x, h0, list(w[:depth]), list(w[depth:]), slope, True)[:2]

    assert gradcheck(run, (x, h0, *weights, *biases))
    assert gradgradcheck(run, (x, h0, *weights, *biases), fast_mode=True)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_second_gradients_equal_torchs_composite(kind):
    results = []
    for module in pair(kind, 4, 6, num_layers=2, bidirectional=True, **F64):
        x = input_for(kind).requires_grad_()
        (dx,) = torch.autograd.grad(total(module(x)), x, create_graph=True)
        results.append(torch.autograd.grad(dx.square().sum(), [x, *module.parameters()]))
    same(*results)


@each_kind
def test_forward_ad_equals_finite_differences(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x, v, eps = input_for(kind), input_for(kind, seed=2), 1e-6
    up, down = tensors(ours(x + eps * v)), tensors(ours(x - eps * v))
    expected = [(a - b) / (2 * eps) for a, b in zip(up, down, strict=True)]
    _, tangents = torch.func.jvp(ours, (x,), (v,))
    same(tangents, expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        outputs = tensors(ours(forward_ad.make_dual(x, v)))
        same([forward_ad.unpack_dual(t).tangent for t in outputs], expected, rtol=1e-6, atol=1e-8)


@each_kind
def test_forward_ad_of_the_weights_equals_finite_differences(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x, eps = input_for(kind), 1e-6
    weights = {k: p.detach() for k, p in ours.named_parameters()}
    tangent = {k: draw(*p.shape, seed=9 + i) for i, (k, p) in enumerate(weights.items())}

    def at(step):
        return tensors(functional_call(ours, {k: w + step * tangent[k] for k, w in weights.items()}, (x,)))

    expected = [(a - b) / (2 * eps) for a, b in zip(at(eps), at(-eps), strict=True)]
    _, tangents = torch.func.jvp(lambda w: functional_call(ours, w, (x,)), (weights,), (tangent,))
    same(tangents, expected, rtol=1e-6, atol=1e-8)
    with forward_ad.dual_level():
        duals = {k: forward_ad.make_dual(w, tangent[k]) for k, w in weights.items()}
        outputs = tensors(functional_call(ours, duals, (x,)))
        same([forward_ad.unpack_dual(t).tangent for t in outputs], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("case", OP_CASES)
def test_the_raw_op_refuses_every_tensor_that_carries_a_forward_gradient(case):
    # through an op with a registered autograd the tangent would vanish without a word
    mode, options = OP_CASES[case]
    args = op_inputs(mode, grad=False, **options)
    for place, value in enumerate(args):
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            with forward_ad.dual_level():
                dual = list(args)
                dual[place] = forward_ad.make_dual(value, torch.ones_like(value))
                with pytest.raises(RuntimeError, match="forward"):
                    ops.recurrent(*dual, False)


@pytest.mark.parametrize("part", ["x", "h0", "weights", "biases"])
def test_the_raw_deep_transition_op_refuses_a_forward_gradient(part):
    x, h0, weights, biases, slope = deep_transition_inputs(grad=False)
    with forward_ad.dual_level():
        args = {"x": x, "h0": h0, "weights": weights, "biases": biases}
        if part in ("x", "h0"):
            args[part] = forward_ad.make_dual(args[part], torch.ones_like(args[part]))
        else:
            args[part] = [
                *args[part][:-1],
                forward_ad.make_dual(args[part][-1], torch.ones_like(args[part][-1])),
            ]
        with pytest.raises(RuntimeError, match="forward"):
            ops.deep_transition(*args.values(), slope, False)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_forward_gradient_in_the_cotangent_is_never_dropped(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x = input_for(kind).requires_grad_()
    y = ours(x)[0]
    with forward_ad.dual_level():
        cotangent = forward_ad.make_dual(draw(*y.shape, seed=2), draw(*y.shape, seed=3))
        try:
            (dx,) = torch.autograd.grad(y, x, cotangent, retain_graph=True)
        except RuntimeError as refusal:
            assert "forward" in str(refusal)
            return
        tangent = forward_ad.unpack_dual(dx).tangent
    # the gradient is linear in the cotangent
    same(tangent, torch.autograd.grad(y, x, draw(*y.shape, seed=3))[0])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_forward_over_reverse_equals_torchs_reverse_over_reverse(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x, v = input_for(kind), input_for(kind, seed=2)
    _, product = torch.func.jvp(torch.func.grad(lambda x: total(ours(x))), (x,), (v,))
    _, expected = torch.autograd.functional.vhp(lambda x: total(theirs(x)), x, v)
    same(product, expected)


@each_kind
def test_functorch_gradients_equal_torchs_autograd(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x = input_for(kind)
    y = x.clone().requires_grad_()
    expected = torch.autograd.grad(total(theirs(y)), [y, *theirs.parameters()])
    weights = dict(ours.named_parameters())

    def loss(x, weights):
        return total(functional_call(ours, weights, (x,)))

    dx, dw = torch.func.grad(loss, argnums=(0, 1))(x, weights)
    same((dx, *dw.values()), expected)


@pytest.mark.parametrize("kind", [*LAYERS, "lstm_cell", "gru_cell"])
def test_jacrev_and_jacfwd_equal_torchs_jacobian(kind):
    ours, theirs = pair(kind, 4, 2 if "proj" not in kind else 4, **F64)
    x = input_for(kind)[:2]
    expected = torch.autograd.functional.jacobian(lambda x: tuple(tensors(theirs(x))), x)
    same(torch.func.jacrev(lambda x: tuple(tensors(ours(x))))(x), expected)
    same(torch.func.jacfwd(lambda x: tuple(tensors(ours(x))))(x), expected)


@each_kind
def test_vmap_over_data_equals_a_loop(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x = torch.stack([input_for(kind, seed=s) for s in range(3)])
    looped = [tensors(theirs(row)) for row in x]
    same(torch.func.vmap(ours)(x), [torch.stack(parts) for parts in zip(*looped, strict=True)])


@each_kind
@pytest.mark.parametrize("shared_input", [True, False], ids=["one_input", "own_inputs"])
def test_vmap_over_stacked_weights_equals_a_loop(kind, shared_input):
    models = [pair(kind, 4, 6, seed=s, **F64)[0] for s in range(3)]
    x = input_for(kind) if shared_input else torch.stack([input_for(kind, seed=s) for s in range(3)])
    inputs = [x] * 3 if shared_input else x
    looped = [tensors(m(row)) for m, row in zip(models, inputs, strict=True)]
    weights, buffers = torch.func.stack_module_state(models)
    base = copy.deepcopy(models[0]).to("meta")

    def call(weights, buffers, x):
        return functional_call(base, (weights, buffers), (x,))

    together = torch.func.vmap(call, in_dims=(0, 0, None if shared_input else 0))(weights, buffers, x)
    same(together, [torch.stack(parts) for parts in zip(*looped, strict=True)])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_per_sample_gradients_equal_a_loop(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    x = draw(3, 5, 4)
    looped = [torch.autograd.grad(total(theirs(row)), list(theirs.parameters())) for row in x]
    weights = dict(ours.named_parameters())

    def loss(weights, x):
        return total(functional_call(ours, weights, (x,)))

    together = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0))(weights, x)
    same(list(together.values()), [torch.stack(parts) for parts in zip(*looped, strict=True)])


@each_kind
def test_backward_works_in_eval_mode(kind):
    results = []
    for module in pair(kind, 4, 6, **F64):
        module.eval()
        results.append(torch.autograd.grad(total(module(input_for(kind))), list(module.parameters())))
    same(*results)


@each_kind
def test_backward_twice_gives_the_same_gradients(kind):
    ours, _ = pair(kind, 4, 6, **F64)
    x = input_for(kind).requires_grad_()
    loss = total(ours(x))
    wanted = [x, *ours.parameters()]
    first = torch.autograd.grad(loss, wanted, retain_graph=True)
    torch.autograd.grad(total(ours(input_for(kind, seed=2))), list(ours.parameters()))  # another call between
    same(torch.autograd.grad(loss, wanted), first, rtol=0, atol=0)


def states_of(kind):
    rows = (3,) if kind in CELLS else (1, 3)
    h = draw(*rows, 3 if "proj" in kind else 6, seed=5)
    return (h, draw(*rows, 6, seed=6)) if "lstm" in kind else h


@each_kind
def test_gradients_of_each_input_alone_equal_those_of_all(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    for number in range(len(list(theirs.parameters())) + len(tensors(states_of(kind))) + 1):
        results = []
        for module in (ours, theirs):
            x, hx = input_for(kind), states_of(kind)
            everything = [x, *tensors(hx), *module.parameters()]
            for i, t in enumerate(everything):
                t.requires_grad_(i == number)
            results.append(torch.autograd.grad(total(module(x, hx)), everything[number]))
        same(*results)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("used", ["output", "state"])
def test_gradients_of_one_output_alone_equal_torchs(kind, used):
    results = []
    for module in pair(kind, 4, 6, num_layers=2, bidirectional=True, **F64):
        output = module(input_for(kind))[0 if used == "output" else 1]
        results.append(
            torch.autograd.grad(total(tensors(output)[-1]), list(module.parameters()), allow_unused=True)
        )
    same(*results)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_gradients_equal_plain_ones(kind, reentrant):
    ours, _ = pair(kind, 4, 6, num_layers=2, dropout=0.3, **F64)
    results = []

    def flat(x):  # the reentrant form follows no gradient into a nested tuple
        return tuple(tensors(ours(x)))

    for run in (flat, lambda x: checkpoint(flat, x, use_reentrant=reentrant)):
        torch.manual_seed(4)
        ours.zero_grad()
        x = input_for(kind).requires_grad_()
        total(run(x)).backward()
        results.append([x.grad, *(p.grad.clone() for p in ours.parameters())])
    same(*results)


@each_kind
def test_hooks_see_what_they_see_in_torch(kind):
    seen = {}
    for name, module in zip(("ours", "torch"), pair(kind, 4, 6, **F64), strict=True):
        calls = seen[name] = []
        module.register_forward_pre_hook(lambda m, args, calls=calls: calls.append(("pre", args)))
        module.register_forward_hook(lambda m, args, out, calls=calls: calls.append(("forward", out)))
        module.register_full_backward_hook(lambda m, gi, go, calls=calls: calls.append(("backward", gi, go)))
        next(module.parameters()).register_hook(lambda g, calls=calls: calls.append(("weight", g)))
        total(module(input_for(kind).requires_grad_())).backward()
    assert [call[0] for call in seen["ours"]] == [call[0] for call in seen["torch"]]
    same(seen["ours"], seen["torch"])


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.filterwarnings("ignore:Error detected in")
def test_anomaly_mode_passes_good_gradients_and_names_nan(kind):
    ours, theirs = pair(kind, 4, 6, **F64)
    results = []
    for module in (ours, theirs):
        with torch.autograd.detect_anomaly():
            results.append(torch.autograd.grad(total(module(input_for(kind))), list(module.parameters())))
    same(*results)
    x = input_for(kind).requires_grad_()
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="returned nan values"):
        (ours(x)[0].sum() * float("nan")).backward()


class Tagger(torch.nn.Module):
    """A recurrent layer and a head: what people compile."""

    def __init__(self, rnn, features):
        super().__init__()
        self.rnn, self.head = rnn, torch.nn.Linear(features, 3)

    def forward(self, x, hx=None):
        y, state = self.rnn(x, hx)
        return self.head(y).tanh(), state


def compiled_and_eager(model, backend, *inputs, dynamic=None):
    """Outputs and gradients from torch.compile(fullgraph=True) and without it."""
    torch._dynamo.reset()
    results = []
    for run in (torch.compile(model, fullgraph=True, backend=backend, dynamic=dynamic), model):
        copies = [torch.utils._pytree.tree_map(lambda t: t.clone().requires_grad_(), i) for i in inputs]
        output = run(*copies)
        results.append((output, torch.autograd.grad(total(output), [*tensors(copies), *model.parameters()])))
    return results


@pytest.mark.parametrize("name", ["LSTM", "GRU"])
def test_a_model_compiled_by_inductor_equals_eager(name):
    torch.manual_seed(0)
    model = Tagger(getattr(rnnfast, name)(4, 6, num_layers=2, dropout=0.0), 6)
    compiled, eager = compiled_and_eager(model, "inductor", draw(5, 3, 4, dtype=torch.float32))
    same(compiled, eager)


COMPILED = {
    "rnn_bidirectional": lambda: Tagger(rnnfast.RNN(4, 6, bidirectional=True), 12),
    "rnn_relu_no_bias": lambda: Tagger(rnnfast.RNN(4, 6, nonlinearity="relu", bias=False), 6),
    "lstm_proj_batch_first": lambda: Tagger(rnnfast.LSTM(4, 6, proj_size=3, batch_first=True), 3),
    "gru_unbatched": lambda: Tagger(rnnfast.GRU(4, 6), 6),
    "lstm_cell": lambda: rnnfast.LSTMCell(4, 6),
    "gru_cell": lambda: rnnfast.GRUCell(4, 6),
    "rnn_cell": lambda: rnnfast.RNNCell(4, 6),
    "deep_transition": lambda: rnnfast.DeepTransitionRNN(4, 6),
}


@pytest.mark.parametrize("case", COMPILED)
def test_every_module_compiles_in_one_graph_and_equals_eager(case):
    torch.manual_seed(0)
    model = COMPILED[case]().double()
    x = draw(3, 4) if "cell" in case or "unbatched" in case else draw(5, 3, 4)
    same(*compiled_and_eager(model, "aot_eager", x))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_given_state_compiles_and_equals_eager(kind):
    model = Tagger(pair(kind, 4, 6)[0], 6).double()
    same(*compiled_and_eager(model, "aot_eager", input_for(kind), states_of(kind)))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_packed_input_compiles_and_equals_eager(kind):
    module = pair(kind, 4, 6)[0].double()
    x = packed(5, 3, 2)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = module

        def forward(self, data):
            y, state = self.rnn(torch.nn.utils.rnn.PackedSequence(data, x.batch_sizes))
            return y.data, state

    same(*compiled_and_eager(Model(), "aot_eager", x.data))


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_dropout_in_a_compiled_model_draws_the_eager_masks_again_and_again(kind):
    model = Tagger(pair(kind, 4, 6, num_layers=2, dropout=0.5)[0], 6).double()
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = []
    for run in (model, compiled, compiled):
        torch.manual_seed(3)
        outputs.append(run(input_for(kind)))
    same(outputs[1], outputs[0])
    same(outputs[2], outputs[0])


@pytest.mark.parametrize("kind", ["lstm", "gru"])
@pytest.mark.filterwarnings("ignore:Your compiler for AOTAutograd is returning")  # torch's own test backend
def test_one_graph_with_one_node_a_layer_serves_two_lengths(kind):
    model = Tagger(pair(kind, 4, 6, num_layers=2)[0], 6).double()
    torch._dynamo.reset()
    backend = torch._dynamo.testing.AotEagerAndRecordGraphs()
    compiled = torch.compile(model, fullgraph=True, backend=backend, dynamic=True)
    for steps, batch in ((5, 3), (8, 2), (11, 4)):
        x = draw(steps, batch, 4)
        same(compiled(x), model(x))
        gradients = [torch.autograd.grad(total(m(x)), list(model.parameters())) for m in (compiled, model)]
        same(*gradients)
    assert len(backend.fw_graphs) == 1 and len(backend.bw_graphs) == 1
    called = [node.target for node in backend.fw_graphs[0].graph.nodes if node.op == "call_function"]
    assert called.count(ops.recurrent.default) == 2
    called = [node.target for node in backend.bw_graphs[0].graph.nodes if node.op == "call_function"]
    assert called.count(ops.recurrent_backward.default) == 2


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@each_kind
@pytest.mark.parametrize("grad", [True, False])
def test_a_trace_has_torchs_own_operators_and_trains(kind, grad):
    ours, _ = pair(kind, 4, 6)
    x = input_for(kind, dtype=torch.float32)
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(ours, (x,))
    assert "rnnfast::" not in str(traced.inlined_graph)
    found, expected = tensors(traced(x)), tensors(ours(x))
    same(found, expected)
    parameters = list(ours.parameters())
    same(*(torch.autograd.grad(outputs[0].square().sum(), parameters) for outputs in (found, expected)))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning", "ignore::torch.jit.TracerWarning")
def test_a_deep_transition_and_packed_rows_are_traced_too():
    deep = rnnfast.DeepTransitionRNN(4, 6)
    x = draw(3, 5, 4, dtype=torch.float32)
    same(tensors(torch.jit.trace(deep, (x,))(x)), tensors(deep(x)))
    rows = packed(5, 3, 2, dtype=torch.float32)

    class Packed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = rnnfast.LSTM(4, 6)

        def forward(self, data):
            return self.layer(rows._replace(data=data))[0].data

    model = Packed()
    same([torch.jit.trace(model, (rows.data,))(rows.data)], [model(rows.data)])
