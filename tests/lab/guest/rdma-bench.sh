# fio on targets side by side, in turn. Sourced after rdma-targets.sh. The job sets KINDS, the targets;
# ROUNDS; SECONDS_EACH. The host keeps the figures: `HOST result FABRIC ROW KIND NUMBER`.
# shellcheck shell=bash
# shellcheck disable=SC2153

# What fio does: name, how, block size.
ROWS="4k-read:randread:4k 4k-write:randwrite:4k 128k-read:read:128k 128k-write:write:128k"

# Each target has ports and a name of its own: `as KIND COMMAND…`.
as() {
    local kind=$1 NAME=$NAME-$1 KIND=$1 TCP_PORT ISER_PORT SRP_PORT
    shift
    case $kind in
        tgtd) TCP_PORT=3262 ISER_PORT=3260 SRP_PORT=none ;;
        lio) TCP_PORT=3263 ISER_PORT=3264 SRP_PORT=5556 ;;
        vscsi) TCP_PORT=3265 ISER_PORT=3266 SRP_PORT=5555 ;;
    esac
    "$@"
}

targets() {
    local kind
    for kind in $KINDS; do
        as "$kind" target_start
    done
}

# Every disk is written once before anything is read.
fill() { dd if=/dev/zero of="/dev/$1" bs=1M oflag=direct || [ "$(done_on "$1")" -gt 100 ]; }

iser_login() {
    local kind
    iscsi_up
    for kind in $KINDS; do
        as "$kind" new_node over-iser
        as "$kind" login over-iser
        as "$kind" iscsi_disk over-iser >"/tmp/iser-$kind"
        fill "$(cat "/tmp/iser-$kind")"
    done
}

# The disk of the SRP host that is logged in to this target.
srp_disk_of() {
    local line host
    line=$(srp_line)
    for host in /sys/class/scsi_host/host*; do
        [ -e "$host/id_ext" ] || continue
        case $line in "id_ext=$(cat "$host/id_ext"),"*) disk_in "$host" && return ;; esac
    done
    return 1
}

srp_logins() {
    local kind
    modprobe ib_srp
    for kind in $KINDS; do
        [ "$kind" != tgtd ] || continue
        as "$kind" srp_login ,max_sect=2048
        within 20 as "$kind" srp_disk_of
        as "$kind" srp_disk_of >"/tmp/srp-$kind"
        fill "$(cat "/tmp/srp-$kind")"
    done
}

# measured sdX HOW SIZE: commands a second.
measured() {
    fio --name=row --ioengine=libaio --direct=1 --filename="/dev/$1" --rw="$2" --bs="$3" \
        --iodepth=16 --size=64M --time_based --ramp_time=1 --runtime="$SECONDS_EACH" \
        --output-format=terse --terse-version=3 | awk -F';' '/^3;/ { print $8 + $49 }'
}

rounds() {
    local round fabric row kind name how size number
    for round in $(seq "$ROUNDS"); do
        for fabric in iser srp; do
            for row in $ROWS; do
                IFS=: read -r name how size <<<"$row"
                for kind in $KINDS; do
                    [ -e "/tmp/$fabric-$kind" ] || continue
                    number=$(measured "$(cat "/tmp/$fabric-$kind")" "$how" "$size")
                    host result "$fabric" "$name" "$kind" "${number:-0}"
                done
            done
        done
    done
}

step device device_up; passed || { report; return; }
step targets targets; passed || { report; return; }
step iser_login iser_login; passed || { report; return; }
step srp_login srp_logins; passed || { report; return; }
step rounds rounds
report
