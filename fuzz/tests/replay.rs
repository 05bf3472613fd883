//! Runs every file of the corpora through its target, on any toolchain.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use vscsi_fuzz::TARGETS;

fn corpora() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus")
}

#[test]
fn every_corpus_file_runs_without_a_panic() {
    for target in TARGETS {
        let corpus = corpora().join(target.name);
        let files = fs::read_dir(&corpus).unwrap_or_else(|error| panic!("{corpus:?}: {error}"));
        let mut count = 0;
        for file in files {
            let path = file.unwrap().path();
            println!("{}", path.display());
            (target.run)(&fs::read(path).unwrap());
            count += 1;
        }
        assert!(count > 0, "{corpus:?} is empty");
    }
}

#[test]
fn every_seed_is_in_its_corpus() {
    for target in TARGETS {
        for seed in (target.seeds)() {
            let path = corpora().join(target.name).join(seed.name);
            assert_eq!(fs::read(&path).ok(), Some(seed.bytes), "{path:?}: run the seeds example");
        }
    }
}

#[test]
fn every_corpus_and_every_binary_has_its_target() {
    let names: BTreeSet<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let listed = |folder: PathBuf| -> BTreeSet<_> {
        fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(listed(corpora()), names);
    assert_eq!(listed(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz_targets")), names);
}
