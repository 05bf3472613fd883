# A soft-RoCE device, and Linux's initiators over it. Sourced by /init after lib.sh; the job sets
# KIND, the target under test, and for two guests SELF and IP, their own address and the target's;
# SRP_INITIATOR, the port that may log in; SRP_LINE, the target's name.
# shellcheck shell=bash
# shellcheck disable=SC2153

NAME=iqn.2026-11.net.example:lab
TCP_PORT=3260
ISER_PORT=3260
SRP_PORT=5555
INITIATOR=iqn.2026-11.net.example
: "${IP:=10.9.0.1}" "${SELF:=$IP}"
SRP_HCA=/sys/class/infiniband_srp/srp-rxe0-1

# RDMA's connection manager does not serve lo.
device_up() {
    modprobe -a crc32_generic rdma_rxe rdma_ucm ib_uverbs
    if [ "$SELF" != "$IP" ] || [ -n "$SRP_ALLOW" ]; then
        modprobe virtio_net
        within 10 test -e /sys/class/net/eth0
        ip link set eth0 name dm0
    else
        modprobe dummy numdummies=0
        ip link add dm0 type dummy
    fi
    ip link set lo up
    ip addr add "$SELF/24" dev dm0
    ip link set dm0 mtu 4500 up
    rdma_link_up
}

rdma_link_up() { rdma link add rxe0 type rxe netdev dm0; }

# rdma_listens PORT: whether somebody here listens on it over RDMA.
rdma_listens() {
    rdma resource show cm_id | grep 'state LISTEN' | grep -Eq "src-addr [^ ]+:$1( |$)"
}

# ---- iSER and TCP, by open-iscsi: a session belongs to an interface record

iscsi_up() {
    modprobe -a iscsi_tcp
    # Requests of 1 MiB go as one command, where the target takes that much.
    case " $KIND $KINDS " in
        *" tgtd "*) modprobe ib_iser max_sectors=1024 ;;
        *) modprobe ib_iser max_sectors=2048 ;;
    esac
    sed -i 's/^node.session.initial_login_retry_max.*/node.session.initial_login_retry_max = 1/
        s/^node.conn\[0\].timeo.login_timeout.*/node.conn[0].timeo.login_timeout = 10/
        s/^node.conn\[0\].timeo.noop_out_interval.*/node.conn[0].timeo.noop_out_interval = 1/
        s/^node.conn\[0\].timeo.noop_out_timeout.*/node.conn[0].timeo.noop_out_timeout = 10/
        ' /etc/iscsi/iscsid.conf
    iscsid
    # iscsiadm's own record for iSER has no room for an initiator's name.
    interface over-iser iser "$INITIATOR:over-iser"
    interface over-tcp tcp "$INITIATOR:over-tcp"
}

# interface NAME TRANSPORT INITIATOR: an interface record.
interface() {
    iscsiadm -m iface -I "$1" -o new
    iscsiadm -m iface -I "$1" -o update -n iface.transport_name -v "$2"
    iscsiadm -m iface -I "$1" -o update -n iface.initiatorname -v "$3"
}

# port_of INTERFACE: where the target is for it.
port_of() {
    case $1 in over-tcp) echo "$TCP_PORT" ;; *) echo "$ISER_PORT" ;; esac
}

# node INTERFACE WORD…: iscsiadm on the target's record for an interface.
node() {
    local interface=$1
    shift
    iscsiadm -m node -T "$NAME" -p "$IP:$(port_of "$interface")" -I "$interface" "$@"
}

# session_of INTERFACE: its session's folder in /sys.
session_of() {
    local session
    for session in /sys/class/iscsi_session/session*; do
        [ -e "$session" ] || continue
        [ "$(cat "$session/ifacename")" = "$1" ] && [ "$(cat "$session/targetname")" = "$NAME" ] && {
            echo "$session"
            return
        }
    done
    return 1
}

# disk_in FOLDER: the disk of a session or host, as sdX, once it has a size.
disk_in() {
    local entry
    for entry in "$1"/device/target*/*:*/block/* "$1"/device/*/target*/*:*/block/*; do
        [ -e "$entry" ] && [ "$(cat "/sys/block/${entry##*/}/size")" != 0 ] && {
            echo "${entry##*/}"
            return
        }
    done
    return 1
}

# iscsi_disk INTERFACE: the disk of its session, as sdX.
iscsi_disk() {
    local session
    session=$(session_of "$1") && disk_in "$session"
}

no_session() { ! session_of "$1" >/dev/null; }

login() { node "$1" --login && within 20 iscsi_disk "$1"; }

logout() { node "$1" --logout && within 20 no_session "$1"; }

# new_node INTERFACE: a record in place of what discovery found.
new_node() {
    node "$1" -o delete || true
    node "$1" -o new
}

# ---- SRP, by ib_srp

# The initiator port identifier: an extension, 0 unless given, and the GID's last half.
srp_initiator() {
    [ -z "$SRP_INITIATOR" ] || { echo "$SRP_INITIATOR"; return; }
    local gid
    gid=$(tr -d : </sys/class/infiniband/rxe0/ports/1/gids/0)
    echo "0x${1:-0000000000000000}${gid#????????????????}"
}

# srp_options OPTION…: loads ib_srp anew with these.
srp_options() {
    srp_logout
    modprobe -r ib_srp || return
    modprobe ib_srp reconnect_delay=1 fast_io_fail_tmo=60 dev_loss_tmo=120 "$@"
}

# srp_login [OPTIONS]: logs in with these of add_target, each after a comma. Twice as much goes as
# one command as does otherwise.
srp_login() {
    # A target that was just let go is known for a moment longer.
    within 20 srp_add "$1"
    within 20 srp_disk
}
srp_add() { echo "$(srp_line),max_sect=2048$1" >$SRP_HCA/add_target; }

# The folder of the host that has logged in, in /sys.
srp_host() {
    local port
    for port in /sys/class/srp_remote_ports/port-*; do
        [ -e "$port" ] || continue
        port=${port##*/port-}
        echo "/sys/class/scsi_host/host${port%%:*}"
        return
    done
    return 1
}

srp_disk() {
    local host
    host=$(srp_host) && disk_in "$host"
}

no_srp_ports() { ! ls /sys/class/srp_remote_ports/port-* >/dev/null 2>&1; }

srp_logout() {
    local port
    for port in /sys/class/srp_remote_ports/port-*; do
        [ -e "$port" ] && echo 1 >"$port/delete"
    done
    within 30 no_srp_ports
}

# refused_login [OPTIONS]: as another initiator port; misled_login: to a target that is not there.
refused_login() { echo "$(srp_line),initiator_ext=0000000000000001$1" >$SRP_HCA/add_target; }

misled_login() {
    echo "$(srp_line | sed 's/ioc_guid=0x[0-9a-f]*/ioc_guid=0x1122334455667788/')$1" \
        >$SRP_HCA/add_target
}

# ---- both

# verify_sizes sdX: fio with checksums at depth 16, of 4 KiB, 128 KiB and 1 MiB.
verify_sizes() {
    verify_on "$1" --bs=4k --iodepth=16 --size=4M
    verify_on "$1" --bs=128k --iodepth=16 --size=32M
    verify_on "$1" --bs=1M --iodepth=16 --size=32M
}

# done_on sdX: how many requests the disk has finished.
done_on() { awk '{ print $1 + $5 }' "/sys/block/$1/stat"; }

moved_on() { [ "$(done_on "$1")" -gt $(($2 + 20)) ]; }

# moves sdX COUNT SECONDS: waits until the disk has finished more than COUNT requests.
moves() { within "${3:-30}" moved_on "$1" "$2"; }

# restart_under_io sdX: the daemon is killed in the middle of verified I/O and comes back, twice;
# nothing is lost.
restart_under_io() {
    local disk=$1 round before identity job
    if [ "$KIND" = lio ]; then
        echo "the kernel's target cannot be killed"
        return 77
    fi
    identity=$(sg_vpd --page=di "/dev/$disk")
    verify_on "$disk" --bs=4k --iodepth=16 --size=16M --time_based --runtime=20 \
        --verify_backlog=64 &
    job=$!
    for round in 1 2; do
        before=$(done_on "$disk")
        moves "$disk" "$before"
        target_kill || return
        sleep 1
        before=$(done_on "$disk")
        target_start
        moves "$disk" "$before" 40
        kill -0 $job || { echo "the I/O was over before restart $round"; return 1; }
    done
    wait $job || { echo "I/O failed over a restart"; return 1; }
    expect "identity" "$(sg_vpd --page=di "/dev/$disk")" "$identity"
}

file_system_checked() {
    file_system_on "$1"
    e2fsck -f -n "/dev/$1"
}

# report: what the target and the kernel said, for the console, which is kept when a step failed.
report() {
    echo "=== log of the target"
    cat /tmp/target*.log
    echo "=== log of the kernel"
    dmesg | tail -n 60
}
