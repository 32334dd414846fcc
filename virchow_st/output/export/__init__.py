"""``vst export``: what a run predicted, or what a store holds, for other programs.

docs/export.md describes the output.
"""
