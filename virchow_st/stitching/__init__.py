"""From an H&E image to stitched rates: patches over its tissue, encoded, decoded and blended.

The image gets a grid of 2 µm bins of its own: bin (0, 0) lies in its top left corner, rows run down
and columns right, so that the homography is a pure scaling and patches, encoder and decoder are
those of a Visium HD slide.
"""
