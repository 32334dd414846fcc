"""``vst train``: stores → the best decoder.

`train` is the loop; it takes batches from `dataset` through `feed`, and a step is in `learner`.
docs/training.md is the guide for users.
"""
