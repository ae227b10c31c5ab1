//! `warmup.providers`: which mailbox providers have a limit of their own, as it is written.

use super::values::{Raw, Setting, Share};
use crate::policy::{Lanes, Provider};

/// "auto", "off", or a table of providers and their shares.
pub(super) struct ProviderLanes;

impl Setting for ProviderLanes {
    type Value = Lanes;
    fn read(raw: &Raw) -> Result<Lanes, String> {
        match raw {
            Raw::Text(text) if text == "auto" => Ok(Lanes::Auto),
            Raw::Text(text) if text == "off" => Ok(Lanes::Off),
            Raw::Table(entries) => {
                let shares = entries.iter().map(share).collect::<Result<Vec<_>, _>>()?;
                Lanes::given(&shares).map_err(|error| format!("must {error}"))
            }
            _ => Err(
                "must be \"auto\", \"off\", or shares of providers such as { google = \"46%\", microsoft = \"21%\" }"
                    .into(),
            ),
        }
    }
}

fn share((name, share): &(String, Raw)) -> Result<(Provider, f64), String> {
    let known = Provider::ALL.into_iter().find(|provider| provider.name() == name);
    let provider = known.ok_or_else(|| {
        let shown: String = name.escape_debug().take(NAME_MAX_CHARS).collect();
        format!("must name only {}; not {shown}", Provider::ALL.map(Provider::name).join(", "))
    })?;
    Ok((provider, Share::read(share).map_err(|must| format!("{must}, for {name}"))?))
}

const NAME_MAX_CHARS: usize = 40;
