"""The pages: their Python runs, their links lead somewhere, and the API's have every public name."""

import ast
import doctest
import importlib.util
import inspect
import re
import textwrap
from pathlib import Path

import pytest

import rnnfast

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("rnnfast_docs_hooks", ROOT / "docs" / "hooks.py")
hooks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hooks)

PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.exists()
]
NEEDED = {"docs/reinforcement.md": ("sb3_contrib", "torchrl")}  # beside what the package needs

BLOCK = re.compile(r"^(?P<indent> *)```(?:python|py|pycon)\b.*?\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S)
NOT_RUN = re.compile(r"<!-- not run: \S.* -->\n$")  # the line above a block that cannot run, and why


def python_blocks(page):
    """(line of the page, text, whether it runs) of every block of Python."""
    text = (ROOT / page).read_text()
    for block in BLOCK.finditer(text):
        before = text[: block.start()]
        yield before.count("\n") + 1, textwrap.dedent(block["text"]), not NOT_RUN.search(before)


def run(blocks, page):
    """Runs blocks in order, in one namespace, and returns what they print otherwise than they say."""
    names, complaints = {"__name__": "__main__"}, []
    for line, text, runs in blocks:
        if not runs:
            continue
        if ">>>" not in text:
            exec(compile("\n" * line + text, page, "exec"), names)
            continue
        block = doctest.DocTestParser().get_doctest(text, names, page, page, line)
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS).run(
            block, out=complaints.append, clear_globs=False
        )
        names = block.globs
    return "".join(complaints)


def without_torchs_warnings(test):
    """What torch says of its own age as it exports or scripts is no fault here; ours are UserWarnings."""
    for category in "DeprecationWarning", "FutureWarning":
        test = pytest.mark.filterwarnings(f"ignore::{category}")(test)
    return test


@pytest.fixture
def a_place_to_run_in(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a block may write files
    rnnfast.info.reset_counts()
    yield
    rnnfast.disable()


@without_torchs_warnings
@pytest.mark.parametrize("page", [page for page in PAGES if any(python_blocks(page))])
def test_python_blocks_of_the_page_run_in_order_and_print_what_they_say(page, a_place_to_run_in):
    for name in NEEDED.get(page, ()):
        pytest.importorskip(name)
    assert not run(python_blocks(page), page)


def test_a_block_that_fails_and_one_that_prints_something_else_are_found():
    with pytest.raises(NameError):
        run([(1, "unknown\n", True)], "page")
    assert "Got:" in run([(1, ">>> 1 + 1\n3\n", True)], "page")
    assert not run([(1, "unknown\n", False), (4, ">>> 1 + 1\n2\n", True)], "page")


def test_few_blocks_are_not_run():
    assert sum(not runs for page in PAGES for _, _, runs in python_blocks(page)) <= 5


# Links: hooks.links finds them for the site, so both look at the same.


def anchors(page):
    """What a #link may name on a page: its headings as they are in an address, ids, entries of the API."""
    text = re.sub(r"^( *)(```+|~~~+).*?^ *\2", "", (ROOT / page).read_text(), flags=re.M | re.S)
    found = set(re.findall(r"<\w+[^>]*\s(?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#+ +(.*?)[ #]*$", text, re.MULTILINE):
        heading = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        same = sum(
            slug == other or re.fullmatch(rf"{re.escape(slug)}-\d+", other) is not None for other in found
        )
        found.add(f"{slug}-{same}" if same else slug)
    return found | {name for entry in entries(text) for name in of_entry(entry)}


def dead_links(text, page):
    for match, path, anchor in hooks.links(text, page):
        target = match["target"]
        if not (ROOT / path).exists():
            yield f"{target}: no such file"
        elif anchor and (not path.endswith(".md") or anchor not in anchors(path)):
            yield f"{target}: no such heading"


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_every_link_of_the_page_leads_somewhere(page):
    assert list(dead_links((ROOT / page).read_text(), page)) == []


@pytest.mark.parametrize(
    "text, found",
    [
        ("[a](enable.md) [b](../CONTRIBUTING.md#add-a-cell) [c](../benchmarks/)", 0),
        ("[a](api/info.md#rnnfast.info.isa) [b](api/layers.md#rnnfast.LSTM)", 0),
        ("[a](nowhere.md)", 1),
        ("![a](../benchmarks/results/nothing.png)", 1),
        ("[a](enable.md#nowhere)", 1),
        ("[a](#nowhere)", 1),
        ('<img src="nothing.png">', 1),
        ("[`code` and [brackets]](nowhere.md)", 1),
        ("[![a](nothing.png)](nowhere.md)", 2),
        ("[a](api/info.md#rnnfast.info.nothing)", 1),
        ("`[a](nowhere.md)` [b](https://example.org/nowhere.md)\n\n```\n[c](nowhere.md)\n```\n", 0),
    ],
)
def test_a_dead_link_is_found(text, found):
    assert len(list(dead_links(text, "docs/page.md"))) == found


def test_links_out_of_docs_are_the_sites_own_and_what_is_not_there_is_said(caplog):
    def on_site(text, page="page.md"):
        return hooks.rewritten(text, page)

    assert on_site("[a](enable.md#on-and-off) `[b](../x.md)`") == "[a](enable.md#on-and-off) `[b](../x.md)`"
    assert on_site("![a](../benchmarks/results/bench.png)") == "![a](benchmarks/results/bench.png)"
    assert on_site("[a](../CONTRIBUTING.md#test)") == "[a](CONTRIBUTING.md#test)"
    assert on_site("[a](docs/enable.md)", "CONTRIBUTING.md") == "[a](enable.md)"
    assert on_site("[a](../../README.md)", "api/page.md") == "[a](../index.md)"
    assert on_site("[a](../examples/tag.py) b") == "[a](sources/examples/tag.py.md) b"
    assert on_site("[a](../examples/) b") == "a b"
    assert on_site("[design.md](design.md) b") == f"[{hooks.title('docs/design.md')}](design.md) b"
    assert hooks.title("docs/design.md") in (ROOT / "docs" / "design.md").read_text().splitlines()[0]
    assert not caplog.records
    on_site("[a](../nowhere.py)")
    assert [record.message for record in caplog.records] == [
        "docs/page.md: a link to nowhere.py, which is not there"
    ]


def unlike_on_the_site(text):
    """Lines that the repository's viewer takes for a list or a table, and the site's Markdown does not."""
    text = re.sub(r"^( *)(```+|~~~+).*?^ *\2", "", text, flags=re.M | re.S)
    for block in re.split(r"\n\s*\n", re.sub(r"<!--.*?-->", "\n", text, flags=re.S)):
        lines = block.strip("\n").splitlines()
        marks = [re.match(r"( *)(?:[-*+]|\d+[.)]) +\S", line) for line in lines]
        for k, (line, mark) in enumerate(zip(lines, marks, strict=True)):
            if mark and (len(mark[1]) in (1, 2, 3) or (k and not marks[0] and not mark[1])):
                yield line
            if k > 1 and re.fullmatch(r"\s*\|?(\s*:?-+:?\s*\|)+(\s*:?-+:?\s*)?", line):
                yield line


@pytest.mark.parametrize("page", [*PAGES, "CHANGELOG.md"])
def test_lists_and_tables_of_the_page_begin_after_an_empty_line_and_are_indented_by_four(page):
    assert list(unlike_on_the_site((ROOT / page).read_text())) == []


@pytest.mark.parametrize(
    "text", ["text\n- item\n", "- item\n  - nested\n", "text\n| a | b |\n| --- | --- |\n| 1 | 2 |\n"]
)
def test_a_list_or_table_that_the_site_would_not_see_is_found(text):
    assert list(unlike_on_the_site(text))


# The API pages


def entries(text):
    """What an API page asks mkdocstrings for."""
    return re.findall(r"^::: ([\w.]+)$", text, re.MULTILINE)


def public_names(module):
    if module == "rnnfast.torchrl":  # imported only where TorchRL is
        tree = ast.parse((ROOT / "rnnfast" / "torchrl.py").read_text())
        named = [node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))]
        return [name for name in named if not name.startswith("_")]
    return list(getattr(importlib.import_module(module), "__all__", ()))


def of_entry(entry):
    """The names that an entry puts on a page."""
    entry = re.sub(r"\.nn\.(\w+)\.\1$", r".\1", entry)  # rnnfast.nn.convert is a module, too
    is_module = (ROOT / (entry.replace(".", "/") + ".py")).exists()
    return [entry, *(f"{entry}.{name}" for name in public_names(entry))] if is_module else [entry]


MODULES = [f"rnnfast.{name}" for name in ("functional", "info", "reference", "testing", "torchrl")]
PUBLIC = {
    *(f"rnnfast.{name}" for name in rnnfast.__all__ if f"rnnfast.{name}" not in MODULES),
    *(f"{module}.{name}" for module in MODULES for name in public_names(module)),
    "rnnfast.bench.__main__.main",
}


def test_every_public_name_has_an_entry_of_the_api():
    text = "\n".join((ROOT / page).read_text() for page in PAGES if page.startswith("docs/api/"))
    there = {name for entry in entries(text) for name in of_entry(entry)}
    assert set(rnnfast.nn.__all__) <= set(rnnfast.__all__)
    assert PUBLIC - there == set()
    for entry in entries(text):  # mkdocstrings takes rnnfast.convert for the module rnnfast.nn.convert
        assert not (ROOT / "rnnfast" / "nn" / f"{entry.removeprefix('rnnfast.')}.py").exists(), entry
    assert {name for name in there if name not in MODULES} - PUBLIC == set()


def test_every_command_is_on_the_page_of_commands():
    page = (ROOT / "docs" / "api" / "commands.md").read_text()
    scripts = re.search(
        r"^\[project.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.M | re.S
    )
    for command in re.findall(r"^([\w-]+) = ", scripts[1], re.MULTILINE):
        assert f"`{command}`" in page
    for module in "rnnfast", "rnnfast.info", "rnnfast.bench":
        assert f"`python -m {module}" in page


def test_every_page_is_in_the_navigation_of_the_site():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2].partition("\n\n")[0]
    listed = re.findall(r"[ :]([\w/]+\.md)$", nav, re.MULTILINE)
    pages = [page.removeprefix("docs/") for page in PAGES if page != "README.md"]
    assert sorted(listed) == sorted([*pages, "CHANGELOG.md"])


CALLABLES = {}
for _name in sorted(PUBLIC):
    _module, _, _short = _name.rpartition(".")
    if _module != "rnnfast.torchrl":
        _value = getattr(importlib.import_module(_module), _short)
        if callable(_value):
            CALLABLES[_name] = _value
WITH_A_FORMULA = [
    name
    for name, value in CALLABLES.items()
    if name.startswith("rnnfast.functional.") or (inspect.isclass(value) and name.count(".") == 1)
]


@pytest.mark.parametrize("name", CALLABLES)
def test_a_docstring_says_what_its_function_does_and_raises(name):
    value = CALLABLES[name]
    said = inspect.getdoc(value) if value.__doc__ else ""
    assert re.match(r"\S.*[.:;]", said), said
    if not inspect.isclass(value):
        raised = set(re.findall(r"\braise (\w+)\(", inspect.getsource(value)))
        said_of_all = said + (rnnfast.functional.lstm.__doc__ if "as `lstm`" in said else "")
        assert [error for error in raised if error not in said_of_all] == []


@pytest.mark.parametrize("name", WITH_A_FORMULA)
def test_a_layers_docstring_has_formula_shapes_errors_and_source(name):
    said = inspect.getdoc(CALLABLES[name])
    assert re.search(r"^    .*h' = ", said, re.MULTILINE), "no formula in a block"
    for part in r"^Raises:|Raises: ", r"^Source: .* \d{4}", r"\[B, |as `lstm`":
        assert re.search(part, said, re.MULTILINE), part


@without_torchs_warnings
@pytest.mark.parametrize("name", [name for name in CALLABLES if ">>>" in (CALLABLES[name].__doc__ or "")])
def test_the_examples_of_a_docstring_run(name, a_place_to_run_in):
    assert not run([(0, inspect.getdoc(CALLABLES[name]), True)], name)
