//! The core against a world of doubles that checks every action.

mod desk;
mod follow;
mod herd;
mod nat;
mod offline;
mod policies;
mod random;
mod stories;
mod unlock;
mod world;
