"""Training of a decoder on stores, ``vst train``.

`train` has the training loop, `learner` the optimiser step, `dataset` and `feed` the batches.
docs/training.md is the guide for users.
"""
