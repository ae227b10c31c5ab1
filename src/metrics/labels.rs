//! The closed sets of label values. A new value is a new series: add it to `docs/metrics.md` too.

use crate::message::{Reason, Route};

/// A closed set of label values.
pub trait Label: Copy + 'static {
    const ALL: &'static [Self];
    /// The value as exported.
    fn text(self) -> &'static str;
    /// Place in [`Label::ALL`].
    fn index(self) -> usize;
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$note:meta])* $variant:ident = $text:literal,)+ })+) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$note])* $variant,)+ }

        impl Label for $name {
            const ALL: &'static [Self] = &[$($name::$variant,)+];
            fn text(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
            fn index(self) -> usize {
                self as usize
            }
        }
    )+};
}

labels! {
    /// What became of a client's connection.
    ConnectionResult {
        Accepted = "accepted",
        /// Over the limit in all or of one address.
        TooMany = "too_many",
        /// Its address is blocked for failed logins.
        Blocked = "blocked",
    }
    /// Why a client was refused something.
    Rejection {
        Size = "size",
        Auth = "auth",
        RelayDenied = "relay_denied",
        Disk = "disk",
        Syntax = "syntax",
        /// Bare CR or LF, or commands injected before TLS.
        Smuggling = "smuggling",
        Loop = "loop",
        /// More recipients, errors or headers than allowed.
        TooMany = "too_many",
        Timeout = "timeout",
        /// A TLS handshake that failed.
        Tls = "tls",
        Other = "other",
    }
    /// Outcome of one delivery attempt, per recipient.
    AttemptResult {
        Delivered = "delivered",
        Deferred = "deferred",
        Rejected = "rejected",
        /// The reply to the final dot was lost.
        Unknown = "unknown",
    }
    /// What name servers said of a domain's mail servers.
    MxResult {
        Found = "found",
        /// No such domain, or no MX.
        None = "none",
        /// No answer.
        Failed = "failed",
    }
    /// Whether a sender was told what became of a recipient.
    ReportResult {
        Sent = "sent",
        /// NOTIFY does not ask for it.
        Unwanted = "unwanted",
        /// It was a report itself.
        NullSender = "null_sender",
        /// The sender has had its share of the hour.
        RateLimited = "rate_limited",
    }
    /// First digit of a next hop's reply.
    ReplyClass {
        Positive = "2xx",
        Transient = "4xx",
        Permanent = "5xx",
        /// There was none: the connection failed.
        Missing = "none",
    }
    /// What a next hop's reply was about.
    Category {
        Ok = "ok",
        Rate = "rate",
        Reputation = "reputation",
        Auth = "auth",
        Recipient = "recipient",
        Content = "content",
        Network = "network",
        Other = "other",
    }
    /// Mailbox provider by MX operator. `All` is the total, and the only one while lanes per provider are off.
    Provider {
        All = "all",
        Google = "google",
        Microsoft = "microsoft",
        Yahoo = "yahoo",
        Apple = "apple",
        GmxWebde = "gmx-webde",
        OrangeFr = "orange-fr",
        Mimecast = "mimecast",
        Other = "other",
    }
    /// How far a provider's brake went.
    BrakeStep {
        Slow = "slow",
        Suspended = "suspended",
        /// Until a person acts.
        Paused = "paused",
    }
    /// What a day boundary did to the stage of the total.
    DayOutcome {
        Advanced = "advanced",
        Repeated = "repeated",
        SteppedBack = "stepped_back",
        Skipped = "skipped",
    }
    /// Where a queued message stands.
    QueueState {
        Held = "held",
        Ready = "ready",
        Deferred = "deferred",
        Inflight = "inflight",
        /// Came back with restored data.
        Paused = "paused",
        /// Failed, and nobody to tell.
        Dead = "dead",
        /// Damaged on disk.
        Quarantined = "quarantined",
    }
    /// What operators do to queued mail by hand.
    AdminAction {
        Flush = "flush",
        Reroute = "reroute",
        Drop = "drop",
    }
    /// What operators tell the ramp.
    WarmupAction {
        Pause = "pause",
        Resume = "resume",
        SetDay = "set_day",
        BrakeSet = "brake_set",
        BrakeRelease = "brake_release",
        AcceptClock = "accept_clock",
    }
    /// What an operator did to a stream.
    StreamAction {
        Move = "move",
        Undo = "undo",
    }
    /// Pages of the admin plane.
    Handler {
        Landing = "landing",
        Metrics = "metrics",
        Livez = "livez",
        Readyz = "readyz",
        /// Any other path.
        Other = "other",
    }
    /// HTTP status codes the admin plane answers with.
    HttpCode {
        Ok = "200",
        NotFound = "404",
        MethodNotAllowed = "405",
        Internal = "500",
        Unavailable = "503",
    }
}

impl Label for Route {
    const ALL: &'static [Self] = &Route::ALL;
    fn text(self) -> &'static str {
        self.name()
    }
    fn index(self) -> usize {
        self as usize
    }
}

impl Label for Reason {
    const ALL: &'static [Self] = &Reason::ALL;
    fn text(self) -> &'static str {
        self.name()
    }
    fn index(self) -> usize {
        self as usize
    }
}

impl HttpCode {
    /// Codes outside the set count as 500: they are not meant to happen.
    pub fn of_status(status: u16) -> HttpCode {
        match status {
            200 => HttpCode::Ok,
            404 => HttpCode::NotFound,
            405 => HttpCode::MethodNotAllowed,
            503 => HttpCode::Unavailable,
            _ => HttpCode::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_numbered_as_they_are_listed() {
        fn check<L: Label>() {
            for (place, label) in L::ALL.iter().enumerate() {
                assert_eq!(label.index(), place, "{}", label.text());
            }
        }
        check::<Route>();
        check::<Reason>();
        check::<Provider>();
        check::<Category>();
        check::<HttpCode>();
    }
}
