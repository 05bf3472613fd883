# A partition whose ibmvscsi driver uses the CRQ server of vmm-glue, and what happens to it.
# shellcheck shell=bash disable=SC2317

HERE=/sys/bus/vio/drivers/ibmvscsi

file_system() { file_system_on "$(disk 0 1)"; }

reservation() { reserve_on "/dev/$(disk 0 0)"; }

absent() {
    refuted sg_raw -r 96 "/dev/$(disk 0 0)" a0 00 ff 00 00 00 00 00 00 60 00 00
    refuted disk 10 0
}

# in_io SECONDS COMMAND…: runs it while two disks are written and read back, and checks what was.
in_io() {
    local seconds=$1 code=0 jobs
    shift
    rm -f /tmp/enough
    churn "$(disk 0 1)" 1 & jobs=$!
    churn "$(disk 2 0)" 2 & jobs="$jobs $!"
    sleep 1
    "$@" || code=$?
    sleep "$seconds"
    touch /tmp/enough
    for job in $jobs; do wait "$job" || { cat /tmp/churn.*; return 1; }; done
    cat /tmp/churn.*
    return $code
}

# churn sdX NUMBER: writes other data to it each time around, and reads it back.
churn() {
    local round=0 wrote read
    until [ -e /tmp/enough ]; do
        round=$((round + 1))
        # Other bytes at every place, and odd ones at the end of a request.
        tail -c +$((round * 4099 % 1000000 + 1)) /tmp/data | head -c $((2 << 20)) >"/tmp/part.$2"
        wrote=$(sum <"/tmp/part.$2")
        dd if="/tmp/part.$2" of="/dev/$1" bs=256k conv=fsync 2>"/tmp/dd.$2" ||
            { echo "write: $(cat "/tmp/dd.$2")" >"/tmp/churn.$2"; return 1; }
        blockdev --flushbufs "/dev/$1"
        read=$(dd if="/dev/$1" bs=64k count=32 2>"/tmp/dd.$2" | sum)
        [ "$read" = "$wrote" ] ||
            { echo "$1 round $round: read $read, not $wrote: $(cat "/tmp/dd.$2")" >"/tmp/churn.$2"; return 1; }
    done
    echo "$1: $round rounds" >"/tmp/churn.$2"
}

partner_failed() {
    dmesg -c >/dev/null
    in_io 2 host control failed
    dmesg | grep ibmvscsi
    said 'Virtual adapter failed rc 1'
    expect logins "$(logins)" 1
    all_disks
}

migrated() {
    dmesg -c >/dev/null
    in_io 2 host control migrated
    dmesg | grep ibmvscsi
    said 'Re-enabling adapter'
    expect logins "$(logins)" 1
    all_disks
}

# The server goes away: the driver fails what is asked of it. When the server comes back, it begins to
# initialize.
partner_away() {
    dmesg -c >/dev/null
    host control offline
    within 10 said 'Virtual adapter failed rc 2'
    sleep 1
    refuted dd if="/dev/$(disk 0 1)" of=/dev/null bs=4k count=1 skip=77 iflag=direct
    expect logins "$(logins)" 0
    host control online
    within 10 said 'SRP_LOGIN succeeded'
    dmesg | grep ibmvscsi
    all_disks
    write_and_read_back "$(disk 2 0)" 8
}

device_resets() {
    local place
    for place in 0:1 2:0 0:1 2:0; do
        sg_reset --device --no-escalate "/dev/$(disk "${place%:*}" "${place#*:}")"
        sleep 0.5
    done
}

# LUN RESET goes out at once, and what it aborts is sent again.
lun_reset() {
    dmesg -c >/dev/null
    in_io 1 device_resets
    dmesg | grep -E 'ibmvscsi|sd '
    said 'resetting device'
    refuted said 'CRQ reset'
}

stalled() {
    host control stall
    within 20 said 'aborting command'
    host control resume
    dmesg | grep -E 'ibmvscsi|sd '
}

# A medium that does not answer: the driver aborts what waits for it.
aborts() {
    dmesg -c >/dev/null
    echo 2 >"/sys/block/$(disk 0 0)/device/timeout"
    dd if="/dev/$(disk 0 0)" of=/dev/null bs=64k count=1 skip=500 iflag=direct 2>/tmp/dd.log &
    stalled
    wait $! || { cat /tmp/dd.log; return 1; }
    echo 30 >"/sys/block/$(disk 0 0)/device/timeout"
    said 'aborting command'
    said 'successfully aborted task tag'
    # Others were served meanwhile, and nothing else was needed.
    refuted grep -E 'resetting device|Resetting|I/O error' <(dmesg)
}

# The queue is not free before the medium has given back what it was asked for, and nothing of that
# comes after the driver's new login.
reset_while_stalled() {
    local reading resetting
    dmesg -c >/dev/null
    host control stall
    dd if="/dev/$(disk 0 0)" of=/tmp/read bs=64k count=8 skip=16 iflag=direct 2>/tmp/dd.log & reading=$!
    sleep 1
    sg_reset --host --no-escalate "/dev/$(disk 0 1)" & resetting=$!
    within 10 said 'Resetting connection'
    sleep 2
    expect logins "$(logins)" 0
    [ "$(host busy)" -gt 0 ]
    host control resume
    wait $resetting
    wait $reading || { cat /tmp/dd.log; return 1; }
    expect logins "$(logins)" 1
    cmp /tmp/read <(tail -c +$(((1 << 20) + 1)) /tmp/data | head -c $((512 << 10)))
}

overflows() { [ "$(host full)" -gt "$1" ]; }

# More is in progress than the client's queue has room for, while the client does not look.
queue_full() {
    local name disks jobs="" job before
    rmmod ibmvscsi
    dmesg -c >/dev/null
    load max_requests=500
    before=$(host full)
    disks=$(for place in $LUNS; do disk "${place%:*}" "${place#*:}"; done)
    for name in $disks; do
        echo 64 >"/sys/block/$name/device/queue_depth"
        echo none >"/sys/block/$name/queue/scheduler"
        echo 4 >"/sys/block/$name/queue/max_sectors_kb"
    done
    host control hold
    for name in $disks; do
        dd if=/tmp/data of="/dev/$name" bs=1M count=1 conv=fsync 2>"/tmp/dd.$name" &
        jobs="$jobs $!"
    done
    within 20 overflows "$before"
    host control release
    for job in $jobs; do wait "$job" || { cat /tmp/dd.*; return 1; }; done
    for name in $disks; do
        echo 1024 >"/sys/block/$name/queue/max_sectors_kb"
        forget_cache "$name"
        cmp -n $((1 << 20)) /tmp/data "/dev/$name"
    done
    note "the queue was full $(($(host full) - before)) times"
    no_complaints
}

# H_FREE_CRQ under I/O, and another registration.
unbound() {
    echo "$UNIT" >"$HERE/unbind"
    sleep 1
    echo "$UNIT" >"$HERE/bind"
}

free_under_io() {
    dmesg -c >/dev/null
    dd if="/dev/$(disk 0 1)" of=/dev/null bs=64k iflag=direct 2>/dev/null &
    dd if=/tmp/data of="/dev/$(disk 2 0)" bs=64k oflag=direct 2>/dev/null &
    sleep 1
    unbound
    wait
    within 30 all_disks
    expect logins "$(logins)" 1
    write_and_read_back "$(disk 2 0)" 8
}

reload() {
    local round
    dmesg -c >/dev/null
    for round in 1 2 3; do
        rmmod ibmvscsi
        load
        expect logins "$(logins)" "$round"
    done
    no_complaints
}

step login login
step scan scan
step raw raw
step file_system file_system
step reservation reservation
step absent absent
step aborts aborts
step lun_reset lun_reset
step reset_while_stalled reset_while_stalled
step partner_failed partner_failed
step migrated migrated
step partner_away partner_away
step queue_full queue_full
step free_under_io free_under_io
step reload reload
step no_faults no_faults
