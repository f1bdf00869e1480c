"""A thread of C serves each request, and enters Python anew for each part of it; prints its port first.

The thread is in `getw`, which asks a stream for four bytes. The stream gives one at a time, from a
Python function that ctypes calls with `PyGILState_Ensure` before and `PyGILState_Release` after.
"""
import ctypes
import socket
import sys
import time

libc = ctypes.CDLL(None)
READ = ctypes.CFUNCTYPE(ctypes.c_ssize_t, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
UNBUFFERED = 2


class CookieFunctions(ctypes.Structure):
    _fields_ = [("read", READ), ("write", ctypes.c_void_p), ("seek", ctypes.c_void_p), ("close", ctypes.c_void_p)]


libc.fopencookie.argtypes = [ctypes.c_void_p, ctypes.c_char_p, CookieFunctions]
libc.fopencookie.restype = ctypes.c_void_p
libc.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
libc.fclose.argtypes = [ctypes.c_void_p]
libc.pthread_create.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
libc.pthread_join.argtypes = [ctypes.c_ulong, ctypes.c_void_p]


def spin(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def first():
    spin(0.15)


def second():
    spin(0.15)


def third():
    spin(0.15)


class Request:
    def __init__(self):
        self.part = 0

    def receive(self):
        self.connection, _ = listener.accept()
        self.connection.recv(1000)

    def answer(self):
        third()
        self.connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")
        self.connection.close()

    def read(self, _cookie, _buffer, _size):
        part = self.part
        self.part += 1
        if part == 0:
            self.receive()
        elif part == 1:
            first()
        elif part == 2:
            second()
        else:
            self.answer()
        return 1


listener = socket.create_server(("127.0.0.1", 0), backlog=5)
print(listener.getsockname()[1])
runtime = ctypes.addressof(ctypes.c_char.in_dll(ctypes.pythonapi, "_PyRuntime"))
print(runtime, sys.version_info.major, sys.version_info.minor)
print(*(id(function.__code__) for function in (spin, first, second, third, Request.read)))
while True:
    request = Request()
    read = READ(request.read)
    stream = libc.fopencookie(None, b"r", CookieFunctions(read=read))
    libc.setvbuf(stream, None, UNBUFFERED, 0)
    thread = ctypes.c_ulong()
    libc.pthread_create(ctypes.byref(thread), None, libc.getw, stream)
    libc.pthread_join(thread, None)
    libc.fclose(stream)
