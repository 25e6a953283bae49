"""Benchmarks: what the program costs beside the loop of the books, Lightning and a bare loop. See README.md here."""
