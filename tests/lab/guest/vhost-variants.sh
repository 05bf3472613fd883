# Every way a ring may be driven, each on a controller of its own with one disk. Sourced by /init
# after vhost-lib.sh; /job sets nothing for it: the controllers' order is that of the scenario.
# shellcheck shell=bash

# variant CONTROLLER FEATURE…: the driver took these features, and I/O holds.
variant() {
    local disk
    within 10 disk_at "$1" 0
    negotiated "$@"
    disk=$(disk_at "$1" 0)
    verify_on "$disk" --bs=4k --iodepth=32 --numjobs=2 --size=2M --offset_increment=8M
    verify_on "$disk" --bs=256k --iodepth=8 --size=4M
}

# Feature bits: 28 indirect descriptors, 29 event index, 32 version 1, 33 platform access, 34
# packed ring, 35 in order; ~ before one that must not be there.
packed() { variant 1 28 29 32 34; }
packed_without_event_index() { variant 2 34 \~28 \~29; }
without_event_index() { variant 3 28 \~29 \~34; }
without_indirect() { variant 4 \~28 29 \~34; }
platform_access() { variant 5 33 32; }
legacy() { variant 6 \~32; }
in_order() { variant 7 35 \~34; }
packed_in_order() { variant 8 34 35; }

step packed_ring packed
step packed_ring_without_event_index_and_indirect packed_without_event_index
step no_event_index without_event_index
step no_indirect_descriptors without_indirect
step iommu_platform platform_access
step legacy_device legacy
step in_order in_order
step packed_ring_in_order packed_in_order
