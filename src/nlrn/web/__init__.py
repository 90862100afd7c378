"""The page and the HTTP service: `nlrn serve`.

Requests come in here (`app`), past the limits of `middleware` and `protocol`, into the `queue`; one process
(`worker`) does the work (`handlers`). Nothing of an image is written to a disk or kept once it was answered.
"""
