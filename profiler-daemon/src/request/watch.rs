//! Follows all requests of the watched processes to their end, to count and measure them.
//!
//! In:  [`RequestEvent`]s, the kernel's view of connections
//! Out: [`SeenRequest`]s
//! Lost: counted in [`Unseen`]
//!
//! Unlike [`super::tracker`] it drops no request for the way in which it is served: which thread answers matters to
//! stacks, and not to durations. Where one thread answers several requests at once (an event loop), the kernel side
//! takes the head of the next one for the end of a response that the thread has begun, so a response that is streamed
//! may seem shorter there. Nothing of a head is kept but method and path, and the path only as the name of its endpoint.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use profiler_common::{Conn, event_flag};

use super::answer::Answer;
use super::head::RequestHead;
use super::open::LOST_END_NS;
use super::template::Templates;
use crate::model::{Pid, RequestEvent, RequestId, SeenRequest, Service, Unseen, Watched};

/// Requests followed at once; a look at each costs a system call.
const OPEN_MAX: usize = 4096;

/// A request that runs.
#[derive(Debug)]
struct Open {
    service: Arc<Service>,
    endpoint: Option<String>,
    method: String,
    pid: Pid,
    fd: i32,
    start_ktime_ns: u64,
    answer: Answer,
    /// When the kernel's connection was first found to be gone.
    gone_since_ktime_ns: Option<u64>,
}

/// All requests of the watched processes.
#[derive(Debug)]
pub struct RequestWatch {
    templates: Arc<Templates>,
    processes: HashMap<Pid, Watched>,
    open: HashMap<RequestId, Open>,
    seen: Vec<SeenRequest>,
    unseen: Unseen,
}

impl RequestWatch {
    /// Watches nobody yet.
    #[must_use]
    pub fn new(templates: Arc<Templates>) -> Self {
        Self {
            templates,
            processes: HashMap::new(),
            open: HashMap::new(),
            seen: Vec::new(),
            unseen: Unseen::default(),
        }
    }

    /// Adds a process. Returns whether it is new.
    pub fn add(&mut self, watched: Watched) -> bool {
        let pid = watched.process.pid;
        let before = self.processes.insert(pid, watched.clone());
        before.is_none_or(|before| before.process != watched.process)
    }

    /// The processes that are watched, forks included.
    pub fn processes(&self) -> impl Iterator<Item = &Watched> {
        self.processes.values()
    }

    /// Requests seen to their end since the last call.
    pub fn take_seen(&mut self) -> Vec<SeenRequest> {
        std::mem::take(&mut self.seen)
    }

    /// Requests that are under way.
    #[must_use]
    pub fn open_count(&self) -> usize {
        self.open.len()
    }

    /// What was not seen since the last call.
    pub fn take_unseen(&mut self) -> Unseen {
        std::mem::take(&mut self.unseen)
    }

    /// Takes one event of the kernel side.
    pub fn on_event(&mut self, event: RequestEvent, conns: &impl Fn(Pid, i32) -> Option<Conn>) {
        match event {
            RequestEvent::Start {
                id,
                pid,
                fd,
                start_ktime_ns,
                head,
                ..
            } => self.on_start(id, (pid, fd), start_ktime_ns, &head),
            RequestEvent::FirstWrite {
                id,
                ktime_ns,
                written_bytes,
                flags,
                head: bytes,
                ..
            }
            | RequestEvent::MoreResponse {
                id,
                ktime_ns,
                written_bytes,
                flags,
                bytes,
            } => {
                let Some(open) = self.open.get_mut(&id) else {
                    return;
                };
                let has_last_chunk = flags & event_flag::LAST_CHUNK != 0;
                open.answer.on_bytes(&bytes, written_bytes, &open.method);
                open.answer
                    .on_write(ktime_ns, written_bytes, has_last_chunk);
                if open.answer.is_over(ktime_ns) {
                    self.finish(id);
                }
            }
            RequestEvent::End {
                id,
                last_write_ktime_ns,
                written_bytes,
                flags,
                ..
            } => {
                if let Some(open) = self.open.get_mut(&id) {
                    let has_last_chunk = flags & event_flag::LAST_CHUNK != 0;
                    open.answer
                        .on_write(last_write_ktime_ns, written_bytes, has_last_chunk);
                    self.finish(id);
                }
            }
            RequestEvent::CloseRange {
                pid, first, last, ..
            } => self.on_close_range(pid, first..=last, conns),
            RequestEvent::Fork { parent, child, .. } => {
                if let Some(parent) = self.processes.get(&parent) {
                    let mut watched = parent.clone();
                    watched.process.pid = child;
                    self.processes.insert(child, watched);
                }
            }
            RequestEvent::Exec { pid, .. } => self.end_of(pid),
            RequestEvent::Exit { pid, .. } => {
                self.end_of(pid);
                self.processes.remove(&pid);
            }
            // Calls that a request makes are requests of whom it calls.
            RequestEvent::Outbound { .. } => {}
        }
    }

    fn on_start(&mut self, id: RequestId, (pid, fd): (Pid, i32), start_ktime_ns: u64, head: &[u8]) {
        let Some(watched) = self.processes.get(&pid) else {
            return; // taken from the list a moment ago
        };
        let Some(head) = RequestHead::parse(head) else {
            self.unseen.malformed += 1;
            return;
        };
        self.unseen.pipelined += head.followers as u64;
        if self.open.len() >= OPEN_MAX {
            self.unseen.over_limit += 1;
            return;
        }
        let service = &watched.service;
        let endpoint = self
            .templates
            .name(&service.name, &head.method, head.path());
        let open = Open {
            service: Arc::clone(service),
            endpoint,
            method: head.method,
            pid,
            fd,
            start_ktime_ns,
            answer: Answer::default(),
            gone_since_ktime_ns: None,
        };
        self.open.insert(id, open);
    }

    /// Looks at every open request: responses complete, ends lost.
    pub fn on_tick(&mut self, now_ktime_ns: u64, conns: &impl Fn(Pid, i32) -> Option<Conn>) {
        let mut over = Vec::new();
        for (&id, open) in &mut self.open {
            let conn = conns(open.pid, open.fd).filter(|conn| conn.request_id == id.0);
            if let Some(conn) = conn {
                open.gone_since_ktime_ns = None;
                open.answer.on_conn(&conn);
            } else {
                open.gone_since_ktime_ns.get_or_insert(now_ktime_ns);
            }
            let is_lost = open
                .gone_since_ktime_ns
                .is_some_and(|since| now_ktime_ns.saturating_sub(since) > LOST_END_NS);
            if is_lost || open.answer.is_over(now_ktime_ns) {
                over.push(id);
            }
        }
        for id in over {
            self.finish(id);
        }
    }

    /// The look ends: what is whole by now is seen, and the rest still open.
    pub fn end(&mut self, now_ktime_ns: u64, conns: &impl Fn(Pid, i32) -> Option<Conn>) {
        self.on_tick(now_ktime_ns, conns);
        let whole = self.ids(|open| open.answer.is_complete());
        for id in whole {
            self.finish(id);
        }
        self.unseen.still_open += self.open.len() as u64;
        self.open.clear();
    }

    fn on_close_range(
        &mut self,
        pid: Pid,
        descriptors: RangeInclusive<u32>,
        conns: &impl Fn(Pid, i32) -> Option<Conn>,
    ) {
        let closed =
            self.ids(|open| open.pid == pid && descriptors.contains(&open.fd.cast_unsigned()));
        for id in closed {
            if let Some(open) = self.open.get_mut(&id)
                && let Some(conn) = conns(pid, open.fd).filter(|conn| conn.request_id == id.0)
            {
                open.answer.on_conn(&conn);
            }
            self.finish(id);
        }
    }

    /// A process is gone or runs another program.
    fn end_of(&mut self, pid: Pid) {
        for id in self.ids(|open| open.pid == pid) {
            self.finish(id);
        }
    }

    fn ids(&self, wanted: impl Fn(&Open) -> bool) -> Vec<RequestId> {
        let open = self.open.iter().filter(|(_, open)| wanted(open));
        open.map(|(&id, _)| id).collect()
    }

    fn finish(&mut self, id: RequestId) {
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        let last_ktime_ns = open.answer.last_write_ktime_ns;
        self.seen.push(SeenRequest {
            service: open.service,
            endpoint: open.endpoint,
            status: open.answer.head.map(|head| head.status),
            duration_ns: open
                .answer
                .has_begun
                .then(|| last_ktime_ns.saturating_sub(open.start_ktime_ns)),
        });
    }
}

#[cfg(test)]
#[path = "watch_tests.rs"]
mod tests;
