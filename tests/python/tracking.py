"""Sends a burst of events with an SDK as it comes from PyPI, and prints what it made of them.

    tracking.py segment|rudderstack|posthog URL COUNT [KEY]

Prints {"ids": [...], "errors": [...]}: the id that the SDK gave to each event, and what it gave up on.
"""

import json
import sys
from datetime import datetime, timezone

sdk, url, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
key = sys.argv[4] if len(sys.argv) > 4 else "write-key"
ids, errors = [], []


def failed(error, items):
    errors.append(f"{error}: {len(items)} events")


def calls(client, sent):
    """One of each call, and tracks between them."""
    now = datetime.now(timezone.utc)
    for n in range(count):
        match n % 10:
            case 0:
                sent(client.identify("u1", {"n": n, "plan": "free"}))
            case 1:
                sent(client.page("u1", "Docs", "Index", {"n": n}))
            case 2:
                sent(client.screen("u1", None, "Start", {"n": n}, anonymous_id="a1"))
            case 3:
                sent(client.group("u1", "g1", {"n": n}))
            case 4:
                sent(client.alias("a1", "u1"))
            case 5:
                sent(client.track(anonymous_id="a1", event="Shown – Ω", properties={"n": n}, timestamp=now))
            case _:
                sent(client.track("u1", "Order Completed", {"n": n, "total": 12.5, "note": float("nan")}))


def took(answer):
    well, message = answer
    assert well, "the SDK's own queue is full"
    ids.append(message["messageId"])


match sdk:
    case "segment":
        from segment.analytics import Client

        client = Client(key, host=url, on_error=failed, gzip=True, upload_size=20, upload_interval=0.2)
        calls(client, took)
        client.flush()
        client.join()
    case "rudderstack":
        from rudderstack.analytics import Client

        client = Client(key, host=url, on_error=failed, upload_size=20, upload_interval=0.2)
        calls(client, took)
        client.flush()
        client.join()
    case "posthog":
        from posthog import Posthog

        client = Posthog(key, host=url, on_error=failed, gzip=True, flush_at=20, flush_interval=0.2, max_retries=8)
        for n in range(count):
            match n % 5:
                case 0:
                    ids.append(client.set(distinct_id="u1", properties={"n": n}))
                case 1:
                    ids.append(client.group_identify("company", "g1", {"n": n}, distinct_id="u1"))
                case 2:
                    ids.append(client.alias("a1", "u1"))
                case 3:
                    # Of nobody in particular: the SDK makes an id up.
                    ids.append(client.capture("shown", properties={"n": n}))
                case _:
                    ids.append(client.capture("order completed", distinct_id="u1", properties={"n": n}))
        client.flush()
        client.shutdown()

print(json.dumps({"ids": ids, "errors": errors}))
