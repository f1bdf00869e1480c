//! The thread of the daemon that looks for endpoints. It sleeps while no look is wanted.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use crossbeam_channel::{Receiver, Sender, TryRecvError, unbounded};
use tokio::sync::mpsc;

use super::look::{Look, Looked};
use crate::model::Watched;
use crate::request::Templates;
use crate::usage::release_free_memory;

/// Requests after which a look knows enough. Each costs the thread that serves it a few microseconds.
const ENOUGH_REQUESTS: u64 = 50_000;
/// A service that never falls silent is looked at in its window only; a stop does not wait for it.
const RESULTS_MAX: usize = 4;

/// What the thread is told.
#[derive(Debug)]
pub(in crate::app) enum Order {
    /// Look at these processes for so long.
    Look(Vec<Watched>, Duration),
    /// Look at these processes as well, if a look is under way.
    Add(Vec<Watched>),
    /// End the look that is under way.
    End,
}

/// The running thread; it ends when this is dropped.
#[derive(Debug)]
pub(in crate::app) struct Looker {
    orders: Sender<Order>,
    results: mpsc::Receiver<Result<Looked>>,
}

impl Looker {
    /// Starts it; nothing is loaded yet.
    ///
    /// # Errors
    ///
    /// The system has no thread left.
    pub(in crate::app) fn spawn(
        templates: Arc<Templates>,
        request_ring_bytes: u32,
    ) -> Result<Self> {
        let (orders, receiver) = unbounded();
        let (sender, results) = mpsc::channel(RESULTS_MAX);
        thread::Builder::new()
            .name("discover".to_owned())
            .spawn(move || run(&receiver, &sender, &templates, request_ring_bytes))
            .context("failed to start the thread that looks for endpoints")?;
        Ok(Self { orders, results })
    }

    /// Gives an order; without the thread it is lost.
    pub(in crate::app) fn send(&self, order: Order) {
        let _gone = self.orders.send(order);
    }

    /// Ends the look that is under way; its result.
    pub(in crate::app) async fn finish(mut self) -> Option<Result<Looked>> {
        self.send(Order::End);
        self.next().await
    }

    /// The result of the next look that ends; `None` if the thread has ended.
    pub(in crate::app) async fn next(&mut self) -> Option<Result<Looked>> {
        self.results.recv().await
    }
}

fn run(
    orders: &Receiver<Order>,
    results: &mpsc::Sender<Result<Looked>>,
    templates: &Arc<Templates>,
    request_ring_bytes: u32,
) {
    while let Ok(order) = orders.recv() {
        let Order::Look(processes, lasts) = order else {
            continue; // the look it was for is over
        };
        let look = Look::begin(Arc::clone(templates), request_ring_bytes);
        let looked = look.and_then(|look| watch(look, processes, lasts, orders));
        // Loading the programs took tens of megabytes, and the next look is minutes away.
        release_free_memory();
        if results.blocking_send(looked).is_err() {
            return;
        }
    }
}

fn watch(
    mut look: Look,
    processes: Vec<Watched>,
    lasts: Duration,
    orders: &Receiver<Order>,
) -> Result<Looked> {
    processes.into_iter().for_each(|process| look.add(process));
    while look.lasted() < lasts && look.traffic().requests() < ENOUGH_REQUESTS {
        match orders.try_recv() {
            Ok(Order::Add(processes)) => {
                processes.into_iter().for_each(|process| look.add(process));
            }
            Ok(Order::End) => break,
            // One look is under way already.
            Ok(Order::Look(..)) | Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => break,
        }
        look.step()?;
    }
    Ok(look.end())
}
