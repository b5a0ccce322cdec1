"""Interfaces between the services and everything outside them: database, storage, clock, and dispatchers.

Every method is atomic. tests/contracts tests the adapters.
"""

from afterwords.server.ports.dispatch import AttemptQueue, Dispatcher, JobQueue, Listener
from afterwords.server.ports.outside import Clock, Mailer, Payments
from afterwords.server.ports.storage import BlobReader, Blobs, BlobSource
from afterwords.server.ports.store import Store

__all__ = [
    "AttemptQueue",
    "BlobReader",
    "BlobSource",
    "Blobs",
    "Clock",
    "Dispatcher",
    "JobQueue",
    "Listener",
    "Mailer",
    "Payments",
    "Store",
]
