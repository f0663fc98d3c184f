#!/usr/bin/env bash
# Everything that needs a GPU, on a machine that has one and no network, in calls of less than ten minutes.
#
#   bench/gpu_session.sh [--dry-run] [--again] STEP…
#
#   install    the package, against the machine's own torch and Triton, into build/gpu
#   test       tests/kernels and tests/ops on the Triton kernels, then tests/gpu
#   sanitize   every op on small odd sizes under compute-sanitizer (memcheck, racecheck)
#   bench-A, bench-B, bench-C    races at one size each: a call that ran out of time goes on where it stopped
#   tune       measures launch configurations and the cost model for this device
#   all        all of these, as far as the time goes
#
# Results go to $OUT (default bench/results) as DATE-DEVICE-STEP.json and .txt; a step whose result lies there, or in
# bench/results, or was made here from the same source by a call before, is passed over unless --again is given. --dry-run goes through the same code on the CPU, in Triton's
# interpreter, on tiny sizes. Environment: OUT, PYTHON (default python3), SECONDS_A_CALL (default 540).
# Exit codes: 0, done; 75, the time is up, call again; 1, something failed.
set -uo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$ROOT" || exit 1
PYTHON=${PYTHON:-python3}
LIMIT=${SECONDS_A_CALL:-540}
OUT=${OUT:-bench/results}
mkdir -p "$OUT" || exit 1
OUT=$(cd "$OUT" && pwd)
WORK=$ROOT/build/gpu
SITE=$WORK/site
KEPT=$WORK/results  # what earlier calls on this machine found, where each is given an empty OUT
STEPS=(install test sanitize bench-A bench-B bench-C tune)
MORE_TO_DO=75

usage() { sed -n '2,/^set /{s/^# \{0,1\}//;/^set /d;p}' "${BASH_SOURCE[0]}"; }

dry= again= wanted=()
for argument in "$@"; do
    case $argument in
        --dry-run) dry=1 ;;
        --again) again=1 ;;
        -h | --help) usage; exit 0 ;;
        all) wanted+=("${STEPS[@]}") ;;
        install | test | sanitize | bench-[ABC] | tune) wanted+=("$argument") ;;
        *) echo "unknown step: $argument" >&2; usage >&2; exit 2 ;;
    esac
done
[ ${#wanted[@]} -gt 0 ] || { usage; exit 2; }

export CUBLAS_WORKSPACE_CONFIG=:4096:8 PYTHONUNBUFFERED=1
if [ -n "$dry" ]; then
    export TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1
    device=interpreter
else
    # kept as long as the machine is: what was compiled once is not compiled again by the next call
    export TRITON_CACHE_DIR=$WORK/triton TORCHINDUCTOR_CACHE_DIR=$WORK/inductor SAE_KERNELS_CACHE=$WORK/cache
    export PYTHONPATH=$SITE${PYTHONPATH:+:$PYTHONPATH}
    device=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -n 1 | tr '[:upper:]' '[:lower:]' |
        sed -E 's/nvidia//; s/[^a-z0-9]+/-/g; s/^-+//; s/-+$//')
    [ -n "$device" ] || { echo "no GPU (nvidia-smi names none); --dry-run needs none" >&2; exit 1; }
fi

# -P: the working directory stays off sys.path, or the source tree would hide the installed package with its kernels.
py() { "$PYTHON" -P "$@"; }
left() { echo $((LIMIT - SECONDS)); }
# worse BEFORE NOW: of two exit codes, NOW not 0.
worse() { if [ "$1" -eq 1 ] || [ "$2" -ne $MORE_TO_DO ]; then echo 1; else echo $MORE_TO_DO; fi; }

# limited PERCENT COMMAND…: in that share of the time left; 75 where it took longer. (`timeout 0` would not end at all.)
limited() {
    local code=0 seconds=$(($(left) * $1 / 100)) began=$SECONDS
    shift
    [ "$seconds" -ge 5 ] || return $MORE_TO_DO
    timeout -k 10 "$seconds" "$@" || code=$?
    if [ $code -ne 0 ] && [ $((SECONDS - began)) -ge "$seconds" ]; then code=$MORE_TO_DO; fi
    return $code
}

# keep STEP: its results in OUT, for later calls.
keep() {
    if [ -z "$dry" ]; then
        mkdir -p "$KEPT" && find "$OUT" -maxdepth 1 -name "*-$device-$1.*" -exec cp {} "$KEPT" \;
    fi
}

note() { printf '\n== %s   (%s s)\n' "$*" "$SECONDS"; }
has() { py -c "import importlib.util as u, sys; sys.exit(u.find_spec('$1') is None)"; }

result_of() { echo "$OUT/$(date +%F)-$device-$1.txt"; }

# A step that writes text ends it with "result: ok", "incomplete" or "failed".
done_before() {
    local file
    [ -z "$again" ] || return 1
    for file in "$OUT"/*-"$device-$1.txt" "$ROOT"/bench/results/*-"$device-$1.txt" "$KEPT"/*-"$device-$1.txt"; do
        if [ -f "$file" ] && [ "$(tail -n 1 "$file")" = "result: ok" ]; then
            echo "done before: $file"
            return 0
        fi
    done
    return 1
}

# recorded STEP COMMAND…: its output on the terminal and, with the versions, in the step's result.
recorded() {
    local step=$1 file code
    shift
    file=$(result_of "$step")
    {
        about
        "$@"
    } 2>&1 | tee "$file"
    code=${PIPESTATUS[0]}
    # the numbers are at the end; a log of megabytes helps nobody
    if [ "$(wc -c <"$file")" -gt 4000000 ]; then
        tail -c 4000000 "$file" >"$file.part" && mv "$file.part" "$file"
    fi
    case $code in
        0) echo "result: ok" ;;
        "$MORE_TO_DO") echo "result: incomplete" ;;
        *) echo "result: failed" ;;
    esac >>"$file"
    return "$code"
}

about() {
    py -c 'import platform, torch, triton
print(f"torch {torch.__version__}   triton {triton.__version__}   python {platform.python_version()}")'
    [ -n "$dry" ] || nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
}

install() {
    local stamp command
    command=(-m pip install --quiet --no-build-isolation --no-deps --no-index --upgrade --target "$SITE" .)
    if [ -n "$dry" ]; then
        echo "would run: $PYTHON ${command[*]}"
        py -c 'import sae_kernels, torch, triton; print("sae_kernels", sae_kernels.__file__)'
        return
    fi
    stamp=$(find sae_kernels csrc CMakeLists.txt pyproject.toml -type f ! -name '*.pyc' -print0 | sort -z |
        xargs -0 sha256sum | sha256sum)
    if [ "$(cat "$WORK/stamp" 2>/dev/null)" = "$stamp" ]; then
        echo "installed already: $SITE"
        return
    fi
    mkdir -p "$SITE"
    rm -rf "$WORK/stamp" "$KEPT" "$WORK/tuned"
    CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) "$PYTHON" "${command[@]}" || return 1
    py -c 'import torch, sae_kernels
from sae_kernels.kernels import _cpu
print("sae_kernels", sae_kernels.__file__, "   C++ kernels:", _cpu.why_not() or "built")
assert torch.cuda.is_available(), "torch sees no CUDA device"' || return 1
    echo "$stamp" >"$WORK/stamp"
}


run_tests() {
    local options=() workers=() code=0
    if [ -n "$dry" ]; then
        env -u TRITON_INTERPRET "$PYTHON" -P -m pytest -q -p no:cacheprovider --collect-only tests/gpu \
            --deselect tests/gpu/test_gpu_session_dry_run.py
        return
    fi
    if has pytest_timeout; then options+=(--timeout 150); fi
    if has xdist; then workers=(-n 8); fi
    note "tests/kernels and tests/ops"
    limited 60 "$PYTHON" -P -m pytest -q -p no:cacheprovider -o filterwarnings=default \
        tests/kernels tests/ops -k triton "${options[@]}" "${workers[@]}" || code=$(worse $code $?)
    note "tests/gpu"
    limited 100 "$PYTHON" -P -m pytest -q -p no:cacheprovider -o filterwarnings=default \
        tests/gpu -m gpu --durations 10 "${options[@]}" || code=$(worse $code $?)
    return $code
}

sanitize() {
    local code=0 tool options
    if [ -n "$dry" ]; then
        py bench/gpu/small_cases.py --dry-run || code=1
    else
        note "once without compute-sanitizer: compiles"
        limited 100 "$PYTHON" -P bench/gpu/small_cases.py || code=$(worse $code $?)
    fi
    for tool in memcheck racecheck; do
        options=(--tool "$tool" --error-exitcode 9 --print-limit 20)
        # without torch's caching every tensor is an allocation of its own, with a margin after it
        # and calls that PyTorch makes to learn what a driver can do fail without being errors
        if [ "$tool" = memcheck ]; then options+=(--padding 64 --report-api-errors no); fi
        if [ -n "$dry" ]; then
            echo "would run: PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer ${options[*]} $PYTHON -P" \
                "bench/gpu/small_cases.py"
            continue
        fi
        note "compute-sanitizer, $tool"
        PYTORCH_NO_CUDA_MEMORY_CACHING=1 limited 60 \
            compute-sanitizer "${options[@]}" "$PYTHON" -P bench/gpu/small_cases.py || code=$(worse $code $?)
    done
    return $code
}

race() {
    local options=(--case "$1" --out "$OUT" --seconds "$(($(left) - 15))")
    if [ -n "$dry" ]; then options+=(--dry-run); fi
    if [ -n "$again" ]; then options+=(--again); fi
    if [ -z "$dry" ]; then options+=(--found "$KEPT"); fi
    limited 100 "$PYTHON" -P bench/gpu/run.py "${options[@]}"
}

tune() {
    local code=0 failed case_ command marker commands=("calibrate --device cuda")
    for case_ in 8192,2304,65536,64 4096,768,16384,32 16384,4096,131072,64; do
        commands+=("warmup --device cuda --shape $case_ --dtype bfloat16")
        commands+=("warmup --device cuda --shape $case_ --dtype float32")
    done
    for command in "${commands[@]}"; do
        if [ -n "$dry" ]; then
            echo "would run: $PYTHON -P -m sae_kernels bench $command"
            continue
        fi
        marker=$WORK/tuned/${command//[^a-z0-9]/-}
        if [ -z "$again" ] && [ -f "$marker" ]; then
            echo "done by an earlier call: bench $command"
            continue
        fi
        if [ "$(left)" -lt 45 ]; then
            echo "the time is up before: bench $command"
            return $MORE_TO_DO
        fi
        note "sae-kernels bench $command"
        failed=0
        # shellcheck disable=SC2086  # options are words
        limited 100 "$PYTHON" -P -m sae_kernels bench $command || failed=$?
        if [ $failed -eq 0 ]; then
            mkdir -p "$WORK/tuned" && touch "$marker"
        else
            code=$(worse $code $failed)
        fi
    done
    if [ -n "$dry" ]; then
        py -m sae_kernels bench calibrate --help | grep -q -- --device || code=1
        py -m sae_kernels bench warmup --help | grep -q -- --shape || code=1
    else
        note "what was stored"
        find "$SAE_KERNELS_CACHE" -type f -print -exec cat {} \;
    fi
    return $code
}

worst=0
for step in "${wanted[@]}"; do
    note "$step"
    if [ "$(left)" -lt 45 ]; then
        echo "the time is up: call again for $step and what follows"
        exit $MORE_TO_DO
    fi
    code=0
    case $step in
        install) install || code=1 ;;
        bench-?) install >/dev/null && race "${step#bench-}" || code=$? ;;
        *)
            done_before "$step" && continue
            install >/dev/null || code=1
            case $step in
                test) [ $code -ne 0 ] || recorded test run_tests || code=$? ;;
                sanitize) [ $code -ne 0 ] || recorded sanitize sanitize || code=$? ;;
                tune) [ $code -ne 0 ] || recorded tune tune || code=$? ;;
            esac
            ;;
    esac
    keep "$step"
    case $code in
        0) echo "$step: ok" ;;
        "$MORE_TO_DO") exit $MORE_TO_DO ;;
        *) echo "$step: failed (exit code $code)"; worst=1 ;;
    esac
    if [ "$step" = install ] && [ "$code" -ne 0 ]; then exit 1; fi
done
exit $worst
