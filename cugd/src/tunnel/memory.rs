//! Memory that keeps no secrets after it is given back.
//!
//! gotatun and wireguard-control hold preshared keys as plain arrays: in list entries that move when a list grows, in peers
//! freed unwiped, in netlink buffers. No caller can reach those blocks, the allocator can.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    hint::black_box,
    ptr,
};

use zeroize::Zeroize;

/// The system's allocator, wiping every block when it is freed and when it moves. Costs one pass over freed memory.
///
/// Large blocks ([`LARGE`]) are mapped by themselves and given back to the kernel, which gives no page to anybody without wiping it. gotatun asks for
/// 25 MiB at each opening and touches little of it: to wipe that would fetch it all into memory first, and so would the system's allocator
/// from the second opening on.
///
/// ```
/// use cugd::tunnel::memory::WipingAllocator;
/// #[global_allocator]
/// static ALLOCATOR: WipingAllocator = WipingAllocator;
/// ```
pub struct WipingAllocator;

/// Bytes from which on a block is mapped by itself.
const LARGE: usize = 1 << 20;
/// Smallest size of a page, to which every mapping is aligned.
const PAGE: usize = 4096;

fn is_large(layout: Layout) -> bool {
    layout.size() >= LARGE && layout.align() <= PAGE
}

/// Zeroed memory of its own; null when there is none.
fn map(size: usize) -> *mut u8 {
    let access = libc::PROT_READ | libc::PROT_WRITE;
    let kind = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping, wherever the kernel wants it, touches nothing that exists.
    let block = unsafe { libc::mmap(ptr::null_mut(), size, access, kind, -1, 0) };
    if block == libc::MAP_FAILED { ptr::null_mut() } else { block.cast() }
}

// SAFETY: all four calls are passed to `System` with the layouts that were given, or, in `realloc`, with the old layout
// resized as `GlobalAlloc::realloc` asks; large blocks are mappings of their own, and the layout alone says which those are. A block is
// written to only between its allocation and its `dealloc`.
unsafe impl GlobalAlloc for WipingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return map(layout.size());
        }
        // SAFETY: the caller's promise about `layout` is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: the block is a whole mapping of this size, made for this layout, which the caller gives up.
            let _cannot_fail = unsafe { libc::munmap(block.cast(), layout.size()) };
            return;
        }
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
            let new = self.alloc(Layout::from_size_align_unchecked(new_size, layout.align()));
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

    /// Pages of this process that are in memory.
    fn resident() -> usize {
        let numbers = std::fs::read_to_string("/proc/self/statm").unwrap();
        numbers.split(' ').nth(1).unwrap().parse().unwrap()
    }

    #[test]
    fn a_large_block_costs_what_is_touched_and_goes_back_to_the_kernel() {
        const MANY: usize = 256 << 20;
        let layout = Layout::from_size_align(MANY, 64).unwrap();
        let before = resident();
        // The system's allocator would keep such blocks from the second time on.
        for _ in 0..3 {
            // SAFETY: as above.
            let block = unsafe { WipingAllocator.alloc_zeroed(layout) };
            assert!(!block.is_null());
            // SAFETY: as above; the last byte lies within.
            let (last, middle) = unsafe {
                block.add(MANY / 2).write_bytes(0xa7, 400);
                (*block.add(MANY - 1), block.add(MANY / 2) as usize)
            };
            assert_eq!(last, 0);
            assert!(holds_a_key(&look(middle, 400)));
            assert!(resident() < before + MANY / PAGE / 2, "what is not touched costs nothing");
            // SAFETY: as above.
            unsafe { WipingAllocator.dealloc(block, layout) };
            let memory = File::open("/proc/self/mem").unwrap();
            let mut there = [0; 400];
            // Something else may be mapped there by now.
            assert!(memory.read_exact_at(&mut there, middle as u64).is_err() || !holds_a_key(&there));
            assert!(resident() < before + MANY / PAGE / 2, "nor does its end");
        }
    }

    #[test]
    fn a_block_may_become_a_large_one_and_small_again() {
        let [small, large] = [LARGE / 2, 4 * LARGE].map(|size| Layout::from_size_align(size, 8).unwrap());
        // SAFETY: as above, each with the layout that it has at that moment.
        unsafe {
            let block = WipingAllocator.alloc(small);
            block.write_bytes(0xa7, small.size());
            let block = WipingAllocator.realloc(block, small, large.size());
            assert_eq!(*block.add(small.size() - 1), 0xa7);
            let block = WipingAllocator.realloc(block, large, small.size());
            assert_eq!(*block.add(small.size() - 1), 0xa7);
            WipingAllocator.dealloc(block, small);
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
