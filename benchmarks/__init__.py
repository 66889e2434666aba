"""Benchmarks: what each recurrent layer costs beside its peers and beside this machine's own limit."""

import os
import sys

# What is called torch.nn is torch's, here and in the processes that are started. Off, not passed on in a
# region, which would cost torch's calls half a microsecond. rnnfast is not imported for that: some of these
# are measured from their beginning.
os.environ.pop("RNNFAST_ENABLE", None)
if "rnnfast" in sys.modules:
    sys.modules["rnnfast"].disable()
