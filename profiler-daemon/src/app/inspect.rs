//! Looks at a process before it is profiled.

use std::sync::Arc;

use super::capture::{Command, NewTarget};
use crate::model::{Counter, ProcessKey, Service, TaskSlot};
use crate::process::patience;
use crate::process::procfs::Procfs;
use crate::process::python::{PythonError, PythonRuntime};
use crate::process::{RequestModel, Runtime};

/// The commands that add a process to a task, with what is known about its runtime. `None` if its
/// interpreter still starts (ask again) or the process has just ended. Reads the process's memory,
/// which takes some milliseconds, or some seconds if the process does not let itself be read.
pub(super) fn inspect(
    slot: TaskSlot,
    process: ProcessKey,
    service: Service,
    has_agent: bool,
) -> Option<Vec<Command>> {
    let pid = process.pid;
    match patience::look(pid, move || look(slot, process, service, has_agent)) {
        Ok(commands) => commands,
        Err(error) => Some(vec![Command::Note {
            slot,
            counter: Some(Counter::ProcessesUnreadable),
            text: error.to_string(),
        }]),
    }
}

fn look(
    slot: TaskSlot,
    process: ProcessKey,
    service: Service,
    has_agent: bool,
) -> Option<Vec<Command>> {
    let note = |counter, text| Command::Note {
        slot,
        counter,
        text,
    };
    let pid = process.pid;
    // Read first: if the process runs another program meanwhile, this shows it.
    let program = Procfs::default().stat(pid).ok()?;
    if let Ok(runtime) = Runtime::detect(pid)
        && let RequestModel::Unsupported(why) = runtime.request_model()
    {
        let text = format!("process {pid} ({runtime}) is not profiled: {why}");
        return Some(vec![note(Some(Counter::ProcessesUnsupported), text)]);
    }
    let mut commands = Vec::new();
    let python = match PythonRuntime::detect(pid) {
        Ok(python) => python.map(Arc::new),
        Err(PythonError::Starting { .. }) => return None,
        Err(_) if !Procfs::default().has(process) => return None,
        Err(error) => {
            let why = anyhow::Error::from(error);
            commands.push(note(
                None,
                format!("process {pid}: no Python frames: {why:#}"),
            ));
            None
        }
    };
    commands.push(Command::AddTarget(NewTarget {
        slot,
        process,
        service,
        program,
        python,
        python_threads: Vec::new(),
        has_agent,
    }));
    Some(commands)
}
