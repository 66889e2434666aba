"""Memory that is kept between calls: how much, how long, and how to get it back."""

import os
import subprocess
import sys
import time

import pytest
import torch

import rnnfast
from rnnfast import info

SLACK = 32 << 20  # what may be kept beside the most that was in use at once


@pytest.fixture(autouse=True)
def nothing_kept():
    info.empty_cache()
    yield
    info.empty_cache()


def step(model, T, B=40):
    model(torch.randn(T, B, model.input_size))[0].sum().backward()
    model.zero_grad()


def test_memory_that_is_kept_can_be_given_back():
    model, x = rnnfast.LSTM(8, 256), torch.randn(40, 40, 8)
    info.empty_cache()
    y, _ = model(x)
    before = y.clone()
    assert info.empty_cache() > 0  # the workspace or the saved gates of a call that is over
    assert info.empty_cache() == 0
    assert torch.equal(y, before)  # what is still in use is not touched
    y.sum().backward()
    del y
    assert info.empty_cache() >= before.nbytes


def test_a_steady_loop_keeps_what_one_step_uses():
    model = rnnfast.LSTM(8, 256)
    step(model, 40)
    kept = info.cache()["held"]
    assert kept > 10 << 20
    for _ in range(5):
        step(model, 40)
        assert info.cache()["held"] == kept


def test_calls_of_all_sizes_pile_nothing_up():
    model = rnnfast.LSTM(8, 256)
    step(model, 160)
    largest = info.cache()["held"]
    assert largest > 2 * SLACK
    for T in range(160, 10, -3):
        step(model, T)
        assert info.cache()["held"] <= largest + SLACK


def test_what_was_used_once_goes_while_small_calls_go_on():
    model = rnnfast.LSTM(8, 256)
    step(model, 160)
    assert info.cache()["held"] > 2 * SLACK
    for _ in range(2):
        time.sleep(2.1)
        step(model, 10)
    step(model, 10)
    assert 0 < info.cache()["held"] < 1.5 * SLACK


@pytest.mark.parametrize("mb", [0, 3, 20.5])
def test_no_more_is_kept_than_is_allowed(mb):
    model = rnnfast.LSTM(8, 256)
    step(model, 40)
    info.set_cache_mb(mb)
    assert info.cache()["limit"] == mb * 2**20 >= info.cache()["held"]
    step(model, 40)
    assert info.cache()["limit"] >= info.cache()["held"]
    info.set_cache_mb(None)
    assert info.cache()["limit"] == 1 << 30


def test_what_is_alive_counts_as_used():
    before = info.cache()["used"]
    y = rnnfast.GRU(8, 256)(torch.randn(40, 40, 8))[0].detach()
    assert info.cache()["used"] == before + y.nbytes
    del y
    assert info.cache()["used"] == before


@pytest.mark.parametrize("mb", [-1, float("nan"), 2**30])
def test_what_is_no_amount_is_an_error(mb):
    with pytest.raises(RuntimeError, match=r"set_cache_mb: mb is .*, expected a number of MiB from 0 to"):
        info.set_cache_mb(mb)


def with_variable(value):
    code = "import torch, rnnfast; rnnfast.GRU(8, 256)(torch.ones(40, 40, 8)); print(rnnfast.info.describe())"
    env = {**os.environ, "RNNFAST_CACHE_MB": value}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)


def test_the_variable_says_so_from_the_start():
    done = with_variable("1.5")
    assert "MiB kept for the next call, up to 2 (RNNFAST_CACHE_MB)" in done.stdout, done.stderr
    bad = with_variable("much")
    assert "RNNFAST_CACHE_MB is 'much', expected a number of MiB from 0 to" in bad.stderr
