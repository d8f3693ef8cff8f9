"""The admin endpoint: circuits and limits of all workers and hosts, whichever worker is asked.

    GET  /admin/                               the page, for people; the rest is JSON
    POST /admin/login, /admin/logout           a session for a browser; GET /admin/session says whose it is
    GET  /admin/circuits                       every circuit (?detail=workers: worker by worker)
    GET  /admin/circuits/<name>[/events]       one, worker by worker, or what happened to it
    POST /admin/circuits/<name>/open           refuse every call, for `ttl` seconds or until somebody moves it
    POST /admin/circuits/<name>/close          let calls pass; with `ttl`, whatever comes of them
    POST /admin/circuits/<name>/half-open      let probes decide
    POST /admin/circuits/<name>/disable        let calls pass and count nothing
    POST /admin/circuits/<name>/metrics-only   let calls pass and count them
    POST /admin/circuits/<name>/reset          close and forget every count
    GET  /admin/limiters                       every rate limiter, and the storages
    POST /admin/limiters/<name>/reset?key=     fill the bucket of one caller
    POST /admin/limiters/<name>/override       let other `limits` hold for `ttl` seconds
    POST /admin/limiters/<name>/restore        let its own hold again
    GET  /admin/policies                       what holds, and where each value was said
    GET  /admin/events                         what happens, as a list or as a stream (server-sent events)
    GET  /admin/audit                          who has changed what by hand

GET changes nothing. Every request needs `Authorization: Bearer <admin token>`, or the cookie of a login, then with the field
X-Resilience-Csrf for whatever changes something. Bodies are JSON objects, with a `reason` if you like. Without a token
configured, and on any listener but the admin port, the routes do not exist.
"""

from __future__ import annotations

from resilience.adapters.admin.blueprint import create_admin_blueprint

__all__ = ["create_admin_blueprint"]
