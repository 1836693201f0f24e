//! The core against a world of doubles that checks every action.

mod follow;
mod herd;
mod offline;
mod policies;
mod random;
mod stories;
mod world;
