//! x
#[derive(Debug, clap::Args)]
pub struct Options {}
pub fn run(_: &Options, _: &mut super::Context<'_>) -> Result<(), super::Failure> {
    Ok(())
}
