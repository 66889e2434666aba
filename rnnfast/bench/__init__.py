"""Times rnnfast beside torch.nn on this machine: `python -m rnnfast.bench --help`.

What it measures with serves the suite in benchmarks/ too. Nothing is imported until it is asked for.
"""
