# What the steps of pseries guests share. Sourced after lib.sh.
# shellcheck shell=bash

# The SCSI host of the driver.
adapter() {
    local host
    for host in /sys/class/scsi_host/host*; do
        [ "$(cat "$host/proc_name")" = ibmvscsi ] && echo "$host" && return
    done
    return 1
}

# disk TARGET LUN: the name of a disk.
disk() {
    local entry
    for entry in "/sys/class/scsi_disk"/*:0:"$1:$2"/device/block/*; do
        [ -e "$entry" ] && echo "${entry##*/}" && return
    done
    return 1
}

sum() { md5sum | cut -d' ' -f1; }

forget_cache() {
    echo 3 >/proc/sys/vm/drop_caches
    blockdev --flushbufs "/dev/$1"
}

# write_and_read_back sdX MEBIBYTES: prints the MD5 of what was written, if it is read back.
write_and_read_back() {
    local wrote read
    [ "$(stat -c %s /tmp/data 2>/dev/null)" = $(($2 << 20)) ] ||
        dd if=/dev/urandom of=/tmp/data bs=1M count="$2" 2>/dev/null
    wrote=$(sum </tmp/data)
    dd if=/tmp/data of="/dev/$1" bs=1M conv=fsync 2>/dev/null
    forget_cache "$1"
    read=$(dd if="/dev/$1" bs=64k count=$(($2 * 16)) 2>/dev/null | sum)
    expect "MD5 of what was read" "$read" "$wrote"
    echo "$wrote"
}
