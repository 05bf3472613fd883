# The daemon is killed again and again in the middle of verified I/O on a split ring (controller 0)
# and a packed one (controller 1), and nobody notices. Sourced by /init after vhost-lib.sh.
# shellcheck shell=bash

# At least three times, and until commands of either ring were in flight at the end of a daemon.
restart_under_io() {
    local jobs=() controller disk round before first split packed of_split=0 of_packed=0
    no_faults
    for controller in 0 1; do
        LOG=/tmp/fio-$controller.json verify_on "$(disk_at $controller 0)" --output-format=json \
            --bs=256k --iodepth=32 --size=60M --time_based --runtime=12 --verify_backlog=64 &
        jobs+=($!)
    done
    disk=$(disk_at 0 0)
    for round in 1 2 3 4 5 6 7 8; do
        sleep 0.5
        host kill >/tmp/in_flight || { cat /tmp/in_flight; return 1; }
        read -r split packed </tmp/in_flight
        of_split=$((of_split + split))
        of_packed=$((of_packed + packed))
        before=$(done_on "$disk")
        host start || return
        moves "$disk" "$before" || return
        first="$first${first:+, }$(host moved)" || return
        kill -0 "${jobs[@]}" || { echo "the I/O was over before restart $round"; return 1; }
        [ "$round" -lt 3 ] || [ $of_split -eq 0 ] || [ $of_packed -eq 0 ] || break
    done
    for controller in 0 1; do
        wait "${jobs[$controller]}" || {
            echo "I/O failed over a restart on controller $controller"
            return 1
        }
    done
    no_faults
    if [ $of_split -eq 0 ] || [ $of_packed -eq 0 ]; then
        echo "in flight at $round kills: $of_split on the split ring, $of_packed on the packed one"
        return 1
    fi
    note "first completion $first ms after the start of the program," \
        "$of_split and $of_packed commands were in flight," \
        "longest I/O $(longest /tmp/fio-0.json) ms on the split ring," \
        "$(longest /tmp/fio-1.json) ms on the packed one"
}

# What the control queue and the event queue carry still arrives.
alive_after_restart() {
    sg_reset --device --no-escalate "/dev/$(disk_at 0 0)"
    settle "$(disk_at 0 0)"
    host add 5 || return
    within 10 disk_at 0 5
    host remove 5 || return
    within 10 no_disk_at 0 5
}

step kill_and_start_under_io restart_under_io
step control_and_events_after_restart alive_after_restart
