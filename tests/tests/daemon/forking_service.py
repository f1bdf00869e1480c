"""An HTTP server that forks a process for each connection; prints its port first."""

import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ForkingMixIn


def nap():
    time.sleep(0.2)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        nap()
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *_):
        pass


class Server(ForkingMixIn, HTTPServer):
    pass


server = Server(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
