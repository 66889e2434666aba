"""tests/native/device_check, the program that tests the kernels on a borrowed GPU, with this host as the GPU:
it finds every kernel right here, and what is wrong where something is."""

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import device_check
import pytest

from rnnfast import _C

# of deep transitions three types in two kinds of teams
COUNTS = {"primitive": 12, "case": 54 * len(_C.cells()) + 24, "determinism": 37, "micro": 68, "time": 22}
FORWARD = "case-lstm-bf16-block-packed-forward-h100"
ONE_OF_EACH_KIND = [
    "primitive-packets",
    FORWARD,
    "case-gru-tf32-cluster-dense-backward-h65",
    "case-deep-bf16-cluster-backward-h512",
    "case-deep-tf32-block-forward-h64",
    "determinism-gru-tf32-block-packed-h33",
    "micro-send-v4-c2-2k",
    "time-lstm-bf16-b16-h64",
]


@pytest.fixture(scope="session")
def program(programs):
    return device_check.build_emulated(programs)


@pytest.fixture(scope="session")
def results(program):
    """What each check says: name -> its line."""
    _, names, _ = device_check.run(program, "list")
    halves = [names[i::2] for i in range(2)]
    with ThreadPoolExecutor(2) as pool:
        ran = list(pool.map(lambda half: device_check.run(program, "run", *half, timeout=900), halves))
    for half, (code, lines, errors) in zip(halves, ran, strict=True):
        assert code == 0, (errors, [line for line in lines if '"result":"right"' not in line], lines[-1:])
        assert len(lines) == len(half)
    lines = [json.loads(line) for _, output, _ in ran for line in output]
    return {line["name"]: line for line in lines}


def test_every_check_is_right_on_the_emulated_device(results):
    assert len(results) == sum(COUNTS.values())
    assert {line["result"] for line in results.values()} == {"right"}
    assert {line["said"] for line in results.values()} == {""}


def test_the_cases_are_all_cells_types_teams_forms_and_directions(program):
    for kind, count in COUNTS.items():
        code, names, _ = device_check.run(program, "list", kind)
        assert (code, len(names), len(set(names))) == (0, count, count), kind
        assert all(name.startswith(f"{kind}-") for name in names)
    _, names, _ = device_check.run(program, "list", "case")
    product = itertools.product(
        ("lstm", "gru", "rnn_tanh", "rnn_relu"),
        ("bf16", "f16", "tf32"),
        ("block", "cluster", "grid"),
        ("dense", "reverse", "packed"),
        ("forward", "backward"),
    )
    of_layers = {name.rpartition("-h")[0] for name in names if "-deep-" not in name}
    assert of_layers == {"-".join(("case", *words)) for words in product}
    of_deep = itertools.product(("bf16", "f16", "tf32"), ("block", "cluster"), ("forward", "backward"))
    expected = {"-".join(("case-deep", *words)) for words in of_deep}
    assert {name.rpartition("-h")[0] for name in names if "-deep-" in name} == expected


def test_the_cases_run_every_kind_of_plan(results):
    cases = [line for line in results.values() if line["kind"] == "case"]
    for line in cases:
        assert {plan["team"] for plan in line["plans"]} == {line["name"].split("-")[3]}
        assert 0 <= line["error"] <= line["limit"]
    for team in "cluster", "grid":
        plans = [plan for line in cases for plan in line["plans"] if plan["team"] == team]
        for direction in "forward", "backward":
            own = [line for line in cases if f"-{team}-" in line["name"] and direction in line["name"]]
            own = [line for line in own if "-deep-" not in line["name"]]
            plans = [plan for line in own for plan in line["plans"]]
            assert any(plan["held"] > 0 for plan in plans)
            assert any(plan["split"] > 2 for plan in plans)
            assert any(plan["batches"] > 1 for plan in plans)
            assert any(plan["warps"] < 12 for plan in plans)
            assert any(plan["held"] > 0 and plan["batches"] > 1 for plan in plans)
            if (team, direction) == ("cluster", "backward"):  # sums are exchanged, and da
                assert {plan["units"] for plan in plans} == {0, 32, 64}
                sums = [plan for plan in plans if plan["units"]]
                assert any(plan["held"] > 0 and plan["batches"] > 1 for plan in sums)
                assert any(plan["held"] == 0 and plan["batches"] > 1 for plan in sums)
            # and the last run of each case takes several times 8 rows
            assert all(line["plan"]["batches"] > 1 for line in own)


def test_what_is_timed_says_how_long_a_step_took(results):
    for line in results.values():
        assert ("us_a_step" in line) == (line["kind"] in ("micro", "time")), line["name"]
        assert line.get("us_a_step", 1) > 0


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_a_wrong_number_is_found(program, name):
    code, lines, _ = device_check.run(program, "run", name, "primitive-shuffle", faults=f"wrong={name}")
    wrong, right = map(json.loads, lines)
    assert code == 1
    assert (wrong["name"], wrong["result"], right["result"]) == (name, "wrong", "right")
    assert wrong["said"]


def test_a_hang_ends_with_the_time_that_it_is_given(program):
    with pytest.raises(device_check.subprocess.TimeoutExpired):
        device_check.run(program, "run", FORWARD, faults=f"hang={FORWARD}", timeout=5)


def test_a_fault_ends_the_process_and_not_what_was_said_before(program):
    code, lines, errors = device_check.run(
        program, "run", "primitive-shuffle", FORWARD, faults=f"fault={FORWARD}"
    )
    assert code < 0
    assert [json.loads(line)["result"] for line in lines] == ["right"]
    assert "a load of 16 bytes" in errors


NO_DEVICE = {
    "no-driver": "no device: no NVIDIA driver is installed",
    "driver=12020": "no device: the driver knows CUDA 12.2, and this program needs 13.0",
    "no-gpu": "no device: the driver finds no GPU",
    "capability=75": "no device: an emulated device has compute capability 7.5, and the kernels need 8.0",
    "no-image": "no device: an emulated device has compute capability 9.0, for which this program holds no "
    "code",
}


@pytest.mark.parametrize("fault", NO_DEVICE)
def test_a_machine_that_cannot_run_it_says_why(program, fault):
    line = {"kind": "device", "said": NO_DEVICE[fault]}
    for words in ["device"], ["run", "primitive-shuffle"]:
        code, lines, _ = device_check.run(program, *words, faults=fault)
        assert (code, list(map(json.loads, lines))) == (77, [line])
    assert device_check.run(program, "list", faults=fault)[0] == 0


LESS = {
    "": "",
    "mig": "a MIG slice, not a whole GPU",
    "multiprocessors=14": "14 multiprocessors, too few for the largest grids, no clusters of 16 blocks",
    "shared=49152": "48 KB of shared memory, too little for wide layers",
    "capability=80": "no clusters",
    "capability=80,shared=49152": "48 KB of shared memory, too little for wide layers, no clusters",
}


@pytest.mark.parametrize("fault", LESS)
def test_a_device_that_runs_less_says_what_is_less(program, fault):
    code, lines, _ = device_check.run(program, "device", faults=fault)
    device = json.loads(lines[0])
    assert (code, len(lines)) == (0, 1)
    assert device["said"] == (LESS[fault] and f"less than a whole Hopper: {LESS[fault]}")
    assert list(device["clusters"]) == [str(n) for n in range(1, 17)]


@pytest.mark.parametrize(
    "fault, name, said",
    [
        ("capability=80", "primitive-store_async", "no clusters here"),
        ("capability=80", "case-gru-tf32-cluster-dense-backward-h65", "no clusters of"),
        ("shared=4096", "case-lstm-bf16-block-packed-backward-h7", "bytes of shared memory"),
        ("multiprocessors=2", "case-lstm-bf16-grid-packed-forward-h264", "blocks have to run at once"),
        ("multiprocessors=14", "micro-packets-b64-2k", "fewer multiprocessors than blocks"),
        ("shared=4096", "time-lstm-bf16-b16-h512", "no resident kernel"),
    ],
)
def test_a_check_that_the_device_is_too_small_for_is_skipped_and_not_wrong(program, fault, name, said):
    code, lines, _ = device_check.run(program, "run", name, faults=fault)
    line = json.loads(lines[0])
    assert (code, line["result"]) == (0, "skipped")
    assert said in line["said"]


@pytest.mark.parametrize(
    "words, why",
    [
        (["run", "primitive-shuffle", "case-x"], "no check has the name 'case-x'"),
        (["list", "cases"], "no checks are of the kind 'cases'"),
        (["run"], "expected device, list [KIND] or run NAME..."),
        (["devices"], "expected device, list [KIND] or run NAME..."),
        ([], "expected device, list [KIND] or run NAME..."),
    ],
)
def test_a_request_that_is_not_understood_is_refused_in_one_sentence(program, words, why):
    assert device_check.run(program, *words, faults="no-gpu") == (2, [], f"device_check: {why}\n")
