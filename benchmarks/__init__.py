"""Benchmarks: the program's time beside that of the books' loop, Lightning and a bare loop. See docs/measuring.md."""
