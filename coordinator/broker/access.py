"""Who may do what at the broker: mosquitto's access list, written from the miner set and the devices that are shut out.

The broker knows everybody by the common name of a certificate (or by a user name), and the device or miner segment of a
topic is that name: two patterns bind every device to its own branch, whatever the number of devices. Miners are listed.

Order matters to mosquitto: rules of a user come before patterns, and the first that matches decides. A revoked device
is therefore shut out by a rule of its own, also while the session lasts that it opened before.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from coordinator.enrolment.authority import MINER_USER_PREFIX, miner_user
from edge_sdk.protocol.ids import DeviceId, MinerId, TaskId


def access_list(task: TaskId, miners: Sequence[MinerId], *, revoked: Iterable[DeviceId] = ()) -> str:
    """Text of the access list.

    Args:
        task: The task whose topics the broker carries; everything else is refused to everybody.
        miners: The miner set.
        revoked: Devices that may neither read nor write.
    """
    root = f"fl/v1/{task}"
    lines = ["# Written by flchain; rewritten at each revocation: do not edit.", ""]
    for miner in miners:
        lines += [
            f"user {miner_user(miner)}",
            f"topic read {root}/up/#",
            f"topic read {root}/model/+/current",
            f"topic read {root}/miner/+/status",
            f"topic write {root}/down/#",
            f"topic write {root}/model/{miner}/current",
            f"topic write {root}/miner/{miner}/status",
            "",
        ]
    for device in sorted(revoked):
        lines += [f"user {device}", "topic deny #", ""]
    lines += [
        "# Devices: %u is the name that the certificate proves.",
        f"pattern write {root}/up/+/%u/+",
        f"pattern read {root}/down/%u/+",
        f"pattern read {root}/model/+/current",
        f"pattern read {root}/miner/+/status",
    ]
    return "\n".join(lines) + "\n"


def may_publish(user: str, topic: str, *, task: str) -> bool:
    """The same rules as a predicate, for a broker without access lists: may this user write to a topic?"""
    miner = user.removeprefix(MINER_USER_PREFIX) if user.startswith(MINER_USER_PREFIX) else None
    match topic.split("/"):
        case ["fl", "v1", found, "up", _, device, _]:
            return found == task and miner is None and device == user
        case ["fl", "v1", found, "down", *_]:
            return found == task and miner is not None
        case ["fl", "v1", found, "model", owner, "current"] | ["fl", "v1", found, "miner", owner, "status"]:
            return found == task and miner is not None and owner == miner
        case _:
            return False


def may_subscribe(user: str, topic_filter: str, *, task: str) -> bool:
    """May this user read everything that a filter matches?"""
    is_miner = user.startswith(MINER_USER_PREFIX)
    match topic_filter.split("/"):
        case ["fl", "v1", found, "model", _, "current"] | ["fl", "v1", found, "miner", _, "status"]:
            return found == task
        case ["fl", "v1", found, "up", *_]:
            return found == task and is_miner
        case ["fl", "v1", found, "down", device, leaf]:
            return found == task and not is_miner and device == user and leaf != "#"
        case _:
            return False
