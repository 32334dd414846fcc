"""``vst extract``: a slide and an encoder → a store.

`slide` extracts one slide and `cohort` a list of them. `pipeline` runs rendering, encoding and
writing at the same time; `registration` measures whether image and counts fit each other;
`provenance` records what a store was made from. docs/extraction.md is the guide for users.
"""
