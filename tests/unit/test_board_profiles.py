"""Board profiles: every figure has a source, none is invented."""

import json
import tomllib

import pytest

from firmware_profiles import cli
from firmware_profiles.profile import BOARDS, SECTIONS, InitFormat, UnknownBoardError, board_ids, load_profile


def test_all_boards_load_and_are_named_like_their_file() -> None:
    assert len(board_ids()) == 11
    for board_id in board_ids():
        assert load_profile(board_id).board_id == board_id


def test_every_figure_states_condition_and_source() -> None:
    for board_id in board_ids():
        content = tomllib.loads((BOARDS / f"{board_id}.toml").read_text(encoding="utf-8"))
        figures = [entry for name in ("cpu", "memory", "power", "link") for entry in content.get(name, {}).values()]
        assert figures or board_id == "arm64-generic", board_id  # nothing is true of every arm64 board
        for figure in figures:
            assert isinstance(figure["value"], int | float)
            assert figure["condition"]
            assert figure["source"]


def test_every_image_route_is_declared_with_its_source() -> None:
    for board_id in board_ids():
        image = load_profile(board_id).image
        assert image.route
        assert image.source
        assert (image.seed_label is None) == (image.boot_mount is None)
    assert load_profile("rpi-5").image.init_format is InitFormat.CLOUDINIT_RPI
    assert load_profile("jetson-nano").image.python is None


def test_boards_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["boards", "list"]) == 0
    assert "rpi-zero-2w" in capsys.readouterr().out
    assert cli.main(["boards", "list", "--json"]) == 0
    assert [row["board_id"] for row in json.loads(capsys.readouterr().out)] == list(board_ids())
    assert cli.main(["boards", "show", "jetson-xavier-nx"]) == 0
    assert "idle_w         not available" in capsys.readouterr().out
    assert cli.main(["boards", "show", "rpi-4b", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["load_w"]["value"] == 5.0
    assert cli.main(["boards", "show", "rpi-9"]) == 2


def test_published_figures_of_the_pi_4() -> None:
    profile = load_profile("rpi-4b")
    assert profile.idle_w is not None
    assert profile.load_w is not None
    assert (profile.idle_w.value, profile.load_w.value) == (1.6, 5.0)
    assert "wall" in profile.load_w.condition


def test_unmeasured_power_stays_unknown() -> None:
    profile = load_profile("jetson-xavier-nx")
    assert profile.idle_w is None
    assert not profile.has_power_model


@pytest.mark.parametrize("name", ["", "rpi-9", "../setup", "rpi-4b.toml"])
def test_unknown_board_is_refused_with_the_list(name: str) -> None:
    with pytest.raises(UnknownBoardError, match="rpi-4b"):
        load_profile(name)


# Nobody has published these, as far as we know: a figure that appears here needs a source, and a change of this table.
UNKNOWN = {
    "arm64-generic": {"cores", "max_clock_mhz", "ram_mib", "idle_w", "load_w", "ethernet_mbps", "wifi_mbps"},
    "jetson-agx-orin": {"idle_w", "load_w", "ethernet_mbps", "wifi_mbps"},
    "jetson-nano": {"idle_w", "load_w", "wifi_mbps"},
    "jetson-orin-nano": {"idle_w", "load_w", "ethernet_mbps", "wifi_mbps"},
    "jetson-xavier-nx": {"idle_w", "load_w", "wifi_mbps"},
    "rpi-3b-plus": set(),
    "rpi-4b": set(),
    "rpi-5": set(),
    "rpi-cm4": {"wifi_mbps"},
    "rpi-zero-2w": {"load_w", "ethernet_mbps", "wifi_mbps"},
    "x86-64-generic": {"cores", "max_clock_mhz", "ram_mib"},
}


def test_what_nobody_measured_is_absent() -> None:
    names = ("cores", "max_clock_mhz", "ram_mib", "idle_w", "load_w", "ethernet_mbps", "wifi_mbps")
    found = {
        board_id: {name for name in names if getattr(load_profile(board_id), name) is None} for board_id in board_ids()
    }
    assert found == UNKNOWN


@pytest.mark.parametrize("board_id", board_ids())
def test_every_number_of_a_profile_is_a_figure_with_its_source(board_id: str) -> None:
    """A bare number beside the figures would have neither condition nor source."""
    content = tomllib.loads((BOARDS / f"{board_id}.toml").read_text(encoding="utf-8"))

    def numbers(value: object, path: str) -> list[str]:
        if isinstance(value, dict):
            return [found for key, item in value.items() for found in numbers(item, f"{path}.{key}")]
        return [path] if isinstance(value, int | float) and not isinstance(value, bool) else []

    bare = [path for path in numbers(content, board_id) if not path.endswith(".value")]
    assert bare == []
    for section in SECTIONS:
        for name, figure in content.get(section, {}).items():
            assert set(figure) == {"value", "condition", "source"}, name
            assert figure["source"].strip() not in {"", "?", "unknown", "estimate"}
            if name.endswith("_w"):
                words = ("wall", "V", "documented", "data sheet", "module")
                assert any(word in figure["condition"] for word in words), f"{board_id} {name}: measured where?"
