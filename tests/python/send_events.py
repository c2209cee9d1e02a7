"""Sends CloudEvents with the CloudEvents SDK for Python, each of them twice.

    send_events.py URL

Prints a JSON line for every event: what was meant, and both answers.
"""

import base64
import json
import sys
from datetime import datetime, timedelta, timezone

import requests
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent

url = sys.argv[1]
at = datetime(2026, 11, 22, 14, 0, 0, 250000, tzinfo=timezone.utc)
east = datetime(2026, 11, 22, 19, 30, tzinfo=timezone(timedelta(hours=5, minutes=30)))

# Everything that the HTTP binding has to encode: spaces, %, quotes, and what is not ASCII.
EVENTS = [
    ({"type": "order.paid", "source": "/shop"}, {"order": {"id": 117, "total": "129.00"}}),
    (
        {
            "type": "Größe.geändert",
            "source": "/shop/a b/100%25?q=\"x\"",
            "subject": "Euro € 😀",
            "time": at,
            "comexample": "100% \"sure\" \\ 名前",
            "datacontenttype": "application/json",
        },
        {"text": "naïve 😀", "list": [1, 0.1, None, True]},
    ),
    ({"type": "note.taken", "source": "/notes", "datacontenttype": "text/plain", "time": east}, "plain, ünd more"),
    ({"type": "image.taken", "source": "/camera", "datacontenttype": "image/png"}, b"\x89PNG\x00\xff"),
    ({"type": "nothing.said", "source": "/quiet"}, None),
]


def told(value):
    return value.isoformat() if isinstance(value, datetime) else value


number = 0
for convert in (to_binary_event, to_structured_event):
    for attributes, data in EVENTS:
        number += 1
        event = CloudEvent(attributes={"id": f"{convert.__name__} #{number}%", "specversion": "1.0", **attributes}, data=data)
        message = convert(event)
        answers = []
        for _ in range(2):
            answer = requests.post(url, data=message.body, headers=message.headers, timeout=30)
            answers.append({"status": answer.status_code, **answer.json()})
        meant = {name: told(value) for name, value in event.get_attributes().items()}
        bytes_meant = isinstance(data, bytes)
        print(json.dumps({
            "attributes": meant,
            "data": None if bytes_meant else data,
            "data_base64": base64.b64encode(data).decode() if bytes_meant else None,
            "answers": answers,
        }))
