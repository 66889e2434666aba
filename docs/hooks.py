"""What makes pages that are written for the repository's own viewer right on the site, too (mkdocs.yml).

A link may lead from docs/ to any other file of the repository, and here that becomes a part of the site: a
picture is copied, CONTRIBUTING.md and CHANGELOG.md are pages, README.md is the start page, and a source file
is a page that shows it. Of a link to a folder the text remains. A link that is called as the page is named,
[enable.md](enable.md), is called as the page. A link to what is not there is a warning, at which the build
fails.
"""

import logging
import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
# suffix of a source file -> the language it is shown in; one without is a LICENSE or a Makefile
SHOWN = {".py": "python", ".toml": "toml", "": "text"} | dict.fromkeys((".h", ".cpp", ".cu", ".cuh"), "cpp")

log = logging.getLogger("mkdocs.hooks.rnnfast")  # mkdocs counts the warnings of what is below its name

# Code, in which nothing is a link; or the beginning of a link, [text](target or src="target
LINK = re.compile(
    r"^[ ]*(?P<fence>```+|~~~+).*?^[ ]*(?P=fence)"
    r"|(?<!`)(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
    r"|(?:\[(?P<text>[^\[\]]*)\]\(|\]\(|\b(?:src|href)=\")(?P<target>[^\s)\"]+)",
    re.MULTILINE | re.DOTALL,
)


def place(page):
    """Where a page of the site, enable.md or CONTRIBUTING.md, lies in the repository."""
    return page if page in PAGES else f"docs/{page}"


def page_of(path):
    """What a file of the repository is called among the pages of the site."""
    if path == "README.md":
        return "index.md"
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"sources/{path}.md" if path not in PAGES and Path(path).suffix in SHOWN else path


def links(markdown, file):
    """(match, path, anchor) of every link in the text of `file` to a file of the repository, itself too."""
    for match in LINK.finditer(markdown):
        target = match["target"]
        if target and not re.match(r"/|[a-z]+:", target):
            path, _, anchor = target.partition("#")
            path = posixpath.normpath(posixpath.join(posixpath.dirname(file), path)) if path else file
            yield match, path, anchor


def title(path):
    """The first heading of a page, or its name where it has none."""
    text = (ROOT / path).read_text() if (ROOT / path).exists() else ""
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return found[1] if found else path


def rewritten(markdown, page):
    """The text of a page with its links as the site has them."""
    parts, end = [], 0
    for match, path, anchor in links(markdown, place(page)):
        parts.append(markdown[end : match.start()])
        end = match.end()
        if not path.startswith("docs/") and not (ROOT / path).exists():  # of the others mkdocs says it
            log.warning(f"{place(page)}: a link to {path}, which is not there")
        if (ROOT / path).is_dir() and match["text"]:
            parts.append(match["text"])
            end = markdown.index(")", end) + 1
            continue
        target = posixpath.relpath(page_of(path), posixpath.dirname(page) or ".")
        before = match[0].removesuffix(match["target"])
        if match["text"] in (path, posixpath.basename(path)) and path.endswith(".md"):
            before = f"[{title(path)}]("
        parts.append(before + target + (f"#{anchor}" if anchor else ""))
    return "".join(parts) + markdown[end:]


def on_files(files, config):
    """Adds what the pages link to outside of docs/."""
    from mkdocs.structure.files import File

    def add(path):
        name = page_of(path)
        if files.get_file_from_path(name) or not (ROOT / path).is_file():
            return
        if name.startswith("sources/"):
            text = f"# {path}\n\n````{SHOWN[Path(path).suffix]}\n{(ROOT / path).read_text()}````\n"
            files.append(File.generated(config, name, content=text))
        else:
            files.append(File(path, str(ROOT), config.site_dir, config.use_directory_urls))

    for page in PAGES:
        add(page)
    for file in list(files.documentation_pages()):
        for _, path, _ in links(file.content_string, place(file.src_uri)):
            add(path)
    return files


def on_page_markdown(markdown, page, **_):
    """Called with the text of each page."""
    of_a_source = page.file.src_uri.startswith("sources/")
    return markdown if of_a_source else rewritten(markdown, page.file.src_uri)


def on_page_content(html, page, **_):
    """Of a docstring's paragraphs the first word is as bold as a section's, "Shapes:" as "Examples:"."""
    if not page.file.src_uri.startswith("api/"):
        return html
    return re.sub(r"<p>((?:Args|Raises|Returns|Shapes|Source|What differs)[\w, ]*:)", r"<p><b>\1</b>", html)
