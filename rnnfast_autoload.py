"""What torch calls at the end of its import: with RNNFAST_ENABLE=1 rnnfast is enabled in every process.

A module of its own, for it is loaded wherever torch is: it imports rnnfast only when that is asked for.
"""

import os
import sys
import warnings


def start():
    # one that is being imported, and has imported torch, looks at RNNFAST_ENABLE when it is done
    if os.environ.get("RNNFAST_ENABLE", "0") not in ("0", "") and "rnnfast" not in sys.modules:
        try:
            import rnnfast  # noqa: F401
        except ImportError as error:  # or torch's own import would end
            warnings.warn(f"RNNFAST_ENABLE is set, but rnnfast does not load: {error}", stacklevel=2)
