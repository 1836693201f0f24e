//! Link flags of the module.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    // libpam unloads a module at pam_end. The TLS library leaves destructors of thread-specific data and handlers for fork behind, and a
    // thread of the host that ends later would run into unmapped memory: the module stays mapped once it was loaded.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
    // All symbols bound at load, and the tables read-only after it: the module runs as root in somebody else's process.
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now,-z,relro");
}
