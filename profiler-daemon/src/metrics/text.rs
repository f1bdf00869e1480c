//! Turns an [`Observation`] into Prometheus' text.
//!
//! In:  an [`Observation`]
//! Out: text format 0.0.4, one family for each figure
//!
//! # Why one family for each counter
//!
//! A label `counter` would make sums over it possible, and they mean nothing: requests and periods do not
//! add up. <https://prometheus.io/docs/practices/naming/> asks that they do. The one label there is, `ring`,
//! has two values.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, NoLabelSet, prometheus_text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;

use crate::model::{
    CaptureObservation, Counter, DeliveryObservation, DiscoveryObservation, Observation,
    ProcessObservation, RingObservation, TaskObservation,
};

/// What `GET /metrics` answers.
#[must_use]
pub fn text(observation: &Observation) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Families(observation.clone())));
    let mut text = String::new();
    prometheus_text::encode(&mut text, &registry).expect("a String takes any text");
    text
}

#[derive(Debug)]
struct Families(Observation);

impl Collector for Families {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let Observation {
            process,
            obstacles,
            tasks,
            capture,
            discovery,
            delivery,
            counters,
        } = &self.0;
        let mut page = Page(encoder);
        page.process(process)?;
        page.gauge(
            "profilerd_ready",
            "1 while the daemon can do its work; /readyz says why it cannot",
            u64::from(obstacles.is_empty()),
        )?;
        page.tasks(tasks)?;
        page.capture(capture)?;
        page.discovery(discovery)?;
        page.delivery(delivery)?;
        for counter in Counter::all() {
            let name = format!("profilerd_{}", counter.name());
            let count = counters.get(counter.name()).copied().unwrap_or(0);
            page.counter(&name, counter.text(), count)?;
        }
        Ok(())
    }
}

/// What is written so far.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn process(&mut self, process: &ProcessObservation) -> Result<(), Error> {
        let help = "a constant 1; the label has the version of profilerd";
        let mut info = self
            .0
            .encode_descriptor("profilerd_build", help, None, MetricType::Info)?;
        info.encode_info(&[("version", process.version.as_str())])?;
        self.counter(
            "process_cpu_seconds",
            "CPU time of all threads of the daemon, in user and kernel mode",
            process.cpu_seconds,
        )?;
        self.gauge(
            "process_resident_memory_bytes",
            "resident memory of the daemon",
            process.resident_bytes,
        )?;
        self.gauge(
            "process_open_fds",
            "open descriptors of the daemon",
            process.open_fds,
        )?;
        self.gauge(
            "process_start_time_seconds",
            "when the daemon started, in seconds since the epoch",
            seconds_of_ms(process.start_unix_ms),
        )
    }

    fn tasks(&mut self, tasks: &TaskObservation) -> Result<(), Error> {
        self.gauge(
            "profilerd_tasks_live",
            "tasks that run, or that have ended and wait for their last results",
            tasks.live,
        )?;
        self.gauge(
            "profilerd_tasks_waiting",
            "tasks that wait for their start, once for each service instance",
            tasks.waiting,
        )?;
        self.counter("profilerd_tasks_started", "tasks started", tasks.started)?;
        self.counter(
            "profilerd_tasks_refused",
            "tasks refused, once for each service instance",
            tasks.refused,
        )?;
        self.counter(
            "profilerd_tasks_failed",
            "tasks that failed because the BPF programs could not be set up",
            tasks.failed,
        )?;
        self.gauge(
            "profilerd_dump_period_factor",
            "dump period in use, divided by the one that tasks ask for; more than 1 while the overhead guard acts",
            tasks.period_factor,
        )?;
        self.gauge("profilerd_processes", "processes known", tasks.processes)?;
        self.gauge(
            "profilerd_processes_left_out",
            "processes that are left out because they do not let themselves be read",
            tasks.processes_left_out,
        )?;
        self.gauge(
            "profilerd_processes_refused",
            "processes that are not to be profiled, by their pod or the configuration",
            tasks.processes_refused,
        )?;
        self.gauge(
            "profilerd_service_instances",
            "service instances reported to the OAP",
            tasks.instances,
        )?;
        self.gauge(
            "profilerd_services",
            "services of these instances",
            tasks.services,
        )?;
        self.gauge(
            "profilerd_requests_unbound",
            "profiled requests that wait for the segment of their agent",
            tasks.requests_unbound,
        )
    }

    fn capture(&mut self, capture: &CaptureObservation) -> Result<(), Error> {
        self.gauge(
            "profilerd_bpf_attached",
            "1 while the BPF programs are attached",
            u64::from(capture.is_attached),
        )?;
        self.gauge(
            "profilerd_tick_period_seconds",
            "time between two ticks, at which threads are sampled; 0 while nothing is attached",
            capture.tick_period_ns as f64 / 1e9,
        )?;
        self.gauge(
            "profilerd_requests_open",
            "matched requests that are open",
            capture.open_requests,
        )?;
        self.gauge(
            "profilerd_sample_queue_length",
            "samples and events of their requests that wait for unwinding",
            capture.queued_samples,
        )?;
        self.gauge(
            "profilerd_sample_queue_size",
            "largest length of that queue (limits.sample_queue)",
            capture.queue_size,
        )?;
        let rings = [
            ("requests", &capture.request_ring),
            ("samples", &capture.sample_ring),
        ];
        self.rings(
            "profilerd_ring_used_bytes",
            "largest backlog found by one read during the last second",
            rings.map(|(name, ring): (_, &RingObservation)| (name, ring.used_bytes)),
        )?;
        self.rings(
            "profilerd_ring_peak_bytes",
            "largest backlog found by one read since the start",
            rings.map(|(name, ring)| (name, ring.peak_bytes)),
        )?;
        self.rings(
            "profilerd_ring_size_bytes",
            "size of the ring buffer (limits.requests_ring, limits.samples_ring)",
            rings.map(|(name, ring)| (name, ring.size_bytes)),
        )
    }

    fn discovery(&mut self, discovery: &DiscoveryObservation) -> Result<(), Error> {
        self.gauge(
            "profilerd_discovery_looking",
            "1 while a window is open, in which programs that see requests are attached",
            u64::from(discovery.is_looking),
        )?;
        self.counter(
            "profilerd_discovery_windows",
            "windows that have ended",
            discovery.windows,
        )?;
        self.counter(
            "profilerd_discovery_windows_failed",
            "windows that failed because the BPF programs could not be set up",
            discovery.failed,
        )?;
        self.counter(
            "profilerd_discovery_requests",
            "requests seen in windows",
            discovery.requests,
        )?;
        self.counter(
            "profilerd_discovery_requests_unseen",
            "requests of windows that were not seen, or not to their end, as far as that is known",
            discovery.unseen,
        )?;
        self.counter(
            "profilerd_discovery_requests_over_limit",
            "requests that count under other endpoints, because a service or the host has too many names",
            discovery.requests_over_limit,
        )?;
        self.gauge(
            "profilerd_endpoints",
            "endpoints known of services without an agent",
            discovery.endpoints,
        )?;
        self.counter(
            "profilerd_endpoints_over_limit",
            "sights of endpoints that are not kept, because there are too many",
            discovery.endpoints_over_limit,
        )
    }

    fn delivery(&mut self, delivery: &DeliveryObservation) -> Result<(), Error> {
        self.gauge(
            "profilerd_oap_connected",
            "1 while an OAP answers",
            u64::from(delivery.is_connected),
        )?;
        self.counter(
            "profilerd_oap_connections",
            "connections made to an OAP; all but the first are reconnects",
            delivery.connections,
        )?;
        self.gauge(
            "profilerd_oap_last_answer_timestamp_seconds",
            "when an OAP answered last, in seconds since the epoch; 0 before the first answer",
            seconds_of_ms(delivery.last_answer_unix_ms.unwrap_or(0)),
        )?;
        self.gauge(
            "profilerd_oap_clock_skew_seconds",
            "clock of the OAP minus clock of this host, at least; 0 if they differ by less than a second",
            seconds_of_ms(delivery.clock_skew_ms),
        )?;
        self.counter(
            "profilerd_segments_sent",
            "trace segments accepted by the OAP",
            delivery.segments_sent,
        )?;
        self.counter(
            "profilerd_segments_lost",
            "trace segments not delivered to the OAP, or without its confirmation",
            delivery.segments_lost,
        )?;
        self.counter(
            "profilerd_task_ends_reported",
            "ends of tasks reported to the OAP, once for each service instance",
            delivery.ends_reported,
        )?;
        self.gauge(
            "profilerd_delivery_queue_snapshots",
            "snapshots that wait in memory or are being sent (limits.snapshot_queue)",
            delivery.queued_snapshots,
        )?;
        self.gauge(
            "profilerd_delivery_queue_bytes",
            "memory of the requests that wait or are being sent (limits.snapshot_memory)",
            delivery.queued_bytes,
        )?;
        self.gauge(
            "profilerd_spool_bytes",
            "size of the files that keep requests for which memory has no room (limits.spool)",
            delivery.spool_bytes,
        )?;
        self.gauge(
            "profilerd_spool_files",
            "number of these files",
            delivery.spool_files,
        )
    }

    /// A counter; `_total` is put behind its name.
    fn counter(
        &mut self,
        name: &str,
        help: &str,
        value: impl EncodeCounterValue,
    ) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        family.encode_gauge(&value)
    }

    fn rings(&mut self, name: &str, help: &str, values: [(&str, u64); 2]) -> Result<(), Error> {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (ring, value) in values {
            family
                .encode_family(&[("ring", ring)])?
                .encode_gauge(&value)?;
        }
        Ok(())
    }
}

fn seconds_of_ms(ms: i64) -> f64 {
    ms as f64 / 1e3
}
