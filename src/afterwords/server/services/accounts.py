"""The end of an account: `afterwords accounts close`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from afterwords.errors import ConflictError, NotFoundError
from afterwords.server.ports import Blobs, Store
from afterwords.server.services.ownership import Ownership
from afterwords.server.services.voices import purge_voice


async def close_account(
    store: Store,
    blobs: Blobs,
    ownership: Ownership,
    account_id: str,
    *,
    cancel_subscription: Callable[[str], Awaitable[None]] | None = None,
) -> int:
    """Revoke the keys of an account, and delete its voices with their jobs and audio. Return the number of voices.

    After a failure it can be called again. Usage and the audit log are kept.

    Args:
        cancel_subscription: Ends the subscription of the account. If it fails, nothing is closed.

    Raises:
        NotFoundError: There is no such account.
        ConflictError: The account sees the voices of the home folder, or has a subscription that can't be cancelled.
    """
    customer = await store.find_customer(account_id=account_id)
    if customer is not None and cancel_subscription is not None:
        await cancel_subscription(account_id)
    elif customer is not None and customer.is_subscribed:
        raise ConflictError(
            "The account has a subscription, and this server has no key of Stripe to cancel it.",
            hint="cancel it at Stripe, or set AFTERWORDS_STRIPE_SECRET_KEY.",
        )
    if await store.close_account(account_id) is None:
        raise account_not_found()
    is_owner = await ownership.holds()  # before the rows are deleted by which an unmarked storage is recognized
    voices = await store.list_voices(account_id=account_id, limit=None, after=None)
    for voice in voices:
        paths = await store.delete_voice(voice.voice_id, account_id=account_id)
        if paths is not None and is_owner:  # otherwise a server removes the audio later
            await purge_voice(store, blobs, voice.voice_id, paths)
    return len(voices)


def account_not_found() -> NotFoundError:
    return NotFoundError("There is no such account.", hint="`afterwords accounts` lists the accounts.")
