"""The sample service with the cases that a sampling profiler gets wrong, for the benchmark of exactness.

    GET /sleeps     sleeps of 1, 2, 3, 5, 8, 13, 20 and 30 ms, one function each
    GET /lock       waits 25 ms for a lock that another thread holds
    GET /gil        computes while another thread computes, which share the interpreter's lock
    GET /alternate  twenty times 3 ms of computing and 4 ms of sleep, one function each

Arguments, output and truth as those of the sample service.
"""

import threading
import time

import sample_service
from sample_service import compute, record_truth

LOCK_S = 0.025
GIL_CPU_S = 0.100
ROUNDS = 20
RUN_CPU_S = 0.003
PAUSE_S = 0.004


def sleep_function(ms):
    """A function sleep_MS with a code object of its own, so that stacks tell them apart."""
    name = f"sleep_{ms}"
    source = (
        f"def {name}():\n"
        "    enter_ns = time.monotonic_ns()\n"
        f"    time.sleep({ms / 1000})\n"
        f"    record_truth({name!r}, enter_ns)\n"
    )
    scope = {"time": time, "record_truth": record_truth, "__name__": __name__}
    exec(compile(source, __file__, "exec"), scope)
    return scope[name]


SLEEPS = [sleep_function(ms) for ms in (1, 2, 3, 5, 8, 13, 20, 30)]


def spin(cpu_s):
    end_s = time.thread_time() + cpu_s
    value = 0
    while time.thread_time() < end_s:
        value = compute(value, 200)
    return value


def lock_wait():
    lock = threading.Lock()
    is_held = threading.Event()

    def hold():
        with lock:
            is_held.set()
            time.sleep(LOCK_S)

    holder = threading.Thread(target=hold)
    holder.start()
    is_held.wait()
    lock_acquire(lock)
    holder.join()


def lock_acquire(lock):
    enter_ns = time.monotonic_ns()
    lock.acquire()
    record_truth("lock_acquire", enter_ns)


def gil_work():
    other = threading.Thread(target=spin, args=(GIL_CPU_S,))
    other.start()
    gil_compute()
    other.join()


def gil_compute():
    enter_ns = time.monotonic_ns()
    spin(GIL_CPU_S)
    record_truth("gil_compute", enter_ns)


def alternate():
    enter_ns = time.monotonic_ns()
    for _ in range(ROUNDS):
        alternate_run()
        alternate_pause()
    record_truth("alternate", enter_ns)


def alternate_run():
    enter_ns = time.monotonic_ns()
    spin(RUN_CPU_S)
    record_truth("alternate_run", enter_ns)


def alternate_pause():
    enter_ns = time.monotonic_ns()
    time.sleep(PAUSE_S)
    record_truth("alternate_pause", enter_ns)


def sleeps():
    for function in SLEEPS:
        function()


CASES = {"/sleeps": sleeps, "/lock": lock_wait, "/gil": gil_work, "/alternate": alternate}


class Handler(sample_service.Handler):
    def do_GET(self):
        case = CASES.get(self.path)
        if case is None:
            super().do_GET()
            return
        enter_ns = time.monotonic_ns()
        case()
        self.answer(200, {"ok": True})
        record_truth("do_GET", enter_ns)


if __name__ == "__main__":
    sample_service.Handler = Handler
    sample_service.main()
