"""A WSGI application for gunicorn: paths below /work sleep in query() and in render(), others are not found."""

import time


def query():
    time.sleep(0.05)


def render():
    time.sleep(0.03)
    return b"done"


def application(environ, start_response):
    if not environ["PATH_INFO"].startswith("/work"):
        start_response("404 Not Found", [("Content-Length", "0")])
        return [b""]
    query()
    body = render()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
