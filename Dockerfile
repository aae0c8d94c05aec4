# One image for operator and agent: no torch, no compiler, no shell tools beyond the base's.
FROM debian:trixie-slim AS build
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
COPY operator/requirements.txt /tmp/requirements.txt
RUN python3 -m venv /opt/venv \
 && /opt/venv/bin/pip install --no-cache-dir --no-compile --only-binary :all: --require-hashes -r /tmp/requirements.txt \
 && /opt/venv/bin/pip uninstall --yes pip \
 && find /opt/venv -name __pycache__ -prune -exec rm -rf {} + \
 && find /opt/venv -name '*.so' -exec sh -c 'command -v strip >/dev/null && strip --strip-unneeded "$1" || :' _ {} \;
COPY operator/spot_training /opt/venv/lib/python3.13/site-packages/spot_training
RUN python3 -m compileall -q /opt/venv/lib/python3.13/site-packages

FROM debian:trixie-slim
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3 ca-certificates \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/* /usr/share/doc/* /usr/share/man/* \
 && find /usr/lib/python3* -name __pycache__ -prune -exec rm -rf {} + \
 # Compiled once here: with a read-only root every start would compile again, in time and in memory.
 && python3 -m compileall -q /usr/lib/python3.13
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["/opt/venv/bin/python", "-m", "spot_training"]
