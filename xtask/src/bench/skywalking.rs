//! With a SkyWalking OAP: how soon a task runs, and how soon its result is there.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use profiler_test_support::{ChildGuard, SampleService, SkywalkingOap, wait_until};
use serde_json::{Value, json};

use super::statistics::median;
use super::table::{Goal, Table};
use crate::command::step;
use crate::daemon::is_armed;

/// One service each: an OAP takes one task of a service at a time.
const TASKS: u32 = 6;
/// Between two creations, so that they fall differently into the 10 s after which an OAP looks for new
/// tasks.
const STAGGER: Duration = Duration::from_millis(1700);
/// That time and 2 s more.
const ARMED_GOAL_S: f64 = 12.0;
const DEADLINE: Duration = Duration::from_secs(60);

const CREATE: &str = "mutation ($r: ProfileTaskCreationRequest) { \
    it: createProfileTask(creationRequest: $r) { id } }";
const SERVICE: &str = "query ($n: String!) { it: findService(serviceName: $n) { id } }";
const SEGMENTS: &str = "query ($t: ID!) { it: getProfileTaskSegments(taskID: $t) { traceId } }";

/// Adds both figures.
pub(super) fn measure(binary: &Path, folder: &Path, table: &mut Table) -> Result<()> {
    step("tasks of a SkyWalking OAP");
    let oap = SkywalkingOap::start(folder)?;
    let names: Vec<String> = (0..TASKS).map(|n| format!("bench-oap-{n}")).collect();
    let start = |name: &String| SampleService::start(Path::new("python3"), name, None);
    let services: Vec<SampleService> = names.iter().map(start).collect::<Result<_>>()?;
    let log = folder.join("profilerd-oap.log");
    let log_file = File::create(&log)?;
    let mut command = Command::new(binary);
    command
        .args(["daemon", "--state-dir", "none"])
        .args(["--backend", &oap.grpc().to_string()])
        .env("PROFILERD_DISCOVERY_MODE", "off")
        .stdin(Stdio::null())
        .stdout(log_file.try_clone()?)
        .stderr(log_file);
    let mut daemon = ChildGuard::spawn("profilerd", &mut command)?;

    let mut arming = Arming::new(&log);
    let mut last = String::new();
    for name in &names {
        let id = wait_until("the service in the OAP", DEADLINE, || {
            daemon.still_running()?;
            let found = oap.graphql(SERVICE, &json!({ "n": name }))?;
            Ok(found["it"]["id"].as_str().map(str::to_owned))
        })?;
        last = create(&oap, &id)?;
        arming.waiting.push((last.clone(), Instant::now()));
        let next = Instant::now() + STAGGER;
        wait_until("the next creation", DEADLINE, || {
            arming.look()?;
            Ok((Instant::now() >= next).then_some(()))
        })?;
    }
    wait_until("the tasks to be armed", DEADLINE, || {
        arming.look()?;
        Ok(arming.waiting.is_empty().then_some(()))
    })?;
    let armed_s = arming.armed_s;
    let worst_s = armed_s.iter().copied().fold(0.0, f64::max);
    let name = "SkyWalking OAP: task created to armed, median";
    table.add(name, median(&armed_s), "s", Goal::None);
    let name = format!("SkyWalking OAP: task created to armed, worst of {TASKS}");
    table.add(name, worst_s, "s", Goal::AtMost(ARMED_GOAL_S));

    // Of the last service, whose task was created last.
    services[services.len() - 1]
        .connect()?
        .request("POST", "/", "{}")?;
    let ended = Instant::now();
    wait_until("the request in the OAP", DEADLINE, || {
        let listed = oap.graphql(SEGMENTS, &json!({ "t": last }))?;
        let is_listed = listed["it"].as_array().is_some_and(|list| !list.is_empty());
        Ok(is_listed.then_some(()))
    })?;
    let name = "SkyWalking OAP: request answered to shown";
    table.add(name, ended.elapsed().as_secs_f64(), "s", Goal::None);
    Ok(())
}

/// Tasks between their creation and the daemon's word that it looks at requests.
struct Arming<'a> {
    log: &'a Path,
    waiting: Vec<(String, Instant)>,
    armed_s: Vec<f64>,
}

impl<'a> Arming<'a> {
    fn new(log: &'a Path) -> Self {
        Self {
            log,
            waiting: Vec::new(),
            armed_s: Vec::new(),
        }
    }

    fn look(&mut self) -> Result<()> {
        let text = fs::read_to_string(self.log)?;
        let armed = self
            .waiting
            .extract_if(.., |(task_id, _)| is_armed(&text, task_id));
        let waited = armed.map(|(_, created)| created.elapsed().as_secs_f64());
        self.armed_s.extend(waited);
        Ok(())
    }
}

fn create(oap: &SkywalkingOap, service_id: &str) -> Result<String> {
    let request = json!({
        "serviceId": service_id, "endpointName": "POST:/", "startTime": Value::Null, "duration": 5,
        "minDurationThreshold": 0, "dumpPeriod": 10, "maxSamplingCount": 5,
    });
    let created = oap.graphql(CREATE, &json!({ "r": request }))?;
    let id = created["it"]["id"].as_str().map(str::to_owned);
    id.with_context(|| format!("the OAP refuses the task: {created}"))
}
