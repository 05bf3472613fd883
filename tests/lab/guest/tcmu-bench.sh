# fio on two handlers of the kernel's backstores side by side, in turn. Sourced after tcmu-lib.sh. The
# job sets KINDS, ROUNDS and SECONDS_EACH. The host keeps the figures: `HOST result ROW KIND NUMBER`.
# shellcheck shell=bash
# shellcheck disable=SC2153

# What fio does: name, how, block size, depth.
ROWS="4k-read:randread:4k:16 4k-write:randwrite:4k:16 128k-read:read:128k:16
    128k-write:write:128k:16 4k-read-depth-1:randread:4k:1 4k-write-depth-1:randwrite:4k:1"

runner_up() {
    mkdir -p /etc/tcmu /var/log /run/dbus
    echo "log_level = 3" >/etc/tcmu/tcmu.conf
    tcmu-runner >/tmp/target-runner.log 2>&1 </dev/null 3>&- &
    sleep 2
    kill -0 $!
}

# An ext4 on a RAM disk: a file system as people have them, without a medium to wait for.
images_up() {
    modprobe brd rd_nr=1 rd_size=$((400 << 10))
    mkfs.ext4 -q -F /dev/ram0
    mkdir -p /images
    mount /dev/ram0 /images
    IMAGE=/images/disk
    for kind in $KINDS; do truncate -s "$IMAGE_SIZE" $IMAGE-"$kind"; done
}

# What each serves is an image of its own, written once before anything is read. As both are there,
# nobody answers for the other's device.
handlers() {
    local kind
    modules_up
    images_up
    runner_up
    serve $IMAGE-vscsi
    backstore vscsi vscsi/0 nl_reply_supported=-1,hw_max_sectors=2048
    backstore runner qcow/$IMAGE-runner hw_max_sectors=2048
    lun_up 1 vscsi
    lun_up 2 runner
    for kind in 1 2; do
        dd if=/dev/zero of="/dev/$(disk $kind)" bs=1M oflag=direct || [ "$(done_on "$(disk $kind)")" -gt 100 ]
    done
}

# measured sdX HOW SIZE DEPTH: commands a second.
measured() {
    fio --name=row --ioengine=libaio --direct=1 --filename="/dev/$1" --rw="$2" --bs="$3" \
        --iodepth="$4" --size=64M --time_based --ramp_time=1 --runtime="$SECONDS_EACH" \
        --output-format=terse --terse-version=3 | awk -F';' '/^3;/ { print $8 + $49 }'
}

rounds() {
    local round row kind number name how size depth
    for round in $(seq "$ROUNDS"); do
        for row in $ROWS; do
            IFS=: read -r name how size depth <<<"$row"
            number=0
            for kind in $KINDS; do
                number=$((number + 1))
                host result "$name" "$kind" "$(measured "$(disk $number)" "$how" "$size" "$depth")"
            done
        done
    done
}

step handlers handlers; passed || { report; return; }
step rounds rounds
report
