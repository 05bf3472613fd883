# The guest moves to another machine, whose disk comes from another daemon on the same image, in
# the middle of verified I/O. Sourced by /init after vhost-lib.sh and /job, which sets:
#   GROWN           what the host grows LUN 0 to
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154

KEY=0xabc123

reserves() {
    within 30 disk_at 0 0
    local disk
    disk=/dev/$(disk_at 0 0)
    settle "${disk##*/}"
    sg_persist --out --register --param-sark=$KEY "$disk"
    sg_persist --out --reserve --param-rk=$KEY --prout-type=5 "$disk"
    held
    no_faults
}

held() {
    local disk
    disk=/dev/$(disk_at 0 0)
    sg_persist --in --read-keys "$disk" | grep -i $KEY
    sg_persist --in --read-reservation "$disk" | tee /tmp/held
    grep -i $KEY /tmp/held
    grep -i 'Write Exclusive, registrants only' /tmp/held
}

migrate_under_io() {
    local job said
    verify_on "$(disk_at 0 0)" --output-format=json --bs=4k --iodepth=32 --numjobs=2 --size=24M \
        --offset_increment=64M --rate_iops=300 --verify_backlog=512 &
    job=$!
    sleep 1
    said=$(host migrate) || { echo "$said"; return 1; }
    kill -0 $job || { echo "the I/O was over before the migration"; return 1; }
    wait $job || { echo "I/O failed over the migration"; return 1; }
    no_faults
    note "$said, longest I/O $(longest /tmp/fio.log) ms"
}

# Data, events and the control queue reach the new daemon.
works_there() {
    verify_on "$(disk_at 0 0)" --bs=64k --iodepth=8 --size=8M
    host grow || return
    within 10 size_is "$(disk_at 0 0)" "$GROWN"
    sg_reset --device --no-escalate "/dev/$(disk_at 0 0)"
    settle "$(disk_at 0 0)"
}

step reserve reserves
step migrate_under_io migrate_under_io
step reservation_is_there held
step works_there works_there
