"""Readers for whole-slide images and Space Ranger folders, and the geometry that relates them."""
