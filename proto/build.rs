//! Compiles the .proto files with protox, so that no `protoc` has to be installed.

use std::fmt::Write as _;
use std::path::Path;

use prost::Message as _;
use protox::prost_reflect::prost_types::FileDescriptorSet;
use protox::prost_reflect::prost_types::field_descriptor_proto::Type;

const FILES: [&str; 9] = [
    "skywalking/common.proto",
    "skywalking/profile.proto",
    "skywalking/management.proto",
    "skywalking/tracing.proto",
    "skywalking/logging.proto",
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
    write_parts(&descriptors)?;
    let out = std::env::var("OUT_DIR")?;
    std::fs::write(
        Path::new(&out).join("descriptors"),
        descriptors.encode_to_vec(),
    )?;
    tonic_prost_build::configure()
        .build_transport(false)
        .codec_path("crate::parts::PartsCodec")
        // A map with a fixed order: reports and tests read the same each time.
        .btree_map(".profilerd.v1")
        .compile_fds(descriptors)?;
    Ok(())
}

/// Writes what `src/parts.rs` needs to know of each message that is sent by gRPC.
fn write_parts(files: &FileDescriptorSet) -> Result<(), Box<dyn std::error::Error>> {
    let mut text = String::new();
    let files = files.file.iter();
    let services = files.clone().flat_map(|file| &file.service);
    let methods = services.flat_map(|service| &service.method);
    let requests: Vec<&str> = methods.map(|method| method.input_type()).collect();
    for file in files {
        let Some(module) = module_of(file.package()) else {
            continue;
        };
        for message in &file.message_type {
            let name = message.name();
            let full = format!(".{}.{name}", file.package());
            let is_request = requests.contains(&full.as_str());
            let mut nested = String::new();
            for field in &message.field {
                // Entries of maps are messages inside the message, with nothing but a text and a number in them.
                let inner = field.type_name().rsplit_once('.');
                let inner = inner.and_then(|(package, name)| {
                    Some((module_of(package.trim_start_matches('.'))?, name))
                });
                if let (Type::Message, Some((module, name))) = (field.r#type(), inner) {
                    let number = field.number();
                    write!(
                        nested,
                        "({number}, crate::parts::count::<crate::{module}::{name}>), "
                    )?;
                }
            }
            writeln!(
                text,
                "impl crate::parts::Parts for crate::{module}::{name} {{ const IS_REQUEST: bool = {is_request}; \
                 const NESTED: &'static [(u32, crate::parts::Count)] = &[{nested}]; }}"
            )?;
        }
    }
    let file = Path::new(&std::env::var("OUT_DIR")?).join("parts.rs");
    Ok(std::fs::write(file, text)?)
}

/// The module of `src/lib.rs` with the messages of a package.
fn module_of(package: &str) -> Option<&'static str> {
    match package {
        "skywalking.v3" => Some("skywalking"),
        "profilerd.v1" => Some("profilerd"),
        _ => None,
    }
}
