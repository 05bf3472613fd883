# What all guests' steps are made of. Sourced by /init before the steps.
# shellcheck shell=bash

# step NAME FUNCTION: runs FUNCTION in a subshell and tells the host how it ended. Exit code 77 is a
# skip; the last line of output is the reason of a skip or failure. It returns the exit code.
step() {
    local name=$1 code began=$SECONDS
    echo "=== $name"
    rm -f /tmp/note
    (set -e; "$2") >/tmp/step.log 2>&1 </dev/null
    code=$?
    cat /tmp/step.log
    case $code in
        0) echo "STEP $name ok $((SECONDS - began)) s$(cat /tmp/note 2>/dev/null)" >&3 ;;
        77) echo "STEP $name SKIP $(tail -n 1 /tmp/step.log)" >&3 ;;
        *) echo "STEP $name FAIL exit $code: $(tail -n 4 /tmp/step.log | tr '\n' '|')" >&3 ;;
    esac
    STEP_CODE=$code
    return $code
}

# Whether the last step ended well. `step … || …` does not do: bash would ignore `set -e` in the step.
passed() { [ "$STEP_CODE" -eq 0 ]; }

# note TEXT: what the host prints with the step when it ends well, a measured figure for one.
note() { echo -n ", $*" >>/tmp/note; }

# host WORD…: asks the host to do something and prints what it says. The host answers one line:
# "ok TEXT", "skip REASON" or "fail REASON".
host() {
    local verdict text
    echo "HOST $*" >&3
    read -r verdict text <&3
    echo "$text"
    case $verdict in
        ok) return 0 ;;
        skip) return 77 ;;
        *) return 1 ;;
    esac
}

# within SECONDS COMMAND…: repeats COMMAND until it succeeds.
within() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [ $SECONDS -lt $deadline ] || { echo "not within time: $*"; return 1; }
        sleep 0.2
    done
}

expect() {
    [ "$2" = "$3" ] || { echo "$1 is '$2', not '$3'"; return 1; }
}

refuted() { ! "$@" || return 1; }

# verify_on sdX FIO_OPTION…: a fio job that writes with checksums and reads back. What fio says is
# in $LOG.
verify_on() {
    local device=$1 code=0 log=${LOG:-/tmp/fio.log}
    shift
    fio --name=verify --ioengine=libaio --direct=1 --rw=randwrite --verify=crc32c --do_verify=1 \
        --verify_fatal=1 --exitall_on_error --output="$log" --filename="/dev/$device" \
        "$@" || code=$?
    [ $code -eq 0 ] || { cat "$log"; echo "fio: exit $code"; return 1; }
}

size_is() { [ "$(cat "/sys/block/$1/size")" -eq $(($2 / 512)) ]; }

identity_on() {
    sg_inq "/dev/$1" | tee /tmp/inquiry
    grep -E 'Vendor identification: *[^ ]' /tmp/inquiry
    grep -E 'Unit serial number: *[^ ]' /tmp/inquiry
    local page
    for page in sv sn di bl bdc lbpv; do
        sg_vpd --page=$page "/dev/$1"
    done
    # Identification must be a world-wide name, or multipath merges or loses disks.
    sg_vpd --page=di "/dev/$1" | grep -E 'NAA|EUI-64'
    sg_readcap --16 "/dev/$1" | grep -E 'lbpme=1'
}

opcodes_on() {
    sg_opcodes "/dev/$1" | tee /tmp/opcodes
    grep -i 'Write(16)' /tmp/opcodes
    grep -i 'Unmap' /tmp/opcodes
}

reserve_on() {
    local disk=$1
    sg_persist --out --register --param-sark=0xabc123 "$disk"
    sg_persist --in --read-keys "$disk" | grep -i 0xabc123
    sg_persist --out --reserve --param-rk=0xabc123 --prout-type=5 "$disk"
    sg_persist --in --read-reservation "$disk" | tee /tmp/held
    grep -i 'Write Exclusive, registrants only' /tmp/held
    sg_persist --out --release --param-rk=0xabc123 --prout-type=5 "$disk"
    sg_persist --in --read-reservation "$disk" | grep -i 'NO reservation'
    sg_persist --out --clear --param-rk=0xabc123 "$disk"
    sg_persist --in --read-keys "$disk" | grep -i 'NO registered'
}

# A file system on sdX keeps what was written over an unmount.
file_system_on() {
    mkfs.ext4 -q -F -E nodiscard "/dev/$1"
    mount "/dev/$1" /mnt
    dd if=/dev/urandom of=/mnt/random bs=1M count=8
    local before
    before=$(md5sum </mnt/random)
    umount /mnt
    echo 3 >/proc/sys/vm/drop_caches
    mount "/dev/$1" /mnt
    expect "checksum" "$(md5sum </mnt/random)" "$before"
    umount /mnt
}

# What fstrim gives up becomes a hole in the image, which the host looks at.
trim_on() {
    local full trimmed
    mkfs.ext4 -q -F -E nodiscard "/dev/$1"
    mount "/dev/$1" /mnt
    dd if=/dev/urandom of=/mnt/data bs=1M count=48 conv=fsync
    full=$(host used-bytes)
    rm /mnt/data
    sync
    fstrim -v /mnt
    umount /mnt
    trimmed=$(host used-bytes)
    echo "the image used $full bytes, after fstrim $trimmed"
    [ $((full - trimmed)) -ge $((40 << 20)) ]
}
