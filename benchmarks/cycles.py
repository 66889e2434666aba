"""Static cycles of a step of the resident CUDA kernels, reckoned from their machine code without a GPU:

    python -m benchmarks.cycles [--json FILE] [--cubin FILE ... | --sass FILE ...]

compiles the kernels for Hopper (nvcc), disassembles them (nvdisasm) and follows one warp through a step, that
with part 0 of the sums, along the branches that take longest, as the plan of the shape has them. A section's
instructions are found by the source line of the call they were made of. Not counted is what a GPU adds:
other warps on the same scheduler, lines that miss the second cache, the way between blocks. Of a launch a
step it is a stage of the large tiles ("tiles"), 64 bytes of each row of W and of the batch.
"""

import argparse
import json
import re
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks import sass

CUDA = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
SOURCES = [
    CUDA / f"resident_{name}.cu"
    for name in ("bf16", "tf32", "scatter_bf16", "scatter_tf32", "deep_bf16", "deep_tf32")
] + [CUDA / "stepwise_bf16.cu"]
LARGEST = 16  # blocks of a cluster
SUM_UNITS = 16  # of a cluster that exchanges sums: whose parts an instruction makes
SCHEDULERS = 4  # of a multiprocessor: each begins an instruction of one of its warps a cycle
DEEP = "deep"  # a transition: three layers, of which a step of one is counted
CLASSES = {"lstm": "4Lstm", "gru": "3Gru", "rnn_tanh": "7RnnTanh", "rnn_relu": "7RnnRelu"}
TEAMS = ["block", "cluster", "grid"]
GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1, DEEP: 1}

# A section's calls; the innermost call of an instruction that stands here names its section. What has none
# belongs to that of the instruction before it.
SECTIONS = {
    "receive": r"exchange\.receive\(|\bmy\.copy\(|\bwait_for_copies",
    "product": r"\bproduct\(|\bcarry\(|\bmy\.multiply\(",
    "inputs": r"load_(input|next|saved)\(|begin_sum\(|walk\.go\(",
    "sums": r"\badd_parts\(|\bparts\.|\bgather\(|\bbegin_with\(",
    "cells": r"\bcells\(|Cell::|\bdoing\(|\btake_part\(|\bactivate\(|\bpass_back\(",
    "stores": r"\bstore\(",
    "send": r"(exchange|thread)\.send\(|\bsend\(s, tile, ",
    "rest": r"^for \(int (s|q|tile)\b|exchange\.finish",
}
# What a plain walk (sequences of equal length, no resets, not at its ends, nobody lost) never reads or writes
ABSENT = re.compile(r"\b(offsets|sizes|lengths|resets|anew|patience|failed|dcs|cs|dhn|dcn|h0|c0)\b")
# and the functions that it never calls
NEVER = r"\bwait_longer\(|\bleave\(tile, "
# a test that lets it pass by what is for the last step, and for backward
PASSED_BY = "if (more_than_y(last))"
# What every step has, by the kind of team: a way without it is not a step's.
ESSENTIAL = {
    "block": ("HMMA", "LDG", "STG", "STS", "BAR"),
    "cluster": ("HMMA", "LDG", "STG", "SHFL", "STAS", "SYNCS.PHASECHK", "BAR"),
    "grid": ("HMMA", "LDG.E.128.STRONG.GPU", "STG.E.64.STRONG.GPU", "STG", "BAR"),
    "scatter": ("HMMA", "LDG", "STG", "STAS", "SYNCS.PHASECHK", "BAR"),  # a cluster that exchanges sums
}
# looked at again, for what was late
LATE = r"turn % kTurns|pause\(turn\)"
EFFECTS = ("LDG", "STG", "LDS", "STS", "STAS", "SYNCS", "BAR", "SHFL", "HMMA", "MUFU")
MEMORY = ("LD", "ST", "LDG", "STG", "LDS", "STS", "CS2R")


class Case(NamedTuple):
    cell: str
    hidden: int
    backward: bool
    saves: bool = False  # forward: what backward needs
    tf32: bool = False  # floats; else bfloat16

    def __str__(self):
        way_there = "backward" if self.backward else "training" if self.saves else "forward"
        return f"{self.cell} {self.hidden} {way_there}" + " tf32" * self.tf32

    @property
    def word(self):
        """Numbers of 4 bytes."""
        return 1 if self.tf32 else 2

    @property
    def wholes(self):
        """Warps of those that share a sum which have all of it in the end."""
        return 2 if self.backward and self.cell != DEEP else 1


CASES = [
    *(Case("lstm", hidden, False) for hidden in (128, 256, 512, 1024)),
    Case("lstm", 512, False, True),
    *(Case(cell, 512, False) for cell in ("gru", "rnn_tanh")),
    *(Case("lstm", hidden, True) for hidden in (128, 256, 512, 1024)),
    *(Case(cell, 512, True) for cell in ("gru", "rnn_tanh")),
    *(Case("lstm", hidden, backward, tf32=True) for backward in (False, True) for hidden in (64, 256, 768)),
    Case("lstm", 512, True, tf32=True),
    *(Case(DEEP, hidden, backward, not backward) for backward in (False, True) for hidden in (128, 256, 512)),
    *(Case(DEEP, 256, backward, not backward, tf32=True) for backward in (False, True)),
]
# the tiles of a step of many rows
TASKS = {"forward": "ForwardTask", "backward": "CarryTask"}
TILES = [("lstm", "forward"), ("gru", "forward"), ("rnn_tanh", "forward"), ("lstm", "backward")]


class Reckoned(NamedTuple):
    case: str
    plan: dict
    sections: dict  # name: (instructions, cycles)

    @property
    def instructions(self):
        return sum(n for n, _ in self.sections.values())

    @property
    def cycles(self):
        """Of the warp alone; but its scheduler must begin the instructions of all its warps."""
        return sum(n for _, n in self.sections.values())

    @property
    def issue(self):
        """Cycles that a scheduler takes to begin the instructions of its warps. None for several blocks,
        where only some warps do cells."""
        if self.plan["team"] != "block":
            return None
        return self.instructions * -(-self.plan["warps"] // SCHEDULERS)


def section_of(sources, before):
    for text in reversed(sources):
        for name, calls in SECTIONS.items():
            if re.search(calls, text):
                return name
    return before


def _within(one, calls):
    """Whether it stands in what is called on such a line: not on the line itself, but for its callee's."""
    return any(re.search(calls, text) for text in sass.sources(one)[:-1])


def _held(one):
    """Whether it is for W in shared memory."""
    return _within(one, r"\bmultiply_held\(")


def _sums(function, case, plan):
    """{address of a load of another warp's part of a sum: how often it is met}. The compiler unrolls the loop
    over the others, as one over several at a time and one after it for each fewer."""
    if plan["units"] or (plan["team"] == "block" and case.cell != DEEP):
        return {}
    at_once = 1 if case.wholes == 2 or GATES[case.cell] == 1 else 2
    others = plan["split"] if case.wholes == 2 else (plan["split"] - 1) * at_once
    runs = {}
    for block in sass.blocks(function):
        loads = [
            one for one in block if one.name == "LDS" and any("parts.of(" in s for s in sass.sources(one))
        ]
        if loads:
            runs.setdefault(len(loads), []).extend(one.address for one in loads)
    met = {}
    for size in sorted(runs, reverse=True):
        met |= dict.fromkeys(runs[size], others // size)
        others %= size
    return met


def _never(function, case, plan):
    """Addresses of what this walk never meets: blocks most of whose instructions, and all that do more than
    compute, stand in functions that it does not call."""
    calls = NEVER if plan["held"] else rf"{NEVER}|\bmultiply_held\("
    found = set()
    for block in sass.blocks(function):
        work = [one for one in block if one.name not in ("BSSY", "BSYNC", "BRA", "NOP")]
        outside = [one for one in work if not _within(one, calls)]
        # a line given to a few instructions may be that of what was before them
        few = len(work) < 4 and not any(one.name in EFFECTS for one in work)
        if not few and 2 * len(outside) < len(work) and not any(one.name in EFFECTS for one in outside):
            found |= {one.address for one in block}
    if plan["units"]:  # sums of a warp that there are not
        sends = [block for block in sass.blocks(function) if any(one.name == "STAS" for one in block)]
        mine = -(-plan["blocks"] * plan["units"] // (SUM_UNITS * plan["warps"]))
        at_once = [block for block in sends if not any(_held(one) for one in block)]
        found |= {one.address for block in at_once[mine:] for one in block}
    if not case.saves:
        for one, then in pairwise(function.code):
            if one.name == "BRA" and one.guard and any(PASSED_BY in text for text in sass.sources(one)):
                found.add(then.address)
    return found


def _foreign(case, plan, sums, never):
    """Which instructions are those of another team or part, or of a slow way out."""

    def foreign(one):
        if one.address in never:
            return True
        texts = sass.sources(one)
        if plan["team"] == "cluster":
            in_receive = one.name == "BAR" and any("exchange.receive(" in text for text in texts)
            others = in_receive or "STRONG.GPU" in one.operation
        else:
            others = one.name in ("SYNCS", "STAS")
        # where warps share sums, the last one has another part
        expects = plan["split"] > case.wholes and one.name == "SYNCS" and _within(one, r"\bexpect\(")
        held = not plan["held"] and one.name in ("HMMA", "LDS") and _held(one)
        leaves = (
            one.name == "STS"
            and not one.guard
            and case.wholes == 1
            and any("parts.leave(" in text for text in texts)
        )
        # to the largest cluster a warp sends without a loop
        sends = "i < links.blocks" if plan["blocks"] == LARGEST else "i < kMostBlocks"
        others |= one.name == "STAS" and any(sends in text for text in texts)
        late = one.name in ("BRA", "NANOSLEEP") and any(re.search(LATE, text) for text in texts)
        elsewhere = others or expects or held or leaves or late
        return elsewhere or one.operation in ("CALL", "WARPSYNC.COLLECTIVE") or sums.get(one.address) == 0

    return foreign


def _absent():
    """Which instructions read or write what there is not: their predicate is false, or they are not met."""

    def absent(one):
        texts = sass.sources(one) if one.name in MEMORY else ()
        return any(ABSENT.search(text) for text in texts)

    return absent


def _rounds(case, plan, sums):
    """How often the loops inside a step go round."""
    threads = 32 * plan["warps"]
    numbers = case.hidden * (GATES[case.cell] if case.backward else 1)

    def rounds(body):
        products = [one for one in body if one.name == "HMMA"]
        if products and not all(_held(one) for one in products):
            return plan["batches"]
        if not products and any(one.name == "STAS" for one in body):
            return -(-plan["blocks"] // (2 * case.word))  # lanes that share out the blocks
        packets = sum(one.name == "LDG" and "STRONG.GPU" in one.operation for one in body)
        if packets:  # two at once, of each of which a word of 8 rows is sent
            return -(-4 * numbers // (case.word * threads * packets))
        parts = sum(
            one.name == "LDS" and any("gathered" in text for text in sass.sources(one)) for one in body
        )
        if parts:  # of so many blocks at once, for each of a thread's cells
            return -(-plan["blocks"] * plan["units"] // (32 * parts))
        if products:
            pairs = 1 if case.backward or GATES[case.cell] == 1 else 2  # of slots, of each instruction's tile
            return -(-plan["held"] * pairs // len(products))
        return max([1, *(sums.get(one.address, 1) for one in body)])

    return rounds


def reckon(functions, case, plan):
    way_there = "backward" if case.backward else "forward"
    element = "f" if case.tf32 else "NS_8Bfloat16E"
    team = f"LNS0_4TeamE{TEAMS.index(plan['team'])}E"
    if plan["units"]:
        wanted = rf"resident_scatterINS0_\w*?{CLASSES[case.cell]}E{element}Li{plan['units']}ELb1E"
    elif case.cell == DEEP:
        wanted = rf"resident_deep_{way_there}I\w*?{element.removeprefix('NS_')}{team}"
    else:
        wanted = rf"resident_{way_there}INS0_\w*?{CLASSES[case.cell]}E{element}Li{plan['tiles']}E{team}Lb1E"
    found = [function for name, function in functions.items() if re.search(wanted, name)]
    if not found:
        raise sass.Error(f"there is no kernel {wanted} in this machine code")
    sums = _sums(found[0], case, plan)
    absent, foreign = _absent(), _foreign(case, plan, sums, _never(found[0], case, plan))
    way = sass.longest_way(found[0], lambda one: foreign(one) or (absent(one) and not one.guard))
    functions_of_cells = () if case.backward or case.cell == DEEP else ("MUFU",)
    for name in (*ESSENTIAL["scatter" if plan["units"] else plan["team"]], *functions_of_cells):
        if not any(one.operation.startswith(name) for one in way):
            raise sass.Error(f"{case}: the way found has no {name}")
    walked = sass.walk(sass.unrolled(way, _rounds(case, plan, sums)), absent)
    return Reckoned(str(case), plan, _sections(walked))


def _sections(walked):
    sections, section = dict.fromkeys(SECTIONS, (0, 0)), "rest"
    for one, cycles in walked:
        section = section_of(sass.sources(one), section)
        n, sum_of = sections[section]
        sections[section] = n + 1, sum_of + cycles
    return sections


def reckon_tiles(functions, cell, task):
    """A stage of the large tiles of a step of many rows, in bfloat16."""
    wanted = rf"run_block_tilesINS0_\d+{TASKS[task]}INS0_\w*?{CLASSES[cell]}E"
    found = [function for name, function in functions.items() if re.search(wanted, name)]
    if not found:
        raise sass.Error(f"there is no kernel {wanted} in this machine code")
    walked = sass.walk(sass.longest_way(found[0], lambda _: False), lambda _: False)
    if missing := {"HMMA", "LDSM", "LDGSTS", "BAR"} - {one.name for one, _ in walked}:
        raise sass.Error(f"{cell} tiles {task}: the loop found has no {', '.join(missing)}")
    return Reckoned(f"{cell} tiles {task}", {"team": "block", "blocks": 1, "warps": 8}, _sections(walked))


def plan_of(case):
    from rnnfast import _C

    if case.cell == DEEP:
        return _C.cuda_deep_plan(4 // case.word, case.hidden, 3, tf32=case.tf32)
    sizes = case.cell, 4 // case.word, case.hidden, 1
    return _C.cuda_plan(*sizes, tf32=case.tf32, capability=90, backward=case.backward)


def table(rows):
    names = list(SECTIONS)
    lines = [
        "instructions / cycles of a step of one warp; issue: for a scheduler to begin those of its warps"
    ]
    lines.append(
        f"{'kernel':23s}{'team':>15s}"
        + "".join(f"{name:>14s}" for name in names)
        + f"{'total':>14s}{'issue':>7s}"
    )
    for row in rows:
        team = f"{row.plan['team']} of {row.plan['blocks']}"
        cells = [f"{n} / {cycles}" for n, cycles in row.sections.values()]
        total = f"{row.instructions} / {row.cycles}"
        lines.append(
            f"{row.case:23s}{team:>15s}"
            + "".join(f"{c:>14s}" for c in cells)
            + f"{total:>14s}{row.issue or '-':>7}"
        )
    latencies = ", ".join(f"{name} {n}" for name, n in sass.LATENCIES.items())
    lines.append(f"latencies: {latencies}; a taken branch {sass.TAKEN_BRANCH}")
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table there, too")
    given = parser.add_mutually_exclusive_group()
    given.add_argument(
        "--cubin", type=Path, nargs="+", metavar="FILE", help="the compiled kernels (nvcc -cubin -lineinfo)"
    )
    given.add_argument(
        "--sass", type=Path, nargs="+", metavar="FILE", help="the same, disassembled (nvdisasm -c -gi -hex)"
    )
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if options.sass:
                texts = [file.read_text() for file in options.sass]
            else:
                cubins = options.cubin or [
                    sass.compile_cubin(source, Path(folder) / f"{source.stem}.cubin") for source in SOURCES
                ]
                texts = [sass.disassemble(cubin) for cubin in cubins]
        functions = {name: function for text in texts for name, function in sass.read(text).items()}
        rows = [reckon(functions, case, plan_of(case)) for case in CASES]
        rows += [reckon_tiles(functions, *case) for case in TILES]
    except (sass.Error, OSError) as error:
        print(f"benchmarks.cycles: {error}", file=sys.stderr)
        return 2
    print(table(rows))
    if options.json:
        found = [
            {**row._asdict(), "instructions": row.instructions, "cycles": row.cycles, "issue": row.issue}
            for row in rows
        ]
        options.json.write_text(json.dumps({"latencies": sass.LATENCIES, "kernels": found}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
