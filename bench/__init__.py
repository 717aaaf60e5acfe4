"""Benchmarks: this library and the alternatives, on the same memory, in one run: docs/benchmarks.md."""
