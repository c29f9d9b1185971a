"""Options of the demo: presets fill what the user leaves out, and each mistake is one line that says what to write."""

from pathlib import Path

import pytest

from coordinator.demo.layout import Role, place_devices
from coordinator.demo.options import BYZANTINE_KINDS, Byzantine, parse
from coordinator.demo.presets import DATASETS, PRESETS
from coordinator.demo.workspace import Workspace
from edge_sdk.device.config import BYZANTINE
from edge_sdk.errors import ConfigError


def test_without_options_the_issue_s_fleet_runs_on_digits() -> None:
    options = parse([])
    assert (options.dataset, options.model, options.devices, options.miners) == ("digits", "mlp", 12, 4)
    assert str(options.partition) == "dirichlet:0.5"
    assert options.byzantine == Byzantine("signflip", 1)
    assert options.max_seconds <= 90


def test_every_option_overrides_its_preset(tmp_path: Path) -> None:
    options = parse(
        [
            *("--dataset", "idx", "--data", str(tmp_path), "--model", "mlp", "--devices", "9", "--miners", "7"),
            *("--tau", "0.5", "--block-size", "3", "--partition", "classes:2", "--byzantine", "nan:2"),
            *("--board", "rpi-5", "--max-seconds", "33", "--seed", "7", "--no-live", "--broker", "embedded"),
            *("--rounds", "5", "--target", "0.9", "--keep", str(tmp_path / "k"), "--report", str(tmp_path / "r.json")),
        ]
    )
    assert (options.model, options.devices, options.miners, options.tau_s, options.block_size) == ("mlp", 9, 7, 0.5, 3)
    assert (str(options.partition), str(options.byzantine), options.board) == ("classes:2", "nan:2", "rpi-5")
    assert (options.max_seconds, options.seed, options.is_live, options.broker) == (33.0, 7, False, "embedded")
    assert (options.rounds, options.target) == (5, 0.9)


def test_quick_shrinks_only_what_the_user_leaves_open() -> None:
    quick, wide = parse(["--quick"]), parse(["--quick", "--devices", "10"])
    assert quick.devices < parse([]).devices
    assert quick.max_seconds < parse([]).max_seconds
    assert wide.devices == 10


@pytest.mark.parametrize("devices", [1, 2, 3, 5])
def test_a_block_never_needs_the_whole_fleet(devices: int) -> None:
    assert parse(["--devices", str(devices)]).block_size <= max(1, devices - 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--dataset", "mnist"], ("--dataset", "mnist", "digits")),
        (["--dataset", "idx"], ("idx", "--data")),
        (["--dataset", "idx", "--data", "/no/such/folder"], ("/no/such/folder", "no such folder")),
        (["--dataset", "npz", "--data", "/no/such/file.npz"], ("/no/such/file.npz", "no such file")),
        (["--data", "/tmp"], ("digits", "no --data")),
        (["--model", "resnet"], ("--model", "resnet", "lenet")),
        (["--devices", "0"], ("--devices 0", "1..")),
        (["--devices", "many"], ("--devices", "many")),
        (["--miners", "0"], ("--miners 0", "1..")),
        (["--tau", "nan"], ("--tau nan",)),
        (["--block-size", "0"], ("--block-size 0",)),
        (["--partition", "zipf"], ("zipf", "dirichlet:A")),
        (["--byzantine", "evil:1"], ("evil:1", "signflip")),
        (["--byzantine", "signflip"], ("signflip", "KIND:N")),
        (["--byzantine", "signflip:13"], ("signflip:13", "1..12")),
        (["--board", "toaster"], ("--board", "toaster", "rpi-4b")),
        (["--max-seconds", "1"], ("--max-seconds 1",)),
        (["--seed", "-1"], ("--seed -1",)),
        (["--target", "1.5"], ("--target 1.5",)),
        (["--report", "/no/such/folder/r.json"], ("--report", "existing folder")),
        (["--broker", "nats"], ("--broker", "nats")),
        (["--dev", "3"], ("--dev",)),
    ],
)
def test_a_mistake_is_one_line_that_names_what_was_found(arguments: list[str], words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(arguments)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text


def test_attacks_are_those_that_a_device_knows() -> None:
    assert {"", *BYZANTINE_KINDS} == set(BYZANTINE)


@pytest.mark.parametrize("dataset", DATASETS)
def test_presets_keep_what_the_options_check(dataset: str) -> None:
    preset = PRESETS[dataset]
    assert preset.block_size <= 2 * preset.devices // 3 + 1
    assert 0 < preset.margin_permille < 1_000
    assert preset.clip_norm > 0


def test_a_fleet_has_one_victim_one_slow_and_the_asked_attackers(tmp_path: Path) -> None:
    with Workspace(tmp_path / "run") as workspace:
        roles = [place.role for place in place_devices(parse(["--byzantine", "nan:3"]), workspace)]
        few = [place.role for place in place_devices(parse(["--devices", "2"]), workspace)]
        all_hostile = parse(["--devices", "4", "--byzantine", "nan:4"])
        hostile = [place.role for place in place_devices(all_hostile, workspace)]
    assert [roles.count(role) for role in (Role.HOSTILE, Role.SLOW, Role.KILLED, Role.HONEST)] == [3, 1, 1, 7]
    assert few == [Role.HONEST, Role.HONEST]
    assert hostile == [Role.HOSTILE] * 4


def test_a_folder_with_content_is_never_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(ConfigError, match="not empty"):
        Workspace(tmp_path)
    with pytest.raises(ConfigError, match="is a file"):
        Workspace(tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_temporary_workspace_disappears_and_a_kept_one_stays(tmp_path: Path) -> None:
    with Workspace(None) as passing, Workspace(tmp_path / "kept") as kept:
        assert passing.logs.is_dir()
        # The path of a Unix socket has room for 107 bytes.
        assert len(str(kept.socket("miner-16.sock"))) < 100
    assert not passing.root.exists()
    assert kept.logs.is_dir()
    assert not kept.socket("x").parent.exists()
