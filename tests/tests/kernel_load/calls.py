"""A server that answers with the system calls its first argument names; prints its port first."""
import os
import socket
import sys
import tempfile
import threading
import time

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n"
mode = sys.argv[1]

if len(sys.argv) > 2:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[2])
    listener.listen(5)
    print(0)
else:
    listener = socket.create_server(("127.0.0.1", 0), backlog=5)
    print(listener.getsockname()[1])


def behind_proxy_header(data):
    """What follows a PROXY header, None if that is not whole."""
    if data.startswith(b"\r\n\r\n\0\r\nQUIT\n"):
        end = 16 + int.from_bytes(data[14:16], "big") if len(data) >= 16 else 16
        return data[end:] if len(data) >= end else None
    if b"\r\n".startswith(data[:2]) or b"\n" not in data:
        return None
    return data[data.index(b"\n") + 1 :]


def has_read_behind_proxy_header(connection, size):
    """Reads a PROXY header, so many bytes at a time at most, and the head behind it; whether there was one."""
    data = b""
    while not (behind_proxy_header(data) or b"").endswith(b"\r\n\r\n"):
        left = size
        if size == 1 and behind_proxy_header(data) is not None:
            left = 1000  # The header is whole and the head is not begun.
        piece = connection.recv(left)
        if not piece:
            return False
        data += piece
    return True


def serve(connection):
    if mode == "vector":
        # The head arrives in pieces of one message.
        buffers = [bytearray(2), bytearray(3), bytearray(1000)]
        connection.recvmsg_into(buffers)
        os.writev(connection.fileno(), [OK[:12], OK[12:]])
    elif mode == "sendfile":
        os.read(connection.fileno(), 1000)
        with tempfile.TemporaryFile() as file:
            file.write(OK)
            file.flush()
            os.sendfile(connection.fileno(), file.fileno(), 0, len(OK))
    elif mode.startswith("proxied"):
        if has_read_behind_proxy_header(connection, int(mode.removeprefix("proxied"))):
            connection.send(OK)
    elif mode == "peek":
        connection.recv(1000, socket.MSG_PEEK)
        connection.recv(1000)
        connection.send(OK)
    elif mode == "continue":
        connection.recv(1000)
        connection.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.recv(1000)
        connection.send(OK)
    elif mode.startswith("hints"):
        connection.recv(1000)
        hints = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"
        if mode == "hints":
            connection.send(b"HTTP/1.1 100 Continue\r\n\r\n" + hints + OK)
        elif mode == "hints-long":
            connection.send(hints.replace(b"/a", b"/" + b"a" * 700) + OK)
        elif mode == "hints-buffers":
            os.writev(connection.fileno(), [hints[:9], hints[9:] + OK[:5], OK[5:]])
        else:
            connection.send(hints + hints)
            os.writev(connection.fileno(), [hints[:-2], hints[-2:]])
            connection.send(OK)
    elif mode == "half":
        connection.recv(1000)
        connection.send(OK[:-1])
        while connection.recv(1000):
            pass
        connection.send(OK[-1:])
    elif mode == "upgrade":
        connection.recv(1000)
        connection.send(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        connection.recv(1000)
        connection.send(OK)
    elif mode == "drain":
        connection.recv(1000)
        connection.send(OK)
        connection.shutdown(socket.SHUT_WR)
    elif mode == "dup":
        connection.recv(1000)
        connection.send(OK)
        os.dup2(0, connection.fileno())
        time.sleep(60)
    elif mode == "handoff":
        connection.recv(1000)
        writer = threading.Thread(target=connection.send, args=(OK,))
        writer.start()
        writer.join()
    else:
        connection.recv(1000)
        connection.send(OK)
    try:
        while connection.recv(1000):
            pass
    except ConnectionResetError:
        pass  # The test closed with bytes unread.
    connection.close()


def serve_two_at_once():
    first, _ = listener.accept()
    second, _ = listener.accept()
    first.recv(1000)
    second.recv(1000)
    first.send(OK)
    second.send(OK)
    first.recv(1000)
    second.recv(1000)
    first.close()
    second.close()


def drop_the_first(is_reused):
    """Closes one connection without an answer; the next one has its descriptor, or another one."""
    first, _ = listener.accept()
    first.recv(1000)
    first.close()
    if not is_reused:
        os.dup(0)
    second, _ = listener.accept()
    serve(second)


if mode == "dropped":
    drop_the_first(is_reused=False)
if mode == "reused":
    drop_the_first(is_reused=True)
if mode == "interleave":
    serve_two_at_once()
    time.sleep(60)
while True:
    accepted, _ = listener.accept()
    threading.Thread(target=serve, args=(accepted,)).start()
