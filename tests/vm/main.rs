//! The product on virtual machines with the distribution's own kernel: its WireGuard, its packet filter and BPF, real udev, a screen and a keyboard.

mod kernel;
mod packages;
mod scene;
