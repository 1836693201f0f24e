//! How an operation that is measured alone finds the machine.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

/// Larger than the caches of a processor.
const MEMORY: usize = 64 << 20;
/// What a cache holds at a time, in bytes.
const LINE: usize = 64;
/// Long enough for a processor to fall asleep.
const PAUSE: Duration = Duration::from_millis(20);

/// What happens before each operation.
pub struct Pace(Option<Vec<u8>>);

impl Pace {
    /// Nothing: one follows the other, and finds in the caches what the last one left.
    pub fn quick() -> Self {
        Self(None)
    }

    /// The caches are filled with something else, and the processor sleeps. So does a login find them, of which there is one now and then.
    pub fn cold() -> Self {
        Self(Some(vec![0; MEMORY]))
    }

    /// [`Self::cold`] or [`Self::quick`].
    pub fn new(cold: bool) -> Self {
        if cold { Self::cold() } else { Self::quick() }
    }

    /// Before an operation.
    pub fn next(&mut self) {
        if let Some(memory) = &mut self.0 {
            memory.iter_mut().step_by(LINE).for_each(|byte| *byte = byte.wrapping_add(1));
            black_box(memory);
            thread::sleep(PAUSE);
        }
    }

    /// How long each of `times` operations takes. The first one finds nothing in memory, and does not count.
    ///
    /// # Errors
    /// Those of the operation.
    pub fn time<T>(
        &mut self,
        times: usize,
        mut work: impl FnMut() -> anyhow::Result<T>,
    ) -> anyhow::Result<Vec<Duration>> {
        work()?;
        (0..times)
            .map(|_| {
                self.next();
                let begin = Instant::now();
                work().map(|_| begin.elapsed())
            })
            .collect()
    }
}
