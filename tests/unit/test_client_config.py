"""The configuration file of the published client keeps what its owner has written."""

from pathlib import Path

import pytest
import yaml

from servicex_server.cli import client_config
from servicex_server.errors import StartupError

WRITTEN = """\
# services that I use
api_endpoints:
  - name: "uc" # in Chicago
    endpoint: https://sx.example.org/
    token: old

  - endpoint: http://127.0.0.1:5000
cache_path: /data/cache   # large
"""


def test_new_token_keeps_comments_and_order(tmp_path: Path) -> None:
    path = tmp_path / "servicex.yaml"
    path.write_text(WRITTEN)
    client_config.remember("https://sx.example.org", "new", path)
    assert path.read_text() == WRITTEN.replace("token: old", "token: new")


def test_service_is_added_below_the_others(tmp_path: Path) -> None:
    path = tmp_path / "servicex.yaml"
    path.write_text(WRITTEN)
    client_config.remember("https://lab.example.org/", "mine", path)
    assert "# in Chicago" in path.read_text()
    *others, added = yaml.safe_load(path.read_text())["api_endpoints"]
    assert others == yaml.safe_load(WRITTEN)["api_endpoints"]
    assert added == {
        "name": "lab.example.org",
        "endpoint": "https://lab.example.org/",
        "token": "mine",
    }


@pytest.mark.parametrize("token", ["a: b", "#x", "'", '"', "null", "1e3", "y" * 500])
def test_any_token_is_read_back_as_the_client_reads_it(tmp_path: Path, token: str) -> None:
    path = client_config.remember("http://here:5000", token, tmp_path / "servicex.yaml")
    assert yaml.safe_load(path.read_text())["api_endpoints"][0]["token"] == token
    assert client_config.token_for("http://here:5000", folder=tmp_path) == token


@pytest.mark.parametrize("text", ["token: [", "- a", "api_endpoints: 3"])
def test_file_of_another_format_is_refused_and_not_changed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "servicex.yaml"
    path.write_text(text)
    with pytest.raises(StartupError, match=str(path)):
        client_config.remember("http://here:5000", "token", path)
    assert path.read_text() == text


def test_file_is_readable_only_by_its_owner(tmp_path: Path) -> None:
    path = client_config.remember("http://here:5000", "token", tmp_path / "servicex.yaml")
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == ["servicex.yaml"]
