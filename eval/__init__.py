"""Benchmarks, metrics and probes; predict and score are two commands with an append-only log between them."""
