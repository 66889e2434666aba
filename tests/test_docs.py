"""The pages' Python blocks run as they stand, and print what the pages say they print."""

import doctest
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in ("README.md", "docs/from_scratch.md", "docs/reinforcement.md")
    if page != "README.md" or (ROOT / page).exists()
]
NEEDED = {"docs/reinforcement.md": ("sb3_contrib", "torchrl")}  # beside what the package needs


def python_blocks(page):
    """(line of the page, text) of every ```python block."""
    text = (ROOT / page).read_text()
    for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield text.count("\n", 0, block.start()) + 1, block[1]


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_of_the_page_run_in_order_and_print_what_they_say(page, tmp_path, monkeypatch):
    for name in NEEDED.get(page, ()):
        pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)  # a block may write files
    names, complaints, blocks = {}, [], list(python_blocks(page))
    assert blocks
    for line, text in blocks:
        if ">>>" not in text:
            exec(compile("\n" * line + text, page, "exec"), names)
            continue
        block = doctest.DocTestParser().get_doctest(text, names, page, page, line)
        runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
        runner.run(block, out=complaints.append, clear_globs=False)
        names = block.globs
    assert not complaints, "".join(complaints)
