//! The core against a world of doubles that checks every action.

mod random;
mod stories;
mod world;
