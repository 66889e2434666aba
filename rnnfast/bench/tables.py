"""Tables for the terminal and for Markdown."""

from __future__ import annotations

Table = tuple[list[str], list[list[str]]]  # column names, and a line of cells for each row


def aligned(table: Table, texts: int) -> str:
    """A table for the terminal; the first `texts` columns stand left, numbers right."""
    columns, lines = table
    widths = [max(map(len, column)) for column in zip(columns, *lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i < texts else cell.rjust(w)
            for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in [columns, *lines]
    )


def pipes(table: Table, texts: int) -> str:
    """The same in Markdown."""
    columns, lines = table
    rule = ["---"] * texts + ["---:"] * (len(columns) - texts)
    return "\n".join("| " + " | ".join(line) + " |" for line in [columns, rule, *lines])
