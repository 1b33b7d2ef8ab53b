from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.settings import Settings, read_values


class Views(Settings):
    share: float = 0.2
    augmentation: str = "random-drop"


class Training(Settings):
    epochs: int = 10
    sites: tuple[str, ...] = ()
    views: Views = Views()


def _file(folder: Path, text: str) -> Path:
    path = folder / "settings.toml"
    path.write_text(text)
    return path


def test_defaults_hold_without_a_file() -> None:
    assert Training.load() == Training()


def test_a_file_changes_what_it_names_and_nothing_else(tmp_path: Path) -> None:
    loaded = Training.load(_file(tmp_path, "epochs = 3\n[views]\nshare = 0.5\n"))
    assert loaded == Training(epochs=3, views=Views(share=0.5))


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    loaded = Training.load(_file(tmp_path, "epochs = 3\n"), ["epochs=4", "views.share = 0.1", "sites=['A', 'B']"])
    assert loaded == Training(epochs=4, sites=("A", "B"), views=Views(share=0.1))


def test_an_override_that_is_no_toml_is_text() -> None:
    assert Training.load(overrides=["views.augmentation=chunk-drop"]).views.augmentation == "chunk-drop"


@given(share=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_every_digit(share: float) -> None:
    assert Training.load(overrides=[f"views.share={share!r}"]).views.share == share


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        Training().epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize("name", ["epoch", "views.shares"])
def test_an_unknown_setting_names_the_known_ones(name: str) -> None:
    with pytest.raises(OpenBrainMassError) as raised:
        Training.load(overrides=[f"{name}=1"])
    message = str(raised.value)
    assert f"unknown setting {name}" in message
    assert ("augmentation" if "." in name else "epochs") in message
    assert "\n" not in message


def test_a_wrong_value_says_where_and_what(tmp_path: Path) -> None:
    with pytest.raises(OpenBrainMassError, match=r"settings\.toml cannot be used: views\.share: .*found 'much'"):
        Training.load(_file(tmp_path, "[views]\nshare = 'much'\n"))


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(OpenBrainMassError, match=r"epochs.*views\.share"):
        Training.load(overrides=["epochs=many", "views.share=much"])


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OpenBrainMassError, match=r"none\.toml does not exist"):
        Training.load(tmp_path / "none.toml")


@pytest.mark.parametrize("text", ["epochs = = 3", "epochs"])
def test_a_file_that_is_no_toml_is_a_sentence(tmp_path: Path, text: str) -> None:
    with pytest.raises(OpenBrainMassError, match="not readable TOML"):
        Training.load(_file(tmp_path, text))


@pytest.mark.parametrize("override", ["epochs", "=3", " =3"])
def test_an_override_needs_a_key_and_a_value(override: str) -> None:
    with pytest.raises(OpenBrainMassError, match=r"section\.key=value"):
        Training.load(overrides=[override])


def test_a_value_is_no_section() -> None:
    with pytest.raises(OpenBrainMassError, match="epochs is a value"):
        Training.load(overrides=["epochs=3", "epochs.x=1"])


def test_the_settings_of_an_earlier_run_can_be_read_again(tmp_path):
    (tmp_path / "settings.json").write_text('{"steps": 3}')
    assert read_values(tmp_path / "settings.json", ["rate=0.5"]) == {"steps": 3, "rate": 0.5}
    (tmp_path / "settings.json").write_text("[1]")
    with pytest.raises(OpenBrainMassError, match="JSON object"):
        read_values(tmp_path / "settings.json")


def test_a_number_where_a_list_is_wanted_is_told_in_the_words_of_toml():
    from openbrainmass.cohort.curate import CurationSettings

    with pytest.raises(OpenBrainMassError, match=r"reading\.band_pass: Input should be a list, such as \[.a., .b.\]"):
        CurationSettings.load(overrides=["reading.band_pass=0.01"])
