//! (to be written)
pub mod body;
/// placeholder
pub trait Gate {}
