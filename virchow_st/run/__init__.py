"""The files of a run directory: settings that define it (panel, split), checkpoints and results.

The writer and the reader of each file stand in one module. docs/training.md lists the files.
"""
