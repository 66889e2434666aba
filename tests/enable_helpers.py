"""What the tests of `rnnfast.enable` share: it is off before and after each, and what became of calls."""

from collections import Counter

import pytest

import rnnfast


@pytest.fixture(autouse=True)
def off():
    """Every test begins and ends with torch's own operators."""
    rnnfast.disable()
    rnnfast.info.reset_counts()
    yield
    rnnfast.disable()


def taken(operator=None):
    counts = rnnfast.info.counts()
    names = counts if operator is None else [operator]
    return sum(counts.get(name, {}).get("taken", 0) for name in names)


def passed():
    found = Counter()
    for reasons in rnnfast.info.counts().values():
        found.update({why: n for why, n in reasons.items() if why != "taken"})
    return dict(found)
