//! docs/flags.md shows the flags that the programs take.

use std::fs;
use std::path::Path;
use warpsmith::cli::readme;

#[test]
fn docs_show_the_flags_of_train_gpt2() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/flags.md");
    let text = fs::read_to_string(&path).unwrap();
    let fresh = readme::with_flags(&text).expect("docs/flags.md has lost the markers around its tables");
    assert!(
        text == fresh,
        "docs/flags.md is out of date; run: cargo run --bin warpsmith -- flags --write docs/flags.md"
    );
}
