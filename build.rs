//! Compiles the kernels under `kernels/`; `crates/kernel-build` says how. Tells the tests what else
//! this machine has: a test whose requirement is missing is ignored, with the reason.

use std::path::Path;
use std::process::Command;

fn main() {
    kernel_build::build();
    println!("cargo::rerun-if-env-changed=WARPSMITH_TEST_NCCL");
    let runs = |program: &str, args: &[&str]| {
        Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
    };
    requirement("has_mpirun", runs("mpirun", &["--version"]));
    // The first step of dev/machines.sh.
    let namespaces = "--net --mount --pid --fork --kill-child --mount-proc ip link add type veth";
    let namespaces: Vec<&str> = namespaces.split(' ').collect();
    requirement("has_network_namespaces", runs("unshare", &namespaces));
    let nccl = Path::new("build/nccl/nvidia/nccl/lib/libnccl.so.2");
    requirement("has_nccl", std::env::var_os("WARPSMITH_TEST_NCCL").is_some() || nccl.is_file());
}

fn requirement(name: &str, is_met: bool) {
    println!("cargo::rustc-check-cfg=cfg({name})");
    if is_met {
        println!("cargo::rustc-cfg={name}");
    }
}
