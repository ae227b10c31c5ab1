//! The curves that the settings can name: those of the program, or those of `warmup.curves_file`.

use std::borrow::Cow;
use std::path::Path;

use super::rules::{self, Unread};
use super::{CurveName, Warmup, keys};
use crate::policy::{Curve, Presets};

/// Reads `file`; the curves of the program without one.
pub fn read(file: Option<&Path>) -> Result<Cow<'static, Presets>, Unread> {
    match file {
        None => Ok(Cow::Borrowed(Presets::embedded())),
        Some(path) => rules::read(path, "curves", Presets::parse).map(Cow::Owned),
    }
}

/// The curve that the settings mean. `Err` says what `warmup.curve` or its numbers must be.
pub fn shape(warmup: &Warmup, presets: &Presets) -> Result<Curve, String> {
    let numbers = match &warmup.curve {
        CurveName::Named(name) => return named(name, presets),
        CurveName::Formula => Curve::formula(warmup.first_day as f64, warmup.growth),
        CurveName::Custom => Curve::new(warmup.custom.iter().map(|n| *n as f64).collect(), warmup.growth),
    };
    numbers.map_err(|error| error.to_string())
}

/// The curve of this name. `Err` lists what there is, the nearest first if one is near.
pub fn named(name: &str, presets: &Presets) -> Result<Curve, String> {
    if let Some(preset) = presets.find(name) {
        return Ok(preset.curve.clone());
    }
    let all = || presets.names().chain(crate::policy::presets::RESERVED);
    let meant = keys::nearest(name, all()).map(|name| format!("did you mean \"{name}\"? It ")).unwrap_or_default();
    Err(format!("{meant}must be one of {}", all().collect::<Vec<_>>().join(", ")))
}
