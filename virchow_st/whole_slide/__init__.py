"""``vst predict``: an H&E slide without counts → rates on its whole tissue, streamed to disk.

docs/predict.md describes the output.
"""
