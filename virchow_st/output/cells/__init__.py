"""``vst cells``: expression of cells, from counts, from a run, or from any rate field.

docs/cells.md describes the rules and the output.
"""
