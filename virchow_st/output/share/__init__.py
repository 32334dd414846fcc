"""Shares a run as a folder or on the Hugging Face Hub, and gets it back.

`write` makes the folder: `nameless` takes names and paths out, `terms` decides whether the
encoder's licence allows it, `card` writes README.md, `listing` lists the files with their hashes.
`hub` uploads and downloads it. Everything is safetensors, JSON or text; nothing is pickled.
"""

from __future__ import annotations

from virchow_st.output.share.hub import fetch_run, push_run
from virchow_st.output.share.write import save_run

__all__ = ["fetch_run", "push_run", "save_run"]
