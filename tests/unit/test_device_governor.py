"""The governor's policy, and the sensors that feed it."""

from pathlib import Path

import pytest

from edge_sdk.adapters.board_sensors import BoardSensors
from edge_sdk.governor import Judgement, Limits, Readings, judge
from edge_sdk.participant.events import Mode

LIMITS = Limits()


def run(*readings: Readings, is_training: bool = True) -> list[Mode]:
    judgement, modes = Judgement(), []
    for reading in readings:
        judgement = judge(judgement, reading, LIMITS, is_training=is_training)
        modes.append(judgement.mode)
    return modes


def test_no_sensor_no_limit() -> None:
    assert run(Readings()) == [Mode.TRAIN]


def test_heat_with_hysteresis() -> None:
    temperatures = [79.0, 81.0, 79.0, 71.0, 70.0, 79.0, 80.0]
    hot = [mode is Mode.UPLOAD_ONLY for mode in run(*(Readings(temperature_c=value) for value in temperatures))]
    assert hot == [False, True, True, True, False, False, False]


def test_battery_with_hysteresis() -> None:
    levels = [41.0, 39.0, 45.0, 50.0, 45.0]
    modes = run(*(Readings(battery_percent=level, is_on_battery=True) for level in levels))
    assert [mode is Mode.UPLOAD_ONLY for mode in modes] == [False, True, True, False, False]


def test_low_battery_on_mains_does_not_limit() -> None:
    assert run(Readings(battery_percent=3.0)) == [Mode.TRAIN]


def test_metered_link_pauses_everything() -> None:
    assert run(Readings(is_metered=True, temperature_c=99.0)) == [Mode.PAUSE]


def test_memory_counts_before_a_job_only() -> None:
    short = Readings(memory_available_bytes=1)
    assert run(short, is_training=False) == [Mode.UPLOAD_ONLY]
    assert run(short, is_training=True) == [Mode.TRAIN]


@pytest.fixture
def board(tmp_path: Path) -> Path:
    files = {
        "sys/class/thermal/thermal_zone0/temp": "48312\n",
        "sys/class/thermal/thermal_zone1/temp": "51500\n",
        "sys/class/thermal/thermal_zone2/temp": "-274000\n",  # a sensor that is switched off
        "sys/class/thermal/thermal_zone3/temp": "nonsense\n",
        "sys/class/power_supply/AC/type": "Mains\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/capacity": "37\n",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "proc/meminfo": "MemTotal:  1000 kB\nMemAvailable:    500 kB\n",
        "proc/self/status": "Name:\tx\nVmHWM:\t  900 kB\nVmRSS:\t  800 kB\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_sensors_of_a_board(board: Path, tmp_path: Path) -> None:
    sensors = BoardSensors(root=board, metered_file=tmp_path / "metered")
    assert sensors.readings() == Readings(
        temperature_c=51.5, battery_percent=37.0, is_on_battery=True, memory_available_bytes=512_000
    )
    (tmp_path / "metered").touch()
    assert sensors.readings().is_metered
    memory = sensors.process_memory()
    assert (memory.rss_kib, memory.peak_kib) == (800, 900)


def test_board_without_sensors(tmp_path: Path) -> None:
    assert BoardSensors(root=tmp_path).readings() == Readings()
