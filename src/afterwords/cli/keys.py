"""`afterwords keys` and `accounts`: of the server on this machine, in its database, or of another with --remote."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Protocol, TypeVar

import typer

from afterwords.cli import output
from afterwords.cli.help import HelpCommand, HelpGroup, examples
from afterwords.cli.options import AsJson, Profile, Remote, Yes, check_group_options, check_label, is_remote
from afterwords.cli.remote import connect
from afterwords.cli.serve import run_with_store

if TYPE_CHECKING:
    from afterwords.models import Account, ApiKey
    from afterwords.server.ports import Store
    from afterwords.server.services.keys import KeyService, MintedKey
    from afterwords.server.settings import Settings

keys = typer.Typer(cls=HelpGroup, invoke_without_command=True)

T = TypeVar("T")
KeyId = Annotated[str, typer.Argument(help="ID of the key, from `keys list`.")]


# -- the two servers ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class CreatedKey:
    """A key that was just created.

    Attributes:
        facts: Everything to print with --json.
    """

    secret: str = field(repr=False)
    key_id: str | None
    facts: dict[str, Any] = field(repr=False)


class KeyStore(Protocol):
    """The API keys of a server."""

    def list(self) -> Sequence[ApiKey]:
        """Return all keys."""

    def create(self, *, scopes: Sequence[str], is_home: bool, **fields: Any) -> CreatedKey:
        """Create a key."""

    def revoke(self, key_id: str) -> None:
        """Revoke a key."""

    def rotate(self, key_id: str, *, overlap_s: float) -> CreatedKey:
        """Replace a key."""

    def accounts(self) -> Sequence[Account]:
        """Return all accounts."""


class LocalKeys:
    """The keys in the database of the server on this machine."""

    def list(self) -> Sequence[ApiKey]:
        return self._run(lambda keys: keys.list(account_id=None))

    def create(self, *, scopes: Sequence[str], is_home: bool, **fields: Any) -> CreatedKey:
        """Create a key after checking its label and scopes."""
        from afterwords.errors import InvalidOptionError
        from afterwords.server.records import Scope

        check_label(fields["label"])
        known = set(Scope)
        for name in scopes:
            if name not in known:
                raise InvalidOptionError.for_option("--scope", value=name, allowed=", ".join(Scope))
        granted = tuple(Scope(name) for name in scopes)
        return self._new_key(self._run(lambda keys: keys.create(scopes=granted, is_home=is_home, **fields)))

    def revoke(self, key_id: str) -> None:
        self._run(lambda keys: keys.revoke(key_id, account_id=None))

    def rotate(self, key_id: str, *, overlap_s: float) -> CreatedKey:
        return self._new_key(self._run(lambda keys: keys.rotate(key_id, account_id=None, overlap_s=overlap_s)))

    def accounts(self) -> Sequence[Account]:
        return list(self._run(lambda keys: keys.list_accounts()))

    @staticmethod
    def _run(use: Callable[[KeyService], Awaitable[T]]) -> T:
        def with_keys(_settings: Any, store: Any) -> Awaitable[T]:
            from afterwords.server.services.keys import KeyService

            return use(KeyService(store))

        return run_with_store(with_keys, purpose="Managing keys")

    @staticmethod
    def _new_key(minted: MintedKey) -> CreatedKey:
        return CreatedKey(
            minted.secret, minted.key.key_id, {"api_key": minted.secret, **minted.key.model_dump(mode="json")}
        )


class RemoteKeys:
    """The keys of a server that is asked over HTTP."""

    def __init__(self, profile: str | None) -> None:
        self._profile = profile

    def list(self) -> Sequence[ApiKey]:
        with connect(self._profile) as client:
            return client.keys.list()

    def create(self, *, scopes: Sequence[str], is_home: bool, **fields: Any) -> CreatedKey:  # noqa: ARG002 - local only
        """Create a key; without scopes that takes the admin secret."""
        secret = self._admin_secret(is_needed=not scopes)
        with connect(self._profile, admin_secret=secret) as client:
            made = client.keys.create(scopes=scopes, **fields)
        return CreatedKey(made.api_key, made.key_id, made.model_dump(mode="json", exclude_none=True))

    def revoke(self, key_id: str) -> None:
        with connect(self._profile) as client:
            client.keys.revoke(key_id)

    def rotate(self, key_id: str, *, overlap_s: float) -> CreatedKey:
        with connect(self._profile) as client:
            made = client.keys.rotate(key_id, overlap_s=overlap_s)
        return CreatedKey(made.api_key, made.key_id, made.model_dump(mode="json", exclude_none=True))

    def accounts(self) -> Sequence[Account]:
        with connect(self._profile, admin_secret=self._admin_secret(is_needed=True)) as client:
            return list(client.keys.accounts())

    def _admin_secret(self, *, is_needed: bool) -> str | None:
        """Return the configured admin secret; if it is needed and missing, ask for it at the terminal."""
        from afterwords.client.profiles import find_access
        from afterwords.errors import UnauthorizedError

        access = find_access(profile=self._profile)
        if access.admin_secret is not None or not is_needed:
            return access.admin_secret
        if not output.is_terminal():
            raise UnauthorizedError.not_logged_in(access.base_url, is_admin=True)
        return output.ask_hidden(f"Admin secret of {access.base_url} (it is not shown):")


def _open(remote: bool, profile: str | None) -> KeyStore:
    return RemoteKeys(profile) if is_remote(remote, profile) else LocalKeys()


# -- commands -------------------------------------------------------------------------------------------------


@keys.callback()
def options(context: typer.Context, remote: Remote = False, profile: Profile = None) -> None:
    if context.invoked_subcommand is None:
        list_keys(remote=remote, profile=profile)
    else:
        check_group_options(context, remote=remote, profile=profile)


@keys.command(cls=HelpCommand, epilog=examples("afterwords keys create --for KEY_ID --scope synthesize --label app"))
def create(
    label: Annotated[str | None, typer.Option(help="Label to recognize the key by.")] = None,
    scope: Annotated[
        list[str] | None, typer.Option(help="voices:read, voices:write or synthesize. (default: all)")
    ] = None,
    character_limit: Annotated[
        int | None, typer.Option(min=0, max=2**53 - 1, help="Characters that the key may use per month.")
    ] = None,
    account: Annotated[
        str | None, typer.Option(help="ID of its account, from `afterwords accounts`. (default: a new account)")
    ] = None,
    for_key: Annotated[str | None, typer.Option("--for", help="ID of a key whose account it joins.")] = None,
    plan: Annotated[str | None, typer.Option(help="Plan of its new account. (default: unlimited)")] = None,
    home: Annotated[
        bool, typer.Option("--home", help="Give access to the voices of this machine and those pushed to it.")
    ] = False,
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Create an API key for a new or an existing account. It is shown only once.

    With --remote, this needs the admin secret of the server, or a key without scopes and limit, which can create keys
    with scopes for its own account.
    """
    from afterwords.errors import InvalidOptionError

    if home and (account or for_key or is_remote(remote, profile)):
        raise InvalidOptionError(
            "--home can't be combined with --account, --for or --remote.", hint="remove one of these options."
        )
    key = _open(remote, profile).create(
        scopes=scope or (),
        is_home=home,
        label=label,
        character_limit=character_limit,
        account_id=account,
        for_key=for_key,
        plan=plan,
    )
    _print_key(key, as_json=as_json)


@keys.command("list", cls=HelpCommand)
def list_keys(remote: Remote = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """List the API keys with their limits and use, without the secrets."""
    found = _open(remote, profile).list()
    if as_json:
        output.result_json([key.model_dump(mode="json") for key in found])
        return
    if not found:
        output.note("There are no keys yet. Create one: afterwords keys create")
        return
    _print_keys(found)


def _print_keys(found: Sequence[ApiKey]) -> None:
    from afterwords.models import now

    rows = []
    for key in found:
        if key.revoked_at is not None:
            state = "revoked"
        elif key.expires_at is None:
            state = "valid"
        else:
            state = "expired" if key.expires_at <= now() else f"valid until {key.expires_at:%Y-%m-%d %H:%M} UTC"
        rows.append(
            (
                key.key_id,
                f"{key.prefix}…" if key.prefix else "-",
                key.label or "-",
                key.account_id[:8] if key.account_id else "-",
                " ".join(key.scopes) or "all",
                _spent(key.characters, key.character_limit),
                f"{key.used_at:%Y-%m-%d %H:%M}" if key.used_at else "-",
                f"{key.created_at:%Y-%m-%d}",
                state,
            )
        )
    headers = ("id", "key", "label", "account", "scopes", "spent", "used (UTC)", "created", "state")
    output.result_table(headers, rows)


@keys.command(cls=HelpCommand)
def revoke(key_id: KeyId, remote: Remote = False, profile: Profile = None) -> None:
    """Revoke an API key with immediate effect."""
    _open(remote, profile).revoke(key_id)
    output.note("Revoked.")


@keys.command(cls=HelpCommand)
def rotate(
    key_id: KeyId,
    overlap: Annotated[float, typer.Option(min=0, help="Seconds that the old key stays valid.")] = 0,
    remote: Remote = False,
    profile: Profile = None,
    as_json: AsJson = False,
) -> None:
    """Replace an API key with a new one."""
    _print_key(_open(remote, profile).rotate(key_id, overlap_s=overlap), as_json=as_json)
    if is_remote(remote, profile):
        output.note("If you are logged in with the old key: afterwords login")


# -- accounts -------------------------------------------------------------------------------------------------

accounts = typer.Typer(cls=HelpGroup, invoke_without_command=True)
AccountId = Annotated[str, typer.Argument(help="ID of the account, from `accounts list`.")]


@accounts.callback()
def account_options(
    context: typer.Context, remote: Remote = False, profile: Profile = None, as_json: AsJson = False
) -> None:
    if context.invoked_subcommand is None:
        list_accounts(remote=remote, profile=profile, as_json=as_json)
    else:
        check_group_options(context, remote=remote, profile=profile, as_json=as_json)


@accounts.command("list", cls=HelpCommand)
def list_accounts(remote: Remote = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """List the accounts with their plans, voices and use.

    With --remote, this needs the admin secret of the server.
    """
    found = _open(remote, profile).accounts()
    if as_json:
        output.result_json([account.model_dump(mode="json") for account in found])
    elif found:
        rows = [
            (
                account.account_id,
                str(account.keys),
                str(account.voices),
                _spent(account.characters, account.limit),
                f"{account.storage_bytes / 1e6:,.1f} MB",
                account.plan or "-",
                f"{account.created_at:%Y-%m-%d}",
                _state(account),
            )
            for account in found
        ]
        output.result_table(("id", "keys", "voices", "characters", "storage", "plan", "created", "state"), rows)
    else:
        output.note("There are no accounts yet. Create one: afterwords keys create")


@accounts.command(cls=HelpCommand)
def show(account_id: AccountId, remote: Remote = False, profile: Profile = None, as_json: AsJson = False) -> None:
    """Show an account with its plan, billing period, use, subscription and keys.

    With --remote, this needs the admin secret of the server.
    """
    store = _open(remote, profile)
    account = next((one for one in store.accounts() if one.account_id == account_id), None)
    if account is None:
        from afterwords.errors import NotFoundError

        raise NotFoundError("There is no such account.", hint="`afterwords accounts` lists the accounts.")
    keys = [key for key in store.list() if key.account_id == account_id]
    if as_json:
        facts = account.model_dump(mode="json")
        output.result_json({**facts, "keys": [key.model_dump(mode="json") for key in keys]})
        return
    period = None
    if account.period_start and account.period_end:
        period = f"{account.period_start:%Y-%m-%d} to {account.period_end:%Y-%m-%d}"
    output.result_facts(
        {
            "account": account.account_id,
            "state": _state(account),
            "plan": account.plan or "none",
            "period": period,
            "characters": _spent(account.characters, account.limit),
            "voices": account.voices,
            "storage": f"{account.storage_bytes / 1e6:,.1f} MB",
            "customer": account.customer_id,
            "subscription": account.subscription,
            "created": f"{account.created_at:%Y-%m-%d}",
        }
    )
    if keys:
        output.result("")
        _print_keys(keys)


@accounts.command("set-plan", cls=HelpCommand, epilog=examples("afterwords accounts set-plan ACCOUNT_ID hobby"))
def set_plan(
    account_id: AccountId, plan: Annotated[str, typer.Argument(help="Name of the plan; none: unlimited.")]
) -> None:
    """Give an account of the server on this machine another plan.

    The plan of an account with a subscription follows the subscription, and can't be set here. After the end of the
    subscription it can: the account is valid again, and is no longer that of the customer at Stripe.
    """

    async def change(_settings: Settings, store: Store) -> None:
        from afterwords.server.services.accounts import account_not_found

        if not await store.set_plan(account_id, None if plan == "none" else plan):
            raise account_not_found()

    run_with_store(change, purpose="Managing accounts")
    output.note("The account is unlimited now." if plan == "none" else f"The plan is {output.shown(plan)} now.")


@accounts.command(cls=HelpCommand)
def close(account_id: AccountId, yes: Yes = False) -> None:
    """Close an account of the server on this machine: revoke its keys, and delete its voices and audio.

    Its subscription at Stripe is cancelled first.
    """
    if not yes:
        output.confirm_removal(
            f"The keys of account [bold]{output.shown(account_id)}[/bold] are revoked, and its voices, jobs and audio "
            "are deleted for good."
        )

    async def end(settings: Settings, store: Store) -> int:
        from afterwords.server.app_state import open_billing, open_storage
        from afterwords.server.clock import SystemClock
        from afterwords.server.services.accounts import close_account
        from afterwords.server.services.ownership import Ownership, database_id

        blobs, secret = open_storage(settings), await store.secret()
        ownership = Ownership(store, blobs, database_id(secret))
        billing = open_billing(settings, store, SystemClock(), secret)
        if billing is None:
            return await close_account(store, blobs, ownership, account_id)
        try:
            return await close_account(store, blobs, ownership, account_id, cancel_subscription=billing.cancel)
        finally:
            await billing.payments.close()

    n_voices = run_with_store(end, purpose="Managing accounts")
    output.note(f"The account is closed. Voices that were deleted with it: {n_voices}")


def _state(account: Account) -> str:
    return "closed" if account.closed_at else "suspended" if account.suspended_at else "open"


def _spent(characters: int | None, limit: int | None) -> str:
    spent = "-" if characters is None else f"{characters:,}"
    return spent if limit is None else f"{spent} / {limit:,}"


def _print_key(key: CreatedKey, *, as_json: bool) -> None:
    if as_json:
        output.result_json(key.facts)
        return
    output.note(f"{f'Key {output.shown(key.key_id)}' if key.key_id else 'A key'}, shown this once:")
    output.result(output.plain(key.secret))
