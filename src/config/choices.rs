//! Settings that are one word out of a few.

use super::values::{self, Raw, Setting};

/// Writes an enum whose values are spelled as in the settings file.
macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $word:literal),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),+ }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// As in the settings file.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $word),+ }
            }
        }

        impl Setting for $name {
            type Value = Self;
            fn read(raw: &Raw) -> Result<Self, String> {
                let found = match raw {
                    Raw::Text(text) => Self::ALL.iter().copied().find(|choice| choice.name() == text),
                    _ => None,
                };
                found.ok_or_else(|| values::must_be_one_of(&Self::ALL.iter().map(|c| c.name()).collect::<Vec<_>>()))
            }
        }
    };
}

choice!(LogFormat {
    /// Pretty on a terminal, logfmt otherwise.
    Auto = "auto",
    Json = "json",
    Logfmt = "logfmt",
    Pretty = "pretty",
});
choice!(LogLevel { Error = "error", Warn = "warn", Info = "info", Debug = "debug", Trace = "trace" });
choice!(LogAddresses { Masked = "masked", Hashed = "hashed", Full = "full" });
choice!(
    /// What a CR or LF that stands alone gets.
    BareNewline {
        Reject = "reject",
        /// Made CRLF, for every client.
        Normalize = "normalize",
    }
);
choice!(ListenerTls {
    Off = "off",
    /// Offered after EHLO.
    StartTls = "starttls",
    /// From the first octet.
    Implicit = "implicit",
});
choice!(ListenerAuth {
    Off = "off",
    /// `allow_from` admits without a login, a login admits from anywhere.
    Optional = "optional",
    /// The same, and who is not in `allow_from` is asked for a login.
    Required = "required",
});
choice!(
    /// How a connection to a server is secured.
    TlsLevel {
        Off = "off",
        /// STARTTLS when offered, any certificate.
        May = "may",
        /// TLS or no delivery, any certificate.
        Encrypt = "encrypt",
        /// TLS with a certificate that is valid for the configured host, or no delivery.
        Verify = "verify",
    }
);
/// Which curve the ramp follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CurveName {
    /// `first_day` × `growth` per stage.
    Formula,
    /// The list in `custom`.
    Custom,
    /// A curve of the curves file; whether it holds this one is looked up when that is read.
    Named(String),
}

impl CurveName {
    /// What is meant where nothing is said.
    pub const DEFAULT: &str = "standard";

    /// As in the settings file.
    pub fn name(&self) -> &str {
        match self {
            CurveName::Formula => "formula",
            CurveName::Custom => "custom",
            CurveName::Named(name) => name,
        }
    }
}

impl Setting for CurveName {
    type Value = Self;
    fn read(raw: &Raw) -> Result<Self, String> {
        match raw {
            Raw::Text(text) if text == "formula" => Ok(CurveName::Formula),
            Raw::Text(text) if text == "custom" => Ok(CurveName::Custom),
            Raw::Text(text) => Ok(CurveName::Named(text.clone())),
            _ => Err("must be the name of a curve in quotes, such as \"standard\"".to_owned()),
        }
    }
}

choice!(
    /// Which days count as a stage.
    AdvanceOn {
        /// Days that used at least `min_used` of their limit.
        SendingDay = "sending-day",
        Calendar = "calendar",
    }
);
choice!(
    /// What the first day with a brake does to the stage.
    NextDay {
        /// The stage stays.
        Repeat = "repeat",
        /// One stage back, as every further day in a row does.
        StepBack = "step-back",
    }
);
choice!(OverflowPolicy {
    /// To the legacy server at once.
    Legacy = "legacy",
    /// Wait up to `max_wait` for a token, then legacy.
    HoldThenLegacy = "hold-then-legacy",
    /// Wait for a token, however long.
    Hold = "hold",
});
choice!(
    /// Where a stream's mail goes.
    StreamRoute {
        /// Stays on the legacy server.
        Legacy = "legacy",
        /// By the new server as far as the limit allows.
        Ramp = "ramp",
        /// Only by the new server, ahead of others, but never beyond the limit.
        New = "new",
    }
);

choice!(
    /// How the new server failed, so that the legacy server may take the mail.
    FallbackOn {
        /// No session came about, or it was lost.
        Connect = "connect",
        /// Not secured as the policy asks.
        Tls = "tls",
        /// The login was refused.
        Auth = "auth",
        /// Refused for good, as a rule knows, for who sends and not for the mail.
        Reputation = "reputation",
    }
);

/// `tls.level`: "" leaves the choice to us.
pub(super) struct OptionalTlsLevel;
impl Setting for OptionalTlsLevel {
    type Value = Option<TlsLevel>;
    fn read(raw: &Raw) -> Result<Option<TlsLevel>, String> {
        match raw {
            Raw::Text(text) if text.is_empty() => Ok(None),
            raw => TlsLevel::read(raw).map(Some),
        }
    }
}
