# What the guest does with the target over iSCSI. Sourced by /init after /job, which sets:
#   PORTAL NAME             the target under test; its first LUN is on a sparse image
#   CHAP_PORTAL USER SECRET MUTUAL_USER MUTUAL_SECRET    a second target that asks for CHAP
#   GROWN                   the size in bytes that the host grows the LUN to
#   NO_QEMU_DISKS           empty when QEMU offers LUNs as SCSI ids 0 (scsi-hd) and 1 (scsi-block),
#                           else the reason why not
# shellcheck shell=bash
# shellcheck disable=SC2153,SC2154

# The disk of the session that is logged in, as sdX.
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

no_disk() { ! disk >/dev/null; }

session_attribute() { cat /sys/class/iscsi_session/session*/"$1"; }

connection_attribute() { cat /sys/class/iscsi_connection/connection*/"$1"; }

node() { iscsiadm -m node -T "$NAME" -p "$PORTAL" "$@"; }

login() { node --login && within 20 disk; }

logout() { node --logout && within 20 no_disk; }

# verify FIO_OPTION…: a fio job on the session's disk that writes with checksums and reads back.
verify() {
    local device
    device=$(disk) || { echo "no disk"; return 1; }
    verify_on "$device" "$@"
}

discovery() {
    iscsiadm -m discovery -t sendtargets -p "$PORTAL" | tee /tmp/found
    grep -F "$NAME" /tmp/found | grep -F "$PORTAL,"
}

plain_login() {
    login
    expect "session state" "$(session_attribute state)" LOGGED_IN
}

inquiry() { identity_on "$(disk)"; }
opcodes() { opcodes_on "$(disk)"; }
persistent_reservation() { reserve_on "/dev/$(disk)"; }

file_system() { file_system_on "$(disk)"; }

verify_at_depth_32() { verify --bs=4k --iodepth=32 --size=32M; }

verify_large_blocks() { verify --bs=512k --iodepth=4 --size=32M; }

trim_makes_holes() { trim_on "$(disk)"; }

# digests HEADER DATA: a session with these digests carries verified data.
digests() {
    no_disk || logout
    node -o update -n 'node.conn[0].iscsi.HeaderDigest' -v "$1"
    node -o update -n 'node.conn[0].iscsi.DataDigest' -v "$2"
    login
    expect "header digest" "$(connection_attribute header_digest)" "$3"
    expect "data digest" "$(connection_attribute data_digest)" "$4"
    verify --bs=16k --iodepth=8 --size=8M
}

header_digest() { digests CRC32C None 1 0; }
data_digest() { digests None CRC32C 0 1; }
both_digests() { digests CRC32C CRC32C 1 1; }
no_digests() { digests None None 0 0; }

online_grow() {
    local disk
    disk=$(disk)
    host grow || return
    iscsiadm -m session --rescan
    within 10 size_is "$disk" "$GROWN"
    # The new end is real: the last block takes data and gives it back.
    dd if=/dev/urandom of=/tmp/block bs=4096 count=1
    dd if=/tmp/block of="/dev/$disk" bs=4096 seek=$((GROWN / 4096 - 1)) oflag=direct
    dd if="/dev/$disk" bs=4096 skip=$((GROWN / 4096 - 1)) iflag=direct count=1 | cmp - /tmp/block
}

# restart HOW: the daemon goes away in the middle of verified I/O and comes back; nothing is lost.
restart() {
    local code=0 identity
    identity=$(sg_vpd --page=di "/dev/$(disk)")
    verify --bs=4k --iodepth=32 --size=64M --rate_iops=800 &
    local job=$!
    sleep 2
    host "$1" || code=$?
    kill -0 $job || { echo "the I/O was over before the restart"; return 1; }
    wait $job || { echo "I/O failed over the restart"; return 1; }
    expect "identity" "$(sg_vpd --page=di "/dev/$(disk)")" "$identity"
    return $code
}

restart_after_crash() { restart crash; }
restart_on_sigterm() { restart terminate; }

chap() {
    local PORTAL=$CHAP_PORTAL
    node -o new
    node -o update -n node.session.auth.authmethod -v CHAP
    node -o update -n node.session.auth.username -v "$USER"
    node -o update -n node.session.auth.password -v "$1"
    node -o update -n node.session.auth.username_in -v "${2:-}"
    node -o update -n node.session.auth.password_in -v "${3:-}"
    node --login || return
    within 20 disk
    verify --bs=4k --iodepth=8 --size=4M
    logout
}

# refused CODE COMMAND…: iscsiadm exits 24 when the target says that authentication failed, and 19
# when the initiator finds that itself; anything else has another reason.
refused() {
    local expected=$1 code=0
    shift
    "$@" || code=$?
    expect "exit code" "$code" "$expected"
}

chap_one_way() { chap "$SECRET"; }
chap_mutual() { chap "$SECRET" "$MUTUAL_USER" "$MUTUAL_SECRET"; }
chap_wrong_secret() { refused 24 chap wrong-secret-12; }
chap_wrong_mutual_secret() { refused 19 chap "$SECRET" "$MUTUAL_USER" wrong-secret-12; }
chap_missing() {
    local PORTAL=$CHAP_PORTAL
    node -o update -n node.session.auth.authmethod -v None
    node -o update -n node.session.auth.username_in -v ""
    node -o update -n node.session.auth.password_in -v ""
    node -o update -n node.session.auth.username -v ""
    node -o update -n node.session.auth.password -v ""
    refused 24 node --login
}

log_out() {
    logout
    expect "sessions" "$(iscsiadm -m session 2>&1 | grep -c "$NAME")" 0
}

# The disk that QEMU offers at a SCSI id of its virtio host, as sdX.
virtio_disk() {
    local entry
    for entry in /sys/bus/virtio/drivers/virtio_scsi/virtio*/host*/target*:0:"$1"/*/block/*; do
        [ -e "$entry" ] && { echo "${entry##*/}"; return; }
    done
    return 1
}

# QEMU reads and writes the LUN itself and shows a disk of its own.
qemu_scsi_hd() {
    [ -z "$NO_QEMU_DISKS" ] || { echo "$NO_QEMU_DISKS"; return 77; }
    within 10 virtio_disk 0
    verify_on "$(virtio_disk 0)" --bs=4k --iodepth=32 --size=16M
}

# QEMU passes the guest's commands to the LUN as they are.
qemu_scsi_block() {
    [ -z "$NO_QEMU_DISKS" ] || { echo "$NO_QEMU_DISKS"; return 77; }
    within 10 virtio_disk 1
    sg_inq "/dev/$(virtio_disk 1)" | tee /tmp/inquiry
    refuted grep QEMU /tmp/inquiry
    verify_on "$(virtio_disk 1)" --bs=4k --iodepth=32 --size=16M
    reserve_on "/dev/$(virtio_disk 1)"
}

modprobe -a virtio_net iscsi_tcp
ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
# The target listens on the host's loopback and says so in discovery. QEMU's user network connects
# to whatever address it sees, so the guest only has to let 127.0.0.1 out: no loopback of its own.
echo 1 >/proc/sys/net/ipv4/conf/all/route_localnet
ip route add 127.0.0.1/32 via 10.0.2.2 dev eth0 src 10.0.2.15

iscsid
step discovery discovery
step login plain_login
step sg_inq_and_vpd inquiry
step sg_opcodes opcodes
step sg_persist persistent_reservation
step ext4 file_system
step fio_verify_depth_32 verify_at_depth_32
step fio_verify_512k verify_large_blocks
step fstrim_makes_holes trim_makes_holes
step header_digest header_digest
step data_digest data_digest
step both_digests both_digests
step no_digests no_digests
step online_grow online_grow
step restart_after_crash restart_after_crash
step restart_on_sigterm restart_on_sigterm
step logout log_out
step chap_one_way chap_one_way
step chap_mutual chap_mutual
step chap_wrong_secret chap_wrong_secret
step chap_wrong_mutual_secret chap_wrong_mutual_secret
step chap_missing chap_missing
step qemu_scsi_hd qemu_scsi_hd
step qemu_scsi_block qemu_scsi_block
