"""The page and the HTTP service: `nlrn serve`.

Requests come in here (`app`), past the limits of `guard` and `protocol`, into the queue of `jobs`; one process
(`worker`) does the `work`. Nothing of a picture is written to a disk or kept once it was answered.
"""
