//! Tells which language runtime a process runs.
//!
//! In:  the mapped images of the process, by name and by what is in their memory
//! Out: [`Runtime`], and with [`Runtime::request_model`] whether its requests can be followed
//!
//! # How
//! | runtime | evidence |
//! |---|---|
//! | Go | the build information that the linker puts into the data segment |
//! | JVM | `libjvm.so` is mapped |
//! | Node.js | the executable is `node`, or `libnode.so*` is mapped |
//! | CPython | `_PyRuntime` is exported by `libpython3.*` or by the executable |
//! | Ruby, PHP | the executable's or library's name |
//!
//! The executable's own language comes first: a JVM or a Node.js process may have loaded Python too.

use std::fmt;
use std::io::Error;
use std::path::Path;

use super::go_build::GoBuild;
use super::mapped_image::{MappedImage, mapped_images};
use super::python::{self, PythonVersion};
use super::{ProcessMemory, jvm, patience};
use crate::model::Pid;

/// The language runtime of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Runtime {
    /// CPython, also embedded. Whether its frames can be read is another question:
    /// [`python::PythonRuntime::detect`].
    CPython(PythonVersion),
    /// Go; the version if the binary has it, such as `go1.22.1`.
    Go {
        /// Version of the tool chain.
        version: Option<String>,
    },
    /// A Java virtual machine (HotSpot).
    Jvm {
        /// Version of Java, such as `17.0.15`.
        version: Option<String>,
    },
    /// Node.js.
    Node,
    /// CRuby.
    Ruby,
    /// PHP.
    Php,
    /// Machine code without a runtime that we know: C, C++, Rust.
    Native,
}

/// How a runtime serves requests, as far as following them goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestModel {
    /// The thread that reads a request serves it.
    ThreadPerRequest,
    /// Requests are not bound to threads; the sentence says how.
    Unsupported(&'static str),
}

/// Whose functions have names in the stacks of a runtime's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NamedFrames {
    /// All.
    All,
    /// Only those of machine code; the sentence says why.
    NativeOnly(&'static str),
}

impl Runtime {
    /// Finds out what a process runs.
    ///
    /// # Errors
    ///
    /// The process is gone, or may not be read.
    pub fn detect(pid: Pid) -> Result<Self, Error> {
        patience::look(pid, move || Self::detect_in(pid, &mapped_images(pid)?))?
    }

    /// The same, with what is mapped in the process.
    ///
    /// # Errors
    ///
    /// The process does not let itself be read.
    pub(super) fn detect_in(pid: Pid, images: &[MappedImage]) -> Result<Self, Error> {
        let memory = ProcessMemory::new(pid);
        let executable = images.iter().find(|image| image.is_executable);
        if let Some(build) = executable.and_then(|image| GoBuild::find(&memory, image.base)) {
            return Ok(Self::Go {
                version: build.version,
            });
        }
        if let Some(runtime) = Self::from_names(images) {
            return Ok(runtime.with_version(pid, images));
        }
        // A process whose interpreter cannot be read counts as native.
        match python::find_version(pid, images) {
            Ok(Some(version)) => Ok(Self::CPython(version)),
            Ok(None) | Err(_) => Ok(Self::Native),
        }
    }

    fn with_version(self, pid: Pid, images: &[MappedImage]) -> Self {
        if !matches!(self, Self::Jvm { .. }) {
            return self;
        }
        let mut images = images.iter();
        let libjvm = images.find(|image| is_library(image.name(), "libjvm"));
        Self::Jvm {
            version: libjvm.and_then(|image| jvm::version(pid, Path::new(&image.path))),
        }
    }

    fn from_names(images: &[MappedImage]) -> Option<Self> {
        let mapped = |library: &str| images.iter().any(|image| is_library(image.name(), library));
        let executable = images
            .iter()
            .find(|image| image.is_executable)
            .map_or("", MappedImage::name);
        // Libraries may stand behind what is read of a very long list.
        if executable == "java" || mapped("libjvm") {
            Some(Self::Jvm { version: None })
        } else if matches!(executable, "node" | "nodejs") || mapped("libnode") {
            Some(Self::Node)
        } else if is_program(executable, "ruby") || mapped("libruby") {
            Some(Self::Ruby)
        } else if ["php", "php-fpm", "php-cgi"]
            .iter()
            .any(|php| is_program(executable, php))
            || mapped("libphp")
        {
            Some(Self::Php)
        } else {
            None
        }
    }

    /// Whether the requests of such a process can be followed.
    #[must_use]
    pub fn request_model(&self) -> RequestModel {
        match self {
            Self::Go { .. } => RequestModel::Unsupported(
                "Go serves requests on goroutines, which move between threads",
            ),
            Self::Node => RequestModel::Unsupported(
                "Node.js serves all requests on one thread, its event loop",
            ),
            Self::CPython(_) | Self::Jvm { .. } | Self::Ruby | Self::Php | Self::Native => {
                RequestModel::ThreadPerRequest
            }
        }
    }
}

impl Runtime {
    /// Whose functions have names in the stacks of its threads.
    #[must_use]
    pub fn named_frames(&self) -> NamedFrames {
        match self {
            Self::CPython(version) if !version.is_supported() => NamedFrames::NativeOnly(
                "Python functions have names with CPython 3.11 to 3.14 only",
            ),
            Self::Jvm { .. } => NamedFrames::NativeOnly(
                "Java functions have no names yet; those of the JVM and of native libraries have",
            ),
            Self::Ruby => NamedFrames::NativeOnly(
                "Ruby functions have no names yet; those of the interpreter have",
            ),
            Self::Php => NamedFrames::NativeOnly(
                "PHP functions have no names yet; those of the interpreter have",
            ),
            Self::CPython(_) | Self::Go { .. } | Self::Node | Self::Native => NamedFrames::All,
        }
    }
}

impl fmt::Display for Runtime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CPython(version) => write!(f, "CPython {version}"),
            Self::Go {
                version: Some(version),
            } => write!(f, "Go {}", version.trim_start_matches("go")),
            Self::Go { version: None } => f.write_str("Go"),
            Self::Jvm {
                version: Some(version),
            } => write!(f, "JVM {version}"),
            Self::Jvm { version: None } => f.write_str("JVM"),
            Self::Node => f.write_str("Node.js"),
            Self::Ruby => f.write_str("Ruby"),
            Self::Php => f.write_str("PHP"),
            Self::Native => f.write_str("native"),
        }
    }
}

/// Whether `name` is `library.so`, `library.so.3.1` or `library-3.1.so.3.1`, `library8.3.so`.
fn is_library(name: &str, library: &str) -> bool {
    name.strip_prefix(library)
        .and_then(|rest| rest.split_once(".so"))
        .is_some_and(|(version, _)| is_version(version))
}

/// Whether `name` is `program` or `program3.1`.
fn is_program(name: &str, program: &str) -> bool {
    name.strip_prefix(program).is_some_and(is_version)
}

fn is_version(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_digit() || ".-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(path: &str, is_executable: bool) -> MappedImage {
        MappedImage {
            path: path.to_owned(),
            base: 0,
            is_executable,
        }
    }

    /// Check the runtimes that are known by the names of their files, and look-alikes.
    #[test]
    fn runtimes_are_known_by_their_files() {
        let cases: [(&str, &[&str], Option<Runtime>); 12] = [
            (
                "java",
                &["/usr/lib/jvm/lib/server/libjvm.so"],
                Some(Runtime::Jvm { version: None }),
            ),
            ("node", &[], Some(Runtime::Node)),
            (
                "electron",
                &["/usr/lib/libnode.so.108"],
                Some(Runtime::Node),
            ),
            (
                "ruby3.1",
                &["/usr/lib/libruby-3.1.so.3.1.2"],
                Some(Runtime::Ruby),
            ),
            ("ruby", &[], Some(Runtime::Ruby)),
            ("puma", &["/usr/lib/libruby.so.3.2"], Some(Runtime::Ruby)),
            ("php-fpm8.2", &[], Some(Runtime::Php)),
            ("php (deleted)", &[], Some(Runtime::Php)),
            (
                "apache2",
                &["/usr/lib/apache2/modules/libphp8.2.so"],
                Some(Runtime::Php),
            ),
            ("rubyfmt", &["/opt/libjvmti.so"], None),
            ("phpunit", &["/usr/lib/libnodelay.so"], None),
            ("", &[], None),
        ];
        for (executable, libraries, expected) in cases {
            let mut images = vec![image(&format!("/usr/bin/{executable}"), true)];
            images.extend(libraries.iter().map(|library| image(library, false)));
            assert_eq!(Runtime::from_names(&images), expected, "{executable}");
        }
    }

    /// Check that Go is shown by its version and cannot be followed.
    #[test]
    fn go_is_refused() {
        let go = Runtime::Go {
            version: Some("go1.22.1".into()),
        };
        assert_eq!(go.to_string(), "Go 1.22.1");
        assert!(matches!(go.request_model(), RequestModel::Unsupported(_)));
    }

    /// Check that a runtime whose functions have no names says so, and that machine code and a CPython whose
    /// frames can be read do not.
    #[test]
    fn runtimes_without_names_say_so() {
        let python = |minor| {
            Runtime::CPython(PythonVersion {
                major: 3,
                minor,
                micro: 0,
            })
        };
        for (runtime, has_all) in [
            (Runtime::Native, true),
            (python(14), true),
            (python(11), true),
            (python(10), false),
            (Runtime::Jvm { version: None }, false),
            (Runtime::Ruby, false),
            (Runtime::Php, false),
        ] {
            let named = runtime.named_frames();
            assert_eq!(named == NamedFrames::All, has_all, "{runtime}");
        }
    }

    /// Check that this test program is native, and that a missing process is an error.
    #[test]
    fn a_rust_program_is_native() {
        let runtime = Runtime::detect(Pid(std::process::id())).unwrap();
        assert_eq!(runtime, Runtime::Native);
        assert_eq!(runtime.request_model(), RequestModel::ThreadPerRequest);
        assert!(Runtime::detect(Pid(u32::MAX >> 2)).is_err());
    }
}
