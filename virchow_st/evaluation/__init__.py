"""``vst evaluate``: scores of a run on its test patient, beside ceiling, nulls and baselines.

docs/metrics.md defines every score.
"""
