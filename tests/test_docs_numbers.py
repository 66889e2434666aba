"""What the pages say in prose of the examples is what examples/results holds."""

import json
from pathlib import Path
from statistics import fmean, median

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "examples/results"
VANISHING, PAGE = (
    # a sentence may go on in the next line
    " ".join((ROOT / "docs" / name).read_text().split())
    for name in ("vanishing.md", "results.md")
)


def result(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def power(x):
    """One digit and a power of ten: 7·10⁻⁵."""
    digit, exponent = f"{x:.0e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{digit}·10{raised}" if digit != "1" else f"10{raised}"


def test_power_is_one_digit_and_a_power_of_ten():
    assert [power(6.9e-5), power(1.4e-11), power(25916.9)] == ["7·10⁻⁵", "10⁻¹¹", "3·10⁴"]


@pytest.mark.parametrize("data, name", [("gunpoint", "GunPoint"), ("japanese_vowels", "JapaneseVowels")])
def test_the_table_of_the_classifiers(data, name):
    found = result(f"classify_{data}")["results"]
    assert len(found) == 4
    for model, of in found.items():
        seconds = {way: median(times) for way, times in of["epoch_seconds"].items()}
        ours, theirs, loop = (seconds.get(way) for way in ("rnnfast", "torch.nn", "Python loop"))
        cells = [
            f"{100 * of['accuracy']:.1f} %",
            f"{ours:.3f}",
            f"{theirs:.3f}" if theirs else "–",
            f"{loop:.3f}",
            f"{theirs / ours:.1f}×" if theirs else "–",
            f"{loop / ours:.1f}×",
            f"{of['largest_difference']:.0e}",
        ]
        assert f"| {name} | {model} | {' | '.join(cells)} |" in PAGE


def test_the_other_examples():
    errors = {name: f"{of['mape']:.1f} %" for name, of in result("forecast")["errors"].items()}
    tag, numbers, ppo = result("tag"), result("seq2seq"), result("recurrent_ppo")
    times = ppo["comparison"]["milliseconds"]
    inside = ppo["comparison"]["episodes_that_begin_inside"]
    settings, lengths = ppo["settings"], ppo["lengths"]
    for said in (
        f"LSTM {errors['LSTM']}, of last month's number {errors['last month']}, of the same month last year "
        f"{errors['same month last year']}; but of last month's number with last year's change "
        f"{errors['same change as last year']}",
        f"{100 * tag['accuracy']:.1f} % of the tags are right (of the best threshold on single steps: "
        f"{100 * tag['accuracy_of_the_best_threshold']:.1f} %)",
        f"every word is right for {100 * numbers['exact_match']:.1f} % of {numbers['settings']['test']}",
        f"{settings['steps']} steps of {settings['envs']} environments, in which {inside} episodes begin, "
        f"take {times['rnnfast, one call']:.1f} ms",
        f"and {times['torch.nn, by steps']:.0f} ms by steps",
        f"the pole stays up for {lengths[-1]:.0f}, of 500; in the first 20 rounds for "
        f"{fmean(lengths[:20]):.0f}.",
    ):
        assert said in PAGE
    assert ppo["comparison"]["largest_difference"] < 1e-8 and "the same to 10⁻⁸" in PAGE
    assert settings["updates"] * settings["steps"] * settings["envs"] == pytest.approx(100_000, rel=0.05)


def test_the_gradients_that_vanish():
    found = result("vanishing")
    start, learnt = found["at_the_start"], found["learnt"]
    first = {group: {name: norms[0] for name, norms in of.items()} for group, of in start.items()}
    cells, rest = first["cell"], {**first["weights"], **first["activation"], **first["scale"]}

    def learns(name):
        # the class is one of two: a loss of log 2 says nothing
        return fmean(learnt[name]["losses"][-20:]) < 0.2

    for name, norm in cells.items():
        depth = {"deep-transition RNN": ", depth 3"}.get(name, "")
        says = "yes" if learns(name) else "no"
        assert f"| {name}{depth} | {power(norm)} | {says}" in VANISHING
    for norms in start["cell"].values():
        assert f"{norms[-1]:.2f}" == "0.08"
    for said in (
        f"eigenvalue of 0.9, it leaves {power(rest['one W, eigenvalue 0.9'])} after 40 steps",
        f"with 1.1 it leaves {rest['one W, eigenvalue 1.1']:.1f}",
        f"{power(rest['a new W each step, eigenvalue 0.9'])} and "
        f"{power(rest['a new W each step, eigenvalue 1.1'])}",
        f"tanh little ({rest['tanh']:.2f} remains), leaky relu with slope ½ much "
        f"({power(rest['leaky relu, slope 0.5'])}), relu most ({power(rest['relu'])})",
        f"with tanh 0.5 leaves {power(rest['tanh, 0.5 × rotation'])}, and 1.5 lets it grow to "
        f"{rest['tanh, 1.5 × rotation']:.1f}",
        f"twice a rotation explodes to {power(rest['relu, 2.0 × rotation'])}",
    ):
        assert said in VANISHING
    clipped, free = (found["clipping"][name] for name in ("clipped to 1", "not clipped"))
    for said in (
        f"the loss ends at {power(fmean(clipped['losses'][-20:]))}",
        f"single gradients of {max(free['norms']):.0f} throw",
        f"it ends at {power(fmean(free['losses'][-20:]))}",
    ):
        assert said in VANISHING
