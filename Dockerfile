# The gateway: `popi serve` and `popi worker` with an LLM behind an API; no torch.
#   docker build -t popi . && docker run -p 8600:8600 -v popi:/data popi serve --upstream https://host/v1 --host 0.0.0.0
# A worker with your own trained run needs torch. Name the lock that includes it, and your build of torch:
#   docker build -t popi --build-arg LOCK=requirements.lock --build-arg TORCH="torch==2.13.0 --index-url URL" .
FROM python:3.11-slim AS build
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip wheel --no-cache-dir --disable-pip-version-check --no-deps --wheel-dir /dist .

FROM python:3.11-slim
ARG LOCK=requirements-gateway.lock
ARG TORCH=
COPY requirements.lock requirements-gateway.lock /locks/
RUN if [ -n "${TORCH}" ]; then pip install --no-cache-dir --disable-pip-version-check ${TORCH}; fi
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r "/locks/${LOCK}"
COPY --from=build /dist /dist
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps /dist/*.whl && rm -r /dist /locks && pip check

RUN useradd --uid 8600 --create-home popi && install -d -o popi /data
USER popi
WORKDIR /data
VOLUME /data
# After an erasure, SQLite rewrites its file through a copy, which should be on the same volume.
ENV POPI_STORE=sqlite:////data/popi.db SQLITE_TMPDIR=/data
EXPOSE 8600
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8600/healthz', timeout=2)"
# After SIGTERM, requests in progress have drain_timeout_s (30) seconds to finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["popi"]
CMD ["serve", "--help"]
