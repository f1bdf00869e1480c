//! Compiles the .proto files with protox, so that no `protoc` has to be installed.

use std::path::Path;

use prost::Message as _;

const FILES: [&str; 8] = [
    "skywalking/common.proto",
    "skywalking/profile.proto",
    "skywalking/management.proto",
    "skywalking/tracing.proto",
    "skywalking/unkept.proto",
    "profilerd/tasks.proto",
    "profilerd/spool.proto",
    "pprof/profile.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    for file in FILES {
        println!("cargo:rerun-if-changed={}", root.join(file).display());
    }
    let descriptors = protox::compile(FILES, [root])?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("descriptors"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .build_transport(false)
        // A map with a fixed order: reports and tests read the same each time.
        .btree_map(".profilerd.v1")
        .compile_fds(descriptors)?;
    Ok(())
}
