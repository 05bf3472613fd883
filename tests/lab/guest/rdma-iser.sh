# ib_iser through open-iscsi, next to a TCP session on the same LUN. Sourced after rdma-targets.sh.
# shellcheck shell=bash
# shellcheck disable=SC2153

discovery() {
    iscsiadm -m discovery -t sendtargets -p "$IP:$ISER_PORT" -I over-iser | tee /tmp/found
    grep -F "$NAME" /tmp/found | grep -F "$IP:$ISER_PORT,"
}

# With the record that discovery made.
plain_login() {
    login over-iser
    expect "session state" "$(cat "$(session_of over-iser)/state")" LOGGED_IN
    iscsiadm -m session | grep '^iser:'
}

inquiry() { identity_on "$(iscsi_disk over-iser)"; }
verify() { verify_sizes "$(iscsi_disk over-iser)"; }
file_system() { file_system_checked "$(iscsi_disk over-iser)"; }

not_with_tgtd() {
    [ "$KIND" != tgtd ] && return
    echo "its targets are either for TCP or for iSER"
    return 77
}

# What one writes the other reads, at once and in both directions.
side_by_side() {
    not_with_tgtd
    new_node over-tcp
    login over-tcp
    local iser tcp
    iser=$(iscsi_disk over-iser)
    tcp=$(iscsi_disk over-tcp)
    expect "identity over TCP" "$(sg_vpd --page=di "/dev/$tcp")" "$(sg_vpd --page=di "/dev/$iser")"
    dd if=/dev/urandom of=/tmp/block bs=64k count=16
    copy_between "$iser" "$tcp"
    dd if=/dev/urandom of=/tmp/block bs=64k count=16
    copy_between "$tcp" "$iser"
    LOG=/tmp/fio-tcp.log verify_on "$tcp" --bs=16k --iodepth=16 --offset=64M --size=8M &
    local job=$!
    verify_on "$iser" --bs=16k --iodepth=16 --size=8M
    wait $job
}

copy_between() {
    dd if=/tmp/block of="/dev/$1" bs=64k oflag=direct
    dd if="/dev/$2" bs=64k count=16 iflag=direct | cmp - /tmp/block
}

# A reservation made over one transport binds the other one's initiator, and preemption takes it.
reservations() {
    not_with_tgtd
    local iser tcp
    iser=/dev/$(iscsi_disk over-iser)
    tcp=/dev/$(iscsi_disk over-tcp)
    sg_turs "$iser" || sg_turs "$iser"
    sg_turs "$tcp" || sg_turs "$tcp"
    sg_persist --out --register --param-sark=0x15e4 "$iser"
    sg_persist --out --register --param-sark=0x7c9 "$tcp"
    sg_persist --in --read-keys "$tcp" | tee /tmp/keys
    grep -i 0x15e4 /tmp/keys
    grep -i 0x7c9 /tmp/keys
    # Write exclusive: the other one reads and does not write.
    sg_persist --out --reserve --param-rk=0x15e4 --prout-type=1 "$iser"
    sg_persist --in --read-reservation "$tcp" | grep -i 'scope: LU_SCOPE,  type: Write Exclusive'
    dd if="$tcp" of=/dev/null bs=4k count=1 iflag=direct
    refuted dd if=/dev/zero of="$tcp" bs=4k count=1 oflag=direct
    dd if=/dev/zero of="$iser" bs=4k count=1 oflag=direct
    sg_persist --out --preempt --param-rk=0x7c9 --param-sark=0x15e4 --prout-type=1 "$tcp"
    dd if=/dev/zero of="$tcp" bs=4k count=1 oflag=direct
    sg_turs "$iser" || sg_requests "$iser"
    refuted dd if=/dev/zero of="$iser" bs=4k count=1 oflag=direct
    sg_persist --out --clear --param-rk=0x7c9 "$tcp"
    sg_turs "$iser" || sg_turs "$iser"
    dd if=/dev/zero of="$iser" bs=4k count=1 oflag=direct
    logout over-tcp
}

# Under I/O, of the unit and then the target: every command ends well.
resets() {
    local disk job
    disk=$(iscsi_disk over-iser)
    verify_on "$disk" --bs=16k --iodepth=16 --size=16M --time_based --runtime=8 \
        --verify_backlog=64 &
    job=$!
    sleep 2
    sg_reset --device --no-escalate "/dev/$disk"
    sleep 1
    # Not everybody may reset a target of the kernel's.
    [ "$KIND" = lio ] || sg_reset --target --no-escalate "/dev/$disk"
    wait $job
}

restarts() { restart_under_io "$(iscsi_disk over-iser)"; }

log_out() {
    logout over-iser
    expect "sessions" "$(iscsiadm -m session 2>&1 | grep -c "$NAME")" 0
}

chap() {
    local NAME=$CHAP_NAME ISER_PORT=$CHAP_PORT
    new_node over-iser
    node over-iser -o update -n node.session.auth.authmethod -v CHAP
    node over-iser -o update -n node.session.auth.username -v "$USER"
    node over-iser -o update -n node.session.auth.password -v "$1"
    node over-iser -o update -n node.session.auth.username_in -v "${2:-}"
    node over-iser -o update -n node.session.auth.password_in -v "${3:-}"
    login over-iser || return
    verify_on "$(iscsi_disk over-iser)" --bs=4k --iodepth=16 --size=2M
    logout over-iser
}

# refused CODE COMMAND…: see iscsi.sh.
refused() {
    local expected=$1 code=0
    shift
    "$@" || code=$?
    expect "exit code" "$code" "$expected"
}

chap_target() { target_chap; }
chap_one_way() { chap "$SECRET"; }
chap_mutual() { chap "$SECRET" "$MUTUAL_USER" "$MUTUAL_SECRET"; }
chap_wrong_secret() { refused 24 chap wrong-secret-12; }
chap_wrong_mutual_secret() { refused 19 chap "$SECRET" "$MUTUAL_USER" wrong-secret-12; }
chap_missing() {
    local NAME=$CHAP_NAME ISER_PORT=$CHAP_PORT
    new_node over-iser
    node over-iser -o update -n node.session.auth.authmethod -v None
    refused 24 node over-iser --login
}

step device device_up; passed || { report; return; }
step target target_start; passed || { report; return; }
step initiator iscsi_up; passed || { report; return; }
step discovery_over_iser discovery
step login plain_login
step sg_inq_and_vpd inquiry
step fio_verify_4k_128k_1m verify
step ext4 file_system
step tcp_and_iser_side_by_side side_by_side
step reservations_across_tcp_and_iser reservations
step resets_under_io resets
step restart_under_io restarts
step logout log_out
step chap_target chap_target
step chap_one_way chap_one_way
step chap_mutual chap_mutual
step chap_wrong_secret chap_wrong_secret
step chap_wrong_mutual_secret chap_wrong_mutual_secret
step chap_missing chap_missing
report
