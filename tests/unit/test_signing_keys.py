"""The signing keys of the service: their storage, their rotation and their checks."""

import logging
import os
import tempfile
import threading
from pathlib import Path

import pytest

from servicex_server.accounts.access_tokens import Claims, access_token, read_access_token
from servicex_server.accounts.encrypted_cookies import decrypt, encrypt
from servicex_server.accounts.signing_keys import (
    SigningKeys,
    load_signing_keys,
    rotate,
    signing_keys_in,
)
from servicex_server.errors import SignInError, StartupError
from servicex_server.settings.loading import load
from servicex_server.settings.service import Settings

ONE, TWO, THREE = (bytes([n]) * 32 for n in (1, 2, 3))


def keep(folder: Path, *keys: bytes, mode: int = 0o600) -> Path:
    """Write the keys of a data folder."""
    path = folder / "service.key"
    path.write_bytes(b"".join(keys))
    path.chmod(mode)
    return path


def test_concurrent_callers_create_one_key(tmp_path: Path) -> None:
    """The folder then has one whole, private key file, and nothing beside it."""
    together = threading.Barrier(8)
    found: list[SigningKeys] = []

    def make() -> None:
        together.wait(10)
        found.append(signing_keys_in(tmp_path))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [len(key) for key in found[0].all] == [32]
    (made,) = tmp_path.iterdir()
    assert (made.name, made.stat().st_mode & 0o777) == ("service.key", 0o600)


def test_key_file_may_have_one_or_more_keys(tmp_path: Path) -> None:
    """A service that was never rotated has one key; otherwise the newest key comes first."""
    keep(tmp_path, ONE)
    assert signing_keys_in(tmp_path) == SigningKeys((ONE,))
    keep(tmp_path, TWO, ONE)
    assert signing_keys_in(tmp_path) == SigningKeys((TWO, ONE))
    assert signing_keys_in(tmp_path).current == TWO


def test_repr_does_not_show_keys(tmp_path: Path) -> None:
    """A caller that prints the object does not print the keys."""
    assert repr(SigningKeys((ONE,))) == "SigningKeys()"


@pytest.mark.parametrize("size", [0, 1, 31, 33, 65])
def test_damaged_key_file_is_refused(tmp_path: Path, size: int) -> None:
    """The service does not sign with a part of a key."""
    path = keep(tmp_path, b"x" * size)
    for wanted in (signing_keys_in, lambda folder: rotate(Settings(data_dir=folder), 2)):
        with pytest.raises(StartupError, match=rf"{path} has {size} bytes.* damaged"):
            wanted(tmp_path)
    assert path.stat().st_size == size


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o777])
def test_key_file_that_others_can_read_is_made_private(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning in the log says what to do."""
    path = keep(tmp_path, TWO, ONE, mode=mode)
    assert signing_keys_in(tmp_path) == SigningKeys((TWO, ONE))
    assert path.stat().st_mode & 0o777 == 0o600
    (said,) = caplog.records
    assert (said.levelno, f"(mode {mode:o})" in said.getMessage()) == (logging.WARNING, True)
    assert "rotate-keys --keep 1" in said.getMessage()


def test_key_file_of_another_account_is_refused(tmp_path: Path) -> None:
    """The service refuses a file that it cannot make private or read, and does not replace it."""
    if os.geteuid() != 0:
        pytest.skip("being somebody else needs root")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o777)  # S103: anybody may write beside it
        path = keep(folder, ONE, mode=0o644)
        os.seteuid(65534)
        try:
            with pytest.raises(StartupError, match=r"can be read by others \(mode 644\)"):
                signing_keys_in(folder)
        finally:
            os.seteuid(0)
        path.chmod(0o600)
        os.seteuid(65534)
        try:
            with pytest.raises(StartupError, match="cannot be read: Permission denied"):
                signing_keys_in(folder)
        finally:
            os.seteuid(0)
        assert path.read_bytes() == ONE


def test_rotation_puts_a_new_key_first_and_removes_the_oldest(tmp_path: Path) -> None:
    """The wanted number of keys stays, and the file stays private."""
    settings = Settings(data_dir=tmp_path)
    keep(tmp_path, THREE, TWO, ONE)
    assert rotate(settings, 4) == (4, 0)
    four = signing_keys_in(tmp_path).all
    assert four[1:] == (THREE, TWO, ONE)
    assert rotate(settings, 2) == (2, 3)
    assert signing_keys_in(tmp_path).all[1:] == four[:1]
    assert rotate(settings, 1) == (1, 2)
    (last,) = signing_keys_in(tmp_path).all
    assert last not in four
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


def test_rotation_as_root_keeps_the_owner_of_the_file(tmp_path: Path) -> None:
    """Otherwise the service could not read the file."""
    if os.geteuid() != 0:
        pytest.skip("giving a file away needs root")
    path = keep(tmp_path, ONE)
    os.chown(path, 65534, -1)
    rotate(Settings(data_dir=tmp_path), 2)
    assert (path.stat().st_uid, path.stat().st_mode & 0o777) == (65534, 0o600)


def test_reader_during_a_rotation_gets_whole_keys(tmp_path: Path) -> None:
    """A reader gets the old file or the new file, and never a part."""
    settings = Settings(data_dir=tmp_path)
    keep(tmp_path, TWO, ONE)
    done = threading.Event()
    seen: list[int] = []

    def read() -> None:
        while not done.is_set():
            seen.append(len(signing_keys_in(tmp_path).all))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(100):
            rotate(settings, 2)
    finally:
        done.set()
        reader.join()
    assert set(seen) == {2}


def test_rotation_without_a_key_file_is_refused(tmp_path: Path) -> None:
    """A mistyped folder raises an error, and the command makes nothing there."""
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(StartupError, match="no service has been started"):
            rotate(Settings(data_dir=folder), 2)
    assert list(tmp_path.iterdir()) == []


def test_keys_of_the_setting_replace_the_key_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The service neither makes nor reads a key file. The operator rotates keys in the setting."""
    given = f'["{THREE.hex()}", "{TWO.hex().upper()}"]'
    monkeypatch.setenv("SERVICEX_SERVER_STORAGE__SERVICE_KEYS", given)
    settings = load(data_dir=tmp_path)
    assert load_signing_keys(settings) == SigningKeys((THREE, TWO))
    assert list(tmp_path.iterdir()) == []
    keep(tmp_path, ONE)
    assert load_signing_keys(settings) == SigningKeys((THREE, TWO))
    with pytest.raises(StartupError, match=r"setting storage\.service_keys"):
        rotate(settings, 2)
    assert THREE.hex() not in repr(settings)


@pytest.mark.parametrize(
    "wrong",
    [
        "5ec2e7" * 10,
        "5ec2e7" * 11 + "5",
        "5ec2e7 " * 11,
        "not hexadecimal 5ec2e7" * 5,
        "",
    ],
)
@pytest.mark.parametrize("by", ["file", "variable", "text"])
def test_wrong_key_is_named_and_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str, by: str
) -> None:
    """The error names the setting that has the key."""
    config = None
    if by == "file":
        config = tmp_path / "settings.yaml"
        config.write_text(f"storage: {{service_keys: ['{ONE.hex()}', '{wrong}']}}\n")
    else:
        value = f'["{ONE.hex()}", "{wrong}"]' if by == "variable" else f'"{wrong}"'
        monkeypatch.setenv("SERVICEX_SERVER_STORAGE__SERVICE_KEYS", value)
    with pytest.raises(
        StartupError, match=r"setting storage.service_keys \(or SERVICEX_\w+\): "
    ) as one:
        load(config)
    assert "5ec2e7" not in str(one.value)
    if by != "text":
        assert "key 2 is no 64 hexadecimal digits" in str(one.value)


def test_text_that_is_not_a_list_of_keys_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the variable that is not JSON."""
    monkeypatch.setenv("SERVICEX_SERVER_STORAGE__SERVICE_KEYS", TWO.hex() + "zz")
    with pytest.raises(
        StartupError, match=r"SERVICEX_SERVER_STORAGE__SERVICE_KEYS.*is no JSON"
    ) as one:
        load()
    assert TWO.hex() not in str(one.value)


def test_access_token_of_an_older_key_is_accepted() -> None:
    """The token works until a rotation removes the key; then the error says what to do."""
    token = access_token(ONE, Claims("jane@example.org", 7))
    assert read_access_token(SigningKeys((TWO, ONE)), token) == Claims("jane@example.org", 7)
    with pytest.raises(SignInError, match="get one at POST /token/refresh"):
        read_access_token(SigningKeys((THREE, TWO)), token)


def test_encrypted_cookie_of_an_older_key_is_decrypted() -> None:
    """A user who signs in while the service restarts can finish."""
    encrypted = encrypt(SigningKeys((ONE,)), "a use", {"back": "/requests"}, 60)
    assert decrypt(SigningKeys((TWO, ONE)), "a use", encrypted) == {"back": "/requests"}
    assert decrypt(SigningKeys((TWO, ONE)), "another use", encrypted) is None
    assert decrypt(SigningKeys((THREE, TWO)), "a use", encrypted) is None
