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

# A file on LUN 1 that is not in the page cache.
file_on_lun_1() {
    mkfs.ext4 -q -F -E nodiscard "/dev/$(disk_at 0 1)"
    mount "/dev/$(disk_at 0 1)" /mnt
    dd if=/dev/urandom of=/mnt/random bs=1M count=48
    md5sum </mnt/random >/tmp/md5
    umount /mnt
    mount "/dev/$(disk_at 0 1)" /mnt
}

# Reads the file into the page cache at a pace that lasts for the migration: the daemon writes these
# pages, nobody else does, and so only its dirty log takes them along.
fill_page_cache() {
    local part
    for part in $(seq 0 47); do
        dd if=/mnt/random of=/dev/null bs=1M count=1 skip="$part" 2>/dev/null
        sleep 0.05
    done
}

migrate_under_io() {
    local job reader said
    file_on_lun_1
    verify_on "$(disk_at 0 0)" --output-format=json --bs=4k --iodepth=32 --numjobs=2 --size=24M \
        --offset_increment=64M --rate_iops=300 --verify_backlog=512 &
    job=$!
    sleep 1
    fill_page_cache &
    reader=$!
    said=$(host migrate) || { echo "$said"; return 1; }
    kill -0 $job || { echo "the I/O was over before the migration"; return 1; }
    wait $reader
    wait $job || { echo "I/O failed over the migration"; return 1; }
    no_faults
    note "$said"
}

page_cache_came_along() {
    local disk before reads
    disk=$(disk_at 0 1)
    before=$(done_on "$disk")
    md5sum </mnt/random | cmp - /tmp/md5
    # Some metadata may be read, but not the file.
    reads=$(($(done_on "$disk") - before))
    [ $reads -lt 16 ] || { echo "the file was not in the cache: $reads reads"; return 1; }
    umount /mnt
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
step page_cache_came_along page_cache_came_along
step reservation_is_there held
step works_there works_there
