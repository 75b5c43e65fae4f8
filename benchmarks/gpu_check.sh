#!/usr/bin/env bash
# Measure the GPU kernels and pruning on one card in ten minutes, without a network.
#
#   benchmarks/gpu_check.sh [--wheels FOLDER] [ARGUMENTS of python -m benchmarks.gpu]
#
# Python is $PYTHON, or python3. Wheels from FOLDER, or $WHEELS, are put in front of what that Python
# has, without their dependencies and without an index; torch, Triton and CUDA come from there only
# where that Python has no torch that sees a GPU.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-}
if [[ ${1:-} == --wheels ]]; then
    WHEELS=${2:?--wheels needs a folder}
    shift 2
fi

export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

if [[ -n $WHEELS ]]; then
    shopt -s nullglob
    wheels=("$WHEELS"/*.whl)
    if [[ ${#wheels[@]} == 0 ]]; then
        echo "error: --wheels $WHEELS: no file *.whl is there" >&2
        exit 2
    fi
    if "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2> /dev/null; then
        for index in "${!wheels[@]}"; do
            case ${wheels[$index]##*/} in
                torch-* | triton-* | nvidia_c* | nvidia_nccl* | nvidia_nv*) unset "wheels[$index]" ;;
            esac
        done
    fi
    packages=$(mktemp -d)
    trap 'rm -rf "$packages"' EXIT
    if [[ ${#wheels[@]} != 0 ]]; then
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-index --no-deps \
            --no-compile --target "$packages" "${wheels[@]}"
    fi
    export PYTHONPATH="$PYTHONPATH:$packages"
fi

"$PYTHON" -m benchmarks.gpu "$@"
