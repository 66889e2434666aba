"""The reckoning of a step's cycles (benchmarks.cycles), on a toy whose machine code is in tests/cycles."""

import json
from types import SimpleNamespace

import pytest
from helpers import ROOT

from benchmarks import cycles, sass

TOY = ROOT / "tests" / "cycles"
CASE = cycles.Case("lstm", 128, False)
PLAN = {
    "team": "block",
    "tiles": 8,
    "blocks": 1,
    "warps": 16,
    "split": 1,
    "held": 0,
    "batches": 1,
    "units": 0,
}


@pytest.fixture(scope="module")
def text():
    return (TOY / "toy.sass").read_text().replace("toy.cu", str(TOY / "toy.cu"))


@pytest.fixture(scope="module")
def functions(text):
    return sass.read(text)


@pytest.fixture(scope="module")
def code(functions):
    (function,) = functions.values()
    return {one.address: one for one in function.code}


def test_a_control_code_says_stall_scoreboards_and_waits(code):
    load, add, product = code[0x160], code[0x220], code[0x200]
    assert (load.name, load.stall, load.writes, load.reads, load.waits) == ("LDG", 1, 3, 7, [])
    assert (add.name, add.stall, add.writes, add.waits) == ("FADD", 4, 7, [3])
    assert (product.operation, product.stall) == ("HMMA.1688.F32.TF32", 15)
    store = code[0x400]
    assert (store.name, store.reads, store.writes) == ("STG", 0, 7)


def test_predicates_targets_and_source_lines(code):
    back = code[0x440]
    assert (back.guard, back.name, back.target, back.always) == ("@!P0", "BRA", 0x120, False)
    assert code[0x2A0].always
    texts = sass.sources(code[0x160])
    assert texts[0] == "thread.product(s, c);"
    assert "load_input(int s)" in texts[-1]
    assert cycles.section_of(texts, "rest") == "inputs"
    assert cycles.section_of(["nothing known"], "cells") == "cells"


def test_the_way_is_the_longest_one_without_slow_paths(functions):
    row = cycles.reckon(functions, CASE, PLAN)
    (function,) = functions.values()
    way = sass.longest_way(function, lambda one: one.name == "CALL")
    assert (way[0].address, way[-1].address) == (0x120, 0x440)
    names = [one.name for one in way]
    assert "MUFU" in names and "CALL" not in names
    assert row.instructions == len(way)
    slow = sass.longest_way(function, lambda one: one.name == "MUFU")
    assert "CALL" in [one.name for one in slow]
    with pytest.raises(sass.Error, match="every way through its loop"):
        sass.longest_way(function, lambda one: one.name in ("CALL", "MUFU"))


def test_a_warp_waits_for_scoreboards_and_not_for_what_its_predicate_hides(functions):
    (function,) = functions.values()
    way = sass.longest_way(function, lambda one: one.name == "CALL")

    def total(idle):
        return {one.address: n for one, n in sass.walk(way, idle)}

    waited = total(lambda one: False)
    load, use = (one for one in way if one.address in (0x1A0, 0x1B0))
    assert (load.name, use.waits) == ("LDS", [load.writes])
    assert waited[0x1B0] == sass.LATENCIES["LDS"] - max(1, load.stall) + max(1, use.stall)
    reset = total(lambda one: one.address == 0x340)
    assert waited[0x3E0] > 200 > reset[0x3E0]
    # and reckon() knows by itself that resets are absent
    rows = cycles.reckon(functions, CASE, PLAN)
    assert rows.cycles == sum(reset.values())


def test_loops_inside_are_gone_round_as_often_as_told(functions):
    (function,) = functions.values()
    way = sass.longest_way(function, lambda one: one.name == "CALL")
    inside = [*way, function.code[-1]]  # as if the step were a loop inside another
    assert len(sass.unrolled(inside, lambda body: 3)) == 3 * len(way) + 1


def test_a_loop_inside_a_loop_is_gone_round_each_time():
    way = [SimpleNamespace(address=i, target=target) for i, target in enumerate([None, None, 1, 0, None])]
    unrolled = sass.unrolled(way, lambda body: 3 if len(body) == 2 else 2)  # the inner one three times
    assert [one.address for one in unrolled] == [0, *[1, 2] * 3, 3] * 2 + [4]


def test_sections_and_the_table(functions, capsys, monkeypatch, tmp_path, text):
    row = cycles.reckon(functions, CASE, PLAN)
    sections = {name: n for name, (n, _) in row.sections.items()}
    assert all(sections[name] > 0 for name in ("inputs", "product", "cells", "stores", "send", "rest"))
    assert sections["receive"] == sections["sums"] == 0
    assert row.issue == 4 * row.instructions
    monkeypatch.setattr(cycles, "CASES", [CASE])
    monkeypatch.setattr(cycles, "TILES", [])
    monkeypatch.setattr(cycles, "plan_of", lambda case: PLAN)
    (tmp_path / "toy.sass").write_text(text)
    arguments = ["--sass", str(tmp_path / "toy.sass"), "--json", str(tmp_path / "found.json")]
    assert cycles.main(arguments) == 0
    printed = capsys.readouterr().out
    assert f"{row.instructions} / {row.cycles}" in printed
    assert "HMMA 34" in printed and "LDG 280" in printed and "a taken branch 8" in printed
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["kernels"][0]["cycles"] == row.cycles
    assert found["latencies"]["MUFU"] == 24


def test_a_way_that_lacks_what_every_step_has_is_not_taken_for_one(functions, monkeypatch):
    monkeypatch.setitem(cycles.ESSENTIAL, "block", ("HMMA", "STAS"))
    with pytest.raises(sass.Error, match="lstm 128 forward: the way found has no STAS"):
        cycles.reckon(functions, CASE, PLAN)


def test_what_a_walk_never_calls_is_not_met(functions, monkeypatch):
    (function,) = functions.values()
    assert not cycles._never(function, CASE, PLAN)
    monkeypatch.setattr(cycles, "NEVER", r"\bproduct\(")
    never = cycles._never(function, CASE, PLAN)
    products = {one.address for one in function.code if one.name == "HMMA"}
    assert products <= never
    # and what a test lets it pass by is what comes right after its branch
    monkeypatch.setattr(cycles, "NEVER", r"\bnothing\(")
    monkeypatch.setattr(cycles, "PASSED_BY", "s < p.steps")
    branches = [one for one in function.code if one.name == "BRA" and one.guard]
    tests = [one for one in branches if any("s < p.steps" in text for text in sass.sources(one))]
    after = {one.address + 16 for one in tests}
    assert after
    assert cycles._never(function, CASE, PLAN) == after
    assert cycles._never(function, CASE._replace(saves=True), PLAN) == set()


@pytest.mark.parametrize("missing", ["nvcc", "nvdisasm"])
def test_without_its_tools_it_says_so_in_a_sentence(missing, monkeypatch, capsys):
    monkeypatch.setattr(
        sass.shutil, "which", lambda name, path=None: None if name == missing else "/bin/true"
    )
    assert cycles.main([]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"benchmarks.cycles: there is no {missing} on the PATH, which ")
    assert said.count("\n") == 1
