"""A server whose thread is the oldest of many; prints its port and the addresses of its code objects."""
import socket
import sys
import threading
import time

forever = threading.Event()
threading.stack_size(1 << 18)
for _ in range(int(sys.argv[1])):
    threading.Thread(target=forever.wait, daemon=True).start()


def spin(seconds):
    # CPU time, so that the number of samples does not depend on what else runs.
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def serve(connection):
    connection.recv(1000)
    spin(0.3)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
    while connection.recv(1000):
        pass
    connection.close()


listener = socket.create_server(("127.0.0.1", 0), backlog=5)
print(listener.getsockname()[1])
print(id(spin.__code__), id(serve.__code__), flush=True)
while True:
    serve(listener.accept()[0])
