//! The structures that rdma-sys declares by hand or by bindgen are those of the C headers.

use std::{fs, mem::offset_of, path::Path, process::Command};

use rdma_sys::{
    ibv_comp_channel, ibv_context, ibv_device_attr, ibv_mr, ibv_port_attr, ibv_qp,
    ibv_qp_init_attr, ibv_recv_wr, ibv_send_wr, ibv_sge, ibv_srq_init_attr, ibv_wc, rdma_cm_event,
    rdma_cm_id, rdma_conn_param, rdma_event_channel,
};

/// Lines of "structure size" and "structure.field offset", for C and for Rust.
macro_rules! layout {
    ($($name:ident { $($field:ident),* })*) => {{
        let mut c = String::from(
            "#include <rdma/rdma_cma.h>\n#include <infiniband/verbs.h>\n#include <stdio.h>\n\
             #include <stddef.h>\nint main(void) {\n",
        );
        let mut rust = String::new();
        $(
            c += concat!("printf(\"", stringify!($name), " %zu\\n\", sizeof(struct ", stringify!($name), "));\n");
            rust += &format!("{} {}\n", stringify!($name), size_of::<$name>());
            $(
                c += concat!(
                    "printf(\"", stringify!($name), ".", stringify!($field), " %zu\\n\", offsetof(struct ",
                    stringify!($name), ", ", stringify!($field), "));\n"
                );
                rust += &format!(
                    "{}.{} {}\n", stringify!($name), stringify!($field), offset_of!($name, $field)
                );
            )*
        )*
        c += "return 0; }\n";
        (c, rust)
    }};
}

#[test]
fn structures_are_laid_out_as_in_c() {
    let (c, rust) = layout! {
        ibv_sge { addr, length, lkey }
        ibv_recv_wr { wr_id, next, sg_list, num_sge }
        ibv_send_wr { wr_id, next, sg_list, num_sge, opcode, send_flags, wr }
        ibv_wc { wr_id, status, opcode, vendor_err, byte_len, qp_num, wc_flags }
        ibv_mr { context, pd, addr, length, lkey, rkey }
        ibv_context { device, ops, cmd_fd, async_fd, num_comp_vectors }
        ibv_comp_channel { context, fd }
        ibv_qp_init_attr { send_cq, recv_cq, srq, cap, qp_type, sq_sig_all }
        ibv_srq_init_attr { srq_context, attr }
        ibv_device_attr { max_qp_wr, max_qp_rd_atom, max_qp_init_rd_atom, max_srq_wr, phys_port_cnt }
        ibv_port_attr { state, max_msg_sz, link_layer }
        ibv_qp { context, qp_num, state }
        rdma_event_channel { fd }
        rdma_cm_id { verbs, channel, qp, route, ps, port_num, event, pd }
        rdma_conn_param { private_data, private_data_len, responder_resources, initiator_depth,
            flow_control, retry_count, rnr_retry_count, srq, qp_num }
        rdma_cm_event { id, listen_id, event, status, param }
    };
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let (source, program) = (folder.join("layout.c"), folder.join("layout"));
    fs::write(&source, c).unwrap();
    let compiled = Command::new("cc").arg(&source).arg("-o").arg(&program).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let found = Command::new(&program).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), rust);
}
