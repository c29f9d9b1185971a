"""New software on the board, act by act: cut off while it is installed and while it is tried, kept, taken back.

Whatever is cut off, the board comes up with the old client or the new one and trains, and the upgrade comes to its end.
"""

from __future__ import annotations

import json
from typing import Any, Final

from tools.board_test.bench import PROGRAM, STATE, TRAINING_S, Bench, check
from tools.board_test.scenario import CLOCK_OF_A_NEW_BOARD
from tools.board_test.software import BREAKAGE, BROKEN_VERSION, GOOD_VERSION

HOME: Final = "/opt/flchain"
UPDATER_STATE: Final = "/var/lib/flchain-upgrade"
UPDATER: Final = f"{HOME}/committed/bin/flchain device upgrade --config /etc/flchain/upgrade.toml"
UNIT: Final = "flchain-upgrade.service"
DEVICE_UNIT: Final = "flchain-device.service"
UPGRADE_S: Final = 1800.0
DISTRIBUTIONS_UNPACKED: Final = 4
"""Of eleven: in the middle of an installation."""
REMEMBERED_TIME: Final = "/var/lib/systemd/timesync/clock"
# Three crashes end a trial; the unit waits 20 s after each, which nothing here depends on.
# Nothing else of the root file system can be written then: every other mount on it is one of these.
READ_ONLY_ROOT: Final = f"""
systemctl stop {DEVICE_UNIT}
mkdir -p /etc/systemd/system/{DEVICE_UNIT}.d
printf '[Service]\\nRestartSec=2\\n' > /etc/systemd/system/{DEVICE_UNIT}.d/test.conf
systemctl daemon-reload
for place in {STATE} {UPDATER_STATE} {HOME}; do mount --bind $place $place; done
mount -o remount,bind,ro /
systemctl start {DEVICE_UNIT}
"""


def cut_while_installing(bench: Bench) -> None:
    """The power goes while the new environment is half there: the old client is what starts."""
    bench.software.publish(GOOD_VERSION)
    shell, old = bench.board.shell, bench.version_of_client()
    slot, _ = _links(bench)
    new = f"{HOME}/{'b' if slot == 'a' else 'a'}"
    shell.run(f"systemctl start --no-block {UNIT}")
    unpacked = f"ls -d {new}/lib/python*/site-packages/*.dist-info | wc -l"
    shell.until(
        f'test -e {new} && test ! -e {new}/release.json && test "$({unpacked})" -ge {DISTRIBUTIONS_UNPACKED}',
        "a new environment is being filled",
        timeout_s=UPGRADE_S,
    )
    # The next act needs a card that has lain in a drawer for long: nothing on it remembers the time.
    shell.run(f"rm -f {REMEMBERED_TIME}; sync {REMEMBERED_TIME.rpartition('/')[0]}")
    bench.cut_power()
    shell = bench.power_on(clock=CLOCK_OF_A_NEW_BOARD).shell
    check(_links(bench) == (slot, slot), f"links after the power cut: {_links(bench)}")
    check(bench.version_of_client() == old, f"after the power cut: {bench.version_of_client()}")
    is_half = shell.try_run(f"test -e {new} && test ! -e {new}/release.json")[0] == 0
    bench.facts["cut while installing"] = {"runs": old, "half_an_environment_is_left": is_half}


def wrong_clock(bench: Bench) -> None:
    """Switched on in the past, the board says so, takes no release and trains on once the time is right."""
    if not bench.is_on:
        bench.power_on(clock=CLOCK_OF_A_NEW_BOARD)
    shell, merged = bench.board.shell, bench.edge.version()
    clock = shell.run("date -u +%F").strip()
    shell.until(f"systemctl is-active {DEVICE_UNIT}", "the device's service is up", timeout_s=TRAINING_S)
    _, said = shell.try_run(f"{PROGRAM} device doctor --config {STATE}/device.toml")
    findings = [line.strip() for line in said.splitlines() if "FAIL" in line.upper()]
    check(any("clock" in line for line in findings), f"clock of {clock}, and the doctor says only: {said}")
    log = upgrade_once(bench)
    check("clock" in log[-1], "\n".join(log))
    check(bench.edge.version() == merged, f"an update of a board in {clock} was merged")
    bench.set_clock()
    bench.facts["wrong clock"] = {
        "clock": clock,
        "doctor": findings,
        "updater": log[-1],
        "update_after": bench.one_more(),
    }


def cut_while_trying(bench: Bench) -> None:
    """The half environment is built anew; the power goes during the trial; after the next boot the upgrade ends."""
    shell = bench.board.shell
    shell.run(f"systemctl start --no-block {UNIT}")
    shell.until(
        f'grep -q \'"phase": "trial"\' {UPDATER_STATE}/journal.json'
        f' && test "$(readlink {HOME}/current)" != "$(readlink {HOME}/committed)"'
        f" && systemctl is-active --quiet {DEVICE_UNIT}",
        "the new client is on trial",
        timeout_s=UPGRADE_S,
    )
    bench.cut_power()
    shell = bench.power_on().shell
    shell.until(f"systemctl is-active {DEVICE_UNIT}", "the device's service is up", timeout_s=TRAINING_S)
    journal = json.loads(shell.run(f"cat {UPDATER_STATE}/journal.json"))
    check((journal["phase"], journal["boots"]) == ("trial", 1), f"after the power cut: {journal}")
    links, client = _links(bench), bench.version_of_client()
    log = upgrade_once(bench)
    status = updater_status(bench)
    check(status["phase"] == "idle", f"{status}\n{log}")
    check(status["current"] == status["committed"] == links[0], f"{status}\n{log}")
    check(bench.version_of_client() == client == f"flchain {GOOD_VERSION}", f"{client}: {status}\n{log}")
    outcome = bench.one_more()
    bench.facts["cut while trying"] = {"links": links, "runs": client, "log": log[-8:], "update_after": outcome}


def broken_release(bench: Bench) -> None:
    """A release that crashes on start is taken back and held; the good one trains on. The root cannot be written."""
    bench.software.publish(BROKEN_VERSION, breakage=BREAKAGE)
    shell, (good, _), client = bench.board.shell, _links(bench), bench.version_of_client()
    shell.run(READ_ONLY_ROOT)
    status, said = shell.try_run("touch /etc/written /var/lib/written")
    check(status != 0 and said.count("Read-only file system") == 2, f"the root can be written: {said}")
    # A trial needs a device that is connected.
    shell.until(f"grep -q '\"connected\": true' {STATE}/health.json", "the device is connected", timeout_s=TRAINING_S)
    log = upgrade_once(bench)
    after = updater_status(bench)
    check(after["phase"] == "idle" and bool(after["held"]), f"{after}\n{log}")
    check(after["current"] == after["committed"] == good, f"{after}\n{log}")
    check(bench.version_of_client() == client, f"{bench.version_of_client()}: {after}\n{log}")
    bench.facts["broken release"] = {
        "held": after["held"],
        "runs": client,
        "log": log[-8:],
        "root": said.splitlines(),
        "update_after": bench.one_more(),
    }


def upgrade_once(bench: Bench) -> list[str]:
    """Let the board look for a release until its updater has decided; the lines of that pass."""
    shell = bench.board.shell
    # The timer may be running it already: then this waits for the same pass.
    shell.try_run(f"systemctl start {UNIT}", timeout_s=UPGRADE_S)
    invocation = shell.run(f"systemctl show -P InvocationID {UNIT}").strip()
    lines = shell.run(f"journalctl --no-pager --quiet -o cat _SYSTEMD_INVOCATION_ID={invocation}").splitlines()
    check(lines != [], f"{UNIT} said nothing")
    return lines


def updater_status(bench: Bench) -> dict[str, Any]:
    """What the updater says of itself."""
    document: dict[str, Any] = json.loads(bench.board.shell.run(f"{UPDATER} --status"))
    return document


def _links(bench: Bench) -> tuple[str, str]:
    """Environments of the device and of the updater."""
    current, committed = bench.board.shell.run(f"readlink {HOME}/current {HOME}/committed").split()
    return current, committed
