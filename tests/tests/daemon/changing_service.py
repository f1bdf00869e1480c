"""An HTTP server that becomes another program (/exec) or gets a child that serves as well (/fork) after it has
answered; prints its port first."""

import ctypes
import os
import signal
import socket
import sys

PR_SET_PDEATHSIG = 1

if len(sys.argv) > 1:
    listener = socket.socket(fileno=int(sys.argv[1]))
else:
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
listener.set_inheritable(True)
while True:
    connection, _ = listener.accept()
    head = connection.recv(1000)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
    connection.close()
    if head.startswith(b"GET /exec"):
        os.execv(sys.executable, [sys.executable, __file__, str(listener.fileno())])
    elif head.startswith(b"GET /fork") and os.fork() == 0:
        # It ends with its parent.
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
