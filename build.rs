//! Where the binary finds MLIR's shared library, which is not on the system's path.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=MLIR_SYS_220_PREFIX");
    if let (Some(_), Some(prefix)) = (std::env::var_os("CARGO_FEATURE_MLIR_OUT"), std::env::var("MLIR_SYS_220_PREFIX").ok()) {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{prefix}/lib");
    }
}
