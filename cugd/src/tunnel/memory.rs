//! Memory that keeps no secrets after it is given back.
//!
//! gotatun and wireguard-control hold preshared keys as plain arrays: in list entries that move when a list grows, in peers
//! freed unwiped, in netlink buffers. No caller can reach those blocks, the allocator can.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
};

use zeroize::Zeroize;

/// The system's allocator, wiping every block when it is freed and when it moves. Costs one pass over freed memory.
///
/// ```
/// use cugd::tunnel::memory::WipingAllocator;
/// #[global_allocator]
/// static ALLOCATOR: WipingAllocator = WipingAllocator;
/// ```
pub struct WipingAllocator;

// SAFETY: all four calls are passed to `System` with the layouts that were given, or, in `realloc`, with the old layout
// resized as `GlobalAlloc::realloc` asks; a block is written to only between its allocation and its `dealloc`.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: `block` is a live allocation of `layout.size()` bytes that the caller gives up.
        unsafe {
            block.write_bytes(0, layout.size());
            // The pointer escapes, or the compiler would drop stores to memory that is about to be freed.
            System.dealloc(black_box(block), layout);
        }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // The system's own realloc would leave the old block behind unwiped.
        // SAFETY: the caller promises that `new_size` is not zero and fits `layout.align()`; both blocks are live, distinct
        // and at least `min` bytes long; the old one is given up only when the new one exists.
        unsafe {
            let new = System.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
            if !new.is_null() {
                new.copy_from_nonoverlapping(block, layout.size().min(new_size));
                self.dealloc(block, layout);
            }
            new
        }
    }
}

/// Bytes of stack that [`scrub_stack`] wipes: half of what a thread has by default, far more than WireGuard's calls need.
const SCRUBBED: usize = 1 << 20;

/// Wipes the unused megabyte of stack below the caller's frame. For the last act of a thread that handled keys; the thread
/// needs a stack of two megabytes (the default of the standard library).
#[inline(never)]
pub fn scrub_stack() {
    let mut unused = [0xffu8; SCRUBBED];
    black_box(&mut unused).zeroize();
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::FileExt};

    use super::*;

    /// Looks at memory from outside the language, as an attacker would.
    fn look(address: usize, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open("/proc/self/mem").unwrap().read_exact_at(&mut bytes, address as u64).unwrap();
        bytes
    }

    /// Single bytes of this value are in any pointer.
    fn holds_a_key(memory: &[u8]) -> bool {
        memory.windows(8).any(|bytes| bytes == [0xa7; 8])
    }

    #[test]
    fn a_freed_block_is_wiped() {
        let layout = Layout::from_size_align(400, 8).unwrap();
        // SAFETY: the block is allocated, filled and freed by one allocator with one layout; it is not used afterwards.
        let (old, moved) = unsafe {
            let block = WipingAllocator.alloc(layout);
            block.write_bytes(0xa7, 400);
            let moved = WipingAllocator.realloc(block, layout, 600);
            assert_eq!(*moved.add(399), 0xa7, "contents moved");
            WipingAllocator.dealloc(moved, Layout::from_size_align(600, 8).unwrap());
            (block as usize, moved as usize)
        };
        for address in [old, moved] {
            // The allocator below keeps its own pointers in the first bytes.
            assert!(!holds_a_key(&look(address + 32, 360)));
        }
    }

    /// A key at the far end of a deep frame, where no call of this test comes by.
    #[inline(never)]
    fn leave_a_key_behind() -> usize {
        let mut frame = [0xa7u8; 256 * 1024];
        black_box(&mut frame);
        frame.as_ptr() as usize
    }

    #[test]
    fn the_stack_is_wiped() {
        let (before, after) = std::thread::spawn(|| {
            let address = leave_a_key_behind();
            let before = holds_a_key(&look(address, 64));
            scrub_stack();
            (before, holds_a_key(&look(address, 64)))
        })
        .join()
        .unwrap();
        assert!(before, "the test would not see a key");
        assert!(!after);
    }
}
