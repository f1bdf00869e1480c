"""A WSGI application for uWSGI, which waits before it answers."""

import time


def nap():
    time.sleep(0.15)


def application(_, start_response):
    nap()
    start_response("200 OK", [("Content-Length", "3")])
    return [b"ok\n"]
