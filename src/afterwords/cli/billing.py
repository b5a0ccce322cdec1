"""`afterwords billing`: subscriptions at Stripe, of the server on this machine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup, examples
from afterwords.cli.options import AsJson
from afterwords.cli.serve import run_with_store

if TYPE_CHECKING:
    from afterwords.server.ports import Store
    from afterwords.server.services.billing import Billing
    from afterwords.server.settings import Settings

billing = typer.Typer(cls=HelpGroup, no_args_is_help=True)

T = TypeVar("T")


@billing.command(cls=HelpCommand)
def reconcile(as_json: AsJson = False) -> None:
    """Read every customer and subscription from Stripe, and repair what lost events left.

    A running server does this hourly.
    """
    done = _run(lambda billing: billing.reconcile())
    if as_json:
        facts = {"customers": done.customers, "changed": done.changed, "added": done.added, "failed": done.failed}
        output.result_json(facts)
    else:
        output.note(f"Customers: {done.customers:,}. Changed: {done.changed:,}. Added: {done.added:,}.")
    if done.failed:
        output.note(f"{done.failed:,} could not be read: see above, and run this again.")
        raise typer.Exit(1)


@billing.command(cls=HelpCommand, epilog=examples("afterwords billing reissue ann@example.com"))
def reissue(
    customer: Annotated[str, typer.Argument(help="Email address of the customer, or ID at Stripe: cus_…")],
    as_json: AsJson = False,
) -> None:
    """Create a new key for a customer who lost the page with the key. It is shown only once.

    The key that the customer's last checkout showed is revoked, also if it was rotated; other keys stay valid.
    """
    minted = _run(lambda billing: billing.reissue(customer))
    if as_json:
        output.result_json({"api_key": minted.secret, **minted.key.model_dump(mode="json")})
        return
    output.note("The new key, shown this once; the one before it is revoked:")
    output.result(minted.secret)


def _run(use: Callable[[Billing], Awaitable[T]]) -> T:
    async def with_billing(settings: Settings, store: Store) -> T:
        from afterwords.server.app_state import open_billing
        from afterwords.server.clock import SystemClock
        from afterwords.server.services.billing import billing_disabled

        billing = open_billing(settings, store, SystemClock(), await store.secret())
        if billing is None:
            raise billing_disabled()
        try:
            return await use(billing)
        finally:
            await billing.payments.close()

    return run_with_store(with_billing, purpose="Billing")
