//! The agent of skywalking-go, which is compiled into the program.
//!
//! In:  build information in the executable's memory, environment
//! Out: [`Agent`]
//! Lost: names that were compiled in; whether the tool that adds the agent ran at all: a program that
//!       only imports the module counts as having one

use super::{Agent, AgentLanguage, Facts};
use crate::process::ProcessMemory;
use crate::process::fact::tidy;
use crate::process::go_build::GoBuild;

const MODULE: &str = "github.com/apache/skywalking-go";

pub(super) fn detect(facts: &Facts<'_>) -> Option<Agent> {
    let memory = ProcessMemory::new(facts.pid);
    let executable = facts.images.iter().find(|image| image.is_executable)?;
    let version = GoBuild::find(&memory, executable.base)?.module(&memory, MODULE)?;
    Some(Agent {
        language: AgentLanguage::Go,
        version: Some(tidy(version.trim_start_matches('v'))).filter(|version| !version.is_empty()),
        evidence: format!("module {MODULE}"),
        profiles: None, // later versions do, and none can be told not to
        service: facts.variable("SW_AGENT_NAME").map(tidy),
        instance: facts.variable("SW_AGENT_INSTANCE_NAME").map(tidy),
    })
}
