# A kernel that is ended by kexec. The next one comes from LUNs: 1:0 has the kernel, 2:0 its
# initramfs.
# shellcheck shell=bash disable=SC2317

kexec_load() {
    dd if="/dev/$(disk 1 0)" of=/tmp/vmlinux bs=1M
    dd if="/dev/$(disk 2 0)" of=/tmp/initramfs bs=1M
    kexec --load /tmp/vmlinux --initrd=/tmp/initramfs \
        --command-line="$(cat /proc/cmdline) steps=pseries-lib.sh,partition-lib.sh,partition-kexec.sh"
}

step login login
step scan scan
step raw raw
step no_faults no_faults
# At once, so that whoever has the adapter keeps it.
step kexec_load kexec_load; passed && kexec --exec
