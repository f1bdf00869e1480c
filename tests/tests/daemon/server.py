"""The server of the daemon tests. `server.py threads` serves each connection on a thread of its own;
`server.py handoff` reads requests on one thread and answers them on another. Prints its port first."""

import queue
import socket
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/first":
            self.first()
        elif self.path == "/second":
            self.second()
        elif self.path == "/trickle":
            self.trickle()
        elif self.path == "/outside":
            url = f"http://127.0.0.1:{server.server_port}/inside"
            with urllib.request.urlopen(url) as answer:
                self.answer(answer.read())
        elif self.path == "/inside":
            self.inside()
        elif self.path == "/forever":
            self.forever()
        else:
            self.answer(b"ok\n")

    def first(self):
        time.sleep(0.1)
        self.answer(b"first\n")

    def second(self):
        time.sleep(0.1)
        self.answer(b"second\n")

    def inside(self):
        time.sleep(0.1)
        self.answer(b"inside\n")

    def forever(self):
        time.sleep(60)

    def trickle(self):
        self.send_response(200)
        self.send_header("Content-Length", "8")
        self.end_headers()
        time.sleep(0.3)
        self.wfile.write(b"trickle\n")

    def do_POST(self):
        print("reading a body", flush=True)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(b"posted\n")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def answer_taken_over(taken):
    while True:
        connection = taken.get()
        time.sleep(0.05)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")


def read_and_hand_off(listener, taken):
    while True:
        connection, _ = listener.accept()
        while connection.recv(4096):
            taken.put(connection)


if sys.argv[1] == "threads":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
else:
    listener = socket.create_server(("127.0.0.1", 0))
    taken = queue.Queue()
    threading.Thread(target=answer_taken_over, args=(taken,), daemon=True).start()
    print(listener.getsockname()[1], flush=True)
    read_and_hand_off(listener, taken)
