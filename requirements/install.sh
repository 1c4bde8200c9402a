#!/usr/bin/env bash
# Sets up .venv for CPUs: requirements/install.sh [dev|real]. A second run with the same pins installs nothing.
# VENV sets another folder. If the code is missing (docker/Dockerfile), only its dependencies are installed.
set -euo pipefail
cd "$(dirname "$0")/.."
sets=(cpu ${1:+"$1"})
venv=${VENV:-.venv}
bin=$venv/bin
torch=$(sed -n 's/^cpu = \["\(torch==[^"]*\)".*/\1/p' pyproject.toml)

[ -x "$bin/pip" ] || "${PYTHON:-python3}" -m venv "$venv"

install_torch() {
    # The CPU build, from the index that pip is configured for, else from PyTorch's own index, which uv knows.
    "$bin/pip" install -q --no-deps "$torch+cpu" 2>/dev/null && return
    "$bin/pip" install -q uv
    VIRTUAL_ENV=$venv "$bin/uv" pip install -q --no-deps --torch-backend=cpu "$torch"
}

for set in "${sets[@]}"; do
    stamp=$venv/installed-$set
    wanted=$(cat pyproject.toml requirements/"$set".txt | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && continue
    echo "installing the $set set into $venv"
    if [ "$set" = cpu ]; then
        install_torch
        # The list is complete, so pip need not resolve it; resolving would add torchvision.
        "$bin/pip" install -q --no-deps -r requirements/cpu.txt
        [ ! -d adagrpo_ray ] || "$bin/pip" install -q --no-deps --no-build-isolation -e .
    else
        "$bin/pip" install -q --no-deps -r requirements/"$set".txt
    fi
    echo "$wanted" >"$stamp"
done
