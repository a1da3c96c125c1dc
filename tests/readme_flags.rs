//! README.md shows the flags that there are.

use std::fs;
use std::path::Path;
use warpsmith::cli::readme;

#[test]
fn readme_shows_the_flags_of_train_gpt2() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(&path).unwrap();
    let fresh = readme::with_flags(&text).expect("README.md has lost the markers of its section of flags");
    assert!(
        text == fresh,
        "README.md is out of date; run: cargo run --bin warpsmith -- flags --write README.md"
    );
}
