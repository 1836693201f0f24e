//! What was found once stays found: every file of the corpora goes through its target.

use std::path::Path;

#[test]
fn every_corpus_is_replayed() {
    for (name, target) in cug_fuzz::targets::ALL {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        let mut files: Vec<_> = std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        assert!(files.len() >= 3, "{name} has no corpus");
        for file in files {
            let input = std::fs::read(&file).unwrap();
            if std::panic::catch_unwind(|| target(&input)).is_err() {
                panic!("{} (above)", file.display());
            }
        }
    }
}

/// Any cut of any input, and any single wrong byte: cheap, and it reaches what a fuzzer reaches in its first minute.
#[test]
fn cut_and_altered() {
    for (name, target) in cug_fuzz::targets::ALL {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
        for entry in std::fs::read_dir(&corpus).unwrap() {
            let input = std::fs::read(entry.unwrap().path()).unwrap();
            let step = input.len() / 64 + 1;
            for at in (0..input.len()).step_by(step) {
                target(&input[..at]);
                for value in [0, 0x1f, 0x5b, 0x7f, 0x80, 0xff] {
                    let mut altered = input.clone();
                    altered[at] = value;
                    target(&altered);
                }
            }
        }
    }
}
