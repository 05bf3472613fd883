# libiscsi's suite over iser://, a process for each test. Sourced after rdma-targets.sh. The job sets
# TESTS, the names for iscsi-test-cu.
# shellcheck shell=bash
# shellcheck disable=SC2153

# once NAME URL…: its output is in /tmp/cu.log. Returns 1 when libiscsi crashed, or was not let in.
once() {
    local tests=$1 code=0
    shift
    timeout 200 iscsi-test-cu -i "$INITIATOR:over-iser" -d -S -v -t "$tests" "$@" \
        >/tmp/cu.log 2>&1 || code=$?
    echo "EXIT $code" >>/tmp/cu.log
    [ $code -lt 124 ] && ! grep -E 'Failed to connect|Suite initialization failed' /tmp/cu.log
}

# The thread in which libiscsi takes events of a connection that ends crashes now and then; what it
# does to a test more than twice is the test's result. The output goes to the console, which the host
# reads.
suite() {
    local tests urls lun=0 attempt again=0
    [ "$KIND" != tgtd ] || lun=1
    dmesg -n 1
    for tests in $TESTS; do
        urls=("iser://$IP:$ISER_PORT/$NAME/$lun")
        case $tests in *.MultipathIO.*) urls+=("${urls[0]}") ;; esac
        for attempt in 1 2 3; do
            once "$tests" "${urls[@]}" && break
            again=$((again + 1))
        done
        { echo "TESTS $tests" && cat /tmp/cu.log; } >/dev/console
    done
    note "$again attempts died in libiscsi"
}

step device device_up || { report; return; }
step target target_start || { report; return; }
step iscsi_test_cu suite
report
