# What the steps over vhost-user-scsi are made of. Sourced by /init after lib.sh.
# shellcheck shell=bash

FIRST_SLOT=16

# host_of CONTROLLER: the folder of that controller's SCSI host.
host_of() {
    local slot entry
    slot=$(printf '%02x' $((FIRST_SLOT + $1)))
    for entry in "/sys/bus/pci/devices/0000:00:$slot.0"/virtio*/host*; do
        [ -e "$entry" ] && { echo "$entry"; return; }
    done
    return 1
}

# disk_at CONTROLLER LUN: the disk there, as sdX, once it has a size. LUN is as Linux counts.
disk_at() {
    local host entry
    host=$(host_of "$1") || return 1
    for entry in "$host"/target*:0:0/*:0:0:"$2"/block/*; do
        [ -e "$entry" ] && [ "$(cat "/sys/block/${entry##*/}/size")" != 0 ] && {
            echo "${entry##*/}"
            return
        }
    done
    return 1
}

no_disk_at() {
    local entry
    for entry in "$(host_of "$1")"/target*:0:0/*:0:0:"$2"; do
        [ ! -e "$entry" ] || return 1
    done
}

# negotiated CONTROLLER BIT…: checks which features the guest's driver and the device agreed on;
# ~BIT is one that they must not.
negotiated() {
    local host features bit
    host=$(host_of "$1")
    shift
    features=$(cat "${host%/host*}/features")
    for bit; do
        case $bit in
            \~*) expect "feature ${bit#\~}" "${features:${bit#\~}:1}" 0 || return ;;
            *) expect "feature $bit" "${features:$bit:1}" 1 || return ;;
        esac
    done
}

# settle sdX: takes the unit attentions that wait for this nexus.
settle() {
    local _
    for _ in 1 2 3 4; do
        sg_turs "/dev/$1" && return
    done
    echo "no end of unit attentions on $1"
    return 1
}

# no_faults [EXCEPT]: what the kernel logged since the last look has no fault in it. Unit attentions
# ("device reset occurred") and resets that were asked for ("device reset") are none.
no_faults() {
    local faults
    faults=$(dmesg -c | grep -iE 'error|sense key|blocked for|broken|stall|fail|abort|offline' |
        grep -viE "calibrat|tsc|RAS:|${1:-calibrat}" | head -n 3)
    [ -z "$faults" ] || { echo "the kernel says: $faults"; return 1; }
}

# done_on sdX: how many reads and writes have ended there.
done_on() {
    local reads writes _
    read -r reads _ _ _ writes _ <"/sys/block/$1/stat"
    echo $((reads + writes))
}

# moves sdX COUNT: waits without a pause until more than COUNT have ended.
moves() {
    local deadline=$((SECONDS + 30)) reads writes _
    while [ $SECONDS -lt $deadline ]; do
        read -r reads _ _ _ writes _ <"/sys/block/$1/stat"
        [ $((reads + writes)) -le "$2" ] || return 0
    done
    echo "no I/O ended on $1 within 30 s"
    return 1
}

# longest FILE: the longest time that an I/O took, in ms, from fio's JSON output.
longest() {
    awk '/"clat_ns"/ { inside = 1 }
         inside && /"max"/ { gsub(/[^0-9]/, ""); if ($0 > most + 0) most = $0; inside = 0 }
         END { printf "%d\n", most / 1000000 }' "$1"
}
