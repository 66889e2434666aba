"""Every example runs, small: it learns, and leaves its picture and its results. Nothing is downloaded."""

import importlib
import json
import socket

import numpy as np
import pytest
import torch

from examples import classify, common, forecast, seq2seq, tag, vanishing


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The data come from packages on disk: whoever opens a connection fails."""

    def refuse(*_):
        raise OSError("an example tried to use the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def run(tmp_path):
    """Runs an example into a folder of its own; returns the results, read back from beside the picture."""

    def run(example, name, *options):
        example.main([*options, "--out", str(tmp_path), "--threads", "1"])
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        return json.loads((tmp_path / f"{name}.json").read_text())

    return run


def fell(losses):
    """Finite throughout, and lower at the end than at the start."""
    return bool(np.isfinite(losses).all()) and losses[-1] < losses[0]


def check_classify(results, steps, chance):
    """What holds for all four models of one data set."""
    assert list(results) == ["deep-transition RNN", "Elman RNN", "LSTM", "GRU"]
    for model, result in results.items():
        ways = {"rnnfast", "Python loop"} | ({"torch.nn"} if model != "deep-transition RNN" else set())
        assert set(result["epoch_seconds"]) == ways, model
        assert fell(result["losses"]), model
        assert result["accuracy"] > chance, model
        assert result["largest_difference"] < 1e-5 * max(1, result["largest_score"]), model
        assert [len(norms) for norms in result["gradient_norms"].values()] == [steps, steps], model


def test_classify_learns_packed_japanese_vowels_above_chance(run):
    options = "--data japanese_vowels --epochs 3 --hidden 32 --lr 4e-3 --timing-epochs 1".split()
    found = run(classify, "classify_japanese_vowels", *options)
    _, test = classify.read("japanese_vowels", 0)
    assert (len(test), int(test.lengths.min()), int(test.lengths.max())) == (370, 7, 29)
    steps = len(found["results"]["GRU"]["gradient_norms"]["after training"])
    check_classify(found["results"], steps, chance=2 / 9)


def test_classify_reads_sequences_of_ones_own_with_lengths_and_labels_of_any_kind(run, tmp_path):
    generator = np.random.default_rng(0)
    y, lengths = np.array(["down", "up"] * 40), generator.integers(3, 9, 80)
    lengths[:50] = 6
    x = generator.normal(size=(80, 8, 2)) + np.where(y == "up", 1.0, -1.0)[:, None, None]
    x[np.arange(8) >= lengths[:, None]] = np.nan  # padding: whoever reads it cannot learn
    np.savez(tmp_path / "mine.npz", x=x, y=y, lengths=lengths)
    options = "--epochs 8 --hidden 16 --lr 1e-2 --timing-epochs 1".split()
    found = run(classify, "classify_mine", "--data", str(tmp_path / "mine.npz"), *options)
    check_classify(found["results"], steps=6, chance=0.8)


def test_gunpoint_is_read_whole_and_scaled():
    train, test = classify.read("gunpoint", 0)
    assert train.x.shape == (50, 150, 1) and test.x.shape == (150, 150, 1)
    assert set(train.y.tolist()) == {0, 1}
    torch.testing.assert_close(train.x.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.x.std(), torch.tensor(1.0), atol=1e-4, rtol=0)


def test_forecast_beats_the_last_month(run):
    found = run(forecast, "forecast")
    assert fell(found["losses"])
    assert found["errors"]["LSTM"]["rmse"] < found["errors"]["last month"]["rmse"]


def test_tag_beats_the_best_rule_that_looks_at_one_step(run):
    found = run(tag, "tag", *"--count 128 --steps 30 --epochs 15 --lr 1e-2".split())
    assert fell(found["losses"])
    assert found["accuracy"] > found["accuracy_of_the_best_threshold"] + 0.03


def test_seq2seq_says_unseen_numbers_right(run):
    found = run(seq2seq, "seq2seq", *"--count 2000 --test 100 --epochs 10 --hidden 64 --lr 1e-2".split())
    assert fell(found["losses"])
    assert found["exact_match"] > 0.2


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (0, "zero"),
        (13, "thirteen"),
        (80, "eighty"),
        (100, "one hundred"),
        (40271, "forty thousand two hundred seventy one"),
        (999999, "nine hundred ninety nine thousand nine hundred ninety nine"),
    ],
)
def test_seq2seq_writes_numbers_in_words(number, words):
    assert " ".join(seq2seq.in_words(number)) == words


def test_vanishing_finds_each_cause(run):
    found = run(vanishing, "vanishing", *"--steps 20 --iterations 60 --hidden 32".split())

    def kept(cause, name):
        norms = found["at_the_start"][cause][name]
        assert len(norms) == 20
        return norms[0] / norms[-1]

    assert (
        kept("cell", "deep-transition RNN") < kept("cell", "LSTM") < kept("cell", "LSTM, forget bias 3") < 1
    )
    assert kept("weights", "one W, eigenvalue 1.1") > 100 * kept(
        "weights", "a new W each step, eigenvalue 1.1"
    )
    assert kept("activation", "relu") < kept("activation", "leaky relu, slope 0.5") < 0.1
    assert kept("activation", "none") == pytest.approx(1)
    assert kept("scale", "tanh, 0.5 × rotation") < 1e-4 < 10 < kept("scale", "relu, 2.0 × rotation")
    assert fell(found["learnt"]["LSTM, forget bias 3"]["losses"])
    assert max(found["clipping"]["not clipped"]["norms"]) > 2


@pytest.fixture
def recurrent_ppo():
    pytest.importorskip("gymnasium")
    return importlib.import_module("examples.recurrent_ppo")


def test_recurrent_ppo_learns_to_keep_the_pole_up(run, recurrent_ppo):
    options = "--updates 60 --steps 32 --envs 8 --hidden 32 --lr 1e-2 --rounds 1".split()
    found = run(recurrent_ppo, "recurrent_ppo", *options)
    assert np.isfinite(found["losses"]).all()
    assert found["lengths"][-1] > 2 * found["lengths"][0]
    assert found["comparison"]["episodes_that_begin_inside"] > 0
    assert {"rnnfast, one call", "torch.nn, by steps"} <= set(found["comparison"]["milliseconds"])


def test_recurrent_ppo_does_not_compare_what_forgets_nothing(recurrent_ppo, monkeypatch):
    monkeypatch.setattr(recurrent_ppo, "in_one_call", lambda lstm, x, state, starts: lstm(x, state))
    agent = recurrent_ppo.Agent(8)
    first, batch = recurrent_ppo.Player(2, agent, seed=0).rollout(40)
    torch.nn.init.normal_(agent.actor.weight)  # else no score hangs on the state
    with pytest.raises(AssertionError, match="not close"):
        recurrent_ppo.compare(agent, first, batch, rounds=1)


def test_advantages_are_sums_of_what_came_better_than_thought(recurrent_ppo):
    value, after = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([4.0])
    reward, discount, trace = recurrent_ppo.REWARD, recurrent_ppo.DISCOUNT, recurrent_ppo.TRACE
    last = reward + discount * 4 - 3
    middle = reward - 2  # an episode ends there
    first = reward + discount * 2 - 1 + discount * trace * middle
    found = recurrent_ppo.advantages(value, after, torch.tensor([[False], [True], [False]]))
    torch.testing.assert_close(found, torch.tensor([[first], [middle], [last]]))


def test_gradient_per_step_is_the_whole_gradient_through_the_recurrence():
    torch.manual_seed(0)
    net = torch.nn.RNN(2, 3, batch_first=True).double()
    x = torch.randn(4, 5, 2, dtype=torch.float64)
    found = common.gradient_per_step(net, x, lambda h: h.square().sum())

    # h_t as a leaf, the rest of the steps after it
    for t in range(1, 6):
        h = net(x[:, :t])[1].detach().requires_grad_()
        last = net(x[:, t:], h)[1] if t < 5 else h
        (gradient,) = torch.autograd.grad(last.square().sum(), h)
        assert found[t - 1] == pytest.approx(gradient.norm().item(), rel=1e-10)


def test_train_step_clips_the_gradient_and_leaves_out_one_that_is_not_finite():
    model = torch.nn.Linear(1, 1, bias=False)
    start = model.weight.item()
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    assert common.train_step(model, 5 * model.weight.sum(), optimizer, clip=0.25) == 5
    assert model.weight.item() == pytest.approx(start - 0.25, rel=1e-4)
    before = model.weight.item()
    assert np.isinf(common.train_step(model, float("inf") * model.weight.sum(), optimizer, clip=0.25))
    assert model.weight.item() == before
