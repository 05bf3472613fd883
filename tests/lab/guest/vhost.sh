# What the guest does with a disk over vhost-user-scsi. Sourced by /init after /job, which sets:
#   SIZE GROWN      bytes of LUN 0 of controller 0, and what the host grows it to
#   ADDED           bytes of a LUN that the host adds
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154

binds() {
    local disk queues
    within 30 disk_at 0 0
    disk=$(disk_at 0 0)
    expect "driver" "$(basename "$(readlink "$(host_of 0)/../driver")")" virtio_scsi
    queues=("/sys/block/$disk/mq"/*)
    expect "hardware queues" "${#queues[@]}" 4
    expect "bytes" "$(blockdev --getsize64 "/dev/$disk")" "$SIZE"
    # Hot-plug and change of parameters, the ring's indirect descriptors and event index.
    negotiated 0 1 2 28 29 32
    no_faults
}

inquiry() { identity_on "$(disk_at 0 0)"; }
opcodes() { opcodes_on "$(disk_at 0 0)"; }
persistent_reservation() { reserve_on "/dev/$(disk_at 0 0)"; }
file_system() { file_system_on "$(disk_at 0 0)"; }
trim_makes_holes() { trim_on "$(disk_at 0 0)"; }

# Each job keeps to a CPU, and so to a request queue, and to a part of the disk.
verify_with_4_queues() {
    interrupts 0 >/tmp/before
    verify_on "$(disk_at 0 0)" --bs=4k --iodepth=32 --numjobs=4 --cpus_allowed=0-3 \
        --cpus_allowed_policy=split --size=4M --offset_increment=16M
    interrupts 0 >/tmp/after
    cat /tmp/before /tmp/after
    expect "queues that interrupted" "$(sort /tmp/before /tmp/after | uniq -u | wc -l)" 8
}

# interrupts CONTROLLER: the name of each request queue and how often it interrupted.
interrupts() {
    local host device
    host=$(host_of "$1")
    device=$(basename "${host%/host*}")
    awk -v name="$device-request" '$NF == name { for (i = 2; i < 6; i++) sum += $i
                                                 print $1, sum; sum = 0 }' /proc/interrupts
}

verify_large_blocks() { verify_on "$(disk_at 0 0)" --bs=512k --iodepth=8 --size=32M; }

# The guest learns of what follows by events of the device, never by a scan that somebody asks for.
hot_plug() {
    host add 5 || return
    within 10 disk_at 0 5
    expect "bytes" "$(blockdev --getsize64 "/dev/$(disk_at 0 5)")" "$ADDED"
    verify_on "$(disk_at 0 5)" --bs=4k --iodepth=8 --size=4M
}

# From 256 on a LUN is written in another form, which Linux counts as 16384 and more.
hot_plug_flat_lun() {
    host add 300 || return
    within 10 disk_at 0 $((16384 + 300))
    verify_on "$(disk_at 0 $((16384 + 300)))" --bs=4k --iodepth=8 --size=4M
}

hot_unplug() {
    no_faults
    host remove 5 || return
    within 10 no_disk_at 0 5
    host remove 300 || return
    within 10 no_disk_at 0 $((16384 + 300))
    disk_at 0 0
    # The kernel notes that it can no longer flush the caches of what is gone.
    no_faults 'synchroniz|result:|sense'
}

resize() {
    local disk
    disk=$(disk_at 0 0)
    host grow || return
    within 10 size_is "$disk" "$GROWN"
    dd if=/dev/urandom of=/tmp/block bs=4096 count=1
    dd if=/tmp/block of="/dev/$disk" bs=4096 seek=$((GROWN / 4096 - 1)) oflag=direct
    dd if="/dev/$disk" bs=4096 skip=$((GROWN / 4096 - 1)) iflag=direct count=1 | cmp - /tmp/block
    no_faults
}

reset_device() {
    local disk
    disk=$(disk_at 0 0)
    settle "$disk"
    sg_reset --device --no-escalate "/dev/$disk"
    # The unit attention that a reset leaves behind.
    sg_requests "/dev/$disk" 2>&1 | tee /tmp/attention
    grep -i 'reset.*occurred' /tmp/attention
    settle "$disk"
    no_faults
}

# Commands that a reset aborts are repeated by the driver. (Linux's driver aborts no single command:
# it waits for ever.)
reset_aborts_io() {
    local disk job _
    disk=$(disk_at 0 0)
    verify_on "$disk" --bs=64k --iodepth=32 --numjobs=2 --size=48M --offset_increment=64M \
        --time_based --runtime=5 --verify_backlog=128 &
    job=$!
    sleep 1
    for _ in 1 2 3 4 5; do
        sg_reset --device --no-escalate "/dev/$disk"
        sleep 0.2
    done
    kill -0 $job || { echo "the I/O was over before the resets"; return 1; }
    wait $job || { echo "I/O failed over a reset"; return 1; }
    no_faults
}

# write_conflicts sdX: a write ends with a reservation conflict (EBADE).
write_conflicts() {
    dd if=/dev/zero of="/dev/$1" bs=4096 count=1 oflag=direct 2>&1 | tee /tmp/dd
    grep 'Invalid exchange' /tmp/dd
}

# One logical unit behind two fabrics: what a nexus reserves holds for the other's.
reserved_here_conflicts_over_iscsi() {
    local disk
    disk=/dev/$(disk_at 0 0)
    settle "${disk##*/}"
    expect "status over iSCSI before" "$(host iscsi write)" good
    sg_persist --out --register --param-sark=0xabc123 "$disk"
    sg_persist --out --reserve --param-rk=0xabc123 --prout-type=5 "$disk"
    expect "status over iSCSI" "$(host iscsi write)" conflict
    dd if=/dev/zero of="$disk" bs=4096 count=1 oflag=direct
    sg_persist --out --clear --param-rk=0xabc123 "$disk"
    expect "status over iSCSI afterwards" "$(host iscsi write)" good
}

reserved_over_iscsi_conflicts_here() {
    local disk
    disk=$(disk_at 0 0)
    expect "status of reserve over iSCSI" "$(host iscsi reserve)" good
    settle "$disk"
    write_conflicts "$disk"
    dd if="/dev/$disk" of=/dev/null bs=4096 count=1 iflag=direct
    expect "status of clear over iSCSI" "$(host iscsi clear)" good
    settle "$disk"
    dd if=/dev/zero of="/dev/$disk" bs=4096 count=1 oflag=direct
    # The conflict was asked for.
    no_faults 'reservation conflict|nexus error|hostbyte=DID_OK'
}

step binds binds
step sg_inq_and_vpd inquiry
step sg_opcodes opcodes
step sg_persist persistent_reservation
step ext4 file_system
step fio_verify_4_queues verify_with_4_queues
step fio_verify_512k verify_large_blocks
step fstrim_makes_holes trim_makes_holes
step hot_plug hot_plug
step hot_plug_lun_300 hot_plug_flat_lun
step hot_unplug hot_unplug
step resize resize
step sg_reset_device reset_device
step sg_reset_under_io reset_aborts_io
step reserved_here_conflicts_over_iscsi reserved_here_conflicts_over_iscsi
step reserved_over_iscsi_conflicts_here reserved_over_iscsi_conflicts_here
