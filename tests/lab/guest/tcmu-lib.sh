# Backstores in user space of the kernel's target, and the loopback fabric in front of them. Sourced
# by /init after lib.sh.
# shellcheck shell=bash

NAME=iqn.2026-11.net.example:lab
TARGET=/sys/kernel/config/target
CORE=$TARGET/core/user_0
LOOP=$TARGET/loopback
IMAGE=/dev/shm/disk
: "${IMAGE_SIZE:=$((128 << 20))}"

modules_up() {
    modprobe -a configfs target_core_user tcm_loop
    grep -q ' /sys/kernel/config ' /proc/mounts || mount -t configfs none /sys/kernel/config
    mkdir -p /etc/target /var/target/pr /var/target/alua
}

# serve WORD…: starts the program with these arguments.
serve() {
    /x/vscsi --control /run/vscsi.sock serve --name $NAME --tcmu --state-dir /dev/shm/state "$@" \
        >>/tmp/target.log 2>&1 </dev/null 3>&- &
    echo $! >/run/target.pid
    within 20 control lun list >/tmp/luns
}

control() { /x/vscsi --control /run/vscsi.sock "$@"; }

# gone PID: nobody is left of the process.
gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }

crash() {
    local pid
    pid=$(cat /run/target.pid)
    kill -9 "$pid"
    within 20 gone "$pid"
}

terminate() {
    local pid
    pid=$(cat /run/target.pid)
    kill -TERM "$pid"
    within 20 gone "$pid"
}

# backstore NAME CONFIG [OPTIONS]: makes one of IMAGE_SIZE bytes; OPTIONS of `control`, each after a
# comma, come first.
backstore() {
    mkdir -p "$CORE/$1"
    echo -n "dev_config=$2,dev_size=$IMAGE_SIZE${3:+,$3}" >"$CORE/$1/control"
    echo 1 >"$CORE/$1/enable"
}

# nexus_up NUMBER: a loopback host with one target port.
nexus_up() {
    local port=$LOOP/naa.600140500000000$1/tpgt_1
    mkdir -p "$port"
    echo "naa.600140500000001$1" >"$port/nexus"
}

# lun_up NUMBER BACKSTORE: shows it by the loopback host as its LUN 0; the disk is $(disk NUMBER).
lun_up() {
    local lun=$LOOP/naa.600140500000000$1/tpgt_1/lun/lun_0
    nexus_up "$1"
    mkdir -p "$lun"
    ln -s "$CORE/$2" "$lun/disk"
    within 20 disk "$1"
}

lun_down() {
    local port=$LOOP/naa.600140500000000$1/tpgt_1
    rm "$port/lun/lun_0/disk"
    busybox rmdir "$port/lun/lun_0" "$port" "$LOOP/naa.600140500000000$1"
    within 20 no_disk "$1"
}

backstore_down() { busybox rmdir "$CORE/$1"; }

# disk NUMBER: the disk of a loopback host, as sdX, once it has a size.
disk() {
    local address entry
    address=$(cat "$LOOP/naa.600140500000000$1/tpgt_1/address") || return
    for entry in "/sys/bus/scsi/devices/$address:0/block"/*; do
        [ -e "$entry" ] && [ "$(cat "/sys/block/${entry##*/}/size")" != 0 ] && {
            echo "${entry##*/}"
            return
        }
    done
    return 1
}

no_disk() { ! disk "$1" >/dev/null 2>&1; }

# uio_of BACKSTORE: the number of its UIO device.
uio_of() {
    local name
    for name in /sys/class/uio/uio*/name; do
        case $(cat "$name") in "tcm-user/0/$1/"*) name=${name%/name} && echo "${name##*uio}" && return ;; esac
    done
    return 1
}

# served BACKSTORE: whether the program has it.
served() { control session list | grep -q "^user_0/$1 "; }
not_served() { ! served "$1"; }

# settle sdX: takes the unit attentions that wait for this nexus.
settle() {
    local _
    for _ in 1 2 3 4; do
        sg_turs "/dev/$1" && return
    done
    echo "no end of unit attentions on $1"
    return 1
}

# done_on sdX: how many requests the disk has finished.
done_on() { awk '{ print $1 + $5 }' "/sys/block/$1/stat"; }

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

# no_faults [EXCEPT]: what the kernel logged since the last look has no fault in it.
no_faults() {
    local faults
    faults=$(dmesg -c | grep -iE 'error|sense key|blocked for|broken|stall|fail|abort|offline|warn' |
        grep -viE "calibrat|tsc|RAS:|${1:-calibrat}" | head -n 3)
    [ -z "$faults" ] || { echo "the kernel says: $faults"; return 1; }
}

# report: what the target and the kernel said, for the console, which is kept when a step failed.
report() {
    echo "=== log of the target"
    cat /tmp/target*.log
    echo "=== log of the kernel"
    dmesg | tail -n 60
}
