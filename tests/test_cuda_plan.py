"""Which kernel takes a layer on which GPU, and how it lies there."""

import random

import pytest
from cuda_helpers import GATES, PLAN

from rnnfast import _C


def assert_cluster_that_exchanges_sums_holds(arguments, found, gates):
    """Backward: every unit has a block, and every 16 units' sums a warp in each block."""
    units, blocks = found["units"], found["blocks"]
    assert arguments["backward"] and found["team"] == "cluster"
    assert (found["warps"], found["split"]) == (8, 1)
    assert units in (32, 64) and 2 <= blocks <= 16
    assert blocks * units >= arguments["H"]
    length = gates * units * arguments["bytes"] // 32  # instructions of a sum
    assert found["tiles"] % length == found["held"] % length == 0
    assert 8 * (found["tiles"] + found["held"]) // length >= blocks * units // 16
    assert found["tiles"] <= 32
    assert found["bytes"] <= 232448


def assert_plan_holds(arguments, found):
    team, blocks, warps, split, held, batches = (found[name] for name in PLAN)
    H, B, backward = arguments["H"], arguments.get("B", 1), arguments.get("backward", False)
    gates = GATES[arguments["mode"]]
    if found["units"]:
        return assert_cluster_that_exchanges_sums_holds(arguments, found, gates)
    # every unit has its warps, and a sum is as long as h, or backward dL/d(pre-activations)
    units = 16 if backward or gates == 1 else 8
    tile = 32 // arguments["bytes"]
    assert blocks * (warps // split) * units >= H
    registers = -(-gates * found["tiles"] // 2) if backward else found["tiles"]
    assert (registers + held) * tile * split >= H * (gates if backward else 1)
    assert warps % split == 0
    assert found["bytes"] <= 232448
    multiprocessors, teams = arguments.get("multiprocessors", 132), -(-B // (8 * batches))
    if team == "block":
        assert (blocks, held, batches) == (1, 0, 1)
        assert warps <= 16
    else:
        assert warps <= 12
    if team == "cluster":
        assert 2 <= blocks <= min(16, multiprocessors)
    if team == "grid":  # all blocks run at once, and all rows have a team
        assert teams * blocks <= multiprocessors


def of_plan(found):
    """PLAN, and the units of a block where there are any."""
    plan = tuple(found[name] for name in PLAN)
    return (*plan, found["units"]) if found["units"] else plan


@pytest.mark.parametrize(
    "arguments, plan",
    [
        # team, blocks, warps, split, held, batches, and units where a cluster exchanges sums
        (dict(mode="lstm", bytes=2, H=128), ("block", 1, 16, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=128, capability=80), ("block", 1, 16, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=128, backward=True), ("block", 1, 16, 2, 0, 1)),
        (dict(mode="rnn_relu", bytes=2, H=64), ("block", 1, 4, 1, 0, 1)),
        (dict(mode="rnn_relu", bytes=2, H=64, backward=True), ("block", 1, 8, 2, 0, 1)),
        (dict(mode="lstm", bytes=4, H=64, tf32=True), ("block", 1, 8, 1, 0, 1)),
        # what one block would hold; 129 units in two blocks, as many sums as 11 instructions take
        (dict(mode="lstm", bytes=4, H=65, tf32=True), ("cluster", 2, 5, 1, 0, 1)),
        (dict(mode="rnn_tanh", bytes=2, H=129), ("cluster", 2, 5, 1, 0, 1)),
        (dict(mode="rnn_tanh", bytes=2, H=129, capability=80), ("grid", 1, 9, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=129), ("cluster", 2, 9, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=129, capability=80), ("grid", 2, 9, 1, 0, 1)),
        (dict(mode="gru", bytes=2, H=256), ("cluster", 6, 12, 2, 0, 1)),
        (dict(mode="rnn_tanh", bytes=2, H=256), ("cluster", 3, 12, 2, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=64), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=256), ("cluster", 16, 12, 3, 0, 4)),
        (dict(mode="lstm", bytes=2, H=512, backward=True), ("cluster", 16, 8, 1, 0, 1, 32)),
        # more rows than all clusters take at once: some wait
        (dict(mode="lstm", bytes=2, H=384, B=512, backward=True), ("cluster", 4, 12, 2, 26, 1)),
        # a part of W in shared memory
        (dict(mode="lstm", bytes=2, H=640), ("cluster", 14, 12, 2, 9, 1)),
        (dict(mode="lstm", bytes=2, H=640, backward=True), ("cluster", 14, 12, 4, 18, 1)),
        (dict(mode="lstm", bytes=2, H=768), ("cluster", 16, 12, 2, 13, 1)),
        (dict(mode="lstm", bytes=2, H=769), ("grid", 49, 10, 5, 0, 1)),
        (dict(mode="lstm", bytes=4, H=512, tf32=True), ("cluster", 16, 12, 3, 11, 1)),
        (dict(mode="gru", bytes=4, H=512, tf32=True, backward=True), ("cluster", 16, 8, 1, 24, 1, 32)),
        # sums are exchanged where that takes fewer cycles; smaller clusters of more units where rows are many
        (dict(mode="lstm", bytes=2, H=129, backward=True), ("cluster", 5, 8, 1, 0, 1, 32)),
        (dict(mode="lstm", bytes=2, H=256, B=128, backward=True), ("cluster", 8, 8, 1, 0, 1, 32)),
        (dict(mode="lstm", bytes=2, H=256, B=256, backward=True), ("cluster", 4, 8, 1, 0, 1, 64)),
        (dict(mode="rnn_relu", bytes=2, H=1024, backward=True), ("cluster", 16, 8, 1, 0, 1, 64)),
        (dict(mode="rnn_tanh", bytes=4, H=960, tf32=True, backward=True), ("cluster", 15, 8, 1, 32, 1, 64)),
        (dict(mode="lstm", bytes=2, H=513, backward=True), ("cluster", 11, 12, 4, 12, 1)),
        (dict(mode="lstm", bytes=2, H=512, backward=True, capability=80), ("grid", 16, 12, 6, 0, 1)),
        # a slice of a device that has no such clusters
        (dict(mode="lstm", bytes=2, H=512, multiprocessors=16), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, multiprocessors=14), ("cluster", 11, 12, 2, 5, 1)),
        (dict(mode="lstm", bytes=2, H=512, multiprocessors=4), None),
        # so many rows that the large tiles of a launch a step take fewer cycles: blocks that share a sum
        (dict(mode="lstm", bytes=2, H=512, B=384), ("cluster", 16, 12, 3, 0, 6)),
        (dict(mode="lstm", bytes=2, H=512, B=392), 2),
        (dict(mode="lstm", bytes=2, H=512, B=800, backward=True), 4),
        (dict(mode="lstm", bytes=2, H=512, B=1024, directions=2), 1),
        (dict(mode="lstm", bytes=2, H=512, B=1024, capability=80), 1),
        (dict(mode="lstm", bytes=2, H=1024, B=256), 2),
        (dict(mode="gru", bytes=4, H=1024, B=256, tf32=True, backward=True), 8),
        (dict(mode="lstm", bytes=2, H=2048, B=2048), 1),
        (dict(mode="lstm", bytes=4, H=1024, B=256), None),
        # seven clusters of 16 at once, where there would be eight: another team where eight are needed
        (dict(mode="lstm", bytes=2, H=512, B=56, clusters_of_16=7), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=64, clusters_of_16=8), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=64, clusters_of_16=7), ("cluster", 11, 12, 2, 5, 1)),
        (dict(mode="lstm", bytes=2, H=512, B=192, clusters_of_16=7), ("cluster", 11, 12, 2, 5, 3)),
        (
            dict(mode="lstm", bytes=2, H=512, backward=True, B=64, clusters_of_16=7),
            ("cluster", 16, 8, 1, 0, 2, 32),
        ),
        (dict(mode="lstm", bytes=2, H=768, B=64, clusters_of_16=7), ("cluster", 16, 12, 2, 13, 2)),
        (dict(mode="lstm", bytes=2, H=768, clusters_of_16=0), ("grid", 48, 10, 5, 0, 1)),
        # with many rows smaller clusters, of which more run at once, though some of W is in shared memory
        (dict(mode="lstm", bytes=2, H=300, B=128), ("cluster", 7, 12, 2, 0, 1)),
        (dict(mode="lstm", bytes=2, H=300, B=256), ("cluster", 4, 10, 1, 8, 1)),
        (dict(mode="lstm", bytes=2, H=400, B=128, backward=True), ("cluster", 13, 8, 1, 0, 2, 32)),
        (dict(mode="lstm", bytes=2, H=1024), ("grid", 64, 12, 6, 0, 1)),
        (dict(mode="lstm", bytes=2, H=1024, B=64), ("grid", 32, 12, 3, 11, 2)),
        (dict(mode="lstm", bytes=2, H=1024, B=32, backward=True), ("grid", 32, 12, 6, 22, 1)),
        (dict(mode="lstm", bytes=2, H=1024, B=64, backward=True), 8),
        (dict(mode="lstm", bytes=2, H=2048, B=16), ("grid", 128, 12, 6, 11, 2)),
        (dict(mode="lstm", bytes=2, H=2049, B=8), ("grid", 129, 12, 6, 11, 1)),
        (dict(mode="lstm", bytes=2, H=2048, B=17), None),
        (dict(mode="lstm", bytes=2, H=2305), None),
        (dict(mode="lstm", bytes=2, H=1536, B=8, backward=True), ("grid", 96, 12, 12, 10, 1)),
        (dict(mode="lstm", bytes=2, H=2048, B=8, backward=True), None),
        (dict(mode="gru", bytes=2, H=2048, B=8, backward=True), ("grid", 128, 12, 12, 16, 1)),
        (dict(mode="lstm", bytes=4, H=1024, B=8, tf32=True), ("grid", 128, 12, 12, 0, 1)),
        (dict(mode="lstm", bytes=4, H=768, B=16, tf32=True, backward=True), ("grid", 48, 12, 12, 10, 1)),
        (dict(mode="lstm", bytes=4, H=1024, tf32=True, backward=True), None),
        (dict(mode="lstm", bytes=4, H=1537, tf32=True), None),
        (dict(mode="lstm", bytes=4, H=64), None),
        (dict(mode="lstm", bytes=8, H=64, tf32=True), None),
        (dict(mode="gru", bytes=2, H=20, capability=75), None),
        # a projection is folded into W_hh; not with rows that end or begin anew, nor for a few steps
        (dict(mode="lstm", bytes=2, H=64, projected=True), ("block", 1, 8, 1, 0, 1)),
        (dict(mode="lstm", bytes=2, H=64, projected=True, T=16, backward=True), ("block", 1, 8, 2, 0, 1)),
        (dict(mode="lstm", bytes=2, H=64, projected=True, T=15), None),
        (dict(mode="lstm", bytes=4, H=64, projected=True, T=40, tf32=True), ("block", 1, 8, 1, 0, 1)),
        (dict(mode="lstm", bytes=4, H=64, projected=True, T=39, tf32=True), None),
        (dict(mode="lstm", bytes=2, H=64, projected=True, lengths=True), None),
        (dict(mode="lstm", bytes=2, H=64, projected=True, resets=True), None),
        (dict(mode="lstm", bytes=2, H=64, resets=True), ("block", 1, 8, 1, 0, 1)),
        # a call of one step takes a launch for all of it, if it has no more rows than a tile
        (dict(mode="lstm", bytes=2, H=512, T=1, B=32), "single"),
        (dict(mode="lstm", bytes=2, H=512, T=1, B=33), ("cluster", 16, 12, 3, 0, 1)),
        (dict(mode="lstm", bytes=2, H=4000, T=1, B=1), "single"),
        (dict(mode="gru", bytes=4, H=64, T=1, B=32, tf32=True), "single"),
        (dict(mode="gru", bytes=4, H=64, T=1, B=8), "single"),
        (dict(mode="gru", bytes=4, H=64, T=1, B=9), None),
        (dict(mode="gru", bytes=8, H=64, T=1, B=8, tf32=True), "single"),
        (dict(mode="gru", bytes=8, H=64, T=1, B=9, tf32=True), None),
        (dict(mode="lstm", bytes=4, H=64, T=2), None),
        (dict(mode="lstm", bytes=4, H=64, T=1, lengths=True), None),
        (dict(mode="lstm", bytes=4, H=64, T=1, projected=True), None),
        # backward, too, where its products are few enough to be plain multiply-adds
        (dict(mode="lstm", bytes=4, H=64, T=1, backward=True), "single"),
        (dict(mode="lstm", bytes=2, H=512, I=512, T=1, B=64, backward=True), "single"),
        (dict(mode="lstm", bytes=4, H=8, I=8, T=1, B=65, backward=True), None),
        (dict(mode="lstm", bytes=2, H=1024, I=1024, T=1, B=16, backward=True), "single"),
        (dict(mode="lstm", bytes=4, H=1024, I=1024, T=1, B=32, backward=True), None),
        (dict(mode="lstm", bytes=4, H=1024, I=8, T=1, B=32, backward=True), "single"),
        (dict(mode="lstm", bytes=8, H=1024, I=1024, T=1, B=16, backward=True), None),
        (dict(mode="lstm", bytes=4, H=1024, T=1, B=8, multiprocessors=8, backward=True), None),
        (dict(mode="lstm", bytes=4, H=64, T=1, lengths=True, backward=True), None),
        (dict(mode="lstm", bytes=4, H=64, T=1, projected=True, backward=True), None),
        (dict(mode="lstm", bytes=4, H=64, T=2, backward=True), None),
    ],
)
def test_the_plan_of_a_layer_on_a_gpu(arguments, plan):
    found = _C.cuda_plan(**arguments)
    resident = isinstance(plan, tuple)
    assert found["kernel"] == (plan if isinstance(plan, str) else "resident" if resident else "stepwise")
    if not resident:
        assert found["tiles"] == 0
        blocks = plan if isinstance(plan, int) else 0
        assert (found["warps"], found["blocks"]) == ((8, blocks) if blocks else (0, 1))
        assert found["team"] == ("cluster" if blocks > 1 else "block")
        return
    assert of_plan(found) == plan
    assert_plan_holds(arguments, found)


@pytest.mark.parametrize("H, blocks", [(240, 1), (250, 2), (256, 2)])
def test_what_pads_a_row_counts_for_the_tiles_of_a_launch_a_step(H, blocks):
    _C.set_cuda_kernel("stepwise")
    try:
        assert _C.cuda_plan("lstm", 2, H, 1024)["blocks"] == blocks
    finally:
        _C.set_cuda_kernel("")


@pytest.mark.parametrize(
    "arguments, plan, directions",
    [
        (dict(mode="lstm", bytes=2, H=128), ("block", 1, 16, 1, 0, 1), 2),
        (dict(mode="lstm", bytes=4, H=64, tf32=True, backward=True), ("block", 1, 8, 2, 0, 1), 2),
        (dict(mode="lstm", bytes=2, H=512, B=32), ("cluster", 16, 12, 3, 0, 1), 2),
        # eight clusters at once are four for each direction
        (dict(mode="lstm", bytes=2, H=512, B=64), ("cluster", 16, 12, 3, 0, 2), 2),
        (dict(mode="lstm", bytes=2, H=512, B=64, backward=True), ("cluster", 16, 8, 1, 0, 2, 32), 2),
        # seven clusters for 14 teams, which take no longer than twice seven
        (dict(mode="lstm", bytes=2, H=768, B=56, clusters_of_16=7), ("cluster", 16, 12, 2, 13, 1), 2),
        # a device for one cluster: that of the other direction waits
        (dict(mode="lstm", bytes=2, H=512, multiprocessors=16), ("cluster", 16, 12, 3, 0, 1), 2),
        # a grid is most of a device
        (dict(mode="lstm", bytes=2, H=1024), ("grid", 64, 12, 6, 0, 1), 1),
        (dict(mode="lstm", bytes=2, H=256, capability=80), ("grid", 6, 12, 2, 0, 1), 1),
        (dict(mode="lstm", bytes=2, H=2305), None, 1),
    ],
)
def test_both_directions_stand_side_by_side_in_the_plan(arguments, plan, directions):
    found = _C.cuda_plan(**arguments, directions=2)
    assert found["directions"] == directions
    assert _C.cuda_plan(**arguments)["directions"] == 1
    if plan:
        assert of_plan(found) == plan
        assert_plan_holds(arguments, found)


def test_a_plan_has_room_for_any_layer_or_takes_a_launch_a_step():
    rng = random.Random(0)
    for _ in range(3000):
        mode, H, B = rng.choice(list(GATES)), rng.randint(1, 2500), rng.choice([1, 8, 9, 64, 300])
        arguments = dict(
            mode=mode, bytes=rng.choice([2, 4]), H=H, tf32=True, B=B, backward=rng.random() < 0.5
        )
        arguments.update(capability=rng.choice([80, 90]), multiprocessors=rng.randint(1, 140))
        arguments.update(directions=rng.choice([1, 2]), T=rng.choice([0, 1, 2]))
        found = _C.cuda_plan(**arguments)
        if found["tiles"]:
            assert_plan_holds(arguments, found)
