"""Benchmarks: what each recurrent layer costs beside its peers and beside this machine's own limit."""
