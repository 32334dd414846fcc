"""``vst predict``: an H&E slide without counts → rates on its whole tissue.

The slide gets a grid of 2 µm bins of its own: bin (0, 0) lies in the image's top left corner, rows
run down and columns right, so that the homography is a pure scaling and patches, encoder and
decoder are those of a Visium HD slide. docs/predict.md describes the output.
"""
