#!/bin/sh
# Starts `qdeploy serve` on a free port, lets it classify images, and stops it: scripts/ask_a_server.sh IMAGE...
set -eu
folder=$(mktemp -d)
qdeploy serve --port 0 --report "$folder/report.json" > "$folder/address" 2> "$folder/log" &
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
while ! grep -q http "$folder/address"; do
    kill -0 "$server" 2> /dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.05
done
address=$(sed -n 's/^serving on //p' "$folder/address")
echo "$address answers:"
qdeploy predict "$@" --url "$address"
kill -TERM "$server"
wait "$server"
echo "and stopped cleanly"
