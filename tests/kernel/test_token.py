"""The token and its file: text that can be found, and a file that nobody else could have read."""

import os
import pickle
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from raylite._kernel.interface import SCOPES
from raylite._kernel.secretfile import LARGEST, read_secret, write_secret
from raylite._kernel.token import Token, create_token, new_token, parse_token, read_token
from raylite.exceptions import AuthenticationError


@pytest.fixture(params=[0o000, 0o077, 0o777])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def path(tmp_path: Path) -> str:
    tmp_path.chmod(0o700)
    return str(tmp_path / "token")


def mode(path: str | Path) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def told(error: pytest.ExceptionInfo[AuthenticationError]) -> str:
    return error.value.message


@pytest.mark.parametrize("scope", SCOPES)
def test_a_tokens_text_is_read_back(scope: str) -> None:
    token = new_token(scope)
    assert parse_token(token.reveal()) == token
    assert parse_token(f"  {token.reveal()}\n") == token
    assert token.reveal().startswith(f"rl1.{scope}.{token.id}.")
    assert len(token.secret) * 8 == 256
    assert new_token(scope).secret != token.secret


def test_a_scope_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="choose one of read, node, admin"):
        new_token("root")


@given(st.data())
def test_a_character_that_was_changed_is_noticed(data: st.DataObject) -> None:
    text = Token("node", "0123abcd", bytes(range(32))).reveal()
    where = data.draw(st.integers(0, len(text) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda c: c != text[where]))
    changed = text[:where] + other + text[where + 1 :]
    if changed.strip() != text:
        with pytest.raises(AuthenticationError):
            parse_token(changed)


@given(st.text(max_size=100))
def test_what_is_no_token_is_refused_without_repeating_it(text: str) -> None:
    with pytest.raises(AuthenticationError) as error:
        parse_token("secret" + text)
    assert "secret" not in told(error)


def test_a_token_that_lost_its_end_is_refused() -> None:
    token = new_token()
    with pytest.raises(AuthenticationError) as error:
        parse_token(token.reveal()[:-1])
    assert told(error).startswith("this is no token of raylite's: copy all of it")
    other = replace(token, secret=bytes(32)).reveal()
    with pytest.raises(AuthenticationError, match="damaged: copy all of it once more"):
        parse_token(token.reveal().rpartition(".")[0] + other[-9:])


def test_neither_repr_nor_str_nor_an_error_shows_the_secret() -> None:
    token = new_token()
    secret = token.reveal().split(".")[3]
    shown = f"{token!r} {token!s} {[token]} {token.secret.hex() in repr(token)}"
    assert secret not in shown
    assert repr(token.secret) not in shown
    assert token.id in repr(token)
    assert pickle.loads(pickle.dumps(token)) == token  # so a traceback's locals are the same


def test_a_file_is_for_this_user_only_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "made here" / "token"
    token = create_token(str(path))
    assert (mode(path.parent), mode(path)) == (0o700, 0o600)
    assert read_token(str(path)) == token


def test_a_file_that_is_there_is_not_replaced(path: str) -> None:
    token = create_token(path)
    with pytest.raises(AuthenticationError, match="exists: use it, or remove it"):
        create_token(path)
    assert read_token(path) == token


def test_a_link_is_neither_followed_nor_replaced(path: str, tmp_path: Path) -> None:
    real = str(tmp_path / "real")
    os.symlink(real, path)
    with pytest.raises(AuthenticationError, match="exists"):
        create_token(path)
    assert not os.path.exists(real)
    create_token(real)
    with pytest.raises(AuthenticationError, match="a file of yours, and no link"):
        read_token(path)


def test_a_directory_that_is_open_to_others_is_refused(path: str, tmp_path: Path) -> None:
    tmp_path.chmod(0o710)
    with pytest.raises(AuthenticationError, match="run chmod 700"):
        create_token(path)
    assert not os.path.exists(path)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o620, 0o602, 0o601])
def test_a_file_with_bits_for_others_is_refused(path: str, bits: int) -> None:
    create_token(path)
    os.chmod(path, bits)
    with pytest.raises(AuthenticationError, match=f"mode {bits:04o} .* run chmod 600"):
        read_token(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_file_of_another_user_is_refused(path: str) -> None:
    create_token(path)
    os.chown(path, 65534, -1)
    with pytest.raises(AuthenticationError, match="belongs to user 65534: make a copy"):
        read_token(path)


def test_what_is_no_file_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(AuthenticationError, match="does not exist: copy it"):
        read_token(path)
    os.mkfifo(path, 0o600)
    with pytest.raises(AuthenticationError, match="is no file"):
        read_token(path)
    with pytest.raises(AuthenticationError, match="is no file"):
        read_token(str(tmp_path))


def test_a_file_that_holds_something_else_is_refused(path: str) -> None:
    write_secret(path, b"\xff\xfe")
    with pytest.raises(AuthenticationError, match="holds no token"):
        read_token(path)
    os.truncate(path, LARGEST + 1)
    with pytest.raises(AuthenticationError, match="too large to be a secret"):
        read_secret(path)


@pytest.mark.process
def test_a_token_is_not_in_what_a_crash_prints(path: str) -> None:
    token = create_token(path)
    code = "import sys; from raylite._kernel.token import *; t = read_token(sys.argv[1]); 1 / t"
    done = subprocess.run(
        [sys.executable, "-c", code, path], capture_output=True, text=True, check=False
    )
    assert "unsupported operand" in done.stderr
    assert token.reveal().split(".")[3] not in done.stderr
