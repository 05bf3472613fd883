# More of what the guest does with a disk on a vfio-user function: what changes, and resets. Sourced
# by /init after vfio.sh. /job sets besides:
#   GROWN ADDED     what the host grows LUN 0 to, and bytes of a LUN that it adds
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154

hot_plug() {
    host add 5 || return
    within 10 disk_at 0 5
    expect "bytes" "$(blockdev --getsize64 "/dev/$(disk_at 0 5)")" "$ADDED"
    host remove 5 || return
    within 10 no_disk_at 0 5
    no_faults 'synchroniz|result:|sense'
}

resize() {
    host grow || return
    within 10 size_is "$(disk_at 0 0)" "$GROWN"
    no_faults
}

reset_lun_under_io() {
    local disk job _
    disk=$(disk_at 0 0)
    verify_on "$disk" --bs=64k --iodepth=16 --size=32M --time_based --runtime=3 \
        --verify_backlog=64 &
    job=$!
    for _ in 1 2 3; do
        sleep 0.4
        sg_reset --device --no-escalate "/dev/$disk"
    done
    wait $job || { echo "I/O failed over a reset"; return 1; }
    no_faults
}

# The driver resets the device and describes its rings anew.
bind_again() {
    local driver=/sys/bus/pci/drivers/virtio-pci _
    for _ in 1 2 3; do
        echo 0000:00:10.0 >$driver/unbind
        echo 0000:00:10.0 >$driver/bind
        within 30 disk_at 0 0
    done
    file_system_on "$(disk_at 0 0)"
    no_faults 'synchroniz|result:|sense'
}

# A function level reset, without a driver that would mind.
reset_function() {
    local device=/sys/bus/pci/devices/0000:00:10.0 driver=/sys/bus/pci/drivers/virtio-pci
    echo 0000:00:10.0 >$driver/unbind
    cat $device/reset_method
    echo af_flr >$device/reset_method
    echo 1 >$device/reset
    echo 0000:00:10.0 >$driver/bind
    within 30 disk_at 0 0
    verify_on "$(disk_at 0 0)" --bs=4k --iodepth=16 --size=2M
}

step hot_plug hot_plug
step resize resize
step sg_reset_under_io reset_lun_under_io
step unbind_and_bind bind_again
step function_level_reset reset_function
