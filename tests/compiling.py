"""What tests compile: each object and program once for a run of the tests, however many workers it has."""

import fcntl
import hashlib
import json
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

JOBS = int(os.environ.get("MAX_JOBS", len(os.sched_getaffinity(0))))


class Made(NamedTuple):
    file: Path
    code: int  # the command's exit status
    said: str  # its standard error


def folder_of(tmp_path_factory):
    """The folder of what this run compiles: with pytest-xdist, beside those of its workers."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "compiled"


def make(folder, name, command):
    """The file that `command -o FILE` makes: who asks first runs the command, the others wait for it.

    The file lies in a folder of the command's own, for a name says neither the flags nor the compiler.
    """
    command = [str(word) for word in command]
    file = folder / hashlib.sha256("\0".join(command).encode()).hexdigest()[:16] / name
    file.parent.mkdir(parents=True, exist_ok=True)
    ended = file.with_name("ended.json")
    # closed, also by the end of a process, the lock is free
    with file.with_name("lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ended.exists():
            ran = subprocess.run([*command, "-o", str(file)], capture_output=True, text=True)
            ended.write_text(json.dumps([ran.returncode, ran.stderr]))
    return Made(file, *json.loads(ended.read_text()))


def make_all(folder, commands):
    """[Made, ...] of several commands with a name each, some of them at a time."""
    with ThreadPoolExecutor(JOBS) as pool:
        return list(pool.map(lambda one: make(folder, *one), commands))


def compile_all(folder, sources, *command):
    """[Made, ...] of the objects of these sources, named as they are; `command`: a compiler, flags."""
    return make_all(folder, [(f"{source.stem}.o", [*command, "-c", source]) for source in sources])


def wrong(made):
    """What was said of what could not be made; nothing, where all is there."""
    return "".join(f"{one.file.name}, exit status {one.code}:\n{one.said}" for one in made if one.code)


def files(made):
    """All of them; fails where one could not be made."""
    assert not wrong(made), wrong(made)[-6000:]
    return [one.file for one in made]
