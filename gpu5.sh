export COMMIT=$1
bash scripts/gpu_check.sh /tmp/chk > $OUT/check.log 2>&1; tail -c 3500 $OUT/check.log
cp build/cubin/sm_90/manifest.json /tmp/chk/; cd /tmp/chk; tar czf $OUT/chk.tgz .
