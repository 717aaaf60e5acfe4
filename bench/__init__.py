"""Benchmarks: this library next to the alternatives, on the same memory, in one run. See docs/benchmarks.md."""
