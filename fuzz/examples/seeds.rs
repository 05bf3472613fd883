//! Writes every target's seeds to its corpus, leaving other files there alone.

use std::fs;
use std::io;
use std::path::Path;

use vscsi_fuzz::TARGETS;

fn main() -> io::Result<()> {
    let corpora = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for target in TARGETS {
        let corpus = corpora.join(target.name);
        fs::create_dir_all(&corpus)?;
        for seed in (target.seeds)() {
            fs::write(corpus.join(seed.name), seed.bytes)?;
        }
    }
    Ok(())
}
