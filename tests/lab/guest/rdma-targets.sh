# The targets that run in a guest: the program under test, and two others in its place. Sourced
# after rdma-lib.sh. Each has KIND_start, KIND_kill (as a crash) and srp_line_of_KIND; a KIND_chap
# starts another one that asks for CHAP, on CHAP_PORT. The job may set IMAGE_SIZE, and
# for vscsi CONFIG, or DISK as the command line has it.
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2153

IMAGE=/dev/shm/disk.img
: "${IMAGE_SIZE:=$((128 << 20))}"
CHAP_NAME=$NAME-chap
CHAP_PORT=3270
USER=guest-user SECRET=guest-secret-1 MUTUAL_USER=target-user MUTUAL_SECRET=target-secret-1

# Where the peers are: not all of them take one number for both.
case $KIND in tgtd) TCP_PORT=3262 CHAP_PORT=3260 ;; lio) ISER_PORT=3264 ;; esac

target_start() { "${KIND}_start"; }
target_kill() { "${KIND}_kill"; }
target_chap() { "${KIND}_chap"; }
srp_line() { [ -n "$SRP_LINE" ] && echo "$SRP_LINE" || "srp_line_of_$KIND"; }

image() { [ -e $IMAGE ] || truncate -s $IMAGE_SIZE $IMAGE; }

# gone PID: nobody is left of the process.
gone() { [ ! -e "/proc/$1" ] || grep -q '^State:.Z' "/proc/$1/status"; }

# end_of PIDFILE: kills the process as a crash would.
end_of() {
    local pid
    pid=$(cat "$1")
    kill -9 "$pid"
    within 20 gone "$pid"
}

# ---- vscsi

# With the settings in CONFIG, which have to name the same ports, or as the command line has it.
vscsi_start() {
    local disk words
    read -ra disk <<<"${DISK:-$IMAGE}"
    words=("${disk[@]}" --name "$NAME" --iscsi "$IP:$TCP_PORT" --iser "$IP:$ISER_PORT"
        --srp "$IP:$SRP_PORT" --allow-any --srp-allow "${SRP_ALLOW:-$(srp_initiator)}"
        --control /run/vscsi.sock --state-dir /dev/shm/state)
    image
    if [ -n "$CONFIG" ]; then
        echo "$CONFIG" >/run/config.json
        words=(--config /run/config.json)
    fi
    /x/vscsi serve "${words[@]}" >/tmp/target.log 2>&1 </dev/null 3>&- &
    echo $! >/run/target.pid
    within 20 rdma_listens "$ISER_PORT"
    [ -n "$CONFIG" ] || within 20 rdma_listens "$SRP_PORT"
}

vscsi_kill() { end_of /run/target.pid; }

vscsi_chap() {
    printf '%s %s\nmutual %s %s\n' $USER $SECRET $MUTUAL_USER $MUTUAL_SECRET >/run/chap
    chmod 600 /run/chap
    /x/vscsi serve --ram 64M --name $CHAP_NAME --iser "$IP:$CHAP_PORT" --allow-any \
        --chap-file /run/chap --control none --state-dir none \
        >/tmp/target-chap.log 2>&1 </dev/null 3>&- &
    within 20 rdma_listens $CHAP_PORT
}

# It prints the line to paste.
srp_line_of_vscsi() {
    local line
    line=$(grep -m 1 -o 'id_ext=0x[^ ]*' /tmp/target.log)
    echo "${line%,dest=*},dest=$IP:$SRP_PORT"
}

# ---- tgtd: LUN 0 is its controller, and of its iSER portal it takes only the default

tgt() { tgtadm --lld iser --mode "$@"; }

# tgtd_target NUMBER NAME IMAGE
tgtd_target() {
    tgt target --op new --tid "$1" --targetname "$2"
    tgt logicalunit --op new --tid "$1" --lun 1 -b "$3"
    tgt target --op bind --tid "$1" -I ALL
    # Over iSER it knows nobody's address.
    tgt target --op bind --tid "$1" -Q "$INITIATOR:over-iser"
}

tgtd_start() {
    image
    # Its buffers.
    echo 80 >/proc/sys/vm/nr_hugepages
    tgtd -f --iser pool_sz_mb=64 --iscsi portal="$IP:$TCP_PORT" \
        >>/tmp/target.log 2>&1 </dev/null 3>&- &
    echo $! >/run/target.pid
    within 20 tgt sys --op show >/dev/null
    tgtd_target 1 $NAME $IMAGE
    within 20 rdma_listens "$ISER_PORT"
}

tgtd_kill() { end_of /run/target.pid; }

tgtd_chap() {
    truncate -s 64M /dev/shm/chap.img
    tgtd_target 2 $CHAP_NAME /dev/shm/chap.img
    tgt account --op new --user $USER --password $SECRET
    tgt account --op bind --tid 2 --user $USER
    tgt account --op new --user $MUTUAL_USER --password $MUTUAL_SECRET
    tgt account --op bind --tid 2 --user $MUTUAL_USER --outgoing
}

# ---- LIO, by configfs

LIO=/sys/kernel/config/target

# lio_disk NUMBER MEBIBYTES: a RAM disk.
lio_disk() {
    modprobe -a target_core_mod
    grep -q configfs /proc/mounts || mount -t configfs none /sys/kernel/config
    mkdir -p /etc/target /var/target/pr $LIO/core/rd_mcp_0/"$1"
    echo rd_pages=$(($2 * 256)) >$LIO/core/rd_mcp_0/"$1"/control
    echo "aaaaaaaa-0000-0000-0000-00000000000$1" >$LIO/core/rd_mcp_0/"$1"/wwn/vpd_unit_serial
    echo 1 >$LIO/core/rd_mcp_0/"$1"/enable
}

# lio_iscsi NAME DISK: an iSCSI target without portals.
lio_iscsi() {
    local group=$LIO/iscsi/$1/tpgt_1 attribute
    modprobe -a iscsi_target_mod
    mkdir -p "$LIO/iscsi/$1" "$group" "$group/lun/lun_0"
    ln -s $LIO/core/rd_mcp_0/"$2" "$group/lun/lun_0/disk"
    for attribute in authentication=0 generate_node_acls=1 cache_dynamic_acls=1 \
        demo_mode_write_protect=0; do
        echo ${attribute#*=} >"$group/attrib/${attribute%=*}"
    done
    echo 1 >"$group/enable"
}

# lio_portal NAME PORT [iser]
lio_portal() {
    local portal=$LIO/iscsi/$1/tpgt_1/np/$IP:$2
    mkdir "$portal"
    [ -z "$3" ] || { modprobe ib_isert && echo 1 >"$portal/iser"; }
}

lio_start() {
    # There is no second time: it does not go away either.
    [ -e $LIO/core/rd_mcp_0/1 ] && return
    lio_disk 1 128
    lio_iscsi $NAME 1
    lio_portal $NAME "$TCP_PORT"
    lio_portal $NAME "$ISER_PORT" iser
    lio_srp 1
}

# lio_srp DISK: ib_srpt with it, open to one initiator port.
lio_srp() {
    local gid port=$LIO/srpt
    modprobe ib_srpt
    mkdir -p $LIO/srpt
    echo "$SRP_PORT" >$LIO/srpt/discovery_auth/rdma_cm_port
    gid=$(tr -d : </sys/class/infiniband/rxe0/ports/1/gids/0)
    port=$LIO/srpt/0x$gid/0x$gid
    mkdir -p "$port/lun/lun_0"
    ln -s $LIO/core/rd_mcp_0/"$1" "$port/lun/lun_0/disk"
    mkdir -p "$port/acls/$(srp_initiator)/lun_0"
    ln -s "$port/lun/lun_0" "$port/acls/$(srp_initiator)/lun_0/disk"
    echo 1 >"$port/enable"
}

lio_chap() {
    lio_disk 2 64
    lio_iscsi $CHAP_NAME 2
    lio_portal $CHAP_NAME $CHAP_PORT iser
    local group=$LIO/iscsi/$CHAP_NAME/tpgt_1
    echo 1 >$group/attrib/authentication
    echo -n $USER >$group/auth/userid
    echo -n $SECRET >$group/auth/password
    echo -n $MUTUAL_USER >$group/auth/userid_mutual
    echo -n $MUTUAL_SECRET >$group/auth/password_mutual
}

srp_line_of_lio() {
    local guid
    guid=$(cat /sys/module/ib_srpt/parameters/srpt_service_guid)
    echo "id_ext=$guid,ioc_guid=$guid,dest=$IP:$SRP_PORT"
}
