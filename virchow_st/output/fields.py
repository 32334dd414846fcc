"""The predicted factors of a run's test slides, as ``vst evaluate`` writes them."""

from __future__ import annotations

from pathlib import Path

from virchow_st.errors import ConfigError
from virchow_st.field.read import Field, open_field
from virchow_st.run.all_genes import FIELDS
from virchow_st.run.maps import SlideResult


def slide_field(run: Path, slide: SlideResult) -> Field:
    """Open the field of a test slide of a run with factors.

    Raises:
        ConfigError: there is none, as an older version evaluated the run.
        FieldError: it is damaged.
    """
    path = run / FIELDS / f"{slide.file_name}.zarr"
    if not path.is_dir():
        raise ConfigError(f"{path}: not found; run `vst evaluate {run}` again")
    return open_field(path)
