"""What an installed wheel has to do, with torch and without a compiler: python tests/installed.py README.md

The first example of the README runs, a layer equals torch's, a call for a GPU says how to build for one, and
beside another torch the package refuses to be imported, in one sentence. `.ci/run` starts it.
"""

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import rnnfast
from rnnfast import _load


def check_example(page):
    block = re.search(r"^```python\n(.*?)^```$", Path(page).read_text(), re.MULTILINE | re.DOTALL)
    exec(compile(block[1], page, "exec"), {})


def check_layer():
    theirs, ours = torch.nn.LSTM(5, 7), rnnfast.LSTM(5, 7)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(11, 3, 5)
    torch.testing.assert_close(ours(x)[0], theirs(x)[0])


def check_gpu():
    x, key = torch.randn(11, 3, 5), torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
    try:
        torch.ops.rnnfast.deep_transition.default.redispatch(key, x, x[:, 0], [], [], 0.1, True)
    except RuntimeError as error:
        assert "RNNFAST_CUDA=1 pip install" in str(error), error
    else:
        raise AssertionError("a build without CUDA kernels took the call")


def check_another_torch():
    """What it says; its record is changed for a moment, so that the torch that is there is another."""
    record = _load.OURS.with_suffix(".json")
    built = record.read_text()
    record.write_text(json.dumps({"torch": "2.0.1", "cuda": None}))
    try:
        ran = subprocess.run([sys.executable, "-c", "import rnnfast"], capture_output=True, text=True)
    finally:
        record.write_text(built)
    last = ran.stderr.splitlines()[-1]
    assert ran.returncode and f"it was built for torch 2.0, and this is torch {torch.__version__}" in last, (
        ran
    )
    return last


def main():
    assert "/site-packages/" in rnnfast.__file__, rnnfast.__file__
    release = ".".join(torch.__version__.split(".")[:2])
    version = metadata.version("rnnfast")
    assert version == f"{rnnfast.__version__}+torch{release}", version
    assert Path(rnnfast.__file__).with_name("py.typed").exists()
    check_example(sys.argv[1])
    check_layer()
    check_gpu()
    print(rnnfast.info.describe())
    print(f"{rnnfast.__file__}: rnnfast.LSTM equals torch.nn.LSTM; beside another torch it says:")
    print(check_another_torch())


if __name__ == "__main__":
    main()
