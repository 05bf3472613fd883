# The RDMA layer against itself, and a target against an initiator that breaks the rules while
# another one works. Sourced after rdma-targets.sh.
# shellcheck shell=bash
# shellcheck disable=SC2153

# told COMMAND…: a program that prints a line for each of its checks.
told() {
    local code=0
    "$@" >/tmp/told 2>&1 || code=$?
    grep '^ok ' /tmp/told || true
    grep -v '^ok ' /tmp/told || note "$(grep -c '^ok ' /tmp/told) checks"
    return $code
}

layer() { told /x/selftest "$IP"; }

# Reads and writes of somebody else go on meanwhile, and nothing is left behind.
attacked() {
    local pid id files job
    pid=$(cat /run/target.pid)
    id=$(srp_line)
    id=${id#id_ext=} id=${id%%,*}
    files=$(find "/proc/$pid/fd" -mindepth 1 | wc -l)
    verify_on "$BYSTANDER" --bs=4k --iodepth=4 --size=8M --time_based --runtime=10 &
    job=$!
    told /x/hostile "$IP" "$ISER_PORT" "$NAME" "$SRP_PORT" "$id" "$id"
    wait $job
    expect "process" "$(cat /run/target.pid)" "$pid"
    kill -0 "$pid"
    within 20 test "$(find "/proc/$pid/fd" -mindepth 1 | wc -l)" -le "$files"
}

attend() {
    srp_options ch_count=1
    srp_login
    within 20 srp_disk
}

step device device_up; passed || { report; return; }
step layer layer
SRP_ALLOW=any
step target target_start; passed || { report; return; }
step attend attend; passed || { report; return; }
BYSTANDER=$(srp_disk)
step attacked attacked
report
