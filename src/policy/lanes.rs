//! Which mailbox providers have a lane of their own, and what part of the curve each is given.
//!
//! Automatic shares follow what was offered ([`super::stage::auto_share`]). Where an operator names providers and their shares,
//! those he does not name have no lane: their mail counts in the lane `other`, which has what the named ones leave.

use super::Provider;
use crate::message::LaneId;

/// Sums of shares that should be whole are off by less than this.
const ROUNDING: f64 = 1e-9;

/// As configured.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Lanes {
    /// Only the total.
    Off,
    /// One for each provider, with the share of its mail.
    #[default]
    Auto,
    /// Named ones, [`Provider::Other`] always among them; parts of the curve above 0, together at most 1.
    Given(Vec<(Provider, f64)>),
}

/// Why shares cannot be given so. Completes the sentence "the shares must ...".
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SharesError {
    #[error("name at least one provider, such as {{ google = \"46%\" }}; or write \"auto\" or \"off\"")]
    None,
    #[error("be above \"0%\"; leave {0} out and its mail counts as other")]
    Nothing(&'static str),
    #[error("add up to at most 100 %, not {0} %; lower one of them")]
    TooMuch(f64),
    #[error(
        "leave a part for all others, whose mail could never leave by new: let them add up to less than 100 %, or name other"
    )]
    NothingLeft,
}

impl Lanes {
    /// Each provider once. What they leave of the whole goes to `other`; an `other` that is named has its own share, and
    /// what is left then goes to nobody.
    pub fn given(shares: &[(Provider, f64)]) -> Result<Lanes, SharesError> {
        if shares.is_empty() {
            return Err(SharesError::None);
        }
        if let Some((provider, _)) = shares.iter().find(|(_, share)| share.is_nan() || *share <= 0.0) {
            return Err(SharesError::Nothing(provider.name()));
        }
        let sum: f64 = shares.iter().map(|(_, share)| share).sum();
        if sum > 1.0 + ROUNDING {
            return Err(SharesError::TooMuch((sum * 1e5).round() / 1e3));
        }
        let mut lanes = shares.to_vec();
        if !lanes.iter().any(|(provider, _)| *provider == Provider::Other) {
            if sum > 1.0 - ROUNDING {
                return Err(SharesError::NothingLeft);
            }
            lanes.push((Provider::Other, 1.0 - sum));
        }
        lanes.sort_by_key(|(provider, _)| *provider);
        Ok(Lanes::Given(lanes))
    }

    /// Those that have a lane, in the order of [`Provider::ALL`].
    pub fn providers(&self) -> impl Iterator<Item = Provider> + '_ {
        Provider::ALL.into_iter().filter(|provider| match self {
            Lanes::Off => false,
            Lanes::Auto => true,
            Lanes::Given(lanes) => lanes.iter().any(|(named, _)| named == provider),
        })
    }

    /// Where mail to `provider` is limited beside the total; the total itself where there are no other lanes.
    pub fn lane(&self, provider: Provider) -> LaneId {
        match self {
            Lanes::Off => LaneId::TOTAL,
            Lanes::Auto => provider.lane(),
            Lanes::Given(lanes) if lanes.iter().any(|(named, _)| *named == provider) => provider.lane(),
            Lanes::Given(_) => Provider::Other.lane(),
        }
    }

    /// The part of the curve that was given to a provider's lane, 0 to 1. `None`: none was, it follows the mail.
    pub fn share(&self, provider: Provider) -> Option<f64> {
        match self {
            Lanes::Off | Lanes::Auto => None,
            Lanes::Given(lanes) => lanes.iter().find(|(named, _)| *named == provider).map(|(_, share)| *share),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Provider::{Google, Microsoft, Other, Yahoo};

    #[test]
    fn what_the_named_ones_leave_goes_to_the_others() {
        let lanes = Lanes::given(&[(Microsoft, 0.21), (Google, 0.46)]).unwrap();
        assert_eq!(lanes.providers().collect::<Vec<_>>(), [Google, Microsoft, Other]);
        assert_eq!((lanes.share(Google), lanes.share(Microsoft), lanes.share(Yahoo)), (Some(0.46), Some(0.21), None));
        assert!((lanes.share(Other).unwrap() - 0.33).abs() < ROUNDING);
        assert_eq!([Google, Yahoo, Other].map(|p| lanes.lane(p)), [Google.lane(), Other.lane(), Other.lane()]);
        let less = Lanes::given(&[(Google, 0.46), (Other, 0.1)]).unwrap();
        assert_eq!(less.share(Other), Some(0.1), "what was written counts");
        assert!(Lanes::given(&[(Google, 0.6), (Other, 0.4)]).is_ok());
    }

    #[test]
    fn without_names_there_is_one_lane_for_each_or_only_the_total() {
        assert_eq!(Lanes::Auto.providers().collect::<Vec<_>>(), Provider::ALL);
        assert!(Provider::ALL.iter().all(|p| Lanes::Auto.lane(*p) == p.lane() && Lanes::Auto.share(*p).is_none()));
        assert_eq!(Lanes::Off.providers().count(), 0);
        assert!(Provider::ALL.iter().all(|p| Lanes::Off.lane(*p) == LaneId::TOTAL));
    }

    #[test]
    fn shares_that_cannot_be_given_are_refused() {
        assert_eq!(Lanes::given(&[]), Err(SharesError::None));
        assert_eq!(Lanes::given(&[(Google, 0.0), (Other, 0.5)]), Err(SharesError::Nothing("google")));
        assert_eq!(Lanes::given(&[(Google, 0.8), (Yahoo, 0.3)]), Err(SharesError::TooMuch(110.0)));
        assert_eq!(Lanes::given(&[(Google, 0.8), (Yahoo, 0.2)]), Err(SharesError::NothingLeft));
    }
}
