"""``flchain model``: build an artifact, fetch a certified model, check it, look inside. Trusts no miner."""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from coordinator import cli_model_build, cli_model_inspect
from coordinator.genesis_file import load_genesis
from edge_sdk.adapters.durable_files import read_file, write_file
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.errors import (
    ConfigError,
    ConnectError,
    DecodeError,
    EdgeFLError,
    InvalidCertificateError,
    RemoteProtocolError,
)
from edge_sdk.protocol import wire
from edge_sdk.protocol.certificate import verify_certificate
from edge_sdk.protocol.digest import genesis_digest
from edge_sdk.protocol.ids import Digest
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX, BLOB_BYTES_MAX, ENVELOPE_BYTES_MAX
from edge_sdk.protocol.messages import Certificate, Genesis, ModelParams
from edge_sdk.protocol.model import check_params, model_root
from edge_sdk.training.artifact import Artifact

if TYPE_CHECKING:
    import httpx

DOCUMENT_BYTES_MAX: Final = 2 * ENVELOPE_BYTES_MAX
CONNECT_S: Final = 5.0
SILENCE_S: Final = 20.0
"""A miner that sends nothing for so long is given up."""
_URL: Final = re.compile(r"https?://[^\s/?#]+/?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Pulled:
    """A model that was fetched; nothing in it is verified."""

    blob: bytes
    certificate: bytes | None


def main(argv: Sequence[str]) -> int:
    """Run the command with its arguments; a model that does not hold is an error."""
    options = _parser().parse_args(argv)
    if options.command == "build":
        return cli_model_build.build(options)
    if options.command == "inspect":
        return _inspect(options)
    genesis = load_genesis(options.genesis)
    if options.anchor is not None and genesis_digest(genesis).hex() != options.anchor.lower():
        raise ConfigError(f"--anchor: {options.genesis} has {genesis_digest(genesis).hex()}: another genesis")
    if options.command == "verify":
        return _verify(options.file, genesis, options.certificate)
    return _pull(options.miner, genesis, options.out, options.version)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="flchain model", description="Build, fetch, verify and inspect models.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    pull = commands.add_parser("pull", help="fetch a model from a miner and verify it as a device does")
    pull.add_argument("--miner", required=True, type=_url, help="address, such as http://127.0.0.1:8080")
    pull.add_argument("--version", type=int, help="certified version; the latest when absent")
    pull.add_argument("-o", "--out", type=Path, required=True, help="folder for model and certificate")
    verify = commands.add_parser("verify", help="check a model file against the genesis")
    verify.add_argument("file", type=Path)
    verify.add_argument("--certificate", type=Path, help="default: beside the model, as pull writes it")
    for command in (pull, verify):
        command.add_argument("--genesis", type=Path, required=True, help="trust anchor")
        command.add_argument("--anchor", help="SHA-256 that the genesis must have, in hex")
    build = commands.add_parser("build", help="make a trainable artifact of a forward ONNX model")
    cli_model_build.add_parser(build)
    inspect = commands.add_parser("inspect", help="show what a model or artifact file holds")
    inspect.add_argument("file", type=Path)
    cli_model_inspect.add_options(inspect)
    return parser


def check_model(blob: bytes, certificate: bytes | None, genesis: Genesis) -> int:
    """Check a model as a device does before it installs it.

    Returns:
        Its version.

    Raises:
        DecodeError: the bytes are no model or no certificate.
        InvalidCertificateError: the certificate does not hold, or not for these bytes.
    """
    params = wire.from_bytes(ModelParams, blob)
    check_params(params)
    root = model_root(params)
    if certificate is None:
        if root != genesis.model_root:
            raise InvalidCertificateError("no certificate, and not the model that genesis names", reason="model-root")
        return 0
    decoded = wire.from_bytes(Certificate, certificate)
    verify_certificate(decoded, genesis)
    if decoded.statement.model_root != root:
        raise InvalidCertificateError("the certificate is for another model", reason="model-root")
    return decoded.statement.version


def _pull(miner: str, genesis: Genesis, out: Path, version: int | None) -> int:
    pulled = _fetch(miner, "latest" if version is None else str(version))
    found = check_model(pulled.blob, pulled.certificate, genesis)
    if version is not None and found != version:
        raise RemoteProtocolError(f"{miner} sent version {found}, asked for {version}", sender=miner)
    out.mkdir(parents=True, exist_ok=True)
    file = out / f"model-v{found}.cbor"
    if pulled.certificate is not None:
        write_file(_certificate_file(file), pulled.certificate)
        _warn_if_expired(pulled.certificate)
    write_file(file, pulled.blob)
    by = "the model of genesis" if pulled.certificate is None else "certified"
    print(f"{file}: version {found}, {by}, {len(pulled.blob)} bytes")
    return 0


def _verify(file: Path, genesis: Genesis, certificate_file: Path | None) -> int:
    blob = _read(file, BLOB_BYTES_MAX)
    named = certificate_file is not None
    certificate = read_file(certificate_file or _certificate_file(file), bytes_max=ENVELOPE_BYTES_MAX)
    if certificate is None and named:
        raise ConfigError(f"{certificate_file}: no such file: expected a certificate")
    try:
        version = check_model(blob, certificate, genesis)
    except (DecodeError, InvalidCertificateError) as error:
        raise EdgeFLError(f"{file}: {error}") from error
    if certificate is not None:
        _warn_if_expired(certificate)
    by = "genesis" if certificate is None else "a quorum certificate"
    print(f"{file}: version {version} of {genesis.task} on {genesis.chain_id} holds by {by}")
    return 0


def _inspect(options: argparse.Namespace) -> int:
    file: Path = options.file
    data = _read(file, max(BLOB_BYTES_MAX, ARTIFACT_BYTES_MAX))
    print(f"{file}: {len(data)} bytes, sha256 {hashlib.sha256(data).hexdigest()}")
    try:
        params = wire.from_bytes(ModelParams, data)
        check_params(params)
    except DecodeError:
        return _inspect_artifact(file, data, options)
    print(f"model, root {model_root(params).hex()}, {_count(params)} parameters")
    print(f"{'TENSOR':<24} {'SHAPE':<18} {'EXPONENT':>8} {'SCALES':>7}")
    for tensor in params.tensors:
        shape = "x".join(map(str, tensor.shape))
        print(f"{tensor.name:<24} {shape:<18} {tensor.exponent:>8} {len(tensor.scale_m) or '-':>7}")
    return 0


def _inspect_artifact(file: Path, data: bytes, options: argparse.Namespace) -> int:
    try:
        artifact = Artifact.load(data)
    except DecodeError as error:
        raise EdgeFLError(f"{file}: neither a model nor an artifact: {error}") from error
    cli_model_build.describe(artifact)
    cli_model_inspect.show(artifact, options)
    return 0


def _fetch(miner: str, version: str) -> Pulled:
    """Fetch a version's description and bytes; sizes are bounded before anything is kept."""
    try:
        import httpx
    except ImportError as error:
        raise ConfigError("flchain model pull needs an extra: pip install 'edge-flchain[miner]'") from error
    timeout = httpx.Timeout(SILENCE_S, connect=CONNECT_S)
    try:
        with httpx.Client(base_url=miner, timeout=timeout, trust_env=False, follow_redirects=False) as client:
            described = _get(client, f"/v1/models/{version}", bytes_max=DOCUMENT_BYTES_MAX)
            digest, size_bytes, certificate = _description(described, miner)
            blob = _get(client, f"/v1/blobs/sha256/{digest.hex()}", bytes_max=size_bytes)
    except httpx.HTTPError as error:
        raise ConnectError(f"{miner}: {error}") from error
    if len(blob) != size_bytes or hashlib.sha256(blob).digest() != digest:
        raise RemoteProtocolError(f"{miner} sent {len(blob)} bytes that are not the blob that it named", sender=miner)
    return Pulled(blob, certificate)


def _get(client: httpx.Client, path: str, *, bytes_max: int) -> bytes:
    data = bytearray()
    with client.stream("GET", path, headers={"accept-encoding": "identity"}) as response:
        if response.status_code != HTTPStatus.OK:
            raise RemoteProtocolError(f"{client.base_url}{path.lstrip('/')}: status {response.status_code}")
        for piece in response.iter_raw():
            if len(data) + len(piece) > bytes_max:
                raise RemoteProtocolError(f"{client.base_url}{path.lstrip('/')}: more than {bytes_max} bytes")
            data += piece
    return bytes(data)


def _description(data: bytes, miner: str) -> tuple[Digest, int, bytes | None]:
    """Digest, length and certificate out of a miner's JSON."""
    try:
        document: Any = json.loads(data)
        digest = bytes.fromhex(document["model_digest"])
        size_bytes = document["model_bytes"]
        encoded = document["certificate"]
        certificate = None if encoded is None else base64.b64decode(encoded, validate=True)
    except (ValueError, KeyError, TypeError, RecursionError, binascii.Error) as error:
        raise RemoteProtocolError(f"{miner}: not a description of a model", sender=miner) from error
    is_length = isinstance(size_bytes, int) and not isinstance(size_bytes, bool) and 0 < size_bytes <= BLOB_BYTES_MAX
    if len(digest) != hashlib.sha256().digest_size or not is_length:
        raise RemoteProtocolError(
            f"{miner}: a model of {size_bytes!r:.40} bytes, at most {BLOB_BYTES_MAX}", sender=miner
        )
    return Digest(digest), size_bytes, certificate


def _warn_if_expired(certificate: bytes) -> None:
    expiry_s = wire.from_bytes(Certificate, certificate).statement.expiry_s
    if SystemClock().time_s() >= expiry_s:
        print("warning: the certificate has expired; a device would keep the model it has")


def _certificate_file(model_file: Path) -> Path:
    return model_file.with_suffix(".certificate.cbor")


def _read(file: Path, bytes_max: int) -> bytes:
    data = read_file(file, bytes_max=bytes_max)
    if data is None:
        raise ConfigError(f"{file}: no such file: expected a model")
    return data


def _count(params: ModelParams) -> int:
    return sum(len(tensor.values) for tensor in params.tensors) // 4


def _url(text: str) -> str:
    if _URL.fullmatch(text) is None:
        raise argparse.ArgumentTypeError(f"{text!r}: expected http://HOST:PORT or https://HOST:PORT")
    return text.rstrip("/")
