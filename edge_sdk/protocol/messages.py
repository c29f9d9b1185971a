"""Every value that crosses a wire or enters a ledger.

Frozen, comparable, free of floats: what is signed must have one encoding. ``wire.py`` maps each class to a CBOR map
with small integer keys, in the
order of the fields here, starting at 1: appending a field is the only compatible change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum

from edge_sdk.protocol.ids import ChainId, DeviceId, Digest, MinerId, TaskId


class Domain(StrEnum):
    """What a signature is about.

    Part of the protected header and of the authenticated data, so that none can be replayed as another.
    """

    UPDATE = "fl/update"  # device -> miners, and a transaction
    FETCH = "fl/fetch"  # device -> miner: send me a blob over MQTT
    STATUS = "fl/status"  # device or miner: birth and death
    RECEIPT = "fl/receipt"  # miner -> device, and (status stored) a transaction
    RESUME = "fl/resume"  # miner -> device
    ANNOUNCEMENT = "fl/announcement"  # miner -> everybody, retained
    CERTIFICATE = "fl/certificate"  # a miner's vote for a decided block and model root; a transaction
    TICK = "fl/tick"  # transactions from here on
    COMMIT = "fl/commit"
    REVEAL = "fl/reveal"
    ENROL = "fl/enrol"  # by the registrar
    REVOKE = "fl/revoke"  # by the registrar
    RENEW = "fl/renew"  # device -> registrar: a CSR under the current key
    ARTIFACT = "fl/artifact"


class Algorithm(IntEnum):
    """COSE algorithm identifiers (RFC 9053)."""

    ES256 = -7
    EDDSA = -8


class Codec(IntEnum):
    """How the numbers of an update are written."""

    INT8_DENSE = 1
    INT16_DENSE = 2
    INT8_TOPK = 3
    """The largest values only, with their places as gaps."""
    INT4_DENSE = 4
    SIGN_DENSE = 5
    """One bit per value and one magnitude per channel."""
    INT8_OUTPUT = 6
    """int8 values of the output layer alone: nothing else is trained."""
    SPSA = 7
    """One byte per random direction; who receives it draws the directions again."""


class EnergyQuality(IntEnum):
    """How a figure in joules came about. Different qualities are never compared in one figure."""

    MODELLED = 1
    DERIVED = 2
    MEASURED = 3


class ReceiptStatus(IntEnum):
    """What a miner says of an update."""

    STORED = 1
    REFUSED = 2


class Verdict(IntEnum):
    """What the quorum decided."""

    MERGED = 1
    REFUSED = 2


class CutCause(IntEnum):
    """Why an update block was cut."""

    SIZE = 1
    TAU = 2


class Phase(IntEnum):
    """Where the chain is; a ``Tick`` names the phase that it wants closed."""

    COLLECT = 1
    COMMIT = 2
    REVEAL = 3
    CERTIFY = 4


class Reason(IntEnum):
    """Why something was refused. A fixed list: counted in metrics, tested, signed in receipts."""

    NONE = 0
    MALFORMED = 1
    UNKNOWN_DEVICE = 2
    REVOKED_DEVICE = 3
    BAD_SIGNATURE = 4
    WRONG_TOPIC = 5
    WRONG_CHAIN = 6
    WRONG_TASK = 7
    SEQ_WINDOW = 8
    EQUIVOCATION = 9
    DUPLICATE = 10
    STALE = 11
    FUTURE_BASE = 12
    BASE_ROOT = 13
    BASE_REUSED = 14
    EXPIRED = 15
    CODEC = 16
    SHAPE = 17
    EXPONENT = 18
    OVERSIZE = 19
    DIGEST_MISMATCH = 20
    FOREIGN_CHUNK = 21
    QUOTA = 22
    CAPACITY = 23
    UNAVAILABLE = 24
    OUT_OF_BOUNDS = 25
    QUALITY = 26
    UNKNOWN_MINER = 27
    WRONG_PHASE = 28
    UNKNOWN_UPDATE = 29
    BAD_REVEAL = 30
    WRONG_STATEMENT = 31
    TIMEOUT = 32

    @property
    def returns_delta(self) -> bool:
        """Whether the delta goes back to the residual.

        The update came too late or found no room; its content was not judged.
        """
        return self in _RETURNS_DELTA


_RETURNS_DELTA = frozenset(
    {
        Reason.STALE,
        Reason.EXPIRED,
        Reason.CAPACITY,
        Reason.QUOTA,
        Reason.BASE_REUSED,
        Reason.UNAVAILABLE,
        Reason.SEQ_WINDOW,
        Reason.TIMEOUT,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class PublicKey:
    """A verification key: Ed25519 as 32 bytes, P-256 as 65 bytes (uncompressed point)."""

    algorithm: Algorithm
    data: bytes


# --- genesis: the trust anchor of a device and of an auditor ---


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerRecord:
    """One member of the miner set; power counts per organisation."""

    miner_id: MinerId
    key: PublicKey
    power: int
    organisation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskParams:
    """The rules of one task, fixed at genesis. Integers only; units last."""

    block_size: int
    tau_ms: int
    phase_ms: int
    """A miner ticks a commit or reveal phase that lasts longer."""
    reveal_extensions_max: int
    staleness_max: int
    margin_permille: int
    """A score may be this much below the base and still be accepted."""
    method: str
    """Aggregation rule, ``fedbuff``."""
    server_rate_q16: int
    """eta_g times 2**16, at most 2**16."""
    clip_norm_q16: int
    """L2 bound of a whole delta, in units of 2**-16."""
    codec: Codec
    expiry_heights: int
    certificate_ttl_s: int
    local_steps: int
    batch: int
    learning_rate_q24: int
    example_count_max: int
    carried: tuple[int, ...] | None = None
    """Positions of the model's tensors that an update carries, ascending: those that are trained. None: all."""
    top_share_q16: int | None = None
    """INT8_TOPK: the largest share of the carried values that an update may hold, times 2**16. Others: None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Genesis:
    """Height 0 and version 0. Its SHA-256 is the trust anchor."""

    chain_id: ChainId
    task: TaskId
    created_s: int
    miners: tuple[MinerRecord, ...]
    registrar: PublicKey
    params: TaskParams
    artifact_digest: Digest
    model_root: Digest
    model_digest: Digest
    model_bytes: int
    artifact_bytes: int | None = None
    """Length of the artifact's file, so that it can be fetched in chunks; None in a genesis of before."""
    artifact_author: PublicKey | None = None
    """Who must have signed the artifact; None where the founder named nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthoredArtifact:
    """What the author of a training artifact signs: the file as it is without a signature, and the key itself."""

    author: PublicKey
    artifact: bytes


# --- device -> miner ---


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateManifest:
    """What a device signs about one update. ``example_count`` is a claim: capped, and not a weight by default."""

    task: TaskId
    chain_id: ChainId
    device_id: DeviceId
    seq: int
    base_version: int
    base_root: Digest
    codec: Codec
    blob_bytes: int
    blob_digest: Digest
    example_count: int
    local_steps: int
    training_ms: int
    energy_mj: int
    energy_quality: EnergyQuality
    expiry_height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PayloadTensor:
    """Numbers of one tensor: integers times 2**exponent. The codec says how they are written: README, *Payloads*."""

    name: str
    exponent: int
    values: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatePayload:
    """The blob of an update: the carried tensors in the model's order, each exactly once; of SPSA the one message."""

    codec: Codec
    tensors: tuple[PayloadTensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A piece of a blob; unsigned, since the digest in a signed manifest covers the whole."""

    digest: Digest
    """Uplink: digest of the update. Downlink: digest of the blob."""
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetch:
    """A device asks for byte ranges of a blob over MQTT, where HTTP is closed."""

    device_id: DeviceId
    blob_digest: Digest
    ranges: tuple[tuple[int, int], ...]
    """Half-open [start, stop)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """Birth (online) or death (Last Will) of a session.

    ``session`` rises with each connect, so that an old will cannot hide a new birth.
    """

    sender: str
    session: int
    online: bool
    installed_version: int
    note: str


# --- miner -> device ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """One miner's word on one update. ``STORED`` means: blob and row are durable here."""

    miner_id: MinerId
    device_id: DeviceId
    seq: int
    update_digest: Digest
    status: ReceiptStatus
    reason: Reason
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resume:
    """Byte ranges of an update's blob that a miner still misses; half-open."""

    miner_id: MinerId
    device_id: DeviceId
    update_digest: Digest
    ranges: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockEntry:
    """What became of one update of a block: a leaf of the block's entry tree."""

    update_digest: Digest
    device_id: DeviceId
    seq: int
    base_version: int
    verdict: Verdict
    reason: Reason
    score: int
    """Lower median, per mille; negative where none could be had."""
    weight: int
    """Integer weight in the merge; 0 when refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHeader:
    """An update block after its verdict. ``index`` counts from 1; index 0 is genesis."""

    chain_id: ChainId
    task: TaskId
    index: int
    cut_height: int
    decided_height: int
    cause: CutCause
    base_version: int
    version: int
    base_root: Digest
    base_score: int
    entry_count: int
    entries_root: Digest
    previous_hash: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatement:
    """What each miner signs after the merge of a block."""

    chain_id: ChainId
    task: TaskId
    version: int
    height: int
    """Log height of the verdict."""
    block_index: int
    block_hash: Digest
    model_root: Digest
    miner_set_hash: Digest
    expiry_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerSignature:
    """One signature over a statement; the protected header is implied by the miner's key."""

    miner_id: MinerId
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """A statement with signatures of distinct miners that hold more than 2/3 of the voting power."""

    statement: CertificateStatement
    signatures: tuple[MinerSignature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InclusionProof:
    """RFC 9162 audit path of a leaf; ``size`` must come from a signed place."""

    index: int
    size: int
    path: tuple[Digest, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """The certified end of an update: needs no trust in the miner that sends it."""

    entry: BlockEntry
    proof: InclusionProof
    header: BlockHeader
    certificate: Certificate


@dataclass(frozen=True, slots=True, kw_only=True)
class Announcement:
    """The newest certified model of one miner and where its bytes are."""

    miner_id: MinerId
    certificate: Certificate | None
    """None for version 0, which the trust anchor itself fixes."""
    version: int
    height: int
    """Latest log height known to the miner: a hint for expiry."""
    model_digest: Digest
    model_bytes: int
    artifact_digest: Digest
    urls: tuple[str, ...]


# --- transactions of miners and registrar ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Tick:
    """A miner's timer for a phase has run out.

    More than 2/3 of the power close the phase: time enters the log by no other door.
    """

    miner_id: MinerId
    block_index: int
    """Index of the block that is being collected or scored."""
    phase: Phase
    attempt: int
    """Number of the extension, 0 at first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """Hash of a miner's scores, before anybody shows theirs."""

    miner_id: MinerId
    block_index: int
    commitment: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """One miner's measure of a block on its own fold: integers per mille, negative codes of ``limits``."""

    base: int
    updates: tuple[int, ...]
    """In the order of the block's candidates."""
    classes: tuple[bytes, ...]
    """Recall per class in percent, 255 = class absent; the base first, then one per update; empty where there are no
    classes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reveal:
    """Scores and salt that open a commitment."""

    miner_id: MinerId
    block_index: int
    scores: Scores
    salt: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Enrol:
    """The registrar admits a device key, or replaces it."""

    device_id: DeviceId
    key: PublicKey
    serial: int
    """Of the enrolment: rises with each key of the same device."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Revoke:
    """The registrar withdraws a device; judged at the height of a block."""

    device_id: DeviceId
    serial: int


# --- the global model ---


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelTensor:
    """One tensor of the global model: int32 little-endian in C order, value = q * 2**exponent.

    A weight also carries one scale per channel, S = m * 2**-k, computed by the merge in integers and covered by the
    model root;
    ``scale_m`` and ``scale_k`` hold one byte per channel and are empty for other tensors.
    """

    name: str
    shape: tuple[int, ...]
    exponent: int
    channel_axis: int
    """-1 where there are no per-channel scales."""
    values: bytes
    scale_m: bytes
    scale_k: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelParams:
    """The global model, in the order of the artifact's tensor table; its Merkle root is the model root."""

    tensors: tuple[ModelTensor, ...]
