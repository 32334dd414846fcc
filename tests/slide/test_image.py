"""Slide images: regions, levels and formats, against plain reading of the whole file."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import cv2
import numpy as np
import openslide
import pytest
import tifffile
from tiny_slide import halves, write_image

from virchow_st.errors import SlideError
from virchow_st.slide.image import SlideImage, _exact_levels

SLIDES = Path(__file__).resolve().parents[3] / "shared" / "slides"
BACKENDS = {
    "tiles": "tifffile",
    "vendor": "openslide",
    "strips": "tifffile",
    "one piece": "tifffile",
    "pyramid": "tifffile",
    "subifds": "tifffile",
    "png": "opencv",
}
REGIONS = [  # x0, y0, width, height
    (0, 0, 64, 64),
    (101, 37, 333, 205),
    (-30, -7, 100, 90),
    (480, 300, 200, 120),
    (-500, 20, 100, 50),
]


@pytest.fixture(scope="module")
def texture():
    """A smooth and a rough part, (403, 517, 3): sides that no pyramid factor divides."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (403, 517, 3), np.uint8)
    noise[:, :300] = cv2.GaussianBlur(noise[:, :300], (0, 0), 4)
    return noise


@pytest.fixture(scope="module")
def images(texture, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return {how: write_image(folder / f"{how}.tif", cut(texture, how), how) for how in BACKENDS}


def cut(texture, how):
    """OpenSlide shifts a level by part of a pixel unless its factor divides the image's sides."""
    return texture[:400, :516] if how == "pyramid" else texture


def block_means(texture, x0, y0, width, height, factor):
    """The definition, slowly: pad with white, average blocks."""
    w, h = -(-width // factor), -(-height // factor)
    x, y = x0 + np.arange(w * factor), y0 + np.arange(h * factor)
    on = ((y >= 0) & (y < texture.shape[0]))[:, None] & ((x >= 0) & (x < texture.shape[1]))
    padded = np.full((*on.shape, 3), 255.0)
    padded[on] = texture[y.clip(0, texture.shape[0] - 1)][:, x.clip(0, texture.shape[1] - 1)][on]
    blocks = padded.reshape(h, factor, w, factor, 3).mean(axis=(1, 3))
    return blocks, on.reshape(h, factor, w, factor).all(axis=(1, 3))


@pytest.mark.parametrize("how", BACKENDS)
@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("downsample", [1.0, 2.7, 3.0, 5.5])
def test_region_is_the_block_mean(images, texture, how, region, downsample):
    texture = cut(texture, how)
    with SlideImage.open(images[how]) as image:
        assert image.backend == BACKENDS[how]
        assert (image.height, image.width) == texture.shape[:2]
        rgb, valid, scale = image.read_region(*region, downsample)
    assert scale == int(scale)
    assert downsample / 2 < scale <= downsample
    expected, on = block_means(texture, *region, int(scale))
    np.testing.assert_array_equal(valid, on)
    # Levels are rounded once more, and lack the partial blocks at the far edge.
    off = np.abs(rgb - expected)[on]
    assert off.size == 0 or off.max() <= (1.51 if how in ("pyramid", "subifds") else 0.51)
    assert (rgb[(expected == 255).all(axis=2)] == 255).all()


@pytest.mark.parametrize("how", ["pyramid", "subifds"])
def test_levels_are_used_where_a_corner_lies_on_them(images, how):
    with SlideImage.open(images[how]) as image:
        assert [image.level_factor(d) for d in (0.5, 1.9, 2, 3.99, 4, 50)] == [1, 1, 2, 2, 4, 4]
        read = []
        inner = image._pixels.read
        image._pixels.read = lambda level, *rest: read.append(level) or inner(level, *rest)
        image.read_region(8, 4, 100, 100, 4.0)
        image.read_region(6, 4, 100, 100, 4.0)
        image.read_region(7, 4, 100, 100, 4.0)
        assert read == [2, 1, 0]


def test_bands_do_not_show(images, texture, monkeypatch):
    with SlideImage.open(images["strips"]) as image:
        whole = image.read_region(-5, -5, 500, 400, 3.0)
        monkeypatch.setattr("virchow_st.slide.image._BAND_PX", 10_000)
        banded = image.read_region(-5, -5, 500, 400, 3.0)
    np.testing.assert_array_equal(whole[0], banded[0])
    np.testing.assert_array_equal(whole[1], banded[1])


def test_levels_without_an_exact_factor_are_left_out():
    assert _exact_levels([(71106, 58791), (35553, 29395), (17776, 14697)]) == {1: 0, 2: 1, 4: 2}
    assert _exact_levels([(1000, 800), (400, 320), (251, 200), (250, 200)]) == {1: 0, 4: 3}


def test_transparency_drops_onto_white(texture, tmp_path):
    alpha = np.full(texture.shape[:2], 255, np.uint8)
    alpha[:50], alpha[50:100] = 0, 128
    rgba = np.dstack([texture, alpha])
    cv2.imwrite(str(tmp_path / "a.png"), cv2.cvtColor(rgba, cv2.COLOR_RGBA2BGRA))
    with SlideImage.open(tmp_path / "a.png") as image:
        rgb, valid, _ = image.read_region(0, 0, 517, 403)
    assert (rgb[:50] == 255).all()
    np.testing.assert_allclose(rgb[50:100], 255 + (texture[50:100] - 255.0) * 128 / 255, atol=0.51)
    np.testing.assert_array_equal(rgb[100:], texture[100:])
    assert not valid[:50].any()
    assert valid[50:].all()


def test_planes_apart(texture, tmp_path):
    planes = np.moveaxis(texture, 2, 0)
    tifffile.imwrite(
        tmp_path / "p.tif", planes, photometric="rgb", planarconfig="separate", compression="zlib"
    )
    with SlideImage.open(tmp_path / "p.tif") as image:
        rgb, _, _ = image.read_region(10, 20, 50, 40)
    np.testing.assert_array_equal(rgb, texture[20:60, 10:60])


@pytest.mark.parametrize("name", ["grey.tif", "grey.png"])
def test_grey_images_are_refused(texture, tmp_path, name):
    path = tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, texture[..., 0], tile=(128, 128))
    else:
        cv2.imwrite(str(path), texture[..., 0])
    with pytest.raises(SlideError, match=r"expected an H&E image in RGB"):
        SlideImage.open(path)


@pytest.mark.parametrize("how", ["tiles", "strips", "one piece", "subifds", "png", "jpg"])
def test_cut_files_are_refused(texture, tmp_path, how):
    """Or read, with a warning, where nothing but reduced levels is cut off."""
    content = write_image(tmp_path / "whole.tif", texture, how).read_bytes()
    cut = tmp_path / f"cut.{'tif' if how not in ('png', 'jpg') else how}"
    for tenth in range(10):
        cut.write_bytes(content[: len(content) * tenth // 10])
        if how == "subifds" and all_there(cut, texture):
            continue
        with pytest.raises(SlideError, match=r"cut\.\w+: expected") as e:
            SlideImage.open(cut)
        assert "\n" not in str(e.value)


def all_there(path, texture):
    """Whether a file opens; then its finest level is whole, and a warning names the others."""
    try:
        image = SlideImage.open(path)
    except SlideError:
        return False
    with image:
        assert any("reduced level" in line for line in image.choice.warnings)
        np.testing.assert_array_equal(image.read_region(0, 0, 517, 403)[0], texture)
    return True


def test_large_strips_are_refused_with_the_remedy(images, monkeypatch):
    monkeypatch.setattr("virchow_st.slide.tiff_levels._LARGEST_CHUNK_BYTES", 20_000)
    with pytest.raises(SlideError, match=r"strips of up to .* vips tiffsave"):
        SlideImage.open(images["strips"])
    with SlideImage.open(images["one piece"]) as image:  # is mapped, whatever its size
        assert image.width == 517


def test_flipped_bytes_are_refused_or_harmless(texture, tmp_path):
    """One line or pixels: no crash, no other error. (Damaged pixels cannot all be seen.)"""
    rng, refused = np.random.default_rng(0), []
    path = tmp_path / "flipped.tif"
    for how in ("tiles", "strips", "one piece", "pyramid", "subifds"):
        content = write_image(tmp_path / f"{how}.tif", texture, how).read_bytes()
        # Half of them among the tags, which a few flips seldom hit otherwise.
        places = rng.integers(0, len(content), (12, 2)), rng.integers(4, 400, (12, 2))
        for at in np.concatenate(places):
            flipped = np.frombuffer(content, np.uint8).copy()
            flipped[at] ^= rng.integers(1, 256, 2).astype(np.uint8)
            flipped.tofile(path)
            try:
                with SlideImage.open(path) as image:
                    rgb, _, _ = image.read_region(100, 100, 200, 200)
                    assert rgb.shape == (200, 200, 3)
            except SlideError as e:
                refused.append(str(e))
    assert len(refused) > 20
    assert all("flipped.tif: expected" in line and "\n" not in line for line in refused)


def watch_decoding(image, monkeypatch):
    """The list to which every segment of the finest level is added when it is decoded."""
    segments = image._pixels._levels[0]._sources[0]
    decoded, decode = [], segments._decode
    monkeypatch.setattr(segments, "_decode", lambda i: decoded.append(i) or decode(i))
    return segments, decoded


def test_strips_are_kept_within_bounds(texture, tmp_path, monkeypatch):
    path = write_image(tmp_path / "strips.tif", texture, "strips")
    with SlideImage.open(path) as image:
        strips, decoded = watch_decoding(image, monkeypatch)
        first, _, _ = image.read_region(10, 100, 50, 60)
        assert decoded == list(range(6, 10))
        image.read_region(200, 100, 300, 60)  # beside it: nothing is decoded again
        assert decoded == list(range(6, 10))
        np.testing.assert_array_equal(first, texture[100:160, 10:60])
        two = 2 * 16 * 517 * 3
        monkeypatch.setattr("virchow_st.slide.tiff_tiles._KEPT_STRIPS_BYTES", two)
        whole, _, _ = image.read_region(0, 0, 517, 403)
        np.testing.assert_array_equal(whole, texture)
        kept = [made.result().nbytes for made in strips._kept.values()]
        assert strips._kept_bytes == sum(kept) <= two


@pytest.mark.parametrize("how", BACKENDS)
def test_threads_read_at_once(texture, images, how):
    """Regions that share tiles and strips, each read by several threads from one handle."""
    rng = np.random.default_rng(0)
    corners = np.repeat(rng.integers(0, 300, (12, 2)), 3, axis=0)
    with SlideImage.open(images[how]) as image, ThreadPoolExecutor(8) as pool:
        for (x, y), read in zip(
            corners, pool.map(lambda c: image.read_region(*c, 90, 80)[0], corners), strict=True
        ):
            np.testing.assert_array_equal(read, cut(texture, how)[y : y + 80, x : x + 90])


def test_a_strip_that_another_thread_decodes_is_waited_for(texture, tmp_path, monkeypatch):
    path = write_image(tmp_path / "strips.tif", texture, "strips")
    with SlideImage.open(path) as image, ThreadPoolExecutor(2) as pool:
        segments, decoded = watch_decoding(image, monkeypatch)
        begun, go_on = Event(), Event()
        decode = segments._decode
        monkeypatch.setattr(
            segments, "_decode", lambda i: (begun.set(), go_on.wait(9), decode(i))[-1]
        )
        first = pool.submit(image.read_region, 0, 0, 9, 9)
        assert begun.wait(9)
        second = pool.submit(image.read_region, 100, 0, 9, 9)
        go_on.set()
        np.testing.assert_array_equal(first.result()[0], texture[:9, :9])
        np.testing.assert_array_equal(second.result()[0], texture[:9, 100:109])
        assert decoded == [0]


@pytest.mark.parametrize("vendor", ["generic-tiff", "aperio"])
def test_jpeg_tiles_are_those_of_openslide(texture, tmp_path, vendor):
    """Pixel for pixel, where OpenSlide takes five times as long to put a region together."""
    path = tmp_path / "jpeg.tif"
    made = "Aperio Image Library v11.2.1" if vendor == "aperio" else None
    tifffile.imwrite(
        path, cv2.GaussianBlur(texture, (0, 0), 2), tile=(128, 128), photometric="rgb",
        compression="jpeg", compressionargs={"level": 85}, description=made, metadata=None,
    )  # fmt: skip
    theirs = openslide.OpenSlide(path)
    assert theirs.properties["openslide.vendor"] == vendor
    with SlideImage.open(path) as image:
        assert image.backend == "tifffile"
        rgb, valid, _ = image.read_region(100, 50, 300, 310)
    assert valid.all()
    expected = np.asarray(theirs.read_region((100, 50), 0, (300, 310)))[..., :3]
    assert np.abs(rgb.astype(int) - expected).max() <= 1


def test_tiles_without_bytes_hold_no_pixels(texture, tmp_path):
    path = tmp_path / "sparse.tif"

    def tiles():
        for top in range(0, 256, 128):
            for left in range(0, 384, 128):
                hole = (top, left) == (128, 128)
                yield (
                    None
                    if hole
                    else np.ascontiguousarray(texture[top : top + 128, left : left + 128])
                )

    tifffile.imwrite(
        path, tiles(), shape=(256, 384, 3), dtype=np.uint8, tile=(128, 128), photometric="rgb",
        compression="lzw",
    )  # fmt: skip
    with SlideImage.open(path) as image:
        rgb, valid, _ = image.read_region(0, 0, 384, 256)
    hole = np.zeros((256, 384), bool)
    hole[128:, 128:256] = True
    np.testing.assert_array_equal(valid, ~hole)
    np.testing.assert_array_equal(rgb[~hole], texture[:256, :384][~hole])
    assert (rgb[hole] == 255).all()


def test_a_damaged_strip_is_told_every_time(texture, tmp_path, monkeypatch):
    path = write_image(tmp_path / "strips.tif", texture, "strips")
    with SlideImage.open(path) as image:
        segments, _ = watch_decoding(image, monkeypatch)
        monkeypatch.setattr(segments, "_decoder", lambda *_, **__: 1 / 0)
        for _ in range(2):
            with pytest.raises(SlideError, match=r"strips\.tif: expected .*division by zero"):
                image.read_region(0, 0, 9, 9)


def test_plain_pixels_do_not_stay_mapped(images):
    with SlideImage.open(images["one piece"]) as image:
        image.read_region(10, 20, 300, 300)
        assert str(images["one piece"]) not in Path("/proc/self/maps").read_text()


def test_a_pyramid_that_carries_its_sources_description_opens(texture, tmp_path):
    """As libvips makes it of a file that tifffile wrote, which described its one page as JSON."""
    path, pixels = tmp_path / "made.tif", texture[:400, :516]
    described = {"metadata": None, "description": '{"shape": [400, 516, 3]}'}
    with tifffile.TiffWriter(path) as tiff:
        for factor in (1, 2, 4):
            level = pixels if factor == 1 else halves(pixels, factor)
            tiff.write(
                level, tile=(128, 128), photometric="rgb", subfiletype=int(factor > 1), **described
            )
    with SlideImage.open(path) as image:
        assert image.level_factor(4) == 4
        rgb, _, _ = image.read_region(40, 80, 400, 300, 4.0)
    np.testing.assert_array_equal(rgb, halves(pixels, 4)[20:95, 10:110])


def test_missing_and_foreign_files_are_refused(tmp_path):
    with pytest.raises(SlideError, match="No such file"):
        SlideImage.open(tmp_path / "none.tif")
    (tmp_path / "text.tif").write_text("not an image")
    with pytest.raises(SlideError, match="format is unknown"):
        SlideImage.open(tmp_path / "text.tif")
    with pytest.raises(SlideError, match="expected a slide image"):
        SlideImage.open(tmp_path)


@pytest.mark.parametrize(("name", "file"), [("C2", "tissue_image.btf"), ("C5", "tissue_image.tif")])
def test_shared_images_equal_tifffile(name, file):
    path = SLIDES / name / file
    if not path.exists():
        pytest.skip(f"shared slides are not at {SLIDES}")
    whole = tifffile.imread(path)
    with SlideImage.open(path) as image:
        rgb, valid, _ = image.read_region(700, 900, 300, 200)
    assert valid.all()
    # Two JPEG decoders differ by a little in how they spread the chroma.
    assert np.abs(rgb.astype(int) - whole[900:1100, 700:1000]).mean() < 3
