"""The file of keys, and whose key is whose."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("starlette", reason="the server is not installed: pip install 'foretoken[serve]'")

from foretoken import ForetokenError
from foretoken.server.errors import ApiError
from foretoken.server.keys import ANYBODY, ApiKeys, read_keys

ALICE, BOB = "sk-alice-0123456789", "sk-bob-0123456789ab"


def test_a_file_has_a_name_and_a_key_on_each_line(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"# who may ask\n\nalice {ALICE}\n  bob\t{BOB}  \n")
    assert read_keys(path) == {"alice": ALICE, "bob": BOB}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "has no keys"),
        ("# nobody\n", "has no keys"),
        (f"alice {ALICE} x", "Line 1 .* is not a name and a key"),
        (ALICE, "Line 1 .* is not a name and a key"),
        (f"a/b {ALICE}", "unfit name"),
        ("alice sk-short", "unfit key"),
        (f"alice {ALICE}\nalice {BOB}", "Line 2 .* repeats"),
        (f"alice {ALICE}\nbob {ALICE}", "Line 2 .* repeats"),
    ],
)
def test_a_file_of_something_else_is_refused_and_no_key_is_told(tmp_path, text, said):
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ForetokenError, match=said) as refused:
        read_keys(path)
    assert ALICE not in str(refused.value) and "sk-" not in str(refused.value)


def test_a_key_tells_whose_it_is():
    keys = ApiKeys({"alice": ALICE, "bob": BOB})
    assert keys.owner(f"Bearer {BOB}".encode()) == "bob"
    assert keys.owner(f"bearer  {ALICE} ".encode()) == "alice"
    for nobody in (None, b"", b"Bearer", b"Bearer ", ALICE.encode(), f"Basic {ALICE}".encode(), b"Bearer \xff"):
        with pytest.raises(ApiError) as refused:
            keys.owner(nobody)
        assert refused.value.status == 401
    assert ApiKeys({}).owner(None) == ANYBODY


def test_no_key_is_kept_as_it_is():
    assert ALICE.encode() not in pickle.dumps(ApiKeys({"alice": ALICE}))


def test_every_digest_is_compared_and_each_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, two: compared.append((one, two)) or one == two)
    keys = ApiKeys({"alice": ALICE, "bob": BOB})
    assert keys.owner(f"Bearer {ALICE}".encode()) == "alice"
    assert len(compared) == 2 and all(len(one) == len(two) == 32 for one, two in compared)
