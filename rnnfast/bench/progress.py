"""How far a measurement is: one line on stderr, where that is a terminal."""

from __future__ import annotations

import sys

try:
    from tqdm import tqdm
except ImportError:  # nothing needs it
    tqdm = None


class Bar:
    """`begin` each of so many parts, and say how far `within` it one is. By tqdm where it is installed."""

    def __init__(self, parts: int):
        self.parts, self.done, self.what = parts, -1, ""
        self.line = tqdm(total=100, leave=False, disable=None, bar_format=FORMAT) if tqdm else None

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_) -> None:
        if self.line is not None:
            self.line.close()
        elif sys.stderr.isatty():
            sys.stderr.write("\r\033[K")

    def begin(self, what: str) -> None:
        self.done, self.what = self.done + 1, what
        self.within(0)

    def within(self, share: float) -> None:
        percent = 100 * (self.done + share) / self.parts
        if self.line is not None:
            self.line.set_description_str(self.what, refresh=False)
            self.line.n = percent
            self.line.refresh()
        elif sys.stderr.isatty():
            full = int(percent * 0.3)
            sys.stderr.write(f"\r\033[K{self.what} [{'#' * full:<30}] {percent:.0f} %")
            sys.stderr.flush()


FORMAT = "{desc} |{bar:30}| {percentage:.0f} %"
