"""The contract of the port `Store`. The tests of each adapter inherit it and define the fixture `store`."""

from __future__ import annotations

import pytest

from afterwords.server.ports import Store
from tests.contracts.store_accounts import AccountContract
from tests.contracts.store_attempts import AttemptContract
from tests.contracts.store_audit import AuditContract
from tests.contracts.store_billing import BillingContract
from tests.contracts.store_jobs import JobContract
from tests.contracts.store_keys import KeyContract
from tests.contracts.store_preparations import PreparationContract
from tests.contracts.store_voices import VoiceContract
from tests.contracts.store_webhooks import WebhookContract
from tests.contracts.store_world import ManualClock, World


@pytest.mark.anyio
class StoreContract(
    KeyContract,
    AccountContract,
    AuditContract,
    VoiceContract,
    PreparationContract,
    JobContract,
    AttemptContract,
    WebhookContract,
    BillingContract,
):
    """All tests of stores. `store` is open and empty, and uses the fixture `clock`."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def world(self, store: Store, clock: ManualClock) -> World:
        return World(store, clock)

    async def test_open_store_passes_its_check(self, world: World) -> None:
        await world.store.check()

    async def test_secret_is_created_once(self, world: World) -> None:
        secret = await world.store.secret()

        assert len(secret) == 32
        assert await world.store.secret() == secret

    async def test_announced_server_is_counted(self, world: World) -> None:
        assert await world.store.announce() == 1
        assert await world.store.count_servers() == 1
