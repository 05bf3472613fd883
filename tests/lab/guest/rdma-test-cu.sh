# libiscsi's suite over iser://, a process for each test. Sourced after rdma-targets.sh. The job sets
# TESTS, the names for iscsi-test-cu.
# shellcheck shell=bash
# shellcheck disable=SC2153

# once NAME URL…: its output is in /tmp/cu.log. Returns 1 when libiscsi crashed, was not let in, or got
# no answer within the second that it waits.
once() {
    local tests=$1 code=0
    shift
    timeout 200 iscsi-test-cu -i "$INITIATOR:over-iser" -d -S -v -t "$tests" "$@" \
        >/tmp/cu.log 2>&1 || code=$?
    printf '\nEXIT %s\n' $code >>/tmp/cu.log
    [ $code -lt 124 ] &&
        ! grep -E 'Failed to connect|Suite initialization failed|revents is not POLLIN' /tmp/cu.log
}

# libiscsi takes the end of one connection, which comes from a thread of its own, for that of the next
# one, and crashes now and then. What it does to a test that has begun twice is the test's result. The
# output goes to the console, which the host reads.
suite() {
    local tests urls lun begun again=0
    dmesg -n 1
    for tests in $TESTS; do
        case $KIND-$tests in
            tgtd-* | vscsi-*.Sanitize.[!R]*) lun=1 ;;
            *) lun=0 ;;
        esac
        urls=("iser://$IP:$ISER_PORT/$NAME/$lun")
        case $tests in *.MultipathIO.*) urls+=("${urls[0]}") ;; esac
        begun=0
        for _ in $(seq 16); do
            once "$tests" "${urls[@]}" && break
            again=$((again + 1))
            ! grep -q 'Test: ' /tmp/cu.log || begun=$((begun + 1))
            [ $begun -lt 2 ] || break
        done
        { echo "TESTS $tests" && cat /tmp/cu.log; } >/dev/console
    done
    note "$again attempts died in libiscsi"
}

step device device_up; passed || { report; return; }
step target target_start; passed || { report; return; }
step iscsi_test_cu suite
report
