from __future__ import annotations

import json
from pathlib import Path

import pytest

from grit_mlx.errors import ArgumentError, ConfigError
from grit_mlx.model.settings import Settings, read_settings, settings_from, write_settings


def test_round_trip(tmp_path: Path) -> None:
    settings = Settings(pooling="lasttoken", attn="cccc", max_length=256, about={"base": "öwn"})
    path = write_settings(tmp_path, settings)
    assert path.name == "grit.json"
    assert json.loads(path.read_text(encoding="utf-8"))["format"] == 1
    assert read_settings(tmp_path) == settings


def test_a_folder_without_the_file_has_the_defaults(tmp_path: Path) -> None:
    assert read_settings(tmp_path) == Settings()


def test_override_keeps_what_is_none() -> None:
    settings = Settings(pooling="cls").override(pooling=None, attn="cc", normalized=False)
    assert (settings.pooling, settings.attn, settings.normalized) == ("cls", "cc", False)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"poling": "mean"}, "There is no option 'poling': did you mean 'pooling'"),
        ({"zzz": 1}, "There is no option 'zzz': known are"),
        ({"pooling": "max"}, "Unknown pooling 'max': use one of mean"),
        ({"attn": "cbcc"}, "Unknown attn 'cbcc': use one of bbcc"),
        ({"normalized": "yes"}, "normalized must be true or false, not 'yes'"),
        ({"max_length": 0}, "max_length must be at least 1, not 0"),
        ({"max_length": True}, "max_length must be a whole number, not True"),
        ({"max_length": "512"}, "max_length must be a whole number, not '512'"),
        ({"format": 2}, "format 2 and this version reads format 1: update grit-mlx"),
    ],
)
def test_wrong_values(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from(values)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "grit\\.json cannot be read: Expecting"), ("[1]", "must hold a JSON object")]
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "grit.json").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_settings(tmp_path)


def test_arguments_are_checked_too() -> None:
    with pytest.raises(ArgumentError, match="Unknown pooling"):
        Settings(pooling="first")
