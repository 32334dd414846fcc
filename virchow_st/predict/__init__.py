"""``vst predict``: predicts rates on the tissue of an H&E image without counts.

`load` opens a run, `image` predicts stitched rates for an image, and `slide` streams a whole slide
to disk; docs/predict.md describes the output.

The image gets its own lattice of 2 µm bins: bin (0, 0) lies in the top left corner, rows run down
and columns to the right. The homography is therefore a pure scaling, and patches, encoder and
decoder are used as for a Visium HD slide.
"""
