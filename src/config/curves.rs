//! The curves that the settings can name: those of the program, or those of `warmup.curves_file`.

use std::borrow::Cow;
use std::path::Path;

use super::load;
use super::{CurveName, Fault, Origin, Warmup, keys};
use crate::policy::{Curve, Presets};

/// Why there are no curves.
#[derive(Debug)]
pub enum Unread {
    /// The file itself; the text says what it must be.
    File(String),
    /// What it holds, each fault with its place.
    Faults(Vec<Fault>),
}

/// Reads `file`; the curves of the program without one.
pub fn read(file: Option<&Path>) -> Result<Cow<'static, Presets>, Unread> {
    let Some(path) = file else { return Ok(Cow::Borrowed(Presets::embedded())) };
    let shown = path.display().to_string();
    let bytes = load::read_bounded(path, load::FILE_MAX_BYTES).map_err(|why| {
        Unread::File(format!(
            "must be a file of curves that can be read, or \"\" for those of the program; {shown}: {why}"
        ))
    })?;
    let text =
        String::from_utf8(bytes).map_err(|_| Unread::File(format!("must be a file of UTF-8 text; {shown} is not")))?;
    let presets = Presets::parse(&text).map_err(|faults| {
        let place = |line, column| Origin::File { name: shown.clone(), line, column };
        Unread::Faults(
            faults.into_iter().map(|f| Fault { origin: place(f.line, f.column), message: f.message }).collect(),
        )
    })?;
    Ok(Cow::Owned(presets))
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
