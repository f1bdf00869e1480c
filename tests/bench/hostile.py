"""One attack on a running profilerd, for the benchmark: says `ready`, and goes on until it is killed.

Usage: hostile.py ATTACK GRPC_PORT HTTP_PORT METRICS_PORT TOKEN

None of them has any right.
"""

import ctypes
import encodings.idna  # Before rights are given up: the interpreter's folder may be private.
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

NOBODY = 1001
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15
ATTACK = sys.argv[1]
GRPC_PORT, HTTP_PORT, METRICS_PORT = map(int, sys.argv[2:5])
TOKEN = sys.argv[5]


def drop_rights():
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)


def die_with_parent():
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def connect(port):
    connection = socket.create_connection(("127.0.0.1", port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def for_ever(work):
    """Goes on when a server refuses or ends a connection, at most a hundred times a second."""
    while True:
        try:
            work()
        except OSError:
            pass
        time.sleep(0.01)


def at_once(count, work):
    for _ in range(count):
        threading.Thread(target=for_ever, args=(work,), daemon=True).start()


def busy():
    """Computes on all CPUs, as others do as well."""
    for _ in range(os.cpu_count()):
        if os.fork() == 0:
            die_with_parent()
            while True:
                pass


def fragments():
    """Queries whose fragments multiply, by a client that has the token."""
    spread = "".join(f"fragment f{n} on Query {{ {f'...f{n + 1} ' * 10} }} " for n in range(30))
    query = f"{{ ...f0 }} {spread} fragment f30 on Query {{ version }}"
    body = json.dumps({"query": query}).encode()
    head = (
        f"POST /graphql HTTP/1.1\r\nHost: localhost:{HTTP_PORT}\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}\r\n\r\n"
    )

    def ask():
        with connect(HTTP_PORT) as connection:
            connection.sendall(head.encode() + body)
            connection.recv(1 << 16)

    at_once(8, ask)


def silent():
    """Connections on which nothing is said, as many as the server takes."""

    def hold():
        with connect(GRPC_PORT) as connection:
            connection.recv(1)

    at_once(1000, hold)


def frame(kind, flags, stream, payload):
    """RFC 9113, section 4.1."""
    header = len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big")
    return header + payload


def literal(name, value):
    """A header field without a table, RFC 7541, section 6.2.2; both texts are shorter than 127."""
    texts = b"".join(bytes([len(text)]) + text.encode() for text in (name, value))
    return b"\0" + texts


def unfinished():
    """Messages that never end, on as many calls as the server takes."""
    paths = ["/grpc.health.v1.Health/Check", "/skywalking.v3.ProfileTask/collectSnapshot"]
    data, headers, settings, end_headers = 0, 1, 4, 4

    def send():
        with connect(GRPC_PORT) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(settings, 0, 0, b""))
            for number in range(128):
                fields = {
                    ":method": "POST",
                    ":scheme": "http",
                    ":path": paths[number % 2],
                    ":authority": "localhost",
                    "content-type": "application/grpc",
                    "te": "trailers",
                    "authentication": TOKEN,
                }
                stream = 2 * number + 1
                block = b"".join(literal(*field) for field in fields.items())
                connection.sendall(frame(headers, end_headers, stream, block))
                message = b"\0" + (4 << 20).to_bytes(4, "big") + b"\7" * 16000
                connection.sendall(frame(data, 0, stream, message))
            while connection.recv(1 << 16):
                pass

    at_once(64, send)


def deaf():
    """Clients that ask without end and do not read."""

    def ask():
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with connection:
            connection.connect(("127.0.0.1", METRICS_PORT))
            while True:
                connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n" * 100)

    at_once(64, ask)


def renames():
    """Twenty processes with many mappings, each with a new name four times a second."""
    libc = ctypes.CDLL(None)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + [ctypes.c_int] * 3 + [ctypes.c_long]
    folder = tempfile.mkdtemp()
    for _ in range(13):
        folder = os.path.join(folder, "d" * 250)
        os.mkdir(folder)
    file = os.open(os.path.join(folder, "file"), os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(file, mmap.PAGESIZE)
    is_child = False
    for _ in range(19):
        if os.fork() == 0:
            is_child = True
            die_with_parent()
            break
    for _ in range(60000):
        libc.mmap(None, mmap.PAGESIZE, mmap.PROT_READ, mmap.MAP_SHARED, file, 0)

    def rename():
        libc.prctl(PR_SET_NAME, str(time.monotonic_ns()).encode()[-15:], 0, 0, 0)
        time.sleep(0.25)

    at_once(1, rename)
    if is_child:
        time.sleep(3600)


def calls():
    """A call on a socket that fails, over and over: hooks of the kernel side run in it."""
    ours, _theirs = socket.socketpair()
    ours.setblocking(False)

    def call():
        while True:
            ours.recv(1)

    at_once(1, call)


def symbols():
    """A profiled service whose functions have names without end, and recurse through many places."""

    def base_36(number):
        digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
        return digits[number] if number < 36 else base_36(number // 36) + digits[number % 36]

    symbol = "_Z1f1a"
    for level in range(23):
        argument = "S_" if level == 0 else f"S{base_36(2 * level - 1)}_"
        name = f"b{level}"
        symbol += f"{len(name)}{name}I{argument * 4}E"
    cases = "".join(f"case {n}: chain0({n - 1}); calls += {n}; break;" for n in range(1, 60))
    functions = (
        f'__attribute__((noinline)) void chain0(int n) __asm__("{symbol}");'
        f"void chain0(int n) {{ switch (n) {{ {cases} default: doze(); }} }}"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    with open(os.path.join(root, "tests/daemon/names_server.c")) as template:
        source = template.read().replace("/* FUNCTIONS */", functions).replace("SITES", "59")
    folder = tempfile.mkdtemp()
    with open(os.path.join(folder, "server.c"), "w") as file:
        file.write(source)
    program = os.path.join(folder, "server")
    subprocess.run(["cc", "-O1", "-w", "-o", program, file.name], check=True)
    server = subprocess.Popen([program], stdout=subprocess.PIPE, preexec_fn=die_with_parent)
    port = int(server.stdout.readline())

    def ask():
        with connect(port) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            connection.recv(4096)

    at_once(1, ask)


if __name__ == "__main__":
    attacks = [busy, fragments, silent, unfinished, deaf, renames, calls, symbols]
    chosen = {attack.__name__: attack for attack in attacks}[ATTACK]
    drop_rights()
    chosen()
    print("ready", flush=True)
    time.sleep(3600)
