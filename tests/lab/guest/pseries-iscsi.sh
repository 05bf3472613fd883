# A pseries guest whose virtual SCSI adapter is QEMU's own, with LUNs of ours behind it.
# shellcheck shell=bash disable=SC2317

scan() {
    modprobe -a ibmvscsi sd_mod sg ext4 crc32c_generic
    within 30 disk 0 0
    within 30 disk 1 0
    dmesg | grep -E 'ibmvscsi|sd |scsi'
}

# The command set is the target's, not QEMU's: scsi-block passes commands through.
identity() {
    sg_inq "/dev/$(disk 0 0)" | tee /tmp/inquiry
    grep -E 'Vendor identification: *VSCSI' /tmp/inquiry
    sg_vpd --page=di "/dev/$(disk 0 0)" | grep NAA
    sg_readcap --16 "/dev/$(disk 0 0)" | grep lbpme=1
}

raw() {
    local wrote
    wrote=$(write_and_read_back "$(disk 0 0)" "$MEBIBYTES")
    expect "MD5 in the image" "$(host image-md5 "$MEBIBYTES")" "$wrote"
}

file_system() { file_system_on "$(disk 0 0)"; }

reservation() { reserve_on "/dev/$(disk 0 0)"; }

emulated() { write_and_read_back "$(disk 1 0)" 8; }

no_faults() {
    refuted grep -E 'I/O error|timing out|aborting|FAILED Result' <(dmesg)
}

step scan scan
step identity identity
step raw raw
step file_system file_system
step reservation reservation
step scsi_hd emulated
step no_faults no_faults
