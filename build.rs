//! Compiles the kernels.

#[path = "kernels/build/emulated.rs"]
mod emulated;

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    emulated::build();
}
