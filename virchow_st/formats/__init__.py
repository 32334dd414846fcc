"""Files that other programs open: SpatialData, OME-Zarr, AnnData, npz.

``vst predict`` and ``vst export`` write them; docs/predict.md and docs/export.md say what is in
them.
"""
