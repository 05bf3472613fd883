# ib_srp in every way it asks for memory. Sourced after rdma-targets.sh.
# shellcheck shell=bash
# shellcheck disable=SC2153

# attribute NAME: of the host that has logged in.
attribute() { cat "$(srp_host)/$1"; }

# As it comes: memory is registered, small writes are sent along with the command.
default_login() {
    srp_options ch_count=1
    srp_login
    expect "channels" "$(attribute ch_count)" 1
    identity "$(srp_disk)"
    verify_sizes "$(srp_disk)"
}

# identity sdX: a serial number, and a name for the world.
identity() {
    sg_inq "/dev/$1" | grep -E 'Unit serial number: *[^ ]'
    sg_vpd --page=di "/dev/$1" | grep -E 'NAA|EUI-64'
}

two_channels() {
    srp_options ch_count=2
    srp_login
    expect "channels" "$(attribute ch_count)" 2
    verify_sizes "$(srp_disk)"
}

# A descriptor for each page, all in the command.
indirect_tables() {
    srp_options ch_count=1 never_register=Y cmd_sg_entries=64
    srp_login
    expect "descriptors in a command" "$(attribute cmd_sg_entries)" 64
    verify_sizes "$(srp_disk)"
}

# A descriptor for each page, which the target has to fetch.
external_tables() {
    if [ "$KIND" = lio ]; then
        echo "the kernel's target does not fetch tables"
        return 77
    fi
    srp_options ch_count=1 never_register=Y cmd_sg_entries=4 indirect_sg_entries=256 allow_ext_sg=Y
    srp_login
    expect "external tables" "$(attribute allow_ext_sg)" true
    expect "descriptors" "$(attribute sg_tablesize)" 256
    verify_sizes "$(srp_disk)"
}

file_system() {
    srp_options ch_count=2
    srp_login
    file_system_checked "$(srp_disk)"
}

# in_io SECONDS COMMAND…: runs the command in the middle of verified I/O, all of which ends well.
in_io() {
    local seconds=$1 disk before job
    shift
    disk=$(srp_disk)
    before=$(done_on "$disk")
    verify_on "$disk" --bs=16k --iodepth=16 --size=16M --time_based --runtime="$seconds" \
        --verify_backlog=64 &
    job=$!
    moves "$disk" "$before"
    "$@"
    kill -0 $job || { echo "the I/O was over before: $*"; return 1; }
    wait $job
}

# Commands that the reset ended have no response: the initiator sends them again when their time is
# over.
unit_reset() {
    local timeout
    timeout=/sys/block/$(srp_disk)/device/timeout
    echo 3 >"$timeout"
    in_io 8 sg_reset --device --no-escalate "/dev/$(srp_disk)"
    echo 30 >"$timeout"
}

# The initiator takes all its channels down and logs in again.
host_reset() { in_io 6 sg_reset --host --no-escalate "/dev/$(srp_disk)"; }

# Commands that are not answered in time are aborted, one by one, and sent again.
aborts() {
    local disk
    if [ "$KIND" != vscsi ]; then
        echo "the kernel's target cannot be stopped"
        return 77
    fi
    disk=$(srp_disk)
    echo 1 >"/sys/block/$disk/device/timeout"
    dmesg -c >/dev/null
    in_io 8 stall
    echo 30 >"/sys/block/$disk/device/timeout"
    dmesg | tee /tmp/kernel.log | tail -n 40
    grep -i 'SRP abort called' /tmp/kernel.log
    # None of them needed more than that.
    refuted grep -i 'reset_host called' /tmp/kernel.log
}

stall() {
    kill -STOP "$(cat /run/target.pid)"
    sleep 3
    kill -CONT "$(cat /run/target.pid)"
}

restarts() { restart_under_io "$(srp_disk)"; }

# Another initiator port is refused, and so is one that looks for another target.
access_control() {
    local said
    srp_logout
    dmesg -c >/dev/null
    refuted refused_login
    said=$(dmesg)
    echo "$said"
    # "Unable to associate channel with an I_T nexus", or no more than "unable to establish".
    echo "$said" | grep -iE 'SRP_LOGIN_REJ|REJECTED, reason 0x0001000'
    refuted misled_login
    srp_login
    verify_on "$(srp_disk)" --bs=4k --iodepth=16 --size=1M
    srp_logout
}

# The device goes away in the middle of I/O, for both of them, and comes back: the target listens
# again by itself.
device_removal() {
    local disk job
    if [ "$KIND" = lio ]; then
        echo "the kernel's target has its name from the device"
        return 77
    fi
    srp_login
    disk=$(srp_disk)
    verify_on "$disk" --bs=16k --iodepth=16 --size=16M --time_based --runtime=30 \
        --verify_backlog=64 &
    job=$!
    sleep 2
    rdma link delete rxe0
    within 30 no_srp_ports
    # The disk is gone.
    refuted wait $job
    sleep 1
    rdma_link_up
    within 30 rdma_listens "$SRP_PORT"
    within 30 srp_login
    verify_on "$(srp_disk)" --bs=16k --iodepth=16 --size=4M
    srp_logout
}

step device device_up; passed || { report; return; }
step target target_start; passed || { report; return; }
step default_with_immediate_data default_login
step two_channels two_channels
step indirect_tables indirect_tables
step external_tables external_tables
step ext4 file_system
step unit_reset_under_io unit_reset
step host_reset_under_io host_reset
step aborts_under_io aborts
step restart_under_io restarts
step access_control access_control
step device_removal_under_io device_removal
report
