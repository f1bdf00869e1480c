"""The sample service of the demo and the end-to-end tests: a plain HTTP server, no agent, no flags.

    POST /      handler -> method3() 20 ms -> method2() 20 ms -> method1() 20 ms, then 500 ms itself
    GET /busy   computes about 300 ms of CPU time: two thirds in outer(), one third in inner()
    GET /work   computes a fixed amount, some 30 ms, half of it in work_inner()
    GET /nap    sleeps 30 ms, half of it in nap_inner()
    GET /fast   answers at once
    GET /call   asks another server, then method3() as above

Prints its port on the first line of stdout when it accepts connections.
The sleep of each method is SAMPLE_SERVICE_METHOD_MS milliseconds, if that is set.
The other server is the one of the variable SAMPLE_SERVICE_CALLS, as http://HOST:PORT.
With --truth FILE it appends one JSON line per profiled function call: the thread's id and the
CLOCK_MONOTONIC nanoseconds of entry and exit, taken inside the function.
"""

import argparse
import json
import os
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

METHOD_SLEEP_S = int(os.environ.get("SAMPLE_SERVICE_METHOD_MS", "20")) / 1000
HANDLER_SLEEP_S = 0.500
BUSY_CPU_S = 0.300
WORK_STEPS = 250_000
NAP_S = 0.030

truth_file = None
truth_lock = threading.Lock()


def record_truth(function, enter_ns):
    if truth_file is None:
        return
    line = json.dumps(
        {
            "tid": threading.get_native_id(),
            "function": function,
            "enter_ns": enter_ns,
            "exit_ns": time.monotonic_ns(),
        }
    )
    with truth_lock:
        truth_file.write(line + "\n")
        truth_file.flush()


def method3():
    enter_ns = time.monotonic_ns()
    time.sleep(METHOD_SLEEP_S)
    method2()
    record_truth("method3", enter_ns)


def method2():
    enter_ns = time.monotonic_ns()
    time.sleep(METHOD_SLEEP_S)
    method1()
    record_truth("method2", enter_ns)


def method1():
    enter_ns = time.monotonic_ns()
    time.sleep(METHOD_SLEEP_S)
    record_truth("method1", enter_ns)


def outer():
    """Computes two thirds itself, then calls inner() for the rest.

    In one piece each and inner() last: the analysis gives the time between the last snapshot of one
    function and the first of the next to their common caller, so every change costs one dump period.
    """
    enter_ns = time.monotonic_ns()
    value = 0
    end_s = time.thread_time() + BUSY_CPU_S * 2 / 3
    while time.thread_time() < end_s:
        for i in range(2000):
            value = (value * 31 + i) & 0xFFFFFFFF
    value ^= inner(value)
    record_truth("outer", enter_ns)
    return value


def inner(value):
    enter_ns = time.monotonic_ns()
    end_s = time.thread_time() + BUSY_CPU_S / 3
    while time.thread_time() < end_s:
        for i in range(2000):
            value = (value * 31 + i) & 0xFFFFFFFF
    record_truth("inner", enter_ns)
    return value


def work_outer():
    enter_ns = time.monotonic_ns()
    value = compute(0, WORK_STEPS // 2)
    value = work_inner(value)
    record_truth("work_outer", enter_ns)
    return value


def work_inner(value):
    enter_ns = time.monotonic_ns()
    value = compute(value, WORK_STEPS // 2)
    record_truth("work_inner", enter_ns)
    return value


def compute(value, steps):
    for i in range(steps):
        value = (value * 31 + i) & 0xFFFFFFFF
    return value


def nap_outer():
    enter_ns = time.monotonic_ns()
    time.sleep(NAP_S / 2)
    nap_inner()
    record_truth("nap_outer", enter_ns)


def nap_inner():
    enter_ns = time.monotonic_ns()
    time.sleep(NAP_S / 2)
    record_truth("nap_inner", enter_ns)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # One write per answer, so that a keep-alive client never waits for a delayed ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self):
        enter_ns = time.monotonic_ns()
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path != "/":
            self.answer(404, {"error": "no such endpoint"})
            return
        method3()
        time.sleep(HANDLER_SLEEP_S)
        self.answer(200, {"ok": True})
        record_truth("do_POST", enter_ns)

    def do_GET(self):
        enter_ns = time.monotonic_ns()
        if self.path == "/busy":
            self.answer(200, {"value": outer()})
        elif self.path == "/work":
            self.answer(200, {"value": work_outer()})
        elif self.path == "/nap":
            nap_outer()
            self.answer(200, {"ok": True})
        elif self.path == "/fast":
            self.answer_fast()
        elif self.path == "/call":
            with urllib.request.urlopen(os.environ["SAMPLE_SERVICE_CALLS"] + "/fast") as answer:
                answer.read()
            method3()
            self.answer(200, {"called": True})
        else:
            self.answer(404, {"error": "no such endpoint"})
        record_truth("do_GET", enter_ns)

    def answer_fast(self):
        self.answer(200, {"fast": True})

    def answer(self, status, document):
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request, client_address):
        # Load generators leave by resetting their connections.
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


def main():
    global truth_file
    parser = argparse.ArgumentParser(description="sample service")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1, 0 picks a free one")
    parser.add_argument("--truth", metavar="FILE", help="append enter and exit times of every function")
    arguments = parser.parse_args()
    if arguments.truth:
        truth_file = open(arguments.truth, "a", encoding="utf-8")
    server = Server(("127.0.0.1", arguments.port), Handler)
    print(server.server_address[1], flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        pass


if __name__ == "__main__":
    main()
