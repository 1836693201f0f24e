//! The core against a world of doubles that checks every action.

mod policies;
mod random;
mod stories;
mod world;
