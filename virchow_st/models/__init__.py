"""Neural networks and losses: encoders (image → tokens), decoders (tokens → rates), losses.

No module here reads or writes a result file.
"""
