# The sidecar beside an app, in the network namespace they share (a Kubernetes pod, or `network_mode: service:app`).
#   docker build -t nextvision-sidecar .
#   docker run --network container:app nextvision-sidecar
# Mount your own files over /etc/sidecar: sidecar.yaml, policies/. The local CA is made in /etc/sidecar/.sidecar/ca: keep
# a volume there, or clients have to trust a new one with each container.

FROM python:3.13-slim AS build
WORKDIR /src
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# What changes seldom comes first: a change of the code leaves the packages' layer as it is.
COPY requirements/build.lock requirements/run.lock requirements/
RUN python -m venv --without-pip /opt/sidecar \
    && pip install --require-hashes --only-binary :all: -r requirements/build.lock \
    && pip --python /opt/sidecar/bin/python install --require-hashes --only-binary :all: -r requirements/run.lock
COPY pyproject.toml README.md LICENSE ./
COPY sidecar sidecar
COPY examples examples
COPY policies policies
RUN pip wheel --no-deps --no-build-isolation --wheel-dir dist . \
    && pip --python /opt/sidecar/bin/python install --no-deps dist/*.whl

FROM python:3.13-slim
LABEL org.opencontainers.image.title="nextvision-sidecar" \
      org.opencontainers.image.licenses="Apache-2.0"
# A fixed number, so that volumes and `runAsNonRoot` can name it.
RUN groupadd --gid 10001 sidecar \
    && useradd --uid 10001 --gid sidecar --no-create-home --home-dir /nonexistent --shell /usr/sbin/nologin sidecar \
    && install -d -o sidecar -g sidecar -m 0700 /etc/sidecar/.sidecar \
    && install -d -o sidecar -g sidecar -m 0755 /bundle
# A new volume at /bundle takes over its owner: `sidecar ca --bundle /bundle/bundle.pem` is for the app to read.
COPY --from=build /opt/sidecar /opt/sidecar
WORKDIR /etc/sidecar
COPY sidecar.yaml ./
COPY policies policies
ENV PATH=/opt/sidecar/bin:$PATH PYTHONUNBUFFERED=1
USER 10001:10001
# Ingress and admin, where sidecar.yaml puts them.
EXPOSE 8080 9901
STOPSIGNAL SIGTERM
# http.client: it heeds no HTTP_PROXY, and needs no program that the image does not have.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "import http.client as h; c = h.HTTPConnection('127.0.0.1', 9901, timeout=2); c.request('GET', '/health/live'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["sidecar"]
CMD ["run"]
