"""A receiver of webhooks: prints its port, then a JSON line for every request, verified by Standard Webhooks' own library.

Reads orders from standard input: {"path": "/a", "statuses": [503, 503, 200]} answers that path so, in turn; 0 never answers.
"""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from standardwebhooks.webhooks import Webhook, WebhookVerificationError

webhook = Webhook(sys.argv[1])
statuses = {}
lock = threading.Lock()


def say(value):
    with lock:
        print(json.dumps(value) if not isinstance(value, int) else value, flush=True)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        try:
            webhook.verify(body, headers)
            verified = True
        except WebhookVerificationError:
            verified = False
        with lock:
            answers = statuses.setdefault(self.path, [200])
            status = answers.pop(0) if len(answers) > 1 else answers[0]
        say({
            "path": self.path,
            "verified": verified,
            "body": body.decode("latin-1"),
            "headers": headers,
            "at": time.time(),
        })
        if status == 0:
            threading.Event().wait()
        answer = b"thanks" if status < 300 else b"not now"
        self.send_response(status)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    # More than five may knock at once.
    request_queue_size = 1024


# One host, and twenty more on the same port.
first = Server(("127.0.0.1", 0), Handler)
servers = [first] + [Server((f"127.0.1.{host}", first.server_port), Handler) for host in range(1, 21)]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
say(first.server_port)
for line in sys.stdin:
    order = json.loads(line)
    with lock:
        statuses[order["path"]] = order["statuses"]
