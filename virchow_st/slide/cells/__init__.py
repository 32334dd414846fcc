"""Reads cells and regions from what other programs write, and puts them on a lattice of bins.

`read.read_cells` is the one function that others call: a file and a lattice in, a `CellMap` out.
docs/cells.md describes the formats and the rules.
"""
