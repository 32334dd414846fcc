"""The feature store: one slide's tokens, counts and images in an LMDB folder."""
