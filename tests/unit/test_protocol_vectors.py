"""Golden vectors: published answers of the standards, and our own, which change only with the contract."""

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edge_sdk.errors import DecodeError, InvalidCertificateError, SignatureError
from edge_sdk.protocol import cose, digest, merkle, messages
from edge_sdk.protocol.certificate import verify_certificate, verify_outcome
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.ids import ChainId, Digest
from edge_sdk.protocol.limits import BLOB_BYTES_MAX
from edge_sdk.protocol.messages import Algorithm, Domain, InclusionProof, PublicKey, Reason
from edge_sdk.protocol.wire import from_bytes, to_bytes
from tools import make_vectors

FOLDER = Path(__file__).parent.parent / "vectors"
PUBLISHED: dict[str, Any] = json.loads((FOLDER / "published.json").read_text(encoding="utf-8"))


def load(name: str) -> list[Any]:
    """Cases of one file, as parameters named after them."""
    cases = json.loads((FOLDER / name).read_text(encoding="utf-8"))
    return [pytest.param(case, id=case["name"]) for case in cases]


@pytest.mark.parametrize("name", make_vectors.FILES)
def test_files_are_what_the_code_makes(name: str) -> None:
    assert (FOLDER / name).read_text(encoding="utf-8") == make_vectors.render(make_vectors.FILES[name]())


# --- published answers ---


def test_cbor_of_rfc_8949() -> None:
    section = PUBLISHED["cbor"]
    cases = [(case["value"], case["bytes"]) for case in section["cases"]]
    cases += [(bytes.fromhex(case["value_hex"]), case["bytes"]) for case in section["cases_with_bytes"]]
    cases += [(dict(case["pairs"]), case["bytes"]) for case in section["cases_with_maps"]]
    for value, data in cases:
        assert encode(value).hex() == data
        assert decode(bytes.fromhex(data), bytes_max=64) == value


@pytest.mark.parametrize("case", PUBLISHED["ed25519"]["cases"], ids=lambda case: case["name"])
def test_ed25519_of_rfc_8032(case: dict[str, str]) -> None:
    signer = cose.SoftwareSigner(Ed25519PrivateKey.from_private_bytes(bytes.fromhex(case["secret"])))
    assert signer.public_key == PublicKey(algorithm=Algorithm.EDDSA, data=bytes.fromhex(case["public"]))
    assert signer.sign(bytes.fromhex(case["message"])).hex() == case["signature"]


@pytest.mark.parametrize("case", PUBLISHED["cose_sign1"]["cases"], ids=lambda case: case["name"])
def test_cose_sign1_of_rfc_9052(case: dict[str, Any]) -> None:
    parts = (bytes.fromhex(case[name]) for name in ("protected", "external", "payload"))
    signed = cose._sig_structure(*parts)
    assert signed.hex() == case.get("to_be_signed", signed.hex())
    key = PublicKey(algorithm=Algorithm(case["algorithm"]), data=bytes.fromhex(case["key"]))
    signature = bytes.fromhex(case["signature"])
    cose._verify(key, signature, signed, "11")
    with pytest.raises(SignatureError):
        cose._verify(key, signature, signed + b"\0", "11")


def test_merkle_trees_of_certificate_transparency() -> None:
    section = PUBLISHED["merkle"]
    leaves = [bytes.fromhex(leaf) for leaf in section["leaves"]]
    assert merkle.root([]).hex() == section["empty_root"]
    assert [merkle.root(leaves[: n + 1]).hex() for n in range(8)] == section["roots"]
    for case in section["inclusion"]:
        path = merkle.inclusion_proof(leaves[: case["size"]], case["index"]).path
        assert [node.hex() for node in path] == case["path"]
    for case in section["consistency"]:
        path = merkle.consistency_proof(leaves[: case["size"]], case["old_size"])
        assert [node.hex() for node in path] == case["path"]


# --- our own ---


@pytest.mark.parametrize("case", load("codec.json"))
def test_codec_refuses(case: dict[str, str]) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(bytes.fromhex(case["bytes"]), bytes_max=BLOB_BYTES_MAX)
    assert caught.value.reason is Reason[case["refused"]]


@pytest.mark.parametrize("case", load("messages.json"))
def test_message(case: dict[str, Any]) -> None:
    cls: type = getattr(messages, case["class"])
    data = bytes.fromhex(case["bytes"])
    if "refused" in case:
        with pytest.raises(DecodeError) as caught:
            from_bytes(cls, data)
        assert caught.value.reason is Reason[case["refused"]]
    else:
        message: object = from_bytes(cls, data)
        assert make_vectors.to_json(message) == case["value"]
        assert to_bytes(message) == data


@pytest.mark.parametrize("case", load("envelopes.json"))
def test_envelope(case: dict[str, Any]) -> None:
    envelope = bytes.fromhex(case["envelope"])
    key = PublicKey(algorithm=Algorithm(case["key"]["algorithm"]), data=bytes.fromhex(case["key"]["data"]))
    domain, chain_id = Domain(case["domain"]), ChainId(case["chain_id"])
    if "refused" in case:
        with pytest.raises((DecodeError, SignatureError)) as caught:
            cose.verify(envelope, key=key, domain=domain, chain_id=chain_id)
        assert caught.value.reason is Reason[case["refused"]]
    else:
        assert cose.verify(envelope, key=key, domain=domain, chain_id=chain_id).hex() == case["payload"]
        assert digest.update_digest(envelope).hex() == case["digest"]


@pytest.mark.parametrize("case", load("certificates.json"))
def test_certificate(case: dict[str, Any]) -> None:
    genesis_case = next(
        case for case in json.loads((FOLDER / "messages.json").read_text()) if case["class"] == "Genesis"
    )
    genesis = from_bytes(messages.Genesis, bytes.fromhex(genesis_case["bytes"]))
    message: Any = from_bytes(getattr(messages, case["class"]), bytes.fromhex(case["bytes"]))
    verify: Any = {"Certificate": verify_certificate, "Outcome": verify_outcome}[case["class"]]
    if "refused" in case:
        with pytest.raises(InvalidCertificateError) as caught:
            verify(message, genesis)
        assert caught.value.reason == case["refused"]
    else:
        assert verify(message, genesis) == (message.entry if case["class"] == "Outcome" else None)


def test_merkle_paths_hold_against_the_published_roots() -> None:
    roots = [Digest(bytes.fromhex(root)) for root in PUBLISHED["merkle"]["roots"]]
    leaves = [bytes.fromhex(leaf) for leaf in PUBLISHED["merkle"]["leaves"]]
    cases = json.loads((FOLDER / "merkle.json").read_text())
    for case in cases:
        if "inclusion" in case:
            path = tuple(Digest(bytes.fromhex(node)) for node in case["inclusion"])
            proof = InclusionProof(index=case["index"], size=case["size"], path=path)
            merkle.verify_inclusion(leaves[proof.index], proof, roots[proof.size - 1], size=proof.size)
        elif "consistency" in case:
            path = tuple(Digest(bytes.fromhex(node)) for node in case["consistency"])
            old, new = case["old_size"], case["size"]
            old_root, new_root = roots[old - 1], roots[new - 1]
            merkle.verify_consistency(path, old_size=old, old_root=old_root, new_size=new, new_root=new_root)
    assert sum("inclusion" in case for case in cases) == sum("consistency" in case for case in cases) == 36
