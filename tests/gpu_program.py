"""The program device_check, as tests/gpu_check.py asks it: what it lists, and lines for names, from processes
that end at a limit.
"""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from gpu_machine import (
    PROGRAM,
    NoDevice,
    Red,
    architecture,
    build_device_check,
    how,
    json_lines,
    last_line,
    no_device_in,
    talk,
)

NO_DEVICE = 77  # exit status of whatever finds none
TOOL_FOUND = 9  # and of a sanitizer that has found something
GOOD = ("right", "skipped")
PATIENCE = 10  # seconds for one process


class DeviceCheck:
    """`given`: one that is compiled; `python`: the one with torch; `results`: where lines and logs go."""

    def __init__(self, given, python, results):
        self.given, self.python, self.results = given, python, results
        self.ready = self.why_not = None  # the path of one that starts, or the error that says why none does

    def path(self):
        """As it was given, or compiled here; if neither works, every stage says why."""
        if not (self.ready or self.why_not):
            try:
                self.ready = self.given_or_compiled()
            except (NoDevice, Red) as error:
                self.why_not = error
        if self.why_not:
            raise self.why_not
        return self.ready

    def given_or_compiled(self):
        def starts(program):
            try:
                return talk([program, "list"], PATIENCE)[0] == 0
            except Red:
                return False

        if starts(self.given):
            return self.given
        capability = architecture(self.python)
        if capability is None:
            raise NoDevice("neither nvidia-smi nor torch sees a GPU, and no device_check starts")
        build_device_check(PROGRAM, capability)
        if not starts(PROGRAM):
            raise Red("device_check was compiled, and does not start")
        return PROGRAM

    def names(self, kind):
        code, output, errors = talk([self.path(), "list", kind], PATIENCE)
        if code != 0 or not output.split():
            raise Red(f"device_check lists no {kind}: {last_line(errors)}")
        return output.split()

    def ask_device(self, until):
        """The line of the device; every stage asks for itself, for a device may be lost on the way."""
        code, output, errors = talk([self.path(), "device"], min(PATIENCE, until - time.monotonic()))
        line = next(json_lines(output), {})
        if code == NO_DEVICE:
            raise NoDevice(no_device_in(line.get("said") or errors))
        if code != 0 or not line:
            raise Red(f"device_check device: {how(code)}: {last_line(errors or output)}")
        return line

    def ask(self, names, kind, seconds, before=()):
        """The lines of the names, up to the first that is not right; the others are for a new process.

        Where a name has printed none, one that says how the process ended. `before` is a tool that it runs
        under.
        """
        begin = time.monotonic()
        code, output, errors = talk([*before, self.path(), "run", *names], seconds)
        if errors or before:
            said = output if before else ""
            self.results.append("device_check.log", f"== {kind} {' '.join(names)}\n{said}{errors}\n")
        told = {line.get("name"): line for line in json_lines(output)}
        if code is None:
            otherwise = "hang", f"did not end within {seconds:.0f} s"
        elif code == NO_DEVICE:
            otherwise = "no device", no_device_in(told.get(None, {}).get("said") or errors)
        elif code == TOOL_FOUND:
            otherwise = "wrong", last_line(output)
        else:
            otherwise = "fault", f"{how(code)}: {last_line(errors or output)}"
        lines, before_it = [], sum(line.get("seconds", 0) for line in told.values())
        for name in names:
            if code is None and name not in told and before_it > seconds / 2:
                break  # others took its time, and a new process has all of it
            line = {"seconds": round(time.monotonic() - begin, 2)} | told.get(name, {})
            if "result" not in line or (name == names[-1] and code not in (0, 1)):
                line["result"], line["said"] = otherwise
            lines.append(line | {"name": name, "kind": kind})
            if line["result"] not in GOOD:
                break
        return lines

    def run_all(self, asked, at_once, until, patience):
        """Asks for the lines of each (names, kind, tool), writes and counts them; Red if one is bad."""
        bad = []

        def one(names, kind, before):
            counts = Counter()
            while names:
                left = until - time.monotonic()
                if left <= 0:
                    return counts + Counter({"not begun": len(names)})
                lines = self.ask(names, kind, min(patience, left), before)
                for line in lines:
                    if line["result"] == "hang" and left < patience:
                        line |= {"result": "cut", "said": "the stage ended before it did"}
                    self.results.line(line)
                    counts[line["result"]] += 1
                    if line["result"] not in (*GOOD, "cut"):
                        bad.append(f"{line['name']}: {line['result']}, {line['said']}")
                names = names[len(lines) :]
            return counts

        with ThreadPoolExecutor(at_once) as pool:
            counts = sum(pool.map(one, *zip(*asked, strict=True)), Counter())
        said = ", ".join(f"{count} {result}" for result, count in sorted(counts.items()))
        said = "; ".join([said, *bad[:5], *["..."][: len(bad) > 5]])
        if counts["not begun"] or counts["cut"]:
            raise Red(f"ended at its limit: {said}")
        if bad:
            raise Red(said)
        return said
