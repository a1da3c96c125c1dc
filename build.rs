//! Compiles the kernels under `kernels/`; `crates/kernel-build` says how.

fn main() {
    kernel_build::build();
}
