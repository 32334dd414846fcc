"""Settings: limits, round trips through TOML, and refusals."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from pathlib import Path

import pytest

from virchow_st.config import ExtractConfig, SimulateConfig, TrainConfig
from virchow_st.errors import ConfigError
from virchow_st.settings import from_toml, to_toml

CLASSES = (SimulateConfig, ExtractConfig, TrainConfig)

BAD = [
    (SimulateConfig, {"bins": 127}, "bins: expected at least 128; got 127"),
    (SimulateConfig, {"bins": 3351}, "bins: expected at most 3350; got 3351"),
    (SimulateConfig, {"genes": 59}, "genes: expected at least 60; got 59"),
    (SimulateConfig, {"seed": -1}, "seed: expected at least 0; got -1"),
    (ExtractConfig, {"token_um": 12}, "token_um: expected one of 16, 8; got 12"),
    (ExtractConfig, {"matrix": "both"}, "matrix: expected one of filtered, raw; got 'both'"),
    (ExtractConfig, {"min_tissue": 1.1}, "min_tissue: expected at most 1.0; got 1.1"),
    (TrainConfig, {"loss": "mae"}, "loss: expected one of poisson, nb, mse; got 'mae'"),
    (TrainConfig, {"scales": (2, 3)}, "scales: expected one of 2, 4, 8, 16; got 3"),
    (TrainConfig, {"epochs": 0}, "epochs: expected at least 1; got 0"),
    (TrainConfig, {"accumulate": 0}, "accumulate: expected at least 1; got 0"),
]


@pytest.mark.parametrize(("cls", "values", "message"), BAD)
def test_limits_are_checked_on_creation(cls, values, message) -> None:
    with pytest.raises(ConfigError, match=message):
        cls(**values)
    with pytest.raises(ConfigError, match=message):
        replace(cls(), **values)


@pytest.mark.parametrize("cls", CLASSES)
def test_limits_themselves_are_allowed_and_defaults_keep_them(cls) -> None:
    cls()
    for f in fields(cls):
        for name in ("at_least", "at_most"):
            limit = f.metadata.get(name)
            if limit is not None:
                assert getattr(replace(cls(), **{f.name: type(f.default)(limit)}), f.name) == limit


@pytest.mark.parametrize("cls", CLASSES)
def test_every_setting_says_what_it_is(cls) -> None:
    for f in fields(cls):
        assert f.metadata["help"].strip(), f.name


def test_settings_cannot_be_changed() -> None:
    config = TrainConfig()
    with pytest.raises(FrozenInstanceError):
        config.lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    "config",
    [
        *(cls() for cls in CLASSES),
        SimulateConfig(patients=("A",), bins=200, genes=60, seed=7),
        ExtractConfig(encoder='a "quoted"\\name', min_tissue=0.25, matrix="raw"),
        TrainConfig(stores=("a b.vst", "µ.vst"), scales=(2, 16), lr=1e-4, test_patient="ü"),
    ],
)
def test_toml_round_trip_is_exact(tmp_path: Path, config) -> None:
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config), "utf-8")
    assert from_toml(type(config), path) == config


def test_toml_names_every_setting() -> None:
    text = to_toml(TrainConfig())
    assert [line.split(" = ")[0] for line in text.splitlines() if " = " in line] == [
        f.name for f in fields(TrainConfig)
    ]


def test_toml_may_leave_settings_out(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("lr = 1\nscales = [4]\n")  # a whole number where a fraction is meant
    config = from_toml(TrainConfig, path)
    assert config == TrainConfig(lr=1.0, scales=(4,))
    assert isinstance(config.lr, float)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3\n", "unknown keys epoch; known: stores, test_patient"),
        ("epochs = 3.5\n", "epochs: expected a whole number; got 3.5"),
        ("epochs = '3'\n", "epochs: expected a whole number; got '3'"),
        ("epochs = true\n", "epochs: expected a whole number; got True"),
        ("lr = '1e-3'\n", "lr: expected a number; got '1e-3'"),
        ("loss = 3\n", "loss: expected text; got 3"),
        ("scales = 2\n", "scales: expected a list; got 2"),
        ("scales = [2, 5]\n", "scales: expected one of 2, 4, 8, 16; got 5"),
        ("epochs = 0\n", "epochs: expected at least 1; got 0"),
        ("epochs = \n", "expected TOML"),
        ("epochs = 3\nepochs = 4\n", "expected TOML"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        from_toml(TrainConfig, path)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: not found"):
        from_toml(TrainConfig, tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        from_toml(TrainConfig, tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"loss = '\xe9'\n")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        from_toml(TrainConfig, tmp_path / "latin.toml")
