"""Benchmarks: programs that measure, outside the test suite. `python -m bench --help` lists them."""
