"""Rows that name themselves, against sha256 of a text that was written by hand."""

import hashlib

from r1mega.data.signed_rows import digest_of, is_intact, sha256_of, signed

ROW = {"b": "é", "a": [1, 2.5, None], "provenance": {"from": []}}
WRITTEN = '{"a":[1,2.5,null],"b":"é","provenance":{"from":[]}}'


def test_a_row_is_known_by_its_canonical_json():
    digest = hashlib.sha256(WRITTEN.encode("utf-8")).hexdigest()
    assert digest_of(ROW) == digest == sha256_of(WRITTEN)
    assert digest_of({"sha256": "anything", **ROW}) == digest
    assert list(signed({"sha256": "old", **ROW})) == ["b", "a", "provenance", "sha256"]
    assert signed(ROW)["sha256"] == digest


def test_a_changed_row_shows():
    row = signed(ROW)
    assert is_intact(row)
    assert is_intact({"sha256": row["sha256"], "a": row["a"], "provenance": row["provenance"], "b": row["b"]})
    assert not is_intact({**row, "b": "e"})
    assert not is_intact({**row, "more": 1})
    assert not is_intact(ROW)
