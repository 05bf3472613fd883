# What the guest does with a disk on a vfio-user function. Sourced by /init after /job, which sets:
#   SIZE            bytes of LUN 0
#   EACH            bytes that each of 4 jobs verifies
#   INTERRUPTS      msix or intx: what the function interrupts by
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154

binds() {
    local disk queues device
    within 30 disk_at 0 0
    disk=$(disk_at 0 0)
    expect "driver" "$(basename "$(readlink "$(host_of 0)/../driver")")" virtio_scsi
    queues=("/sys/block/$disk/mq"/*)
    expect "hardware queues" "${#queues[@]}" 4
    expect "bytes" "$(blockdev --getsize64 "/dev/$disk")" "$SIZE"
    # As over vhost-user, and the device is behind the platform's IOMMU.
    negotiated 0 1 2 28 29 32 33
    device=/sys/bus/pci/devices/0000:00:10.0
    case $INTERRUPTS in
        msix) [ -n "$(ls "$device/msi_irqs")" ] ;;
        intx) [ ! -e "$device/msi_irqs" ] || [ -z "$(ls "$device/msi_irqs")" ] ;;
    esac || { echo "it does not interrupt by $INTERRUPTS"; return 1; }
    # Of the timer, when the machine is busy.
    no_faults "[.]{4} failed"
}

inquiry() { identity_on "$(disk_at 0 0)"; }
file_system() { file_system_on "$(disk_at 0 0)"; }

verify_with_4_queues() {
    verify_on "$(disk_at 0 0)" --bs=4k --iodepth=16 --numjobs=4 --cpus_allowed=0-3 \
        --cpus_allowed_policy=split --size="$EACH" --offset_increment=16M
    no_faults
}

verify_large_blocks() {
    verify_on "$(disk_at 0 0)" --bs=512k --iodepth=8 --size=16M
    no_faults
}

step binds binds
step sg_inq_and_vpd inquiry
step ext4 file_system
step fio_verify_4_queues verify_with_4_queues
step fio_verify_512k verify_large_blocks
