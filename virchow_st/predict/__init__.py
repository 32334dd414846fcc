"""``vst predict``: a run and an H&E image without counts → rates on its tissue.

`load` opens a run, `image` turns an image into stitched rates, and `slide` streams a whole slide to
disk; docs/predict.md describes the output.

The image gets a lattice of 2 µm bins of its own: bin (0, 0) lies in its top left corner, rows run
down and columns to the right, so that the homography is a pure scaling and patches, encoder and
decoder are those of a Visium HD slide.
"""
