"""``vst extract``: a slide and an encoder → a store.

`slide` extracts one slide, `cohort` a list of slides. `pipeline` renders, encodes and writes at the
same time; `registration` measures whether the counts lie on the image, and `fit` uses it to refuse
a wrong image; `provenance` records what a store was made from. docs/extraction.md is the guide.
"""
