"""The metrics of the service, in Prometheus' text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from nlrn.web.queue import Jobs

GUARD, CONNECTION = "guard", "connection"


class Metrics:
    """The metrics of one service; nothing of any image or client, so that labels are routes and codes only.

    route: its own path, `other` where none is, `guard` for what was refused before one was looked for, `connection`
    for what was refused before it was a request. status 499: the client went away before its answer.
    """

    def __init__(self, jobs: Jobs) -> None:
        self.registry = CollectorRegistry()
        names = ["route", "status"]
        self.requests = Counter("nlrn_requests", "Requests answered", names, registry=self.registry)
        self.dropped = Counter("nlrn_answers_dropped", "Answers that were not taken in time", registry=self.registry)
        self.held = Gauge("nlrn_held_bytes", "Of requests and of answers not taken yet", registry=self.registry)
        self.seconds = Histogram(
            "nlrn_job_seconds",
            "Seconds of work of the jobs that were done",
            ["kind"],
            buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300, 600),
            registry=self.registry,
        )
        waiting = Gauge("nlrn_jobs_waiting", "Jobs that wait for the worker", registry=self.registry)
        waiting.set_function(lambda: jobs.ahead)
        busy = Gauge("nlrn_worker_busy", "1 while a job is done", registry=self.registry)
        busy.set_function(lambda: jobs.busy)
