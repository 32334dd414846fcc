"""A view of an exported SpatialData folder for Vitessce, the viewer in the browser.

The view is a JSON file: which images are shown, in which colours, and which panels are on the page
(http://vitessce.io, schema 1.0.18). Vitessce 4 opens the folder itself from its URL, Zarr 3 with
shards included, and reads the blocks that the window shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from virchow_st.errors import ConfigError

SCHEMA = "1.0.18"
VIEW = ".vitessce.json"
"""Ending of the view's name, in place of that of the folder."""
NO_GENES = "vitessce: expected an image of genes to show; name some with --genes"
_OPACITY = 0.6  # of the genes' image, so that the H&E below shows
_COLOURS = {"r": [255, 0, 0], "g": [0, 255, 0], "b": [0, 0, 255], "gene": [255, 255, 255]}
_GROUP = "__dummy__"  # Vitessce's value of scopes that only hold others together


def check_view(url: str, out: Path, format_name: str) -> Path:
    """Where the view of ``out`` is written: beside it, under its stem.

    Args:
        url: where ``out`` will be served.
        out: the exported folder.
        format_name: of the export.

    Raises:
        ConfigError: the URL is none that a browser opens, or the format is not SpatialData.

    >>> check_view("http://localhost:8000/P5.zarr", Path("exports/P5.zarr"), "spatialdata").name
    'P5.vitessce.json'
    """
    if not url.startswith(("http://", "https://")):
        raise ConfigError(
            f"vitessce: expected the URL at which {out.name} will be served, for example "
            f"http://localhost:8000/{out.name}; got {url}"
        )
    if format_name != "spatialdata":
        raise ConfigError(f"vitessce: expected --format spatialdata; got {format_name}")
    return out.with_name(out.stem + VIEW)


def view_of(url: str, name: str, images: set[str]) -> dict[str, Any]:
    """Configuration that shows genes over the H&E of an exported folder.

    One gene is shown at a time, predicted rates where there are any and counts elsewhere. The list
    of layers has the genes to choose from, the opacity and the brightness.

    Args:
        url: where the folder is served.
        name: of the slide, for the page's title.
        images: names of the folder's images.

    Raises:
        ConfigError: there is no image of genes.

    >>> view = view_of("http://localhost:8000/P5.zarr", "P5", {"he", "rates_2um"})
    >>> [file["options"]["path"] for file in view["datasets"][0]["files"]]
    ['images/he', 'images/rates_2um']
    """
    genes = next((kind for kind in ("rates_2um", "counts_2um") if kind in images), None)
    if genes is None:
        raise ConfigError(NO_GENES)
    layers = {"he": "he"} if "he" in images else {}
    layers["genes"] = genes
    channels = {"he": ["r", "g", "b"], "genes": ["gene"]}
    shown = [channel for layer in layers for channel in channels[layer]]
    linked = {"metaCoordinationScopes": ["all"], "metaCoordinationScopesBy": ["all"]}
    scopes = {"dataset": "slide", **linked}
    of_layers, of_channels = _of_layers(layers), _of_channels(shown)
    return {
        "version": SCHEMA,
        "name": name,
        "description": f"{genes.partition('_')[0]} of genes over H&E, in µm on the bin lattice",
        "datasets": [
            {
                "uid": "slide",
                "name": name,
                "files": [
                    {
                        "fileType": "image.spatialdata.zarr",
                        "url": url.rstrip("/"),
                        "options": {"path": f"images/{image}"},
                        "coordinationValues": {"fileUid": layer},
                    }
                    for layer, image in layers.items()
                ],
            }
        ],
        "initStrategy": "auto",
        "coordinationSpace": {
            "dataset": {"slide": "slide"},
            "imageLayer": dict.fromkeys(layers, _GROUP),
            **of_layers,
            "imageChannel": dict.fromkeys(shown, _GROUP),
            **of_channels,
            "metaCoordinationScopes": {"all": {"imageLayer": list(layers)}},
            "metaCoordinationScopesBy": {
                "all": {
                    "imageLayer": {
                        **_each(of_layers),
                        "imageChannel": {layer: channels[layer] for layer in layers},
                    },
                    "imageChannel": _each(of_channels),
                }
            },
        },
        "layout": [
            {"component": "spatialBeta", "coordinationScopes": scopes, **_place(0, 8)},
            {"component": "layerControllerBeta", "coordinationScopes": scopes, **_place(8, 4)},
        ],
    }


def _of_layers(layers: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What is set of each image: H&E as RGB, and genes in colours that let it show."""
    he, genes = "he", "genes"
    both: dict[str, dict[str, Any]] = {
        "fileUid": {he: he, genes: genes},
        "photometricInterpretation": {he: "RGB", genes: "BlackIsZero"},
        "spatialLayerVisible": {he: True, genes: True},
        "spatialLayerOpacity": {he: 1.0, genes: _OPACITY},
        "spatialLayerColormap": {he: None, genes: "viridis"},
        # Without a transparent colour the H&E below hardly shows, whatever the opacity.
        "spatialLayerTransparentColor": {he: None, genes: [0, 0, 0]},
    }
    return {key: {layer: of[layer] for layer in layers} for key, of in both.items()}


def _of_channels(channels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """What is set of each channel; without a window, Vitessce takes the gene's own range."""
    index = {"r": 0, "g": 1, "b": 2, "gene": 0}
    return {
        "spatialTargetC": {channel: index[channel] for channel in channels},
        "spatialChannelColor": {channel: _COLOURS[channel] for channel in channels},
        "spatialChannelVisible": dict.fromkeys(channels, True),
        "spatialChannelOpacity": dict.fromkeys(channels, 1.0),
        "spatialChannelWindow": {
            channel: None if channel == "gene" else [0, 255] for channel in channels
        },
    }


def _each(values: dict[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Every layer or channel by the scope of its own name."""
    return {key: {at: at for at in of} for key, of in values.items()}


def _place(left: int, width: int) -> dict[str, int]:
    """A panel over the full height of Vitessce's grid of 12 columns."""
    return {"x": left, "y": 0, "w": width, "h": 12}
