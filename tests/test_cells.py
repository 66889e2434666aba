"""What every cell of the list (RNNFAST_CELLS in csrc/types.h) has elsewhere: forgotten, it is named here."""

import helpers
import pytest
from helpers import MODES, ROOT

import rnnfast
from benchmarks.cases import CASES

each_mode = pytest.mark.parametrize("mode", MODES)


def family(mode):
    """The name that the layers of a mode share: rnn_tanh -> RNN."""
    return mode.split("_")[0].upper()


@each_mode
def test_it_has_a_function_a_layer_and_a_cell_module(mode):
    assert hasattr(rnnfast.functional, family(mode).lower())
    assert family(mode).lower() in rnnfast.functional.__all__
    for name in (family(mode), family(mode) + "Cell"):
        assert name in rnnfast.__all__
        assert name in rnnfast.nn.__all__


@each_mode
def test_it_has_a_reference(mode):
    assert mode in rnnfast.reference.CELLS
    assert f"{mode}_cell" in rnnfast.reference.__all__


@each_mode
def test_the_tests_and_the_benchmark_take_it(mode):
    assert mode in helpers.LAYERS
    assert f"{mode}_cell" in helpers.CELLS
    assert family(mode) in {case.cell for case in CASES}


@each_mode
def test_the_design_says_its_formula_and_what_is_saved(mode):
    design = (ROOT / "docs" / "design.md").read_text()
    assert f"\n{family(mode)}" in design
    assert f"\n| {family(mode)} |" in design


def test_the_reference_has_no_cell_that_the_kernels_lack():
    assert rnnfast.reference.CELLS.keys() == MODES.keys()
    assert all(facts["gates"] <= facts["slots"] for facts in MODES.values())
