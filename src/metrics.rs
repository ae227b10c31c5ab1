//! Every number mailramp shows to Prometheus, behind one struct with a handle per series.
//!
//! `docs/metrics.md` is the contract: names, types, labels. All series exist from the start, at 0, so that a rate or an
//! alert never meets a series that is born with its first event. Label values come from the enums here and from the
//! configured stream names, never from mail: no address, domain, IP or queue id, and the number of series has a ceiling
//! ([`SERIES_MAX`]).
//!
//! Two kinds of series: counters and histograms are raised where things happen, by handles that cost tens of
//! nanoseconds; gauges that mirror state (queue, warm-up, routes, disk) are set at scrape time by
//! `admin::mirror`, so the path of a message never touches them.
//!
//! Deliberately absent: a global registry. Each relay has its own, so tests can run many in one process.

mod labels;

use std::marker::PhantomData;
use std::sync::{Mutex, OnceLock};

use prometheus::core::Collector;
use prometheus::proto::MetricFamily;
use prometheus::{Encoder, Gauge, Histogram, HistogramOpts, IntCounter, IntGauge, Opts, Registry, TextEncoder};

pub use labels::*;

use crate::message::{Reason, Route, StreamId, Timestamp};

/// Most series one relay may export, with the largest number of streams.
pub const SERIES_MAX: usize = 1_500;
/// Most streams that get a label value of their own: 32 configured ones and the default.
pub const STREAMS_MAX: usize = 33;

/// Media type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// One `M` for each value of a label. Nests: `By<Route, By<ReplyClass, IntCounter>>`.
pub struct By<L, M> {
    cells: Vec<M>,
    label: PhantomData<L>,
}

impl<L: Label, M> By<L, M> {
    fn new(mut make: impl FnMut(&'static str) -> M) -> Self {
        By { cells: L::ALL.iter().map(|label| make(label.text())).collect(), label: PhantomData }
    }

    pub fn of(&self, label: L) -> &M {
        &self.cells[label.index()]
    }
}

/// One `M` for each stream that counts by its own name. They can become more, and never fewer.
pub struct ByStream<M> {
    /// By id.
    cells: Vec<OnceLock<M>>,
    make: Box<dyn Fn(&str) -> M + Send + Sync>,
}

impl<M> ByStream<M> {
    fn new(names: &[String], make: impl Fn(&str) -> M + Send + Sync + 'static) -> Self {
        let cells = (0..=u8::MAX).map(|_| OnceLock::new()).collect();
        let of_all = ByStream { cells, make: Box::new(make) };
        names.iter().zip(0..).for_each(|(name, id)| of_all.add(StreamId(id), name));
        of_all
    }

    fn add(&self, stream: StreamId, name: &str) {
        self.cells[usize::from(stream.0)].get_or_init(|| (self.make)(name));
    }

    fn counted(&self) -> usize {
        self.cells.iter().filter(|cell| cell.get().is_some()).count()
    }

    /// A stream that does not count by its own name counts as the default.
    pub fn of(&self, stream: StreamId) -> &M {
        let default = || self.cells[0].get().expect("the default is there from the start");
        self.cells[usize::from(stream.0)].get().unwrap_or_else(default)
    }
}

/// What `build_info` says.
#[derive(Clone, Debug)]
pub struct Build {
    pub version: String,
    pub revision: String,
}

impl Default for Build {
    /// This crate's version; the revision as the build set `MAILRAMP_REVISION`, else "unknown".
    fn default() -> Self {
        let revision = option_env!("MAILRAMP_REVISION").unwrap_or("unknown");
        Build { version: env!("CARGO_PKG_VERSION").into(), revision: revision.into() }
    }
}

/// Why the metrics could not be set up; a fault of the settings.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    #[error("{0} streams, but at least the default and at most {STREAMS_MAX} with it can be counted")]
    Streams(usize),
    #[error("metrics: {0}")]
    Registry(#[from] prometheus::Error),
}

/// All series of one relay. Fields are named as the series are, without prefix and `_total`.
pub struct Metrics {
    registry: Registry,
    adding_streams: Mutex<()>,

    pub config_last_reload_successful: IntGauge,
    pub config_last_reload_success_timestamp_seconds: Gauge,

    pub smtp_connections: IntGauge,
    pub smtp_connections_total: By<ConnectionResult, IntCounter>,
    pub smtp_messages_received: ByStream<IntCounter>,
    pub smtp_recipients_received: ByStream<IntCounter>,
    pub smtp_rejections: By<Rejection, IntCounter>,
    pub smtp_accept_duration_seconds: Histogram,

    pub routed_recipients: ByStream<By<Route, By<Reason, IntCounter>>>,
    pub delivery_attempts: By<Route, By<Provider, By<AttemptResult, IntCounter>>>,
    pub upstream_replies: By<Route, By<ReplyClass, By<Category, IntCounter>>>,
    pub delivery_duration_seconds: By<Route, Histogram>,
    pub queue_wait_seconds: By<Route, Histogram>,
    pub queue_expired: IntCounter,
    pub delivery_reports: By<ReportResult, IntCounter>,
    pub queue_admin_actions: By<AdminAction, IntCounter>,
    pub dry_run_recipients: DryRunRecipients,
    pub stream_admin_actions: By<StreamAction, IntCounter>,

    pub warmup_day_boundaries: By<DayOutcome, IntCounter>,
    pub warmup_overrun_recipients: IntCounter,
    pub warmup_brakes: By<Provider, By<BrakeStep, IntCounter>>,
    pub warmup_brake_active: By<Provider, IntGauge>,
    pub warmup_admin_actions: By<WarmupAction, IntCounter>,

    pub mx_lookups: By<MxResult, IntCounter>,
    pub mx_cache_domains: IntGauge,

    pub spool_sync_duration_seconds: Histogram,
    pub spool_errors: IntCounter,

    pub http_requests: By<Handler, By<HttpCode, IntCounter>>,

    /// Set at scrape time.
    pub mirrored: Mirrored,
}

/// The gauges that repeat what a snapshot says.
pub struct Mirrored {
    pub upstream_up: By<Route, IntGauge>,
    pub upstream_connections: By<Route, IntGauge>,
    pub warmup_day: IntGauge,
    /// `+Inf` when there is no limit.
    pub warmup_limit_recipients: Gauge,
    pub warmup_sent_recipients: IntGauge,
    pub warmup_target_recipients: IntGauge,
    /// `+Inf` when there is no limit.
    pub warmup_tokens: Gauge,
    /// `+Inf` when there is no limit, and for a provider without a lane.
    pub warmup_provider_limit_recipients: By<Provider, Gauge>,
    pub warmup_provider_sent_recipients: By<Provider, IntGauge>,
    pub warmup_paused: IntGauge,
    pub warmup_complete: IntGauge,
    pub warmup_day_end_timestamp_seconds: Gauge,
    pub clock_trusted: IntGauge,
    pub dry_run: IntGauge,
    pub queue_messages: By<QueueState, IntGauge>,
    pub queue_bytes: By<QueueState, IntGauge>,
    pub queue_oldest_message_timestamp_seconds: By<QueueState, Gauge>,
    pub spool_free_bytes: IntGauge,
}

// From a loaded disk's single fsync to a client that gave up.
const ACCEPT_BUCKETS: &[f64] = &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
const SYNC_BUCKETS: &[f64] = &[0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
// Up to the ten minutes a next hop may take after the final dot (RFC 5321 §4.5.3.2.6).
const DELIVERY_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];
// From "at once" over the default max_wait of 15 minutes to the days a queue may keep mail.
const WAIT_BUCKETS: &[f64] =
    &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14_400.0, 43_200.0, 86_400.0, 432_000.0];

impl Metrics {
    /// `streams` in the order of their [`StreamId`]s, the default first.
    pub fn new(build: &Build, streams: &[String]) -> Result<Metrics, MetricsError> {
        if streams.is_empty() || streams.len() > STREAMS_MAX {
            return Err(MetricsError::Streams(streams.len()));
        }
        let make = Maker { registry: Registry::new() };

        let info = Opts::new("mailramp_build_info", "Always 1; the labels say which build this is.")
            .const_label("version", &build.version)
            .const_label("revision", &build.revision);
        make.register(IntGauge::with_opts(info)?)?.set(1);
        #[cfg(target_os = "linux")]
        make.registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;

        let connections =
            make.counters("smtp_connections_total", "Client connections by what became of them.", &["result"])?;
        let messages = make.counters("smtp_messages_received_total", "Messages accepted with 250.", &["stream"])?;
        let recipients =
            make.counters("smtp_recipients_received_total", "Recipients of messages accepted with 250.", &["stream"])?;
        let rejections = make.counters("smtp_rejections_total", "Refusals to clients.", &["reason"])?;
        let routed = make.counters(
            "routed_recipients_total",
            "Recipients by the route they were given and why.",
            &["stream", "route", "reason"],
        )?;
        let attempts = make.counters(
            "delivery_attempts_total",
            "Recipients of delivery attempts by outcome.",
            &["route", "provider", "result"],
        )?;
        let reports = make.counters(
            "delivery_reports_total",
            "Recipients whose sender was to be told what became of them, by what came of that.",
            &["result"],
        )?;
        let replies = make.counters(
            "upstream_replies_total",
            "Final replies of the next hops, per recipient or connection.",
            &["route", "class", "category"],
        )?;
        let days = make.counters(
            "warmup_day_boundaries_total",
            "Day boundaries by what they did to the stage.",
            &["outcome"],
        )?;
        let brakes = make.counters(
            "warmup_brakes_total",
            "Times that a provider's brake was put on, or on harder.",
            &["provider", "level"],
        )?;
        let by_hand =
            make.counters("queue_admin_actions_total", "Commands of operators that changed queued mail.", &["action"])?;
        let told = make.counters("warmup_admin_actions_total", "What operators told the ramp.", &["action"])?;
        let moves =
            make.counters("stream_admin_actions_total", "Commands of operators that moved a stream.", &["action"])?;
        let mx = make.counters("mx_lookups_total", "Questions for the mail servers of a domain.", &["result"])?;
        let dry = make.counters(
            "dry_run_recipients_total",
            "In a dry run: recipients by the route they would have taken and why.",
            &["stream", "route", "reason"],
        )?;
        let http = make.counters("http_requests_total", "Requests to the admin plane.", &["handler", "code"])?;

        Ok(Metrics {
            config_last_reload_successful: make
                .int_gauge("config_last_reload_successful", "Whether the last reload of the settings succeeded.")?,
            config_last_reload_success_timestamp_seconds: make.gauge(
                "config_last_reload_success_timestamp_seconds",
                "When settings were last loaded successfully.",
            )?,
            smtp_connections: make.int_gauge("smtp_connections", "Client connections now.")?,
            smtp_connections_total: By::new(|result| connections.child(&[result])),
            smtp_messages_received: ByStream::new(streams, move |stream| messages.child(&[stream])),
            smtp_recipients_received: ByStream::new(streams, move |stream| recipients.child(&[stream])),
            smtp_rejections: By::new(|reason| rejections.child(&[reason])),
            smtp_accept_duration_seconds: make.histogram(
                "smtp_accept_duration_seconds",
                "From the end of data to 250, with the sync.",
                ACCEPT_BUCKETS,
            )?,
            routed_recipients: ByStream::new(streams, move |stream| {
                By::new(|route| By::new(|reason| routed.child(&[stream, route, reason])))
            }),
            delivery_attempts: By::new(|route| {
                By::new(|provider| By::new(|result| attempts.child(&[route, provider, result])))
            }),
            upstream_replies: By::new(|route| {
                By::new(|class| By::new(|category| replies.child(&[route, class, category])))
            }),
            delivery_duration_seconds: make.histograms(
                "delivery_duration_seconds",
                "One delivery attempt.",
                DELIVERY_BUCKETS,
            )?,
            queue_wait_seconds: make.histograms(
                "queue_wait_seconds",
                "From acceptance to the final outcome.",
                WAIT_BUCKETS,
            )?,
            queue_expired: make.counter("queue_expired_total", "Recipients given up for age.")?,
            delivery_reports: By::new(|result| reports.child(&[result])),
            queue_admin_actions: By::new(|action| by_hand.child(&[action])),
            dry_run_recipients: DryRunRecipients::new(dry, streams),
            stream_admin_actions: By::new(|action| moves.child(&[action])),
            warmup_day_boundaries: By::new(|outcome| days.child(&[outcome])),
            warmup_brakes: By::new(|provider| By::new(|level| brakes.child(&[provider, level]))),
            warmup_brake_active: make.int_gauges(
                "warmup_brake_active",
                "Whether a provider's brake is on, or its stage frozen.",
                "provider",
            )?,
            warmup_overrun_recipients: make.counter(
                "warmup_overrun_recipients_total",
                "Recipients sent by the new route beyond the limit; must stay 0.",
            )?,
            warmup_admin_actions: By::new(|action| told.child(&[action])),
            mx_lookups: By::new(|result| mx.child(&[result])),
            mx_cache_domains: make.int_gauge("mx_cache_domains", "Domains whose mail servers are known.")?,
            spool_sync_duration_seconds: make.histogram(
                "spool_sync_duration_seconds",
                "One group commit to disk.",
                SYNC_BUCKETS,
            )?,
            spool_errors: make.counter("spool_errors_total", "I/O errors and damaged records of the spool.")?,
            http_requests: By::new(|handler| By::new(|code| http.child(&[handler, code]))),
            mirrored: Mirrored::new(&make)?,
            registry: make.registry,
            adding_streams: Mutex::default(),
        })
    }

    /// These streams count by their own names from here on; a series that is there goes on. Once [`STREAMS_MAX`] streams have been
    /// counted since the start the others count as the default until the next one.
    pub fn count_streams(&self, streams: &[(StreamId, String)]) {
        let _one_at_a_time = self.adding_streams.lock();
        for (stream, name) in streams {
            let known = self.smtp_messages_received.cells[usize::from(stream.0)].get().is_some();
            if known || self.smtp_messages_received.counted() >= STREAMS_MAX {
                continue;
            }
            self.smtp_messages_received.add(*stream, name);
            self.smtp_recipients_received.add(*stream, name);
            self.routed_recipients.add(*stream, name);
        }
    }

    /// Notes that the settings were loaded, at start or by a reload.
    pub fn settings_loaded(&self, now: Timestamp) {
        self.config_last_reload_successful.set(1);
        self.config_last_reload_success_timestamp_seconds.set(seconds(now));
    }

    /// Notes that a reload failed; the former settings stay in force.
    pub fn settings_refused(&self) {
        self.config_last_reload_successful.set(0);
    }

    /// Text exposition format 0.0.4.
    pub fn render(&self) -> String {
        let mut text = Vec::with_capacity(64 * 1024);
        // Writing to memory fails only for families without a name or without series; the registry refuses both.
        TextEncoder::new().encode(&self.families(), &mut text).expect("registered families can be written");
        String::from_utf8(text).expect("names, helps and label values are strings")
    }

    /// What is registered; for tests that compare it with the documentation.
    pub fn families(&self) -> Vec<MetricFamily> {
        self.registry.gather()
    }
}

impl Mirrored {
    fn new(make: &Maker) -> Result<Mirrored, MetricsError> {
        Ok(Mirrored {
            upstream_up: make.int_gauges("upstream_up", "Whether the route's server was reachable last.", "route")?,
            upstream_connections: make.int_gauges("upstream_connections", "Pooled connections now.", "route")?,
            warmup_day: make.int_gauge("warmup_day", "Sending day of the ramp, from 1; 0 before the start.")?,
            warmup_limit_recipients: make
                .gauge("warmup_limit_recipients", "Today's limit of the new route; +Inf when there is none.")?,
            warmup_sent_recipients: make
                .int_gauge("warmup_sent_recipients", "Recipients the new server took today.")?,
            warmup_target_recipients: make
                .int_gauge("warmup_target_recipients", "Recipients per day the ramp leads to.")?,
            warmup_tokens: make.gauge("warmup_tokens", "Recipients that may go at once; +Inf without a limit.")?,
            warmup_provider_limit_recipients: make.gauges(
                "warmup_provider_limit_recipients",
                "Today's limit of a provider's lane; +Inf without a limit and without a lane.",
                "provider",
            )?,
            warmup_provider_sent_recipients: make.int_gauges(
                "warmup_provider_sent_recipients",
                "Recipients of the provider that the new server took today.",
                "provider",
            )?,
            warmup_paused: make.int_gauge("warmup_paused", "Whether an operator paused the new route.")?,
            warmup_complete: make.int_gauge("warmup_complete", "Whether the ramp is complete.")?,
            warmup_day_end_timestamp_seconds: make
                .gauge("warmup_day_end_timestamp_seconds", "When the sending day ends.")?,
            dry_run: make
                .int_gauge("dry_run", "Whether everything goes by legacy and the ramp only says what it would do.")?,
            clock_trusted: make.int_gauge("clock_trusted", "Whether the machine's clock can be right.")?,
            queue_messages: make.int_gauges("queue_messages", "Messages queued.", "state")?,
            queue_bytes: make.int_gauges("queue_bytes", "Bytes of the messages queued.", "state")?,
            queue_oldest_message_timestamp_seconds: make.gauges(
                "queue_oldest_message_timestamp_seconds",
                "When the oldest queued message was accepted; 0 if there is none.",
                "state",
            )?,
            spool_free_bytes: make.int_gauge("spool_free_bytes", "Free bytes of the spool's file system.")?,
        })
    }
}

/// Seconds since the epoch, with fraction.
pub fn seconds(at: Timestamp) -> f64 {
    at.0 as f64 / 1e9
}

/// Registers series with the prefix and hands out their handles.
struct Maker {
    registry: Registry,
}

/// What a dry run says. The only series that come with their first event: a real run has one of them, not hundreds.
pub struct DryRunRecipients(Counters);

impl DryRunRecipients {
    fn new(family: Counters, streams: &[String]) -> Self {
        family.child(&[&streams[0], Route::New.name(), Reason::InQuota.name()]);
        DryRunRecipients(family)
    }

    /// `stream` is the name of one of the settings'.
    pub fn count(&self, stream: &str, would: Route, reason: Reason, recipients: u64) {
        self.0.child(&[stream, would.name(), reason.name()]).inc_by(recipients);
    }
}

struct Counters(prometheus::IntCounterVec);

impl Counters {
    fn child(&self, values: &[&str]) -> IntCounter {
        self.0.with_label_values(values)
    }
}

impl Maker {
    fn register<C: Collector + Clone + 'static>(&self, collector: C) -> Result<C, prometheus::Error> {
        self.registry.register(Box::new(collector.clone()))?;
        Ok(collector)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.register(IntCounter::new(prefixed(name), help)?)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<Counters, prometheus::Error> {
        let family = prometheus::IntCounterVec::new(Opts::new(prefixed(name), help), labels)?;
        Ok(Counters(self.register(family)?))
    }

    fn int_gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.register(IntGauge::new(prefixed(name), help)?)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
        self.register(Gauge::new(prefixed(name), help)?)
    }

    fn int_gauges<L: Label>(&self, name: &str, help: &str, label: &str) -> Result<By<L, IntGauge>, prometheus::Error> {
        let family = self.register(prometheus::IntGaugeVec::new(Opts::new(prefixed(name), help), &[label])?)?;
        Ok(By::new(|value| family.with_label_values(&[value])))
    }

    fn gauges<L: Label>(&self, name: &str, help: &str, label: &str) -> Result<By<L, Gauge>, prometheus::Error> {
        let family = self.register(prometheus::GaugeVec::new(Opts::new(prefixed(name), help), &[label])?)?;
        Ok(By::new(|value| family.with_label_values(&[value])))
    }

    fn histogram(&self, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
        self.register(Histogram::with_opts(HistogramOpts::new(prefixed(name), help).buckets(buckets.to_vec()))?)
    }

    fn histograms(&self, name: &str, help: &str, buckets: &[f64]) -> Result<By<Route, Histogram>, prometheus::Error> {
        let options = HistogramOpts::new(prefixed(name), help).buckets(buckets.to_vec());
        let family = self.register(prometheus::HistogramVec::new(options, &["route"])?)?;
        Ok(By::new(|route| family.with_label_values(&[route])))
    }
}

fn prefixed(name: &str) -> String {
    format!("mailramp_{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_streams(count: usize) -> Metrics {
        let names: Vec<String> = (0..count).map(|n| format!("stream{n}")).collect();
        Metrics::new(&Build::default(), &names).unwrap()
    }

    #[test]
    fn every_series_is_there_from_the_start_at_zero() {
        let text = with_streams(2).render();
        for series in [
            "mailramp_smtp_rejections_total{reason=\"relay_denied\"} 0",
            "mailramp_routed_recipients_total{reason=\"max_wait\",route=\"legacy\",stream=\"stream1\"} 0",
            "mailramp_delivery_attempts_total{provider=\"gmx-webde\",result=\"unknown\",route=\"new\"} 0",
            "mailramp_upstream_replies_total{category=\"reputation\",class=\"5xx\",route=\"new\"} 0",
            "mailramp_delivery_duration_seconds_count{route=\"legacy\"} 0",
            "mailramp_warmup_day_boundaries_total{outcome=\"stepped_back\"} 0",
            "mailramp_warmup_overrun_recipients_total 0",
            "mailramp_queue_messages{state=\"inflight\"} 0",
            "mailramp_http_requests_total{code=\"405\",handler=\"readyz\"} 0",
        ] {
            assert!(text.lines().any(|line| line == series), "{series} is missing in\n{text}");
        }
        assert!(text.contains("mailramp_build_info{revision="));
        #[cfg(target_os = "linux")]
        assert!(text.contains("process_resident_memory_bytes"));
    }

    #[test]
    fn the_number_of_series_stays_under_its_ceiling_with_the_most_streams() {
        let text = with_streams(STREAMS_MAX).render();
        let series = text.lines().filter(|line| !line.starts_with('#')).count();
        assert!(series <= SERIES_MAX, "{series} series");
        assert!(series > 700, "{series} series: something is not exported any more");
    }

    #[test]
    fn streams_that_cannot_be_counted_are_refused() {
        assert!(matches!(Metrics::new(&Build::default(), &[]), Err(MetricsError::Streams(0))));
        let many = vec!["x".to_string(); STREAMS_MAX + 1];
        assert!(matches!(Metrics::new(&Build::default(), &many), Err(MetricsError::Streams(_))));
    }

    #[test]
    fn a_stream_that_comes_later_gets_its_series_as_long_as_there_is_room() {
        let metrics = with_streams(1);
        let received = |name: &str| {
            let series = format!("mailramp_smtp_messages_received_total{{stream=\"{name}\"}} ");
            let text = metrics.render();
            text.lines().find_map(|line| Some(line.strip_prefix(&series)?.parse::<u64>().unwrap()))
        };
        metrics.smtp_messages_received.of(StreamId(200)).inc();
        assert_eq!((received("stream0"), received("digest")), (Some(1), None));
        metrics.count_streams(&[(StreamId(0), "stream0".into()), (StreamId(200), "digest".into())]);
        metrics.smtp_messages_received.of(StreamId(200)).inc();
        assert_eq!((received("stream0"), received("digest")), (Some(1), Some(1)));
        let many: Vec<_> = (1..100).map(|id| (StreamId(id), format!("more{id}"))).collect();
        metrics.count_streams(&many);
        let counted = metrics.render().lines().filter(|line| line.starts_with("mailramp_smtp_messages_rec")).count();
        assert_eq!(counted, STREAMS_MAX);
        metrics.smtp_messages_received.of(StreamId(99)).inc();
        assert_eq!(received("stream0"), Some(2), "counts as the default");
    }

    #[test]
    fn a_handle_raises_exactly_its_own_series() {
        let metrics = with_streams(3);
        metrics.routed_recipients.of(StreamId(2)).of(Route::New).of(Reason::Brake).inc_by(7);
        metrics.routed_recipients.of(StreamId(200)).of(Route::Legacy).of(Reason::Manual).inc();
        let text = metrics.render();
        let mut raised: Vec<&str> = text
            .lines()
            .filter(|line| line.starts_with("mailramp_routed_recipients_total") && !line.ends_with(" 0"))
            .collect();
        raised.sort_unstable();
        assert_eq!(
            raised,
            [
                "mailramp_routed_recipients_total{reason=\"brake\",route=\"new\",stream=\"stream2\"} 7",
                "mailramp_routed_recipients_total{reason=\"manual\",route=\"legacy\",stream=\"stream0\"} 1",
            ]
        );
    }

    #[test]
    fn no_limit_is_written_as_infinity_which_prometheus_reads() {
        let metrics = with_streams(1);
        metrics.mirrored.warmup_limit_recipients.set(f64::INFINITY);
        let text = metrics.render();
        let line = text.lines().find(|line| line.starts_with("mailramp_warmup_limit_recipients ")).unwrap();
        assert!(line.rsplit(' ').next().unwrap().parse::<f64>().unwrap().is_infinite(), "{line}");
    }
}
