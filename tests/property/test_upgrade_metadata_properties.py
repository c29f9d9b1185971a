"""Whatever a server sends, the board's verifier refuses it by its own error or believes exactly what was signed."""

import json
from collections.abc import Mapping
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_sdk.errors import DecodeError, UpgradeRefusedError
from edge_sdk.upgrade.canonical import encode, parse
from edge_sdk.upgrade.metadata import RoleName, read
from edge_sdk.upgrade.trusted import Trusted
from tests.support.software import Publisher


class Documents(NamedTuple):
    """One consistent state of a repository: bytes by role, and when they were made."""

    of: Mapping[RoleName, bytes]
    now_s: int


@pytest.fixture(scope="module")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    publisher = Publisher(tmp_path_factory.mktemp("operator"))
    folder = publisher.path / "metadata"
    names = {role: f"1.{role}.json" for role in RoleName} | {RoleName.TIMESTAMP: "timestamp.json"}
    return Documents({role: (folder / name).read_bytes() for role, name in names.items()}, publisher.now_s)


def believe(of: Mapping[RoleName, bytes], now_s: int) -> Trusted:
    trusted = Trusted(of[RoleName.ROOT], time_s=now_s)
    trusted.update_timestamp(of[RoleName.TIMESTAMP])
    trusted.update_snapshot(of[RoleName.SNAPSHOT])
    trusted.update_targets(of[RoleName.TARGETS])
    return trusted


def signed_part(data: bytes) -> bytes:
    return encode(parse(data, bytes_max=2**20)["signed"])


@given(st.sampled_from([RoleName.TIMESTAMP, RoleName.SNAPSHOT, RoleName.TARGETS]), st.data())
def test_changed_bytes_are_refused_or_mean_the_same(documents: Documents, role: RoleName, data: st.DataObject) -> None:
    before = documents.of[role]
    after = bytearray(before)
    for _ in range(data.draw(st.integers(1, 3))):
        after[data.draw(st.integers(0, len(after) - 1))] = data.draw(st.integers(0, 255))
    try:
        believe({**documents.of, role: bytes(after)}, documents.now_s)
    except UpgradeRefusedError:
        return
    assert signed_part(bytes(after)) == signed_part(before)


@given(st.sampled_from(list(RoleName)), st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(role: RoleName, data: bytes) -> None:
    with pytest.raises(DecodeError):
        read(data, role)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(st.sampled_from(list(RoleName)), st.data(), JSON)
def test_any_value_in_any_place_is_read_or_refused(
    documents: Documents, role: RoleName, data: st.DataObject, value: object
) -> None:
    """Replace one node of a valid document by anything that JSON can say."""
    document = json.loads(documents.of[role])
    node = document
    while True:
        key = data.draw(st.sampled_from(sorted(node) if isinstance(node, dict) else range(len(node))))
        child = node[key]
        if not isinstance(child, dict | list) or not child or data.draw(st.booleans()):
            node[key] = value
            break
        node = child
    try:
        read(json.dumps(document).encode(errors="surrogatepass"), role)
    except DecodeError:
        return


def test_unchanged_documents_are_believed(documents: Documents) -> None:
    assert believe(documents.of, documents.now_s).created_s == documents.now_s
