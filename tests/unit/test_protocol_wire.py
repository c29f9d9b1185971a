"""The table of fields: complete, strict towards peers, and towards ourselves."""

import dataclasses
import inspect
import pkgutil
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from edge_sdk import protocol
from edge_sdk.errors import DecodeError, LocalProtocolError
from edge_sdk.protocol import messages
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.fields import Nullable
from edge_sdk.protocol.limits import BLOB_BYTES_MAX, UPDATE_ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Chunk, Reason, Tick, UpdateManifest
from edge_sdk.protocol.schema import TABLE
from edge_sdk.protocol.wire import from_bytes, to_bytes
from tools import vector_examples as examples

MESSAGES = examples.messages()


def test_every_message_class_has_a_record() -> None:
    declared = {cls for _, cls in inspect.getmembers(messages, dataclasses.is_dataclass)}
    assert set(TABLE) == declared


def test_every_message_is_frozen() -> None:
    assert all(cls.__dataclass_params__.frozen for cls in TABLE)  # type: ignore[attr-defined]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_no_field_takes_a_value_of_another_type(message: object) -> None:
    plain: Any = decode(to_bytes(message), bytes_max=BLOB_BYTES_MAX)
    fields = list(TABLE[type(message)].fields.values())
    for key, found in plain.items():
        values: tuple[Any, ...] = (False, 7, -7, "text", b"bytes", [], {}, [[]], {1: 0}, None)
        for wrong in values:
            # An integer in range, an empty list or an absent certificate may be right: those are other tests' business.
            if type(wrong) is type(found) or (wrong is None and isinstance(fields[key - 1], Nullable)):
                continue
            with pytest.raises(DecodeError) as caught:
                from_bytes(type(message), encode(plain | {key: wrong}))
            assert caught.value.reason is Reason.MALFORMED
            assert type(message).__name__ in str(caught.value)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_no_field_may_be_missing(message: object) -> None:
    plain: Any = decode(to_bytes(message), bytes_max=BLOB_BYTES_MAX)
    record = TABLE[type(message)]
    for key in plain:
        if key == len(plain) > len(record.fields) - record.appended:
            continue  # the end of what was appended: without it this is an older message
        with pytest.raises(DecodeError, match="keys"):
            from_bytes(type(message), encode({k: v for k, v in plain.items() if k != key}))


def test_an_appended_field_leaves_the_bytes_of_older_messages_alone() -> None:
    """A chain founded before has the same trust anchor after."""
    old = examples.genesis()
    assert (old.artifact_bytes, old.artifact_author) == (None, None)
    plain: Any = decode(to_bytes(old), bytes_max=BLOB_BYTES_MAX)
    assert list(plain) == list(range(1, 11))
    for key in (11, 12):
        with pytest.raises(DecodeError, match=r"says nothing|keys"):
            from_bytes(type(old), encode(plain | {key: None}))
    author = replace(old, artifact_author=old.registrar)
    assert from_bytes(type(old), to_bytes(author)) == author
    longer: Any = decode(to_bytes(author), bytes_max=BLOB_BYTES_MAX)
    assert list(longer) == list(range(1, 13))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_every_prefix_is_refused(message: object) -> None:
    data = to_bytes(message)
    for length in range(len(data)):
        with pytest.raises(DecodeError):
            from_bytes(type(message), data[:length])


# Untyped: values that mypy would refuse.
edit: Any = replace
Fetch: Any = messages.Fetch
Status: Any = messages.Status


@pytest.mark.parametrize(
    "message",
    [
        edit(examples.manifest(), device_id="Not A Name"),
        edit(examples.manifest(), seq=-1),
        edit(examples.manifest(), seq=1.0),
        edit(examples.manifest(), seq=True),
        edit(examples.manifest(), blob_digest=b"short"),
        edit(examples.manifest(), codec=1),
        edit(examples.certificate(), signatures=[]),
        edit(examples.genesis(), miners=examples.genesis().miners[:1] * 2),
        Fetch(device_id=examples.DEVICE, blob_digest=examples.genesis().model_digest, ranges=((2, 1),)),
        Fetch(device_id=examples.DEVICE, blob_digest=examples.genesis().model_digest, ranges=((1, 2, 3),)),
        Fetch(device_id=examples.DEVICE, blob_digest=examples.genesis().model_digest, ranges=(1, 2)),
        Status(sender="a", session=0, online=1, installed_version=0, note=""),
        Status(sender="a", session=0, online=True, installed_version=0, note="\ud800"),
        "not a message",
    ],
    ids=lambda message: type(message).__name__,
)
def test_our_own_mistakes_do_not_reach_the_wire(message: object) -> None:
    with pytest.raises(LocalProtocolError):
        to_bytes(message)


def test_an_unknown_class_is_our_own_mistake() -> None:
    with pytest.raises(LocalProtocolError):
        from_bytes(str, b"\xa0")


def test_the_text_of_a_refusal_names_the_field() -> None:
    plain: Any = decode(to_bytes(examples.outcome()), bytes_max=BLOB_BYTES_MAX)
    plain[4][1][3] = -1
    with pytest.raises(
        DecodeError, match=r"^Outcome\.certificate: Certificate\.statement: CertificateStatement\.version: -1"
    ):
        from_bytes(messages.Outcome, encode(plain))


def test_the_bound_of_a_message_can_be_tightened() -> None:
    data = to_bytes(examples.manifest())
    assert len(data) < UPDATE_ENVELOPE_BYTES_MAX
    with pytest.raises(DecodeError) as caught:
        from_bytes(UpdateManifest, data, bytes_max=len(data) - 1)
    assert caught.value.reason is Reason.OVERSIZE


def test_a_message_longer_than_its_class_allows_is_refused() -> None:
    padded = encode(bytes(UPDATE_ENVELOPE_BYTES_MAX))
    with pytest.raises(DecodeError) as caught:
        from_bytes(UpdateManifest, padded)
    assert caught.value.reason is Reason.OVERSIZE


def test_admission_sees_an_oversize_blob() -> None:
    """So that it can answer with a receipt that names the reason."""
    claimed = replace(examples.manifest(), blob_bytes=BLOB_BYTES_MAX + 1)
    assert from_bytes(UpdateManifest, to_bytes(claimed)) == claimed


def test_the_contract_loads_without_numpy() -> None:
    """An idle board reads messages, and has no memory to spare for arrays."""
    names = [module.name for module in pkgutil.iter_modules(protocol.__path__, "edge_sdk.protocol.")]
    program = f"import sys, {', '.join(names)}; sys.exit('numpy' in sys.modules)"
    assert len(names) >= 14
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0


def test_sizes_on_the_wire() -> None:
    """Numbers of the documentation: an envelope of an update, a tick, and what a chunk adds to its data."""
    assert len(examples.update_envelope()) == 221
    tick = next(message for message in MESSAGES if isinstance(message, Tick))
    assert len(to_bytes(tick)) == 16
    chunk = Chunk(digest=examples.genesis().model_digest, offset=1 << 20, data=bytes(65_536))
    assert len(to_bytes(chunk)) - len(chunk.data) == 48
