"""Benchmarks: rnn_ext beside its peers, in one process, taking turns. ``python -m benchmarks --help``."""
