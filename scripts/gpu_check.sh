#!/usr/bin/env bash
# Everything that needs a GPU, in under 8 minutes: build, tests, compute-sanitizer, counters, times.
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
export FUZZ_EXAMPLES=${FUZZ_EXAMPLES:-300} HYPOTHESIS_PROFILE=fuzz
failed=()

# step NAME COMMAND…: output to the terminal and to FOLDER/NAME.log
step() {
    local name=$1
    shift
    printf '\n== %s (after %s s)\n' "$name" "$SECONDS"
    "$@" 2>&1 | tee "$out/$name.log" | tail -n 25
    [ "${PIPESTATUS[0]}" -eq 0 ] || failed+=("$name")
}

sanitize() { compute-sanitizer --tool "$1" --error-exitcode 9 python3 scripts/sanitize.py --quick; }

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
    python3 -m pytest -q "$@"
}

record() {
    cp "build/cubin/sm_$(python3 -c 'import flashcore_drv as fc; print(fc.Device.get(0).arch)')/manifest.json" "$out" &&
        python3 scripts/gpu_record.py "$out" --json "$out/gpu-check.json"
}

step build make cubin
step run python3 scripts/run.py
step tests tests tests/test_flash_fwd.py tests/test_unfused.py tests/test_runtime.py tests/test_api.py \
    tests/emulator/test_driver_twin.py
step reference python3 scripts/bench.py reference --json "$out/reference.json"
step forward python3 scripts/bench.py forward --quick --json "$out/forward.json"
step bank_conflicts bank_conflicts
step twins twins
for tool in memcheck racecheck synccheck initcheck; do step "$tool" sanitize "$tool"; done
step record record

printf '\n%s s; failed: %s\n' "$SECONDS" "${failed[*]:-none}"
exit "${#failed[@]}"
