"""Golden vectors of the contract: ``python -m tools.make_vectors`` writes ``tests/vectors/*.json``.

Each file is a list of cases. A case without its result (``value``, ``payload``, ``root`` ...) must be refused, and says
why in ``refused``. A change of these files is a change of the contract. Published answers of the standards stand in
``published.json``, which is written by hand.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from edge_sdk.protocol import cose, merkle
from edge_sdk.protocol import messages as m
from edge_sdk.protocol.certificate import assemble
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.digest import block_hash, commitment, genesis_digest, miner_set_hash, sha256, update_digest
from edge_sdk.protocol.ids import ChainId, MinerId
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX, BLOB_BYTES_MAX
from edge_sdk.protocol.model import model_root
from edge_sdk.protocol.topics import shard_of
from edge_sdk.protocol.wire import to_bytes
from tools import vector_examples as ex
from tools.payload_vectors import payload_cases

FOLDER: Final = Path(__file__).parent.parent / "tests" / "vectors"
Case = dict[str, Any]


def to_json(value: object) -> object:
    """Write a message as JSON: bytes in hex, enumerations as they are on the wire, fields by name."""
    match value:
        case bytes():
            return value.hex()
        case tuple() | list():
            return [to_json(item) for item in value]
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
        case _:
            return value


def codec_cases() -> list[Case]:
    """Encodings that must be refused; the accepted ones are in ``published.json`` and in every message."""
    refused = (
        ("empty input", ""),
        ("trailing byte", "0000"),
        ("integer 0 in two bytes", "1800"),
        ("integer 23 in two bytes", "1817"),
        ("integer 255 in three bytes", "1900ff"),
        ("integer 65535 in five bytes", "1a0000ffff"),
        ("integer 2**32 - 1 in nine bytes", "1b00000000ffffffff"),
        ("length 1 in two bytes", "580161"),
        ("map of one in two bytes", "b8010001"),
        ("reserved length 28", "1c"),
        ("indefinite byte string", "5f4101ff"),
        ("indefinite text", "7f6161ff"),
        ("indefinite array", "9f01ff"),
        ("indefinite map", "bf0001ff"),
        ("break alone", "ff"),
        ("duplicate key", "a200000001"),
        ("keys out of order", "a201000000"),
        ("negative key", "a12000"),
        ("text key", "a1616100"),
        ("byte string key", "a1416100"),
        ("key 256", "a119010000"),
        ("half float", "f93c00"),
        ("float", "fa3f800000"),
        ("double", "fb3ff0000000000000"),
        ("not a number", "f97e00"),
        ("undefined", "f7"),
        ("simple value 16", "f0"),
        ("simple value 32", "f820"),
        ("tag 0", "c06161"),
        ("big integer", "c2410f"),
        ("text that is not UTF-8", "61ff"),
        ("text with a surrogate", "63eda080"),
        ("head cut off", "19"),
        ("byte string cut off", "4261"),
        ("array cut off", "8201"),
        ("map cut off", "a1"),
        ("byte string of 2**64 - 1 bytes", "5bffffffffffffffff"),
        ("text of 2**63 bytes", "7b8000000000000000"),
        ("array of 2**64 - 1 items", "9bffffffffffffffff"),
        ("map of 2**64 - 1 pairs", "bbffffffffffffffff"),
        ("array of 2**32 - 1 items in an array", "819affffffff"),
        ("nine levels of arrays above an integer", "81" * 9 + "00"),
        ("a thousand levels", "81" * 1000 + "00"),
    )
    return [{"name": name, "bytes": data, "refused": "MALFORMED"} for name, data in refused]


def message_cases() -> list[Case]:
    """Encode every message, and edit some beyond their bounds."""
    examples = ex.messages()
    names = [type(message).__name__ for message in examples]
    cases: list[Case] = [
        {"name": f"{name} {names[:i].count(name)}", "class": name, "bytes": to_bytes(message), "value": message}
        for i, (name, message) in enumerate(zip(names, examples, strict=True))
    ]
    by_name = dict(zip(reversed(names), reversed(examples), strict=True))
    for name, of, refused, edit in (*_edits_of_tick(), *_edits_of_others()):
        plain = decode(to_bytes(by_name[of]), bytes_max=BLOB_BYTES_MAX)
        cases.append({"name": f"{of}: {name}", "class": of, "bytes": encode(edit(plain)), "refused": refused})
    return cases


Plain = dict[int, Any]
Edit = tuple[str, str, str, Callable[[Any], object]]
"""What is wrong, class, reason of the refusal, and the change of the plain map."""


def _edits_of_tick() -> list[Edit]:
    """Mistakes that any message can have, made in the smallest."""
    edits: dict[str, Callable[[Plain], object]] = {
        "key 4 missing": lambda plain: {key: plain[key] for key in (1, 2, 3)},
        "key 5 unknown": _set(5, 0),
        "key 0 instead of 4": lambda plain: {0: 0} | {key: plain[key] for key in (1, 2, 3)},
        "an array, not a map": lambda plain: list(plain.values()),
        "phase 5": _set(3, 5),
        "truth value for an integer": _set(4, value=False),
        "text for an integer": _set(2, "1"),
        "null for an integer": _set(2, None),
        "negative attempt": _set(4, -1),
        "attempt above 2**53 - 1": _set(4, 1 << 53),
        "block 0": _set(2, 0),
        "bytes for a name": _set(1, b"miner-0"),
    }
    for name in ("", "-a", "a-", "A", "a/b", "a+", "a#", "a b", "a.b", "ä", "a\n", "a" * 49):
        edits[f"miner {name!r}"] = _set(1, name)
    return [(name, "Tick", "MALFORMED", edit) for name, edit in edits.items()]


def _edits_of_others() -> list[Edit]:
    """Mistakes of one kind of message each."""
    edits: list[Edit] = [
        ("digest of 31 bytes", "UpdateManifest", "MALFORMED", _set(6, bytes(31))),
        ("unknown codec", "UpdateManifest", "MALFORMED", _set(7, 9)),
        ("exponent 31", "UpdatePayload", "EXPONENT", _set(2, [{1: "w", 2: 31, 3: b""}])),
        ("no tensors", "UpdatePayload", "MALFORMED", _set(2, [])),
        ("too few values", "ModelParams", "SHAPE", lambda plain: _with_tensor(plain, {5: bytes(20)})),
        ("an extent of 0", "ModelParams", "SHAPE", lambda plain: _with_tensor(plain, {2: [0, 3]})),
        ("shape of 2**42", "ModelParams", "SHAPE", lambda plain: _with_tensor(plain, {2: [1 << 21, 1 << 21]})),
        ("channel axis 2 of two", "ModelParams", "SHAPE", lambda plain: _with_tensor(plain, {4: 2})),
        ("one scale for two", "ModelParams", "SHAPE", lambda plain: _with_tensor(plain, {6: b"\x80"})),
        ("two miners, one key", "Genesis", "MALFORMED", lambda plain: _with_miner(plain, {2: plain[4][0][2]})),
        ("two miners, one name", "Genesis", "MALFORMED", lambda plain: _with_miner(plain, {1: plain[4][0][1]})),
        ("a miner without power", "Genesis", "MALFORMED", lambda plain: _with_miner(plain, {3: 0})),
        ("no miners", "Genesis", "MALFORMED", _set(4, [])),
        ("Ed25519 key of 33 bytes", "Genesis", "MALFORMED", _set(5, {1: -8, 2: bytes(33)})),
        ("compressed point", "Genesis", "MALFORMED", _set(5, {1: -7, 2: b"\x02" + bytes(64)})),
        ("model above 16 MiB", "Genesis", "OVERSIZE", _set(10, BLOB_BYTES_MAX + 1)),
        ("artifact above 4 MiB", "Genesis", "OVERSIZE", _set(11, ARTIFACT_BYTES_MAX + 1)),
        ("null where the end is", "Genesis", "MALFORMED", _set(11, None)),
        ("null at the end", "Genesis", "MALFORMED", lambda plain: plain | {11: 8, 12: None}),
        ("key 12 without key 11", "Genesis", "MALFORMED", lambda plain: plain | {12: plain[5]}),
        ("key 13 unknown", "Genesis", "MALFORMED", lambda plain: plain | {11: 8, 12: plain[5], 13: 0}),
        ("no artifact", "AuthoredArtifact", "MALFORMED", _set(2, b"")),
        ("signature of 63 bytes", "Certificate", "MALFORMED", _set(2, [{1: "m", 2: bytes(63)}])),
        ("no signatures", "Certificate", "MALFORMED", _set(2, [])),
        ("proof for leaf 3 of 3", "Outcome", "MALFORMED", lambda plain: plain | {2: plain[2] | {1: 3}}),
        ("classes of one update", "Reveal", "MALFORMED", lambda plain: plain | {3: plain[3] | {3: [b"", b""]}}),
        ("score 1001", "Reveal", "MALFORMED", lambda plain: plain | {3: plain[3] | {1: 1001}}),
        ("salt of 15 bytes", "Reveal", "MALFORMED", _set(4, bytes(15))),
        ("empty chunk", "Chunk", "MALFORMED", _set(3, b"")),
        ("integer for a truth value", "Status", "MALFORMED", _set(3, 1)),
        ("text of 1025 bytes", "Status", "MALFORMED", _set(5, "x" * 1025)),
    ]
    ranges: dict[str, list[list[int]]] = {
        "empty": [[5, 5]],
        "backward": [[5, 4]],
        "overlapping": [[0, 5], [4, 6]],
        "unsorted": [[8, 9], [0, 1]],
        "of three numbers": [[0, 1, 2]],
        "negative": [[-1, 1]],
        "beyond the largest blob": [[0, BLOB_BYTES_MAX + 1]],
        "65 of them": [[2 * i, 2 * i + 1] for i in range(65)],
        "none": [],
    }
    for name, wanted in ranges.items():
        edits.append((f"ranges {name}", "Fetch", "MALFORMED", _set(3, wanted)))
    return edits


def _set(key: int, value: object) -> Callable[[Plain], object]:
    return lambda plain: plain | {key: value}


def _with_tensor(plain: Plain, changes: Plain) -> Plain:
    first, *others = plain[1]
    return {1: [first | changes, *others]}


def _with_miner(plain: Plain, changes: Plain) -> Plain:
    first, second, *others = plain[4]
    return plain | {4: [first, second | changes, *others]}


def envelope_cases() -> list[Case]:
    """COSE_Sign1 in our profile: who signs, for which domain and chain, and what must not pass."""
    payload = to_bytes(ex.manifest())
    protected = encode({1: -8, 3: "fl/update", 4: ex.DEVICE.encode()})
    cases: list[Case] = []

    def case(name: str, envelope: bytes, refused: str | None = None, **changes: Any) -> None:
        sender = changes.pop("sender", ex.DEVICE)
        cases.append(
            {"name": name, "envelope": envelope, "key": ex.signer(sender).public_key, "domain": "fl/update"}
            | {"chain_id": ex.CHAIN}
            | changes
            | ({"payload": payload, "digest": update_digest(envelope)} if refused is None else {"refused": refused})
        )

    good = ex.update_envelope()
    parts = cose.peek(good)
    by_miner = cose.sign(
        payload, signer=ex.signer(ex.MINERS[3]), domain=m.Domain.UPDATE, chain_id=ex.CHAIN, sender=ex.MINERS[3]
    )

    def assembled(*items: object, tag: bytes = b"\xd2") -> bytes:
        return tag + encode(items)

    case("EdDSA", good)
    case("ES256", by_miner, sender=ex.MINERS[3])
    case("another chain", good, "BAD_SIGNATURE", chain_id="harbour-2")
    case("another domain", good, "BAD_SIGNATURE", domain="fl/status")
    case("another key", good, "BAD_SIGNATURE", sender=ex.MINERS[0])
    case("key of another algorithm", good, "BAD_SIGNATURE", sender=ex.MINERS[3])
    changed = payload[:-1] + bytes([payload[-1] ^ 1])
    case("payload changed", assembled(parts.protected, {}, changed, parts.signature), "BAD_SIGNATURE")
    flipped = bytes([parts.signature[0] ^ 1]) + parts.signature[1:]
    case("signature changed", assembled(parts.protected, {}, payload, flipped), "BAD_SIGNATURE")
    case("signature of zeros", assembled(parts.protected, {}, payload, bytes(64)), "BAD_SIGNATURE")
    zeros = assembled(cose.peek(by_miner).protected, {}, payload, bytes(64))
    case("ES256 signature of zeros", zeros, "BAD_SIGNATURE", sender=ex.MINERS[3])
    other = encode({1: -8, 3: "fl/update", 4: b"rpi-18"})
    case("sender changed", assembled(other, {}, payload, parts.signature), "BAD_SIGNATURE")
    case("no tag", good[1:], "MALFORMED")
    case("tag 98", assembled(parts.protected, {}, payload, parts.signature, tag=b"\xd8\x62"), "MALFORMED")
    case("tag 18 in two bytes", assembled(parts.protected, {}, payload, parts.signature, tag=b"\xd8\x12"), "MALFORMED")
    case("unprotected header", assembled(protected, {4: b"rpi-17"}, payload, parts.signature), "MALFORMED")
    case("detached payload", assembled(protected, {}, None, parts.signature), "MALFORMED")
    case("five parts", assembled(protected, {}, payload, parts.signature, 0), "MALFORMED")
    case("signature of 65 bytes", assembled(protected, {}, payload, parts.signature + b"\0"), "MALFORMED")
    case("trailing byte", good + b"\0", "MALFORMED")
    for name, header in (
        ("empty", b""),
        ("without key id", encode({1: -8, 3: "fl/update"})),
        ("with a further parameter", encode({1: -8, 3: "fl/update", 4: b"rpi-17", 5: b"iv"})),
        ("with an unknown algorithm", encode({1: -37, 3: "fl/update", 4: b"rpi-17"})),
        ("with an unknown domain", encode({1: -8, 3: "fl/other", 4: b"rpi-17"})),
        ("with a key id that is no name", encode({1: -8, 3: "fl/update", 4: b"rpi/17"})),
        ("with a key id of 49 bytes", encode({1: -8, 3: "fl/update", 4: b"a" * 49})),
        ("with keys out of order", bytes.fromhex("a30369666c2f7570646174650127044672" + "70692d3137")),
    ):
        case(f"protected header {name}", assembled(header, {}, payload, parts.signature), "MALFORMED")
    return cases


def digest_cases() -> list[Case]:
    """What each digest covers."""
    scores = m.Scores(base=104, updates=(116, -1), classes=())
    values = {
        "genesis": genesis_digest(ex.genesis()),
        "miner set": miner_set_hash(ex.genesis().miners),
        "miner set in another order": miner_set_hash(ex.genesis().miners[::-1]),
        "block": block_hash(ex.header()),
        "update": update_digest(ex.update_envelope()),
        "model root": model_root(ex.params()),
        "commitment": commitment(ex.CHAIN, 1, sha256(b"candidates"), ex.MINERS[0], scores, ex.SALT),
    }
    shards = [{"name": f"shard of {ex.DEVICE} in {n}", "shards": n, "shard": shard_of(ex.DEVICE, n)} for n in (1, 16)]
    return [{"name": name, "digest": digest} for name, digest in values.items()] + shards


def certificate_cases() -> list[Case]:
    """Certificates and outcomes against the trust anchor of ``messages.json``."""
    statement = ex.statement()

    def signed(by: tuple[MinerId, ...], **changes: Any) -> m.Certificate:
        voted = replace(statement, **changes)
        return assemble(voted, {miner: ex.vote(miner, voted, chain_id=voted.chain_id) for miner in by})

    three, good = ex.MINERS[1:], ex.certificate()
    twice = replace(good, signatures=(*good.signatures[:2], good.signatures[1]))
    stranger = replace(good.signatures[0], miner_id=MinerId("miner-9"))
    swapped = replace(good.signatures[0], signature=good.signatures[1].signature)
    rest = good.signatures[1:]
    certificates: tuple[tuple[str, m.Certificate, str | None], ...] = (
        ("three of four", good, None),
        ("four of four", signed(ex.MINERS), None),
        ("two of four", signed(ex.MINERS[:2]), "quorum"),
        ("one miner three times", replace(good, signatures=(good.signatures[0],) * 3), "duplicate"),
        ("two miners, one twice", twice, "duplicate"),
        ("a stranger among them", replace(good, signatures=(stranger, *rest)), "miner-set"),
        ("one's signature under another's name", replace(good, signatures=(swapped, *rest)), "signature"),
        ("height changed", replace(good, statement=replace(statement, height=13)), "signature"),
        ("expiry changed", replace(good, statement=replace(statement, expiry_s=1 << 40)), "signature"),
        ("another chain", signed(three, chain_id=ChainId("harbour-2")), "chain"),
        ("another task", signed(three, task="faces"), "task"),
        ("another miner set", signed(three, miner_set_hash=sha256()), "miner-set"),
        ("another version 0", signed(three, version=0), "version"),
        ("version 2 after one block", signed(three, version=2), "version"),
    )
    outcome = ex.outcome()
    other_entry = replace(outcome.entry, verdict=m.Verdict.REFUSED, reason=m.Reason.QUALITY, weight=0)
    outcomes: tuple[tuple[str, m.Outcome, str | None], ...] = (
        ("merged", outcome, None),
        ("another entry", replace(outcome, entry=other_entry), "proof"),
        ("another place", replace(outcome, proof=replace(outcome.proof, index=1)), "proof"),
        ("another size that the path also fits", replace(outcome, proof=replace(outcome.proof, size=4)), "proof"),
        ("another header", replace(outcome, header=replace(outcome.header, entry_count=4)), "block"),
        ("certificate below quorum", replace(outcome, certificate=signed(ex.MINERS[:2])), "quorum"),
    )
    cases: list[Case] = []
    for kind, items in (("Certificate", certificates), ("Outcome", outcomes)):
        for name, message, refused in items:
            result = {"is_valid": True} if refused is None else {"refused": refused}
            cases.append({"name": f"{kind}: {name}", "class": kind, "bytes": to_bytes(message)} | result)
    return cases


def merkle_cases() -> list[Case]:
    """Audit and consistency paths over the eight leaves that Certificate Transparency's own tests use."""
    leaves = [
        bytes.fromhex(leaf)
        for leaf in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
    ]
    cases: list[Case] = []
    for size in range(1, len(leaves) + 1):
        tree = leaves[:size]
        cases.append({"name": f"tree of {size}", "leaves": tree, "root": merkle.root(tree)})
        for index in range(size):
            path = merkle.inclusion_proof(tree, index).path
            cases.append({"name": f"leaf {index} of {size}", "size": size, "index": index, "inclusion": path})
        for old in range(1, size + 1):
            path = merkle.consistency_proof(tree, old)
            cases.append({"name": f"{old} before {size}", "old_size": old, "size": size, "consistency": path})
    return cases


FILES: Final[dict[str, Callable[[], list[Case]]]] = {
    "codec.json": codec_cases,
    "messages.json": message_cases,
    "envelopes.json": envelope_cases,
    "digests.json": digest_cases,
    "certificates.json": certificate_cases,
    "merkle.json": merkle_cases,
    "payloads.json": payload_cases,
}


def render(cases: list[Case]) -> str:
    """One case a line, so that a change of the contract shows as changed lines."""
    lines = [json.dumps({key: to_json(value) for key, value in case.items()}, ensure_ascii=False) for case in cases]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def main() -> int:
    """Write every file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, make in FILES.items():
        (FOLDER / name).write_text(render(make()), encoding="utf-8")
        print(f"wrote {FOLDER / name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
