"""Prints the reports of ``vst inspect IMAGE`` and ``vst doctor IMAGE OUTS``."""

from __future__ import annotations

from pathlib import Path

from virchow_st.errors import ConfigError
from virchow_st_cli.console import Console


def is_image(path: Path) -> bool:
    """Whether a path is that of an image and not of a store: a file, or a folder of DICOM files."""
    if path.is_dir():
        return any(path.glob("*.dcm"))
    return path.is_file() or path.suffix.lower() not in ("", ".vst")


def inspect_images(console: Console, paths: tuple[Path, ...], as_json: bool) -> None:
    """Print how images would be read; raises `SlideError` for one that would be refused."""
    from virchow_st.slide.image import SlideImage
    from virchow_st.slide.image_report import report_on

    if not all(is_image(path) for path in paths):
        raise ConfigError("vst inspect: expected stores or images; got both; give one kind")
    reports = []
    for path in paths:
        with SlideImage.open(path) as image:
            report = report_on(image)
        for warning in report.warnings:
            console.warn(f"{path}: {warning}")
        reports.append((path, report))
        if not as_json:
            rows = [[label, text] for label, text in report.rows.items()]
            console.table(str(path), ["", "value"], rows, justify="left")
    if as_json:
        found = [{"image": str(p), **r.rows, "warnings": r.warnings} for p, r in reports]
        console.json(found[0] if len(found) == 1 else found)
    for path, report in reports:
        report.stain.raise_for(path)


def doctor_pair(console: Console, image: Path, outs: Path, as_json: bool) -> int:
    """Print whether an image and a Space Ranger folder belong together; exit code 1 if not."""
    from virchow_st.extract.pair_report import report_on_pair

    report = report_on_pair(image, outs)
    for warning in report.warnings:
        console.warn(warning)
    if as_json:
        console.json({**report.rows, "warnings": report.warnings, "faults": report.faults})
    else:
        rows = [[label, text] for label, text in report.rows.items()]
        console.table(f"{image} and {outs}", ["", "found"], rows, justify="left")
    for fault in report.faults:
        console.error(fault)
    if not report.faults and not as_json:
        console.result("image and counts belong together; vst extract would accept them")
    return int(bool(report.faults))
