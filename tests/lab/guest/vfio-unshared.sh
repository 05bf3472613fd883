# What the guest does with a disk whose function has no shared memory. Sourced by /init after /job,
# which sets:
#   SIZE EACH       bytes of LUN 0, and what each of 4 jobs verifies
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154

binds() {
    within 60 disk_at 0 0
    expect "bytes" "$(blockdev --getsize64 "/dev/$(disk_at 0 0)")" "$SIZE"
    # No event index, no packed rings.
    negotiated 0 28 ~29 32 33 ~34
    no_faults
}

file_system() { file_system_on "$(disk_at 0 0)"; }

verify_with_4_queues() {
    verify_on "$(disk_at 0 0)" --bs=4k --iodepth=16 --numjobs=4 --cpus_allowed=0-3 \
        --cpus_allowed_policy=split --size="$EACH" --offset_increment=16M
    no_faults
}

step binds binds
step ext4 file_system
step fio_verify_4_queues verify_with_4_queues
