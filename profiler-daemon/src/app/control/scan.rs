//! Looks for processes again and again, and has tasks watch those that are theirs.
//!
//! In:  /proc, by the process table; pods, rules and agents' instances as they are now
//! Out: service instances to the OAP; processes of live tasks to the pipeline, once they are inspected
//! Lost: nothing; what waits for a later scan is told

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Command, Control};
use crate::app::inspection::{Inspected, Inspection};
use crate::model::{Counter, LeftOut, TaskId};
use crate::oap::Reporting;
use crate::process::table::Process;
use crate::process::{Changes, InstanceOrigin, ProcessTable};

/// A server that opens several ports one after the other has them all after so long.
const SETTLES: Duration = Duration::from_secs(1);

/// Time between two messages about looks that wait.
const POSTPONED_TOLD: Duration = Duration::from_secs(60);

/// Names reported by [`Control::tell_clashes`]; processes can make up any number.
const CLASHES_MAX: usize = 64;

impl Control {
    /// Looks at /proc, on another thread: with hundreds of processes it takes some milliseconds, and processes may make it last.
    pub(super) fn begin_scan(&mut self) {
        let Some(mut table) = self.table.take() else {
            self.must_scan_again = true;
            return;
        };
        self.settles_at = None;
        table.set_rules(self.config.services.clone(), self.choice());
        if let Some(watched) = &mut self.pods {
            table.set_pods(Arc::clone(&watched.pods.borrow_and_update()));
        }
        table.set_agent_instances(std::mem::take(&mut self.found_instances));
        self.scan.spawn_blocking(move || {
            let result = table.scan();
            (table, result)
        });
    }

    /// Looks at ports alone, if no scan is under way, which looks at them as well.
    pub(super) fn begin_settling(&mut self) {
        self.settles_at = None;
        if let Some(mut table) = self.table.take() {
            self.scan.spawn_blocking(move || {
                let changes = table.scan_settling();
                (table, Ok(changes))
            });
        }
    }

    pub(super) fn end_scan(&mut self, table: Box<ProcessTable>, result: std::io::Result<Changes>) {
        match result {
            Ok(changes) => {
                self.processes = table.processes().clone();
                self.tell_postponed(&changes);
                if !changes.is_empty() {
                    let services = self.processes.instances().map(|identity| {
                        let service = identity.service.clone();
                        let properties = Arc::clone(&identity.properties);
                        let reporting = Reporting::new(service, properties, identity.layer.clone());
                        Reporting {
                            is_agents: identity.instance_origin == InstanceOrigin::Agent,
                            ..reporting
                        }
                    });
                    self.oap.set_services(services.collect::<Vec<_>>());
                    self.tell_clashes();
                }
            }
            Err(error) => tracing::warn!(%error, "processes could not be listed"),
        }
        if table.settles_soon() {
            self.settles_at = Some(Instant::now() + SETTLES);
        }
        self.table = Some(table);
        for live in self.live.values_mut() {
            live.watched
                .retain(|&process| self.processes.find(process).is_some());
        }
        self.leave_out_denied();
        let tasks: Vec<TaskId> = self.live.keys().cloned().collect();
        for task_id in tasks {
            self.watch_new(&task_id);
        }
        let news = self.discovery.overdue(&self.processes);
        self.oap.tell_endpoints(news);
        self.agent_instances.mind(&self.processes);
        self.mind_discovery();
        if std::mem::take(&mut self.must_scan_again) {
            self.begin_scan();
        }
    }

    /// Watches those no more that are not to be profiled any more.
    fn leave_out_denied(&mut self) {
        let denied = |process: &Process| Some((process.key, process.denial.clone()?));
        let denied: Vec<_> = self.processes.iter().filter_map(denied).collect();
        self.discovery.leave_out(denied.iter().map(|&(key, _)| key));
        for (key, denial) in denied {
            let live = self.live.values_mut();
            // For one task or more: the pipeline tells them all.
            let was_watched = live.filter_map(|live| live.watched.take(&key)).count() > 0;
            if was_watched {
                let why = format!("process {key} is not to be profiled any more: {denial}");
                tracing::info!("{why}");
                let why = LeftOut::Denied(why);
                self.pipeline.send(Command::LeaveOut(key.pid, why));
            }
        }
    }

    /// Looks for endpoints if it is time to, unless the overhead guard acts.
    pub(super) fn mind_discovery(&mut self) {
        let guard_acts = self.overhead.stretch() > 1;
        self.discovery.mind(&self.processes, guard_acts);
    }

    /// Says at most once a minute whose processes take too long to look at.
    fn tell_postponed(&mut self, changes: &Changes) {
        let is_due = self
            .postponed_told
            .is_none_or(|told| told.elapsed() >= POSTPONED_TOLD);
        if !changes.postponed.is_empty() && is_due {
            self.postponed_told = Some(Instant::now());
            for (user, count) in &changes.postponed {
                tracing::warn!(
                    user,
                    count,
                    "looking at this user's processes takes too long; some wait for a later scan"
                );
            }
        }
    }

    /// Says once that an OAP takes several services for one.
    fn tell_clashes(&mut self) {
        for (process, name) in self.processes.posing() {
            let told = format!("{:?} {name}", process.uid);
            if self.clashes_told.len() < CLASHES_MAX && self.clashes_told.insert(told) {
                tracing::warn!(
                    tgid = %process.key, uid = process.uid, name, service = process.identity.service.name,
                    "a process is known by the name of a service of other users, and is a service of its own"
                );
            }
        }
        for (name, full) in self.processes.clashes() {
            if self.clashes_told.len() < CLASHES_MAX && self.clashes_told.insert(name.to_owned()) {
                let services: Vec<&str> = full.into_iter().collect();
                tracing::warn!(
                    name,
                    ?services,
                    "an OAP keeps 70 characters of a name, so it shows these as one service"
                );
            }
        }
    }

    /// Inspects processes of a task's instances that are not watched yet, to add them.
    pub(super) fn watch_new(&mut self, task_id: &TaskId) {
        let Some(live) = self.live.get_mut(task_id) else {
            return;
        };
        for service in live.instances.keys() {
            for process in self.processes.processes_of(service) {
                let key = process.key;
                if !live.watched.insert(key) {
                    continue;
                }
                if let Some(text) = self.bindings.left_to_agent(key.pid, process.agent.as_ref()) {
                    tracing::warn!(%task_id, "{text}");
                    self.pipeline.send(Command::Note {
                        slot: live.slot,
                        counter: Some(Counter::ProcessesLeftToAgent),
                        text,
                    });
                    continue;
                }
                self.inspections.push(Inspection {
                    task_id: task_id.clone(),
                    slot: live.slot,
                    process: key,
                    service: service.clone(),
                    has_agent: process.agent.is_some(),
                });
            }
        }
    }

    pub(super) fn end_inspection(&mut self, inspected: Inspected) {
        let Inspected {
            task_id,
            process,
            commands,
        } = inspected;
        let Some(live) = self.live.get_mut(&task_id) else {
            return; // it is over
        };
        if !live.watched.contains(&process) {
            return; // it has ended, or is not to be profiled any more
        }
        match commands {
            Some(commands) => commands
                .into_iter()
                .for_each(|command| self.pipeline.send(command)),
            // Its interpreter still starts: the next scan asks again.
            None => {
                live.watched.remove(&process);
            }
        }
    }
}
