# An NVMe controller behind VFIO: served over iSCSI to the same guest. Sourced by /init after lib.sh;
# the job sets INTERFACE, how VFIO is used (container or iommufd).
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154

NAME=iqn.2026-11.net.example:nvme
PORTAL=127.0.0.1:3260
BDF=

vscsi() { /x/vscsi "$@" --control /run/vscsi.sock; }

disk() {
    local entry
    for entry in /sys/class/iscsi_session/session*/device/target*/*:*/block/*; do
        [ -e "$entry" ] && [ "$(cat "/sys/block/${entry##*/}/size")" != 0 ] && {
            echo "${entry##*/}"
            return
        }
    done
    return 1
}

node() { iscsiadm -m node -T $NAME -p $PORTAL "$@"; }

bdf() {
    local function
    function=$(grep -l 0x010802 /sys/bus/pci/devices/*/class)
    basename "${function%/class}"
}

nvme_found() {
    modprobe -a nvme vfio-pci vfio_iommu_type1
    [ "$INTERFACE" != iommufd ] || modprobe iommufd
    within 10 test -e /dev/nvme0n1
    bdf >/run/bdf
    ls -d /sys/kernel/iommu_groups/*/devices/"$(bdf)"
    # What is there before shows that it is the same medium after.
    echo "written by the kernel's driver" | dd of=/dev/nvme0n1 bs=512 conv=sync,fsync
}

# Its exit code is about RDMA.
doctor() {
    /x/vscsi doctor >/tmp/doctor.log || true
    cat /tmp/doctor.log
    grep "$1" /tmp/doctor.log
}

# As long as another driver has it, it is said what to paste. Pasting that helps.
refused_while_bound() {
    doctor 'not bound to vfio-pci but to nvme'
    refuted /x/vscsi serve "nvme:$(cat /run/bdf)" --iscsi $PORTAL --allow-any --control none \
        --state-dir none >/tmp/refused.log 2>&1
    cat /tmp/refused.log
    grep 'not bound to vfio-pci but to nvme' /tmp/refused.log
    grep -o 'modprobe vfio-pci && .*drivers_probe' /tmp/refused.log | head -n 1 >/tmp/paste
    sh -e /tmp/paste
    doctor "nvme:$(cat /run/bdf) can be a disk, by $INTERFACE"
    expect "driver" "$(basename "$(readlink "/sys/bus/pci/devices/$(cat /run/bdf)/driver")")" vfio-pci
}

# serve [OPTION…]
serve() {
    /x/vscsi serve "nvme:$(cat /run/bdf)$DISK_OPTIONS" --name $NAME --iscsi $PORTAL --allow-any \
        --control /run/vscsi.sock --state-dir none "$@" >>/tmp/target.log 2>&1 </dev/null 3>&- &
    echo $! >/run/target.pid
    within 30 vscsi lun list
}

served() {
    VSCSI_LOG=info serve --vhost-user /run/vhost.sock
    vscsi lun list
    vscsi lun list | grep "nvme:$(cat /run/bdf)/1"
    grep "interface=\"$INTERFACE\"" /tmp/target.log
}

first_read() {
    ip link set lo up
    iscsid
    iscsiadm -m discovery -t sendtargets -p $PORTAL
    node --login
    within 20 disk
    dd if="/dev/$(disk)" bs=512 count=1 iflag=direct | grep -a "written by the kernel's driver"
}

inquiry() { identity_on "$(disk)"; }

verify() {
    local disk
    disk=$(disk)
    verify_on "$disk" --bs=4k --iodepth=32 --size=8M
    verify_on "$disk" --bs=128k --iodepth=8 --size=16M
    # Longer than a command of the controller may be.
    verify_on "$disk" --bs=1m --iodepth=2 --size=16M
    verify_on "$disk" --bs=512 --iodepth=8 --size=512k
}

file_system() { file_system_on "$(disk)"; }

flush() { sg_sync "/dev/$(disk)"; }

unmap() {
    local disk
    disk=$(disk)
    dd if=/dev/urandom of="/dev/$disk" bs=1M count=16 seek=64 oflag=direct
    sg_vpd --page=lbpv "/dev/$disk"
    blkdiscard --offset $((64 << 20)) --length $((8 << 20)) "/dev/$disk"
    dd if="/dev/$disk" bs=1M skip=64 count=8 iflag=direct | cmp -n $((8 << 20)) - /dev/zero
    blkdiscard --zeroout --offset $((72 << 20)) --length $((4 << 20)) "/dev/$disk"
    dd if="/dev/$disk" bs=1M skip=72 count=4 iflag=direct | cmp -n $((4 << 20)) - /dev/zero
    refuted cmp -s -n 1000000 <(dd if="/dev/$disk" bs=1M skip=76 count=1 iflag=direct) /dev/zero
}

# counter NAME: a number that `vscsi stats` has for the LUN.
counter() { vscsi stats --json | grep -o "\"$1\": *[0-9]*" | head -n 1 | cut -d : -f 2 | tr -d ' '; }

nothing_copied() { expect "transfers that were copied" "$(counter bounces)" 0; }

# Whole blocks of guest memory, the device moves itself, wherever they are. What no device can reach
# is copied.
guest_memory() {
    local before
    vscsi lun list
    within 10 test -S /run/vhost.sock
    /x/guest_memory /run/vhost.sock aligned
    expect "transfers that were copied" "$(counter bounces)" 0
    /x/guest_memory /run/vhost.sock odd
    [ "$(counter bounces)" -ge 4 ] || { vscsi stats; return 1; }
    note "$(counter bounces) odd ones copied"
}

# Somebody resets the function while it is in use: what was lost is done again.
reset_under_io() {
    local disk job
    disk=$(disk)
    verify_on "$disk" --bs=4k --iodepth=16 --size=8M --time_based --runtime=6 --verify_backlog=64 &
    job=$!
    sleep 3
    echo 1 >"/sys/bus/pci/devices/$(cat /run/bdf)/reset"
    wait $job
    [ "$(counter resets)" -ge 1 ] || { vscsi stats; return 1; }
    expect "errors" "$(counter backend_errors)" 0
}

gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }

# Then the kernel's driver finds it as it should be.
stopped() {
    node --logout
    kill "$(cat /run/target.pid)"
    within 20 gone "$(cat /run/target.pid)"
    grep 'it is not used any more' /tmp/target.log
    refuted grep panicked /tmp/target.log
}

polled() {
    DISK_OPTIONS=,poll VSCSI_LOG=info serve
    grep 'interrupts.*false' /tmp/target.log
    node --login
    within 20 disk
    verify_on "$(disk)" --bs=4k --iodepth=16 --size=2M
}

# Without a medium commands fail, and the program goes on.
unplugged() {
    host unplug
    within 30 test ! -e "/sys/bus/pci/devices/$(cat /run/bdf)"
    refuted dd if="/dev/$(disk)" of=/dev/null bs=4k count=1 iflag=direct
    vscsi lun list
    # What the device may have cached is lost, which is said.
    refuted vscsi lun rm 0
    vscsi lun list
    refuted grep 'lun.*nvme:' <(vscsi lun list)
    node --logout || true
}

report() {
    cat /tmp/target.log
    dmesg | tail -n 40
}

# Not `step … ||`, under which a failure inside a step would not end it.
# shellcheck disable=SC2181
step nvme_behind_an_iommu nvme_found
[ $? -eq 0 ] || { report; return; }
step refused_while_another_driver_has_it refused_while_bound
[ $? -eq 0 ] || { report; return; }
step serve served
[ $? -eq 0 ] || { report; return; }
step first_read_over_iscsi first_read
[ $? -eq 0 ] || { report; return; }
step sg_inq_and_vpd inquiry
step fio_verify_512_4k_128k_1m verify
step ext4 file_system
step synchronize_cache flush
step unmap_and_write_zeroes unmap
step nothing_was_copied nothing_copied
step guest_memory_of_vhost_user guest_memory
step reset_under_io reset_under_io
step stop stopped
step served_by_polling polled
step unplugged_in_use unplugged
report
