# Linux's initiators, of a target in another guest: what crosses the wire is kept by the host. Little
# is written, for that. Sourced after rdma-targets.sh.
# shellcheck shell=bash
# shellcheck disable=SC2153

await_target() {
    host target-serves >/tmp/srp-line
    iscsi_up
}

verify_little() {
    verify_on "$1" --bs=4k --iodepth=16 --size=1M
    verify_on "$1" --bs=128k --iodepth=16 --size=4M
    verify_on "$1" --bs=1M --iodepth=16 --size=8M
}

iser() {
    iscsiadm -m discovery -t sendtargets -p "$IP:$ISER_PORT" -I over-iser
    login over-iser
    verify_little "$(iscsi_disk over-iser)"
    file_system_checked "$(iscsi_disk over-iser)"
    logout over-iser
}

# Small writes go along with the command; the rest has one descriptor a command.
srp() {
    srp_options ch_count=1
    srp_login
    verify_little "$(srp_disk)"
    file_system_checked "$(srp_disk)"
}

two_channels() {
    srp_options ch_count=2
    srp_login
    verify_little "$(srp_disk)"
}

indirect_tables() {
    srp_options ch_count=1 never_register=Y cmd_sg_entries=64
    srp_login
    verify_little "$(srp_disk)"
}

external_tables() {
    if [ "$KIND" = lio ]; then
        echo "the kernel's target does not fetch tables"
        return 77
    fi
    srp_options ch_count=1 never_register=Y cmd_sg_entries=4 indirect_sg_entries=256 allow_ext_sg=Y
    srp_login
    verify_little "$(srp_disk)"
    # How many pieces a command has is up to the memory that fio gets: some of these have many.
    verify_on "$(srp_disk)" --bs=1M --iodepth=16 --size=48M
}

# The initiator's device goes away in the middle of I/O and comes back: the target lets go of what
# was open and takes the next login.
device_removal() {
    local disk job
    srp_options ch_count=2
    srp_login
    disk=$(srp_disk)
    verify_on "$disk" --bs=16k --iodepth=16 --size=4M --time_based --runtime=30 \
        --verify_backlog=64 &
    job=$!
    sleep 1
    rdma link delete rxe0
    within 30 no_srp_ports
    # The disk is gone.
    refuted wait $job
    rdma_link_up
    within 30 srp_login
    verify_on "$(srp_disk)" --bs=16k --iodepth=16 --size=1M
    srp_logout
}

step device device_up; passed || { report; return; }
step await_target await_target; passed || { report; return; }
SRP_LINE=$(cat /tmp/srp-line)
step iser iser
step srp srp
step two_channels two_channels
step indirect_tables indirect_tables
step external_tables external_tables
step device_removal_under_io device_removal
report
