# One image for the API, workers, beat, migrations and commands. What it is to be is the command that it is given.

FROM python:3.13.7-slim-bookworm AS build
WORKDIR /app
COPY requirements.txt .
# Without pip of its own, and from wheels alone: nothing is compiled, so no compiler is needed.
RUN python -m venv --without-pip /opt/vault \
    && python -m pip --python /opt/vault/bin/python install \
        --no-cache-dir --disable-pip-version-check --only-binary :all: --require-hashes --requirement requirements.txt
COPY wsgi.py celery_worker.py gunicorn.conf.py .flaskenv ./
COPY scripts/make_bucket.py scripts/
COPY migrations migrations
COPY vault vault
# Here, since nothing can be written later.
RUN python -m compileall -q .

FROM python:3.13.7-slim-bookworm
RUN useradd --system --uid 10001 --home-dir /tmp --no-create-home --shell /usr/sbin/nologin vault
COPY --from=build /opt/vault /opt/vault
COPY --from=build /app /app
WORKDIR /app
ENV PATH=/opt/vault/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# By number, so that an orchestrator can see that it is not root. Everything but /tmp may be read-only.
USER 10001:10001
EXPOSE 8000
# For the API, which is what it runs by default; services that are something else bring their own.
HEALTHCHECK --interval=10s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen('http://127.0.0.1:' + (os.environ.get('PORT') or '8000') + '/livez', timeout=4)"]
# Outside of a container the API listens on loopback alone.
CMD ["sh", "-c", "exec gunicorn --config gunicorn.conf.py --bind \"0.0.0.0:${PORT:-8000}\" wsgi:app"]
