"""The registrar of a running miner: desk, registrar and TLS endpoint in one piece, from its settings."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from coordinator.enrolment.access import BrokerAccess
from coordinator.enrolment.authority import Authority
from coordinator.enrolment.claims import ClaimStore
from coordinator.enrolment.config import EnrolmentConfig
from coordinator.enrolment.desk import EnrolmentDesk, Fleet
from coordinator.enrolment.registrar import Lookup, Registrar
from coordinator.enrolment.server import create_enrolment_app
from coordinator.serving.service import HttpService
from coordinator.serving.view import Submit
from edge_sdk.adapters.keys import load_signer
from edge_sdk.errors import ConfigError
from edge_sdk.protocol import wire
from edge_sdk.protocol.messages import Genesis


def broker_access(config: EnrolmentConfig, genesis: Genesis, authority: Authority, store: ClaimStore) -> BrokerAccess:
    """The broker's lists as the settings name them."""
    return BrokerAccess(
        authority,
        store,
        task=genesis.task,
        miners=[miner.miner_id for miner in genesis.miners],
        crl_file=config.crl_file,
        acl_file=config.acl_file,
        broker_pid_file=config.broker_pid_file,
    )


class EnrolmentService:
    """Starts and stops with the miner that hosts it."""

    def __init__(
        self,
        config: EnrolmentConfig,
        genesis: Genesis,
        *,
        lookup: Lookup,
        submit: Submit,
        time_s: Callable[[], int],
    ) -> None:
        """Load keys and claims, and bind the endpoint.

        Raises:
            ConfigError: the registrar's key is not the one that genesis names.
            StoreError: a file cannot be read.
            ConnectError: the address cannot be bound.
        """
        signer = load_signer(config.registrar_key)
        if signer.public_key != genesis.registrar:
            raise ConfigError(f"{config.registrar_key}: not the key of the registrar that genesis names")
        authority = Authority.load(config.ca_cert, config.ca_key)
        self.store = ClaimStore.open(config.claims_db)
        self.registrar = Registrar(self.store, signer=signer, chain_id=genesis.chain_id, lookup=lookup, submit=submit)
        fleet = Fleet(
            chain_id=genesis.chain_id,
            genesis=wire.to_bytes(genesis),
            miners=config.device_miners,
            brokers=config.device_brokers,
        )
        desk = EnrolmentDesk(
            authority,
            self.store,
            broker_access(config, genesis, authority, self.store),
            fleet,
            certificate_days=config.certificate_days,
            time_s=time_s,
        )
        self._http = HttpService(
            create_enrolment_app(desk, self.registrar),
            host=config.host,
            port=config.port,
            certificate=config.cert_file,
            key=config.key_file,
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        """Port of the TLS endpoint."""
        return self._http.port

    async def start(self) -> None:
        """Answer devices and settle the registry from now on."""
        await self._http.start()
        self._task = asyncio.create_task(self.registrar.run(), name="registrar")

    async def stop(self) -> None:
        """Stop answering; what is unsettled is taken up at the next start."""
        await self._http.stop()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self.store.close()
