# The gateway: `popi serve` and `popi worker` with an LLM behind an API; no torch.
#   docker build -t popi . && docker run -p 8600:8600 -v popi:/data popi serve --upstream https://host/v1 --host 0.0.0.0
# A worker with your own trained run needs torch: build with --build-arg EXTRAS=serve,train
FROM python:3.11-slim

ARG EXTRAS=serve
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY src src
RUN pip install --no-cache-dir --disable-pip-version-check -c constraints.txt ".[${EXTRAS}]" && rm -rf /src/*

RUN useradd --uid 8600 --create-home popi && install -d -o popi /data
USER popi
WORKDIR /data
VOLUME /data
# After an erasure, SQLite rewrites its file through a copy, which should be on the same volume.
ENV POPI_STORE=sqlite:////data/popi.db SQLITE_TMPDIR=/data
EXPOSE 8600
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s CMD \
    python -c "import urllib.request as u; u.urlopen('http://127.0.0.1:8600/healthz', timeout=2)"
# After SIGTERM, requests in progress have drain_s (30) seconds to finish.
STOPSIGNAL SIGTERM
ENTRYPOINT ["popi"]
CMD ["serve", "--help"]
