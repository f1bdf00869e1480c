"""A worker that C has forked, without telling the interpreter, serves requests; prints the port first."""
import ctypes
import os
import socket
import sys
import time


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def serve():
    while True:
        connection, _ = listener.accept()
        if b" /busy" in connection.recv(1000):
            spin(0.3)
        else:
            time.sleep(0.3)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
        connection.close()


listener = socket.create_server(("127.0.0.1", 0), backlog=5)
print(listener.getsockname()[1])
# Keeps the interpreter's lock, as a program does that embeds CPython and forks.
child = ctypes.PyDLL(None).fork()
if child == 0:
    # The test kills the parent, and with it this process.
    ctypes.CDLL(None).prctl(1, 9)
    serve()
print(child)
print(id(spin.__code__), id(serve.__code__))
os.waitpid(child, 0)
