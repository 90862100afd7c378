# The service of docs/serve.md. Build: docker build -t nlrn .   Run: docker run --rm --init -p 127.0.0.1:8000:8000 nlrn
FROM python:3.11-slim AS build
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/nlrn
WORKDIR /build
# A folder wheels/ need not be there. What lies in it is installed: torch's CPU build, for the usual one would bring CUDA
# along (gigabytes)
COPY constraints.txt wheel[s] wheels/
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY src src
RUN /opt/nlrn/bin/pip install --no-cache-dir -c wheels/constraints.txt $(find wheels -name "*.whl") ".[web]"

FROM python:3.11-slim
RUN apt-get update \
    && apt-get install --no-install-recommends -y libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --system --uid 10001 --no-create-home nlrn
COPY --from=build /opt/nlrn /opt/nlrn
ENV PATH=/opt/nlrn/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# Inside the container every address: what reaches it is decided by -p, and the names it answers to by --allow-host
ENTRYPOINT ["nlrn", "serve", "--host", "0.0.0.0"]
