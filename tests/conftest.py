"""What every suite shares: thread limits, Hypothesis profiles, and what a test needs from the machine.

A test that needs something the machine may lack is skipped with the reason ``skipped: no NAME``. The environment
variable ``FLCHAIN_REQUIRE`` (comma-separated names, such as ``mosquitto,torch,data``) turns these skips into failures:
CI must not be green because a broker was missing.
"""

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NoReturn

import hypothesis
import pytest

from coordinator.broker.ports import free_port

# Before numpy or torch load: one thread per process, so that results and times do not depend on the core count.
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS"):
    os.environ.setdefault(_name, "1")

ROOT: Final = Path(__file__).resolve().parents[1]
REQUIRED: Final = frozenset(filter(None, os.environ.get("FLCHAIN_REQUIRE", "").replace(" ", "").split(",")))
# Debian installs brokers where only root's PATH looks.
PROGRAM_PATH: Final = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))

hypothesis.settings.register_profile("quick", max_examples=50, deadline=None)
# The same examples in every run: a red CI is always about the change.
hypothesis.settings.register_profile("ci", max_examples=100, deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.register_profile("nightly", max_examples=1_000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "quick"))


def find_program(name: str) -> Path | None:
    """Path of an installed program."""
    found = shutil.which(name, path=PROGRAM_PATH)
    return Path(found) if found else None


def find_data() -> Path | None:
    """Folder with the optional real data sets: $FLCHAIN_DATA, else ../shared/data beside the repository."""
    folder = Path(os.environ.get("FLCHAIN_DATA") or ROOT.parent / "shared" / "data")
    return folder if folder.is_dir() else None


def is_available(name: str) -> bool:
    """Whether the machine has a program, a Python package or the data folder of this name."""
    if name == "data":
        return find_data() is not None
    return find_program(name) is not None or importlib.util.find_spec(name) is not None


def miss(name: str) -> NoReturn:
    """End the running test: skipped, or failed when the run requires the name."""
    if name in REQUIRED:
        pytest.fail(f"no {name}, but FLCHAIN_REQUIRE names it", pytrace=False)
    pytest.skip(f"skipped: no {name}")


def pytest_sessionstart() -> None:
    """Stop at once when a required thing is missing, also when a module would skip itself while it is collected."""
    missing = sorted(name for name in REQUIRED if not is_available(name))
    if missing:
        raise pytest.UsageError(f"FLCHAIN_REQUIRE names what this machine lacks: {', '.join(missing)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked torch need torch."""
    if item.get_closest_marker("torch") and not is_available("torch"):
        miss("torch")


@pytest.fixture(autouse=True, scope="session")
def own_config_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keys that ``flchain model build`` makes on first use are not those of whoever runs the tests."""
    os.environ["XDG_CONFIG_HOME"] = str(tmp_path_factory.mktemp("config"))


@pytest.fixture(scope="session")
def require_program() -> Callable[[str], Path]:
    """A function from a program's name to its path; it skips or fails the test when there is none."""

    def require(name: str) -> Path:
        return find_program(name) or miss(name)

    return require


@pytest.fixture(scope="session")
def mosquitto_path(require_program: Callable[[str], Path]) -> Path:
    """The mosquitto broker's program."""
    return require_program("mosquitto")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder with the optional real data sets."""
    return find_data() or miss("data")


@pytest.fixture
def free_tcp_port() -> int:
    """A loopback TCP port that nobody listens on."""
    return free_port()
