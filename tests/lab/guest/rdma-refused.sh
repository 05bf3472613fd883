# Logins of ib_srp that are refused, again and again. Each waits for a tenth of a second. Sourced
# after rdma-targets.sh.
# shellcheck shell=bash
# shellcheck disable=SC2153

descriptors() { find "/proc/$1/fd" -mindepth 1 | wc -l; }
resident() { awk '/^VmRSS/ { print $2 }' "/proc/$1/status"; }
verbs_objects() { rdma resource show | tail -n 1; }

# refused_times COUNT: that many logins of either kind, with as little memory of the initiator's as
# can be.
refused_times() {
    local count
    for count in $(seq "$1"); do
        refused_login ,queue_size=2 && return 1
        misled_login ,queue_size=2 && return 1
    done 2>/dev/null
    # What they leave goes in its own time.
    sleep 2
}

# So often it leaves nothing behind.
refused_1000_times() {
    local pid files memory objects began=$SECONDS
    srp_options ch_count=1 never_register=Y
    dmesg -n 1
    pid=$(cat /run/target.pid 2>/dev/null || true)
    refused_times 20
    objects=$(verbs_objects)
    [ -z "$pid" ] || { files=$(descriptors "$pid"); memory=$(resident "$pid"); }
    refused_times 500
    expect "objects" "$(verbs_objects)" "$objects"
    [ -n "$pid" ] || return 0
    expect "open files" "$(descriptors "$pid")" "$files"
    memory=$(($(resident "$pid") - memory))
    note "resident memory grew by $memory KiB"
    [ $memory -lt 256 ]
    srp_login
    verify_on "$(srp_disk)" --bs=4k --iodepth=16 --size=1M
}

step device device_up; passed || { report; return; }
step target target_start; passed || { report; return; }
step refused_1000_times refused_1000_times
report
