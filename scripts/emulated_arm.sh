#!/bin/bash
# emulated_arm.sh [FOLDER]: make an emulated ARM64 Python with what qdeploy's base install needs, FOLDER/bin/python.
#
# qemu-aarch64 emulates the CPU for one program. The C library and Python are Debian's for arm64, unpacked into the
# folder without being installed, which needs no root; qdeploy itself is this checkout. FOLDER is .venv/arm64 by
# default. A second call does nothing unless the dependencies have changed. The exit code is 2 if something is missing.
#
# PYTHON            the Python whose pip fetches the packages; by default .venv/bin/python, or else python3
# QDEPLOY_ARM_CPU   read by FOLDER/bin/python: neoverse-n1 (default; has the dot product), cortex-a72 (does not), or
#                   max (all that qemu knows, the 8-bit matrix product and SVE among it)
set -euo pipefail

fail() { echo "emulated_arm: $1" >&2; exit 2; }

repository=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$repository/.venv/bin/python}
[ -n "${PYTHON:-}" ] || [ -x "$python" ] || python=python3
for tool in qemu-aarch64:qemu-user apt-get:apt dpkg:dpkg "$python:python3"; do
    command -v "${tool%%:*}" > /dev/null || fail "${tool%%:*} is not installed; Debian's package ${tool##*:} has it"
done
"$python" -m pip --version > /dev/null 2>&1 || fail "$python has no pip; give another Python in PYTHON"

# the lines of `dependencies = [ ... ]` in pyproject.toml, without quotes and commas
mapfile -t dependencies < <(sed -n '/^dependencies = \[/,/^\]/s/^ *"\(.*\)",$/\1/p' "$repository/pyproject.toml")
home=$(realpath -m "${1:-$repository/.venv/arm64}")
made_with="$(sha256sum < "$0") ${dependencies[*]}"
if [ "$(cat "$home/made_with" 2> /dev/null)" = "$made_with" ]; then exit 0; fi
rm -rf "$home"
mkdir -p "$home"/{apt/lists/partial,apt/cache/archives/partial,bin,root}

# 1. Debian's Python for arm64. apt keeps its state in the folder, and believes that nothing is installed yet.
: > "$home/apt/status"
apt=(apt-get -qq -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o APT::Sandbox::User="$(id -un)"
    -o Dir::State="$home/apt" -o Dir::State::status="$home/apt/status" -o Dir::Cache="$home/apt/cache")
"${apt[@]}" update || fail "apt-get update failed"
"${apt[@]}" --yes --no-install-recommends --download-only install python3 libstdc++6 > /dev/null ||
    fail "this computer's sources of packages have no Python for arm64"
for package in "$home"/apt/cache/archives/*.deb; do dpkg -x "$package" "$home/root"; done
[ -e "$home/root/lib" ] || ln -s usr/lib "$home/root/lib" # a package that is not among them has this link
rm -r "$home/apt"
version=$(basename "$(readlink "$home/root/usr/bin/python3")")

# 2. The wheels for arm64, in a virtual environment, beside the path of this checkout.
packages=$home/lib/$version/site-packages
platforms=(--platform manylinux2014_aarch64)
for minor in $(seq 17 36); do platforms+=(--platform "manylinux_2_${minor}_aarch64"); done
"$python" -m pip --disable-pip-version-check install --quiet --no-compile --target "$packages" --only-binary=:all: \
    --implementation cp --python-version "${version#python}" "${platforms[@]}" "${dependencies[@]}" ||
    fail "pip found no wheels for arm64"
echo "$repository" > "$packages/qdeploy.pth"
echo 'home = /usr/bin' > "$home/pyvenv.cfg"

# 3. A view of the root for each CPU: ONNX Runtime reads /proc/cpuinfo, and crashes if it is an x86 one.
cpu() { # NAME IMPLEMENTER PART VARIANT REVISION FEATURES
    local view=$home/cpu/$1
    mkdir -p "$view/proc"
    ln -s "$home"/root/* "$view"
    for core in 0 1; do
        printf 'processor\t: %d\nFeatures\t: %s\nCPU implementer\t: %s\nCPU architecture: 8\n' "$core" "$6" "$2"
        printf 'CPU variant\t: %s\nCPU part\t: %s\nCPU revision\t: %s\n\n' "$4" "$3" "$5"
    done > "$view/proc/cpuinfo"
}
a72='fp asimd aes pmull sha1 sha2 crc32 cpuid'
n1="$a72 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
cpu cortex-a72 0x41 0xd08 0x0 3 "$a72"
cpu neoverse-n1 0x41 0xd0c 0x3 1 "$n1"
cpu max 0x41 0xd40 0x1 1 "$n1 sve i8mm bf16 svei8mm svebf16 sve2" # named as a Neoverse V1, which has them, too

# 4. The command. It writes no bytecode, which would land in the checkout.
cat > "$home/bin/python" <<EOF
#!/bin/sh
cpu=\${QDEPLOY_ARM_CPU:-neoverse-n1}
if [ ! -d "$home/cpu/\$cpu" ]; then echo "QDEPLOY_ARM_CPU is \$cpu; known: \$(ls -x "$home/cpu")" >&2; exit 2; fi
export PYTHONDONTWRITEBYTECODE=1
exec qemu-aarch64 -cpu "\$cpu" -L "$home/cpu/\$cpu" -0 "$home/bin/python" "$home/root/usr/bin/$version" "\$@"
EOF
chmod +x "$home/bin/python"
"$home/bin/python" -c 'import onnxruntime, platform; assert platform.machine() == "aarch64"' ||
    fail "the emulated Python does not start"
echo "$made_with" > "$home/made_with"
