"""Fuzz everything that reads a peer's bytes: ``python -m tools.fuzz_decode --seconds 60 --seed 1``.

Inputs are the golden vectors, changed, cut, spliced and with false lengths, and plain random bytes. For each: either a
``RemoteProtocolError`` with its reason, or a value whose encoding is the input, which an independent reader (cbor2)
reads alike; and no certificate but for what the miners signed. Anything else ends the run with exit status 1 and the
input in hex. One seed draws the same inputs again.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Final

import cbor2
import numpy as np

from edge_sdk.errors import InvalidCertificateError, RemoteProtocolError
from edge_sdk.protocol import cose, topics
from edge_sdk.protocol.certificate import verify_certificate, verify_outcome
from edge_sdk.protocol.codec import decode, encode
from edge_sdk.protocol.limits import BLOB_BYTES_MAX
from edge_sdk.protocol.messages import Certificate, Domain, ModelParams, Outcome, UpdatePayload
from edge_sdk.protocol.model import check_params
from edge_sdk.protocol.schema import TABLE
from edge_sdk.protocol.wire import from_bytes, to_bytes
from edge_sdk.training.codecs.reading import read_update
from tools.vector_examples import CHAIN, DEVICE, entries, genesis, params, signer
from tools.vector_examples import statement as genuine_statement

VECTORS: Final = Path(__file__).parent.parent / "tests" / "vectors"
CLAIMS: Final = tuple(
    bytes.fromhex(head) for head in ("5b7fffffffffffffff", "9affffffff", "bb00000001ffffffff", "5f", "9f")
)
"""Heads that promise more than there is."""
CHANGES_MAX: Final = 4


class OracleError(AssertionError):
    """A reader accepted what it should not have, or read it wrongly."""


def load_corpus(folder: Path = VECTORS) -> list[bytes]:
    """Every input of the golden vectors, the refused ones too."""
    corpus: list[bytes] = []
    for path in sorted(folder.glob("*.json")):
        cases = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(cases, list):
            found = (case.get("bytes") or case.get("envelope") or "" for case in cases)
            corpus.extend(bytes.fromhex(text) for text in found)
    return corpus


def mutate(rng: np.random.Generator, corpus: list[bytes]) -> bytes:
    """Draw an input: one of the corpus after a few changes, or random bytes."""
    if rng.integers(20) == 0:
        return rng.bytes(int(rng.integers(0, 64)))
    data = bytearray(corpus[rng.integers(len(corpus))])
    for _ in range(rng.integers(1, CHANGES_MAX + 1)):
        at = int(rng.integers(len(data) + 1))
        match int(rng.integers(7)):
            case 0:  # one bit
                if at < len(data):
                    data[at] ^= 1 << int(rng.integers(8))
            case 1:  # one byte, the head of any item
                data[at : at + 1] = rng.bytes(1)
            case 2:
                data[at:at] = rng.bytes(int(rng.integers(1, 4)))
            case 3:
                del data[at : at + int(rng.integers(1, 9))]
            case 4:  # a piece twice: keys, items
                data[at:at] = data[at : at + int(rng.integers(1, 33))]
            case 5:  # a false length
                data[at : at + 1] = CLAIMS[rng.integers(len(CLAIMS))]
            case _:  # a piece of another input
                other = corpus[rng.integers(len(corpus))]
                start = int(rng.integers(len(other) + 1))
                data[at:at] = other[start : start + int(rng.integers(1, 65))]
    return bytes(data)


def check_input(data: bytes) -> list[str]:
    """Give one input to every reader; the names of those that accept it.

    Raises:
        OracleError: a reader accepts what is not the only encoding of what it returns, or refuses without a reason.
    """
    accepted: list[str] = []
    try:
        value = decode(data, bytes_max=BLOB_BYTES_MAX)
    except RemoteProtocolError as error:
        _check_reason(error)
    else:
        accepted.append("codec")
        if encode(value) != data or cbor2.loads(data) != value:
            raise OracleError(f"codec: {value!r}")
    for cls in TABLE:
        try:
            message: object = from_bytes(cls, data)
        except RemoteProtocolError as error:
            _check_reason(error)
        else:
            accepted.append(cls.__name__)
            if to_bytes(message) != data:
                raise OracleError(f"{cls.__name__}: {message!r}")
            accepted += _check_content(message)
    accepted += _check_envelope(data)
    _check_topic(data)
    return accepted


def _check_content(message: object) -> list[str]:
    """Give what one message class accepts to the code that judges it."""
    try:
        match message:
            case Certificate(statement=statement):
                verify_certificate(message, genesis())
                is_genuine = statement == genuine_statement()
            case Outcome():
                is_genuine = verify_outcome(message, genesis()) in entries()
            case ModelParams():
                check_params(message)
                return ["valid model"]
            case UpdatePayload():
                _check_update(message)
                return ["valid update"]
            case _:
                return []
    except InvalidCertificateError:
        return []
    except RemoteProtocolError as error:
        _check_reason(error)
        return []
    if not is_genuine:
        raise OracleError(f"forged: {message!r}")
    return ["valid certificate"]


def _check_update(payload: UpdatePayload) -> None:
    """Open an update of the example's model: values in the model's shapes, none beyond the bound that it claims."""
    model = params()
    for sent, tensor in zip(read_update(payload, model), model.tensors, strict=True):
        size = math.prod(tensor.shape)
        assert sent is not None, "without a list of carried tensors an update carries all"
        values = sent.values[slice(0, size)]
        if values.shape != (size,) or int(abs(values.astype(np.int64)).max()) > sent.values.peak():
            raise OracleError(f"values of {payload!r}: {values!r}")


def _check_envelope(data: bytes) -> list[str]:
    try:
        parts = cose.peek(data)
    except RemoteProtocolError as error:
        _check_reason(error)
        return []
    if data != b"\xd2" + encode([parts.protected, {}, parts.payload, parts.signature]):
        raise OracleError(f"envelope: {parts!r}")
    key = signer(DEVICE).public_key
    try:
        cose.verify(parts, key=key, domain=Domain.UPDATE, chain_id=CHAIN)
    except RemoteProtocolError as error:
        _check_reason(error)
        return ["envelope"]
    return ["envelope", "signed envelope"]


def _check_topic(data: bytes) -> None:
    text = data.decode("latin-1")
    try:
        topics.parse(text)
    except RemoteProtocolError as error:
        _check_reason(error)


def _check_reason(error: RemoteProtocolError) -> None:
    if error.reason is None:
        raise OracleError(f"refused without a reason: {error}")


def run(seconds: float, seed: int) -> tuple[int, Counter[str]]:
    """Fuzz for a time; the number of inputs, and how often each reader accepted one.

    Raises:
        OracleError: the text holds the input.
    """
    rng, corpus = np.random.default_rng(seed), load_corpus()
    accepted: Counter[str] = Counter()
    count = 0
    stop_s = time.monotonic() + seconds
    while time.monotonic() < stop_s:
        data = mutate(rng, corpus)
        try:
            accepted.update(check_input(data))
        except Exception as error:
            raise OracleError(f"input {count} of seed {seed}: {error!r}\n{data.hex()}") from error
        count += 1
    return count, accepted


def main(argv: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description="fuzz the readers of the contract")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the inputs (default: 0)")
    parser.add_argument("--input", metavar="HEX", help="check this one input instead")
    arguments = parser.parse_args(argv)
    try:
        if arguments.input is not None:
            print("accepted by:", ", ".join(check_input(bytes.fromhex(arguments.input))) or "nobody")
            return 0
        count, accepted = run(arguments.seconds, arguments.seed)
    except OracleError as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{count} inputs, no finding; accepted: {dict(accepted.most_common())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
