"""Publishes messages that are not warren's, straight to its exchange, with pika.

    foreign.py AMQP_URL EXCHANGE KIND FINISHED_ID GOOD_ID
"""

import sys
import time

import msgpack
import pika

url, exchange, kind, finished, good = sys.argv[1:]
connection = pika.BlockingConnection(pika.URLParameters(url))
channel = connection.channel()
channel.confirm_delivery()


def deep(levels):
    return b"\x81\xa1a" * levels + b"\xc0"


def publish(body, key=kind, **properties):
    channel.basic_publish(exchange, key, body, pika.BasicProperties(**properties))


ids = [f"0190aaaa-bbbb-7ccc-8ddd-eeeeffff00{n:02x}" for n in range(20)]
publish(b'{"work_ms": 1}', message_id=ids[0])
publish(bytes(range(256)), message_id=ids[1])
publish(b"")
publish(deep(900), message_id=ids[2])
publish(msgpack.packb({}) + b"more", message_id=ids[3])
publish(b"\x81\xdb\xff\xff\xff\xffshort", message_id=ids[4])
publish(msgpack.packb({"work_ms": 1}))
publish(msgpack.packb({"colour": "red"}), message_id=ids[5])
publish(b"canary-in-a-message", message_id=finished)
publish(msgpack.packb({}), message_id=finished)
publish(msgpack.packb({}), key="no.such.kind", message_id=ids[6])
publish(msgpack.packb({"payload_bytes": 3}), message_id=good, timestamp=int(time.time()), headers={"x-else": ["any", {"thing": 1}]})
connection.close()
