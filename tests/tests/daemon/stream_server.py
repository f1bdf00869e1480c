"""Answers that take their time, for the daemon tests; prints its port first. Each connection has its thread.

A path names what tells the answer's end: /length, /chunked or /close. Behind the head, which is sent at once, come
1.2 s in first() and 2.4 s in second(). /events sends an event after each of four times 0.3 s in event(). /brief is
chunked and leaves the connection to its client. Run as `gunicorn stream_server:application` it is a WSGI application
that does the work of /chunked between the parts of its answer."""

import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def first():
    time.sleep(1.2)


def second():
    time.sleep(2.4)


def event():
    time.sleep(0.3)


def brief():
    time.sleep(0.1)


FIELDS = {
    "/length": b"Content-Length: 2\r\n",
    "/chunked": b"Transfer-Encoding: chunked\r\n",
    "/brief": b"Transfer-Encoding: chunked\r\n",
    "/close": b"",
    "/events": b"Content-Type: text/event-stream\r\n",
}
BODIES = {"/chunked": b"2\r\nok\r\n0\r\n\r\n", "/brief": b"0\r\n\r\n"}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        fields = FIELDS[self.path]
        self.wfile.write(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")
        if self.path == "/brief":
            brief()
        elif self.path == "/events":
            for number in range(4):
                event()
                self.wfile.write(b"data: %d\n\n" % number)
        else:
            first()
            second()
        if self.path != "/events":
            self.wfile.write(BODIES.get(self.path, b"ok"))
        self.close_connection = self.path in ("/close", "/events")

    def log_message(self, *_):
        pass


def application(_, start_response):
    start_response("200 OK", [])
    yield b"begin"
    first()
    yield b"middle"
    second()
    yield b"end"


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
