"""Morphology of a simulated section: the material of every half-micron pixel.

Image and expression are both derived from this map of materials: `virchow_st.simulate.stain` stains
it, and `virchow_st.simulate.programmes` converts it to expression. Expression at 2 µm is therefore
predictable from the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import cv2
import numpy as np

from virchow_st.simulate.fields import (
    along,
    at,
    blobs,
    depth_px,
    fill,
    scatter,
    smooth_noise,
    strands,
    voronoi,
)
from virchow_st.types import Array, BoolArray, Float32Array, Float64Array, UInt8Array

PX_PER_BIN = 4
PX_PER_UM = 2.0
MARGIN_BINS = 24
"""Margin of the canvas around the capture area, bins; a photograph extends beyond that area."""


class Material(IntEnum):
    """Material of a canvas pixel; nuclei are listed after the cell bodies."""

    GLASS = 0
    COLLAGEN = 1
    GLAND_CYTOPLASM = 2
    GLAND_APEX = 3
    GLAND_LUMEN = 4
    GOBLET = 5
    TUMOUR_CYTOPLASM = 6
    MEMBRANE = 7
    FIBROBLAST = 8
    LYMPHOCYTE = 9
    PLASMA_CELL = 10
    MUSCLE = 11
    VESSEL_LUMEN = 12
    RED_CELL = 13
    GLAND_NUCLEUS = 14
    TUMOUR_NUCLEUS = 15
    FIBROBLAST_NUCLEUS = 16
    LYMPHOCYTE_NUCLEUS = 17
    PLASMA_NUCLEUS = 18
    ENDOTHELIAL_NUCLEUS = 19


FIRST_NUCLEUS = Material.GLAND_NUCLEUS

# Shape of a nucleus: mean semi-axes µm, their relative spread, roughness of the outline.
_SHAPES: dict[Material, tuple[float, float, float, float]] = {
    Material.GLAND_NUCLEUS: (4.4, 2.3, 0.10, 0.06),
    Material.TUMOUR_NUCLEUS: (4.7, 3.7, 0.19, 0.12),
    Material.FIBROBLAST_NUCLEUS: (6.2, 1.35, 0.22, 0.12),
    Material.LYMPHOCYTE_NUCLEUS: (2.9, 2.6, 0.09, 0.05),
    Material.PLASMA_NUCLEUS: (2.8, 2.6, 0.08, 0.05),
    Material.ENDOTHELIAL_NUCLEUS: (4.4, 1.2, 0.15, 0.08),
}


@dataclass(frozen=True)
class Tissue:
    """A section on a canvas (side, side), `PX_PER_BIN` px per bin with a margin of `MARGIN_BINS`.

    ``material`` uint8 codes of `Material`; ``tone`` float32, how strongly this cell or nucleus is
    built (about 1; stain and RNA both follow it); ``fibre`` float32 about 0 with sd 1, the collagen
    texture; ``thickness`` float32 about 1, that of the section; ``outline`` bool, True = tissue
    (lumens and vessels included); ``nucleus`` int32, number of the nucleus, 0 = none.
    """

    material: UInt8Array
    tone: Float32Array
    fibre: Float32Array
    thickness: Float32Array
    outline: BoolArray
    nucleus: Array


def grow_tissue(rng: np.random.Generator, bins: int) -> Tissue:
    """Draw a section of ``bins`` x ``bins`` bins: glands, tumour, stroma, vessels, immune cells.

    It takes about 100 bytes per canvas pixel: 0.8 GB for 640 bins.
    """
    return _Section(rng, bins).grown()


class _Section:
    """A section under construction; each method adds one kind of structure."""

    def __init__(self, rng: np.random.Generator, bins: int) -> None:
        side = (bins + 2 * MARGIN_BINS) * PX_PER_BIN
        self.rng, self.bins, self.side = rng, bins, side
        self.material = np.zeros((side, side), np.uint8)
        self.tone = np.ones((side, side), np.float32)
        self.nucleus = np.zeros((side, side), np.int32)
        self.n_nuclei = 0
        self.epithelial_nuclei: list[tuple[Material, Float64Array, Array]] = []

    def grown(self) -> Tissue:
        self.outline = self._outline()
        self.material[self.outline] = Material.COLLAGEN
        self._tumour()
        self._glands()
        self._vessels()
        self._epithelial_cells()
        fibre = self._fibres()
        self._stromal_cells()
        self.material[~self.outline] = Material.GLASS
        thickness = np.exp(0.12 * smooth_noise(self.rng, self.side, 60 * PX_PER_UM))
        self.nucleus[self.material < FIRST_NUCLEUS] = 0  # later cells cover some
        return Tissue(self.material, self.tone, fibre, thickness, self.outline, self.nucleus)

    def _outline(self) -> BoolArray:
        """Outline of the tissue: a rounded, ragged shape slightly inside the capture area."""
        half = self.bins * PX_PER_BIN / 2
        across = np.abs(np.arange(self.side) + 0.5 - self.side / 2) / half
        radius = (across[:, None] ** 4 + across[None, :] ** 4) ** 0.25
        ragged = 0.035 * smooth_noise(self.rng, self.side, self.side / 12)
        ragged += 0.006 * smooth_noise(self.rng, self.side, 8 * PX_PER_UM)
        outline: BoolArray = radius + np.clip(ragged, -0.1, 0.1) < 0.96
        return outline

    def _tumour(self) -> None:
        """Nests of tumour cells, separated by thin septa."""
        rng, side = self.rng, self.side
        field = smooth_noise(rng, side, 42 * PX_PER_UM)
        field += 0.16 * smooth_noise(rng, side, 7 * PX_PER_UM)
        share = rng.uniform(0.17, 0.27)
        nests = field > np.quantile(field[self.outline], 1 - share)
        nests &= np.abs(smooth_noise(rng, side, 22 * PX_PER_UM)) > 0.07
        disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
        nests = cv2.morphologyEx(nests.astype(np.uint8), cv2.MORPH_OPEN, disc).astype(bool)
        nests &= depth_px(self.outline) > 8 * PX_PER_UM
        self.material[nests] = Material.TUMOUR_CYTOPLASM
        centres = scatter(rng, side, 12.0 * PX_PER_UM, jitter=0.17)
        centres = centres[at(depth_px(nests), centres) > 2.5 * PX_PER_UM]
        angles = rng.uniform(0, np.pi, len(centres))
        self.epithelial_nuclei.append((Material.TUMOUR_NUCLEUS, centres, angles))

    def _glands(self) -> None:
        """Rings of columnar cells around a lumen, with goblet cells and basal nuclei."""
        rng, side = self.rng, self.side
        centres = scatter(rng, side, 92 * PX_PER_UM, jitter=0.10)
        where = smooth_noise(rng, side, 60 * PX_PER_UM)
        free = self.outline & (self.material != Material.TUMOUR_CYTOPLASM)
        clear = at(depth_px(free), centres) > 30 * PX_PER_UM
        centres = centres[clear & (at(where, centres) < rng.uniform(0.5, 0.9))]
        n = len(centres)
        long = rng.uniform(33, 50, n) * PX_PER_UM
        semi_axes = np.stack([long, long * rng.uniform(0.6, 0.95, n)], axis=1)
        shapes = blobs(rng, centres, semi_axes, rng.uniform(0, np.pi, n), 0.16, vertices=90)

        mask = np.zeros((side, side), np.uint8)
        for shape in shapes:  # a later gland keeps a strip of stroma between itself and the others
            fill(mask, (shape - shape.mean(0))[None] * 1.09 + shape.mean(0), 0)
            fill(mask, shape[None], 1)
        mask &= free
        depth = depth_px(mask) / PX_PER_UM
        height = 19.0 + 2.0 * smooth_noise(rng, side, 20 * PX_PER_UM)
        self.material[depth > 0] = Material.GLAND_CYTOPLASM
        self.material[depth > height - 2.2] = Material.GLAND_APEX
        self.material[depth > height] = Material.GLAND_LUMEN

        basal, inward = along(shapes, 5.0 * PX_PER_UM, rng)
        angles = np.arctan2(inward[:, 1], inward[:, 0])
        nuclei = basal + inward * rng.normal(6.6, 1.2, (len(basal), 1)) * PX_PER_UM
        lying = at(depth, np.clip(nuclei, 0, side - 1))
        inside = (lying > 4.2) & (lying < 9.5)
        self.epithelial_nuclei.append((Material.GLAND_NUCLEUS, nuclei[inside], angles[inside]))

        goblet = inside & (rng.random(len(basal)) < rng.uniform(0.28, 0.45))
        cups = basal[goblet] + inward[goblet] * rng.normal(13.2, 0.8, (goblet.sum(), 1)) * PX_PER_UM
        size = np.array([4.3, 2.9]) * PX_PER_UM * rng.normal(1.0, 0.1, (len(cups), 1))
        layer = np.zeros((side, side), np.uint8)
        fill(layer, blobs(rng, cups, size, angles[goblet], 0.05), 1)
        in_ring = (depth > 9.0) & (depth <= height)
        self.material[(layer > 0) & in_ring] = Material.GOBLET

    def _epithelial_cells(self) -> None:
        """Cell borders and a tone for each cell, from the nuclei placed so far; then the nuclei."""
        rng = self.rng
        nuclei = np.concatenate([points for _, points, _ in self.epithelial_nuclei])
        if len(nuclei):
            cell = voronoi(self.side, nuclei)
            tones = np.exp(rng.normal(0.0, 0.16, int(cell.max()) + 1)).astype(np.float32)
            bodies = np.isin(
                self.material,
                (Material.GLAND_CYTOPLASM, Material.GLAND_APEX, Material.TUMOUR_CYTOPLASM),
            )
            self.tone[bodies] = tones[cell[bodies]]
            border = np.zeros_like(bodies)
            border[:, 1:] |= cell[:, 1:] != cell[:, :-1]
            border[1:, :] |= cell[1:, :] != cell[:-1, :]
            thick = cv2.dilate(border.astype(np.uint8), np.ones((2, 2), np.uint8)) > 0
            self.material[thick & bodies] = Material.MEMBRANE
        for kind, points, angles in self.epithelial_nuclei:
            self._nuclei(kind, points, angles, np.ones((self.side, self.side), bool))

    def _vessels(self) -> None:
        """Small vessels in the stroma: a muscular wall, a lumen, red cells."""
        rng, side = self.rng, self.side
        room = depth_px(self.material == Material.COLLAGEN) / PX_PER_UM
        centres = scatter(rng, side, 75 * PX_PER_UM)
        centres = centres[at(room, centres) > 17]
        centres = centres[rng.permutation(len(centres))[: max(2, round(side / 180))]]
        n = len(centres)
        radius = np.minimum(rng.uniform(11, 22, n), at(room, centres) - 4) * PX_PER_UM
        semi_axes = np.stack([radius, radius * rng.uniform(0.55, 0.9, n)], axis=1)
        angles = rng.uniform(0, np.pi, n)
        walls = blobs(rng, centres, semi_axes, angles, 0.1, vertices=60)
        lumens = (walls - centres[:, None]) * 0.68 + centres[:, None]
        fill(self.material, walls, int(Material.MUSCLE))
        fill(self.material, lumens, int(Material.VESSEL_LUMEN))
        cells = scatter(rng, side, 6.2 * PX_PER_UM, jitter=0.2)
        inside = depth_px(self.material == Material.VESSEL_LUMEN)
        cells = cells[(at(inside, cells) > 3.0 * PX_PER_UM) & (rng.random(len(cells)) < 0.75)]
        size = np.full((len(cells), 2), 2.9 * PX_PER_UM)
        fill(
            self.material,
            blobs(rng, cells, size, np.zeros(len(cells)), 0.05),
            int(Material.RED_CELL),
        )
        rim, inward = along(lumens, 13 * PX_PER_UM, rng)
        turn = np.arctan2(inward[:, 1], inward[:, 0]) + np.pi / 2
        self.endothelium = (rim - inward * 1.0 * PX_PER_UM, turn)

    def _fibres(self) -> Float32Array:
        """Collagen texture along the level sets of a potential that bends round the glands."""
        rng, side = self.rng, self.side
        stroma = np.isin(self.material, (Material.COLLAGEN, Material.GLASS))
        away = depth_px(stroma) / PX_PER_UM
        turn = rng.uniform(0, np.pi)
        across = np.arange(side, dtype=np.float32) / PX_PER_UM
        drift = across[None, :] * np.cos(turn) + across[:, None] * np.sin(turn)
        drift += 30 * smooth_noise(rng, side, 45 * PX_PER_UM)
        near = np.exp(-away / 14)
        potential = (near * 1.3 * away + (1 - near) * drift).astype(np.float32)
        waved = potential + 1.6 * smooth_noise(rng, side, 9 * PX_PER_UM)
        bundles, threads = (strands(rng, waved, width) for width in (3.2, 0.9))
        breaks = smooth_noise(rng, side, 5 * PX_PER_UM)
        slope_x = cv2.Sobel(potential, cv2.CV_32F, 1, 0, ksize=5)
        slope_y = cv2.Sobel(potential, cv2.CV_32F, 0, 1, ksize=5)
        self.fibre_angle = np.arctan2(slope_y, slope_x) + np.pi / 2
        fibre: Float32Array = (0.7 * bundles + 0.45 * threads + 0.45 * breaks).astype(np.float32)
        return fibre

    def _stromal_cells(self) -> None:
        """Fibroblasts along the fibres, lymphocytes in clusters, plasma cells, endothelium."""
        rng, side = self.rng, self.side
        stroma = np.isin(self.material, (Material.COLLAGEN, Material.MUSCLE))
        room = depth_px(stroma) / PX_PER_UM
        open_stroma = self.material == Material.COLLAGEN

        middles = scatter(rng, side, 60 * PX_PER_UM)
        middles = middles[at(room, middles) > 12]
        middles = middles[rng.permutation(len(middles))[: max(2, round((side / 620) ** 2))]]
        crowd = np.zeros((side, side), np.float32)
        reach = rng.uniform(28, 55, (len(middles), 1)) * PX_PER_UM
        shapes = blobs(rng, middles, np.repeat(reach, 2, 1), np.zeros(len(middles)), 0.35, 40)
        fill(crowd, shapes, 1.0)
        crowd = cv2.GaussianBlur(crowd, (0, 0), 7 * PX_PER_UM)

        points = scatter(rng, side, 11.0 * PX_PER_UM)
        sparse = rng.random(len(points)) < 0.48 * (1 - at(crowd, points))
        points = points[sparse & (at(room, points) > 2.0)]
        angles = at(self.fibre_angle, points) + rng.normal(0, 0.15, len(points))
        self._stromal(Material.FIBROBLAST, points, angles, open_stroma, (1.75, 2.3))
        around = (Material.COLLAGEN, Material.FIBROBLAST, Material.MUSCLE, Material.VESSEL_LUMEN)
        kind = Material.ENDOTHELIAL_NUCLEUS
        self._nuclei(kind, *self.endothelium, np.isin(self.material, around))

        points = scatter(rng, side, 6.6 * PX_PER_UM, jitter=0.17)
        points = points[at(room, points) > 2.6]
        lymphoid = rng.random(len(points)) < 0.95 * at(crowd, points) + 0.025
        plasma = ~lymphoid & (rng.random(len(points)) < rng.uniform(0.05, 0.10))
        angles = rng.uniform(0, 2 * np.pi, len(points))
        for kind, chosen, grown in (
            (Material.PLASMA_CELL, plasma, (1.65, 1.6)),
            (Material.LYMPHOCYTE, lymphoid, (1.2, 1.2)),
        ):
            self._stromal(kind, points[chosen], angles[chosen], open_stroma, grown)

    def _stromal(
        self,
        body: Material,
        points: Float64Array,
        angles: Array,
        within: BoolArray,
        grown: tuple[float, float],
    ) -> None:
        """Cell bodies ``grown`` times as long and wide as their nuclei, then the nuclei."""
        nucleus = {
            Material.FIBROBLAST: Material.FIBROBLAST_NUCLEUS,
            Material.LYMPHOCYTE: Material.LYMPHOCYTE_NUCLEUS,
            Material.PLASMA_CELL: Material.PLASMA_NUCLEUS,
        }[body]
        size = np.array(_SHAPES[nucleus][:2]) * np.array(grown) * PX_PER_UM
        axes = size * self.rng.normal(1.0, 0.08, (len(points), 1))
        centres = points
        if body is Material.PLASMA_CELL:  # the nucleus of a plasma cell lies off centre
            centres = points + 1.5 * PX_PER_UM * np.stack([np.cos(angles), np.sin(angles)], 1)
        layer = np.zeros((self.side, self.side), np.uint8)
        fill(layer, blobs(self.rng, centres, axes, angles, 0.08), 1)
        self.material[(layer > 0) & within] = body
        self._nuclei(nucleus, points, angles, within)

    def _nuclei(
        self, kind: Material, points: Float64Array, angles: Array, within: BoolArray
    ) -> None:
        long, short, spread, roughness = _SHAPES[kind]
        axes = np.array([long, short]) * PX_PER_UM
        axes = axes * np.exp(self.rng.normal(0.0, spread, (len(points), 1)))
        axes = axes * np.exp(self.rng.normal(0.0, 0.06, (len(points), 2)))
        outlines = blobs(self.rng, points, axes, angles, roughness)
        tones = np.exp(self.rng.normal(0.0, 0.14, len(points)))
        layer = np.zeros((self.side, self.side), np.float32)
        fill(layer, outlines, tones)
        drawn = (layer > 0) & within
        self.material[drawn] = kind
        self.tone[drawn] = layer[drawn]
        numbers = np.zeros((self.side, self.side), np.float32)  # exact up to 2²⁴
        fill(numbers, outlines, np.arange(1, len(points) + 1))
        self.nucleus[drawn] = self.n_nuclei + numbers[drawn]
        self.n_nuclei += len(points)
