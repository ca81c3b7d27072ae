#!/bin/sh
# Starts `qdeploy serve` on a free port and sends what its OpenAPI document allows and forbids: scripts/fuzz_api.sh SCHEMATHESIS
# load and unload are left out: a model that was unloaded answers 503, as it should, and nothing else is tried then. A
# request may follow the document and still be refused by what it holds (bytes that are no image, a tensor's name).
set -eu
schemathesis=$(realpath "$1")
folder=$(mktemp -d)
qdeploy serve --port 0 > "$folder/address" 2> "$folder/log" &
server=$!
trap 'kill "$server" 2> /dev/null || true; rm -rf "$folder"' EXIT
while ! grep -q http "$folder/address"; do
    kill -0 "$server" 2> /dev/null || { cat "$folder/log" >&2; exit 1; }
    sleep 0.05
done
address=$(sed -n 's/^serving on //p' "$folder/address")
cd "$folder"  # where it leaves what it found
"$schemathesis" run "$address/openapi.json" --checks all --exclude-checks positive_data_acceptance --exclude-path-regex 'load$' \
    --max-examples "${EXAMPLES:-50}" --seed "${SEED:-0}"
kill -TERM "$server"
wait "$server"
echo "and the server stopped cleanly"
