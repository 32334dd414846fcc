"""A rate field on disk: factors and loadings, or genes, in a Zarr folder that SpatialData opens.

`write` writes a field block by block, `read` opens one by window and by gene. `ngff`, `bins` and
`he_image` write images and labels for every Zarr folder of the package. docs/field-format.md has
the layout.
"""
