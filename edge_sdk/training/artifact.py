"""The artifact: one file that says how a device trains and how a miner evaluates.

``{1: manifest, 2: training-step graph, 3: evaluation graph}`` in deterministic CBOR, and ``4: flatbuffer`` where the
artifact was also built for LiteRT, ``5: int8 inference graph`` where it was calibrated; the SHA-256 of the file is the
artifact digest that genesis names. The graphs are plain ONNX (opset <= 18, IR <= 9), functional: all state goes in and
comes out. The manifest repeats the forward network as values, so that a backend without an ONNX runtime can train the
same model and every input can be checked without parsing a graph.

A signed artifact is such a file inside its author's envelope (``authorship``). Its digest is that of the envelope,
signature included, so that a fleet pins both.

Graph inputs and outputs, by name, are fixed here: see ``train_inputs`` and ``train_outputs``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from edge_sdk.errors import DecodeError, SignatureError, TrainingError
from edge_sdk.protocol import codec
from edge_sdk.protocol.ids import Digest, check_digest
from edge_sdk.protocol.limits import ARTIFACT_BYTES_MAX
from edge_sdk.protocol.messages import PublicKey
from edge_sdk.training.authorship import open_artifact, sign_artifact
from edge_sdk.training.grids import NO_GRIDS, NOT_CALIBRATED, Calibrated, Grids
from edge_sdk.training.manifest import (
    grid_rows,
    node_row,
    read_bytes,
    read_enum,
    read_grids,
    read_int,
    read_ints,
    read_list,
    read_map,
    read_node,
    read_rule,
    read_tensor,
    read_text,
    rule_bytes,
    tensor_row,
)
from edge_sdk.training.network import Network, Op, Role, Scheme, TensorSpec, check_network
from edge_sdk.training.update_rule import PLAIN_SGD, UpdateRule

if TYPE_CHECKING:
    from edge_sdk.protocol.cose import Signer

FORMAT: Final = 1
OPSET: Final = 18
IR_VERSION: Final = 9
_NAME_CHARS_MAX: Final = 48
_MANIFEST_KEYS: Final = 12
_RULE: Final = 13
"""Manifest key of the update rule; absent where it is plain SGD."""
_GRIDS: Final = 16
"""Manifest key of the calibrated activation grids."""
_LITERT, _INT8 = 4, 5
_OPTIONAL: Final = {_LITERT: (14, "flatbuffer"), _INT8: (15, "int8 inference graph")}
"""By key of the file: manifest key of the hash, and name; both keys are absent where there is none."""
_STATE_KINDS: Final = {Scheme.FP32: "fp32", Scheme.INT8: "q8.8", Scheme.INT8_SR: "int8-sr"}

X: Final = "x"
"""float32, (batch, *input_shape)."""
Y: Final = "y"
"""A classifier's: int64, (batch,), labels in 0..class_count - 1, also where the sample weight is 0. Other losses:
float32, (batch, class_count)."""
SAMPLE_WEIGHT: Final = "sample_weight"
"""float32, (batch,): 1 for an example, 0 for padding of a last batch."""
LEARNING_RATE: Final = "lr"
"""float32, scalar."""
LOSS: Final = "loss"
"""float32, scalar: mean over the examples of the batch."""
LOGITS: Final = "logits"


def state_name(tensor: str) -> str:
    """Input with a tensor's training state: int16 Q8.8 or int8 (weights of the int8 schemes), or float32.

    Also with the other states of a job, under the keys ``velocity_key`` and ``base_key``.
    """
    return f"{tensor}.state"


def velocity_key(tensor: str) -> str:
    """Key of a trained tensor's u among the states: int16 for a quantized weight, else float32."""
    return f"{tensor}.velocity"


def base_key(tensor: str) -> str:
    """Key of a trained tensor's state at the start of the job; goes in and does not come out."""
    return f"{tensor}.base"


def noise_names(tensor: str) -> tuple[str, str]:
    """Inputs with the noise of stochastic rounding: rows (r, 1, ...) and columns (1, ...), float32 in [0, 1)."""
    return f"{tensor}.rows", f"{tensor}.columns"


def scale_name(tensor: str) -> str:
    """Input with a weight's scales, float32, one per channel (int8 schemes only)."""
    return f"{tensor}.scale"


def mask_name(value: str) -> str:
    """Input with the mask of the dropout that makes ``value``: 1 / (1 - rate) for what stays, else 0."""
    return f"{value}.mask"


def next_name(tensor: str) -> str:
    """Output with a tensor's state after the step."""
    return f"{tensor}.next"


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A checked artifact. ``digest`` is the SHA-256 of ``data``, the file's bytes."""

    name: str
    network: Network
    batch: int
    scheme: Scheme
    rule: UpdateRule
    train_onnx: bytes
    eval_onnx: bytes
    digest: Digest
    data: bytes
    author: PublicKey | None
    """Whose signature holds; None where the file has none."""
    litert: bytes = b""
    """Training step for LiteRT (``litert_signatures``); empty where it was not built."""
    int8_onnx: bytes = b""
    """Inference with int8 weights and activations, int8_inputs -> logits; empty without ``grids``."""
    grids: Grids = field(default_factory=lambda: NO_GRIDS, hash=False)
    """By value: uint8 grid of an activation, fixed by calibration; empty: the range of each batch."""

    @classmethod
    def load(cls, data: bytes, *, digest: Digest | None = None, author: PublicKey | None = None) -> Artifact:
        """Check digest, signature, structure, bounds and the hashes of both graphs, then return the artifact.

        Args:
            data: The file's bytes.
            digest: What the file must hash to, for instance from genesis; None skips that comparison.
            author: Whose signature it must bear; None takes any that holds, and a file without one.

        Raises:
            DecodeError: anything does not hold; nothing of the file has been used.
        """
        if len(data) > ARTIFACT_BYTES_MAX:
            raise DecodeError(f"artifact has {len(data)} bytes, at most {ARTIFACT_BYTES_MAX}")
        found = Digest(hashlib.sha256(data).digest())
        if digest is not None and found != digest:
            raise DecodeError(f"artifact digest is {found.hex()}, expected {digest.hex()}")
        try:
            unsigned, signed_by = open_artifact(data)
        except SignatureError as error:
            raise DecodeError(f"artifact signature: {error}") from error
        if author is not None and signed_by != author:
            raise DecodeError(f"artifact is signed by {_fingerprint(signed_by)}, expected {_fingerprint(author)}")
        fields = codec.decode(unsigned, bytes_max=ARTIFACT_BYTES_MAX)
        try:
            return _read(fields, data, found, signed_by)
        except DecodeError:
            raise
        except (ValueError, TrainingError) as error:
            raise DecodeError(f"artifact: {error}") from error

    @classmethod
    def pack(
        cls,
        *,
        name: str,
        network: Network,
        batch: int,
        scheme: Scheme,
        rule: UpdateRule = PLAIN_SGD,
        train_onnx: bytes,
        eval_onnx: bytes,
        calibrated: Calibrated = NOT_CALIBRATED,
    ) -> Artifact:
        """Write the file and load it again, so that what was written is what will be accepted."""
        manifest: dict[int, object] = {
            1: FORMAT,
            2: name,
            3: list(network.input_shape),
            4: network.class_count,
            5: batch,
            6: int(scheme),
            7: OPSET,
            8: IR_VERSION,
            9: [tensor_row(spec) for spec in network.tensors],
            10: [node_row(node) for node in network.nodes],
            11: hashlib.sha256(train_onnx).digest(),
            12: hashlib.sha256(eval_onnx).digest(),
        }
        if not rule.is_plain:
            manifest[_RULE] = rule_bytes(rule)
        content: dict[int, object] = {1: manifest, 2: train_onnx, 3: eval_onnx}
        if calibrated.grids:
            manifest[_GRIDS] = grid_rows(calibrated.grids)
            _add_part(content, _INT8, calibrated.int8_onnx)
        return cls.load(codec.encode(content))

    def with_flatbuffer(self, litert: bytes) -> Artifact:
        """The same artifact, unsigned, for LiteRT too."""
        unsigned, _ = open_artifact(self.data)
        content = codec.decode(unsigned, bytes_max=ARTIFACT_BYTES_MAX)
        _add_part(content, _LITERT, litert)
        return Artifact.load(codec.encode(content))

    def signed(self, signer: Signer) -> Artifact:
        """The same artifact with the signature of ``signer``, instead of that which it may have."""
        unsigned, _ = open_artifact(self.data)
        return Artifact.load(sign_artifact(unsigned, signer))

    @property
    def authored_by(self) -> str:
        """Who made it, as people compare it: the fingerprint of the author's key."""
        return "nobody: it is not signed" if self.author is None else _fingerprint(self.author)

    @property
    def state_kind(self) -> str:
        """Name of the weights' training state: ``q8.8``, ``int8-sr`` or ``fp32``."""
        return _STATE_KINDS[self.scheme]

    @property
    def rounds_stochastically(self) -> bool:
        """Whether the training step takes noise."""
        return self.scheme is Scheme.INT8_SR

    @property
    def train_inputs(self) -> tuple[str, ...]:
        """Names that the training-step graph takes."""
        names = [X, Y, SAMPLE_WEIGHT, LEARNING_RATE]
        for spec in self.network.tensors:
            names.append(state_name(spec.name))
            if self.is_quantized(spec):
                names.append(scale_name(spec.name))
                if self.rounds_stochastically and spec.is_trainable:
                    names += noise_names(spec.name)
        names += [state_name(key) for key in (*self.velocity_keys.values(), *self.base_keys.values())]
        names += [mask_name(node.output) for node in self.network.nodes if node.op is Op.DROPOUT]
        return tuple(names)

    @property
    def frozen_inputs(self) -> tuple[str, ...]:
        """Those that hold what no step changes: states and scales of the frozen tensors."""
        frozen = [spec for spec in self.network.tensors if not spec.is_trainable]
        scales = (scale_name(spec.name) for spec in frozen if self.is_quantized(spec))
        return (*(state_name(spec.name) for spec in frozen), *scales)

    @property
    def int8_inputs(self) -> tuple[str, ...]:
        """Names that the int8 inference graph takes: states of weights are int8 whatever the scheme trains."""
        names = [X]
        for spec in self.network.tensors:
            names += (
                [state_name(spec.name), scale_name(spec.name)] if self.is_quantized(spec) else [state_name(spec.name)]
            )
        return tuple(names)

    @property
    def train_outputs(self) -> tuple[str, ...]:
        """Names that the training-step graph gives."""
        trained = (spec.name for spec in self.network.tensors if spec.is_trainable)
        return (*map(next_name, (*trained, *self.velocity_keys.values())), LOSS)

    @property
    def velocity_keys(self) -> dict[str, str]:
        """By trained tensor: key of its u among the states; empty without momentum."""
        return self._keys(velocity_key) if self.rule.momentum else {}

    @property
    def base_keys(self) -> dict[str, str]:
        """By trained tensor: key of its base among the states; empty without a proximal term."""
        return self._keys(base_key) if self.rule.prox else {}

    def is_quantized(self, spec: TensorSpec) -> bool:
        """Whether a tensor's training state is Q8.8 or int8 with per-channel scales."""
        return self.scheme is not Scheme.FP32 and spec.role is Role.WEIGHT

    def _keys(self, key: Callable[[str], str]) -> dict[str, str]:
        return {spec.name: key(spec.name) for spec in self.network.tensors if spec.is_trainable}


def _fingerprint(key: PublicKey | None) -> str:
    from edge_sdk.protocol.digest import key_fingerprint  # loads cryptography

    return "nobody" if key is None else key_fingerprint(key)


def _read(fields: object, data: bytes, digest: Digest, author: PublicKey | None) -> Artifact:
    """Typed walk through the decoded file."""
    top = read_map(fields, 3, "file", optional=frozenset(_OPTIONAL))
    hash_keys = {hash_key for hash_key, _ in _OPTIONAL.values()}
    manifest = read_map(top[1], _MANIFEST_KEYS, "manifest", optional=frozenset({_RULE, _GRIDS, *hash_keys}))
    train_onnx, eval_onnx = read_bytes(top[2], "training-step graph"), read_bytes(top[3], "evaluation graph")
    hashed = [(train_onnx, 11, "training-step graph"), (eval_onnx, 12, "evaluation graph")]
    for file_key, (hash_key, what) in _OPTIONAL.items():
        part = read_bytes(top.get(file_key, b""), what)
        if bool(part) != (hash_key in manifest) or (file_key in top and not part):
            raise DecodeError(f"artifact: a {what} without a hash, or a hash without a {what}")
        if part:
            hashed.append((part, hash_key, what))
    for graph, key, what in hashed:
        if hashlib.sha256(graph).digest() != check_digest(read_bytes(manifest[key], what)):
            raise DecodeError(f"artifact: hash of the {what} does not match")
    if read_int(manifest[1]) != FORMAT:
        raise DecodeError(f"artifact format {manifest[1]}, expected {FORMAT}")
    if read_int(manifest[7]) > OPSET or read_int(manifest[8]) > IR_VERSION:
        raise DecodeError(f"artifact needs opset {manifest[7]} and IR {manifest[8]}, at most {OPSET} and {IR_VERSION}")
    network = Network(
        input_shape=read_ints(manifest[3]),
        class_count=read_int(manifest[4]),
        tensors=tuple(read_tensor(row) for row in read_list(manifest[9], "tensors")),
        nodes=tuple(read_node(row) for row in read_list(manifest[10], "nodes")),
    )
    batch = read_int(manifest[5])
    check_network(network, batch=batch)
    name = read_text(manifest[2])
    if not 1 <= len(name) <= _NAME_CHARS_MAX:
        raise DecodeError(f"artifact name has {len(name)} characters, expected 1..{_NAME_CHARS_MAX}")
    scheme = read_enum(Scheme, manifest[6])
    grids = read_grids(manifest.get(_GRIDS), network, scheme)
    if bool(grids) != (_INT8 in top):
        raise DecodeError("artifact: activation grids without an int8 inference graph, or that without them")
    return Artifact(
        name=name,
        network=network,
        batch=batch,
        scheme=scheme,
        rule=read_rule(manifest.get(_RULE)),
        train_onnx=train_onnx,
        eval_onnx=eval_onnx,
        digest=digest,
        data=data,
        author=author,
        litert=read_bytes(top.get(_LITERT, b""), "flatbuffer"),
        int8_onnx=read_bytes(top.get(_INT8, b""), "int8 inference graph"),
        grids=grids,
    )


def _add_part(content: Any, key: int, part: bytes) -> None:
    """Add an optional part to a file, and its hash to the manifest."""
    content[key] = part
    content[1][_OPTIONAL[key][0]] = hashlib.sha256(part).digest()
