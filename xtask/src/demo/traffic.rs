//! Mixed requests to the sample service for as long as the value lives.
//!
//! One connection alternates `POST /` and `GET /busy`, as one client would; another asks `GET /fast`
//! all the time. The two slow endpoints never overlap: `GET /busy` holds CPython's interpreter lock, and
//! a sleeping request that wakes meanwhile waits for it up to 5 ms each time, which is no error of the
//! profiler but would look like one beside the expected durations.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Result, ensure};
use profiler_test_support::HttpClient;

const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const FAST_PAUSE: Duration = Duration::from_millis(50);

/// Endpoints that are asked, as SkyWalking names them.
pub(crate) const POST: &str = "POST:/";
pub(super) const BUSY: &str = "GET:/busy";

/// Running clients; they stop when dropped.
#[derive(Debug)]
pub(crate) struct Traffic {
    shared: Arc<Shared>,
    clients: Vec<JoinHandle<Result<()>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    answered: AtomicU64,
}

impl Traffic {
    /// Starts the clients.
    pub(crate) fn start(server: SocketAddr) -> Self {
        let shared = Arc::new(Shared::default());
        let slow = [("POST", "/", "{\"order\": 1}"), ("GET", "/busy", "")];
        let fast = [("GET", "/fast", "")];
        let clients = vec![
            client(&shared, server, slow.to_vec(), Duration::ZERO),
            client(&shared, server, fast.to_vec(), FAST_PAUSE),
        ];
        Self { shared, clients }
    }

    /// Requests answered so far.
    pub(super) fn answered(&self) -> u64 {
        self.shared.answered.load(Ordering::Relaxed)
    }

    /// Stops the clients.
    ///
    /// # Errors
    /// One of them had no good answer.
    pub(super) fn stop(mut self) -> Result<()> {
        self.shared.stop.store(true, Ordering::Relaxed);
        for client in self.clients.drain(..) {
            client.join().expect("a client does not panic")?;
        }
        Ok(())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

fn client(
    shared: &Arc<Shared>,
    server: SocketAddr,
    requests: Vec<(&'static str, &'static str, &'static str)>,
    pause: Duration,
) -> JoinHandle<Result<()>> {
    let shared = Arc::clone(shared);
    thread::spawn(move || {
        let mut connection = HttpClient::connect(server, REQUEST_TIMEOUT)?;
        for (method, target, body) in requests.into_iter().cycle() {
            if shared.stop.load(Ordering::Relaxed) {
                break;
            }
            let answer = connection.request(method, target, body)?;
            ensure!(answer.status == 200, "{method} {target}: {}", answer.status);
            shared.answered.fetch_add(1, Ordering::Relaxed);
            thread::sleep(pause);
        }
        Ok(())
    })
}
