//! Says what a build leaves out.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    if std::env::var_os("CARGO_FEATURE_RDMA").is_none() {
        println!(
            "cargo::warning=RDMA (iSER, SRP) is left out of this build; to have it: apt install \
             librdmacm-dev libibverbs-dev libclang-dev pkg-config && cargo build --features rdma"
        );
    }
}
