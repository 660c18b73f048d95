#!/usr/bin/env bash
# Everything that needs a GPU but the benchmark (scripts/bench.py), in under 5 minutes: build, tests, fuzz over all
# features, compute-sanitizer, counters.
#
#     scripts/gpu_check.sh [FOLDER]     writes gpu-check.json and logs to FOLDER (default: build/gpu_check)
#
# It uses the Python that `python3` is, which needs cuda-python, numpy, pytest, hypothesis and ml_dtypes. A step that
# fails does not stop the others; the exit status is the number of steps that failed.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1
out=${1:-build/gpu_check}
mkdir -p "$out"
export PYTHONPATH="$PWD" PYTHONUNBUFFERED=1 FLASHCORE_DRIVER=cuda
export FUZZ_EXAMPLES=${FUZZ_EXAMPLES:-300} FEATURE_EXAMPLES=${FEATURE_EXAMPLES:-2000} FUZZ_PROCESSES=${FUZZ_PROCESSES:-8}
export HYPOTHESIS_PROFILE=fuzz
failed=()

# step NAME COMMAND…: output to the terminal and to FOLDER/NAME.log
step() {
    local name=$1
    shift
    printf '\n== %s (after %s s)\n' "$name" "$SECONDS"
    "$@" 2>&1 | tee "$out/$name.log" | tail -n 25
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}

# together NAME…: steps that are functions of these names, all at once
together() {
    local -A process=()
    local name
    printf '\n== %s (after %s s)\n' "$*" "$SECONDS"
    for name in "$@"; do
        "$name" > "$out/$name.log" 2>&1 &
        process[$name]=$!
    done
    for name in "$@"; do
        wait "${process[$name]}" || failed+=("$name")
        printf -- '-- %s\n' "$name"
        tail -n 8 "$out/$name.log"
    done
}

sanitize() { compute-sanitizer --tool "$1" --error-exitcode 9 python3 scripts/sanitize.py --quick; }
memcheck() { sanitize memcheck; }
racecheck() { sanitize racecheck; }
synccheck() { sanitize synccheck; }
initcheck() { sanitize initcheck; }

bank_conflicts() {
    ncu --clock-control none --csv --metrics "$(python3 scripts/bank_conflicts.py --metrics)" \
        python3 scripts/sanitize.py 1x8x512x512x64 > "$out/ncu.csv" &&
        python3 scripts/bank_conflicts.py "$out/ncu.csv" --json "$out/counters.json"
}

twins() {
    python3 scripts/twins.py record --folder "$out" &&
        ncu --clock-control none --csv --metrics "$(python3 scripts/twins.py --metrics)" \
            python3 scripts/twins.py run > "$out/twins.csv" &&
        python3 scripts/twins.py counters "$out/twins.csv" --folder "$out" &&
        FLASHCORE_DRIVER=emulator python3 scripts/twins.py compare --folder "$out"
}

tests() {
    echo "FUZZ_EXAMPLES=$FUZZ_EXAMPLES"
    python3 -m pytest -q tests/test_flash_fwd.py tests/test_flash_fwd_sm90.py tests/test_tma.py tests/test_unfused.py tests/test_runtime.py tests/test_api.py tests/test_plans.py tests/test_dependent_launch.py \
        tests/emulator/test_driver_twin.py
}

# FEATURE_EXAMPLES of every property over all features, shared by processes with seeds of their own: half of them with the
# kernels that dispatch takes here, half with those for every GPU
features() {
    local processes=() impls=(flash flash_sm80) i status=0
    for ((i = 1; i <= FUZZ_PROCESSES; ++i)); do
        FEATURE_IMPL=${impls[i % 2]} FUZZ_EXAMPLES=$((FEATURE_EXAMPLES / FUZZ_PROCESSES)) OMP_NUM_THREADS=2 OPENBLAS_NUM_THREADS=2 \
            python3 -m pytest -q -p no:cacheprovider tests/test_features.py --hypothesis-seed="$i" \
            > "$out/features-$i.log" 2>&1 &
        processes+=($!)
    done
    for i in "${processes[@]}"; do wait "$i" || status=1; done
    tail -qn 3 "$out"/features-*.log
    echo "FEATURE_EXAMPLES=$FEATURE_EXAMPLES in $FUZZ_PROCESSES processes: exit status $status"
    return "$status"
}

record() {
    cp "build/cubin/sm_$(python3 -c 'import flashcore_drv as fc; print(fc.Device.get(0).arch)')/manifest.json" "$out" &&
        python3 scripts/gpu_record.py "$out" --json "$out/gpu-check.json"
}

step build make cubin
step run python3 scripts/run.py
step reference python3 scripts/bench.py reference --quick --json "$out/reference.json"
step bank_conflicts bank_conflicts
step twins twins
together tests features memcheck racecheck synccheck initcheck
step record record

printf '\n%s s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
exit "${#failed[@]}"
