"""What every store owes: inherited by the tests of each adapter, which bring the fixture `store`.

The claims stand in modules of their own, by what they are about.
"""

from __future__ import annotations

import pytest

from afterwords.server.ports import Store
from tests.contracts.store_attempts import AttemptClaims
from tests.contracts.store_jobs import JobClaims
from tests.contracts.store_keys import KeyClaims
from tests.contracts.store_voices import VoiceClaims
from tests.contracts.store_webhooks import WebhookClaims
from tests.contracts.store_world import SetClock, World


@pytest.mark.anyio
class StoreContract(KeyClaims, VoiceClaims, JobClaims, AttemptClaims, WebhookClaims):
    """All claims. The adapter's store is open, empty, and goes by the fixture `clock`."""

    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    def clock(self) -> SetClock:
        return SetClock()

    @pytest.fixture
    def world(self, store: Store, clock: SetClock) -> World:
        return World(store, clock)

    async def test_store_that_is_open_can_be_read_and_written(self, world: World) -> None:
        await world.store.check()

    async def test_secret_is_made_once(self, world: World) -> None:
        secret = await world.store.secret()

        assert len(secret) == 32
        assert await world.store.secret() == secret
