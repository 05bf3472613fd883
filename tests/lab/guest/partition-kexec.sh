# The kernel after that: its driver registers a queue of its own with the same adapter.
# shellcheck shell=bash disable=SC2317

registered_again() {
    grep steps= /proc/cmdline
    login
}

same_data() {
    local read
    read=$(dd if="/dev/$(disk 0 0)" bs=64k count=$((MEBIBYTES * 16)) 2>/dev/null | sum)
    expect "MD5 of what the kernel before wrote" "$read" "$(host image-md5 "$MEBIBYTES")"
    write_and_read_back "$(disk 3 0)" 4
}

step registered_again registered_again
step scan_again scan
step same_data same_data
step no_faults_again no_faults
