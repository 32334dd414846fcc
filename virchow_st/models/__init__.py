"""Neural networks and losses: encoders (image → tokens), decoders (tokens → rates), losses.

Nothing here reads or writes a result file.
"""
