//! Joins the pieces.
pub mod gate;
