"""Servers that wait in different ways before they answer, for the daemon tests; prints its port first.

asyncio, gevent: an event loop, which serves one request at a time here and has work of its own meanwhile;
asyncio-poll and asyncio-select are loops that wait in other ways.
threads: each connection has its thread; /asyncio runs a loop of the request's own, /poll polls the client's socket,
/select another server's, /epoll and /polls both.
proxy: an event loop that forwards what it reads to a child process that listens on a socket of both."""

import select
import socket
import sys
import time


def background(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"


def serve_asyncio(by="epoll"):
    import asyncio
    import selectors

    async def work():
        while True:
            background(0.02)
            await asyncio.sleep(0.02)

    async def serve(reader, writer):
        while await reader.read(4096):
            await asyncio.sleep(0.15)
            writer.write(ANSWER)
            await writer.drain()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await asyncio.gather(work(), server.serve_forever())

    selector = getattr(selectors, by.capitalize() + "Selector")()
    asyncio.SelectorEventLoop(selector).run_until_complete(main())


def serve_gevent():
    import gevent
    from gevent.server import StreamServer

    def work():
        while True:
            background(0.02)
            gevent.sleep(0.02)

    def serve(connection, _):
        while connection.recv(4096):
            gevent.sleep(0.15)
            connection.sendall(ANSWER)

    server = StreamServer(("127.0.0.1", 0), serve)
    server.start()
    print(server.server_port, flush=True)
    gevent.spawn(work)
    server.serve_forever()


def serve_threads():
    import asyncio
    import selectors
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            # A socket that is connected to somebody, who says nothing.
            near, far = socket.socketpair()
            if self.path == "/asyncio":
                asyncio.run(asyncio.sleep(0.15))
            elif self.path == "/poll":
                poll = select.poll()
                poll.register(self.connection, select.POLLIN)
                poll.poll(150)
            elif self.path == "/polls":
                poll = select.poll()
                poll.register(self.connection, select.POLLIN)
                poll.register(near, select.POLLIN)
                poll.poll(150)
            elif self.path == "/select":
                select.select([near], [], [], 0.15)
            elif self.path == "/epoll":
                with selectors.EpollSelector() as selector:
                    selector.register(self.connection, selectors.EVENT_READ)
                    selector.register(near, selectors.EVENT_READ)
                    selector.select(0.15)
            near.close()
            far.close()
            self.wfile.write(ANSWER)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()


def serve_proxy():
    import asyncio
    import ctypes
    import os

    inside = socket.create_server(("127.0.0.1", 0))
    if os.fork() == 0:
        # The test kills the parent, and with it this process.
        ctypes.CDLL(None).prctl(1, 9)
        while True:
            connection, _ = inside.accept()
            connection.recv(4096)
            time.sleep(0.15)
            connection.sendall(ANSWER)
            connection.close()

    async def serve(reader, writer):
        while head := await reader.read(4096):
            # Not HTTP: the workers of uWSGI are not spoken to in HTTP either.
            from_worker, to_worker = await asyncio.open_connection(*inside.getsockname())
            to_worker.write(b"\0" + head)
            writer.write(await from_worker.read())
            to_worker.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        print(server.sockets[0].getsockname()[1], flush=True)
        await server.serve_forever()

    asyncio.run(main())


mode, _, by = sys.argv[1].partition("-")
globals()["serve_" + mode](*by.split())
