"""A threading HTTP server for the kernel tests; prints its port first."""
import os
import socket
import sys
import tempfile
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

log = tempfile.TemporaryFile("wb", buffering=0)
ends = tempfile.TemporaryFile("wb", buffering=0)
ends.write(b"\r\n")
held = []
log.write(b"GET / HTTP/1.1 200\n" * 3)


# Answers one request on the descriptor that is its argument.
ANSWERER = """
import os, sys
fd = int(sys.argv[1])
os.read(fd, 1000)
os.write(fd, b"HTTP/1.1 200 OK\\r\\nContent-Length: 3\\r\\n\\r\\nok\\n")
while os.read(fd, 1000):
    pass
os.close(fd)
"""


def inner(seconds):
    # CPU time, so that the number of samples does not depend on what else runs.
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def outer(seconds):
    inner(seconds)


def call(path):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
        answer.read()


def serve_another():
    """A request on another connection, served by this thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        with socket.create_connection(listener.getsockname()) as client:
            connection, _ = listener.accept()
            with connection:
                client.sendall(b"GET /inside HTTP/1.1\r\n\r\n")
                connection.recv(100)
                connection.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")


class Handler(BaseHTTPRequestHandler):
    protocol_version = sys.argv[1]

    def do_GET(self):
        body = b"ok\n"
        if self.path.startswith("/sleep"):
            time.sleep(0.3)
        elif self.path.startswith("/steps"):
            for _ in range(20):
                time.sleep(0.02)
        elif self.path.startswith("/forever"):
            time.sleep(60)
        elif self.path.startswith("/busy"):
            outer(0.3)
        elif self.path.startswith("/log"):
            with open(f"/proc/self/fd/{log.fileno()}", "rb", buffering=0) as lines:
                lines.read(100)
        elif self.path.startswith("/self"):
            url = f"http://127.0.0.1:{server.server_port}/inside"
            with urllib.request.urlopen(url) as answer:
                body = answer.read()
        elif self.path.startswith("/calls"):
            # Ten calls on the way, and one when the answer has begun.
            for number in range(10):
                call(f"/inside/{number}")
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n")
            call("/inside/late")
            self.wfile.write(b"done\n")
            return
        elif self.path.startswith("/chunks"):
            self.chunks()
            return
        elif self.path.startswith("/other"):
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n")
            serve_another()
            self.wfile.write(b"ok\n")
            return
        elif self.path.startswith("/openmany"):
            held.extend(os.dup(log.fileno()) for _ in range(80))
        elif self.path.startswith("/closerange"):
            fd = self.connection.fileno()
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            os.closerange(3, fd + 1)
            time.sleep(60)
        elif self.path.startswith("/exec"):
            os.execv(sys.executable, ["another", "-c", "import time; time.sleep(60)"])
        elif self.path.startswith("/inherit"):
            fd = self.connection.fileno()
            os.set_inheritable(fd, True)
            os.execv(sys.executable, ["another", "-c", ANSWERER, str(fd)])
        elif self.path.startswith("/fork"):
            if os.fork() == 0:
                os._exit(0)
            os.wait()
        self.answer(body)

    def do_POST(self):
        self.connection.settimeout(10)
        self.rfile.read(int(self.headers["Content-Length"]))
        time.sleep(0.01)
        self.answer(b"posted\n")

    def chunks(self):
        # A head in two writes, a chunk in three buffers, one from a file, and the end in the way the path says.
        for piece in (b"HTTP/1.1 200 OK\r\n", b"Transfer-Encoding: chunked\r\n\r\n"):
            self.wfile.write(piece)
        fd = self.connection.fileno()
        os.writev(fd, [b"2\r\n", b"ok", b"\r\n"])
        self.wfile.write(b"5\r\n")
        os.sendfile(fd, log.fileno(), 0, 5)
        if self.path.endswith("/bytes"):
            for byte in b"\r\n0\r\n\r\n":
                self.wfile.write(bytes([byte]))
        elif self.path.endswith("/buffers"):
            os.writev(fd, [b"\r\n", b"0\r", b"", b"\n\r", b"\n"])
        elif self.path.endswith("/file"):
            # Its beginning is not known.
            os.sendfile(fd, ends.fileno(), 0, 2)
            self.wfile.write(b"0\r\n\r\n")
        elif self.path.endswith("/open"):
            self.wfile.write(b"\r\n2\r\nok\r\n")

    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port)
print(id(inner.__code__), id(outer.__code__), id(Handler.do_GET.__code__))
server.serve_forever()
