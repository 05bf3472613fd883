# libiscsi's suite against the sg devices of a LUN that two controllers share. Sourced by /init
# after vhost-lib.sh. The job sets TESTS, the names for iscsi-test-cu.
# shellcheck shell=bash
# shellcheck disable=SC2153

# sg_of CONTROLLER: the sg device of LUN 0 there.
sg_of() {
    local host entry
    host=$(host_of "$1") || return 1
    for entry in "$host"/target*:0:0/*:0:0:0/scsi_generic/*; do
        [ -e "$entry" ] && { echo "/dev/${entry##*/}"; return; }
    done
    return 1
}

both_there() { sg_of 0 && sg_of 1; }

# The output goes to the console, which the host reads; that way a crash loses nothing of it.
suite() {
    local tests paths
    within 20 both_there
    dmesg -n 1
    for tests in $TESTS; do
        paths=("$(sg_of 0)")
        case $tests in *.MultipathIO.*) paths+=("$(sg_of 1)") ;; esac
        {
            echo "TESTS $tests"
            iscsi-test-cu -d -S -v -t "$tests" "${paths[@]}" || echo "EXIT $?"
        } >/dev/console 2>&1
    done
    # What the kernel gave up or tried again, the suite does not see.
    ! dmesg | grep -E 'timing out|aborting|device reset|host reset|offline' | grep -v Power-on
}

step iscsi_test_cu suite
