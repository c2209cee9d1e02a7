"""Signs webhooks as their senders do: for each JSON line a JSON line with the headers.

    {"as": "stripe", "secret": "...", "id": "...", "timestamp": 1700000000, "body": "..."}
    {"as": "twilio", "secret": "...", "url": "https://...", "form": {"name": ["value"]}}

Standard Webhooks, Svix and Stripe sign with their own libraries. GitHub has none and Twilio's is not at hand, so those two
follow what they publish, with Python's own hmac.
"""

import base64
import hashlib
import hmac
import json
import sys
from datetime import datetime, timezone

import standardwebhooks
import stripe
import svix


def by_library(library, prefix):
    def sign(order):
        at = datetime.fromtimestamp(order["timestamp"], tz=timezone.utc)
        return {
            f"{prefix}-id": order["id"],
            f"{prefix}-timestamp": str(order["timestamp"]),
            f"{prefix}-signature": library.Webhook(order["secret"]).sign(order["id"], at, order["body"]),
        }

    return sign


def as_stripe(order):
    sign = stripe.WebhookSignature.generate_signature_header
    return {"stripe-signature": sign(order["body"], order["secret"], order["timestamp"])}


def as_github(order):
    digest = hmac.new(order["secret"].encode(), order["body"].encode(), hashlib.sha256).hexdigest()
    return {"x-hub-signature-256": f"sha256={digest}"}


def as_twilio(order):
    signed = order["url"]
    for name, values in sorted(order["form"].items()):
        for value in sorted(set(values)):
            signed += name + value
    digest = hmac.new(order["secret"].encode(), signed.encode(), hashlib.sha1).digest()
    return {"x-twilio-signature": base64.b64encode(digest).decode()}


signers = {
    "standard-webhooks": by_library(standardwebhooks, "webhook"),
    "svix": by_library(svix.webhooks, "svix"),
    "stripe": as_stripe,
    "github": as_github,
    "twilio": as_twilio,
}
for line in sys.stdin:
    order = json.loads(line)
    print(json.dumps(signers[order["as"]](order)), flush=True)
