"""What people and other programs look at: figures, the report, exported files.

Everything here is made from result files and stores; no model is run.
"""
