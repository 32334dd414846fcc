"""Results for people and other programs: figures, the report, exported files.

Everything here is made from result files and stores; no model is run.
"""
