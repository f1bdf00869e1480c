//! The daemon and a real SkyWalking OAP: what it keeps and shows of what we send.
//!
//! Needs what `cargo xtask setup --oap` fetches.

mod agent;
mod builtin;
mod comparison;
mod endpoints;
pub(crate) mod gunicorn;
mod query;
mod questions;
mod relay;
mod schema;
mod several;
mod survival;
mod trust;

use std::time::Duration;

use profiler_tests::SkywalkingOap;

/// An OAP hands out a new task within 10 s; agents ask for it every second here.
const TASK_ARRIVES: Duration = Duration::from_secs(40);

/// Says what the OAP complained about, such as rows with a key that is taken.
#[track_caller]
fn assert_no_error_is_logged(oap: &SkywalkingOap) {
    let log = oap.log().unwrap();
    let errors: Vec<&str> = log
        .lines()
        .filter(|line| line.contains(" ERROR "))
        .collect();
    assert_eq!(errors, [""; 0], "in the log of the OAP");
}
