# What partitions do whose ibmvscsi driver uses the CRQ server of vmm-glue. Sourced after pseries-lib.sh.
# LUNS has what there is to be found, each as TARGET:LUN. 0:0 is an image on the host.
# shellcheck shell=bash disable=SC2317

load() {
    modprobe ibmvscsi "$@"
    within 60 adapter
    within 60 all_disks
}

all_disks() {
    local place
    for place in $LUNS; do
        disk "${place%:*}" "${place#*:}" >/dev/null || return 1
    done
}

# What the driver says that it should not.
no_complaints() {
    refuted grep -iE 'not supported|failed|error|rejected|unknown|invalid' \
        <(dmesg | grep ibmvscsi)
}

login() {
    local host
    modprobe -a sd_mod sg ext4 crc32c_generic
    load
    host=$(adapter)
    expect srp_version "$(cat "$host/srp_version")" 16.a
    expect partition_name "$(cat "$host/partition_name")" lab
    expect partition_number "$(cat "$host/partition_number")" 7
    expect mad_version "$(cat "$host/mad_version")" 1
    expect os_type "$(cat "$host/os_type")" "$OS"
    cat "$host/config" "$host/vhost_name" "$host/vhost_loc"
    dmesg | tee /tmp/kernel.log | grep ibmvscsi
    grep 'SRP_LOGIN succeeded' /tmp/kernel.log
    grep "OS $OS, max io 1048576" /tmp/kernel.log
    # Fast fail and capabilities are for a Virtual I/O Server.
    expect "answers to CAPABILITIES" "$(grep -c 'Client reserve enabled' /tmp/kernel.log)" $((OS == 3))
    no_complaints
}

scan() {
    local place found
    found=$(for place in /sys/class/scsi_disk/*; do echo "${place##*/}"; done | sed 's/.*:0:\(.*:.*\)/\1/' |
        sort | tr '\n' ' ')
    expect disks "$found" "$(tr ' ' '\n' <<<"$LUNS" | sort | tr '\n' ' ')"
    size_is "$(disk 0 0)" "$SIZE"
}

# The image on the host has what is read back here.
raw() {
    local wrote
    wrote=$(write_and_read_back "$(disk 0 0)" "$MEBIBYTES")
    expect "MD5 in the image" "$(host image-md5 "$MEBIBYTES")" "$wrote"
}

# said TEXT: the kernel has said it since the log was cleared.
said() { dmesg | grep -F "$1"; }

logins() { dmesg | grep -c 'SRP_LOGIN succeeded'; }

no_faults() {
    local told
    told=$(host stats)
    echo "$told"
    note "$told"
    [[ $told == *faults=0\ violations=0\ dropped=0* ]]
}
