# The service of docs/serve.md. Build: docker build -t nlrn .   Run: docker run --rm --init -p 127.0.0.1:8000:8000 nlrn
FROM python:3.11-slim AS build
# hadolint ignore=DL3008 # Debian keeps one version of a package, the newest: a pinned one is gone after the next repair
RUN apt-get update \
    && apt-get install --no-install-recommends -y g++ \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/nlrn
WORKDIR /build
# torch's usual build brings CUDA along (gigabytes). Its CPU build comes by
# --build-arg PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu, which pip reads, or as a wheel in a folder wheels/,
# which need not be there: what lies in it is installed
ARG PIP_EXTRA_INDEX_URL
COPY constraints.txt wheel[s] wheels/
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY src src
# hadolint ignore=SC2046 # a word for each wheel, or none
RUN /opt/nlrn/bin/pip install --no-cache-dir -c wheels/constraints.txt $(find wheels -name "*.whl") ".[web]"

FROM python:3.11-slim
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --no-install-recommends -y libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 10001 --no-create-home nlrn
COPY --from=build /opt/nlrn /opt/nlrn
ENV PATH=/opt/nlrn/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 10001
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as u; u.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
# Inside the container every address: what reaches it is decided by -p, and the names it answers to by --allow-host
ENTRYPOINT ["nlrn", "serve", "--host", "0.0.0.0"]
