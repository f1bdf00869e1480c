"""A WSGI application for gunicorn: GET /work sleeps in query() and in render(), everything else is not found."""

import time


def query():
    time.sleep(0.05)


def render():
    time.sleep(0.03)
    return b"done"


def application(environ, start_response):
    if environ["PATH_INFO"] != "/work":
        start_response("404 Not Found", [("Content-Length", "0")])
        return [b""]
    query()
    body = render()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
