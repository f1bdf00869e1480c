//! gunicorn with `tests/services/wsgi_app.py`.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use anyhow::Result;
use profiler_tests::{
    ChildGuard, HttpClient, free_port, python_agent_folder, wait_until, workspace_root,
};

use crate::DEADLINE;

/// A running gunicorn with two processes that answer, one request at a time each; ends when dropped.
pub(crate) struct Gunicorn {
    child: ChildGuard,
    address: SocketAddr,
}

impl Gunicorn {
    pub(crate) fn start(service: &str) -> Self {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap()));
        let mut command = Command::new(python_agent_folder().join("bin/gunicorn"));
        command
            .args(["--workers", "2", "--log-level", "error", "--bind"])
            .arg(address.to_string())
            .arg("--chdir")
            .arg(workspace_root().join("tests/services"))
            .arg("wsgi_app:application")
            .env("SW_AGENT_NAME", service)
            .env("SW_AGENT_INSTANCE_NAME", "one");
        let child = ChildGuard::spawn("gunicorn", &mut command).unwrap();
        let mut gunicorn = Self { child, address };
        wait_until("gunicorn to answer", DEADLINE, || {
            gunicorn.child.still_running()?;
            Ok(gunicorn.get("/").ok())
        })
        .unwrap();
        gunicorn
    }

    /// Its first process, which forks the others.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// One request on a connection of its own: a worker of this kind closes it after its answer.
    pub(crate) fn get(&self, path: &str) -> Result<u16> {
        let mut client = HttpClient::connect(self.address, Duration::from_secs(10))?;
        Ok(client.request("GET", path, "")?.status)
    }
}
