"""Scores of a run on its test patient, with ceilings, nulls and baselines (``vst evaluate``).

docs/metrics.md defines every score.
"""
