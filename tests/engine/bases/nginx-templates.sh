#!/bin/sh
set -e
names=$(env | sed -n "s/^\(${NGINX_ENVSUBST_FILTER:-}[A-Z_a-z0-9]*\)=.*/\${\1}/p")
for template in /etc/nginx/templates/*.template; do
  envsubst "$names" <"$template" >"${NGINX_ENVSUBST_OUTPUT_DIR:-/etc/nginx/conf.d}/$(basename "$template" .template)"
done
