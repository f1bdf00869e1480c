//! Tells whether a process runs a SkyWalking agent, and what that agent does.
//!
//! In:  mapped files, environment, command line, a few small files in the process's own root
//! Out: [`Agent`]
//! Lost: agents that leave none of these traces, see the table
//!
//! | language | evidence | names and profiler |
//! |---|---|---|
//! | Java | `-javaagent:` with a jar whose manifest starts SkyWalking's agent, on the command line or in a variable of the JVM | `agent.config`, `-Dskywalking.*`, options behind the jar, variables |
//! | Python | the loader of `sw-python` in `PYTHONPATH`; else the package beside a library that is loaded, with gRPC or an `SW_AGENT_*` variable | variables |
//! | Go | the module in the binary's build information | variables; what was compiled in is not seen |
//! | Node.js | the package is installed for the program, with an `SW_AGENT_*` variable | variables; it has no profiler |
//! | PHP | `skywalking_agent.so` is mapped | none; it has no profiler |
//! | Ruby | the gem beside one that is loaded | variables; it has no profiler |
//!
//! # Why it matters
//!
//! Snapshots of a process with an agent belong to the agent's own segments, and an agent whose profiler
//! is on runs the same task itself: an OAP keeps one row per task, segment and sequence, so the two
//! would collide.

mod go;
mod java;
mod package;
mod python;
mod settings;

use std::fmt;
use std::io;

use serde::Serialize;

#[cfg(feature = "fuzzing")]
pub(crate) use {
    java::manifest as java_manifest, package::package_version, settings::read_all as java_settings,
};

use super::fact::tidy;
use super::mapped_image::{MappedImage, mapped_images};
use super::patience;
use super::procfs::Procfs;
use super::runtime::Runtime;
use crate::model::Pid;

/// A SkyWalking agent inside a process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Agent {
    /// Which of SkyWalking's agents.
    pub language: AgentLanguage,
    /// Its version, if it can be found without searching.
    pub version: Option<String>,
    /// The evidence for the agent, for people.
    pub evidence: String,
    /// Whether it carries out profile tasks itself; `None` if that cannot be seen from outside.
    pub profiles: Option<bool>,
    /// The service it reports as, if known.
    pub service: Option<String>,
    /// The instance it reports as, if known. Most agents make one up at their start.
    pub instance: Option<String>,
}

/// SkyWalking's agents, by the language of what they instrument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentLanguage {
    /// skywalking-java.
    Java,
    /// skywalking-python.
    Python,
    /// skywalking-go.
    Go,
    /// skywalking-nodejs.
    NodeJs,
    /// skywalking-php.
    Php,
    /// skywalking-ruby.
    Ruby,
}

impl fmt::Display for AgentLanguage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Java => "Java",
            Self::Python => "Python",
            Self::Go => "Go",
            Self::NodeJs => "Node.js",
            Self::Php => "PHP",
            Self::Ruby => "Ruby",
        })
    }
}

/// `Java 9.4.0, profiler on`.
impl fmt::Display for Agent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.language)?;
        if let Some(version) = &self.version {
            write!(f, " {version}")?;
        }
        f.write_str(match self.profiles {
            Some(true) => ", profiler on",
            Some(false) => ", profiler off",
            None => ", profiler unknown",
        })
    }
}

/// What agents are recognised by.
struct Facts<'a> {
    pid: Pid,
    images: &'a [MappedImage],
    command: &'a [String],
    /// The whole environment of the last exec; dropped when the look is over.
    environment: &'a [(String, String)],
}

impl Facts<'_> {
    fn variable(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().find(|(given, _)| given == name);
        found.map(|(_, value)| value.as_str())
    }

    fn has_agent_variable(&self) -> bool {
        let mut names = self.environment.iter().map(|(name, _)| name);
        names.any(|name| name.starts_with("SW_AGENT_"))
    }

    /// `SW_AGENT_NAME` with the suffixes that agents give it.
    fn service(&self) -> Option<String> {
        let name = self.variable("SW_AGENT_NAME")?;
        let namespace = self.variable("SW_AGENT_NAMESPACE");
        Some(tidy(&match namespace {
            Some(namespace) => format!("{name}|{namespace}"),
            None => name.to_owned(),
        }))
    }

    fn instance(&self) -> Option<String> {
        self.variable("SW_AGENT_INSTANCE_NAME").map(tidy)
    }
}

impl Agent {
    /// Looks for an agent in a process that runs `runtime`. Reads `/proc/PID/maps` and a few files,
    /// which takes some 100 us.
    ///
    /// # Errors
    ///
    /// The process is gone, or may not be read.
    pub fn detect(pid: Pid, runtime: &Runtime, command: &[String]) -> io::Result<Option<Self>> {
        let (runtime, command) = (runtime.clone(), command.to_vec());
        patience::look(pid, move || {
            Self::detect_in(pid, &mapped_images(pid)?, &runtime, &command)
        })?
    }

    /// The same, with what is mapped in the process.
    ///
    /// # Errors
    ///
    /// As for [`Self::detect`].
    pub(super) fn detect_in(
        pid: Pid,
        images: &[MappedImage],
        runtime: &Runtime,
        command: &[String],
    ) -> io::Result<Option<Self>> {
        let detect = match runtime {
            Runtime::Jvm { .. } => java::detect,
            Runtime::CPython(_) => python::detect,
            Runtime::Go { .. } => go::detect,
            Runtime::Node => package::detect_node,
            Runtime::Php => package::detect_php,
            Runtime::Ruby => package::detect_ruby,
            Runtime::Native => return Ok(None),
        };
        let environment = Procfs::default().environ(pid, |_| true)?;
        Ok(detect(&Facts {
            pid,
            images,
            command,
            environment: &environment,
        }))
    }
}
