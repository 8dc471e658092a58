#!/bin/sh
set -e
if [ "$1" = nginx ]; then
  for f in /docker-entrypoint.d/*; do
    case "$f" in *.envsh) . "$f" ;; *.sh) "$f" ;; esac
  done
fi
exec "$@"
