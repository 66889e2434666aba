"""torch's own module test inputs, run against our classes: what torch's TestModule runs, with no skip."""

import pickle
from functools import partial

import pytest
import torch
from helpers import same, tensors
from torch.testing._internal import common_modules as torch_inputs
from torch.testing._internal.common_modules import ModuleErrorEnum, ModuleInfo
from torch.testing._internal.common_utils import freeze_rng_state, gradcheck, gradgradcheck
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

import rnnfast

RNN_GRU = torch_inputs.module_inputs_torch_nn_RNN_GRU
RNN_GRU_CELL = torch_inputs.module_inputs_torch_nn_RNN_GRU_Cell
RNN_GRU_ERRORS = torch_inputs.module_error_inputs_torch_nn_RNN_GRU
RNN_GRU_CELL_ERRORS = torch_inputs.module_error_inputs_torch_nn_RNN_GRU_Cell

INFOS = [
    ModuleInfo(
        rnnfast.RNN,
        module_inputs_func=partial(RNN_GRU, is_rnn=True),
        module_error_inputs_func=RNN_GRU_ERRORS,
    ),
    ModuleInfo(
        rnnfast.GRU,
        module_inputs_func=partial(RNN_GRU, is_rnn=False),
        module_error_inputs_func=RNN_GRU_ERRORS,
    ),
    ModuleInfo(
        rnnfast.LSTM,
        module_inputs_func=torch_inputs.module_inputs_torch_nn_LSTM,
        module_error_inputs_func=RNN_GRU_ERRORS,
    ),
    ModuleInfo(
        rnnfast.RNNCell,
        module_inputs_func=partial(RNN_GRU_CELL, is_rnn=True),
        module_error_inputs_func=RNN_GRU_CELL_ERRORS,
    ),
    ModuleInfo(
        rnnfast.GRUCell, module_inputs_func=RNN_GRU_CELL, module_error_inputs_func=RNN_GRU_CELL_ERRORS
    ),
    ModuleInfo(
        rnnfast.LSTMCell,
        module_inputs_func=torch_inputs.module_inputs_torch_nn_LSTMCell,
        module_error_inputs_func=torch_inputs.module_error_inputs_torch_nn_LSTMCell,
    ),
]
LAYER_INFOS = INFOS[:3]

# torch's own LSTM says this of itself, once, when it meets a projection in float32
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

each_module = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
each_layer = pytest.mark.parametrize("info", LAYER_INFOS, ids=lambda info: info.name)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
each_mode = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


@pytest.fixture(autouse=True)
def one_thread():
    """Everything here is a few units wide: a second thread would only wait. conftest.py undoes this."""
    torch.set_num_threads(1)


def twin(m, sample, **changes):
    """torch's module of the same arguments and weights."""
    construct = sample.constructor_input
    theirs = getattr(torch.nn, type(m).__name__)(*construct.args, **{**construct.kwargs, **changes})
    theirs.to(next(m.parameters()).dtype).train(m.training)
    theirs.load_state_dict(m.state_dict())
    return theirs


def samples(info, dtype, training=True, requires_grad=False, **changes):
    """(module, forward's args and kwargs, torch's sample) for each input of torch's, packed ones too."""
    torch.manual_seed(0)
    generated = info.module_inputs_func(
        info,
        device="cpu",
        dtype=dtype,
        requires_grad=requires_grad,
        training=training,
        with_packed_sequence=True,
    )
    assert generated
    for sample in generated:
        construct = sample.constructor_input
        m = info.module_cls(*construct.args, **{**construct.kwargs, **changes}).to(dtype).train(training)
        yield m, sample.forward_input.args, sample.forward_input.kwargs, sample


def is_packed(args):
    return isinstance(args[0], torch.nn.utils.rnn.PackedSequence)


@each_mode
@each_dtype
@each_module
def test_forward_equals_the_reference(info, dtype, training):
    for m, args, kwargs, sample in samples(info, dtype, training):
        outputs = m(*args, **kwargs)
        same(outputs, twin(m, sample)(*args, **kwargs))
        if not is_packed(
            args
        ):  # torch's reference function adds a batch of one, which packed input cannot take
            same(outputs, sample.reference_fn(m, *args, **kwargs))


@each_dtype
@each_module
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_factory_arguments_reach_every_parameter(info, dtype, device):
    for _, _, _, sample in samples(info, torch.float32):
        construct = sample.constructor_input
        m = info.module_cls(*construct.args, **construct.kwargs, device=device, dtype=dtype)
        assert {(p.device.type, p.dtype) for p in m.parameters()} == {(device, dtype)}


@each_module
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_device_context_reaches_every_parameter(info, device):
    for _, _, _, sample in samples(info, torch.float32):
        with torch.device(device):
            m = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
        assert {p.device.type for p in m.parameters()} == {device}


@each_module
def test_meta_forward_gives_the_shapes_and_types_of_the_real_one(info):
    for m, args, kwargs, _ in samples(info, torch.float32):
        if is_packed(args):  # PackedSequence keeps its lengths on the CPU and torch cannot move it to meta
            continue
        outputs = m(*args, **kwargs)
        on_meta = m.to("meta")(*tree_map(lambda t: t.to("meta"), args), **kwargs)
        assert all(t.is_meta for t in tensors(on_meta))
        for made, real in zip(tensors(on_meta), tensors(outputs), strict=True):
            assert (made.shape, made.dtype) == (real.shape, real.dtype)


@each_module
def test_repr_and_str_are_torchs(info):
    for m, _, _, sample in samples(info, torch.float32):
        assert repr(m) == str(m) == repr(twin(m, sample))


@each_mode
@each_dtype
@each_module
def test_pickled_module_gives_the_same_outputs(info, dtype, training):
    for m, args, kwargs, _ in samples(info, dtype, training):
        same(pickle.loads(pickle.dumps(m))(*args, **kwargs), m(*args, **kwargs), rtol=0, atol=0)


def strided(tree):
    """The same numbers with a gap after every element; leaves that ask for a gradient still do."""

    def gap(leaf):
        if not isinstance(leaf, torch.Tensor) or not leaf.is_floating_point():
            return leaf
        view = torch.stack([leaf.detach(), leaf.detach()], dim=-1)[..., 0]
        assert leaf.numel() < 2 or not view.is_contiguous()
        return view.requires_grad_(leaf.requires_grad)

    return tree_map(gap, tree)


def backward(m, outputs, inputs, noncontiguous=False):
    """Gradients of inputs and parameters, for random gradients of the outputs."""
    torch.manual_seed(1)
    outputs = tensors(outputs)
    grads = [torch.randn_like(t, memory_format=torch.contiguous_format) for t in outputs]
    grads = strided(grads) if noncontiguous else grads
    return torch.autograd.grad(outputs, [*inputs, *m.parameters()], grads)


@each_dtype
@each_module
def test_noncontiguous_inputs_and_gradients_change_nothing(info, dtype):
    for m, args, kwargs, _ in samples(info, dtype, requires_grad=True):
        gapped = strided(args)
        plain_out, gapped_out = m(*args, **kwargs), m(*gapped, **kwargs)
        same(gapped_out, plain_out)
        plain_grads = backward(m, plain_out, tensors((args, kwargs)))
        leaves = tensors((gapped, kwargs))
        same(backward(m, gapped_out, leaves, noncontiguous=True), plain_grads)


def check_gradients(check, info, training):
    for m, args, kwargs, _ in samples(info, torch.float64, training, requires_grad=True):
        flat, spec = tree_flatten((args, kwargs))
        places = [i for i, leaf in enumerate(flat) if isinstance(leaf, torch.Tensor) and leaf.requires_grad]
        assert places

        # gradcheck nudges the parameters in place, so the module sees them without their being passed on.
        def run(*leaves, m=m, flat=flat, spec=spec, places=places):
            flat = list(flat)
            for place, leaf in zip(places, leaves, strict=False):
                flat[place] = leaf
            new_args, new_kwargs = tree_unflatten(flat, spec)
            with freeze_rng_state():
                return tuple(tensors(m(*new_args, **new_kwargs)))

        # torch's wrapper: fast mode, and gradients under vmap are compared too
        assert check(run, (*(flat[i] for i in places), *m.parameters()))


@each_mode
@each_module
def test_gradients_equal_finite_differences(info, training):
    check_gradients(gradcheck, info, training)


@each_module
def test_second_gradients_equal_finite_differences(info):
    check_gradients(gradgradcheck, info, training=True)


@each_dtype
@each_module
def test_memory_format_of_the_module_changes_nothing(info, dtype):
    for m, args, kwargs, _ in samples(info, dtype):
        outputs = m(*args, **kwargs)
        for memory_format in (torch.channels_last, torch.contiguous_format):
            same(m.to(memory_format=memory_format)(*args, **kwargs), outputs, rtol=0, atol=0)


@each_dtype
@each_module
def test_training_and_evaluation_are_equal_without_dropout(info, dtype):
    for m, args, kwargs, _ in samples(info, dtype):
        same(m.train()(*args, **kwargs), m.eval()(*args, **kwargs), rtol=0, atol=0)


@each_dtype
@each_mode
@each_layer
@pytest.mark.parametrize("dropout", [0, 0.3, 1])
def test_dropout_draws_torchs_masks_and_repeats(info, dtype, training, dropout):
    for m, args, kwargs, sample in samples(info, dtype, training, dropout=dropout):
        runs = []
        for module in (m, m, twin(m, sample, dropout=dropout)):
            torch.manual_seed(7)
            runs.append(module(*args, **kwargs))
        same(runs[0], runs[1], rtol=0, atol=0)
        same(runs[0], runs[2])


@each_dtype
@each_module
def test_errors_are_torchs(info, dtype):
    errors = info.module_error_inputs_func(
        info, device="cpu", dtype=dtype, requires_grad=False, training=True
    )
    assert errors
    for error in errors:
        construct = error.module_error_input.constructor_input
        forward = error.module_error_input.forward_input
        if error.error_on == ModuleErrorEnum.CONSTRUCTION_ERROR:
            with pytest.raises(error.error_type, match=error.error_regex):
                info.module_cls(*construct.args, **construct.kwargs)
        else:
            m = info.module_cls(*construct.args, **construct.kwargs).to(dtype)
            with pytest.raises(error.error_type, match=error.error_regex):
                m(*forward.args, **forward.kwargs)


@each_module
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_converting_the_module_converts_every_parameter(info, dtype):
    for m, *_ in samples(info, torch.float32):
        assert {p.dtype for p in m.to(dtype).parameters()} == {dtype}


@each_module
def test_to_empty_makes_a_meta_module_real(info):
    for m, args, kwargs, sample in samples(info, torch.float32):
        expected = m(*args, **kwargs)
        construct = sample.constructor_input
        hollow = info.module_cls(*construct.args, **construct.kwargs, device="meta")
        filled = hollow.to_empty(device="cpu")
        filled.load_state_dict(m.state_dict())
        same(filled(*args, **kwargs), expected, rtol=0, atol=0)
