# Two images: `app`, one replica (the default), and `proxy`, nginx in front of the replicas.

# -- The page ---------------------------------------------------------------------------------------------
FROM node:22-slim AS web
WORKDIR /web
# What changes rarely comes first, so that a change of code does not fetch packages again.
COPY web/package.json web/package-lock.json web/.npmrc ./
RUN npm ci
COPY web/ ./
RUN npm run build

# -- The package, with the page inside --------------------------------------------------------------------
FROM python:3.11-slim AS package
RUN python -m venv /opt/allim
WORKDIR /src
COPY pyproject.toml constraints.txt ./
RUN python -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
        extras = project['optional-dependencies']; \
        listed = [line for extra in extras if extra != 'dev' for line in extras[extra]]; \
        print(*project['dependencies'], *(line for line in listed if not line.startswith('allim[')), sep='\n')" \
        > /tmp/dependencies \
    && /opt/allim/bin/pip install --no-cache-dir --constraint constraints.txt -r /tmp/dependencies
COPY README.md LICENSE ./
COPY src/ src/
COPY nginx/ nginx/
COPY --from=web /web/dist/ web/dist/
RUN /opt/allim/bin/pip install --no-cache-dir --no-deps . && /opt/allim/bin/python -m compileall -q /opt/allim

# -- nginx ------------------------------------------------------------------------------------------------
# `resolve`, by which nginx finds replicas that come and go, needs 1.27.3 or newer.
FROM nginx:1.29-alpine AS proxy
COPY nginx/nginx.conf.template /etc/nginx/templates/nginx.conf.template
# The image's entrypoint fills the template in and writes it to /tmp, the one folder nginx may write to.
# 127.0.0.11 is Docker's own DNS; it says its answers keep for ten minutes, but replicas come and go faster. The address
# of a removed container is silent, and nginx goes on to the next one after ALLIM_NGINX_CONNECT.
ENV NGINX_ENVSUBST_OUTPUT_DIR=/tmp \
    NGINX_ENVSUBST_FILTER=^ALLIM_NGINX_ \
    NGINX_ENTRYPOINT_QUIET_LOGS=1 \
    ALLIM_NGINX_LISTEN=8000 \
    ALLIM_NGINX_SERVER="app:8000 resolve" \
    ALLIM_NGINX_ORIGINS="" \
    ALLIM_NGINX_TRUSTED="" \
    ALLIM_NGINX_RESOLVER="resolver 127.0.0.11 valid=1s ipv6=off;" \
    ALLIM_NGINX_CONNECT=500ms \
    ALLIM_NGINX_TLS="" \
    ALLIM_NGINX_FILES=65536
USER nginx
EXPOSE 8000 8443
# Not `/readyz`: an orchestrator that restarts unhealthy containers would restart all of them while Redis is away.
HEALTHCHECK --interval=10s --timeout=6s --start-period=60s \
    CMD ["wget", "-q", "-O", "/dev/null", "http://127.0.0.1:8000/healthz"]
STOPSIGNAL SIGTERM
CMD ["nginx", "-e", "stderr", "-p", "/tmp", "-c", "nginx.conf"]

# -- One replica ------------------------------------------------------------------------------------------
FROM python:3.11-slim AS app
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent allim \
    && install -d -o allim -m 0700 /data
COPY --from=package /opt/allim /opt/allim
ENV PATH=/opt/allim/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ALLIM_DATA_DIR=/data
USER allim
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as web; web.urlopen('http://127.0.0.1:8000/healthz', timeout=4)"]
STOPSIGNAL SIGTERM
CMD ["allim", "serve", "--host", "0.0.0.0", "--port", "8000"]
