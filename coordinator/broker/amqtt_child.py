"""The process of the embedded broker: amqtt with a plugin that holds every user to its own branch.

Run as ``python -m coordinator.broker.amqtt_child CONFIG.json``; ``embedded.prepare`` writes that file.
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amqtt.broker import Broker
from amqtt.contexts import Action, BaseContext
from amqtt.plugins.base import BaseTopicPlugin

from coordinator.broker.access import may_publish, may_subscribe

if TYPE_CHECKING:
    from amqtt.session import Session


class OwnBranch(BaseTopicPlugin):  # type: ignore[misc]  # amqtt has no type information
    """The rules of the access list, as far as amqtt asks for them."""

    @dataclass
    class Config:
        """Settings of the plugin."""

        task: str = ""

    def __init__(self, context: BaseContext) -> None:
        super().__init__(context)
        self._task: str = self._get_config_option("task", "")

    async def topic_filtering(
        self, *, session: Session | None = None, topic: str | None = None, action: Action | None = None
    ) -> bool:
        """Decide about one publication, subscription or delivery."""
        user = None if session is None else session.username
        if user is None or topic is None:
            return False
        if action is Action.PUBLISH:
            return may_publish(user, topic, task=self._task)
        return may_subscribe(user, topic, task=self._task)


async def _run(config: dict[str, Any]) -> None:
    broker = Broker(config)
    await broker.start()
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    await stopped.wait()
    await broker.shutdown()


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    asyncio.run(_run(json.loads(Path(sys.argv[1]).read_bytes())))
