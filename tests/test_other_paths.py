"""What the ops do not take and torch.nn does: complex numbers, gradients of each row."""

import pytest
import torch
from torch.nn.utils._per_sample_grad import call_for_per_sample_grads

import rnnfast
from tests.helpers import CELLS, LAYERS, draw, of_torch, packed, pair, same, total

COMPLEX = [kind for kind in of_torch(LAYERS | CELLS) if "relu" not in kind]
pytestmark = pytest.mark.filterwarnings("ignore:Complex modules are a new feature")


def of_both(kind, dtype, **options):
    return [m.to(dtype) for m in pair(kind, 4, 6, dtype=torch.float64, **options)]


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2, "bidirectional": True}, {"batch_first": True}], ids=str
)
@pytest.mark.parametrize("kind", [kind for kind in COMPLEX if kind in LAYERS])
def test_a_layer_of_complex_numbers_equals_torchs(kind, options, dtype):
    modules, x = of_both(kind, dtype, **options), draw(5, 3, 4, dtype=dtype)
    assert modules[0].explain(x).endswith("because x is complex.")
    outputs = [m(x) for m in modules]
    for found, expected in zip(outputs[0][1], outputs[1][1], strict=True):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(outputs[0][0], outputs[1][0])
    gradients = [torch.autograd.grad((y * y.conj()).real.sum(), list(m.parameters())) for m, (y, _) in
                 zip(modules, outputs, strict=True)]  # fmt: skip
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", [kind for kind in COMPLEX if kind in CELLS])
def test_a_cell_of_complex_numbers_equals_torchs(kind):
    modules, x = of_both(kind, torch.complex128), draw(3, 4, dtype=torch.complex128)
    torch.testing.assert_close(*(m(x) for m in modules))
    torch.testing.assert_close(*(m(x, m(x)) for m in modules))


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh"])
def test_packed_rows_and_single_sequences_of_complex_numbers_equal_torchs(kind):
    modules, rows = of_both(kind, torch.complex128), packed(5, 2, 3, dtype=torch.complex128)
    ours, theirs = (m(rows) for m in modules)
    torch.testing.assert_close(ours[0].data, theirs[0].data)
    torch.testing.assert_close(ours[1], theirs[1])
    x = draw(5, 4, dtype=torch.complex128)
    torch.testing.assert_close(*(m(x) for m in modules))


def test_numbers_that_do_not_fit_the_weights_are_refused_as_torchs():
    for x in (draw(5, 3, 4), draw(5, 3, 4, dtype=torch.complex64)):
        said = []
        for module in of_both("lstm", torch.complex128):
            with pytest.raises(ValueError, match="does not match weight dtype") as error:
                module(x)
            said.append(str(error.value))
        assert said[0] == said[1]


@pytest.mark.parametrize(
    "options", [{}, {"num_layers": 2}, {"bidirectional": True}, {"bias": False}], ids=str
)
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn_tanh", "rnn_relu"])
def test_gradients_of_each_row_are_those_of_the_rows_alone(kind, batch_first, options):
    module, _ = pair(kind, 4, 6, batch_first=batch_first, **options)
    module.double()
    x = draw(3, 5, 4)
    given = x if batch_first else x.transpose(0, 1)
    call_for_per_sample_grads(module, batch_first=batch_first)(given)[0].sum().backward()
    for b in range(3):
        row = x[b : b + 1] if batch_first else x[b : b + 1].transpose(0, 1)
        expected = torch.autograd.grad(module(row)[0].sum(), list(module.parameters()))
        same([p.grad_sample[b] for p in module.parameters()], expected)


def test_gradients_of_each_row_are_there_for_the_weights_that_need_one():
    module = rnnfast.GRU(4, 6, batch_first=True).double()
    module.weight_ih_l0.requires_grad_(False)
    x = draw(3, 5, 4)
    total(call_for_per_sample_grads(module)(x)[:1]).backward()
    assert not hasattr(module.weight_ih_l0, "grad_sample")
    (expected,) = torch.autograd.grad(total(module(x)[:1]), module.weight_hh_l0)
    torch.testing.assert_close(module.weight_hh_l0.grad_sample.sum(0), expected)
