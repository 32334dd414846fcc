"""A run directory: what fixes it (panel, split) and every file that it holds.

The writer and the reader of each file stand in one module. docs/training.md lists the files.
"""
