"""Energy readers against recorded sensor trees, and the arithmetic of joules."""

from pathlib import Path

import pytest

from edge_sdk.energy.csv_meter import CsvMeter
from edge_sdk.energy.ina2xx import Ina2xx
from edge_sdk.energy.ina3221 import Ina3221
from edge_sdk.energy.meters import open_meter
from edge_sdk.energy.model import PowerProfile, energy_j
from edge_sdk.energy.pi5_pmic import Pi5Pmic, rails_w
from edge_sdk.energy.power_source import SampledMeter, check_comparable
from edge_sdk.energy.rapl import RaplMeter
from edge_sdk.errors import ConfigError, StoreError
from edge_sdk.ports import Scope
from edge_sdk.protocol.messages import EnergyQuality


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_ns(self) -> int:
        return round(self.now_s * 1e9)

    def time_s(self) -> int:
        return 0


class Ramp:
    """A source whose power is set by the test."""

    scope = Scope.BOARD
    quality = EnergyQuality.MEASURED

    def __init__(self) -> None:
        self.value_w = 0.0

    def power_w(self) -> float:
        return self.value_w


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def test_trapezoid_by_hand() -> None:
    clock, source = Clock(), Ramp()
    meter = SampledMeter(source, clock)
    clock.now_s, source.value_w = 2.0, 4.0
    assert meter.energy_j() == pytest.approx(4.0)
    clock.now_s = 12.0
    assert meter.energy_j() == pytest.approx(44.0)
    assert (meter.samples, meter.gaps) == (3, 1)


def test_model_by_hand() -> None:
    profile = PowerProfile(idle_w=1.6, load_w=5.0, cores=4)
    assert energy_j(profile, wall_s=10, cpu_s=0) == pytest.approx(16.0)
    assert energy_j(profile, wall_s=10, cpu_s=40) == pytest.approx(50.0)
    assert energy_j(profile, wall_s=10, cpu_s=10) == pytest.approx(16.0 + 3.4 * 2.5)
    assert energy_j(profile, wall_s=10, cpu_s=999) == pytest.approx(50.0)


def test_model_of_a_known_board() -> None:
    meter = open_meter("model", "rpi-4b")
    assert meter is not None
    first = meter.energy_j()
    assert 0 <= first <= meter.energy_j()
    assert meter.quality is EnergyQuality.MODELLED
    assert open_meter("model", None) is None
    assert open_meter("model", "jetson-nano") is None  # its idle power was never published
    with pytest.raises(ConfigError, match="no board 'toaster'"):
        open_meter("model", "toaster")


def test_rapl_sums_packages_and_wraps(tmp_path: Path) -> None:
    zone = "sys/class/powercap/intel-rapl:"
    root = write(
        tmp_path,
        {
            f"{zone}0/name": "package-0",
            f"{zone}0/energy_uj": "900",
            f"{zone}0/max_energy_range_uj": "1000",
            f"{zone}1/name": "package-1",
            f"{zone}1/energy_uj": "0",
            f"{zone}1/max_energy_range_uj": "1000",
            f"{zone}0:0/name": "core",
            f"{zone}0:0/energy_uj": "7",
        },
    )
    meter = RaplMeter(root=root)
    write(root, {f"{zone}0/energy_uj": "100", f"{zone}1/energy_uj": "50"})
    assert meter.energy_j() == pytest.approx(250e-6)
    with pytest.raises(StoreError, match="no RAPL"):
        RaplMeter(root=tmp_path / "elsewhere")


def test_ina3221_takes_the_input_rail_only(tmp_path: Path) -> None:
    base = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon3/"
    rails = {"1": ("VDD_IN", 5000, 1200), "2": ("VDD_CPU_GPU_CV", 5000, 400), "3": ("NC", 0, 0)}
    files = {f"{base}in7_label": "sum of shunt voltages", f"{base}in7_input": "9999"}
    for channel, (label, millivolts, milliamperes) in rails.items():
        files |= {
            f"{base}in{channel}_label": label,
            f"{base}in{channel}_input": str(millivolts),
            f"{base}curr{channel}_input": str(milliamperes),
        }
    source = Ina3221(root=write(tmp_path, files))
    assert source.rails == ("VDD_IN",)
    assert source.power_w() == pytest.approx(6.0)


def test_ina3221_without_an_input_rail_sums(tmp_path: Path) -> None:
    base = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon0/"
    files: dict[str, str] = {}
    for channel, label in (("1", "VDD_GPU_SOC"), ("2", "VDD_CPU_CV"), ("3", "VIN_SYS_5V0")):
        files |= {
            f"{base}in{channel}_label": label,
            f"{base}in{channel}_input": "5000",
            f"{base}curr{channel}_input": "100",
        }
    assert Ina3221(root=write(tmp_path, files)).power_w() == pytest.approx(1.5)
    with pytest.raises(StoreError, match="no INA3221"):
        Ina3221(root=tmp_path / "elsewhere")


def test_ina2xx(tmp_path: Path) -> None:
    files = {
        "sys/class/hwmon/hwmon0/name": "cpu_thermal",
        "sys/class/hwmon/hwmon1/name": "ina226",
        "sys/class/hwmon/hwmon1/power1_input": "2750000",
    }
    source = Ina2xx(root=write(tmp_path, files))
    assert source.power_w() == pytest.approx(2.75)
    (tmp_path / "sys/class/hwmon/hwmon1/power1_input").write_text("broken")
    with pytest.raises(StoreError, match="expected an integer"):
        source.power_w()


OLD_FORMAT = "     3V7_WL_SW_A current(0)=0.10000000A\n   3V7_WL_SW_V volt(8)=3.70000000V\n     EXT5V_V volt(24)=5.1V\n"
NEW_FORMAT = "VDD_CORE_A=2.0\nVDD_CORE_V=0.9\nBATT_V=0.0\n"


def test_pi5_pairs_rails_in_both_formats() -> None:
    assert rails_w(OLD_FORMAT) == pytest.approx(0.37)
    assert rails_w(NEW_FORMAT) == pytest.approx(1.8)
    source = Pi5Pmic(read=lambda: NEW_FORMAT)
    assert source.power_w() == pytest.approx(1.1451 * 1.8 + 0.5879)
    assert source.quality is EnergyQuality.DERIVED
    for text in ("", "EXT5V_V=5.0", "X_A=1.2.3\nX_V=1\n"):
        with pytest.raises(StoreError):
            rails_w(text)


def test_csv_meter_integrates_up_to_now(tmp_path: Path) -> None:
    path = tmp_path / "meter.csv"
    path.write_text("0,2\n10,4\n20,4\n")
    clock = Clock()
    meter = CsvMeter(path, clock=clock, offset_s=100.0)
    energies = []
    for clock.now_s in (99.0, 100.0, 105.0, 110.0, 120.0, 500.0):
        energies.append(round(meter.energy_j(), 6))
    assert energies == [0.0, 0.0, 12.5, 30.0, 70.0, 70.0]


@pytest.mark.parametrize("text", ["", "1,2\n1,2\n", "1,x\n", "1\n", "1,-1\n", "nan,1\n"])
def test_bad_recordings(tmp_path: Path, text: str) -> None:
    path = tmp_path / "meter.csv"
    path.write_text(text)
    with pytest.raises(StoreError, match=r"meter\.csv"):
        CsvMeter(path, clock=Clock(), offset_s=0.0)


def test_different_scopes_are_not_compared() -> None:
    check_comparable((Scope.BOARD, EnergyQuality.MEASURED), (Scope.BOARD, EnergyQuality.MEASURED))
    with pytest.raises(StoreError, match="cannot be compared"):
        check_comparable((Scope.BOARD, EnergyQuality.MEASURED), (Scope.BOARD, EnergyQuality.MODELLED))
