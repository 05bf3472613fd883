# A partition whose firmware has read the kernel from 0:0.
# shellcheck shell=bash disable=SC2317

booted() {
    tr '\0' '\n' </proc/device-tree/chosen/bootpath | tee /tmp/path
    grep "v-scsi@$UNIT/disk@8000000000000000" /tmp/path
    login
}

whole_disk() {
    local read
    read=$(dd if="/dev/$(disk 0 0)" bs=64k count=$((MEBIBYTES * 16)) 2>/dev/null | sum)
    expect "MD5 of the disk" "$read" "$(host image-md5 "$MEBIBYTES")"
    write_and_read_back "$(disk 5 3)" 4
}

step booted booted
step scan scan
step whole_disk whole_disk
step no_faults no_faults
