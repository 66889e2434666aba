"""`convert` and `revert`: what is swapped; in wrappers, in copies and in files."""

import copy
import io
import pickle
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

import rnnfast
from rnnfast.nn import _twins
from tests.helpers import CELLS, LAYERS, ROOT, draw, of_torch, packed, pair, same, tensors

KINDS = of_torch(LAYERS | CELLS)


class Initialised(nn.LSTM):
    """A subclass that has a constructor and another initialisation, and torch's forward."""

    def __init__(self, size):
        super().__init__(size, 6, 2, batch_first=True)
        self.scale = 3

    def reset_parameters(self):
        super().reset_parameters()
        nn.init.zeros_(self.bias_ih_l0)

    def extra_repr(self):
        return f"scale={self.scale}, {super().extra_repr()}"


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn = nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(12, 5)

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.cell(y[:, -1])


def made(cls, *args, seed=0, **kwargs):
    torch.manual_seed(seed)
    return cls(*args, **kwargs).double()


def test_every_class_that_torch_has_too_is_known_as_a_drop_in():
    names = {name for name in rnnfast.nn.__all__ if isinstance(getattr(nn, name, None), type)}
    assert {getattr(nn, name): getattr(rnnfast, name) for name in names} == _twins.FROM_TORCH
    assert all(_twins.TO_TORCH[ours] is theirs for theirs, ours in _twins.FROM_TORCH.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_module_becomes_ours_and_torchs_again_where_it_stands(kind):
    _, module = pair(kind, 4, 6)
    name = type(module).__name__
    module.double().eval()
    x = draw(5, 3, 4) if kind in LAYERS else draw(3, 4)
    expected, attributes = module(x), dict(vars(module))
    assert rnnfast.convert(module) is module
    assert type(module) is getattr(rnnfast, name)
    assert vars(module).keys() == attributes.keys()
    same(module(x), expected)
    assert rnnfast.revert(module) is module
    assert type(module) is getattr(nn, name)
    assert torch.equal(tensors(module(x))[0], tensors(expected)[0])


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_made_as_ours_reverts_to_a_module_of_torchs(kind):
    ours, theirs = pair(kind, 4, 6)
    x = draw(5, 3, 4, dtype=torch.float32) if kind in LAYERS else draw(3, 4, dtype=torch.float32)
    ours(x)
    rnnfast.revert(ours)
    assert type(ours) is type(theirs) and repr(ours) == repr(theirs)
    same(ours(x), theirs(x), rtol=0, atol=0)
    if kind in LAYERS:
        rows = packed(5, 3, 2, dtype=torch.float32)
        same(ours(rows), theirs(rows), rtol=0, atol=0)


def test_verbose_names_every_module_once(capsys):
    shared = nn.GRU(4, 4)
    model = nn.ModuleDict(
        {"a": shared, "b": shared, "deep": nn.ModuleList([nn.LSTMCell(4, 4), nn.Linear(4, 4)])}
    )
    rnnfast.convert(model, verbose=True)
    assert capsys.readouterr().out.splitlines() == [
        "rnnfast.convert: a: torch.nn.GRU -> rnnfast.GRU",
        "rnnfast.convert: deep.0: torch.nn.LSTMCell -> rnnfast.LSTMCell",
    ]
    assert model["a"] is model["b"]
    rnnfast.convert(model, verbose=True)
    assert capsys.readouterr().out == "rnnfast.convert: nothing to convert in ModuleDict\n"
    rnnfast.revert(model["a"], verbose=True)
    assert capsys.readouterr().out == "rnnfast.revert: the model itself: rnnfast.GRU -> torch.nn.GRU\n"


@pytest.mark.parametrize("function", [rnnfast.convert, rnnfast.revert])
@pytest.mark.parametrize("model", [None, [nn.LSTM(2, 2)], "model", nn.LSTM])
def test_what_is_no_module_is_a_type_error(function, model):
    expected = f"rnnfast.{function.__name__}: model should be a torch.nn.Module, got {type(model).__name__}"
    with pytest.raises(TypeError, match=f"^{expected}$"):
        function(model)


def test_a_subclass_without_a_forward_of_its_own_is_converted_and_stays_one_of_its_class(capsys):
    module, peer = made(Initialised, 4), made(Initialised, 4)
    rnnfast.convert(module, verbose=True)
    assert capsys.readouterr().out == (
        "rnnfast.convert: the model itself: Initialised (a torch.nn.LSTM) -> Initialised (a rnnfast.LSTM)\n"
    )
    assert isinstance(module, Initialised) and isinstance(module, rnnfast.LSTM)
    assert repr(module) == repr(peer) and "scale=3" in repr(module)
    x = draw(3, 5, 4)
    same(module(x), peer(x))
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(copied) is type(module) and copied.scale == 3
        same(copied(x), peer(x))
    module.reset_parameters()
    assert module.bias_ih_l0.eq(0).all()
    rnnfast.revert(module)
    assert type(module) is Initialised
    same(module(x), Initialised.forward(module, x))


@pytest.mark.parametrize("kind", ["lstm", "gru_cell"])
def test_parametrizations_come_and_go_on_a_converted_module(kind):
    module, peer = pair(kind, 4, 6)[1].double(), pair(kind, 4, 6)[1].double()
    weight = "weight_hh_l0" if kind in LAYERS else "weight_hh"
    for m in (module, peer):
        parametrizations.orthogonal(m, weight, orthogonal_map="cayley")
    copied = copy.deepcopy(rnnfast.convert(module))
    x = draw(5, 3, 4) if kind in LAYERS else draw(3, 4)
    for m in (module, copied):
        assert isinstance(m, parametrize.type_before_parametrizations(m))
        assert parametrize.type_before_parametrizations(m) is getattr(rnnfast, type(peer).__mro__[1].__name__)
        same(m(x), peer(x))
    rnnfast.revert(copied)
    assert parametrize.type_before_parametrizations(copied) is parametrize.type_before_parametrizations(peer)
    same(copied(x), peer(x))
    parametrize.remove_parametrizations(module, weight)
    assert type(module) is getattr(rnnfast, type(peer).__mro__[1].__name__)
    same(module(x), peer(x))


@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
def test_a_converted_subclass_is_parametrized_and_scripted_as_others():
    module, peer, x = made(Initialised, 4), made(Initialised, 4), draw(3, 5, 4)
    same(torch.jit.script(nn.Sequential(rnnfast.convert(module)))(x)[0], peer(x)[0])
    same(module(x), peer(x))
    rnnfast.revert(module)
    for m in (module, peer):
        parametrizations.weight_norm(m, "weight_ih_l1")
    rnnfast.convert(module)
    assert isinstance(module, rnnfast.LSTM) and isinstance(module, Initialised)
    same(module(x), peer(x))
    rnnfast.revert(module)
    assert parametrize.type_before_parametrizations(module) is Initialised
    same(module(x), peer(x))


@pytest.mark.parametrize("loaded", ["convert", "revert"])
def test_files_of_either_kind_load_in_the_other(loaded, tmp_path):
    source, target = made(Tagger), made(Tagger, seed=1)
    rnnfast.convert(source if loaded == "revert" else target)
    torch.save(source.state_dict(), tmp_path / "state")
    torch.save(source, tmp_path / "model")
    target.load_state_dict(torch.load(tmp_path / "state"))
    x = draw(3, 5, 4)
    same(target(x), source(x))
    whole = torch.load(tmp_path / "model", weights_only=False)
    assert type(whole.rnn) is type(source.rnn)
    getattr(rnnfast, loaded)(whole)
    assert type(whole.rnn) is type(target.rnn)
    same(whole(x), source(x))


def test_a_reverted_model_is_read_where_rnnfast_is_not(tmp_path):
    model = rnnfast.revert(rnnfast.convert(nn.Sequential(nn.LSTM(4, 6))))
    torch.save(model, tmp_path / "model")
    code = (
        f"import sys, torch; sys.modules['rnnfast'] = None; m = torch.load({str(tmp_path / 'model')!r}, "
        "weights_only=False); print(type(m[0]), m(torch.zeros(2, 1, 4))[0].shape)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert "torch.nn.modules.rnn.LSTM" in found.stdout and "2, 1, 6" in found.stdout, found.stderr


def test_a_converted_model_is_frozen_and_revert_takes_the_packed_weights():
    model, peer = made(Tagger).eval(), made(Tagger).eval()
    rnnfast.freeze(rnnfast.convert(model))
    x = draw(3, 5, 4)
    assert "frozen" in model.rnn.explain(x)
    with torch.no_grad():
        same(model(x), peer(x))
    rnnfast.revert(model)
    assert "_frozen" not in vars(model.rnn)
    assert "frozen" not in rnnfast.convert(model).rnn.explain(x)


def test_meta_tensors_are_converted_and_materialised():
    with torch.device("meta"):
        model = nn.LSTM(4, 6)
    rnnfast.convert(model)
    assert model(torch.empty(5, 3, 4, device="meta"))[0].shape == (5, 3, 6)
    model.to_empty(device="cpu").load_state_dict(nn.LSTM(4, 6).state_dict())
    assert model(torch.zeros(5, 3, 4))[0].shape == (5, 3, 6)


def test_an_averaged_model_goes_on_averaging():
    models = [made(Tagger), made(Tagger)]
    averages = [torch.optim.swa_utils.AveragedModel(m) for m in models]
    for wrapped in (models[0], averages[0]):
        rnnfast.convert(wrapped)
    assert type(averages[0].module.rnn) is rnnfast.LSTM
    x = draw(3, 5, 4)
    for model, average in zip(models, averages, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(3):
            model(x).square().sum().backward()
            optimizer.step()
            average.update_parameters(model)
    same(averages[0](x), averages[1](x))
    same(averages[0].state_dict(), averages[1].state_dict())


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch._dynamo
def test_a_compiled_model_is_compiled_anew_with_our_operator_and_after_a_reset_in_one_graph():
    model, peer = made(Tagger), made(Tagger)
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    compiled, x = torch.compile(model, backend=backend), draw(3, 5, 4)
    same(compiled(x), peer(x))
    assert not any("rnnfast.recurrent" in graph.code for graph in graphs)
    rnnfast.convert(compiled)
    assert type(model.rnn) is rnnfast.LSTM
    same(compiled(x), peer(x))
    assert any("rnnfast.recurrent" in graph.code for graph in graphs)
    graphs.clear()
    torch._dynamo.reset()
    same(compiled(x), peer(x))
    assert len(graphs) == 1 and "rnnfast.recurrent" in graphs[0].code
    rnnfast.revert(compiled)
    same(compiled(x), peer(x))


@pytest.fixture
def group(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group("gloo", f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def distributed(model):
    return nn.parallel.DistributedDataParallel(model)


def sharded(model):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh("cpu", (1,))
    fully_shard(model.rnn, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@pytest.mark.filterwarnings("ignore")  # what torch.distributed says of itself
@pytest.mark.parametrize("wrap", [distributed, sharded])
def test_models_in_distributed_wrappers_are_converted_and_train(wrap, group):
    model, peer, x = wrap(made(Tagger)), made(Tagger), draw(3, 5, 4)
    rnnfast.convert(model)
    inner = getattr(model, "module", model)
    assert isinstance(inner.rnn, rnnfast.LSTM) and isinstance(inner.cell, rnnfast.GRUCell)
    for m in (model, peer):
        m(x).square().sum().backward()
    for p, q in zip(model.parameters(), peer.parameters(), strict=True):
        grad = p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad
        torch.testing.assert_close(grad, q.grad)
    rnnfast.revert(model)
    assert isinstance(inner.rnn, nn.LSTM) and not isinstance(inner.rnn, rnnfast.LSTM)
    same(model(x), peer(x))


def test_hooks_and_flags_stay():
    calls, module = [], nn.LSTM(4, 6, dropout=0.5, num_layers=2).eval()
    module.weight_hh_l0.requires_grad_(False)
    module.register_forward_pre_hook(lambda *args: calls.append("before"))
    module.register_forward_hook(lambda *args: calls.append("after"))
    module.register_full_backward_hook(lambda *args: calls.append("backward"))
    module.register_load_state_dict_post_hook(lambda *args: calls.append("load"))
    rnnfast.convert(module)
    assert not module.training and not module.weight_hh_l0.requires_grad and module.dropout == 0.5
    x = torch.zeros(5, 3, 4, requires_grad=True)
    module(x)[0].sum().backward()
    module.load_state_dict(module.state_dict())
    assert calls == ["before", "after", "backward", "load"]
    assert module.weight_hh_l0.grad is None


def test_a_file_from_before_is_read_by_a_converted_class():
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(rnnfast.convert(Initialised(4)), buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False)
    assert isinstance(loaded, Initialised) and isinstance(loaded, rnnfast.LSTM)
