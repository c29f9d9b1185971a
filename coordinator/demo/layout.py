"""Names, places and parts of the fleet: who is where, and who plays which fault."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from coordinator.demo.options import Options
from coordinator.demo.workspace import Workspace
from edge_sdk.protocol.ids import DeviceId, MinerId


class Role(Enum):
    """What happens to a device in this run; the value is what the live view shows."""

    HONEST = "honest"
    HOSTILE = "hostile"
    SLOW = "slow"
    KILLED = "killed once"


@dataclass(frozen=True, slots=True, kw_only=True)
class MinerPlace:
    """One miner process."""

    miner_id: MinerId
    folder: Path
    url: str
    abci: Path

    @property
    def config(self) -> Path:
        """Its settings."""
        return self.folder / "miner.toml"


@dataclass(frozen=True, slots=True, kw_only=True)
class DevicePlace:
    """One device process."""

    device_id: DeviceId
    folder: Path
    role: Role

    @property
    def config(self) -> Path:
        """Its settings."""
        return self.folder / "device.toml"

    @property
    def data(self) -> Path:
        """Its share of the training data."""
        return self.folder / "data.npz"


def place_miners(workspace: Workspace, ports: list[int]) -> tuple[MinerPlace, ...]:
    """Give every miner a folder, a port and a socket."""
    return tuple(
        MinerPlace(
            miner_id=MinerId(f"miner-{number}"),
            folder=workspace.root / "miners" / f"miner-{number}",
            url=f"http://127.0.0.1:{port}",
            abci=workspace.socket(f"miner-{number}.sock"),
        )
        for number, port in enumerate(ports, start=1)
    )


def place_devices(options: Options, workspace: Workspace) -> tuple[DevicePlace, ...]:
    """Give every device a folder and a role: the last ones attack, of the honest ones one is killed and one is slow.

    With fewer than four devices nobody is killed or slow: what is left of the fleet would show nothing.
    """
    roles = [Role.HONEST] * (options.devices - options.byzantine.count) + [Role.HOSTILE] * options.byzantine.count
    if options.devices >= 4:
        for index, role in enumerate((Role.KILLED, Role.SLOW)):
            if roles[index] is Role.HONEST:
                roles[index] = role
    width = max(2, len(str(options.devices)))
    return tuple(
        DevicePlace(device_id=DeviceId(name), folder=workspace.root / "devices" / name, role=role)
        for name, role in ((f"device-{number:0{width}}", role) for number, role in enumerate(roles, start=1))
    )
