"""Layer check: imports point down, and below the adapters nothing touches the outside world.

Every module of the three packages has a layer in ``LAYERS``; a module without one is an error, so that a new file is
placed on purpose. All imports are read from the syntax tree, those inside functions and under TYPE_CHECKING too: a name
that only an annotation uses still ties two modules together.

Rules, by the name that a violation reports:

- ``syntax``    the oldest supported Python reads the module.
- ``unknown``   the module has no layer.
- ``relative``  imports are absolute.
- ``up``        an import points to a lower layer, or stays in its layer inside the same package (the coordinator builds
                on edge_sdk's lower layers, ``SHARED_LAYERS``).
- ``apart``     machines and engines do not know each other; an app feeds one from the other.
- ``package``   edge_sdk never imports coordinator; firmware_profiles imports neither.
- ``facade``    a package's own name offers ``__version__`` to code below the apps, nothing else.
- ``outside``   below the adapters: no clock, random source, file, environment variable, socket, thread or process.
- ``install``   edge_sdk uses the standard library and the packages of the base install only.
- ``lazy``      numpy, onnxruntime and edge_sdk.training load only when a device trains.
- ``dynamic``   importlib would hide an import from this check.

Run: ``python -m tools.check_layers [ROOT]``.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final

PYTHON_MIN: Final = (3, 11)


class Layer(IntEnum):
    """From the bottom up; an import may only go down."""

    DATA = 0
    PROTOCOL = 1
    ENGINES = 2
    MACHINES = 3
    ADAPTERS = 4
    APPS = 5


PACKAGES: Final = ("edge_sdk", "coordinator", "firmware_profiles")

# Longest prefix wins. A folder stands for every module in it.
LAYERS: Final = {
    "firmware_profiles.boards": Layer.DATA,
    "firmware_profiles.profile": Layer.DATA,
    "firmware_profiles.errors": Layer.DATA,
    "firmware_profiles.image": Layer.ADAPTERS,
    "firmware_profiles.flash": Layer.ADAPTERS,
    "firmware_profiles.cli": Layer.APPS,
    "firmware_profiles.cli_boards": Layer.APPS,
    "firmware_profiles.cli_flash": Layer.APPS,
    "firmware_profiles.cli_image": Layer.APPS,
    "edge_sdk.errors": Layer.PROTOCOL,
    "edge_sdk.ports": Layer.PROTOCOL,  # interfaces of the adapters, without any of their I/O
    "edge_sdk.protocol": Layer.PROTOCOL,
    "edge_sdk.training": Layer.ENGINES,
    "edge_sdk.energy": Layer.ADAPTERS,
    "edge_sdk.energy.model": Layer.ENGINES,
    "edge_sdk.participant": Layer.MACHINES,
    "edge_sdk.governor": Layer.MACHINES,
    "edge_sdk.config": Layer.ADAPTERS,  # reads a file; machines get the values they need as arguments
    "edge_sdk.adapters": Layer.ADAPTERS,
    "edge_sdk.device": Layer.APPS,
    "edge_sdk.upgrade": Layer.ADAPTERS,
    "edge_sdk.upgrade.canonical": Layer.PROTOCOL,
    "edge_sdk.upgrade.metadata": Layer.PROTOCOL,
    "edge_sdk.upgrade.release": Layer.PROTOCOL,
    "edge_sdk.upgrade.trusted": Layer.PROTOCOL,
    "edge_sdk.upgrade.trial": Layer.MACHINES,
    "edge_sdk.upgrade.offer": Layer.MACHINES,
    "edge_sdk.upgrade.probe": Layer.APPS,
    "edge_sdk.upgrade.updater": Layer.APPS,
    "edge_sdk.cli_upgrade": Layer.APPS,
    "edge_sdk.measure": Layer.APPS,
    "edge_sdk.cli_measure": Layer.APPS,
    "edge_sdk.cli": Layer.APPS,
    "edge_sdk.entry": Layer.APPS,
    "coordinator.errors": Layer.PROTOCOL,
    "coordinator.authoring": Layer.ENGINES,
    "coordinator.aggregation": Layer.ENGINES,
    "coordinator.aggregation.fedbuff": Layer.MACHINES,  # weights on integers, part of the merge plan
    "coordinator.aggregation.suitability": Layer.MACHINES,  # a table that a genesis is checked against
    "coordinator.validation": Layer.ENGINES,
    "coordinator.validation.commit_reveal": Layer.MACHINES,  # decisions of the application, on integers
    "coordinator.validation.verdict": Layer.MACHINES,
    "coordinator.application": Layer.MACHINES,
    "coordinator.events": Layer.MACHINES,
    "coordinator.rounds": Layer.MACHINES,
    "coordinator.admission": Layer.MACHINES,
    "coordinator.execution": Layer.MACHINES,
    "coordinator.transactions": Layer.MACHINES,
    "coordinator.pool": Layer.MACHINES,
    "coordinator.ledger": Layer.MACHINES,
    "coordinator.ledger.store": Layer.ADAPTERS,
    "coordinator.ledger.blobs": Layer.ADAPTERS,
    "coordinator.ledger.derivation": Layer.ADAPTERS,
    "coordinator.ledger.replay": Layer.ADAPTERS,
    "coordinator.ledger.schema": Layer.ADAPTERS,
    "coordinator.ordering": Layer.ADAPTERS,
    "coordinator.serving": Layer.ADAPTERS,
    "coordinator.enrolment": Layer.ADAPTERS,
    "coordinator.upgrades": Layer.ADAPTERS,
    "coordinator.cli_upgrade": Layer.APPS,
    "coordinator.datasets": Layer.ADAPTERS,  # reads the files of real data sets
    "coordinator.peers": Layer.ADAPTERS,
    "coordinator.intake": Layer.ADAPTERS,
    "coordinator.broker": Layer.ADAPTERS,
    "coordinator.author_key": Layer.ADAPTERS,
    "coordinator.own_model": Layer.ADAPTERS,
    "coordinator.config": Layer.ADAPTERS,
    "coordinator.genesis_file": Layer.ADAPTERS,
    "coordinator.onnx_files": Layer.ADAPTERS,
    "coordinator.flatbuffers": Layer.ADAPTERS,
    "coordinator.torch_files": Layer.ADAPTERS,
    "coordinator.json_log": Layer.ADAPTERS,
    "coordinator.miner": Layer.APPS,
    "coordinator.abci_handler": Layer.APPS,
    "coordinator.behaviour": Layer.MACHINES,
    "coordinator.chain_view": Layer.APPS,
    "coordinator.courier": Layer.APPS,
    "coordinator.deadlines": Layer.MACHINES,
    "coordinator.downlink": Layer.APPS,
    "coordinator.duties": Layer.APPS,
    "coordinator.follower": Layer.APPS,
    "coordinator.heap": Layer.APPS,
    "coordinator.identity": Layer.APPS,
    "coordinator.journal": Layer.APPS,
    "coordinator.library": Layer.APPS,
    "coordinator.merging": Layer.APPS,
    "coordinator.one_thread": Layer.APPS,
    "coordinator.pruning": Layer.APPS,
    "coordinator.reception": Layer.APPS,
    "coordinator.submission": Layer.APPS,
    "coordinator.codec_choice": Layer.APPS,
    "coordinator.task_form": Layer.APPS,
    "coordinator.upload_form": Layer.APPS,
    "coordinator.worker": Layer.APPS,
    "coordinator.zoo_file": Layer.APPS,
    "coordinator.demo": Layer.APPS,
    "coordinator.setup": Layer.APPS,
    "coordinator.setup_texts": Layer.APPS,
    "coordinator.calibration_file": Layer.ADAPTERS,
    "coordinator.cli": Layer.APPS,
    "coordinator.cli_bench": Layer.APPS,
    "coordinator.cli_ledger": Layer.APPS,
    "coordinator.cli_miner": Layer.APPS,
    "coordinator.cli_model": Layer.APPS,
    "coordinator.cli_model_build": Layer.APPS,
    "coordinator.cli_model_boards": Layer.APPS,
    "coordinator.cli_model_inspect": Layer.APPS,
    "coordinator.cli_model_plan": Layer.APPS,
    "coordinator.model_picture": Layer.APPS,
    "coordinator.cli_model_training": Layer.APPS,
    "coordinator.cli_registry": Layer.APPS,
    "coordinator.cli_sequencer": Layer.APPS,
    "coordinator.study": Layer.APPS,
    "coordinator.training_bench": Layer.APPS,
}

# Layers of edge_sdk on which the coordinator builds; only the study also drives the device's machine.
SHARED_LAYERS: Final = frozenset({Layer.DATA, Layer.PROTOCOL, Layer.ENGINES, Layer.ADAPTERS})
STUDY: Final = "coordinator.study"

# What reaches outside the process, or starts work beside it.
CLOCK: Final = {"time", "datetime", "sched"}
CHANCE: Final = {"random", "secrets", "uuid"}
FILES: Final = {
    "os",
    "io",
    "pathlib",
    "tempfile",
    "shutil",
    "glob",
    "mmap",
    "tomllib",
    "configparser",
    "sqlite3",
    "dbm",
}
SOCKETS: Final = {"socket", "ssl", "select", "selectors", "socketserver", "http", "urllib", "paho", "amqtt", "httpx"}
WORKERS: Final = {"threading", "asyncio", "multiprocessing", "concurrent", "subprocess", "signal"}
SURROUNDINGS: Final = {
    "logging",
    "platform",
    "getpass",
    "importlib",
    "rich",
    "prometheus_client",
    "matplotlib",
    "sklearn",
}
SERVERS: Final = {"starlette", "uvicorn"}
OUTSIDE: Final = frozenset(CLOCK | CHANCE | FILES | SOCKETS | WORKERS | SURROUNDINGS | SERVERS)
OUTSIDE_CALLS: Final = frozenset({"open", "input", "print"})
# Parts of those modules that only compute.
PURE: Final = ("io.BytesIO", "io.StringIO", "os.PathLike", "os.fspath", "pathlib.PurePath", "pathlib.PurePosixPath")
# The board's artifact and data fit no message: their loaders open, check and map them.
OUTSIDE_ALLOWED: Final = {
    "edge_sdk.training.artifact": {"pathlib"},
    "edge_sdk.training.backends": {"importlib"},
    "edge_sdk.training.dataset": {"pathlib", "mmap", "os", "open"},
    "firmware_profiles.profile": {"pathlib", "tomllib", "importlib"},  # the board files of its own package
}

BASE_INSTALL: Final = frozenset({"numpy", "onnxruntime", "paho", "cryptography", "cbor2"})
# Optional training backends, each an extra.
BACKENDS: Final = frozenset({"torch", "ai_edge_litert", "tflite_runtime"})
HEAVY: Final = frozenset({"numpy", "onnxruntime"}) | BACKENDS
TRAINING: Final = "edge_sdk.training"
DYNAMIC: Final = ("importlib", "importlib.import_module", "importlib.util", "importlib.machinery", "runpy")
# The dispatcher of subcommands, the choice of a training backend from a table of our own modules, and a person's own
# file with a torch module.
DYNAMIC_ALLOWED: Final = frozenset({"edge_sdk.entry", "edge_sdk.training.backends", "coordinator.torch_files"})


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule at one place."""

    path: Path
    line: int
    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.rule}: {self.message}"


@dataclass(frozen=True, slots=True)
class Import:
    """One imported module or name.

    ``name`` is the full dotted name: ``a.b.c`` for ``from a.b import c``, be c a module or a value.
    """

    name: str
    line: int
    is_eager: bool  # runs when the module loads: not inside a function, not under TYPE_CHECKING


def is_in(module: str, prefix: str) -> bool:
    """Whether a dotted name is the prefix or lies below it."""
    return module == prefix or module.startswith(f"{prefix}.")


def layer_of(name: str) -> Layer | None:
    """Layer of a module, or of the module that holds a name; None when the table has none."""
    while name:
        if name in LAYERS:
            return LAYERS[name]
        name = name.rpartition(".")[0]
    return None


def module_name(path: Path) -> str:
    """Dotted name of a source file given relative to the root."""
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def check_source(module: str, source: str, path: Path) -> list[Violation]:
    """Check one module.

    Args:
        module: Its dotted name.
        source: Its text.
        path: Named in the violations.

    Returns:
        Broken rules in the order of their lines.
    """
    layer = Layer.APPS if module in PACKAGES else layer_of(module)
    if layer is None:
        return [Violation(path, 1, "unknown", f"{module} has no layer; place it in LAYERS of tools/check_layers.py")]
    try:
        tree = ast.parse(source, feature_version=PYTHON_MIN)
    except SyntaxError as error:
        return [Violation(path, error.lineno or 1, "syntax", error.msg)]
    found = [
        Violation(path, item.line, rule, message)
        for item in _imports(tree)
        for rule, message in _check_import(module, layer, item)
    ]
    found += [Violation(path, line, rule, message) for line, rule, message in _check_calls(module, layer, tree)]
    return sorted(found, key=lambda violation: violation.line)


def check_tree(root: Path) -> list[Violation]:
    """Check every module of the packages below a root folder."""
    found: list[Violation] = []
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            relative = path.relative_to(root)
            if not relative.stem.endswith("_pb2"):  # generated, imports its own runtime only
                found += check_source(module_name(relative), path.read_text(encoding="utf-8"), relative)
    return found


def _imports(node: ast.AST, *, is_eager: bool = True) -> Iterator[Import]:
    """Every import below a node, wherever it stands."""
    match node:
        case ast.Import(names=names):
            yield from (Import(alias.name, node.lineno, is_eager) for alias in names)
        case ast.ImportFrom(names=names):
            origin = "." * node.level + (node.module or "")
            for alias in names:
                yield Import(origin if alias.name == "*" else f"{origin}.{alias.name}", node.lineno, is_eager)
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING")):
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, is_eager=is_eager and child in node.orelse)
        case _:
            is_deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            for child in ast.iter_child_nodes(node):
                yield from _imports(child, is_eager=is_eager and not is_deferred)


def _check_import(module: str, layer: Layer, item: Import) -> Iterator[tuple[str, str]]:
    package, target_package = package_of(module), package_of(item.name)
    if item.name.startswith("."):
        yield "relative", f"import {item.name} by its full name"
    elif target_package in PACKAGES:
        yield from _check_own(module, layer, item)
    else:
        yield from _check_foreign(module, layer, item)
    is_idle_path = package == "edge_sdk" and item.is_eager and not is_in(module, TRAINING)
    if is_idle_path and (target_package in HEAVY or is_in(item.name, TRAINING)):
        yield "lazy", f"import {item.name} inside the function that trains; an idle device never loads it"


def _check_foreign(module: str, layer: Layer, item: Import) -> Iterator[tuple[str, str]]:
    """Rules for the standard library and installed packages."""
    target = package_of(item.name)
    is_pure = any(is_in(item.name, name) for name in PURE)
    if layer < Layer.ADAPTERS and target in OUTSIDE and not is_pure and not _is_allowed(module, target):
        yield "outside", f"{layer.name.lower()} may not use {target}; take the value as an argument"
    if package_of(module) != "coordinator" and not _is_on_a_board(module, target):
        yield "install", f"{target} is not part of the device's base install"
    if item.name in DYNAMIC and module not in DYNAMIC_ALLOWED:
        yield "dynamic", "importlib hides the import from this check; import inside a function instead"


def _check_own(module: str, layer: Layer, item: Import) -> Iterator[tuple[str, str]]:
    """Rules between our own modules."""
    package, target_package = package_of(module), package_of(item.name)
    if (package == "firmware_profiles" != target_package) or (
        package == "edge_sdk" and target_package == "coordinator"
    ):
        yield "package", f"{package} never imports {target_package}"
        return
    target = layer_of(item.name)
    if target is None and item.name.count(".") <= 1:  # the package itself, or a name that its __init__ offers
        if layer < Layer.APPS and not item.name.endswith(".__version__"):
            yield "facade", f"{item.name}: import the module that defines it"
    elif target is None:
        yield "unknown", f"{item.name} has no layer; place it in LAYERS of tools/check_layers.py"
    elif target > layer:
        yield "up", f"{layer.name.lower()} may not import {target.name.lower()} ({item.name})"
    elif {layer, target} == {Layer.MACHINES, Layer.ENGINES}:
        yield "apart", f"{layer.name.lower()} and {target.name.lower()} do not know each other ({item.name})"
    elif package == "coordinator" and target_package == "edge_sdk" and not _is_shared(module, target):
        yield "up", f"{item.name}: the coordinator takes of edge_sdk what lies below its {target.name.lower()}"


def package_of(name: str) -> str:
    """First part of a dotted name."""
    return name.partition(".")[0]


def _is_shared(module: str, target: Layer) -> bool:
    return target in SHARED_LAYERS or (target is Layer.MACHINES and is_in(module, STUDY))


def _is_allowed(module: str, name: str) -> bool:
    return name in OUTSIDE_ALLOWED.get(module, ())


def _is_on_a_board(module: str, target_package: str) -> bool:
    if target_package in sys.stdlib_module_names:
        return True
    if is_in(module, "firmware_profiles"):
        return False
    return target_package in BASE_INSTALL or (is_in(module, TRAINING) and target_package in BACKENDS)


def _check_calls(module: str, layer: Layer, tree: ast.Module) -> Iterator[tuple[int, str, str]]:
    """Calls that reach outside without an import of their own."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        if name == "__import__":
            yield node.lineno, "dynamic", "__import__ hides the import from this check"
        if layer >= Layer.ADAPTERS:
            continue
        if name in OUTSIDE_CALLS and not _is_allowed(module, name):
            yield node.lineno, "outside", f"{layer.name.lower()} may not call {name}()"
        if name.rpartition(".")[2] == "default_rng" and not node.args and not node.keywords:
            yield node.lineno, "outside", "default_rng() without a seed asks the system for randomness"


def main(argv: list[str]) -> int:
    """Print every violation below the given root (default: here); 1 when there is one."""
    found = check_tree(Path(argv[0]) if argv else Path.cwd())
    for violation in found:
        print(violation)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
