"""Measuring a board: on trees of every family, with the meter that it has - or with none, and then without a figure."""

import json
import threading
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_sdk import cli_measure, entry
from edge_sdk.adapters.slots import Slots
from edge_sdk.adapters.system_clock import SystemClock
from edge_sdk.device.config import DeviceConfig
from edge_sdk.energy.meters import find_meter, open_meter
from edge_sdk.errors import ConfigError, ConnectError, StoreError, TrainingError
from edge_sdk.measure import link, session
from edge_sdk.measure.link import LinkRate, measure_link, serve_peer
from edge_sdk.measure.power import PowerSpan
from edge_sdk.measure.session import Model, Plan, UnfitBoardError, measure
from edge_sdk.protocol import wire
from edge_sdk.protocol.digest import sha256
from edge_sdk.protocol.messages import ModelParams
from edge_sdk.protocol.model import model_root
from firmware_profiles.profile import BadProfileError, UnknownBoardError, load_profile
from tests.support.board_trees import FAMILIES, PMIC_W, raspberry, write_tree
from tests.support.device_process import make_model

WATTS = {
    "rpi-5": ("pi5-pmic", PMIC_W),
    "jetson-nano": ("ina3221", 1.75),
    "jetson-xavier-nx": ("ina3221", 6.0),
    "jetson-orin-nano": ("ina3221", 5.04 * 0.96),
    "jetson-agx-orin": ("ina3221", 19.8 * 0.16 + 19.8 * 0.04 + 4.95 * 0.7),
}
"""Kind of meter and power by hand; the other boards have none on board."""
ENERGY = "sys/class/powercap/intel-rapl:0/energy_uj"


@pytest.fixture
def model(tmp_path: Path) -> Model:
    artifact, params = make_model()
    (tmp_path / "tiny.flm").write_bytes(artifact.data)
    (tmp_path / "tiny.model.cbor").write_bytes(wire.to_bytes(params))
    return Model("tiny", tmp_path / "tiny.flm", tmp_path / "tiny.model.cbor")


def run(root: Path, *models: Model, peer: tuple[str, int] | None = None) -> session.Measured:
    found = find_meter(root=root)
    plan = Plan(models=models, backend="numpy", span_s=0.25, peer=peer, root=root)
    return measure(plan, None if found is None else found[1], clock=SystemClock(), say=lambda _: None)


def written(tmp_path: Path, board: str, *words: str) -> tuple[int, dict[str, Any]]:
    """Status and document of the real command on a tree."""
    root = write_tree(tmp_path / "root", FAMILIES[board])
    output = tmp_path / "own.toml"
    code = cli_measure.main(["measure", "--root", str(root), "--seconds", "0.5", "-o", str(output), *words])
    return code, tomllib.loads(output.read_text()) if output.exists() else {}


@pytest.mark.parametrize("board", WATTS)
def test_power_by_the_meter_of_each_board(tmp_path: Path, board: str) -> None:
    root = write_tree(tmp_path, FAMILIES[board])
    kind, watts = WATTS[board]
    found = find_meter(root=root)
    assert found is not None
    assert found[0] == kind
    span = PowerSpan(found[1], SystemClock())
    span.begin()
    assert span.end().watts == pytest.approx(watts)


@pytest.mark.parametrize("board", sorted(set(FAMILIES) - set(WATTS) - {"x86-64-generic"}))
def test_board_without_a_meter_gets_no_power(tmp_path: Path, board: str) -> None:
    assert find_meter(root=write_tree(tmp_path, FAMILIES[board])) is None
    measured = run(tmp_path)
    assert measured.powers == {}
    assert "power: this board has no meter that can be read" in measured.missing


def test_sensor_in_the_supply_line_comes_first(tmp_path: Path) -> None:
    tree = FAMILIES["rpi-5"] | {
        "sys/class/hwmon/hwmon4/name": "ina226\n",
        "sys/class/hwmon/hwmon4/power1_input": "4200000\n",
    }
    found = find_meter(root=write_tree(tmp_path, tree))
    assert found is not None
    assert found[0] == "ina2xx"
    assert open_meter("ina2xx", None, root=tmp_path) is not None


def test_counter_that_stands_still_is_no_measurement(tmp_path: Path) -> None:
    """RAPL in a virtual machine may be there and count nothing."""
    root = write_tree(tmp_path, FAMILIES["x86-64-generic"])
    with pytest.raises(StoreError, match="expected more than nothing"):
        run(root)


@pytest.fixture
def counting(tmp_path: Path) -> Iterator[Path]:
    """An x86 board whose package takes 1 uJ per microsecond of this test: 1 W."""
    root = write_tree(tmp_path / "x86", FAMILIES["x86-64-generic"])
    stop, clock = threading.Event(), SystemClock()

    def count() -> None:
        while not stop.wait(0.002):
            fresh = root / "next"
            fresh.write_text(f"{clock.monotonic_ns() // 1000}\n")
            fresh.replace(root / ENERGY)

    thread = threading.Thread(target=count)
    thread.start()
    while (root / ENERGY).read_text() == "1000000\n":
        stop.wait(0.01)
    yield root
    stop.set()
    thread.join()


def test_states_of_an_x86_board(counting: Path, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """How much the counter rises depends on how busy the testing machine is; that it rises does not."""
    monkeypatch.setattr(session, "DRIFT_MAX", 1.0)
    measured = run(counting, model)
    assert set(measured.powers) == {"idle", "load", "train"}
    for power in measured.powers.values():
        assert 0 < power.watts < 100
        assert (power.scope, power.quality) == ("package", "measured")
    steps = measured.steps["tiny"]
    assert steps.steps >= session.STEPS_AT_ONCE
    assert 0 < steps.median_ms <= steps.slowest_tenth_ms
    assert steps.peak_rss_mib > 5


def test_command_writes_a_profile_that_everything_can_read(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("--artifact", str(model.artifact), "--backend", "numpy", "--id", "my-board")
    code, document = written(tmp_path, "jetson-orin-nano", *words)
    assert code == 0, capsys.readouterr().err
    measurement = document["measurement"]
    assert measurement["source"] == "measured"
    assert (measurement["meter"], measurement["like"]) == ("ina3221", "jetson-orin-nano")
    assert measurement["conditions"]["power mode"] == "25W"
    assert {"date", "python", "numpy", "flchain"} <= set(measurement)
    assert set(document["power"]) == {"idle_w", "load_w", "train_w"}
    assert document["power"]["idle_w"]["value"] == pytest.approx(5.04 * 0.96, rel=1e-4)
    assert "scope module, measured" in document["power"]["idle_w"]["condition"]
    assert set(document["training"]) == {"tiny_step_ms", "tiny_slowest_tenth_ms", "tiny_peak_rss_mib"}
    assert "link" not in document
    for section in ("cpu", "memory", "power", "training"):
        for figure in document[section].values():
            assert figure["source"].startswith("measured by flchain boards measure")
            assert figure["condition"]

    own = tmp_path / "own.toml"
    profile = load_profile(str(own))
    assert profile.has_power_model
    assert "training.tiny_step_ms" in profile.further
    assert profile.image.init_format == load_profile("jetson-orin-nano").image.init_format
    assert entry.main(["boards", "show", str(own)]) == 0
    assert "training.tiny_step_ms" in capsys.readouterr().out
    settings = '[device]\nid = "d"\ntask = "t"\ndata = "x"\n[[broker]]\nhost = "b"\n[board]\nprofile = "own.toml"\n'
    (tmp_path / "device.toml").write_text(settings)
    config = DeviceConfig.load(tmp_path / "device.toml")
    assert open_meter(config.meter, config.board_profile) is not None


def test_nothing_is_invented(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, document = written(tmp_path, "rpi-zero-2w")
    assert code == 0
    assert "power" not in document
    assert "link" not in document
    assert "training" not in document
    assert document["measurement"]["meter"] == "none"
    assert "not measured: power" in capsys.readouterr().err
    assert document["cpu"]["max_clock_mhz"]["value"] == 1000
    profile = load_profile(str(tmp_path / "own.toml"))
    assert profile.idle_w is None
    assert profile.ethernet_mbps is None


def test_board_that_throttles_is_not_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hot = raspberry("Raspberry Pi 4 Model B", max_khz=1_500_000, ram_mib=4096, throttled="0x4")
    with pytest.raises(UnfitBoardError, match="throttles now"):
        run(write_tree(tmp_path / "now", hot))
    root = write_tree(tmp_path / "later", FAMILIES["rpi-5"])

    def rest(_: float) -> None:
        write_tree(root, raspberry("Raspberry Pi 5", max_khz=1, ram_mib=1, throttled="0x40000", pmic="x_A=1\nx_V=5\n"))

    plan = Plan(models=(), backend="numpy", span_s=0.1, peer=None, root=root)
    meter = open_meter("ina2xx", None, root=write_tree(tmp_path / "meter", _steady()))
    with pytest.raises(UnfitBoardError, match="throttled_seen"):
        measure(plan, meter, clock=SystemClock(), say=lambda _: None, rest=rest)


def test_clock_that_was_held_down_meanwhile(tmp_path: Path) -> None:
    root = write_tree(tmp_path, FAMILIES["x86-64-generic"] | _steady())
    count = root / "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    plan = Plan(models=(), backend="numpy", span_s=0.1, peer=None, root=root)
    meter = open_meter("ina2xx", None, root=root)
    measured = measure(plan, meter, clock=SystemClock(), say=lambda _: None)
    assert measured.facts["throttle events"] == "7 before and after"

    def rest(_: float) -> None:
        count.write_text("8\n")

    with pytest.raises(UnfitBoardError, match="1 times while it was measured"):
        measure(plan, meter, clock=SystemClock(), say=lambda _: None, rest=rest)


def _steady() -> dict[str, str]:
    return {"sys/class/hwmon/hwmon0/name": "ina219\n", "sys/class/hwmon/hwmon0/power1_input": "3000000\n"}


def test_idle_power_that_drifts_is_no_idle(tmp_path: Path) -> None:
    root = write_tree(tmp_path, FAMILIES["rpi-4b"] | _steady())
    plan = Plan(models=(), backend="numpy", span_s=0.1, peer=None, root=root)
    rests = iter(("3000000", "3000000", "4000000"))

    def rest(_: float) -> None:
        (root / "sys/class/hwmon/hwmon0/power1_input").write_text(next(rests))

    meter = open_meter("ina2xx", None, root=root)
    with pytest.raises(UnfitBoardError, match="something else runs"):
        measure(plan, meter, clock=SystemClock(), say=lambda _: None, rest=rest)


def test_artifact_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.flm"
    bad.write_bytes(b"no artifact")
    (tmp_path / "bad.model.cbor").write_bytes(b"")
    with pytest.raises(TrainingError):
        run(write_tree(tmp_path / "root", FAMILIES["rpi-4b"]), Model("bad", bad, tmp_path / "bad.model.cbor"))
    (tmp_path / "bad.model.cbor").unlink()
    code, document = written(tmp_path, "rpi-4b", "--artifact", str(bad))
    assert (code, document) == (2, {})
    assert "bad.model.cbor: no such file" in capsys.readouterr().err


def test_enrolled_board_measures_what_it_trains(
    tmp_path: Path, model: Model, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = '[device]\nid = "d"\ntask = "blobs"\ndata = "x"\n[[broker]]\nhost = "b"\n'
    (tmp_path / "device.toml").write_text(settings)
    words = ("--config", str(tmp_path / "device.toml"), "--backend", "numpy")
    assert written(tmp_path, "rpi-4b", *words) == (2, {})
    assert "no model is installed yet" in capsys.readouterr().err
    (tmp_path / "artifact.flm").write_bytes(model.artifact.read_bytes())
    data = model.params.read_bytes()
    root = model_root(wire.from_bytes(ModelParams, data))
    slots = Slots(tmp_path / "slots")
    slots.part().write_bytes(data)
    slots.switch(slots.stage(1, root, sha256(data)))
    code, document = written(tmp_path, "rpi-4b", *words)
    assert code == 0, capsys.readouterr().err
    assert document["training"]["blobs_step_ms"]["value"] > 0


def test_existing_file_and_unknown_board_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _ = written(tmp_path, "rpi-4b", "--like", "rpi-9")
    assert code == 2
    assert "rpi-4b" in capsys.readouterr().err
    (tmp_path / "own.toml").write_text("mine")
    assert cli_measure.main(["measure", "-o", str(tmp_path / "own.toml")]) == 2
    assert (tmp_path / "own.toml").read_text() == "mine"


@pytest.fixture
def peer() -> tuple[str, int]:
    """The other end of a link, on this machine."""
    bound: list[int] = []
    ready = threading.Event()

    def announce(port: int) -> None:
        bound.append(port)
        ready.set()

    thread = threading.Thread(target=serve_peer, args=("127.0.0.1", 0), kwargs={"announce": announce}, daemon=True)
    thread.start()
    assert ready.wait(60)
    return "127.0.0.1", bound[0]


def test_link_is_measured_in_both_directions(peer: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine has no other end: that the peer is elsewhere is the one thing that is pretended."""
    monkeypatch.setattr(link, "_interface_of", lambda _: "eth0")
    rate = measure_link(*peer, span_s=0.2)
    assert rate.up_mbps > 1
    assert rate.down_mbps > 1
    assert isinstance(rate, LinkRate)
    assert not rate.is_wireless


def test_this_machine_is_no_link(peer: tuple[str, int]) -> None:
    with pytest.raises(ConnectError, match="expected another machine"):
        measure_link(*peer, span_s=0.05)
    with pytest.raises(ConnectError):
        measure_link("127.0.0.1", 1, span_s=0.05)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        '[board]\nid = "x"\n',
        '[board]\nid="x"\nname="x"\nsources=[]\n[cpu]\ncores=4\n',
        "[board]\n[image]\n",
    ],
)
def test_profiles_of_ones_own_that_are_none(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(BadProfileError, match=r"own\.toml"):
        load_profile(str(path))
    with pytest.raises(UnknownBoardError):
        load_profile(str(tmp_path / "missing.toml"))
    settings = '[device]\nid = "d"\ntask = "t"\ndata = "x"\n[[broker]]\nhost = "b"\n[board]\nprofile = "own.toml"\n'
    (tmp_path / "device.toml").write_text(settings)
    with pytest.raises(ConfigError, match="profile"):
        DeviceConfig.load(tmp_path / "device.toml")


def test_every_profile_knows_its_board_by_what_it_says(tmp_path: Path) -> None:
    from firmware_profiles.profile import board_like

    for board, tree in FAMILIES.items():
        model = tree.get("proc/device-tree/model", "").rstrip("\0")
        assert board_like(model) == (None if board == "x86-64-generic" else board)


def test_json_of_a_profile_shows_what_was_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert written(tmp_path, "rpi-4b")[0] == 0
    capsys.readouterr()
    assert entry.main(["boards", "show", str(tmp_path / "own.toml"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["cores"]["value"] == 4
