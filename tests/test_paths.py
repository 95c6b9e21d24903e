"""Where a user's files lie, whatever the environment says."""

from __future__ import annotations

from pathlib import Path

import pytest

from foretoken.paths import cache_folder, data_folder

FOLDERS = [(cache_folder, "XDG_CACHE_HOME", ".cache"), (data_folder, "XDG_DATA_HOME", ".local/share")]


@pytest.mark.parametrize(("folder", "variable", "within_home"), FOLDERS)
def test_the_variable_decides_where_it_is_an_absolute_path(folder, variable, within_home, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value in ("", ".", "relative", "~/x"):
        monkeypatch.setenv(variable, value)
        assert folder() == tmp_path / within_home / "foretoken"
    monkeypatch.delenv(variable)
    assert folder() == tmp_path / within_home / "foretoken"
    monkeypatch.setenv(variable, str(tmp_path / "own"))
    assert folder() == tmp_path / "own" / "foretoken"


@pytest.mark.parametrize(("folder", "variable", "within_home"), FOLDERS)
def test_a_user_without_a_home_has_folders_at_the_root(folder, variable, within_home, monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(variable)
    monkeypatch.setattr(Path, "home", unknown)
    assert folder() == Path("/") / within_home / "foretoken"
    monkeypatch.setattr(Path, "home", lambda: Path("relative"))
    assert folder() == Path("/") / within_home / "foretoken"


@pytest.mark.parametrize(("folder", "variable", "within_home"), FOLDERS)
def test_on_windows_both_lie_in_one_place(folder, variable, within_home, monkeypatch, tmp_path):
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path))
    assert folder() == tmp_path / "foretoken"
    monkeypatch.delenv("LOCALAPPDATA")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert folder() == tmp_path / "AppData" / "Local" / "foretoken"
