# The program as the handler of the kernel's backstores, behind the loopback fabric: a file (LUN 0, by
# backstore `file`) and a RAM disk (LUN 1, `ram`). Sourced after tcmu-lib.sh.
# shellcheck shell=bash

image() { [ -e $IMAGE ] || truncate -s "$IMAGE_SIZE" $IMAGE; }
start() { serve $IMAGE,serial=FILE0 --ram 64M,serial=RAM1; }

up() {
    modules_up
    image
    start
    dmesg -c >/dev/null
}

# Whoever makes a device that leads nowhere is told so, and nothing is left of it.
leads_nowhere() {
    refuted backstore odd vscsi/$NAME/7
    refuted backstore odd vscsi/iqn.2026-11.net.example:other/0
    refuted backstore odd vscsi/$NAME
    backstore_down odd
    refuted uio_of odd
    dmesg -c >/dev/null
}

two_devices() {
    backstore file vscsi/$NAME/0 max_data_area_mb=64,hw_max_sectors=2048
    backstore ram vscsi/1
    lun_up 1 file
    lun_up 2 ram
    control session list | tee /tmp/sessions
    expect "devices" "$(grep -c '^user_0/' /tmp/sessions)" 2
    size_is "$(disk 1)" "$IMAGE_SIZE"
    size_is "$(disk 2)" $((64 << 20))
    no_faults
}

# Names and pages are those of the logical unit, as over every other fabric.
identity() {
    identity_on "$(disk 1)"
    sg_inq "/dev/$(disk 1)" | grep 'Unit serial number: FILE0'
    sg_inq "/dev/$(disk 2)" | grep 'Unit serial number: RAM1'
    opcodes_on "$(disk 1)"
}

file_system() {
    file_system_on "$(disk 1)"
    e2fsck -f -n "/dev/$(disk 1)"
}

# Both at once, and with commands that are longer than one page and than one iovec.
verify() {
    local job
    verify_on "$(disk 2)" --bs=4k --iodepth=32 --size=4M &
    job=$!
    LOG=/tmp/fio-1.log verify_on "$(disk 1)" --bsrange=512-512k --bs_unaligned=0 \
        --blockalign=512 --iodepth=16 --size=12M
    wait $job
    no_faults
}

unmap_and_write_same() {
    local disk
    disk=/dev/$(disk 1)
    dd if=/dev/urandom of=/tmp/pattern bs=4096 count=1
    dd if=/tmp/pattern of="$disk" bs=4096 count=1 oflag=direct
    dd if=/tmp/pattern of="$disk" bs=4096 seek=1 count=1 oflag=direct
    sg_unmap --lba=0 --num=8 "$disk"
    dd if="$disk" of=/tmp/read bs=4096 count=1 iflag=direct
    cmp -n 4096 /tmp/read /dev/zero
    dd if="$disk" of=/tmp/read bs=4096 skip=1 count=1 iflag=direct
    cmp /tmp/read /tmp/pattern
    head -c 512 /tmp/pattern >/tmp/block
    sg_write_same --16 --in=/tmp/block --lba=64 --num=64 "$disk"
    dd if="$disk" of=/tmp/read bs=512 skip=127 count=1 iflag=direct
    cmp /tmp/read /tmp/block
    dd if="$disk" of=/tmp/read bs=512 skip=128 count=1 iflag=direct
    refuted cmp -s /tmp/read /tmp/block
    sg_sync "$disk"
    trim
    no_faults
}

# A file system's fstrim gives the space of the image back.
trim() {
    local full trimmed
    mkfs.ext4 -q -F -E nodiscard "/dev/$(disk 1)"
    mount "/dev/$(disk 1)" /mnt
    dd if=/dev/urandom of=/mnt/data bs=1M count=12 conv=fsync
    full=$(blocks_of $IMAGE)
    rm /mnt/data
    sync
    fstrim -v /mnt
    umount /mnt
    trimmed=$(blocks_of $IMAGE)
    echo "the image used $full KiB, after fstrim $trimmed"
    [ $((full - trimmed)) -ge $((10 << 10)) ]
}
blocks_of() { busybox du -k "$1" | cut -f 1; }

# A short answer is short for the initiator as well: what is behind it is not the last command's data.
residuals() {
    local disk
    disk=/dev/$(disk 2)
    sg_raw --request=512 --outfile=/tmp/inquiry "$disk" 12 00 00 02 00 00 2>&1 | tee /tmp/said
    grep 'Writing 96 bytes' /tmp/said
    # Fewer blocks than there is room for.
    sg_raw --request=4096 --outfile=/tmp/blocks "$disk" 28 00 00 00 00 00 00 00 02 00 2>&1 |
        tee /tmp/said
    grep 'Writing 1024 bytes' /tmp/said
}

sense() {
    local disk
    disk=/dev/$(disk 2)
    # Behind the end.
    sg_raw --request=512 "$disk" 28 00 7f ff ff ff 00 00 01 00 2>&1 | tee /tmp/said || true
    grep -i 'Logical block address out of range' /tmp/said
    sg_raw "$disk" ff 00 00 00 00 00 2>&1 | tee /tmp/said || true
    grep -i 'Invalid command operation code' /tmp/said
}

# The kernel knows its initiators, and keeps their reservations itself, unless it is told not to.
reservations() {
    reserve_on "/dev/$(disk 1)"
    echo 0 >"$CORE/ram/attrib/pgr_support"
    settle "$(disk 2)"
    reserve_on "/dev/$(disk 2)"
    dmesg -c >/dev/null
}

# A bigger dev_size grows the logical unit; a smaller one is refused.
resize() {
    local grown=$((IMAGE_SIZE + (32 << 20))) disk
    disk=$(disk 1)
    echo $grown >"$CORE/file/attrib/dev_size"
    expect "image" "$(stat_size $IMAGE)" $grown
    refuted eval "echo $IMAGE_SIZE >'$CORE/file/attrib/dev_size'"
    expect "dev_size" "$(cat "$CORE/file/attrib/dev_size")" $grown
    settle "$disk"
    echo 1 >"/sys/block/$disk/device/rescan"
    size_is "$disk" $grown
    verify_on "$disk" --bs=64k --iodepth=8 --offset=$IMAGE_SIZE --size=8M
    dmesg -c >/dev/null
}
stat_size() { wc -c <"$1"; }

wce() { sg_modes --page=8 --control=0 "/dev/$1" | grep -E '^ 00  +88|^ 00  +08' | awk '{ print $4 }'; }

write_cache() {
    local disk
    disk=$(disk 1)
    settle "$disk"
    wce "$disk"
    expect "caching page" "$(wce "$disk")" 04
    echo 1 >"$CORE/file/attrib/emulate_write_cache"
    echo 0 >"$CORE/file/attrib/emulate_write_cache"
    settle "$disk"
    expect "caching page" "$(wce "$disk")" 00
    verify_on "$disk" --bs=4k --iodepth=4 --size=1M
    echo 1 >"$CORE/file/attrib/emulate_write_cache"
    settle "$disk"
    expect "caching page" "$(wce "$disk")" 04
    # A RAM disk has no cache to be turned on.
    refuted eval "echo 1 >'$CORE/ram/attrib/emulate_write_cache'"
    # Nor does a device in use become another.
    refuted eval "echo vscsi/1 >'$CORE/file/attrib/dev_config'"
    echo "vscsi/$NAME/0" >"$CORE/file/attrib/dev_config"
    dmesg -c >/dev/null
}

# A device reset of the initiator reaches the core as a LOGICAL UNIT RESET, in the middle of I/O.
reset_device() {
    local disk before job
    disk=$(disk 1)
    [ -e "$CORE/file/attrib/tmr_notification" ] || { echo "the kernel does not tell"; return 77; }
    echo 1 >"$CORE/file/attrib/tmr_notification"
    before=$(done_on "$disk")
    verify_on "$disk" --bs=16k --iodepth=16 --size=16M --time_based --runtime=6 \
        --verify_backlog=64 &
    job=$!
    moves "$disk" "$before"
    sg_reset --device --no-escalate "/dev/$disk"
    within 10 grep 'task management by the kernel: LogicalUnitReset' /tmp/target.log
    before=$(done_on "$disk")
    moves "$disk" "$before"
    wait $job
    dmesg -c >/dev/null
}

# How many commands of processes that were killed were taken up.
taken_up() {
    sed -n 's/.*commands in progress.* again=\([0-9]*\).*/\1/p' /tmp/target.log |
        awk '{ sum += $1 } END { print sum + 0 }'
}

# The program is killed again and again in the middle of I/O on both devices, verified on the one whose
# blocks outlive it, and nobody notices: at least twice, and until commands were in progress.
restart_under_io() {
    local jobs=() before round
    no_faults
    LOG=/tmp/fio-1.log verify_on "$(disk 1)" --bs=256k --iodepth=32 --size=60M --time_based \
        --runtime=24 --verify_backlog=64 &
    jobs+=($!)
    fio --name=write --ioengine=libaio --direct=1 --rw=randwrite --bs=4k --iodepth=32 \
        --filename="/dev/$(disk 2)" --size=16M --time_based --runtime=24 --output=/tmp/fio-2.log &
    jobs+=($!)
    for round in 1 2 3 4 5 6 7 8; do
        before=$(done_on "$(disk 1)")
        moves "$(disk 1)" "$before" || return
        crash || return
        before=$(done_on "$(disk 1)")
        start || return
        moves "$(disk 1)" "$before" || return
        kill -0 "${jobs[@]}" || { echo "the I/O was over before restart $round"; return 1; }
        [ "$round" -lt 2 ] || [ "$(taken_up)" -eq 0 ] || break
    done
    wait "${jobs[0]}" && wait "${jobs[1]}" || {
        cat /tmp/fio-*.log
        echo "I/O failed over a restart"
        return 1
    }
    no_faults
    note "$(taken_up) commands were taken up after $round kills"
    [ "$(taken_up)" -gt 0 ] || { echo "no command was in the ring at any of $round kills"; return 1; }
}

# SIGTERM finishes what is in progress, and what comes meanwhile waits in the ring.
stop_under_io() {
    local disk before job
    disk=$(disk 1)
    verify_on "$disk" --bs=16k --iodepth=16 --size=16M --time_based --runtime=6 \
        --verify_backlog=64 &
    job=$!
    before=$(done_on "$disk")
    moves "$disk" "$before"
    terminate
    sleep 1
    before=$(done_on "$disk")
    start
    moves "$disk" "$before"
    wait $job
    no_faults
}

# What the kernel gave up while nobody was there is not done later: its initiator has gone on.
given_up() {
    local old=/tmp/old now=/tmp/now
    backstore late vscsi/$NAME/0
    echo 3 >"$CORE/late/attrib/cmd_time_out"
    lun_up 3 late
    settle "$(disk 3)"
    dd if="/dev/$(disk 1)" of=$old bs=4096 skip=16 count=1 iflag=direct
    head -c 4096 /dev/urandom >/tmp/new
    crash
    refuted sg_raw --send=4096 --infile=/tmp/new "/dev/$(disk 3)" 2a 00 00 00 00 80 00 00 08 00
    start
    within 10 served late
    settle "$(disk 3)"
    sed 's/\x1b\[[0-9;]*m//g' /tmp/target.log | grep 'user_0/late.* too_old=1'
    dd if="/dev/$(disk 1)" of=$now bs=4096 skip=16 count=1 iflag=direct
    cmp $old $now
    lun_down 3
    backstore_down late
    dmesg -c >/dev/null
}

# Another fabric of the kernel: its iSCSI target, with Linux's own initiator.
over_iscsi() {
    local name=$NAME-kernel group attribute disk
    local target=$TARGET/iscsi/$name
    group=$target/tpgt_1
    modprobe -a iscsi_target_mod iscsi_tcp
    ip link set lo up
    mkdir -p "$group/lun/lun_0"
    ln -s "$CORE/file" "$group/lun/lun_0/disk"
    for attribute in authentication=0 generate_node_acls=1 cache_dynamic_acls=1 \
        demo_mode_write_protect=0; do
        echo ${attribute#*=} >"$group/attrib/${attribute%=*}"
    done
    mkdir "$group/np/127.0.0.1:3260"
    echo 1 >"$group/enable"
    iscsid
    iscsiadm -m node -T "$name" -p 127.0.0.1:3260 -o new
    iscsiadm -m node -T "$name" -p 127.0.0.1:3260 --login
    within 20 iscsi_disk
    disk=$(iscsi_disk)
    settle "$disk"
    expect "names" "$(sg_vpd --page=sn "/dev/$disk")" "$(sg_vpd --page=sn "/dev/$(disk 1)")"
    verify_on "$disk" --bs=64k --iodepth=8 --size=8M
    iscsiadm -m node -T "$name" -p 127.0.0.1:3260 --logout
    echo 0 >"$group/enable"
    busybox rmdir "$group/np/127.0.0.1:3260"
    rm "$group/lun/lun_0/disk"
    busybox rmdir "$group/lun/lun_0" "$group" "$target"
    dmesg -c >/dev/null
}
iscsi_disk() {
    local entry
    for entry in /sys/class/iscsi_session/session*/device/target*/*:0/block/*; do
        [ -e "$entry" ] && [ "$(cat "/sys/block/${entry##*/}/size")" != 0 ] && {
            echo "${entry##*/}"
            return
        }
    done
    return 1
}

# Commands that are in progress are answered by the kernel, which makes the initiator repeat them.
ring_reset() {
    local disk before job round
    disk=$(disk 1)
    verify_on "$disk" --bs=16k --iodepth=16 --size=16M --time_based --runtime=8 \
        --verify_backlog=64 &
    job=$!
    for round in 1 2; do
        before=$(done_on "$disk")
        moves "$disk" "$before"
        echo 1 >"$CORE/file/action/block_dev"
        # What is in progress ends, and nothing new comes.
        sleep 0.5
        echo 1 >"$CORE/file/action/reset_ring"
        echo 0 >"$CORE/file/action/block_dev"
        before=$(done_on "$disk")
        moves "$disk" "$before" || { echo "nothing moves after reset $round"; return 1; }
    done
    wait $job
    dmesg -c >/dev/null
}

# A LUN that is taken away answers so, and is back when it is.
lun_comes_and_goes() {
    control lun rm 1
    refuted sg_turs "/dev/$(disk 2)"
    control lun add --ram 64M --lun 1 --serial RAM1
    settle "$(disk 2)"
    dmesg -c >/dev/null
}

# A ring and a data area of other sizes, after the device is made again.
made_again() {
    lun_down 1
    backstore_down file
    within 10 not_served file
    IMAGE_SIZE=$(stat_size $IMAGE) backstore file vscsi/$NAME/0 max_data_area_mb=4,cmd_ring_size_mb=1 ||
        IMAGE_SIZE=$(stat_size $IMAGE) backstore file vscsi/$NAME/0 max_data_area_mb=4
    lun_up 1 file
    # More is asked for at a time than fits.
    verify_on "$(disk 1)" --bs=256k --iodepth=32 --size=16M
    no_faults
}

# Nobody serves a device that is made while the program is away; then it is taken up.
made_while_away() {
    terminate
    lun_down 2
    backstore_down ram
    backstore ram vscsi/1
    start
    within 10 served ram
    lun_up 2 ram
    verify_on "$(disk 2)" --bs=4k --iodepth=8 --size=4M
}

down() {
    lun_down 1
    lun_down 2
    backstore_down file
    backstore_down ram
    within 10 not_served file
    within 10 not_served ram
    terminate
    no_faults
}

step modules_and_program up; passed || { report; return; }
step device_that_leads_nowhere leads_nowhere
step two_devices two_devices; passed || { report; return; }
step identity identity
step file_system file_system
step verify verify
step unmap_and_write_same unmap_and_write_same
step residuals residuals
step sense sense
step reservations reservations
step resize resize
step write_cache write_cache
step reset_device reset_device
step restart_under_io restart_under_io
step stop_under_io stop_under_io
step given_up_by_the_kernel given_up
step over_the_kernels_iscsi over_iscsi
step ring_reset ring_reset
step lun_comes_and_goes lun_comes_and_goes
step made_again made_again
step made_while_away made_while_away
step down down
report
