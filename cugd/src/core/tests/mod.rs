//! The core against a world of doubles that checks every action.

mod herd;
mod policies;
mod random;
mod stories;
mod world;
