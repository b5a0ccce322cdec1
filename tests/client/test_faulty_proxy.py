"""The proxy that our own tests use in place of a bad network."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

import pytest

from afterwords.testing import Fault
from tests.client.faulty_proxy import FaultyServer


@pytest.mark.parametrize("fault", [Fault.DROP_BEFORE, Fault.DROP_AFTER])
def test_dropped_connection_is_reset(faults: FaultyServer, fault: Fault) -> None:
    faults.inject(fault)
    with socket.create_connection(("127.0.0.1", urlsplit(faults.url).port), 30) as connection:
        connection.sendall(b"GET /v1/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
