"""`python -m rnnfast SCRIPT ...` or `-m MODULE ...`: a program as it is, after `rnnfast.enable()`."""

import io
import os
import runpy
import sys
import types
import zipfile

from ._enable import enable

USAGE = """usage: python -m rnnfast SCRIPT [ARGUMENT ...]
       python -m rnnfast -m MODULE [ARGUMENT ...]

Runs a Python program with rnnfast.enable() before its first line: every torch.nn.LSTM, GRU, RNN and cell
in it takes rnnfast's kernels. Processes that it starts do so too (RNNFAST_ENABLE=1)."""


# whether Python has put no folder of the program first (-P, -I, PYTHONSAFEPATH)
_SAFE = getattr(sys.flags, "safe_path", False) or sys.flags.isolated


def main():
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help") or arguments == ["-m"]:
        wrong = not arguments or arguments == ["-m"]
        print(USAGE, file=sys.stderr if wrong else sys.stdout)
        sys.exit(2 if wrong else 0)
    os.environ["RNNFAST_ENABLE"] = "1"
    enable()
    _hide_own_frames()
    # the program's own, for pickle, multiprocessing and what still runs after its last line
    sys.modules["__main__"] = program = types.ModuleType("__main__")
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy._run_module_as_main(arguments[1])
        return
    sys.argv, script = arguments, arguments[0]
    if os.path.isdir(script) or zipfile.is_zipfile(script):
        # its __main__.py, which imports what lies beside it
        sys.path[: 0 if _SAFE else 1] = [os.path.abspath(script)]
        runpy._run_module_as_main("__main__", alter_argv=False)
        return
    try:
        with io.open_code(script) as opened:
            source = opened.read()
    except OSError as error:
        sys.exit(f"{sys.executable}: can't open file {script!r}: [Errno {error.errno}] {error.strerror}")
    if not _SAFE:
        sys.path[0] = os.path.dirname(os.path.realpath(script))
    file = os.path.abspath(script)
    program.__dict__.update(__file__=file, __builtins__=__builtins__, __spec__=None, __cached__=None)
    exec(compile(source, file, "exec"), program.__dict__)


def _hide_own_frames():
    """A traceback begins with the program's own frame, as without us."""
    hook, ours = sys.excepthook, {__file__, runpy.__file__, runpy.__spec__.origin, "<frozen runpy>"}

    def trimmed(kind, error, traceback):
        while traceback is not None and traceback.tb_frame.f_code.co_filename in ours:
            traceback = traceback.tb_next
        hook(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = trimmed


if __name__ == "__main__":
    main()
