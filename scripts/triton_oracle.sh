#!/bin/bash
# triton_oracle.sh [FOLDER]: get a real Triton Inference Server without Docker, FOLDER/tritonserver, and run the tests
# of the kit for it.
#
# The wheel of nvidia-pytriton brings the server and its python backend, and none other: what runs ONNX files and plans
# is not in it, so the tests let the python backend stand in for that. It is old and has known weaknesses: only for
# tests, on the loopback. FOLDER is .venv/triton by default; a second call only runs the tests.
#
# PYTHON   the Python, 3.10 to 3.13, of the server's own environment; by default .venv/bin/python, or else python3
set -euo pipefail

fail() { echo "triton_oracle: $1" >&2; exit 2; }

repository=$(cd "$(dirname "$0")/.." && pwd)
tests=$repository/.venv/bin/python
[ -x "$tests" ] || tests=python3
python=${PYTHON:-$tests}
home=$(realpath -m "${1:-$repository/.venv/triton}")
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "$python does not start"

if [ ! -x "$home/tritonserver" ]; then
    rm -rf "$home"
    "$python" -m venv "$home" || fail "no virtual environment"
    "$home/bin/python" -m pip --disable-pip-version-check install --quiet "nvidia-pytriton==0.7.0" \
        --editable "$repository" ||
        fail "pip found no server for this system and Python $version"
    packages=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    library=$("$home/bin/python" -c 'import sysconfig; print(sysconfig.get_config_var("LIBDIR"))')
    server=$packages/pytriton/tritonserver
    cp -r "$server/backends" "$home/backends"
    cp "$server/python_backend_stubs/$version/triton_python_backend_stub" "$home/backends/python/" ||
        fail "this server has no python backend for Python $version"
    chmod +x "$home/backends/python/triton_python_backend_stub" "$server/bin/tritonserver"
    # the backend's Python heeds no PYTHONPATH, and takes the environment of the first python3 in PATH
    cat > "$home/tritonserver.new" <<END
#!/bin/sh
export PATH="$home/bin:\$PATH" LD_LIBRARY_PATH="$library:$packages/nvidia_pytriton.libs"
exec "$server/bin/tritonserver" --backend-directory="$home/backends" "\$@"
END
    chmod +x "$home/tritonserver.new"
    mv "$home/tritonserver.new" "$home/tritonserver"
fi
cd "$repository"
QDEPLOY_TRITONSERVER="$home/tritonserver" exec "$tests" -m pytest -q tests/export/test_kits_triton.py
