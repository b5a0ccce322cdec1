"""Run a Stripe server as a process, with one price: `python -m tests.stripe_api --port 8420 --webhook URL`."""

from __future__ import annotations

import argparse
import sys
from threading import Event

from tests.stripe_api.server import running_stripe

parser = argparse.ArgumentParser(prog="python -m tests.stripe_api")
parser.add_argument("--port", type=int, default=0)
parser.add_argument("--webhook", metavar="URL")
parser.add_argument("--price", default="price_hobby")
given = parser.parse_args()
with running_stripe(given.port) as stripe:
    stripe.create_price(given.price, 900)
    stripe.webhooks.url = given.webhook
    sys.stdout.write(f"{stripe.url} {stripe.key} {stripe.webhooks.secrets[0]}\n")
    sys.stdout.flush()
    Event().wait()
