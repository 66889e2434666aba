"""Machine code of NVIDIA GPUs as nvdisasm prints it: its instructions with their control codes and source
lines, the way through a loop that takes longest, and how many cycles one warp takes for it."""

import os
import re
import shutil
import subprocess
import sysconfig
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

# Cycles until a result is there, for what does not always take the same: estimates. What always takes as long
# has it in its control code, as the cycles until the next instruction.
LATENCIES = {
    "LDS": 30,
    "LDSM": 30,  # shared memory
    "STS": 20,
    "STAS": 20,  # to another block's
    "LDG": 280,  # global memory, in the second cache
    "STG": 20,
    "CCTL": 20,
    "LDC": 40,
    "ULDC": 12,
    "S2R": 30,
    "S2UR": 30,
    "SHFL": 26,
    "HMMA": 34,
    "MUFU": 24,
    "I2F": 25,
    "F2I": 25,
    "FCHK": 24,
    "F2FP": 6,
    "POPC": 20,
    "SYNCS": 40,  # a mbarrier
    "BAR": 0,  # all others are there
    "other": 20,
}
TAKEN_BRANCH = 8  # and so many more where a branch is taken
READ = 12  # until the operands of such an instruction may be overwritten


class Error(Exception):
    """A sentence for the user."""


@dataclass
class Instruction:
    address: int
    text: str
    code: int = 0  # 128 bits
    frames: tuple = ()  # (file, line), the outermost first
    target: int | None = None  # of a branch

    @property
    def guard(self):
        """The predicate that it depends on, or ""."""
        return self.text.split()[0] if self.text.startswith("@") else ""

    @property
    def operation(self):
        """With what follows its first point."""
        return self.text.removeprefix(self.guard).split()[0].rstrip(";")

    @property
    def name(self):
        return self.operation.split(".")[0]

    def bits(self, first, count):
        return self.code >> first & (1 << count) - 1

    # The control code: cycles until the warp's next instruction; the scoreboard, of six (7: none), that is
    # held until the result is there, and the one until the operands are read; and those that it waits for.
    @property
    def stall(self):
        return self.bits(105, 4)

    @property
    def writes(self):
        return self.bits(110, 3)

    @property
    def reads(self):
        return self.bits(113, 3)

    @property
    def waits(self):
        return [i for i in range(6) if self.bits(116 + i, 1)]

    @property
    def always(self):
        """Whether nothing that stands after it is next."""
        return self.name in ("EXIT", "RET", "BRA") and not self.guard and ", " not in self.text


@dataclass
class Function:
    name: str
    code: list = field(default_factory=list)


_LINE = re.compile(r'\s*//## File "(.*?)", line (\d+)')
_INSTRUCTION = re.compile(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*;\s+/\* 0x([0-9a-f]+) \*/")
_REST = re.compile(r"\s+/\* 0x([0-9a-f]+) \*/\s*$")
_LABEL = re.compile(r"(\.L_\w+):")


def read(text):
    """The functions of what `nvdisasm -c -gi -hex` prints, by name."""
    functions, function, frames, labels, fresh = {}, None, [], {}, True
    for line in text.splitlines():
        if found := re.match(r"\.text\.(\S+):", line):
            function, frames, fresh = Function(found[1]), [], True
            functions[found[1]] = function
        elif function is None:
            continue
        elif found := _LINE.match(line):
            frames = [(found[1], int(found[2])), *([] if fresh else frames)]
            fresh = False
        elif found := _INSTRUCTION.match(line):
            fresh = True
            address = int(found[1], 16)
            function.code.append(Instruction(address, found[2], int(found[3], 16), tuple(frames)))
        elif found := _REST.match(line):
            function.code[-1].code |= int(found[1], 16) << 64
        elif found := _LABEL.match(line):
            labels[found[1]] = function.name, (function.code[-1].address + 16 if function.code else 0)
    for function in functions.values():
        _name_the_kernels_file(function)
        for one in function.code:
            found = re.search(r"`\((\.L_\w+)\)|\s0x([0-9a-f]+)$", one.text) if one.name == "BRA" else None
            if found:
                one.target = labels[found[1]][1] if found[1] else int(found[2], 16)
    return functions


def _name_the_kernels_file(function):
    """The outermost line is the kernel's own, for which the compiler at times names the file of a callee."""
    files = Counter(one.frames[0][0] for one in function.code if len(one.frames) > 1)
    for one in function.code:
        if len(one.frames) > 1:
            one.frames = (files.most_common(1)[0][0], one.frames[0][1]), *one.frames[1:]


def _tool(name, *folders, package):
    for folder in (None, *folders):
        if found := shutil.which(name, path=folder and str(folder)):
            return found
    raise Error(f"there is no {name} on the PATH, which {package} brings")


def compile_cubin(source, target):
    """The cubin of a file of kernels, for Hopper, with line information."""
    nvcc = _tool("nvcc", package="NVIDIA's CUDA toolkit")
    include = Path(__file__).resolve().parents[1] / "csrc"
    options = ["-std=c++20", "-O3", "-arch=sm_90", "-lineinfo", "-cubin", f"-I{include}"]
    ran = subprocess.run([nvcc, *options, "-o", target, source], capture_output=True, text=True)
    if ran.returncode:
        raise Error(f"nvcc does not compile {source}: {ran.stderr.strip()[-400:]}")
    return target


def nvdisasm():
    """Where it is. Raises Error where it is not."""
    site = Path(sysconfig.get_paths()["purelib"])
    beside = Path(os.path.realpath(shutil.which("nvcc") or "nvcc")).parent
    folders = [beside, site / "triton/backends/nvidia/bin", *site.glob("nvidia/*/bin")]
    return _tool("nvdisasm", *folders, package="pip install nvidia-cuda-nvdisasm, or NVIDIA's CUDA toolkit,")


def disassemble(cubin):
    ran = subprocess.run([nvdisasm(), "-c", "-gi", "-hex", cubin], capture_output=True, text=True)
    if ran.returncode:
        raise Error(f"nvdisasm does not read {cubin}: {ran.stderr.strip()[-400:]}")
    return ran.stdout


@cache
def _lines(file):
    try:
        return Path(file).read_text().splitlines()
    except OSError:
        return []


def sources(instruction):
    """The text of the lines that it was made of, the outermost call first."""
    texts = [(_lines(file), line) for file, line in instruction.frames]
    return [lines[line - 1].strip() if line <= len(lines) else "" for lines, line in texts]


def _next(code, places, i):
    """Where control can go from instruction i."""
    one = code[i]
    if one.target is not None and one.target in places:
        yield places[one.target]
    if not one.always and i + 1 < len(code):
        yield i + 1


def blocks(function):
    """Its instructions in runs that control enters at the first and leaves at the last."""
    entered, run = {one.target for one in function.code}, []
    for one in function.code:
        if run and one.address in entered:
            yield run
            run = []
        run.append(one)
        if one.target is not None or one.always:
            yield run
            run = []
    if run:
        yield run


def _body(code, places, head, tails):
    """The instructions of the loop whose branches at `tails` lead back to `head`."""
    before = {}
    for i in range(len(code)):
        for j in _next(code, places, i):
            before.setdefault(j, []).append(i)
    body, left = {head, *tails}, list(tails)
    while left:
        i = left.pop()
        if i == head:
            continue
        for j in before.get(i, ()):
            if j not in body:
                body.add(j)
                left.append(j)
    return body


def longest_loop(function):
    """The loop with the most instructions of those around matrix instructions: its body, head and tails."""
    code = function.code
    places = {one.address: i for i, one in enumerate(code)}
    loops = {}
    for tail, one in enumerate(code):
        if one.target is not None and one.target <= one.address:
            head = places[one.target]
            if any(code[i].name == "HMMA" for i in range(head, tail)):
                loops.setdefault(head, set()).add(tail)
    if not loops:
        raise Error(f"{function.name} has no loop around a matrix instruction")
    bodies = [(_body(code, places, head, tails), head, tails) for head, tails in loops.items()]
    # not a branch back from code that stands behind the end: from there one comes to the function's first
    return max((found for found in bodies if 0 not in found[0]), key=lambda found: len(found[0]))


def longest_way(function, never):
    """The instructions of one round of the function's longest loop, along the branches that take longest. It
    meets no instruction of which never(instruction) is true, and each loop inside once."""
    code = function.code
    places = {one.address: i for i, one in enumerate(code)}
    body, head, tails = longest_loop(function)
    body = {i for i in body if i == head or not never(code[i])}
    # depth first, without recursion: an edge to what is still open leads back
    state, order, ways = {}, [], {}
    stack = [(head, None)]
    while stack:
        i, rest = stack.pop()
        if rest is None:
            if i in state:
                continue
            state[i] = "open"
            ways[i] = []
            rest = iter(sorted(j for j in _next(code, places, i) if j in body))
        for j in rest:
            if state.get(j) == "open":
                continue
            ways[i].append(j)
            if j not in state:
                stack.append((i, rest))
                stack.append((j, None))
                break
        else:
            state[i] = "done"
            order.append(i)
    best = {}
    for i in order:
        one = code[i]
        own = max(1, one.stall) + (LATENCIES.get(one.name, LATENCIES["other"]) / 4 if one.writes < 6 else 0)
        found = [(best[j][0] + own + (TAKEN_BRANCH if j != i + 1 else 0), j) for j in ways[i] if j in best]
        if i in tails:
            found.append((own + TAKEN_BRANCH, -1))  # back to the head
        if found:
            best[i] = max(found)
    if head not in best:
        raise Error(f"{function.name}: every way through its loop meets what is not to be met")
    way, i = [], head
    while i >= 0:
        way.append(code[i])
        i = best[i][1]
    return way


def unrolled(way, rounds):
    """The way with each loop inside gone round(the instructions of one) times."""
    places = {one.address: i for i, one in enumerate(way)}
    out, begins = [], []  # of each instruction of the way, where it stands in the other
    for i, one in enumerate(way):
        begins.append(len(out))
        out.append(one)
        if one.target is not None and one.target <= one.address and i + 1 < len(way):
            first = places.get(one.target)
            if first is not None:
                out += out[begins[first] :] * (rounds(way[first : i + 1]) - 1)
    return out


def walk(way, idle):
    """[(instruction, cycles)] of one warp that is alone: until its next instruction, and what it waits for.
    Where idle(instruction) is true its predicate is false."""
    now, free, out = 0, [0] * 6, []
    for one, then in zip(way, [*way[1:], None], strict=True):
        begin = now
        now = max([now, *(free[i] for i in one.waits)])
        if one.writes < 6 and not idle(one):
            free[one.writes] = max(free[one.writes], now + LATENCIES.get(one.name, LATENCIES["other"]))
        if one.reads < 6 and not idle(one):
            free[one.reads] = max(free[one.reads], now + READ)
        now += max(1, one.stall)
        if one.target is not None and (then is None or then.address == one.target):
            now += TAKEN_BRANCH
        out.append((one, now - begin))
    return out
